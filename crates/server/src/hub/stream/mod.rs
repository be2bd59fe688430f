//! The hub's loop: takes what the worker feeds and what sessions ask for, and owns all routing
//! state.

mod delivery;
mod join;
mod placing;
mod sync;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tide_feed::config::Config;
use tide_feed::event::{Batch, Lsn};
use tide_feed::notification::Notification;
use tokio::sync::{mpsc, watch};

use self::sync::Syncs;
use super::answers::{Answers, Progress};
use super::body_cache::BodyCache;
use super::catch_up;
use super::entitlement::Entitlements;
use super::group::{GroupId, Skipped};
use super::handle::{Command, Ends, Hub, Live, PendingEphemerals};
use super::history::History;
use super::lagging::LaggingSessions;
use super::notices::Notices;
use super::policy_check::PolicyChecks;
use super::queue::{Budget, CloseReason, Push};
use super::receipts::Receipts;
use super::recent;
use super::registry::{Registry, Session};
use super::relief::Relief;
use super::snapshot_place::Seal;
use crate::allowance::Allowance;
use crate::catalog::Catalog;
use crate::link::{Feed, Uplink};
use crate::memory::{Kind, Memory};
use crate::notify::NotifyRegistry;
use crate::stats::Stats;
use crate::wire::encode::{Resync, resync};
use crate::wire::frame_buf::FrameBuf;

/// How often the history's age is looked at.
const TICK: Duration = Duration::from_millis(500);
/// How soon a full history is looked at again.
const SHORT_TICK: Duration = Duration::from_millis(5);

/// What sessions ask for is taken up to this many at a time, before others have their turn.
const COMMANDS: usize = 64;
/// The worker is told how far the slot may move when it can go this far, or this long after the last
/// time: each word wakes it.
const CONFIRM_BYTES: u64 = 16 << 20;
const CONFIRM_DELAY: Duration = Duration::from_millis(200);

/// Why a position is not at hand: it is of another history.
const EPOCH: &str = "epoch";
/// The history before was given up, since the server failed over it.
const SERVER_FAILED: &str = "server_failed";
/// The history before was given up since it held back more WAL than it may, and could not be told.
const WAL_LIMIT: &str = "wal_limit";
/// The history before was given up by an administrator, since decoding it crashed Postgres.
const SKIPPED: &str = "skipped";

/// What the hub is made of.
#[derive(Debug)]
pub struct Parts {
    pub feed: mpsc::Receiver<Feed>,
    /// Notifications, in the order they came.
    pub notified: mpsc::Receiver<Vec<Notification>>,
    pub uplink: Uplink,
    pub notify_registry: NotifyRegistry,
    pub catalog: Catalog,
    pub stats: Arc<Stats>,
    pub receipts: Receipts,
}

/// A hub: how to talk to it, and its loop, which is to be run.
pub fn new(config: &Config, parts: Parts) -> (Hub, Stream) {
    let memory = Memory::new(config);
    let part = memory.of(Kind::History);
    let (retention, reach) = (config.history_retention, config.history_reach);
    let size = config.history_size.min(part.limit());
    let history = History::new(part, size, retention, reach);
    let notices = Notices::new(Arc::clone(memory.of(Kind::Notices)));
    let (hub, ends) = Hub::new(config.send_queue_size, memory, parts.notify_registry.clone());
    (hub, Stream::new(parts, ends, history, notices))
}

/// The hub's own half. Whatever it does not know yet waits beside the stream: nothing in it blocks.
pub struct Stream {
    history: History,
    /// What there is no room for in the history yet.
    coming: Option<Batch>,
    registry: Registry,
    lagging: LaggingSessions,
    budget: Arc<Budget>,
    /// The memory for channels.
    channels: Arc<Allowance>,
    relief: Relief,
    /// When those were given another try for whom there was no memory.
    tried: Instant,
    notices: Notices,
    entitlements: Entitlements,
    policy_checks: PolicyChecks,
    live: Option<Live>,
    announce: watch::Sender<Option<Live>>,
    stalled: Arc<Mutex<Option<String>>>,
    uplink: Uplink,
    /// What the worker was told last of how far the slot may move, and when.
    confirmed: (Lsn, Instant),
    /// What clients are told that would resume in another history than this one.
    cause: &'static str,
    feed: mpsc::Receiver<Feed>,
    commands: mpsc::UnboundedReceiver<Command>,
    notified: mpsc::Receiver<Vec<Notification>>,
    stats: Arc<Stats>,
    receipts: Receipts,
    ephemerals: Arc<PendingEphemerals>,
    bodies: BodyCache,
    frame_buf: FrameBuf,
    frames: Vec<Bytes>,
    candidates: Vec<GroupId>,
    syncs: Syncs,
    answers: Answers,
    /// Of places in the middle of snapshots; without randomness there are none.
    seal: Option<Seal>,
    wants_reader: bool,
    /// The catalogue has changed since synced channels were looked at.
    is_sight_unsure: bool,
}

