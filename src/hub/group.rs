//! Channels that get the same frames: evaluated once, encoded once, whatever their number.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::entitlement::Entitlements;
use super::handle::{Live, SessionId};
use super::history::Seq;
use super::queue::Queue;
use super::subscription::{Binding, Style, Subscription, Target};
use crate::event::{Batch, Change, Cursor, Event, EventKind, Operation, Position, Relation};
use crate::wire::change::{self, ColumnSet};
use crate::wire::envelope::{self, Meta};
use crate::wire::{Vsn, encode};

pub(super) type GroupId = usize;

/// What makes channels the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct GroupKey {
    pub(super) topic: Arc<str>,
    pub(super) vsn: Vsn,
    pub(super) style: Style,
    pub(super) role: Arc<str>,
    pub(super) bindings: Arc<[Binding]>,
}

impl GroupKey {
    pub(super) fn of(subscription: &Subscription) -> GroupKey {
        GroupKey {
            topic: Arc::clone(&subscription.topic),
            vsn: subscription.vsn,
            style: subscription.style,
            role: Arc::clone(&subscription.role),
            bindings: Arc::clone(&subscription.bindings),
        }
    }

    /// Whether any binding is about the table.
    pub(super) fn targets(&self, relation: &Relation) -> bool {
        self.bindings.iter().any(|binding| is_about(&binding.target, relation))
    }
}

pub(super) fn is_about(target: &Target, relation: &Relation) -> bool {
    match target {
        Target::All => true,
        Target::Schema(schema) => *schema == relation.schema,
        Target::Table(oid) => *oid == relation.oid,
    }
}

/// One channel of one connection.
pub(super) struct Member {
    pub(super) session: SessionId,
    pub(super) queue: Arc<Queue>,
    /// Only events after this position are for it.
    pub(super) floor: Position,
    /// The first event it has not been given, if it does not keep up or is resuming.
    pub(super) lag: Option<Seq>,
}

pub(super) struct Group {
    pub(super) key: GroupKey,
    pub(super) members: Vec<Member>,
    /// Position of the group's previous event, for `meta.prev`.
    pub(super) previous: Option<Position>,
}

/// An event with what it is read by.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) batch: &'a Batch,
    pub(super) event: &'a Event,
    pub(super) live: Live,
}

impl Scene<'_> {
    fn cursor(&self, position: Position) -> Cursor {
        Cursor { epoch: self.live.epoch, position }
    }
}

/// Bodies of one event that several groups share: encoded once per column set and style.
#[derive(Default)]
pub(super) struct Bodies {
    encoded: Vec<(*const ColumnSet, bool, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
}

impl Bodies {
    /// Forgets the last event's bodies and keeps their memory.
    pub(super) fn clear(&mut self) {
        self.spare.extend(self.encoded.drain(..).map(|(.., mut body)| {
            body.clear();
            body
        }));
        self.spare.truncate(8);
    }

    fn get(
        &mut self,
        columns: &Rc<ColumnSet>,
        table: bool,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> &[u8] {
        let key = Rc::as_ptr(columns);
        let known = self.encoded.iter().position(|(set, kind, _)| *set == key && *kind == table);
        let index = known.unwrap_or_else(|| {
            let mut body = self.spare.pop().unwrap_or_default();
            encode(&mut body);
            self.encoded.push((key, table, body));
            self.encoded.len() - 1
        });
        self.encoded.get(index).map_or(&[], |(.., body)| body)
    }
}

impl GroupKey {
    /// The frames that the event becomes for this group: none, one, or one per distinct `select`.
    pub(super) fn frames(
        &self,
        scene: Scene<'_>,
        previous: Option<Position>,
        entitlements: &mut Entitlements,
        bodies: &mut Bodies,
        out: &mut Vec<Bytes>,
    ) {
        match &scene.event.kind {
            EventKind::Change(change) => {
                self.change_frames(scene, change, previous, entitlements, bodies, out);
            }
            EventKind::Failed { relation, sqlstate, .. } => {
                self.failure_frame(scene, relation.as_deref(), sqlstate, entitlements, out);
            }
        }
    }

