//! How a group turns events into frames: everything that stays the same from one event of a table
//! to the next is worked out once.

mod synced;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tide_feed::catalog::ANOTHER_TYPE;
use tide_feed::event::{Change, Datum, EventKind, Failed, Operation, Position, Relation};

use super::alteration::altered;
use super::body_cache::Form;
use super::encoder::{EncodeContext, EventRef, Missing};
use super::entitlement::{Entitlement, Entitlements, Subject};
use super::group::GroupKey;
use super::history::Seq;
use super::subscription::{Binding, Style};
use super::verdict::{PolicyState, Verdict};
use super::warning::{Cause, Warning};
use super::{failure, messages};
use crate::filter::Effort;
use crate::policy::{Images, Seen, Sight, Way};
use crate::wire::change::{self, ColumnSet};
use crate::wire::envelope::{Envelope, Meta};
use crate::wire::{encode, record};

/// What a group knows of the table it last had an event of.
#[derive(Default)]
pub(super) struct Plans {
    newest: Option<Box<Plan>>,
    pub(super) policy: PolicyState,
    /// What its filters have spent, of late rather than ever.
    pub(super) spent: u64,
}

/// How a group encodes changes of one shape of one table, for as long as the catalogue stays as it
/// is.
struct Plan {
    relation: Arc<Relation>,
    generation: u64,
    entitlement: Option<Rc<Entitlement>>,
    /// One per distinct `select`; none if the role may see nothing.
    parts: Vec<Part>,
    /// Some binding names TRUNCATE.
    names_truncate: bool,
    /// Columns that filters may look at.
    readable: Vec<i16>,
    /// Some binding has to be made anew for what the table is now.
    is_outdated: bool,
    /// Some filter cannot be held against rows of this shape of the table.
    is_incomparable: bool,
    /// The policies, as they are put together here, are about columns of other types.
    is_of_other_types: bool,
}

/// Bindings with the same `select` share a frame; a channel rarely has more than one.
struct Part {
    columns: Rc<ColumnSet>,
    /// Indexes into the group's bindings.
    bindings: Vec<usize>,
    /// The ids of the bindings that want the event at hand.
    wanted: Vec<u32>,
    /// The ids and the operation that `envelope` was made for.
    ids: Vec<u32>,
    operation: Operation,
    envelope: Option<Envelope>,
}

impl Plans {
    /// Forgets what can be worked out again.
    pub(super) fn rest(&mut self) {
        self.newest = None;
    }

    /// Appends the frames that the event becomes for the group: none, one, or one per distinct
    /// `select`.
    pub(super) fn frames(
        &mut self,
        group: &GroupKey,
        event_ref: EventRef<'_>,
        previous: Option<Position>,
        context: &mut EncodeContext<'_>,
    ) -> Result<(), Missing> {
        match &event_ref.event.kind {
            // Most of what is read from the history is of other tables.
            EventKind::Change(change) if !group.targets(&change.relation) => {}
            EventKind::Change(change) => {
                let images = Images::of(event_ref.batch, change);
                let effort = context.effort;
                if group.has_filters() {
                    effort.earn(event_ref.seq, images.bytes(), context.place);
                    if effort.is_out_of_time() {
                        return Err(Missing::Time);
                    }
                }
                let before = effort.total();
                let (plan, policy) =
                    self.plan(group, &change.relation, event_ref.seq, context.entitlements)?;
                if plan.is_outdated && event_ref.event.position > context.made {
                    return Err(Missing::Basis);
                }
                // From before the table was what it is now: what can be compared is.
                if plan.is_incomparable {
                    *context.warning = Some(plan.incomparable(group));
                }
                if context.sync.is_none() && !plan.concerns(group, change, &images, effort) {
                    return self.account(effort, before);
                }
                match plan.sight(group, event_ref.seq, change, &images, policy)? {
                    Verdict::Sight(sight) => {
                        if !plan.is_asked() {
                            policy.recover(change.relation.oid);
                        }
                        let sight = plan.synced(group, event_ref, change, sight, context)?;
                        plan.frames(group, event_ref, change, sight, previous, context);
                        return self.account(effort, before);
                    }
                    // What it has is not to be known without it: if that lasts, its rows cannot be read.
                    Verdict::Failed { .. } if context.sync.is_some() => return Err(Missing::Basis),
                    Verdict::Failed { sqlstate, outage } => {
                        let Relation { oid, schema, name, .. } = &*change.relation;
                        if policy.is_news(*oid) {
                            let role = group.role.as_deref().unwrap_or_default();
                            log::warn!(
                                "a policy of the table {schema}.{name} failed for role {role}: SQLSTATE {sqlstate}"
                            );
                        }
                        let frame = plan.policy_failed(group, &sqlstate);
                        let cause = Cause::Policy { table: *oid, outage };
                        *context.warning = Some(Warning { cause, frame });
                    }
                }
            }
            EventKind::Message(message) => {
                messages::message(group, event_ref, message, previous, context)
            }
            EventKind::Schema(change) => altered(group, event_ref, change, previous, context)?,
            EventKind::Failed(Failed { relation: Some(relation), .. })
                if context.sync.is_some() && group.targets(relation) =>
            {
                return Err(Missing::Basis);
            }
            EventKind::Failed(failed) => failure::tell(group, event_ref, failed, context)?,
        }
        Ok(())
    }

