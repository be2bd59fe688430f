//! Giving lagging and resuming channels what they have not had, from the history.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tide_feed::event::Cursor;

use super::body_cache::BodyCache;
use super::encoder::{EncodeContext, EventRef, Missing};
use super::entitlement::Entitlements;
use super::group::Member;
use super::handle::{Live, SessionId};
use super::history::{History, Seq};
use super::policy_check::PolicyChecks;
use super::queue::{CloseReason, Push};
use super::registry::Registry;
use super::slow_consumer::{Pace, SlowConsumers};
use crate::filter::Place;
use crate::stats::Stats;
use crate::wire::encode::{Resync, caught_up, resync};
use crate::wire::frame_buf::FrameBuf;

/// Events looked at per turn, so that a long replay does not hold up the stream.
const TURN: Seq = 2048;

/// Few clients but those on the same machine or network read this fast, so only they set the pace.
/// Whoever is slower is cut off, and can resume.
const PACE: Pace = Pace { watch: Duration::from_millis(250), least: 8 << 20 };

/// The connections that are behind the stream.
pub(super) struct LaggingSessions {
    sessions: HashSet<SessionId>,
    /// Those whose queue has room, so that a turn will get them further.
    ready: Vec<SessionId>,
    /// Those whose queue is empty, but for whom there is no memory at the moment.
    starved: Vec<SessionId>,
    slow: SlowConsumers,
}

impl Default for LaggingSessions {
    fn default() -> Self {
        LaggingSessions {
            sessions: HashSet::new(),
            ready: Vec::new(),
            starved: Vec::new(),
            slow: SlowConsumers::new(PACE),
        }
    }
}

impl LaggingSessions {
    pub(super) fn add(&mut self, session: SessionId) {
        self.sessions.insert(session);
    }

    /// The connection's queue has room (again).
    pub(super) fn wake(&mut self, session: SessionId) {
        if self.sessions.contains(&session) && !self.ready.contains(&session) {
            self.ready.push(session);
        }
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
        self.ready = self.sessions.iter().copied().collect();
    }

    pub(super) fn remove(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.ready.retain(|ready| *ready != session);
    }

    pub(super) fn contains(&self, session: SessionId) -> bool {
        self.sessions.contains(&session)
    }

    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives one connection its next events. Returns it if its queue still has room.
    pub(super) fn turn(
        &mut self,
        registry: &mut Registry,
        history: &History,
        entitlements: &mut Entitlements,
        policy_checks: &mut PolicyChecks,
        live: Live,
    ) -> Option<SessionId> {
        let session = self.ready.pop()?;
        match advance(session, registry, history, entitlements, policy_checks, live) {
            Progress::CaughtUp => self.remove(session),
            Progress::More => self.ready.insert(0, session),
            Progress::Waiting => {}
            Progress::Full => return None,
            Progress::Starved => {
                self.starve(session);
                return None;
            }
        }
        Some(session)
    }

