//! Notifications on their way to those who listen.
//!
//! They have no position and no history, but a client that keeps reading gets them all, in order,
//! however fast they come: what a full queue has no room for is kept in a ring, once for all
//! clients, and the ring's end waits for fast readers. The queue of a client that has stalled
//! takes no more of them until it has drained (drop-new, counted).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tide_feed::json;
use tide_feed::notification::Notification;

use super::handle::SessionId;
use super::history::Seq;
use super::queue::{Push, Queue};
use super::registry::{Registry, Session};
use super::slow_consumer::{Pace, SlowConsumers};
use super::subscription::Style;
use crate::allowance::Allowance;
use crate::stats::Stats;
use crate::topic;
use crate::wire::Vsn;
use crate::wire::envelope::Envelope;
use crate::wire::frame_buf::FrameBuf;

/// A client that is slow, but not stalled, is waited for: what it loses it cannot get back.
const PACE: Pace = Pace { watch: Duration::from_secs(1), least: 512 << 10 };

/// Notifications looked at per turn, so that one client does not hold up the others.
const TURN: Seq = 2048;

pub(super) struct Notices {
    /// What somebody who lags has still to be given.
    ring: VecDeque<Notice>,
    /// Number of the oldest in the ring.
    first: Seq,
    part: Arc<Allowance>,
    /// Those who are not given each as it comes.
    positions: HashMap<SessionId, ReadPosition>,
    /// Those whose queue has room, so that a turn will get them further.
    ready: Vec<SessionId>,
    /// Those whose queue is empty, but for whom there is no memory at the moment.
    starved: Vec<SessionId>,
    slow: SlowConsumers,
    frame_buf: FrameBuf,
}

/// Where a connection is that does not keep up.
enum ReadPosition {
    /// This one is next.
    Next(Seq),
    /// It did not read when others waited: it is given none until its queue has drained.
    Stalled,
}

/// A notification as frames.
struct Notice {
    topic: Arc<str>,
    v1: Option<NoticeFrame>,
    v2: Option<NoticeFrame>,
}

struct NoticeFrame {
    bytes: Bytes,
    /// Counted once for all queues that it goes to; there may have been no memory for that.
    is_shared: bool,
}

impl NoticeFrame {
    fn new(bytes: Bytes, queue: &Queue) -> NoticeFrame {
        let mut frames = [bytes];
        let is_shared = queue.share(&mut frames);
        let [bytes] = frames;
        NoticeFrame { bytes, is_shared }
    }

    fn push(&self, queue: &Queue) -> Push {
        let frames = std::slice::from_ref(&self.bytes);
        if self.is_shared { queue.push_shared(frames) } else { queue.push(frames) }
    }
}

impl Notice {
    fn size(&self) -> usize {
        let frames = [&self.v1, &self.v2].into_iter().flatten();
        size_of::<Notice>() + frames.map(|frame| frame.bytes.len()).sum::<usize>()
    }

    /// The frame for a connection that is in the topic.
    fn frame(&self, session: &Session, registry: &Registry) -> Option<&NoticeFrame> {
        let mut groups = session.channels.get(&self.topic)?.groups.iter();
        let vsn = groups.find_map(|id| registry.group(*id)).map(|group| group.key.vsn)?;
        match vsn {
            Vsn::V1 => self.v1.as_ref(),
            Vsn::V2 => self.v2.as_ref(),
        }
    }
}

impl Notices {
    /// `part`: the memory for the ring.
    pub(super) fn new(part: Arc<Allowance>) -> Notices {
        Notices {
            ring: VecDeque::new(),
            first: 0,
            part,
            positions: HashMap::new(),
            ready: Vec::new(),
            starved: Vec::new(),
            slow: SlowConsumers::new(PACE),
            frame_buf: FrameBuf::default(),
        }
    }

