//! The handle by which sessions and SQL functions talk to the hub.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tide_feed::control::{Connection, RecentEvent};
use tide_feed::event::{Epoch, Lsn};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::allowance::{Allowance, Share};
use crate::hub::answers::{Held, Reply};
use crate::hub::queue::{Budget, Queue};
use crate::hub::subscription::{Facet, Identity, Style, Subscription};
use crate::memory::{Kind, Memory};
use crate::notify::{Lease, NotifyRegistry};
use crate::wire::Vsn;

pub type SessionId = u64;

/// A connection as `tide.stat_connections` shows it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub user_agent: Option<Box<str>>,
    pub connected_at: SystemTime,
}

/// The stream as of its last opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    pub epoch: Epoch,
    pub from: Lsn,
}

/// A message to a topic that is not kept: it has no position, and who misses it has missed it.
#[derive(Clone, Debug)]
pub struct Ephemeral {
    /// As on the wire, `realtime:...`.
    pub topic: Arc<str>,
    /// For those who have joined for this: messages, presence, notifications.
    pub to: Style,
    /// For those only who joined the channel as a private one; else only for the others.
    pub private: bool,
    /// The whole frame, for clients of either version; empty: it cannot be said to them.
    pub v1: Bytes,
    pub v2: Bytes,
    /// Who said it, if it is not to hear it.
    pub except: Option<SessionId>,
}

/// What the hub is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Connect {
        session: SessionId,
        queue: Arc<Queue>,
        peer: Peer,
    },
    Join {
        session: SessionId,
        subscription: Subscription,
        joined: oneshot::Sender<()>,
    },
    SetIdentity {
        session: SessionId,
        topic: Arc<str>,
        identity: Arc<Identity>,
    },
    Leave {
        session: SessionId,
        topic: Arc<str>,
        /// It is not about to be joined again.
        is_over: bool,
    },
    Receive {
        session: SessionId,
        topic: Arc<str>,
        vsn: Vsn,
        facet: Facet,
        receive: bool,
    },
    Ephemeral {
        message: Ephemeral,
    },
    Tell {
        session: SessionId,
        frame: Bytes,
    },
    /// Once the connection has been told of what it did.
    Answer {
        session: SessionId,
        held: Box<Held>,
    },
    /// There was no memory for what it has to be told.
    CutOff {
        session: SessionId,
    },
    Drained {
        session: SessionId,
    },
    Forget {
        session: SessionId,
    },
    Recent {
        limit: usize,
        tables: Option<Vec<u32>>,
        answer: oneshot::Sender<Vec<RecentEvent>>,
    },
    Connections {
        answer: oneshot::Sender<Vec<Connection>>,
    },
    Roles {
        answer: oneshot::Sender<Vec<Arc<str>>>,
    },
    RefuseRole {
        role: Arc<str>,
    },
    Disconnect {
        session: SessionId,
        answer: oneshot::Sender<bool>,
    },
    Stop,
}

/// Talks to the hub. A cheap clone.
#[derive(Clone, Debug)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Not bounded by itself, but by its senders: a session has one join under way at a time, and so
    /// many answers to mutations, ephemeral messages wait for [`Hub::ready`], and every other command
    /// is the end of something that was joined.
    commands: mpsc::UnboundedSender<Command>,
    ephemerals: Arc<PendingEphemerals>,
    live: watch::Receiver<Option<Live>>,
    stalled: Arc<Mutex<Option<String>>>,
    next_session: AtomicU64,
    queue_size: usize,
    memory: Memory,
    budget: Arc<Budget>,
    notify_registry: NotifyRegistry,
}

/// Ephemeral messages that the hub has not dealt with yet.
#[derive(Debug, Default)]
pub(super) struct PendingEphemerals {
    bytes: AtomicUsize,
    dealt_with: Notify,
}

impl PendingEphemerals {
    /// Bytes of ephemeral messages that may wait before those who make more have to.
    const LIMIT: usize = 4 << 20;

    fn add(&self, message: &Ephemeral) {
        self.bytes.fetch_add(message.bytes(), Ordering::Relaxed);
    }

