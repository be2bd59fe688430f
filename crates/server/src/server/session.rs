//! One websocket: reading, writing, and its several ends.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::context::ServerContext;
use super::conversation::{Conversation, ProtocolViolation};
use super::http::Admission;
use super::mutations::Refusals;
use super::read_budget::Metered;
use super::shutdown::stopped;
use super::writer::{Progress, TLS_BUFFER};
use super::{credentials, writer};
use crate::allowance::{Allowance, Share};
use crate::hub::Hub;
use crate::hub::handle::{Peer, SessionId};
use crate::hub::queue::{CloseReason, Queue, Taken};
use crate::memory::Kind;
use crate::stats::Stats;

/// Read at once, and kept for as long as the connection lives: more than a heartbeat, less than
/// a join with a token, which takes two reads.
const READ_BUFFER: usize = 1 << 10;

/// Bytes of frames that go into one write.
const BATCH: usize = 64 << 10;

/// Frames whose places in the list of a batch are worth keeping.
const KEPT_FRAMES: usize = 16;

/// How long a client usually has to read the reason before its connection is gone.
const LINGER: Duration = Duration::from_secs(1);

/// How long a client has to read the reason when the server stops, which has half a second in all.
const SHORT_LINGER: Duration = Duration::from_millis(100);

/// How long a client that was cut off because it is slow has to read the reason: what was written
/// before comes first.
const SLOW_LINGER: Duration = Duration::from_secs(10);

/// Longest sleep: clocks are set, and tokens expire by them.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// How a connection ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The client closed it, or it broke, or nobody reads at the other end: nothing to say.
    Gone,
    /// The hub ends it.
    Closed(CloseReason),
    /// The client does not keep to the protocol.
    Violation(ProtocolViolation),
    /// It said nothing for `idle_timeout`.
    Idle,
    /// A message over `max_message_size`.
    TooLarge,
    /// Too many large messages are arriving at once, and this is one of them.
    NoMemory,
    /// Not a websocket's frame, or text that is not UTF-8.
    Protocol(CloseCode),
}

/// Serves a websocket until it ends or `stop` says so.
pub(super) async fn run<S>(
    stream: Metered<S>,
    read_ahead: Vec<u8>,
    peer: SocketAddr,
    admission: Admission,
    context: Arc<ServerContext>,
    mut stop: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let Admission { credentials, vsn, user_agent, permit, memory } = admission;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(Some(context.config().max_message_size))
        .max_frame_size(Some(context.config().max_message_size));
    let mut socket =
        WebSocketStream::from_partially_read(stream, read_ahead, Role::Server, Some(config)).await;
    let member = Member::new(&context, peer, user_agent);
    let mut session = Session {
        socket: &mut socket,
        conversation: Conversation::new(
            Arc::clone(&context),
            member.id,
            Arc::clone(&member.queue),
            vsn,
            credentials,
        ),
        member: &member,
        idle: context.config().idle_timeout,
        heard: Instant::now(),
    };
    let end = session.talk(stopped(&mut stop)).await;
    // What the hub still sends is for nobody; the channels are gone from here on.
    drop(session);
    Box::pin(take_leave(&mut socket, &member, end)).await;
    drop((permit, memory));
}

/// The connection as the hub and the statistics know it, for as long as it is there: also when
/// its task ends in a panic or is dropped.
struct Member {
    hub: Hub,
    id: SessionId,
    queue: Arc<Queue>,
    stats: Arc<Stats>,
    /// With TLS, where the memory for its buffer is taken from.
    tls: Option<Arc<Allowance>>,
}

impl Member {
    fn new(context: &ServerContext, address: SocketAddr, user_agent: Option<Box<str>>) -> Member {
        let peer = Peer { address, user_agent, connected_at: SystemTime::now() };
        let (id, queue) = context.hub.connect(peer);
        context.stats.connections.inc();
        context.stats.connections_total.inc();
        let part = context.memory().of(Kind::Queues);
        let tls = context.config().ssl.then(|| Arc::clone(part));
        Member { hub: context.hub.clone(), id, queue, stats: Arc::clone(&context.stats), tls }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.hub.forget(self.id);
        self.stats.connections.dec();
    }
}

