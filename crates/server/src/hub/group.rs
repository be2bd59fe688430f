//! Channels that get the same frames: evaluated once, encoded once, whatever their number.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tide_feed::event::{Event, Position, Relation};
use tide_feed::snapshot::Snapshot;

use super::handle::SessionId;
use super::history::Seq;
use super::members::Members;
use super::plan::Plans;
use super::queue::{Push, Queue};
use super::route::Anchors;
use super::subscription::{Binding, Facet, Identity, Style, Subscription};
use super::sync::Sync;
use super::warning::{Warned, Warning};
use crate::allowance::Share;
use crate::filter::Effort;
use crate::policy::Rule;
use crate::wire::encode::{Listener, Resync, resync};
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
    /// Whose rows, where policies tell clients of the role apart.
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) private: bool,
    pub(super) bindings: Arc<[Binding]>,
    pub(super) meta_in_payload: bool,
    /// The only connection whose channel it is, where that is kept equal to what its client would select.
    pub(super) only: Option<SessionId>,
}

impl GroupKey {
    pub(super) fn of(subscription: &Subscription, facet: &Facet) -> GroupKey {
        GroupKey::new(&subscription.topic, subscription.vsn, &subscription.identity.role, facet)
    }

    pub(super) fn new(topic: &Arc<str>, vsn: Vsn, role: &Arc<str>, facet: &Facet) -> GroupKey {
        let has_role = facet.style.is_of_rows() || facet.style == Style::Schema;
        GroupKey {
            topic: Arc::clone(topic),
            vsn,
            style: facet.style,
            role: has_role.then(|| Arc::clone(role)),
            identity: None,
            private: facet.private,
            bindings: Arc::clone(&facet.bindings),
            meta_in_payload: facet.meta_in_payload,
            only: None,
        }
    }

    /// Whom a broadcast of a synced channel is for.
    pub(super) fn listener(&self) -> Listener<'_> {
        Listener { vsn: self.vsn, topic: &self.topic, meta_in_payload: self.meta_in_payload }
    }

    pub(super) fn has_filters(&self) -> bool {
        self.bindings.iter().any(|binding| binding.filter.is_some())
    }

    /// Whether any binding is about the table.
    pub(super) fn targets(&self, relation: &Relation) -> bool {
        if self.style == Style::Records && !record::is_table_of(relation) {
            return false;
        }
        self.bindings.iter().any(|binding| binding.target.is_about(relation))
    }

    /// Whether any binding has to be made anew before it can be held against rows of the table.
    pub(super) fn is_outdated(&self, relation: &Relation) -> bool {
        self.bindings.iter().any(|binding| binding.target.is_outdated(relation))
    }
}

/// Where in the stream a channel begins.
#[derive(Clone, Debug, Default)]
pub(super) struct Floor {
    /// What is after it is for the channel ...
    pub(super) position: Position,
    /// ... and what is before it, of transactions that could not be seen then.
    pub(super) unseen: Unseen,
}

/// Transactions that could not be seen at some moment, though they have committed before.
#[derive(Clone, Debug)]
pub(super) enum Unseen {
    /// These were running.
    Running(Arc<[u32]>),
    /// What this did not see.
    By(Arc<Snapshot>),
}

impl Default for Unseen {
    fn default() -> Unseen {
        Unseen::Running(Arc::default())
    }
}

impl Unseen {
    fn has(&self, xid: u32) -> bool {
        match self {
            Unseen::Running(running) => running.contains(&xid),
            Unseen::By(snapshot) => !snapshot.sees(xid),
        }
    }
}

impl Floor {
    pub(super) fn at(position: Position) -> Floor {
        Floor { position, unseen: Unseen::default() }
    }

    pub(super) fn admits(&self, event: &Event) -> bool {
        event.position > self.position || self.unseen.has(event.xid)
    }
}

/// One channel of one connection.
pub(super) struct Member {
    pub(super) session: SessionId,
    pub(super) queue: Arc<Queue>,
    /// Of its connection.
    pub(super) effort: Rc<Effort>,
    /// Only events after it are for the channel.
    pub(super) floor: Floor,
    /// What is after it, its bindings may not have known of when they were made.
    pub(super) made: Position,
    /// The first event it has not been given, if it does not keep up or is resuming.
    pub(super) lag: Option<Seq>,
    /// The event before the one it is to be given next, as far as it has been read from the history.
    pub(super) previous: Option<Position>,
    /// It resumes, and is to be told when it has had everything.
    pub(super) replays: bool,
    /// It has been told that it misses something, and reads what is kept from its beginning: of what is
    /// dropped meanwhile, it is told the same.
    pub(super) has_gap: bool,
    /// Since it was given something last.
    pub(super) skipped: Skipped,
    /// It is to be given only the newest of what it reads from the history.
    pub(super) latest: Option<Box<Latest>>,
    pub(super) warned: Warned,
    pub(super) sync: Option<Box<Sync>>,
}

/// What a channel has missed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Skipped {
    #[default]
    Nothing,
    /// It has been told.
    Told,
    /// And has missed more since; why.
    More(&'static str),
}

impl Member {
    /// What comes next is dropped. The client is told: at once, and before it is given something again if
    /// it has missed more by then.
    pub(super) fn skip(&mut self, key: &GroupKey, reason: &'static str) {
        self.skipped = match self.skipped {
            Skipped::Nothing => {
                self.tell_skipped(key, reason);
                Skipped::Told
            }
            Skipped::Told | Skipped::More(_) => Skipped::More(reason),
        };
    }