    /// Notes what the filters have spent since then; an error if it is more than they may.
    fn account(&mut self, effort: &Effort, before: u64) -> Result<(), Missing> {
        let spent = effort.total().wrapping_sub(before);
        self.spent = self.spent - self.spent / 64 + spent;
        match (effort.is_spent(), effort.is_late()) {
            (true, _) => Err(Missing::Effort),
            (false, true) => Err(Missing::Time),
            (false, false) => Ok(()),
        }
    }

    fn plan(
        &mut self,
        group: &GroupKey,
        relation: &Arc<Relation>,
        seq: Seq,
        entitlements: &mut Entitlements,
    ) -> Result<(&mut Plan, &mut PolicyState), Missing> {
        let generation = entitlements.generation();
        let current = self.newest.take().filter(|plan| {
            plan.generation == generation
                && Arc::ptr_eq(&plan.relation, relation)
                && plan.entitlement.as_ref().is_none_or(|known| known.holds_for(seq))
        });
        let plan = match current {
            Some(plan) => plan,
            None => Box::new(Plan::new(group, relation, seq, entitlements)?),
        };
        Ok((self.newest.insert(plan), &mut self.policy))
    }
}

impl Plan {
    fn new(
        group: &GroupKey,
        relation: &Arc<Relation>,
        seq: Seq,
        entitlements: &mut Entitlements,
    ) -> Result<Plan, Missing> {
        let mut plan = Plan {
            relation: Arc::clone(relation),
            generation: entitlements.generation(),
            entitlement: None,
            parts: Vec::new(),
            names_truncate: false,
            readable: Vec::new(),
            is_outdated: group.is_outdated(relation),
            is_incomparable: false,
            is_of_other_types: false,
        };
        if !group.targets(relation) {
            return Ok(plan);
        }
        let Some(role) = &group.role else { return Ok(plan) };
        let entitlement = entitlements.of(role, relation.oid, seq);
        let entitlement = entitlement.ok_or_else(|| plan.answer())?;
        plan.entitlement = Some(Rc::clone(&entitlement));
        plan.is_of_other_types = !entitlement.compares(relation);
        if !entitlement.is_granted() {
            return Ok(plan);
        }
        // A privilege that was revoked since the join: the filter must not tell what is hidden.
        let columns = relation.columns.iter().map(|column| column.attnum);
        plan.readable = columns.filter(|attnum| entitlement.may_read(*attnum)).collect();
        for (index, binding) in group.bindings.iter().enumerate() {
            if binding.target.is_of(relation) {
                plan.names_truncate |= binding.operations.contains(Operation::Truncate);
                plan.is_outdated |= !binding.target.is_readable(&plan.readable);
                plan.add(index, group, &entitlement);
            }
        }
        plan.is_incomparable = plan.is_outdated && plan.has_incomparable_filter(group);
        Ok(plan)
    }

    fn has_incomparable_filter(&self, group: &GroupKey) -> bool {
        let indexes = self.parts.iter().flat_map(|part| &part.bindings);
        let mut bindings = indexes.filter_map(|index| group.bindings.get(*index));
        bindings.any(|binding| {
            binding.filter.is_some() && !binding.target.is_comparable(&self.relation)
        })
    }

    /// Whether Postgres is asked which rows are to be seen.
    fn is_asked(&self) -> bool {
        self.entitlement.as_ref().is_some_and(|known| known.rule().way == Way::Ask)
    }