    /// Sends on the channels that wait for a verdict on an event that is about to be dropped, and
    /// tells them so: it is not their clients who are slow.
    fn skip(&mut self, end: Seq, registry: &mut Registry, stats: &Stats) {
        let sessions: Vec<SessionId> = self.sessions.iter().copied().collect();
        for session in sessions {
            let Some(entry) = registry.sessions.get(&session) else { continue };
            let ids: Vec<_> = entry.groups().collect();
            for id in ids {
                let Some(group) = registry.group_mut(id) else { continue };
                if !group.plans.policy.is_waiting() {
                    continue;
                }
                let gap = Resync { reason: "policy", oldest: None, newest: None };
                let frame = || resync(group.key.vsn, None, &group.key.topic, gap);
                let members = group.members.iter_mut().filter(|member| member.session == session);
                for member in members.filter(|m| m.lag.is_some_and(|lag| lag < end)) {
                    member.lag = Some(end);
                    member.queue.reply(frame());
                    stats.policy_skips_total.inc();
                }
                group.plans.policy.skip_to(end);
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
        let needing =
            self.sessions.iter().copied().filter(|session| needs(*session, end, registry));
        // The first rows of a burst wait for what is known in a moment.
        if full && needing.clone().any(|s| waits_as_a_whole(s, registry, entitlements)) {
            return false;
        }
        self.skip(end, registry, stats);
        let needing =
            self.sessions.iter().copied().filter(|session| needs(*session, end, registry));
        let needing: Vec<SessionId> = needing.collect();
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
fn lag(session: SessionId, registry: &Registry) -> Option<Seq> {
    let entry = registry.sessions.get(&session)?;
    let groups = entry.groups().filter_map(|id| registry.group(id));
    let members = groups.filter_map(|g| g.members.iter().find(|m| m.session == session));
    members.filter_map(|member| member.lag).min()
}

/// The first event that has not been given to one of those channels of the connection that do not
/// wait for a verdict.
fn next(session: SessionId, registry: &Registry) -> Option<Seq> {
    let entry = registry.sessions.get(&session)?;
    let groups = entry.groups().filter_map(|id| registry.group(id));
    let ready = groups.filter(|group| !group.plans.policy.is_waiting());
    let members = ready.filter_map(|g| g.members.iter().find(|m| m.session == session));
    members.filter_map(|member| member.lag).min()
}

/// Whether one of the connection's channels waits for an answer that is about to come.
fn waits_as_a_whole(session: SessionId, registry: &Registry, entitlements: &Entitlements) -> bool {
    let Some(entry) = registry.sessions.get(&session) else { return false };
    entry.groups().filter_map(|id| registry.group(id)).any(|group| {
        let awaited = group.plans.policy.awaits().zip(group.key.role.as_ref());
        awaited.is_some_and(|(about, role)| entitlements.is_about_to_know(role, about))
    })
}

enum Progress {
    CaughtUp,
    More,
    Full,
    /// for memory: it is to be tried again soon.
    Starved,
    /// for verdicts: the policy checks will wake it.
    Waiting,
}

fn advance(
    session: SessionId,
    registry: &mut Registry,
    history: &History,
    entitlements: &mut Entitlements,
    policy_checks: &mut PolicyChecks,
    live: Live,
) -> Progress {
    let Some(entry) = registry.sessions.get(&session) else { return Progress::CaughtUp };
    let groups: Vec<_> = entry.groups().collect();
    let effort = Rc::clone(&entry.effort);
    effort.begin_turn();
    // Also if it has left what it lagged on: its other channels get what is said from now on.
    entry.queue.resume();
    if waits_as_a_whole(session, registry, entitlements) {
        return Progress::Waiting;
    }
    let Some(from) = next(session, registry) else {
        return if lag(session, registry).is_none() {
            Progress::CaughtUp
        } else {
            Progress::Waiting
        };
    };
    let end = history.head().min(from + TURN);
    let (mut bodies, mut frame_buf) = (BodyCache::default(), FrameBuf::default());
    let mut frames = Vec::new();
    for seq in from..end {
        let Some((batch, index)) = history.at(seq) else { continue };
        let Some(event) = batch.events.get(index) else { continue };
        let event_ref = EventRef { batch, event, seq, live };
        bodies.clear();
        for id in &groups {
            let Some(group) = registry.group_mut(*id) else { continue };
            if group.plans.policy.is_waiting() {
                continue;
            }
            let Some(member) = group.members.iter_mut().find(|m| m.session == session) else {
                continue;
            };
            if member.lag.is_none_or(|lag| lag > seq) {
                continue;
            }
            if member.floor.admits(event) {
                frames.clear();
                let mut context = EncodeContext {
                    entitlements: &mut *entitlements,
                    bodies: &mut bodies,
                    frame_buf: &mut frame_buf,
                    out: &mut frames,
                    effort: &effort,
                    place: Place::Turn,
                };
                match group.plans.frames(&group.key, event_ref, None, &mut context) {
                    Ok(()) => {}
                    Err(Missing::Identity) => {
                        registry.split_by_identity(*id);
                        return Progress::More;
                    }
                    Err(Missing::Effort) => {
                        registry.relieve(session, event_ref.row_bytes());
                        return Progress::More;
                    }
                    Err(Missing::Time) => return Progress::More,
                    Err(Missing::Answer { about }) => {
                        policy_checks.raise(*id, seq, about, registry);
                        if waits_as_a_whole(session, registry, entitlements) {
                            return Progress::Waiting;
                        }
                        continue;
                    }
                }
                if !frames.is_empty() {
                    group.previous = group.previous.max(Some(event.position));
                    match &mut member.latest {
                        Some(latest) if seq < latest.until => {
                            latest.keep(seq);
                        }
                        _ => match member.queue.push(&frames) {
                            Push::Queued => {}
                            Push::Full => return Progress::Full,
                            Push::Starved => return Progress::Starved,
                            Push::Closed => return Progress::CaughtUp,
                        },
                    }
                }
            }
            member.lag = Some(seq + 1);
            if let Some(latest) = member.latest.take_if(|latest| seq + 1 >= latest.until)
                && let Some(first) = latest.first()
            {
                member.lag = Some(first);
                return Progress::More;
            }
        }
    }
    let is_done = end == history.head();
    let mut waits = false;
    for id in groups {
        let Some(group) = registry.group_mut(id) else { continue };
        if group.plans.policy.is_waiting() {
            waits = true;
            continue;
        }
        for member in group.members.iter_mut().filter(|m| is_done && m.session == session) {
            member.lag = None;
        }
        let lag = group.lag();
        group.plans.policy.forget(lag);
    }
    if is_done {
        tell_caught_up(session, registry, history, live);
    }
    match (is_done, waits) {
        (false, _) => Progress::More,
        (true, true) => Progress::Waiting,
        (true, false) => Progress::CaughtUp,
    }
}

/// Tells the client of those of its channels that resumed and have had everything by now.
fn tell_caught_up(session: SessionId, registry: &mut Registry, history: &History, live: Live) {
    let Some(entry) = registry.sessions.get(&session) else { return };
    let channels: Vec<_> = entry.channels.values().map(|channel| channel.groups.clone()).collect();
    for groups in channels {
        let member = |id| registry.group(id)?.members.iter().find(|m| m.session == session);
        let members: Vec<&Member> = groups.iter().filter_map(|id| member(*id)).collect();
        if !members.iter().any(|m| m.replays) || members.iter().any(|m| m.lag.is_some()) {
            continue;
        }
        let mut untold = Some(Cursor { epoch: live.epoch, position: history.reached() });
        for id in groups {
            let Some(group) = registry.group_mut(id) else { continue };
            for member in group.members.iter_mut().filter(|m| m.session == session) {
                member.replays = false;
                if let Some(position) = untold.take() {
                    member.queue.reply(caught_up(group.key.vsn, &group.key.topic, position));
                }
            }
        }
    }
}