    /// Gives a notification to everybody in its topic.
    pub(super) fn deliver(&mut self, said: &Notification, registry: &Registry, stats: &Stats) {
        let name = [topic::PREFIX, topic::NOTIFY, &said.channel].concat();
        let mut notice = Notice { topic: Arc::from(&*name), v1: None, v2: None };
        let mut payload = Vec::new();
        let mut needing = 0;
        for group in registry.of_topic(&name).iter().filter_map(|id| registry.group(*id)) {
            if group.key.style != Style::Notify {
                continue;
            }
            if payload.is_empty() {
                write_payload(&mut payload, said);
            }
            let frame = match group.key.vsn {
                Vsn::V1 => &mut notice.v1,
                Vsn::V2 => &mut notice.v2,
            };
            let Some(first) = group.members.first() else { continue };
            let frame = frame.get_or_insert_with(|| {
                let envelope = Envelope::broadcast(group.key.vsn, &name, "notify");
                NoticeFrame::new(envelope.wrap(&mut self.frame_buf, &payload), &first.queue)
            });
            for member in group.members.iter() {
                match self.positions.get(&member.session) {
                    Some(ReadPosition::Next(_)) => needing += 1,
                    Some(ReadPosition::Stalled) => stats.dropped_casts_total.inc(),
                    None => {
                        let pushed = frame.push(&member.queue);
                        if matches!(pushed, Push::Full | Push::Starved) {
                            self.positions.insert(member.session, ReadPosition::Next(self.head()));
                            needing += 1;
                        }
                        if pushed == Push::Starved {
                            self.starved.push(member.session);
                        }
                    }
                }
            }
        }
        if needing == 0 {
            return;
        }
        // There is room for more than the ring is let grow to, but not for any number at once.
        if self.part.take(notice.size()) {
            self.ring.push_back(notice);
        } else {
            stats.dropped_casts_total.add(needing);
        }
    }

    /// Whether more may come. If not, ask again soon: a fast reader needs the oldest of them.
    pub(super) fn has_room(&mut self, registry: &Registry, stats: &Stats, now: Instant) -> bool {
        while self.part.used() > self.part.limit() / 8 * 7 {
            // A good piece at a time: those who stand in it are watched together.
            let end = self.first + (self.ring.len() as Seq / 8).max(1);
            let needs = |(session, position): (&SessionId, &ReadPosition)| match position {
                ReadPosition::Next(next) if *next < end => Some(*session),
                _ => None,
            };
            let needing: Vec<SessionId> = self.positions.iter().filter_map(needs).collect();
            if !needing.is_empty() {
                let Some(slow) = self.slow.among(&needing, registry, now) else { return false };
                for session in &slow {
                    self.stall(*session, registry, stats);
                }
                if slow.len() < needing.len() {
                    return false;
                }
            }
            self.slow.reset();
            self.trim();
        }
        true
    }

    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn is_anybody_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// There may be memory by now.
    pub(super) fn wake_starved(&mut self, registry: &Registry) {
        for session in std::mem::take(&mut self.starved) {
            self.wake(session, registry);
        }
    }

    /// The connection's queue has room (again).
    pub(super) fn wake(&mut self, session: SessionId, registry: &Registry) {
        match self.positions.get(&session) {
            Some(ReadPosition::Next(_)) if !self.ready.contains(&session) => {
                self.ready.push(session)
            }
            Some(ReadPosition::Stalled) => {
                self.positions.remove(&session);
                if let Some(entry) = registry.sessions.get(&session) {
                    entry.queue.resume();
                }
            }
            _ => {}
        }
    }

    pub(super) fn remove(&mut self, session: SessionId) {
        self.positions.remove(&session);
        self.ready.retain(|ready| *ready != session);
        if self.positions.is_empty() {
            self.trim();
        }
    }

