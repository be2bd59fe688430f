//! Who is connected, what they have joined, and which channels are alike.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::group::{Group, GroupId, GroupKey, Member};
use super::handle::{Peer, SessionId};
use super::history::Seq;
use super::plan::Plans;
use super::queue::Queue;
use super::route::Routes;
use super::subscription::{Facet, Style};
use crate::event::Position;
use crate::wire::Vsn;

pub(super) struct Session {
    pub(super) queue: Arc<Queue>,
    pub(super) peer: Peer,
    /// By topic; a topic is joined once per connection.
    pub(super) channels: HashMap<Arc<str>, Channel>,
}

impl Session {
    /// The groups of all its channels.
    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.channels.values().flat_map(|channel| channel.groups.iter().copied())
    }
}

/// A topic that a connection has joined.
pub(super) struct Channel {
    pub(super) role: Arc<str>,
    pub(super) joined_at: SystemTime,
    /// One for each facet of the subscription.
    pub(super) groups: Vec<GroupId>,
}

/// A group and where in the stream a channel begins in it.
pub(super) struct Seat {
    pub(super) key: GroupKey,
    pub(super) floor: Position,
    pub(super) lag: Option<Seq>,
}

/// All connections and groups, with the routes that lead to the groups.
#[derive(Default)]
pub(super) struct Roster {
    pub(super) sessions: HashMap<SessionId, Session>,
    groups: HashMap<GroupId, Group>,
    by_key: HashMap<GroupKey, GroupId>,
    /// Groups that get what is addressed to their topic.
    by_topic: HashMap<Arc<str>, Vec<GroupId>>,
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

    /// The groups that rows are for.
    pub(super) fn row_groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.iter().filter(|(_, group)| group.key.style.is_of_rows()).map(|(id, _)| *id)
    }

    /// The groups of a topic, whatever they get of it.
    pub(super) fn of_topic(&self, topic: &str) -> &[GroupId] {
        self.by_topic.get(topic).map_or(&[], Vec::as_slice)
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
        topic: &Arc<str>,
        role: Arc<str>,
        seats: Vec<Seat>,
    ) {
        self.leave(session, topic);
        let Some(entry) = self.sessions.get(&session) else { return };
        let queue = Arc::clone(&entry.queue);
        let mut groups = Vec::with_capacity(seats.len());
        for Seat { key, floor, lag } in seats {
            let id = self.group_of(key);
            if let Some(group) = self.groups.get_mut(&id) {
                group.members.push(Member { session, queue: Arc::clone(&queue), floor, lag });
            }
            groups.push(id);
        }
        if let Some(entry) = self.sessions.get_mut(&session) {
            entry
                .channels
                .insert(Arc::clone(topic), Channel { role, joined_at: SystemTime::now(), groups });
        }
    }

    /// Adds a facet without bindings to a joined channel, or takes it away.
    pub(super) fn receive(
        &mut self,
        session: SessionId,
        topic: &Arc<str>,
        vsn: Vsn,
        facet: &Facet,
        receive: bool,
    ) {
        let Some(entry) = self.sessions.get(&session) else { return };
        let Some(channel) = entry.channels.get(topic) else { return };
        let key = GroupKey::new(topic, vsn, &channel.role, facet);
        let known = self.by_key.get(&key).filter(|id| channel.groups.contains(id)).copied();
        match (known, receive) {
            (None, true) => {
                let queue = Arc::clone(&entry.queue);
                let id = self.group_of(key);
                if let Some(group) = self.groups.get_mut(&id) {
                    let floor = Position::default();
                    group.members.push(Member { session, queue, floor, lag: None });
                }
                self.change_groups(session, topic, |groups| groups.push(id));
            }
            (Some(id), false) => {
                self.stand_up(session, id);
                self.change_groups(session, topic, |groups| groups.retain(|other| *other != id));
            }
            _ => {}
        }
    }

    fn change_groups(
        &mut self,
        session: SessionId,
        topic: &str,
        change: impl FnOnce(&mut Vec<GroupId>),
    ) {
        let entry = self.sessions.get_mut(&session);
        if let Some(channel) = entry.and_then(|entry| entry.channels.get_mut(topic)) {
            change(&mut channel.groups);
        }
    }

    /// The group of that key, which is made if need be.
    fn group_of(&mut self, key: GroupKey) -> GroupId {
        if let Some(id) = self.by_key.get(&key) {
            return *id;
        }
        let id = self.next_group;
        self.next_group += 1;
        self.by_key.insert(key.clone(), id);
        if key.bindings.is_empty() {
            self.by_topic.entry(Arc::clone(&key.topic)).or_default().push(id);
        } else {
            self.routes.add(id, &key);
            if key.style == Style::Records {
                self.by_topic.entry(Arc::clone(&key.topic)).or_default().push(id);
            }
        }
        let plans = Plans::default();
        self.groups.insert(id, Group { key, plans, members: Vec::new(), previous: None });
        id
    }

    /// Removes the channel; gives back its role and where it stood.
    pub(super) fn leave(
        &mut self,
        session: SessionId,
        topic: &str,
    ) -> Option<(Arc<str>, Vec<Seat>)> {
        let Channel { role, groups, .. } =
            self.sessions.get_mut(&session)?.channels.remove(topic)?;
        let seats = groups.into_iter().filter_map(|id| self.stand_up(session, id));
        Some((role, seats.collect()))
    }

    /// Takes the connection out of a group, which goes with its last member.
    fn stand_up(&mut self, session: SessionId, id: GroupId) -> Option<Seat> {
        let group = self.groups.get_mut(&id)?;
        let index = group.members.iter().position(|member| member.session == session)?;
        let Member { floor, lag, .. } = group.members.swap_remove(index);
        let key = group.key.clone();
        if group.members.is_empty() {
            self.routes.remove(id, &key);
            self.by_key.remove(&key);
            self.groups.remove(&id);
            if let Some(groups) = self.by_topic.get_mut(&key.topic) {
                groups.retain(|other| *other != id);
                if groups.is_empty() {
                    self.by_topic.remove(&key.topic);
                }
            }
        }
        Some(Seat { key, floor, lag })
    }

    /// Moves the channel to the groups of the same bindings under another role.
    pub(super) fn set_role(&mut self, session: SessionId, topic: &str, role: &Arc<str>) {
        let Some((_, mut seats)) = self.leave(session, topic) else { return };
        for seat in &mut seats {
            if seat.key.role.is_some() {
                seat.key.role = Some(Arc::clone(role));
            }
        }
        self.join(session, &topic.into(), Arc::clone(role), seats);
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