impl Stream {
    fn new(parts: Parts, ends: Ends, history: History, notices: Notices) -> Stream {
        let Parts { feed, notified, uplink, catalog, stats, receipts, .. } = parts;
        let syncs = Syncs::new(catalog.clone());
        Stream {
            history,
            coming: None,
            registry: Registry::default(),
            budget: ends.budget,
            channels: Arc::clone(&ends.channels),
            relief: Relief::default(),
            tried: Instant::now(),
            lagging: LaggingSessions::default(),
            notices,
            policy_checks: PolicyChecks::new(catalog.clone(), ends.channels),
            entitlements: Entitlements::new(catalog),
            live: None,
            announce: ends.live,
            stalled: ends.stalled,
            uplink,
            confirmed: (Lsn(0), Instant::now()),
            cause: EPOCH,
            feed,
            commands: ends.commands,
            notified,
            stats,
            receipts,
            ephemerals: ends.ephemerals,
            bodies: BodyCache::default(),
            frame_buf: FrameBuf::default(),
            frames: Vec::new(),
            candidates: Vec::new(),
            syncs,
            answers: Answers::default(),
            seal: Seal::new(),
            wants_reader: false,
            is_sight_unsure: false,
        }
    }

    /// Runs until it is told to stop, or the feed ends.
    pub async fn run(mut self) {
        while self.turn().await {
            self.registry.routes.remake(self.entitlements.answered());
            if self.entitlements.gives_up_waiting() {
                self.lagging.wake_all();
            }
            self.check_sights();
            self.advance_syncs();
            self.serve_lagging();
            let (lagging, stats) = (&mut self.lagging, &self.stats);
            let (registry, entitlements) = (&mut self.registry, &mut self.entitlements);
            self.policy_checks.ask(registry, &self.history, entitlements, lagging, stats);
            self.give_answers();
            // The sessions on this thread write what they were given.
            tokio::task::yield_now().await;
        }
        for session in self.registry.sessions.values() {
            session.queue.close(CloseReason::Shutdown);
        }
    }

    /// Waits for something to do, and does it; false: there is to be no more.
    async fn turn(&mut self) -> bool {
        let has_room = self.make_room();
        if has_room && let Some(batch) = self.coming.take() {
            self.deliver(batch);
            return true;
        }
        self.relieve();
        let hears = self.notices.has_room(&self.registry, &self.stats, Instant::now());
        let has_work = self.lagging.has_work() || self.notices.has_work();
        let is_starved = self.lagging.is_anybody_starved() || self.notices.is_anybody_starved();
        let is_quiet = !self.policy_checks.is_resting() && self.syncs.is_empty();
        let wait = match has_room && hears && !is_starved && is_quiet {
            true => TICK,
            false => SHORT_TICK,
        };
        let wait = self.answers.wait(Instant::now()).map_or(wait, |due| due.min(wait));
        // Whatever is ready has its turn by chance, so that nobody who asks all the time is alone heard.
        tokio::select! {
            command = self.commands.recv() => return self.handle_all(command),
            // Without room in the history the feed waits, and the worker with it.
            next = self.feed.recv(), if has_room => match next {
                Some(next) => self.take(next),
                None => return false,
            },
            Some(said) = self.notified.recv(), if hears => for said in &said {
                self.notices.deliver(said, &self.registry, &self.stats);
            },
            answer = self.policy_checks.answer() => {
                let (lagging, stats) = (&mut self.lagging, &self.stats);
                let (registry, entitlements) = (&mut self.registry, &mut self.entitlements);
                self.policy_checks.settle(answer, registry, entitlements, lagging, stats);
            }
            answer = self.syncs.answer() => self.settle_sync(answer),
            outcome = self.entitlements.outcome() => self.entitlements.learn(outcome),
            () = std::future::ready(()), if has_work => {}
            () = tokio::time::sleep(wait) => self.confirm(),
        }
        true
    }