    /// Gives one connection its next notifications. Returns it if its queue still has room.
    pub(super) fn turn(&mut self, registry: &Registry) -> Option<SessionId> {
        let session = self.ready.pop()?;
        let Some(ReadPosition::Next(next)) = self.positions.get_mut(&session) else { return None };
        let Some(entry) = registry.sessions.get(&session) else {
            self.remove(session);
            return None;
        };
        entry.queue.resume();
        let head = self.first + self.ring.len() as Seq;
        let end = head.min(*next + TURN);
        while *next < end {
            let index = usize::try_from(*next - self.first).unwrap_or(usize::MAX);
            let frame = self.ring.get(index).and_then(|notice| notice.frame(entry, registry));
            match frame.map(|frame| frame.push(&entry.queue)) {
                Some(Push::Full) => return None,
                Some(Push::Starved) => {
                    self.starved.push(session);
                    return None;
                }
                _ => {}
            }
            *next += 1;
        }
        if *next < head {
            self.ready.insert(0, session);
        } else {
            self.remove(session);
        }
        Some(session)
    }

    /// The number that the next one in the ring will get.
    fn head(&self) -> Seq {
        self.first + self.ring.len() as Seq
    }

    fn stall(&mut self, session: SessionId, registry: &Registry, stats: &Stats) {
        let position = self.positions.insert(session, ReadPosition::Stalled);
        if let (Some(ReadPosition::Next(next)), Some(entry)) =
            (position, registry.sessions.get(&session))
        {
            let given = usize::try_from(next - self.first).unwrap_or(usize::MAX);
            let missed = self.ring.iter().skip(given);
            let missed = missed.filter(|notice| notice.frame(entry, registry).is_some()).count();
            stats.dropped_casts_total.add(missed as u64);
            log::info!("connection {session} reads too slowly: it loses notifications");
        }
    }

    /// Drops what nobody needs any more.
    fn trim(&mut self) {
        let next = |position: &ReadPosition| match position {
            ReadPosition::Next(next) => Some(*next),
            ReadPosition::Stalled => None,
        };
        let needed = self.positions.values().filter_map(next).min().unwrap_or(Seq::MAX);
        while self.first < needed
            && let Some(notice) = self.ring.pop_front()
        {
            self.part.give_back(notice.size());
            self.first += 1;
        }
        if self.ring.is_empty() {
            self.ring.shrink_to(64);
        }
    }
}