    /// A change that could not be decoded is told to those it might have been for.
    fn failure_frame(
        &self,
        scene: Scene<'_>,
        relation: Option<&Relation>,
        sqlstate: &str,
        entitlements: &mut Entitlements,
        out: &mut Vec<Bytes>,
    ) {
        if let Some(relation) = relation
            && !(self.targets(relation) && entitlements.of(&self.role, relation.oid).is_granted())
        {
            return;
        }
        let (vsn, topic) = (self.vsn, &self.topic);
        out.push(match (self.style, relation) {
            (Style::Changes, Some(relation)) => {
                let ids = self.ids(|binding| is_about(&binding.target, relation));
                let mut data = Vec::new();
                change::failed_data(&mut data, scene.event, relation, sqlstate);
                envelope::changes_frame(vsn, topic, &ids, &data)
            }
            (_, relation) => {
                let table = relation.map(|relation| (&*relation.schema, &*relation.name));
                let id = scene.cursor(scene.event.position);
                encode::change_failed(vsn, topic, table, sqlstate, &id)
            }
        });
    }

    fn ids(&self, wanted: impl Fn(&Binding) -> bool) -> Vec<u32> {
        self.bindings.iter().filter(|binding| wanted(binding)).map(|binding| binding.id).collect()
    }

    fn change_frames(
        &self,
        scene: Scene<'_>,
        change: &Change,
        previous: Option<Position>,
        entitlements: &mut Entitlements,
        bodies: &mut Bodies,
        out: &mut Vec<Bytes>,
    ) {
        if !self.targets(&change.relation) {
            return;
        }
        let entitlement = entitlements.of(&self.role, change.relation.oid);
        if !entitlement.is_granted() {
            return;
        }
        if change.operation == Operation::Truncate && !self.wants_truncate(&change.relation) {
            let Relation { schema, name, .. } = &*change.relation;
            out.push(encode::truncated(self.vsn, &self.topic, schema, name));
            return;
        }
        // Bindings with the same `select` share a frame; a channel rarely has more than one.
        let mut done: Vec<Option<&Arc<[Box<str>]>>> = Vec::new();
        for binding in self.bindings.iter() {
            let select = binding.select.as_ref();
            if done.contains(&select) || !matches(binding, scene.batch, change, &entitlement) {
                continue;
            }
            done.push(select);
            let ids = self.ids(|other| {
                other.select.as_ref() == select && matches(other, scene.batch, change, &entitlement)
            });
            let columns = entitlement.columns(&change.relation, select);
            out.push(self.frame(scene, change, &columns, &ids, previous, bodies));
        }
    }

    fn wants_truncate(&self, relation: &Relation) -> bool {
        self.bindings.iter().any(|binding| {
            binding.operations.contains(Operation::Truncate) && is_about(&binding.target, relation)
        })
    }

    fn frame(
        &self,
        scene: Scene<'_>,
        change: &Change,
        columns: &Rc<ColumnSet>,
        ids: &[u32],
        previous: Option<Position>,
        bodies: &mut Bodies,
    ) -> Bytes {
        let Scene { batch, event, .. } = scene;
        let table = self.style == Style::Table;
        let body = bodies.get(columns, table, |out| {
            if table {
                change::table_payload(out, batch, change, columns);
            } else {
                change::change_data(out, batch, event, change, columns);
            }
        });
        match self.style {
            Style::Changes => envelope::changes_frame(self.vsn, &self.topic, ids, body),
            Style::Legacy => envelope::legacy_frame(self.vsn, &self.topic, change.operation, body),
            Style::Table => {
                let mut unchanged = Vec::new();
                change::unchanged_list(&mut unchanged, batch, change, columns);
                let meta = Meta {
                    id: scene.cursor(event.position),
                    prev: previous.map(|position| scene.cursor(position)),
                    unchanged: &unchanged,
                    mutation_id: None,
                    last_in_tx: event.last_in_tx,
                };
                let operation = change.operation.name();
                envelope::table_frame(self.vsn, &self.topic, operation, body, &meta)
            }
        }
    }
}

/// Whether the binding asks for the change and its filter admits it: the new row, or the old one
/// of a DELETE.
fn matches(
    binding: &Binding,
    batch: &Batch,
    change: &Change,
    entitlement: &super::entitlement::Entitlement,
) -> bool {
    if !binding.operations.contains(change.operation)
        || !is_about(&binding.target, &change.relation)
    {
        return false;
    }
    let Some(filter) = &binding.filter else { return true };
    let row = match change.operation {
        Operation::Insert | Operation::Update => change.new,
        Operation::Delete => change.old,
        // A filter says which rows; TRUNCATE is about all of them.
        Operation::Truncate => return true,
    };
    let Some(row) = row else { return false };
    let row = batch.row(row);
    filter.matches(|attnum| {
        // A privilege that was revoked since the join: the filter must not tell what is hidden.
        if !entitlement.may_read(attnum) {
            return crate::event::Datum::Absent;
        }
        let index = change.relation.columns.iter().position(|column| column.attnum == attnum);
        index.map_or(crate::event::Datum::Absent, |index| row.get(index))
    })
}
