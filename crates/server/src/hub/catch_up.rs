//! Giving lagging and resuming channels what they have not had, from the history.

use std::ops::ControlFlow;
use std::rc::Rc;

use bytes::Bytes;
use tide_feed::event::{Cursor, Event};

use super::body_cache::BodyCache;
use super::encoder::{EncodeContext, EventRef, Missing};
use super::entitlement::Entitlements;
use super::group::{GroupId, GroupKey, Member};
use super::handle::{Live, SessionId};
use super::history::{History, Seq};
use super::lagging::{LaggingSessions, lag, waits_as_a_whole};
use super::policy_check::PolicyChecks;
use super::queue::Push;
use super::registry::Registry;
use super::warning::Warning;
use crate::filter::{Effort, Place};
use crate::wire::encode::caught_up;
use crate::wire::frame_buf::FrameBuf;

/// Events looked at per turn, so that a long replay does not hold up the stream.
const TURN: Seq = 2048;

/// Bytes of frames that are made in a turn, for the same reason: of wide rows it takes few.
const TURN_BYTES: usize = 256 << 10;

/// Gives one connection its next events. Returns it if its queue still has room.
pub(super) fn turn(
    lagging: &mut LaggingSessions,
    registry: &mut Registry,
    history: &History,
    entitlements: &mut Entitlements,
    policy_checks: &mut PolicyChecks,
    live: Live,
) -> Option<SessionId> {
    let session = lagging.next()?;
    let entry = registry.sessions.get(&session);
    let effort = entry.map(|entry| Rc::clone(&entry.effort)).unwrap_or_default();
    let (bodies, frame_buf) = (BodyCache::default(), FrameBuf::default());
    let (frames, made) = (Vec::new(), 0);
    let mut turn = Turn {
        session,
        registry,
        history,
        entitlements,
        policy_checks,
        live,
        effort,
        bodies,
        frame_buf,
        frames,
        made,
    };
    match turn.take() {
        Progress::CaughtUp => lagging.remove(session),
        Progress::More => lagging.wait_in_line(session),
        Progress::Waiting => {}
        Progress::Full => return None,
        Progress::Starved => {
            lagging.starve(session);
            return None;
        }
    }
    Some(session)
}

/// The first event that has not been given to one of those channels of the connection that do not
/// wait for a verdict.
fn next(session: SessionId, registry: &Registry) -> Option<Seq> {
    let entry = registry.sessions.get(&session)?;
    let groups = entry.groups().filter_map(|id| registry.group(id));
    let ready = groups.filter(|group| !group.plans.policy.is_waiting());
    let members = ready.filter_map(|group| group.members.of(session));
    let moves = members.filter(|member| !member.stands());
    moves.filter_map(|member| member.lag).min()
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

/// Goes on if that was queued.
fn queued(pushed: Push) -> ControlFlow<Progress> {
    ControlFlow::Break(match pushed {
        Push::Queued => return ControlFlow::Continue(()),
        Push::Full => Progress::Full,
        Push::Starved => Progress::Starved,
        Push::Closed => Progress::CaughtUp,
    })
}

/// A connection's turn.
struct Turn<'a> {
    session: SessionId,
    registry: &'a mut Registry,
    history: &'a History,
    entitlements: &'a mut Entitlements,
    policy_checks: &'a mut PolicyChecks,
    live: Live,
    effort: Rc<Effort>,
    bodies: BodyCache,
    frame_buf: FrameBuf,
    /// Of the event at hand, for one of the channels.
    frames: Vec<Bytes>,
    /// Bytes of all frames so far.
    made: usize,
}

