//! Who is connected, what they have joined, and which channels are alike.

use std::collections::HashMap;
use std::sync::Arc;

use super::group::{Group, GroupId, GroupKey, Member};
use super::handle::{Peer, SessionId};
use super::history::Seq;
use super::plan::Plans;
use super::queue::Queue;
use super::route::Routes;
use crate::event::Position;

pub(super) struct Session {
    pub(super) queue: Arc<Queue>,
    pub(super) peer: Peer,
    /// Topic to group; a topic is joined once per connection.
    pub(super) channels: HashMap<Arc<str>, GroupId>,
}

/// All connections and groups, with the routes that lead to the groups.
#[derive(Default)]
pub(super) struct Roster {
    pub(super) sessions: HashMap<SessionId, Session>,
    groups: HashMap<GroupId, Group>,
    by_key: HashMap<GroupKey, GroupId>,
    next_group: GroupId,
    pub(super) routes: Routes,
}

impl Roster {
    pub(super) fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id)
    }

    pub(super) fn group_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.groups.get_mut(&id)
    }

    pub(super) fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut()
    }

    pub(super) fn group_ids(&self) -> impl Iterator<Item = GroupId> {
        self.groups.keys().copied()
    }

    /// The groups that a change may be for.
    pub(super) fn candidates(
        &mut self,
        batch: &crate::event::Batch,
        change: &crate::event::Change,
        out: &mut Vec<GroupId>,
    ) {
        let groups = self.groups.iter().map(|(id, group)| (*id, &group.key));
        self.routes.candidates(batch, change, groups, out);
    }

    /// Adds the channel, in place of the session's channel of the same topic.
    pub(super) fn join(
        &mut self,
        session: SessionId,
        key: GroupKey,
        floor: Position,
        lag: Option<Seq>,
    ) {
        self.leave(session, &Arc::clone(&key.topic));
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let id = *self.by_key.entry(key.clone()).or_insert_with(|| {
            let id = self.next_group;
            self.next_group += 1;
            self.routes.add(id, &key);
            let group = Group {
                key: key.clone(),
                plans: Plans::default(),
                members: Vec::new(),
                previous: None,
            };
            self.groups.insert(id, group);
            id
        });
        entry.channels.insert(key.topic, id);
        let queue = Arc::clone(&entry.queue);
        if let Some(group) = self.groups.get_mut(&id) {
            group.members.push(Member { session, queue, floor, lag });
        }
    }

    /// Removes the channel; gives back where it stood.
    pub(super) fn leave(&mut self, session: SessionId, topic: &str) -> Option<Member> {
        let id = self.sessions.get_mut(&session)?.channels.remove(topic)?;
        let group = self.groups.get_mut(&id)?;
        let index = group.members.iter().position(|member| member.session == session)?;
        let member = group.members.swap_remove(index);
        if group.members.is_empty() {
            self.routes.remove(id, &group.key);
            self.by_key.remove(&group.key);
            self.groups.remove(&id);
        }
        Some(member)
    }

    /// Moves the channel to the group of the same bindings under another role.
    pub(super) fn set_role(&mut self, session: SessionId, topic: &str, role: Arc<str>) {
        let group = self.sessions.get(&session).and_then(|entry| entry.channels.get(topic));
        let Some(group) = group.and_then(|id| self.groups.get(id)) else { return };
        let key = GroupKey { role, ..group.key.clone() };
        if let Some(Member { floor, lag, .. }) = self.leave(session, topic) {
            self.join(session, key, floor, lag);
        }
    }

    /// Forgets the connection.
    pub(super) fn disconnect(&mut self, session: SessionId) {
        let Some(entry) = self.sessions.get(&session) else { return };
        let topics: Vec<Arc<str>> = entry.channels.keys().cloned().collect();
        for topic in topics {
            self.leave(session, &topic);
        }
        self.sessions.remove(&session);
    }
}