/// `{"channel":"jobs","payload":"text","pid":4711}`
fn write_payload(out: &mut Vec<u8>, said: &Notification) {
    out.extend_from_slice(b"{\"channel\":");
    json::write_str(out, &said.channel);
    out.extend_from_slice(b",\"payload\":");
    json::write_str(out, &said.payload);
    out.extend_from_slice(b",\"pid\":");
    out.extend_from_slice(itoa::Buffer::new().format(said.pid).as_bytes());
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::SystemTime;

    use futures_util::FutureExt;

    use super::super::group::{Floor, GroupKey};
    use super::super::handle::Peer;
    use super::super::queue::{Budget, Taken};
    use super::super::registry::Membership;
    use super::*;
    use crate::hub::subscription::Identity;

    const TOPIC: &str = "realtime:tide:notify:jobs";
    /// Bytes of a client's queue: a few notifications.
    const QUEUE: usize = 1_000;
    /// Bytes of the ring: a few hundred.
    const RING: usize = 100_000;

    fn budget(bytes: usize) -> Budget {
        Budget::new(Arc::new(Allowance::new(bytes)))
    }

    struct World {
        notices: Notices,
        registry: Registry,
        stats: Stats,
        now: Instant,
        said: u32,
    }

    impl World {
        fn new() -> World {
            World {
                notices: Notices::new(Arc::new(Allowance::new(RING))),
                registry: Registry::default(),
                stats: Stats::default(),
                now: Instant::now(),
                said: 0,
            }
        }

        fn join(&mut self, session: SessionId, vsn: Vsn) -> Arc<Queue> {
            let queue = Arc::new(Queue::new(QUEUE, Arc::new(budget(usize::MAX))));
            let peer = Peer {
                address: SocketAddr::from(([127, 0, 0, 1], 9)),
                user_agent: None,
                connected_at: SystemTime::UNIX_EPOCH,
            };
            self.registry.sessions.insert(session, Session::new(Arc::clone(&queue), peer));
            let topic: Arc<str> = TOPIC.into();
            let key = GroupKey {
                topic: Arc::clone(&topic),
                vsn,
                style: Style::Notify,
                role: None,
                identity: None,
                private: false,
                bindings: Arc::default(),
                meta_in_payload: false,
                only: None,
            };
            let membership = Membership::new(key, Floor::default(), None);
            let identity = Identity { role: "anon".into(), claims: "{}".into() };
            self.registry.join(session, &topic, identity.into(), vec![membership]);
            queue
        }

        /// The next notification, if the hub would take one.
        fn say(&mut self) -> bool {
            if !self.notices.has_room(&self.registry, &self.stats, self.now) {
                return false;
            }
            let payload = self.said.to_string().into();
            let said = Notification { channel: "jobs".into(), payload, pid: 7 };
            self.notices.deliver(&said, &self.registry, &self.stats);
            self.said += 1;
            true
        }

        /// Reads like a session: up to so many bytes. The numbers it gets.
        fn read(&mut self, session: SessionId, queue: &Queue, bytes: usize) -> Vec<u32> {
            let mut frames = Vec::new();
            if let Some(Taken::Frames { drained: true, .. }) =
                queue.take(&mut frames, bytes).now_or_never()
            {
                self.notices.wake(session, &self.registry);
            }
            while self.notices.has_work() {
                self.notices.turn(&self.registry);
            }
            let number = |frame: &Bytes| {
                let frame: serde_json::Value = serde_json::from_slice(frame).expect("JSON");
                let payload = if frame.is_array() { &frame[4] } else { &frame["payload"] };
                assert_eq!(payload["payload"]["channel"], "jobs");
                payload["payload"]["payload"].as_str().and_then(|n| n.parse().ok()).expect("one")
            };
            frames.iter().map(number).collect()
        }

        fn read_all(&mut self, session: SessionId, queue: &Queue) -> Vec<u32> {
            let mut all = Vec::new();
            loop {
                let some = self.read(session, queue, usize::MAX);
                if some.is_empty() {
                    return all;
                }
                all.extend(some);
            }
        }
    }

    #[test]
    fn a_burst_larger_than_the_queue_reaches_a_client_that_reads_whole_and_in_order() {
        let mut world = World::new();
        let (one, two) = (world.join(1, Vsn::V1), world.join(2, Vsn::V2));
        for _ in 0..200 {
            assert!(world.say());
        }

        let expected: Vec<u32> = (0..200).collect();
        assert_eq!(world.read_all(1, &one), expected);
        assert_eq!(world.read_all(2, &two), expected);
        assert_eq!(world.stats.dropped_casts_total.get(), 0);
        // Nothing is kept for nobody.
        assert!(world.notices.ring.is_empty() && world.notices.part.used() == 0);
    }

    #[test]
    fn a_client_that_has_stalled_loses_them_alone_and_is_waited_for_once() {
        let mut world = World::new();
        let (stalled, reading) = (world.join(1, Vsn::V2), world.join(2, Vsn::V2));
        let (mut got, mut waits) = (Vec::new(), 0);
        while world.said < 5_000 {
            if !world.say() {
                waits += 1;
                world.now += Duration::from_millis(100);
            }
            got.extend(world.read_all(2, &reading));
        }

        assert_eq!(got, (0..5_000).collect::<Vec<_>>());
        assert!((1..=12).contains(&waits), "waited {waits} times");
        let dropped = world.stats.dropped_casts_total.get();
        assert!(dropped > 4_000, "{dropped}");
        assert!(world.notices.part.used() <= RING);
        // Once it reads again it hears what is said from then on.
        let late = world.read_all(1, &stalled);
        assert_eq!(late.len() as u64 + dropped, 5_000);
        assert!(world.say());
        assert_eq!(world.read_all(1, &stalled), [5_000]);
    }

    #[test]
    fn a_client_that_is_gone_holds_nothing_back() {
        let mut world = World::new();
        let _stalled = world.join(1, Vsn::V2);
        for _ in 0..100 {
            assert!(world.say());
        }
        assert!(!world.notices.ring.is_empty());

        world.notices.remove(1);
        world.registry.forget(1);

        assert!(world.notices.ring.is_empty() && world.notices.part.used() == 0);
    }
}
