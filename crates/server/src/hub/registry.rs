//! Who is connected, what they have joined, and which channels are alike.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use tide_feed::event::Position;

use super::entitlement::Entitlements;
use super::group::{Floor, Group, GroupId, GroupKey, Latest, Member, Skipped};
use super::handle::{Peer, SessionId};
use super::history::Seq;
use super::members::Members;
use super::plan::Plans;
use super::queue::{CloseReason, Queue};
use super::route::Routes;
use super::subscription::{Facet, Identity, Style};
use super::sync::{Phase, Sync};
use super::warning::Warned;
use crate::filter::Effort;
use crate::policy::Rule;
use crate::wire::{Vsn, encode};

pub(super) struct Session {
    pub(super) queue: Arc<Queue>,
    pub(super) peer: Peer,
    /// What the filters of all its channels may spend.
    pub(super) effort: Rc<Effort>,
    /// By topic; a topic is joined once per connection.
    pub(super) channels: HashMap<Arc<str>, JoinedTopic>,
    /// Where channels stood that have to be joined again: see [`Registry::interrupt`].
    pub(super) interrupted: HashMap<Arc<str>, Interrupted>,
}

/// A channel that its client has to join again.
pub(super) struct Interrupted {
    identity: Arc<Identity>,
    places: Vec<Place>,
}

/// Where a channel stood in one of its groups.
pub(super) struct Place {
    pub(super) style: Style,
    pub(super) floor: Floor,
    /// The first event that it has not been given.
    pub(super) next: Seq,
}

impl Session {
    pub(super) fn new(queue: Arc<Queue>, peer: Peer) -> Session {
        let (channels, interrupted) = (HashMap::new(), HashMap::new());
        Session { queue, peer, effort: Rc::default(), channels, interrupted }
    }

    /// In whose names it is connected.
    fn roles(&self) -> impl Iterator<Item = &Arc<str>> {
        let joined = self.channels.values().map(|channel| &channel.identity.role);
        joined.chain(self.interrupted.values().map(|channel| &channel.identity.role))
    }

    /// The groups of all its channels.
    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.channels.values().flat_map(|channel| channel.groups.iter().copied())
    }
}

/// A topic that a connection has joined.
pub(super) struct JoinedTopic {
    pub(super) identity: Arc<Identity>,
    pub(super) joined_at: SystemTime,
    /// One for each facet of the subscription.
    pub(super) groups: Vec<GroupId>,
}

/// A group and where in the stream a channel begins in it.
pub(super) struct Membership {
    pub(super) key: GroupKey,
    pub(super) floor: Floor,
    pub(super) made: Position,
    pub(super) lag: Option<Seq>,
    pub(super) replays: bool,
    pub(super) has_gap: bool,
    pub(super) latest: Option<Box<Latest>>,
    pub(super) sync: Option<Box<Sync>>,
}

impl Membership {
    pub(super) fn new(key: GroupKey, floor: Floor, lag: Option<Seq>) -> Membership {
        let made = Position::default();
        let (replays, has_gap, latest, sync) = (false, false, None, None);
        Membership { key, floor, made, lag, replays, has_gap, latest, sync }
    }
}

/// What became of a group that was split.
#[derive(Default)]
pub(super) struct Split {
    pub(super) members: Vec<SessionId>,
    /// Groups that were not there before.
    pub(super) made: HashSet<GroupId>,
    /// Who reads on from the history.
    pub(super) put_off: Vec<SessionId>,
}

/// All connections and groups, with the routes that lead to the groups.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) sessions: HashMap<SessionId, Session>,
    /// In boxes, since a table of many has as many places to spare.
    groups: HashMap<GroupId, Box<Group>>,
    by_key: HashMap<GroupKey, GroupId>,
    /// Groups that get what is addressed to their topic.
    by_topic: HashMap<Arc<str>, Vec<GroupId>>,
    next_group: GroupId,
    pub(super) routes: Routes,
    /// Channels for which rows are to be read, since the last look.
    pub(super) wanting_rows: Vec<(SessionId, GroupId)>,
    /// Channels that are kept equal to what their clients would select.
    synced: HashSet<(SessionId, GroupId)>,
}