    /// What there is to be known of the table.
    fn answer(&self) -> Missing {
        Missing::Answer { about: Subject::Rows(self.relation.oid) }
    }

    fn add(&mut self, index: usize, group: &GroupKey, entitlement: &Entitlement) {
        let select = |index: usize| group.bindings.get(index).map(|binding| &binding.select);
        let of_binding = |part: &&mut Part| {
            part.bindings.first().is_some_and(|first| select(*first) == select(index))
        };
        if let Some(part) = self.parts.iter_mut().find(of_binding) {
            part.bindings.push(index);
            return;
        }
        let chosen = select(index).and_then(Option::as_ref);
        let columns = entitlement.columns(&self.relation, chosen);
        if group.style == Style::Records && !record::has_key(&self.relation, &columns) {
            return;
        }
        self.parts.push(Part {
            columns,
            bindings: vec![index],
            wanted: Vec::new(),
            ids: Vec::new(),
            operation: Operation::Insert,
            envelope: None,
        });
    }

    /// Whether the change could be for the group, whatever its policies say.
    fn concerns(
        &self,
        group: &GroupKey,
        change: &Change,
        images: &Images<'_>,
        effort: &Effort,
    ) -> bool {
        if change.operation == Operation::Truncate {
            return !self.parts.is_empty();
        }
        self.parts.iter().flat_map(|part| &part.bindings).any(|index| {
            group.bindings.get(*index).is_some_and(|binding| {
                self.admits(binding, effort, |attnum| images.after(attnum))
                    || self.admits(binding, effort, |attnum| images.before(attnum))
            })
        })
    }

    /// Whether the binding's filter admits a row.
    fn admits<'v>(
        &self,
        binding: &Binding,
        effort: &Effort,
        value: impl Fn(i16) -> Datum<'v>,
    ) -> bool {
        let Some(filter) = &binding.filter else { return true };
        if self.is_outdated && !binding.target.is_comparable(&self.relation) {
            return false;
        }
        let readable = |attnum| self.readable.contains(&attnum);
        let value = |attnum| if readable(attnum) { value(attnum) } else { Datum::Absent };
        filter.matches(value, effort).unwrap_or(false)
    }

    /// Of filters that rows of this shape of the table cannot be held against.
    fn incomparable(&self, group: &GroupKey) -> Warning {
        let Relation { oid, schema, name, .. } = &*self.relation;
        let frame = encode::incomparable(group.vsn, &group.topic, (schema, name));
        Warning { cause: Cause::Filter { table: *oid }, frame }
    }

    fn policy_failed(&self, group: &GroupKey, sqlstate: &str) -> Bytes {
        let Relation { schema, name, .. } = &*self.relation;
        encode::policy_failed(group.vsn, &group.topic, (schema, name), sqlstate)
    }

    /// Whether the group sees the row before and after the change.
    fn sight(
        &self,
        group: &GroupKey,
        seq: Seq,
        change: &Change,
        images: &Images<'_>,
        policy: &mut PolicyState,
    ) -> Result<Verdict, Missing> {
        let Some(entitlement) = &self.entitlement else { return Ok(Verdict::Sight(Sight::CLEAR)) };
        let rule = entitlement.rule();
        let sight = match rule.way {
            // TRUNCATE is about the table, not about rows.
            _ if change.operation == Operation::Truncate => Sight::CLEAR,
            Way::Constant(visible) => {
                Sight { before: Seen::from(visible), after: Seen::from(visible) }
            }
            _ if rule.is_personal() && group.identity.is_none() => return Err(Missing::Identity),
            Way::Formula if self.is_of_other_types => {
                let outage = policy.fail(change.relation.oid, seq);
                return Ok(Verdict::Failed { sqlstate: ANOTHER_TYPE.into(), outage });
            }
            Way::Formula => match (policy.values(rule), policy.verdict(seq, rule)) {
                (Some(values), _) => rule.sight(values, images),
                // What the claims are worth could not be found out.
                (None, Some(verdict)) => return Ok(verdict),
                (None, None) => return Err(self.answer()),
            },
            Way::Ask => match rule.decidable(images, &entitlement.attnums()) {
                (false, false) => Sight::unknown(images),
                _ => {
                    let heard = policy.verdict(seq, rule);
                    return heard.ok_or(self.answer());
                }
            },
        };
        Ok(Verdict::Sight(sight))
    }

    fn frames(
        &mut self,
        group: &GroupKey,
        event_ref: EventRef<'_>,
        change: &Change,
        sight: Sight,
        previous: Option<Position>,
        context: &mut EncodeContext<'_>,
    ) {
        let images = Images::of(event_ref.batch, change);
        let Some(operation) = sight.presented(change.operation) else { return };
        // As it is told: a row that comes into sight is a new one, one that leaves it a deleted one.
        // Of an UPDATE whose old row may not have been in sight, not even its key is told.
        let hides_old = operation == Operation::Update && sight.before != Seen::Yes;
        let told;
        let change = if operation == change.operation && !hides_old {
            change
        } else {
            let old = change.old.filter(|_| !hides_old);
            told = Change { operation, old, ..change.clone() };
            &told
        };
        if operation == Operation::Truncate && !self.names_truncate {
            let Relation { schema, name, .. } = &*change.relation;
            context.out.push(encode::truncated(group.vsn, &group.topic, schema, name));
            return;
        }
        let mut parts = std::mem::take(&mut self.parts);
        for part in &mut parts {
            part.wanted.clear();
            let bindings = part.bindings.iter().filter_map(|index| group.bindings.get(*index));
            let is_synced = context.sync.is_some();
            let wanted = bindings.filter(|binding| {
                binding.operations.contains(operation)
                    && match operation {
                        // What its filter makes of it is in its sight.
                        _ if is_synced => true,
                        Operation::Insert | Operation::Update => {
                            self.admits(binding, context.effort, |attnum| images.after(attnum))
                        }
                        Operation::Delete => {
                            self.admits(binding, context.effort, |attnum| images.before(attnum))
                        }
                        // A filter says which rows; TRUNCATE is about all of them.
                        Operation::Truncate => true,
                    }
            });
            part.wanted.extend(wanted.map(|binding| binding.id));
            if !part.wanted.is_empty() {
                part.address(group, operation);
                let frame = part.frame(group, event_ref, change, previous, context);
                context.out.push(frame);
            }
        }
        self.parts = parts;
    }
}