    /// Tells clients what has become of what they asked to be written.
    fn give_answers(&mut self) {
        let (registry, history, live) = (&self.registry, &self.history, self.live);
        self.answers.give(Progress { registry, history, live, now: Instant::now() });
    }

    /// Where there is no memory for those who hold next to nothing, cuts off who holds the most and does
    /// not read.
    fn relieve(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.tried) >= SHORT_TICK {
            self.tried = now;
            self.lagging.wake_starved();
            self.notices.wake_starved(&self.registry);
        }
        let is_short = self.budget.take_shortage();
        for session in self.relief.find(is_short, &self.registry, now) {
            self.lagging.cut_off(session, CloseReason::Memory, &mut self.registry, &self.stats);
            self.notices.remove(session);
        }
    }

    /// Takes up what sessions ask for; false: to stop.
    fn handle_all(&mut self, first: Option<Command>) -> bool {
        let mut next = first;
        for _ in 0..COMMANDS {
            match next {
                None | Some(Command::Stop) => return false,
                Some(command) => self.handle(command),
            }
            next = match self.commands.try_recv() {
                Ok(command) => Some(command),
                Err(_) => return true,
            };
        }
        match next {
            None | Some(Command::Stop) => false,
            Some(command) => {
                self.handle(command);
                true
            }
        }
    }

    /// Gives those who lag, in events or notifications, some more. Who lags in both has one queue:
    /// while it has room, each makes sure of the other's turn.
    fn serve_lagging(&mut self) {
        if let (true, Some(live)) = (self.lagging.has_work(), self.live) {
            let (history, entitlements) = (&self.history, &mut self.entitlements);
            let (registry, policy_checks) = (&mut self.registry, &mut self.policy_checks);
            let lagging = &mut self.lagging;
            let served =
                catch_up::turn(lagging, registry, history, entitlements, policy_checks, live);
            if let Some(session) = served {
                self.notices.wake(session, &self.registry);
            }
        }
        if let Some(session) = self.notices.turn(&self.registry) {
            self.lagging.wake(session);
        }
    }

    /// Drops what is too old or too much; false: not yet, a fast reader still needs it.
    fn make_room(&mut self) -> bool {
        let now = Instant::now();
        let mut evicted = false;
        let coming = self.coming.as_ref().map_or(0, Batch::size);
        while let Some(end) = self.history.due(coming, now) {
            let full = self.history.is_full(coming);
            let (registry, entitlements) = (&mut self.registry, &self.entitlements);
            if !self.lagging.may_evict(end, full, registry, entitlements, &self.stats, now) {
                return false;
            }
            self.history.evict();
            evicted = true;
        }
        if evicted {
            self.confirm();
        }
        true
    }

    /// The slot may move up to what the history still holds, or to the end of what was decoded.
    fn confirm(&mut self) {
        self.measure();
        let kept = self.history.oldest_commit().unwrap_or(self.history.decoded());
        // An outbox's row that failed is found again only by decoding it, until it says so itself.
        let held = self.receipts.failures().held().filter(|held| self.history.reaches(*held));
        let lsn = held.map_or(kept, |held| held.min(kept));
        let (told, when) = self.confirmed;
        let is_far = lsn.0.saturating_sub(told.0) >= CONFIRM_BYTES;
        if lsn > told && (is_far || when.elapsed() >= CONFIRM_DELAY) {
            self.confirmed = (lsn, Instant::now());
            self.stats.confirmed.set(lsn.0);
            self.uplink.confirm(lsn);
        }
    }

    fn measure(&self) {
        self.stats.history_bytes.set(self.history.bytes() as u64);
        self.stats.history_events.set(self.history.count());
    }

    fn take(&mut self, feed: Feed) {
        match feed {
            Feed::Batch(batch) if self.history.is_full(batch.size()) => self.coming = Some(batch),
            Feed::Batch(batch) => self.deliver(batch),
            Feed::Decoded(lsn) => {
                self.history.decoded_to(lsn);
                self.stats.decoded.set(lsn.0);
                self.confirm();
            }
            Feed::Catalog(change) => {
                self.entitlements.forget(&change, self.history.head());
                self.registry.routes.forget(&change);
                self.is_sight_unsure = true;
            }
            Feed::Forged(count) => self.stats.forged_messages_total.add(count),
            Feed::Reach(reach) => self.history.set_reach(reach),
            Feed::Ping(number) => self.uplink.alive(number),
            Feed::Live { epoch, from, until, next_xid, cause } => {
                self.stats.until.set(until.0);
                let known = [SERVER_FAILED, SKIPPED, WAL_LIMIT].into_iter();
                self.cause = known
                    .into_iter()
                    .find(|known| cause.as_deref() == Some(known))
                    .unwrap_or(EPOCH);
                self.go_live(Live { epoch, from }, next_xid);
            }
            Feed::Stalled { reason } => {
                *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                self.stats.live.set(0);
            }
        }
    }

    /// `next_xid`: all that has committed before is of an older transaction.
    fn go_live(&mut self, live: Live, next_xid: u32) {
        let same = self.live.is_some_and(|before| before.epoch == live.epoch);
        if !same {
            self.history.restart(live.from, next_xid);
            self.confirmed.0 = Lsn(0);
            self.stats.decoded.set(live.from.0);
            // Whoever was here has lost what lies between the two slots.
            if self.live.is_some() {
                self.announce_gap();
            }
        }
        self.live = Some(live);
        *self.stalled.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.stats.live.set(1);
        self.announce.send_replace(Some(live));
    }

    fn announce_gap(&mut self) {
        // What they were told is of the history before: they begin anew.
        for (session, id) in self.registry.synced() {
            self.registry.interrupt(session, id, self.history.head());
        }
        for group in self.registry.groups_mut() {
            let gap = Resync { reason: self.cause, oldest: None, newest: None };
            let frame = resync(group.key.vsn, None, &group.key.topic, gap);
            group.previous = None;
            for member in group.members.iter_mut() {
                (member.lag, member.previous, member.latest) = (None, None, None);
                (member.replays, member.has_gap) = (false, false);
                member.skipped = Skipped::default();
                member.queue.reply(frame.clone());
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Connect { session, queue, peer } => {
                self.registry.sessions.insert(session, Session::new(queue, peer));
            }
            Command::Join { session, subscription, joined } => {
                // First: the session knows of it by the time that the client is told.
                let _ = joined.send(());
                self.join(session, subscription);
            }
            Command::SetIdentity { session, topic, identity } => {
                self.registry.set_identity(session, &topic, identity);
                self.prefetch(session, &topic);
                // It may have waited for an answer about its identity from before.
                self.lagging.wake(session);
            }
            Command::Leave { session, topic, is_over } => {
                if is_over {
                    self.registry.interrupted(session, &topic);
                }
                self.registry.leave(session, &topic);
            }
            Command::Receive { session, topic, vsn, facet, receive } => {
                self.registry.receive(session, &topic, vsn, &facet, receive);
            }
            Command::Ephemeral { message } => {
                self.ephemerals.remove(&message);
                self.deliver_ephemeral(&message);
            }
            Command::Tell { session, frame } => {
                // One that does not read has it told afresh once it does.
                if let Some(entry) = self.registry.sessions.get(&session)
                    && entry.queue.tell(&frame) == Push::Full
                {
                    entry.queue.miss_presence();
                }
            }
            Command::Answer { session, held } => self.answers.hold(session, *held),
            Command::CutOff { session } => {
                self.notices.remove(session);
                let (registry, stats) = (&mut self.registry, &self.stats);
                self.lagging.cut_off(session, CloseReason::Memory, registry, stats);
            }
            Command::Drained { session } => {
                self.lagging.wake(session);
                self.notices.wake(session, &self.registry);
                // Before whatever is said next, which it has room for now.
                self.serve_lagging();
            }
            Command::Forget { session } => {
                self.answers.forget(session);
                self.notices.remove(session);
                self.lagging.remove(session);
                self.registry.forget(session);
            }
            Command::Recent { limit, tables, answer } => {
                let epoch = self.live.map(|live| live.epoch).unwrap_or_default();
                let _ = answer.send(recent::events(&self.history, epoch, limit, tables.as_deref()));
            }
            Command::Connections { answer } => {
                let head = self.history.head();
                let _ = answer.send(recent::connections(&self.registry, &self.lagging, head));
            }
            Command::Roles { answer } => {
                let _ = answer.send(self.registry.roles());
            }
            Command::RefuseRole { role } => self.registry.refuse_role(&role),
            Command::Disconnect { session, answer } => {
                let found = self.registry.sessions.get(&session);
                let _ = answer.send(found.is_some());
                if let Some(found) = found {
                    found.queue.close(CloseReason::Disconnected);
                }
            }
            Command::Stop => {}
        }
    }
}