    /// It is about to be given something, or has had everything.
    pub(super) fn end_skip(&mut self, key: &GroupKey) {
        if let Skipped::More(reason) = std::mem::take(&mut self.skipped) {
            self.tell_skipped(key, reason);
        }
    }

    fn tell_skipped(&self, key: &GroupKey, reason: &str) {
        let gap = Resync { reason, oldest: None, newest: None };
        self.queue.reply(resync(key.vsn, None, &key.topic, gap));
    }

    /// Tells the client, unless it knows.
    pub(super) fn warn(&mut self, Warning { cause, frame }: &Warning) -> Push {
        if self.warned.has(*cause) {
            return Push::Queued;
        }
        let pushed = self.queue.push(std::slice::from_ref(frame));
        if pushed == Push::Queued {
            self.warned.remember(*cause);
        }
        pushed
    }
}

/// The newest events of a part of the history that has to be read from its beginning, since it is not
/// known yet which of them are for the channel. It is read again from the first of them.
#[derive(Debug)]
pub(super) struct Latest {
    count: usize,
    /// The first event after that part.
    pub(super) until: Seq,
    found: VecDeque<Seq>,
    /// The first event of which it is not known whether it is for the channel: that is to be told.
    unknown: Option<Seq>,
    memory: Share,
}

impl Latest {
    pub(super) fn new(count: usize, until: Seq, memory: Share) -> Latest {
        Latest { count, until, found: VecDeque::new(), unknown: None, memory }
    }

    /// The event is for the channel.
    pub(super) fn keep(&mut self, seq: Seq) {
        // Without memory they are fewer.
        if self.found.len() >= self.count || !self.memory.grow(2 * size_of::<Seq>()) {
            self.found.pop_front();
        }
        if self.count > 0 {
            self.found.push_back(seq);
        }
    }

    /// There is something to be told about the event.
    pub(super) fn doubt(&mut self, seq: Seq) {
        self.unknown.get_or_insert(seq);
    }

    /// Where to read again from.
    pub(super) fn first(&self) -> Option<Seq> {
        let found = self.found.front().copied();
        let unknown = self.unknown.filter(|_| self.found.len() < self.count);
        found.into_iter().chain(unknown).min()
    }
}

pub(super) struct Group {
    pub(super) key: GroupKey,
    pub(super) plans: Plans,
    pub(super) members: Members,
    /// Position of the group's previous event, for `meta.prev`.
    pub(super) previous: Option<Position>,
}

impl Group {
    /// What rows must have for the group to see them by the rule.
    pub(super) fn anchors(&self, rule: &Arc<Rule>) -> Anchors {
        rule.anchors(self.plans.policy.values(rule)?)
    }

    /// Gives an event's frames to all who are to have it now. Those whose queue is full, or for whom
    /// there is no memory, lag from here on, which `lags` is told with the reason.
    pub(super) fn give(
        &mut self,
        frames: &mut [Bytes],
        event: &Event,
        seq: Seq,
        mut lags: impl FnMut(SessionId, Push),
    ) {
        self.previous = Some(event.position);
        let is_shared = self.members.len() > 1;
        let first = self.members.first().filter(|_| is_shared);
        let has_memory = first.is_none_or(|member| member.queue.share(frames));
        for member in self.members.iter_mut() {
            if member.lag.is_some() || !member.floor.admits(event) {
                continue;
            }
            let queue = &member.queue;
            let pushed = match (has_memory, is_shared) {
                (false, _) => queue.starve(),
                (true, true) => queue.push_shared(frames),
                (true, false) => queue.push(frames),
            };
            if matches!(pushed, Push::Full | Push::Starved) {
                member.lag = Some(seq);
                lags(member.session, pushed);
            }
        }
    }

    /// Tells all who are to have the event now. Those who lag from here on, `lags` is told.
    pub(super) fn warn(
        &mut self,
        warning: &Warning,
        event: &Event,
        seq: Seq,
        mut lags: impl FnMut(SessionId, Push),
    ) {
        for member in self.members.iter_mut() {
            if member.lag.is_some() || !member.floor.admits(event) {
                continue;
            }
            let pushed = member.warn(warning);
            if matches!(pushed, Push::Full | Push::Starved) {
                member.lag = Some(seq);
                lags(member.session, pushed);
            }
        }
    }

    /// The connections that are to be given the event now, though their bindings may not have known of
    /// it when they were made.
    pub(super) fn outdated(&self, event: &Event) -> Vec<SessionId> {
        let members = self.members.iter().filter(|member| member.lag.is_none());
        let outdated = members.filter(|m| event.position > m.made && m.floor.admits(event));
        outdated.map(|member| member.session).collect()
    }

    /// The first event that one of its members has not been given.
    pub(super) fn lag(&self) -> Option<Seq> {
        let first = |member: &Member| {
            member.latest.as_ref().and_then(|latest| latest.first()).or(member.lag)
        };
        self.members.iter().filter_map(first).min()
    }

    /// Whose effort evaluates the filters for an event of the stream: one who can afford it, if there
    /// is one. `None`: nobody is to be given it now.
    pub(super) fn payer(&self, seq: Seq) -> Option<&Member> {
        let keeping_up = || self.members.iter().filter(|member| member.lag.is_none());
        let able = if self.key.has_filters() {
            keeping_up().find(|member| member.effort.can_pay(seq))
        } else {
            keeping_up().next()
        };
        able.or_else(|| keeping_up().max_by_key(|member| member.effort.left()))
    }
}