impl Part {
    /// Makes the envelope fit the wanted ids and the operation, if it does not yet.
    fn address(&mut self, group: &GroupKey, operation: Operation) {
        let fits = self.envelope.is_some()
            && (group.style == Style::Changes || self.operation == operation)
            && self.wanted == self.ids;
        if !fits {
            self.ids.clone_from(&self.wanted);
            self.operation = operation;
            let (vsn, topic) = (group.vsn, &group.topic);
            self.envelope = Some(match group.style {
                Style::Changes => Envelope::changes(vsn, topic, &self.ids),
                Style::Legacy => Envelope::legacy(vsn, topic, operation),
                _ => Envelope::broadcast(vsn, topic, operation.name()),
            });
        }
    }

    fn frame(
        &self,
        group: &GroupKey,
        event_ref: EventRef<'_>,
        change: &Change,
        previous: Option<Position>,
        context: &mut EncodeContext<'_>,
    ) -> Bytes {
        let EncodeContext { bodies, frame_buf, .. } = context;
        let EventRef { batch, event, .. } = event_ref;
        let Some(envelope) = &self.envelope else { return Bytes::new() };
        if matches!(group.style, Style::Changes | Style::Legacy) {
            let body = bodies.get(&self.columns, Form::Supabase, change, |out| {
                change::change_data(out, batch, event, change, &self.columns);
            });
            return envelope.wrap(frame_buf, body);
        }
        let form = if group.style == Style::Records { Form::Record } else { Form::Table };
        let body = bodies.get(&self.columns, form, change, |out| match form {
            Form::Record => record::payload(out, batch, change, &self.columns),
            _ => change::table_payload(out, batch, change, &self.columns),
        });
        let mut unchanged = Vec::new();
        if change.operation != Operation::Delete {
            change::unchanged_list(&mut unchanged, batch, change, &self.columns);
        }
        let meta = Meta {
            prev: previous.map(|position| event_ref.cursor(position)),
            unchanged: &unchanged,
            mutation_id: event.mutation_id.as_deref(),
            last_in_tx: event.last_in_tx,
            in_payload: group.meta_in_payload,
            ..Meta::of(event_ref.cursor(event.position), event.commit_time)
        };
        envelope.wrap_with(frame_buf, body, &meta)
    }
}
