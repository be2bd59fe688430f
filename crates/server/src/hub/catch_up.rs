//! Giving lagging and resuming channels what they have not had, from the history.

use std::rc::Rc;

use bytes::Bytes;
use tide_feed::event::Cursor;

use super::body_cache::BodyCache;
use super::encoder::{EncodeContext, EventRef, Missing};
use super::entitlement::Entitlements;
use super::group::Member;
use super::handle::{Live, SessionId};
use super::history::{History, Seq};
use super::lagging::{LaggingSessions, lag, waits_as_a_whole};
use super::policy_check::PolicyChecks;
use super::queue::Push;
use super::registry::Registry;
use crate::filter::Place;
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
    match advance(session, registry, history, entitlements, policy_checks, live) {
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
    members.filter_map(|member| member.lag).min()
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

/// Why a connection is not to be given more now, if that came of giving it something.
fn held_up(pushed: Push) -> Option<Progress> {
    match pushed {
        Push::Queued => None,
        Push::Full => Some(Progress::Full),
        Push::Starved => Some(Progress::Starved),
        Push::Closed => Some(Progress::CaughtUp),
    }
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
    let mut end = history.head().min(from + TURN);
    let mut made = 0;
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
            let Some(member) = group.members.of_mut(session) else { continue };
            if member.lag.is_none_or(|lag| lag > seq) {
                continue;
            }
            if member.floor.admits(event) {
                frames.clear();
                let mut warning = None;
                let mut context = EncodeContext {
                    entitlements: &mut *entitlements,
                    bodies: &mut bodies,
                    frame_buf: &mut frame_buf,
                    out: &mut frames,
                    warning: &mut warning,
                    made: member.made,
                    effort: &effort,
                    place: Place::Turn,
                };
                match group.plans.frames(&group.key, event_ref, member.previous, &mut context) {
                    Ok(()) => {}
                    Err(Missing::Identity) => {
                        registry.split_by_identity(*id, None);
                        return Progress::More;
                    }
                    Err(Missing::Basis) => {
                        registry.interrupt(session, *id, history.head());
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
                if let Some(warning) = warning {
                    match &mut member.latest {
                        Some(latest) if seq < latest.until => latest.doubt(seq),
                        _ => {
                            if let Some(why) = held_up(member.warn(&warning)) {
                                return why;
                            }
                        }
                    }
                }
                if !frames.is_empty() {
                    made += frames.iter().map(Bytes::len).sum::<usize>();
                    group.previous = group.previous.max(Some(event.position));
                    match &mut member.latest {
                        Some(latest) if seq < latest.until => {
                            latest.keep(seq);
                        }
                        _ => match held_up(member.queue.push(&frames)) {
                            None => member.previous = Some(event.position),
                            Some(why) => return why,
                        },
                    }
                }
            }
            (member.lag, member.is_skipping) = (Some(seq + 1), false);
            if let Some(latest) = member.latest.take_if(|latest| seq + 1 >= latest.until)
                && let Some(first) = latest.first()
            {
                member.lag = Some(first);
                return Progress::More;
            }
        }
        if made >= TURN_BYTES {
            end = seq + 1;
            break;
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
        if let Some(member) = group.members.of_mut(session).filter(|_| is_done) {
            (member.lag, member.previous) = (None, None);
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