/// A batch on its way to the client.
struct Writing<'a> {
    queue: &'a Queue,
    /// What is to be taken for TLS's buffer once the client does not read.
    tls: Option<Share>,
}

impl Progress for Writing<'_> {
    fn wrote(&mut self, bytes: usize) {
        self.queue.wrote(bytes);
    }

    fn stalls(&mut self) -> bool {
        self.tls.as_mut().is_none_or(|share| share.resize(TLS_BUFFER))
    }
}

struct Session<'a, S> {
    socket: &'a mut WebSocketStream<Metered<S>>,
    conversation: Conversation,
    member: &'a Member,
    idle: Duration,
    /// When the client last sent anything.
    heard: Instant,
}

impl<S> Session<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    async fn talk(&mut self, stopping: impl Future<Output = ()>) -> End {
        let mut stopping = pin!(stopping);
        let mut timer = pin!(sleep_until(self.deadline()));
        let mut frames = Vec::new();
        let mut held = None;
        let refusals = self.conversation.refusals();
        loop {
            // In no fixed order: neither a busy hub nor a busy client keeps the other side from
            // being heard.
            let step = tokio::select! {
                () = &mut stopping => Err(End::Closed(CloseReason::Shutdown)),
                taken = self.member.queue.take(&mut frames, BATCH) => match taken {
                    Taken::Frames { drained, missed_presence } => {
                        let written = self.write(&frames, stopping.as_mut()).await;
                        give_back(&mut frames);
                        if drained {
                            self.member.hub.drained(self.member.id);
                        }
                        if missed_presence {
                            self.conversation.refresh_presence();
                        }
                        written
                    }
                    Taken::Closed(reason) => Err(End::Closed(reason)),
                },
                message = heard(&self.member.hub, &refusals, self.socket, &mut held) => {
                    self.received(message, &mut held)
                }
                (topic, outcome) = self.conversation.outcome() => {
                    self.conversation.settle(topic, outcome);
                    Ok(())
                }
                () = &mut timer => {
                    let checked = self.check_clock();
                    timer.as_mut().reset(self.deadline());
                    checked
                }
            };
            if let Err(end) = step {
                return end;
            }
            // A later deadline is noticed when the timer rings; an earlier one comes with a token.
            if self.conversation.take_changed() {
                let deadline = self.deadline().min(timer.deadline());
                timer.as_mut().reset(deadline);
            }
        }
    }

    /// Writes a batch whole. A client that does not read holds up nobody but itself: it is left
    /// alone until the server stops, the hub gives it up and it does not take the rest for a while, or
    /// nothing moved for `idle_timeout`.
    async fn write(
        &mut self,
        frames: &[Bytes],
        stopping: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), End> {
        let began = Instant::now();
        let expiry = self.conversation.next_expiry().map(|expiry| {
            let left = expiry.saturating_sub(credentials::now());
            began + Duration::from_secs(u64::try_from(left).unwrap_or(0))
        });
        let queue = &self.member.queue;
        let mut progress = Writing { queue, tls: self.member.tls.as_ref().map(Share::of) };
        let mut writing = pin!(writer::write(self.socket, frames, &mut progress));
        let mut stopping = stopping;
        let written = tokio::select! {
            biased;
            written = &mut writing => written,
            () = &mut stopping => return Err(End::Gone),
            // What has been begun has to end before the reason can be said.
            reason = queue.closed() => tokio::select! {
                written = &mut writing => match written {
                    Ok(_) => return Err(End::Closed(reason)),
                    Err(_) => return Err(End::Gone),
                },
                () = &mut stopping => return Err(End::Gone),
                () = sleep(linger(reason)) => return Err(End::Gone),
            },
            () = standstill(queue, self.idle, expiry) => return Err(End::Gone),
        };
        let bytes = written.map_err(|_| End::Gone)?;
        self.member.stats.frames_sent_total.add(frames.len() as u64);
        self.member.stats.bytes_sent_total.add(bytes);
        // While that took its time nothing was read, so the client's silence is none.
        if began.elapsed() > Duration::from_secs(1) {
            self.heard = Instant::now();
        }
        Ok(())
    }

    fn received(
        &mut self,
        message: Option<Result<Message, SocketError>>,
        held: &mut Option<Bytes>,
    ) -> Result<(), End> {
        self.heard = Instant::now();
        // A channel whose join reply is out is joined, also for a frame that is on its heels.
        while let Some((topic, outcome)) = self.conversation.outcome().now_or_never() {
            self.conversation.settle(topic, outcome);
        }
        let handled = match message {
            Some(Ok(Message::Text(text))) => {
                let handled = self.conversation.text(&text);
                *held = Some(text.into());
                handled
            }
            Some(Ok(Message::Binary(bytes))) => {
                let handled = self.conversation.binary(&bytes);
                *held = Some(bytes);
                handled
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(()),
            Some(Ok(Message::Close(_))) | None => return Err(End::Gone),
            Some(Err(error)) => return Err(End::of(&error)),
        };
        handled.map_err(End::Violation)
    }

    fn check_clock(&mut self) -> Result<(), End> {
        self.conversation.expire(credentials::now());
        if self.heard.elapsed() >= self.idle { Err(End::Idle) } else { Ok(()) }
    }

    /// When the clock has to be looked at again.
    fn deadline(&self) -> Instant {
        let idle = self.heard + self.idle;
        let Some(expiry) = self.conversation.next_expiry() else { return idle };
        let left = Duration::from_secs(
            u64::try_from(expiry.saturating_sub(credentials::now())).unwrap_or(0),
        );
        idle.min(Instant::now() + left.min(LONGEST_SLEEP))
    }
}

