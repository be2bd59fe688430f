//! Answers to mutations: held until their clients have been told of what they did.
//!
//! Those of one connection go out in their order. The address before which lies all that a mutation did
//! has to be decoded, and the connection to have been given everything before it; but no answer waits for
//! longer than its client would.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use tide_feed::event::{Lsn, Position};
use tokio::sync::OwnedSemaphorePermit;

use super::group::Member;
use super::handle::{Live, SessionId};
use super::history::{History, Seq};
use super::queue::Queue;
use super::registry::Registry;
use crate::allowance::Share;
use crate::wire::mutation::{Answer, Echo, Recipient};

/// How soon it is looked again whether those who lag have been given enough.
const TICK: Duration = Duration::from_millis(5);

/// An answer on its way to its client.
#[derive(Debug)]
pub struct Reply {
    pub answer: Answer,
    pub to: Recipient,
    /// When it goes out whatever its client has not been told.
    pub due: Instant,
    /// One of those that may be held for the connection.
    pub place: Option<OwnedSemaphorePermit>,
}

impl Reply {
    /// Bytes that it takes up, about.
    pub(super) fn memory(&self) -> usize {
        size_of::<Held>() + self.answer.memory() + self.to.memory()
    }
}

/// A reply with what it takes up.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) reply: Reply,
    pub(super) _memory: Share,
}

/// What is held for one connection.
#[derive(Default)]
struct Line {
    replies: VecDeque<Held>,
    /// The stream has come to where the first of them wants it, but the connection has not.
    is_behind: bool,
}

/// All that are held.
pub(super) struct Answers {
    /// Nobody's is empty.
    lines: HashMap<SessionId, Line>,
    /// There are some that have not been looked at.
    has_news: bool,
    /// The lowest address that one of them waits for the stream to come to.
    awaited: Lsn,
    /// When the first of them goes out whatever is missing.
    due: Option<Instant>,
    /// When to look at the connections that are behind.
    tick: Option<Instant>,
}

/// What there is to go by.
#[derive(Clone, Copy)]
pub(super) struct Progress<'a> {
    pub(super) registry: &'a Registry,
    pub(super) history: &'a History,
    pub(super) live: Option<Live>,
    pub(super) now: Instant,
}

/// What a reply waits for.
enum Waits {
    Stream,
    Connection,
}

impl Default for Answers {
    fn default() -> Answers {
        let (lines, awaited) = (HashMap::new(), Lsn(u64::MAX));
        Answers { lines, has_news: false, awaited, due: None, tick: None }
    }
}

impl Answers {
    pub(super) fn hold(&mut self, session: SessionId, held: Held) {
        self.lines.entry(session).or_default().replies.push_back(held);
        self.has_news = true;
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        self.lines.remove(&session);
    }

    /// How long until there is something to look at, if nothing else happens.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let next = self.due.into_iter().chain(self.tick).min();
        next.map(|next| next.saturating_duration_since(now))
    }

    /// Gives those that need not wait any longer.
    pub(super) fn give(&mut self, progress: Progress<'_>) {
        let Progress { registry, now, .. } = progress;
        let has_come = progress.reached().is_some_and(|reached| reached >= self.awaited);
        if !self.has_news && !has_come && self.wait(now).is_none_or(|wait| !wait.is_zero()) {
            return;
        }
        let is_tick = self.tick.is_none_or(|tick| now >= tick);
        let (mut awaited, mut due, mut is_anybody_behind) = (Lsn(u64::MAX), None, false);
        self.lines.retain(|session, line| {
            let Some(entry) = registry.sessions.get(session) else { return false };
            if is_tick || !line.is_behind || line.is_due(now) {
                line.give(*session, &entry.queue, progress);
            }
            let Some(Held { reply, .. }) = line.replies.front() else { return false };
            due = due.into_iter().chain([reply.due]).min();
            is_anybody_behind |= line.is_behind;
            if !line.is_behind {
                awaited = awaited.min(reply.answer.lsn());
            }
            true
        });
        let tick = self.tick.filter(|_| !is_tick).unwrap_or(now + TICK);
        (self.has_news, self.awaited, self.due) = (false, awaited, due);
        self.tick = is_anybody_behind.then_some(tick);
    }
}

impl Line {
    fn is_due(&self, now: Instant) -> bool {
        self.replies.front().is_some_and(|held| now >= held.reply.due)
    }

    fn give(&mut self, session: SessionId, queue: &Queue, progress: Progress<'_>) {
        while let Some(Held { reply, .. }) = self.replies.front() {
            let waits = progress.waits(session, reply);
            self.is_behind = matches!(waits, Some(Waits::Connection));
            let echo = match waits {
                None => Echo::First,
                Some(_) if self.is_due(progress.now) => Echo::Skipped,
                Some(_) => return,
            };
            let epoch = progress.live.map(|live| live.epoch);
            let frames = reply.answer.frames(&reply.to, epoch, echo);
            // From here on it is the queue that counts it.
            self.replies.pop_front();
            frames.into_iter().for_each(|frame| queue.reply(frame));
        }
    }
}

impl Progress<'_> {
    /// Everything that committed before it has been fed.
    fn reached(&self) -> Option<Lsn> {
        self.live.map(|_| self.history.decoded())
    }

    /// `None`: for nothing.
    fn waits(&self, session: SessionId, reply: &Reply) -> Option<Waits> {
        let lsn = reply.answer.lsn();
        if lsn == Lsn(0) {
            return None;
        }
        if self.reached().is_none_or(|reached| reached < lsn) {
            return Some(Waits::Stream);
        }
        let until = self.history.after(Position::before(lsn));
        (!self.registry.has_been_given(session, until)).then_some(Waits::Connection)
    }
}

impl Registry {
    /// Whether all channels of the connection have been given what they are to have of the events before
    /// `until`.
    fn has_been_given(&self, session: SessionId, until: Seq) -> bool {
        let Some(entry) = self.sessions.get(&session) else { return true };
        let groups = entry.groups().filter_map(|id| self.group(id));
        let mut members = groups.filter_map(|group| group.members.of(session));
        members.all(|member| member.has_been_given(until))
    }
}

impl Member {
    fn has_been_given(&self, until: Seq) -> bool {
        let is_behind = self.lag.is_some_and(|lag| lag < until) || self.latest.is_some();
        // Until then some of its rows are in chunks that are still to come.
        !is_behind && self.sync.as_ref().is_none_or(|sync| sync.is_up_to_date)
    }
}