impl Turn<'_> {
    fn take(&mut self) -> Progress {
        let Some(entry) = self.registry.sessions.get(&self.session) else {
            return Progress::CaughtUp;
        };
        let groups: Vec<GroupId> = entry.groups().collect();
        self.effort.begin_turn();
        // Also if it has left what it lagged on: its other channels get what is said from now on.
        entry.queue.resume();
        if waits_as_a_whole(self.session, self.registry, self.entitlements) {
            return Progress::Waiting;
        }
        let Some(from) = next(self.session, self.registry) else {
            let is_done = lag(self.session, self.registry).is_none();
            return if is_done { Progress::CaughtUp } else { Progress::Waiting };
        };
        match self.give_from(from, &groups) {
            ControlFlow::Break(why) => why,
            ControlFlow::Continue(end) => self.end(&groups, end),
        }
    }

    /// Gives as many events as there are for a turn; returns the first that is left.
    fn give_from(&mut self, from: Seq, groups: &[GroupId]) -> ControlFlow<Progress, Seq> {
        let history = self.history;
        let end = history.head().min(from + TURN);
        for seq in from..end {
            let Some((batch, index)) = history.at(seq) else { continue };
            let Some(event) = batch.events.get(index) else { continue };
            let event_ref = EventRef { batch, event, seq, live: self.live };
            self.bodies.clear();
            for id in groups {
                self.give(*id, event_ref)?;
            }
            if self.made >= TURN_BYTES {
                return ControlFlow::Continue(seq + 1);
            }
        }
        ControlFlow::Continue(end)
    }

    /// Gives the event to the connection's channel in this group, if it has not had it yet.
    fn give(&mut self, id: GroupId, event_ref: EventRef<'_>) -> ControlFlow<Progress> {
        let EventRef { event, seq, .. } = event_ref;
        let Some(group) = self.registry.group_mut(id) else { return ControlFlow::Continue(()) };
        if group.plans.policy.is_waiting() {
            return ControlFlow::Continue(());
        }
        let member = group.members.of_mut(self.session);
        let Some(member) = member.filter(|member| member.lag.is_some_and(|lag| lag <= seq)) else {
            return ControlFlow::Continue(());
        };
        if member.stands() {
            return ControlFlow::Continue(());
        }
        if member.floor.admits(event) {
            self.frames.clear();
            let mut warning = None;
            let mut context = EncodeContext {
                entitlements: self.entitlements,
                bodies: &mut self.bodies,
                frame_buf: &mut self.frame_buf,
                out: &mut self.frames,
                warning: &mut warning,
                sync: member.sync.as_deref_mut(),
                made: member.made,
                effort: &self.effort,
                place: Place::Turn,
            };
            let encoded = group.plans.frames(&group.key, event_ref, member.previous, &mut context);
            if let Err(missing) = encoded {
                return self.do_without(missing, id, event_ref);
            }
            self.made += self.frames.iter().map(Bytes::len).sum::<usize>();
            if !self.frames.is_empty() {
                group.previous = group.previous.max(Some(event.position));
            }
            let given = Given { frames: &self.frames, warning: warning.as_ref(), event, seq };
            member.give_from_history(&group.key, given)?;
        }
        member.lag = Some(seq + 1);
        if let Some(latest) = member.latest.take_if(|latest| seq + 1 >= latest.until)
            && let Some(first) = latest.first()
        {
            member.lag = Some(first);
            return ControlFlow::Break(Progress::More);
        }
        ControlFlow::Continue(())
    }

    /// Sees to what is missing to give the event to the group.
    fn do_without(
        &mut self,
        missing: Missing,
        id: GroupId,
        event_ref: EventRef<'_>,
    ) -> ControlFlow<Progress> {
        match missing {
            Missing::Identity => {
                self.registry.split_by_identity(id, None);
            }
            Missing::Basis => self.registry.interrupt(self.session, id, self.history.head()),
            Missing::Row => {
                self.registry.want_rows(self.session, id);
                return ControlFlow::Continue(());
            }
            Missing::Effort => self.registry.relieve(self.session, event_ref.row_bytes()),
            Missing::Time => {}
            Missing::Answer { about } => {
                self.policy_checks.raise(id, event_ref.seq, about, self.registry);
                let waits = waits_as_a_whole(self.session, self.registry, self.entitlements);
                // The other channels go on.
                return if waits {
                    ControlFlow::Break(Progress::Waiting)
                } else {
                    ControlFlow::Continue(())
                };
            }
        }
        ControlFlow::Break(Progress::More)
    }

    /// What is before `end` has been looked at.
    fn end(&mut self, groups: &[GroupId], end: Seq) -> Progress {
        let is_done = end == self.history.head();
        let mut waits = false;
        for id in groups {
            let Some(group) = self.registry.group_mut(*id) else { continue };
            if group.plans.policy.is_waiting() {
                waits = true;
                continue;
            }
            let member = group.members.of_mut(self.session);
            if member.as_ref().is_some_and(|member| member.stands()) {
                waits = true;
                continue;
            }
            if let Some(member) = member.filter(|_| is_done) {
                (member.lag, member.previous) = (None, None);
                member.end_skip(&group.key);
            }
            if group.plans.policy.has_verdicts() {
                let lag = group.lag();
                group.plans.policy.forget(lag);
            }
        }
        if is_done {
            tell_caught_up(self.session, self.registry, self.history, self.live);
        }
        match (is_done, waits) {
            (false, _) => Progress::More,
            (true, true) => Progress::Waiting,
            (true, false) => Progress::CaughtUp,
        }
    }
}