impl End {
    fn of(error: &SocketError) -> End {
        match error {
            SocketError::Capacity(CapacityError::MessageTooLong { .. }) => End::TooLarge,
            SocketError::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => End::NoMemory,
            SocketError::Utf8(_) => End::Protocol(CloseCode::Invalid),
            SocketError::Protocol(_) => End::Protocol(CloseCode::Protocol),
            _ => End::Gone,
        }
    }

    /// What the client is told, in the websocket's own way.
    fn farewell(&self) -> Option<(CloseCode, &'static str)> {
        Some(match self {
            End::Gone => return None,
            End::Closed(CloseReason::Slow) => {
                (CloseCode::Again, "too slow: this client read slower than events came")
            }
            End::Closed(CloseReason::Memory) => (
                CloseCode::Again,
                "too slow: memory is short, and much of it was held for this client",
            ),
            End::Closed(CloseReason::Shutdown) => (CloseCode::Restart, "the server stops"),
            End::Closed(CloseReason::Disconnected) => {
                (CloseCode::Policy, "disconnected by an administrator")
            }
            End::Closed(CloseReason::Role) => {
                (CloseCode::Policy, "the role may not be used by clients any more")
            }
            End::Violation(ProtocolViolation::Text) => {
                (CloseCode::Invalid, "too many malformed messages")
            }
            End::Violation(ProtocolViolation::Binary) => {
                (CloseCode::Unsupported, "too many malformed messages")
            }
            End::Violation(ProtocolViolation::JoinRate) => {
                (CloseCode::Policy, "ClientJoinRateLimitReached: Too many joins per second")
            }
            End::Idle => (CloseCode::Normal, "idle: no heartbeat came"),
            End::TooLarge => (CloseCode::Size, "message too large"),
            End::NoMemory => (CloseCode::Again, "too many large messages at once, try again"),
            End::Protocol(code) => (*code, "not the websocket protocol"),
        })
    }
}

/// The next message, once the hub has dealt with enough of what clients said before.
async fn heard<S>(
    hub: &Hub,
    refusals: &Refusals,
    socket: &mut WebSocketStream<Metered<S>>,
    held: &mut Option<Bytes>,
) -> Option<Result<Message, SocketError>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    hub.ready().await;
    refusals.ready().await;
    next(socket, held).await
}

/// The next message. Lets go of the last one only once reading has begun again: the library then
/// takes a fresh, small buffer, in the place of keeping a large message's for good.
async fn next<S>(
    socket: &mut WebSocketStream<Metered<S>>,
    held: &mut Option<Bytes>,
) -> Option<Result<Message, SocketError>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    std::future::poll_fn(|cx| {
        if held.is_some() {
            socket.get_mut().message_complete();
        }
        let polled = Pin::new(&mut *socket).poll_next(cx);
        *held = None;
        polled
    })
    .await
}

