//! What a change is to a channel that is kept equal to what its client would select.

use tide_feed::catalog::Condition;
use tide_feed::event::{Change, Datum, Operation};

use super::Plan;
use crate::hub::encoder::{EncodeContext, EventRef, Missing};
use crate::hub::group::GroupKey;
use crate::hub::subscription::Binding;
use crate::hub::sync::Sync;
use crate::policy::{Images, Seen, Sight, Way};
use crate::wire::change;

impl Plan {
    /// As the channel is to be told of it; `sight`: what the policies make of the row.
    pub(super) fn synced(
        &self,
        group: &GroupKey,
        event_ref: EventRef<'_>,
        change: &Change,
        sight: Sight,
        context: &mut EncodeContext<'_>,
    ) -> Result<Sight, Missing> {
        let effort = context.effort;
        let Some(sync) = &mut context.sync else { return Ok(sight) };
        let images = Images::of(event_ref.batch, change);
        if change.operation == Operation::Truncate {
            return Err(Missing::Basis);
        }
        let is_of = |attnum| sync.plan.known.contains(&attnum);
        let rule = self.entitlement.as_ref().map(|known| known.rule());
        let is_as_before = rule.is_none_or(|rule| sync.has_rule(change.relation.oid, rule));
        // Or it has no right to any of it, for a while.
        if self.parts.is_empty()
            || !is_as_before
            || !change.relation.columns.iter().all(|column| is_of(column.attnum))
        {
            return Err(Missing::Basis);
        }
        let sides = sync.sides(event_ref.seq, event_ref.event.xid);
        if sync.told.is_none() {
            let seen = |is_for_it| Seen::from(is_for_it);
            let sight = Sight { before: seen(sides.before), after: seen(sides.after) };
            let sight = if self.sees_all() { sight } else { return Err(Missing::Basis) };
            return self.whole(change, sight, event_ref, sync);
        }
        let passes = |binding: &Binding, is_after: bool| {
            self.admits(binding, effort, |attnum| {
                if is_after { images.after(attnum) } else { images.before(attnum) }
            })
        };
        let sees = |seen: Seen, is_after| {
            seen == Seen::Yes && group.bindings.iter().any(|binding| passes(binding, is_after))
        };
        // Nothing tells its rows apart but all of their values, which every image has.
        if sync.is_keyless() {
            // It has got a key since, and images are of that alone.
            if images.has_before() && change.old.is_none() {
                return Err(Missing::Basis);
            }
            let before = sides.before && sees(sight.before, false);
            let after = sides.after && sees(sight.after, true);
            let sight = Sight { before: Seen::from(before), after: Seen::from(after) };
            return self.whole(change, sight, event_ref, sync);
        }
        let is_missing = |condition: &Condition| images.after(condition.column) == Datum::Absent;
        let is_unknown =
            sight.after == Seen::Unknown || sync.plan.conditions.iter().any(is_missing);
        if images.has_after() && sides.after && is_unknown {
            return Err(self.fetch(&images, sync));
        }
        let is_visible = sees(sight.after, true);
        let Some(told) = &mut sync.told else { return Err(Missing::Basis) };
        let sight = told.sight(&sync.key, &images, sides, is_visible).ok_or(Missing::Basis)?;
        self.whole(change, sight, event_ref, sync)
    }

    /// Has the row after the change read.
    fn fetch(&self, images: &Images<'_>, sync: &mut Sync) -> Missing {
        let key = images.key_texts(&sync.key, true).filter(|key| !key.is_empty());
        let named = images.key_object(&sync.key, true);
        let told = match &sync.told {
            Some(told) => told.of_row(&sync.key, images).map(Some),
            None => Some(None),
        };
        match (key, named, told) {
            (Some(key), Some(named), Some(told)) => {
                sync.fetch(key, named, told);
                Missing::Row
            }
            _ => Missing::Basis,
        }
    }

    fn sees_all(&self) -> bool {
        let way = self.entitlement.as_ref().map(|known| known.rule().way);
        matches!(way, None | Some(Way::Constant(true)))
    }

    /// An error if the client would be told of a new row of which the WAL does not have all.
    fn whole(
        &self,
        change: &Change,
        sight: Sight,
        event_ref: EventRef<'_>,
        sync: &mut Sync,
    ) -> Result<Sight, Missing> {
        let is_new = sight.presented(change.operation) == Some(Operation::Insert);
        if !is_new || change.operation != Operation::Update {
            return Ok(sight);
        }
        let mut unchanged = Vec::new();
        for part in &self.parts {
            change::unchanged_list(&mut unchanged, event_ref.batch, change, &part.columns);
        }
        if unchanged.is_empty() {
            return Ok(sight);
        }
        Err(self.fetch(&Images::of(event_ref.batch, change), sync))
    }
}
