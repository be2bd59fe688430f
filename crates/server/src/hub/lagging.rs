//! The connections that are behind the stream: whose turn it is, who is waited for, who has to go.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::entitlement::Entitlements;
use super::group::Member;
use super::handle::SessionId;
use super::history::Seq;
use super::queue::CloseReason;
use super::registry::Registry;
use super::slow_consumer::{Pace, SlowConsumers};
use crate::stats::Stats;

/// Few clients but those on the same machine or network read this fast, so only they set the pace.
/// Whoever is slower is cut off, and can resume.
const PACE: Pace = Pace { watch: Duration::from_millis(250), least: 8 << 20 };

/// The connections that are behind the stream.
pub(super) struct LaggingSessions {
    /// And whether they wait in line.
    sessions: HashMap<SessionId, bool>,
    /// Those whose queue has room, so that a turn will get them further; the next is the last. Who has
    /// gone may still be in it.
    ready: VecDeque<SessionId>,
    /// Those whose queue is empty, but for whom there is no memory at the moment.
    starved: Vec<SessionId>,
    slow: SlowConsumers,
}

impl Default for LaggingSessions {
    fn default() -> Self {
        LaggingSessions {
            sessions: HashMap::new(),
            ready: VecDeque::new(),
            starved: Vec::new(),
            slow: SlowConsumers::new(PACE),
        }
    }
}

impl LaggingSessions {
    pub(super) fn add(&mut self, session: SessionId) {
        self.sessions.entry(session).or_default();
    }

    /// The connection's queue has room (again).
    pub(super) fn wake(&mut self, session: SessionId) {
        if self.stands_in_line(session) {
            self.ready.push_back(session);
        }
    }

    /// Whether it lags, and has only now come to wait for its turn.
    fn stands_in_line(&mut self, session: SessionId) -> bool {
        let waits = self.sessions.get_mut(&session);
        waits.is_some_and(|waits| !std::mem::replace(waits, true))
    }

    /// The connection is to be tried again soon: others have the memory that it needs.
    pub(super) fn starve(&mut self, session: SessionId) {
        self.starved.push(session);
    }

    pub(super) fn is_anybody_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// There may be memory by now.
    pub(super) fn wake_starved(&mut self) {
        for session in std::mem::take(&mut self.starved) {
            self.wake(session);
        }
    }

    /// All of them may get further.
    pub(super) fn wake_all(&mut self) {
        self.ready = self.sessions.keys().copied().collect();
        self.sessions.values_mut().for_each(|waits| *waits = true);
    }

    pub(super) fn remove(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    pub(super) fn contains(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// The next that is to have a turn.
    pub(super) fn next(&mut self) -> Option<SessionId> {
        loop {
            let session = self.ready.pop_back()?;
            if let Some(waits) = self.sessions.get_mut(&session)
                && std::mem::take(waits)
            {
                return Some(session);
            }
        }
    }

    /// The connection is to have another turn once the others have had theirs.
    pub(super) fn wait_in_line(&mut self, session: SessionId) {
        if self.stands_in_line(session) {
            self.ready.push_front(session);
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Sends on the channels that wait for a verdict on an event that is about to be dropped, or begin
    /// where everything does, and tells them so: it is not their clients who are slow.
    fn skip(&mut self, end: Seq, registry: &mut Registry, stats: &Stats) {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in sessions {
            let Some(entry) = registry.sessions.get(&session) else { continue };
            let ids: Vec<_> = entry.groups().collect();
            for id in ids {
                let Some(group) = registry.group_mut(id) else { continue };
                let waits = group.plans.policy.is_waiting();
                let reason = if waits { "policy" } else { "trimmed" };
                let member = group.members.of_mut(session);
                let member = member.filter(|m| m.lag.is_some_and(|lag| lag < end));
                let member = match member {
                    Some(Member { sync: Some(sync), lag, .. }) => {
                        // What it has been told nothing of yet, it can as well be told from here on.
                        if sync.begin_anew() {
                            *lag = Some(end);
                        } else {
                            registry.interrupt(session, id, end);
                        }
                        continue;
                    }
                    member => member,
                };
                if let Some(member) = member.filter(|m| waits || m.has_gap) {
                    member.lag = Some(end);
                    member.skip(&group.key, reason);
                    if waits {
                        stats.policy_skips_total.inc();
                    }
                }
                if waits {
                    group.plans.policy.skip_to(end);
                }
            }
        }
    }

    /// Whether the events before `end` may be dropped. Cuts off those who need them and are too
    /// slow; false: somebody fast enough still does, ask again soon.
    pub(super) fn may_evict(
        &mut self,
        end: Seq,
        full: bool,
        registry: &mut Registry,
        entitlements: &Entitlements,
        stats: &Stats,
        now: Instant,
    ) -> bool {
        let needing = self.sessions.keys().filter(|session| needs(**session, end, registry));
        let mut needing: Vec<SessionId> = needing.copied().collect();
        // The first rows of a burst wait for what is known in a moment.
        if full && needing.iter().any(|s| waits_as_a_whole(*s, registry, entitlements)) {
            return false;
        }
        self.skip(end, registry, stats);
        needing.retain(|session| needs(*session, end, registry));
        let slow = if full && !needing.is_empty() {
            match self.slow.among(&needing, registry, now) {
                Some(slow) => slow,
                None => return false,
            }
        } else {
            self.slow.reset();
            needing.clone()
        };
        let all_are_slow = slow.len() == needing.len();
        for session in slow {
            self.cut_off(session, CloseReason::Slow, registry, stats);
        }
        all_are_slow
    }

    pub(super) fn cut_off(
        &mut self,
        session: SessionId,
        reason: CloseReason,
        registry: &mut Registry,
        stats: &Stats,
    ) {
        self.remove(session);
        if let Some(entry) = registry.sessions.get(&session) {
            stats.slow_clients_total.inc();
            let why = if reason == CloseReason::Memory { ", and memory is short" } else { "" };
            log::info!("connection {session} is cut off: it reads too slowly{why}");
            entry.queue.close(reason);
        }
        registry.forget(session);
    }
}

/// Whether any of the connection's channels still has to be given an event before `end`.
fn needs(session: SessionId, end: Seq, registry: &Registry) -> bool {
    lag(session, registry).is_some_and(|lag| lag < end)
}

/// The first event that any of the connection's channels has not been given.
pub(super) fn lag(session: SessionId, registry: &Registry) -> Option<Seq> {
    let entry = registry.sessions.get(&session)?;
    let groups = entry.groups().filter_map(|id| registry.group(id));
    let members = groups.filter_map(|group| group.members.of(session));
    members.filter_map(|member| member.lag).min()
}

/// Whether one of the connection's channels waits for an answer that is about to come. Others of its group
/// may wait for one while it keeps up.
pub(super) fn waits_as_a_whole(
    session: SessionId,
    registry: &Registry,
    entitlements: &Entitlements,
) -> bool {
    let Some(entry) = registry.sessions.get(&session) else { return false };
    entry.groups().filter_map(|id| registry.group(id)).any(|group| {
        if group.members.of(session).is_none_or(|member| member.lag.is_none()) {
            return false;
        }
        let awaited = group.plans.policy.awaits().zip(group.key.role.as_ref());
        awaited.is_some_and(|(about, role)| entitlements.is_about_to_know(role, about))
    })
}