/// What an event is to a channel.
struct Given<'a> {
    frames: &'a [Bytes],
    warning: Option<&'a Warning>,
    event: &'a Event,
    seq: Seq,
}

impl Member {
    /// Whether it waits for rows that there were, and is given no events until they are told.
    fn stands(&self) -> bool {
        let at = self.lag.unwrap_or(Seq::MAX);
        self.sync.as_ref().is_some_and(|sync| sync.stands_at(at))
    }

    /// It has been given the event at hand.
    pub(super) fn settle_told(&mut self) {
        if let Some(told) = self.sync.as_mut().and_then(|sync| sync.told.as_mut()) {
            told.settle();
        }
    }

    /// Gives it an event that it reads from the history, or notes that it is to have it.
    fn give_from_history(
        &mut self,
        key: &GroupKey,
        Given { frames, warning, event, seq }: Given<'_>,
    ) -> ControlFlow<Progress> {
        if let Some(latest) = self.latest.as_mut().filter(|latest| seq < latest.until) {
            if warning.is_some() {
                latest.doubt(seq);
            }
            if !frames.is_empty() {
                latest.keep(seq);
            }
            return ControlFlow::Continue(());
        }
        if warning.is_some() || !frames.is_empty() {
            self.end_skip(key);
        }
        if let Some(warning) = warning {
            queued(self.warn(warning))?;
        }
        if !frames.is_empty() {
            queued(self.queue.push(frames))?;
            self.previous = Some(event.position);
        }
        self.settle_told();
        ControlFlow::Continue(())
    }
}

/// Tells the client of those of its channels that resumed and have had everything by now.
fn tell_caught_up(session: SessionId, registry: &mut Registry, history: &History, live: Live) {
    let Some(entry) = registry.sessions.get(&session) else { return };
    let channels: Vec<_> = entry.channels.values().map(|channel| channel.groups.clone()).collect();
    for groups in channels {
        let member = |id| registry.group(id)?.members.of(session);
        let members: Vec<&Member> = groups.iter().filter_map(|id| member(*id)).collect();
        if !members.iter().any(|m| m.replays) || members.iter().any(|m| m.lag.is_some()) {
            continue;
        }
        let mut untold = Some(Cursor { epoch: live.epoch, position: history.reached() });
        for id in groups {
            let Some(group) = registry.group_mut(id) else { continue };
            if let Some(member) = group.members.of_mut(session) {
                (member.replays, member.has_gap) = (false, false);
                if let Some(position) = untold.take() {
                    member.queue.reply(caught_up(group.key.vsn, &group.key.topic, position));
                }
            }
        }
    }
}