/// Empties the list of a batch, and its memory if the batch was a large one.
fn give_back(frames: &mut Vec<Bytes>) {
    if frames.capacity() > KEPT_FRAMES {
        *frames = Vec::new();
    } else {
        frames.clear();
    }
}

/// Waits until nothing at all has been written for that long; and no longer once a token has expired,
/// which is not looked at while something is being written.
async fn standstill(queue: &Queue, idle: Duration, expiry: Option<Instant>) {
    let mut before = None;
    while before != Some(queue.sent_bytes()) {
        before = Some(queue.sent_bytes());
        sleep(idle).await;
        if expiry.is_some_and(|expiry| expiry <= Instant::now()) {
            return;
        }
    }
}

fn linger(reason: CloseReason) -> Duration {
    match reason {
        CloseReason::Shutdown => SHORT_LINGER,
        CloseReason::Slow => SLOW_LINGER,
        // Others need what is held for it.
        CloseReason::Memory | CloseReason::Disconnected | CloseReason::Role => LINGER,
    }
}

/// Says why, and gives the client a moment to read it: a socket closed with unread data in it
/// takes back what was written.
async fn take_leave<S>(socket: &mut WebSocketStream<S>, member: &Member, end: End)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let linger = match end {
        End::Closed(reason) => linger(reason),
        _ => LINGER,
    };
    let leave = async {
        if let Some((code, reason)) = end.farewell() {
            // The error reply that goes with a violation, if there is one.
            let mut frames = Vec::new();
            if let End::Violation(_) = end
                && let Some(Taken::Frames { .. }) =
                    member.queue.take(&mut frames, BATCH).now_or_never()
            {
                let mut progress = Writing { queue: &member.queue, tls: None };
                writer::write(socket, &frames, &mut progress).await?;
            }
            let close = CloseFrame { code, reason: reason.into() };
            socket.send(Message::Close(Some(close))).await?;
        } else {
            // The answer to the client's own close.
            socket.flush().await?;
        }
        let stream = socket.get_mut();
        stream.shutdown().await?;
        let mut scrap = [0; 512];
        while stream.read(&mut scrap).await? > 0 {}
        Ok::<_, SocketError>(())
    };
    // However it ends, the connection is dropped now.
    let _ = timeout(linger, leave).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::queue::Budget;

    #[test]
    fn every_end_but_the_clients_own_is_explained() {
        let ends = [
            End::Closed(CloseReason::Slow),
            End::Closed(CloseReason::Shutdown),
            End::Closed(CloseReason::Disconnected),
            End::Closed(CloseReason::Role),
            End::Violation(ProtocolViolation::Text),
            End::Violation(ProtocolViolation::Binary),
            End::Violation(ProtocolViolation::JoinRate),
            End::Idle,
            End::TooLarge,
            End::NoMemory,
            End::Protocol(CloseCode::Protocol),
        ];

        for end in ends {
            let (code, reason) = end.farewell().unwrap();
            assert!(code.is_allowed(), "{end:?}");
            // The limit of a close frame, less its code.
            assert!(!reason.is_empty() && reason.len() <= 123);
        }
        assert_eq!(u16::from(End::Closed(CloseReason::Slow).farewell().unwrap().0), 1013);
        assert_eq!(u16::from(End::Closed(CloseReason::Shutdown).farewell().unwrap().0), 1012);
        assert_eq!(u16::from(End::Closed(CloseReason::Disconnected).farewell().unwrap().0), 1008);
        assert_eq!(End::Gone.farewell(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_little_at_a_time_is_not_at_a_standstill() {
        const IDLE: Duration = Duration::from_secs(5);
        let budget = Arc::new(Budget::new(Arc::new(Allowance::new(1 << 20))));
        let queue = Queue::new(1 << 20, budget);
        queue.push(&[Bytes::from_static(&[b'x'; 100])]);
        let mut frames = Vec::new();
        queue.take(&mut frames, 1 << 10).await;
        let begun = Instant::now();

        let slowly = async {
            for _ in 0..10 {
                sleep(IDLE * 4 / 5).await;
                queue.wrote(1);
            }
            std::future::pending().await
        };
        tokio::select! {
            () = standstill(&queue, IDLE, None) => {}
            () = slowly => {}
        }

        let waited = begun.elapsed();
        assert!(waited > IDLE * 8 && waited <= IDLE * 10, "{waited:?}");
    }
}