    pub(super) fn remove(&self, message: &Ephemeral) {
        let before = self.bytes.fetch_sub(message.bytes(), Ordering::Relaxed);
        if before > PendingEphemerals::LIMIT && before - message.bytes() <= PendingEphemerals::LIMIT
        {
            self.dealt_with.notify_waiters();
        }
    }

    async fn ready(&self) {
        loop {
            // Registered before the look, so that no notification falls in between.
            let mut dealt_with = pin!(self.dealt_with.notified());
            dealt_with.as_mut().enable();
            if self.bytes.load(Ordering::Relaxed) <= PendingEphemerals::LIMIT {
                return;
            }
            dealt_with.await;
        }
    }
}

impl Ephemeral {
    fn bytes(&self) -> usize {
        size_of::<Command>() + self.v1.len() + self.v2.len()
    }
}

/// The hub's own ends of what the handle holds.
pub(super) struct Ends {
    pub(super) budget: Arc<Budget>,
    pub(super) channels: Arc<Allowance>,
    pub(super) ephemerals: Arc<PendingEphemerals>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) live: watch::Sender<Option<Live>>,
    pub(super) stalled: Arc<Mutex<Option<String>>>,
}

impl Hub {
    pub(super) fn new(
        queue_size: usize,
        memory: Memory,
        notify_registry: NotifyRegistry,
    ) -> (Hub, Ends) {
        let budget = Arc::new(Budget::new(Arc::clone(memory.of(Kind::Queues))));
        let channels = Arc::clone(memory.of(Kind::Channels));
        let (commands, received) = mpsc::unbounded_channel();
        let (live_sender, live) = watch::channel(None);
        let stalled = Arc::new(Mutex::new(None));
        let ephemerals = Arc::<PendingEphemerals>::default();
        let shared = Shared {
            commands,
            ephemerals: Arc::clone(&ephemerals),
            live,
            stalled: Arc::clone(&stalled),
            next_session: AtomicU64::new(1),
            queue_size,
            memory,
            budget: Arc::clone(&budget),
            notify_registry,
        };
        let ends =
            Ends { budget, channels, ephemerals, commands: received, live: live_sender, stalled };
        (Hub { shared: Arc::new(shared) }, ends)
    }

    /// What all memory is counted in.
    pub fn memory(&self) -> &Memory {
        &self.shared.memory
    }

    /// Registers a connection; what is pushed to its queue is to be written to its socket.
    pub fn connect(&self, peer: Peer) -> (SessionId, Arc<Queue>) {
        let session = self.shared.next_session.fetch_add(1, Ordering::Relaxed);
        let queue = Arc::new(Queue::new(self.shared.queue_size, Arc::clone(&self.shared.budget)));
        self.send(Command::Connect { session, queue: Arc::clone(&queue), peer });
        (session, queue)
    }

    /// Adds a channel (or replaces the session's channel of that topic) and queues the greeting
    /// before its first event. Waits until the stream is live.
    pub async fn join(&self, session: SessionId, subscription: Subscription) {
        let mut live = self.shared.live.clone();
        if live.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let (joined, done) = oneshot::channel();
        self.send(Command::Join { session, subscription, joined });
        // The hub only goes away when the worker stops; the session hears of that by its queue.
        let _ = done.await;
    }

    /// The channel's token was renewed with another role or other claims.
    pub fn set_identity(&self, session: SessionId, topic: &str, identity: Arc<Identity>) {
        self.send(Command::SetIdentity { session, topic: topic.into(), identity });
    }

    /// The client has left the channel.
    pub fn leave(&self, session: SessionId, topic: &str) {
        self.send(Command::Leave { session, topic: topic.into(), is_over: true });
    }

    /// The channel is about to be joined once more, and goes on then if it was interrupted.
    pub fn make_way(&self, session: SessionId, topic: &str) {
        self.send(Command::Leave { session, topic: topic.into(), is_over: false });
    }

    /// Has the database listen to a NOTIFY channel for as long as the lease lives. `None`: to too
    /// many already.
    pub fn listen(&self, channel: &str) -> Option<Lease> {
        self.shared.notify_registry.lease(channel)
    }

