//! Channels that get the same frames: evaluated once, encoded once, whatever their number.

use std::sync::Arc;

use super::handle::SessionId;
use super::history::Seq;
use super::plan::Plans;
use super::queue::Queue;
use super::subscription::{Binding, Facet, Style, Subscription, Target};
use crate::event::{Position, Relation};
use crate::wire::{Vsn, record};

pub(super) type GroupId = usize;

/// What makes channels the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct GroupKey {
    pub(super) topic: Arc<str>,
    pub(super) vsn: Vsn,
    pub(super) style: Style,
    /// Whose privileges decide; nobody's where rows are not involved, so that all share a group.
    pub(super) role: Option<Arc<str>>,
    pub(super) private: bool,
    pub(super) bindings: Arc<[Binding]>,
}

impl GroupKey {
    pub(super) fn of(subscription: &Subscription, facet: &Facet) -> GroupKey {
        GroupKey::new(&subscription.topic, subscription.vsn, &subscription.role, facet)
    }

    pub(super) fn new(topic: &Arc<str>, vsn: Vsn, role: &Arc<str>, facet: &Facet) -> GroupKey {
        let has_role = facet.style.is_of_rows() || facet.style == Style::Schema;
        GroupKey {
            topic: Arc::clone(topic),
            vsn,
            style: facet.style,
            role: has_role.then(|| Arc::clone(role)),
            private: facet.private,
            bindings: Arc::clone(&facet.bindings),
        }
    }

    /// Whether any binding is about the table.
    pub(super) fn targets(&self, relation: &Relation) -> bool {
        if self.style == Style::Records && !record::is_table_of(relation) {
            return false;
        }
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
    pub(super) plans: Plans,
    pub(super) members: Vec<Member>,
    /// Position of the group's previous event, for `meta.prev`.
    pub(super) previous: Option<Position>,
}
