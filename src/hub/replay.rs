//! Giving lagging and resuming channels what they have not had, from the history.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::entitlement::Entitlements;
use super::handle::{Live, SessionId};
use super::history::{History, Seq};
use super::plan::{Bodies, Press, Scene};
use super::queue::{Goodbye, Push};
use super::roster::Roster;
use crate::stats::Stats;
use crate::wire::sheet::Sheet;

/// Events looked at per turn, so that a long replay does not hold up the stream.
const TURN: Seq = 2048;

/// How long the connections at the end of the history are watched before their pace is judged:
/// what those that have stalled can delay the stream by, all together and once.
const WATCH: Duration = Duration::from_millis(250);

/// A connection that drains its queue at least this fast, in bytes per second, is worth waiting for
/// when the history is full: the stream slows down to it. Whoever is slower is cut off. Few clients
/// but those on the same machine or network reach it, so only they set the pace, and only during a
/// burst larger than the history.
const PACE: u64 = 8 << 20;

/// The connections that are behind the stream.
#[derive(Default)]
pub(super) struct Laggards {
    sessions: HashSet<SessionId>,
    /// Those whose queue has room, so that a turn will get them further.
    ready: Vec<SessionId>,
    watch: Option<Watch>,
}

/// The connections that an eviction waits for.
struct Watch {
    since: Instant,
    /// What each had been sent then.
    sent: HashMap<SessionId, u64>,
}

impl Laggards {
    pub(super) fn add(&mut self, session: SessionId) {
        self.sessions.insert(session);
    }

    /// The connection's queue has room (again).
    pub(super) fn wake(&mut self, session: SessionId) {
        if self.sessions.contains(&session) && !self.ready.contains(&session) {
            self.ready.push(session);
        }
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

    /// Gives one connection its next events.
    pub(super) fn turn(
        &mut self,
        roster: &mut Roster,
        history: &History,
        entitlements: &mut Entitlements,
        live: Live,
    ) {
        let Some(session) = self.ready.pop() else { return };
        match advance(session, roster, history, entitlements, live) {
            Progress::CaughtUp => self.remove(session),
            Progress::More => self.ready.insert(0, session),
            Progress::Full => {}
        }
    }

    /// Whether the events before `end` may be dropped. Cuts off those who need them and are too
    /// slow; false: somebody fast enough still does, ask again soon.
    pub(super) fn may_evict(
        &mut self,
        end: Seq,
        full: bool,
        roster: &mut Roster,
        stats: &Stats,
        now: Instant,
    ) -> bool {
        let needing = self.sessions.iter().copied().filter(|session| needs(*session, end, roster));
        let mut slow: Vec<SessionId> = needing.collect();
        if slow.is_empty() {
            self.watch = None;
            return true;
        }
        let sent = |session: SessionId| roster.sessions.get(&session).map(|s| s.queue.sent_bytes());
        let fast = if full {
            let Some(watch) = self.watch.as_ref().filter(|w| now - w.since < 2 * WATCH) else {
                let sent = slow.iter().filter_map(|s| Some((*s, sent(*s)?))).collect();
                self.watch = Some(Watch { since: now, sent });
                return false;
            };
            let elapsed = now.saturating_duration_since(watch.since);
            if elapsed < WATCH {
                return false;
            }
            let due = PACE * u64::try_from(elapsed.as_millis()).unwrap_or(0) / 1000;
            let before = slow.len();
            // Who came to the end during the watch is judged after the next.
            slow.retain(|session| {
                let drained =
                    watch.sent.get(session).map(|then| sent(*session).unwrap_or(0) - then);
                drained.is_some_and(|drained| drained < due)
            });
            before - slow.len()
        } else {
            0
        };
        self.watch = None;
        for session in slow {
            self.cut_off(session, roster, stats);
        }
        fast == 0
    }

    fn cut_off(&mut self, session: SessionId, roster: &mut Roster, stats: &Stats) {
        self.remove(session);
        if let Some(entry) = roster.sessions.get(&session) {
            stats.slow_clients_total.inc();
            log::info!("connection {session} is cut off: it reads too slowly");
            entry.queue.close(Goodbye::Slow);
        }
        roster.disconnect(session);
    }
}

/// Whether any of the connection's channels still has to be given an event before `end`.
fn needs(session: SessionId, end: Seq, roster: &Roster) -> bool {
    lag(session, roster).is_some_and(|lag| lag < end)
}

/// The first event that any of the connection's channels has not been given.
fn lag(session: SessionId, roster: &Roster) -> Option<Seq> {
    let entry = roster.sessions.get(&session)?;
    let groups = entry.groups().filter_map(|id| roster.group(id));
    let members = groups.filter_map(|g| g.members.iter().find(|m| m.session == session));
    members.filter_map(|member| member.lag).min()
}

enum Progress {
    CaughtUp,
    More,
    Full,
}

fn advance(
    session: SessionId,
    roster: &mut Roster,
    history: &History,
    entitlements: &mut Entitlements,
    live: Live,
) -> Progress {
    let Some(from) = lag(session, roster) else { return Progress::CaughtUp };
    let Some(entry) = roster.sessions.get(&session) else { return Progress::CaughtUp };
    entry.queue.resume();
    let groups: Vec<_> = entry.groups().collect();
    let end = history.head().min(from + TURN);
    let (mut bodies, mut sheet) = (Bodies::default(), Sheet::default());
    let mut frames = Vec::new();
    for seq in from..end {
        let Some((batch, index)) = history.at(seq) else { continue };
        let Some(event) = batch.events.get(index) else { continue };
        let scene = Scene { batch, event, live };
        bodies.clear();
        for id in &groups {
            let Some(group) = roster.group_mut(*id) else { continue };
            let Some(member) = group.members.iter_mut().find(|m| m.session == session) else {
                continue;
            };
            if member.lag.is_none_or(|lag| lag > seq) {
                continue;
            }
            if event.position > member.floor {
                frames.clear();
                let mut press = Press {
                    entitlements: &mut *entitlements,
                    bodies: &mut bodies,
                    sheet: &mut sheet,
                    out: &mut frames,
                };
                group.plans.frames(&group.key, scene, None, &mut press);
                if !frames.is_empty() {
                    match member.queue.push(&frames) {
                        Push::Queued => {}
                        Push::Full => return Progress::Full,
                        Push::Closed => return Progress::CaughtUp,
                    }
                }
            }
            member.lag = Some(seq + 1);
        }
    }
    if end < history.head() {
        return Progress::More;
    }
    for id in groups {
        let group = roster.group_mut(id);
        let members = group.into_iter().flat_map(|group| &mut group.members);
        for member in members.filter(|member| member.session == session) {
            member.lag = None;
        }
    }
    Progress::CaughtUp
}