    /// Gives frames to everybody in a topic. At most once: a client whose queue is full, or that
    /// reads from the history, does not get them (counted as `dropped_casts_total`). In the order
    /// of the calls for any one caller. False: there is no memory for it, and nobody gets it.
    #[must_use]
    pub fn send_ephemeral(&self, mut message: Ephemeral) -> bool {
        // Once for all who are to have it, and for as long as one of them has not.
        let budget = &self.shared.budget;
        let counted = budget.count(message.v1).zip(budget.count(message.v2));
        let has_memory = counted.is_some();
        if !has_memory && message.to != Style::Presence {
            return false;
        }
        // Without its frames a word about presence says that there was one.
        (message.v1, message.v2) = counted.unwrap_or_default();
        self.shared.ephemerals.add(&message);
        self.send(Command::Ephemeral { message });
        has_memory
    }

    /// Waits until the hub keeps up with ephemeral messages: to be called by whoever is about to
    /// take in what may become one. Cancel safe.
    pub async fn ready(&self) {
        self.shared.ephemerals.ready().await;
    }

    /// Gives a frame about who is present to one connection, in its order among the ephemeral
    /// messages. If there is no memory for it, the connection ends.
    pub fn tell(&self, session: SessionId, frame: Bytes) {
        self.send(match self.shared.budget.count(frame) {
            Some(frame) => Command::Tell { session, frame },
            None => Command::CutOff { session },
        });
    }

    /// Gives the answer to a mutation to the connection: after what the mutation did, and those before it.
    /// If there is no memory for it, the connection ends.
    pub fn answer(&self, session: SessionId, reply: Reply) {
        let mut memory = Share::of(self.shared.memory.of(Kind::Queues));
        self.send(match memory.grow(reply.memory()) {
            true => Command::Answer { session, held: Box::new(Held { reply, _memory: memory }) },
            false => Command::CutOff { session },
        });
    }

    /// From now on a joined channel receives this as well, or no more. For facets without bindings.
    pub fn receive(
        &self,
        session: SessionId,
        topic: &Arc<str>,
        vsn: Vsn,
        facet: Facet,
        receive: bool,
    ) {
        let topic = Arc::clone(topic);
        self.send(Command::Receive { session, topic, vsn, facet, receive });
    }

    /// The session's queue has room again ([`super::queue::Taken::Frames`] said `drained`).
    pub fn drained(&self, session: SessionId) {
        self.send(Command::Drained { session });
    }

    /// Forgets the connection and its channels.
    pub fn forget(&self, session: SessionId) {
        self.send(Command::Forget { session });
    }

    /// The stream, if it is live at the moment.
    pub fn live(&self) -> Option<Live> {
        *self.shared.live.borrow()
    }

    /// The stream, and when it becomes another.
    pub fn watch_live(&self) -> watch::Receiver<Option<Live>> {
        self.shared.live.clone()
    }

    /// Why the stream is not live, if that is known.
    pub fn stalled(&self) -> Option<String> {
        self.shared.stalled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest events of these tables (`None`: of all), oldest first.
    pub async fn recent(&self, limit: usize, tables: Option<Vec<u32>>) -> Vec<RecentEvent> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Recent { limit, tables, answer });
        answered.await.unwrap_or_default()
    }

    pub async fn connections(&self) -> Vec<Connection> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Connections { answer });
        answered.await.unwrap_or_default()
    }

    /// Ends a connection; false if there is none of that number.
    pub async fn disconnect(&self, session: SessionId) -> bool {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Disconnect { session, answer });
        answered.await.unwrap_or(false)
    }

    /// The roles of all channels.
    pub async fn roles(&self) -> Vec<Arc<str>> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Roles { answer });
        answered.await.unwrap_or_default()
    }

    /// Closes the connections that have a channel of this role.
    pub fn refuse_role(&self, role: &Arc<str>) {
        self.send(Command::RefuseRole { role: Arc::clone(role) });
    }

    /// Closes every connection and ends the hub.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    fn send(&self, command: Command) {
        // An error means that the hub has stopped, and with it everything it could be asked.
        let _ = self.shared.commands.send(command);
    }
}
