//! What a change is to a channel that is kept equal to what its client would select.

use tide_feed::event::{Change, Operation};

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
        let sides = sync.sides(event_ref.seq, event_ref.event.xid);
        let is_visible = || {
            let admits =
                |binding: &Binding| self.admits(binding, effort, |attnum| images.after(attnum));
            sight.after == Seen::Yes && group.bindings.iter().any(admits)
        };
        let was_visible = || {
            let admits =
                |binding: &Binding| self.admits(binding, effort, |attnum| images.before(attnum));
            sight.before == Seen::Yes && group.bindings.iter().any(admits)
        };
        let is_keyless = sync.is_keyless();
        let sight = match &mut sync.told {
            None if self.sees_all() => {
                Sight { before: Seen::from(sides.before), after: Seen::from(sides.after) }
            }
            None => return Err(Missing::Basis),
            // Nothing tells its rows apart but all of their values, which every image has.
            Some(_) if is_keyless => Sight {
                before: Seen::from(sides.before && was_visible()),
                after: Seen::from(sides.after && is_visible()),
            },
            Some(told) => {
                told.sight(&sync.key, &images, sides, is_visible()).ok_or(Missing::Basis)?
            }
        };
        self.whole(change, sight, event_ref, sync)
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
        let images = Images::of(event_ref.batch, change);
        let key = images.key_texts(&sync.key, true).filter(|key| !key.is_empty());
        sync.fetch(key.ok_or(Missing::Basis)?);
        Err(Missing::Row)
    }
}