impl Registry {
    pub(super) fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(&id).map(|group| &**group)
    }

    pub(super) fn group_mut(&mut self, id: GroupId) -> Option<&mut Group> {
        self.groups.get_mut(&id).map(|group| &mut **group)
    }

    pub(super) fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut().map(|group| &mut **group)
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
        batch: &tide_feed::event::Batch,
        change: &tide_feed::event::Change,
        seq: Seq,
        entitlements: &mut Entitlements,
        out: &mut Vec<GroupId>,
    ) {
        let relation = &change.relation;
        let groups = self.groups.iter().filter(|(_, group)| group.key.targets(relation));
        let groups = groups.map(|(id, group)| {
            let role = group.key.role.as_ref().filter(|_| group.key.identity.is_some());
            let anchors = role.and_then(|role| {
                let entitlement = entitlements.of(role, relation.oid, seq)?;
                group.anchors(entitlement.rule())
            });
            (*id, &group.key, anchors)
        });
        self.routes.candidates(batch, change, groups, out);
    }

    /// The group has learnt what the claims in the table's policies are worth to it.
    pub(super) fn anchor(&mut self, id: GroupId, table: u32, rule: &Arc<Rule>) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        // Most groups now have no more events than their own: what they do not need is not kept.
        group.plans.rest();
        self.routes.anchor(id, &group.key, table, group.anchors(rule));
    }

    /// Adds the channel, in place of the session's channel of the same topic.
    pub(super) fn join(
        &mut self,
        session: SessionId,
        topic: &Arc<str>,
        identity: Arc<Identity>,
        memberships: Vec<Membership>,
    ) {
        self.leave(session, topic);
        if !self.sessions.contains_key(&session) {
            return;
        }
        let mut groups = Vec::with_capacity(memberships.len());
        for membership in memberships {
            groups.push(self.add(session, membership));
        }
        if let Some(entry) = self.sessions.get_mut(&session) {
            let channel = JoinedTopic { identity, joined_at: SystemTime::now(), groups };
            entry.channels.insert(Arc::clone(topic), channel);
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
        let key = GroupKey::new(topic, vsn, &channel.identity.role, facet);
        let known = self.by_key.get(&key).filter(|id| channel.groups.contains(id)).copied();
        match (known, receive) {
            (None, true) => {
                let id = self.add(session, Membership::new(key, Floor::default(), None));
                self.change_groups(session, topic, |groups| groups.push(id));
            }
            (Some(id), false) => {
                self.remove(session, id);
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
        let (plans, members) = (Plans::default(), Members::of_one());
        self.groups.insert(id, Box::new(Group { key, plans, members, previous: None }));
        id
    }

    /// Removes the channel; gives back whose it was and where it stood.
    pub(super) fn leave(
        &mut self,
        session: SessionId,
        topic: &str,
    ) -> Option<(Arc<Identity>, Vec<Membership>)> {
        let JoinedTopic { identity, groups, .. } =
            self.sessions.get_mut(&session)?.channels.remove(topic)?;
        let memberships = groups.into_iter().filter_map(|id| self.remove(session, id));
        Some((identity, memberships.collect()))
    }

    /// The filters of a connection need more work than they may make for an event with a row of so many
    /// bytes: ends the channel whose filters took the most, and tells the client. What else it has
    /// joined goes on.
    pub(super) fn relieve(&mut self, session: SessionId, row: usize) {
        let Some(entry) = self.sessions.get(&session) else { return };
        entry.effort.forgive(row);
        let queue = Arc::clone(&entry.queue);
        let filtered = |id: &GroupId| self.group(*id).is_some_and(|group| group.key.has_filters());
        let spent = |id: &GroupId| self.group(*id).map(|group| group.plans.spent);
        let Some(id) = entry.groups().filter(filtered).max_by_key(spent) else { return };
        let Some(group) = self.groups.get(&id) else { return };
        let GroupKey { topic, vsn, style, .. } = &group.key;
        let topic = Arc::clone(topic);
        let extension = match style {
            Style::Changes | Style::Legacy => "postgres_changes",
            _ => "tide.filter",
        };
        log::info!("a subscription of connection {session} ends: its filters make too much work");
        queue.reply(encode::too_much_work(*vsn, &topic, extension));
        self.remove(session, id);
        self.change_groups(session, &topic, |groups| groups.retain(|other| *other != id));
    }

    /// What the bindings of a channel were made of is not what the stream has: ends the channel, tells the
    /// client, and keeps where it stood; `next` is what those of its groups that keep up are to be given
    /// next. Clients join again by themselves.
    pub(super) fn interrupt(&mut self, session: SessionId, id: GroupId, next: Seq) {
        let Some(key) = self.groups.get(&id).map(|group| &group.key) else { return };
        let (topic, vsn) = (Arc::clone(&key.topic), key.vsn);
        let Some((identity, memberships)) = self.leave(session, &topic) else { return };
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        entry.queue.reply(encode::outdated(vsn, &topic));
        entry.queue.reply(encode::phx_error(vsn, None, &topic));
        let place = |membership: Membership| {
            let Membership { key, floor, lag, .. } = membership;
            Place { style: key.style, floor, next: lag.unwrap_or(next) }
        };
        let places = memberships.into_iter().map(place).collect();
        entry.interrupted.insert(topic, Interrupted { identity, places });
    }

    /// The channels that are kept equal to what their clients would select.
    pub(super) fn synced(&self) -> Vec<(SessionId, GroupId)> {
        self.synced.iter().copied().collect()
    }

    /// Rows are to be read for the channel, before it is given more.
    pub(super) fn want_rows(&mut self, session: SessionId, id: GroupId) {
        self.wanting_rows.push((session, id));
    }

    /// The rows that there are cannot be read: ends the subscription, and tells the client.
    pub(super) fn end_sync(&mut self, session: SessionId, id: GroupId, reason: &str) {
        let Some(key) = self.groups.get(&id).map(|group| &group.key) else { return };
        let (topic, vsn) = (Arc::clone(&key.topic), key.vsn);
        if let Some(entry) = self.sessions.get(&session) {
            entry.queue.reply(encode::no_snapshot(vsn, &topic, reason));
        }
        self.remove(session, id);
        self.change_groups(session, &topic, |groups| groups.retain(|other| *other != id));
    }

    /// Where the channel stood when it was interrupted, if it is to go on from there.
    pub(super) fn interrupted(&mut self, session: SessionId, topic: &str) -> Option<Vec<Place>> {
        let interrupted = self.sessions.get_mut(&session)?.interrupted.remove(topic)?;
        Some(interrupted.places)
    }

    /// Takes the connection out of a group, which goes with its last member.
    fn remove(&mut self, session: SessionId, id: GroupId) -> Option<Membership> {
        let group = self.groups.get_mut(&id)?;
        let Member { floor, made, lag, replays, has_gap, latest, mut sync, .. } =
            group.members.remove(session)?;
        // What is answered to this group finds nobody.
        sync.iter_mut().for_each(|sync| sync.rest());
        self.synced.remove(&(session, id));
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
        Some(Membership { key, floor, made, lag, replays, has_gap, latest, sync })
    }

    /// Moves the channel to the groups of the same bindings under another identity.
    pub(super) fn set_identity(
        &mut self,
        session: SessionId,
        topic: &str,
        identity: Arc<Identity>,
    ) {
        if let Some(id) = self.sees_others(session, topic, &identity) {
            // What it was told is what somebody else sees.
            return self.interrupt(session, id, Seq::MAX);
        }
        let Some((_, mut memberships)) = self.leave(session, topic) else { return };
        for GroupKey { role, identity: owner, .. } in
            memberships.iter_mut().map(|membership| &mut membership.key)
        {
            *role = role.as_ref().map(|_| Arc::clone(&identity.role));
            *owner = owner.as_ref().map(|_| Arc::clone(&identity));
        }
        self.join(session, &topic.into(), identity, memberships);
    }

    /// The group, if any, that keeps the rows which somebody sees, and would have to keep others.
    fn sees_others(
        &mut self,
        session: SessionId,
        topic: &str,
        identity: &Identity,
    ) -> Option<GroupId> {
        let groups = self.sessions.get(&session)?.channels.get(topic)?.groups.clone();
        groups.into_iter().find(|id| {
            let member = self.groups.get_mut(id).and_then(|group| group.members.of_mut(session));
            let sync = member.and_then(|member| member.sync.as_mut());
            sync.is_some_and(|sync| !sync.renew(identity))
        })
    }

    /// Splits a group whose members see different rows: each goes to the group of its own identity.
    /// `at`: the event at hand, which groups that were there are given by themselves: who keeps up and
    /// comes to one of them reads on from it in the history.
    pub(super) fn split_by_identity(&mut self, id: GroupId, at: Option<Seq>) -> Split {
        let mut split = Split::default();
        let Some(group) = self.groups.get(&id) else { return split };
        let sessions: Vec<SessionId> = group.members.iter().map(|m| m.session).collect();
        let (topic, previous) = (Arc::clone(&group.key.topic), group.previous);
        for session in sessions {
            let Some(channel) = self.sessions.get(&session).and_then(|s| s.channels.get(&topic))
            else {
                continue;
            };
            let identity = Arc::clone(&channel.identity);
            let Some(mut membership) = self.remove(session, id) else { continue };
            membership.key.identity = Some(identity);
            let known = self.by_key.get(&membership.key);
            let is_new = known.is_none_or(|known| split.made.contains(known));
            if !is_new && membership.lag.is_none() && at.is_some() {
                membership.lag = at;
                split.put_off.push(session);
            }
            let own = self.add(session, membership);
            if let Some(group) = self.groups.get_mut(&own) {
                group.previous = group.previous.max(previous);
            }
            self.change_groups(session, &topic, |groups| {
                groups.iter_mut().filter(|group| **group == id).for_each(|group| *group = own);
            });
            if is_new {
                split.made.insert(own);
            }
            split.members.push(session);
        }
        split
    }

    /// Makes the connection a member of a group, which is made if need be.
    fn add(&mut self, session: SessionId, membership: Membership) -> GroupId {
        let Membership { key, floor, made, lag, replays, has_gap, latest, sync } = membership;
        let id = self.group_of(key);
        if let Some(sync) = &sync {
            self.synced.insert((session, id));
            if !matches!(sync.phase, Phase::Live) {
                self.want_rows(session, id);
            }
        }
        if let (Some(group), Some(entry)) = (self.groups.get_mut(&id), self.sessions.get(&session))
        {
            let (queue, effort) = (Arc::clone(&entry.queue), Rc::clone(&entry.effort));
            group.members.push(Member {
                session,
                queue,
                effort,
                floor,
                made,
                lag,
                previous: None,
                replays,
                has_gap,
                skipped: Skipped::default(),
                latest,
                warned: Warned::default(),
                sync,
            });
        }
        id
    }

    /// The roles of all channels.
    pub(super) fn roles(&self) -> Vec<Arc<str>> {
        let roles: HashSet<&Arc<str>> = self.sessions.values().flat_map(Session::roles).collect();
        roles.into_iter().cloned().collect()
    }

    /// Closes the connections that have a channel of this role.
    pub(super) fn refuse_role(&self, role: &str) {
        for session in self.sessions.values() {
            if session.roles().any(|own| **own == *role) {
                session.queue.close(CloseReason::Role);
            }
        }
    }

    /// Forgets the connection.
    pub(super) fn forget(&mut self, session: SessionId) {
        let Some(entry) = self.sessions.get(&session) else { return };
        let topics: Vec<Arc<str>> = entry.channels.keys().cloned().collect();
        for topic in topics {
            self.leave(session, &topic);
        }
        self.sessions.remove(&session);
    }
}
