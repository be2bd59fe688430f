//! One connection's side of the protocol: client frames in, answers into its queue. No sockets.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::channel::{Channel, Channels};
use super::context::ServerContext;
use super::identity::{self, Credentials, Refusal};
use super::join::{self, Joiner, Refused};
use super::limit::TokenBucket;
use super::pending::Pending;
use crate::hub::handle::SessionId;
use crate::hub::queue::Queue;
use crate::stats::RefusedJoin;
use crate::wire::Vsn;
use crate::wire::decode::{self, Broadcast, ClientEvent, ClientFrame, DecodeError};
use crate::wire::encode::{self, Address};
use crate::wire::join::JoinPayload;

/// Messages in a row that are not frames before a client is sent away.
const MALFORMED_LIMIT: u32 = 10;

/// The client does not keep to the protocol, and is to be sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breach {
    /// Too many messages that are not frames.
    Text,
    Binary,
    JoinRate,
}

/// What work beside the reading came to.
pub(super) enum Outcome {
    Joined(Channel),
    Refused { address: OwnedAddress, refused: Refused },
    Renewed(Result<Credentials, Refusal>),
}

/// An [`Address`] that outlives its frame.
#[derive(Clone, Debug)]
pub(super) struct OwnedAddress {
    pub(super) join_ref: Option<Box<str>>,
    pub(super) ref_: Option<Box<str>>,
    pub(super) topic: Arc<str>,
}

impl OwnedAddress {
    pub(super) fn borrow(&self) -> Address<'_> {
        Address {
            join_ref: self.join_ref.as_deref(),
            ref_: self.ref_.as_deref(),
            topic: &self.topic,
        }
    }
}

pub(super) struct Conversation {
    context: Arc<ServerContext>,
    session: SessionId,
    queue: Arc<Queue>,
    vsn: Vsn,
    /// Of the handshake; for channels that bring no token.
    credentials: Credentials,
    channels: Channels,
    pending: Pending<Outcome>,
    joins: TokenBucket,
    malformed: u32,
    /// A token came that may expire before all others.
    changed: bool,
}

impl Conversation {
    pub(super) fn new(
        context: Arc<ServerContext>,
        session: SessionId,
        queue: Arc<Queue>,
        vsn: Vsn,
        credentials: Credentials,
    ) -> Conversation {
        Conversation {
            session,
            queue,
            vsn,
            credentials,
            channels: Channels::new(Arc::clone(&context.stats)),
            pending: Pending::new(),
            joins: TokenBucket::full(context.config.join_rate, Instant::now()),
            malformed: 0,
            changed: false,
            context,
        }
    }

    pub(super) fn text(&mut self, text: &str) -> Result<(), Breach> {
        match decode::decode_text(self.vsn, text) {
            Ok(frame) => self.frame(frame),
            Err(error) => self.malformed(&error, Breach::Text),
        }
    }

    pub(super) fn binary(&mut self, bytes: &[u8]) -> Result<(), Breach> {
        let decoded = match self.vsn {
            Vsn::V1 => Err(DecodeError::NotAFrame("vsn 1.0.0 has no binary frames")),
            Vsn::V2 => decode::decode_binary(bytes),
        };
        match decoded {
            Ok(frame) => self.frame(frame),
            Err(error) => self.malformed(&error, Breach::Binary),
        }
    }

    /// The next result of [`Pending`]; to be given to [`Conversation::settle`]. Cancel safe.
    pub(super) async fn outcome(&mut self) -> (Arc<str>, Outcome) {
        self.pending.next().await
    }

    pub(super) fn settle(&mut self, topic: Arc<str>, outcome: Outcome) {
        match outcome {
            Outcome::Joined(channel) => {
                self.context.stats.joins_total.inc();
                self.channels.insert(topic, channel);
                self.changed = true;
            }
            Outcome::Refused { address, refused } => {
                self.context.stats.refused_join(refused.count).inc();
                self.queue.reply(encode::error(self.vsn, address.borrow(), &refused.reason));
            }
            Outcome::Renewed(Ok(credentials)) => self.renew(&topic, credentials),
            // It could not be looked at: the old one goes on for as long as it lasts.
            Outcome::Renewed(Err(Refusal::Unavailable)) => {}
            Outcome::Renewed(Err(refusal)) => self.expel(&topic, &refusal.message()),
        }
    }

    /// Whether [`Conversation::next_expiry`] may be earlier than it was at the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// When [`Conversation::expire`] is to be called, in seconds since the Unix epoch.
    pub(super) fn next_expiry(&self) -> Option<i64> {
        self.channels.next_expiry()
    }

    /// Ends the channels whose tokens have expired.
    pub(super) fn expire(&mut self, now: i64) {
        for topic in self.channels.expired(now) {
            let Some(channel) = self.channels.get(&topic) else { continue };
            let text = channel.credentials.expiry_text(now);
            self.expel(&topic, &text);
        }
    }

    fn frame(&mut self, frame: ClientFrame) -> Result<(), Breach> {
        self.malformed = 0;
        let ClientFrame { join_ref, ref_, topic, event } = frame;
        let to = Address { join_ref: join_ref.as_deref(), ref_: ref_.as_deref(), topic: &topic };
        match event {
            ClientEvent::Heartbeat => self.reply(encode::ok(self.vsn, to)),
            ClientEvent::Join(payload) => return self.join(to, payload),
            ClientEvent::Leave => self.leave(to),
            event => match self.channels.get(&topic) {
                Some(channel) if channel.is_stale(to.join_ref) => {}
                Some(channel) => {
                    let ack = channel.ack;
                    self.pushed(to, event, ack);
                }
                // Nothing can be pushed to a channel that is not joined yet.
                None => self.reply(encode::error(self.vsn, to, "unmatched topic")),
            },
        }
        Ok(())
    }

    /// A push to a joined channel.
    fn pushed(&mut self, to: Address<'_>, event: ClientEvent, ack: bool) {
        match event {
            ClientEvent::AccessToken(Some(token)) => self.access_token(to.topic, token),
            ClientEvent::AccessToken(None) => {}
            // Without `ack` the client counts it as sent and waits for nothing.
            ClientEvent::Broadcast(_) if !ack => {}
            ClientEvent::Broadcast(broadcast) => {
                let reason = broadcast_refusal(to.topic, &broadcast);
                self.reply(encode::broadcast_error(self.vsn, to, reason));
            }
            ClientEvent::Presence(_) => {
                self.reply(encode::error(self.vsn, to, "presence is not supported"));
            }
            _ => self.reply(encode::error(self.vsn, to, "unknown event")),
        }
    }

    fn join(&mut self, to: Address<'_>, payload: Box<JoinPayload>) -> Result<(), Breach> {
        if !self.joins.take(self.context.config.join_rate, Instant::now()) {
            let reason = "ClientJoinRateLimitReached: Too many joins per second";
            self.refuse_join(to, RefusedJoin::Rate, reason);
            return Err(Breach::JoinRate);
        }
        // The newest join of a topic is the one that counts. The old channel is told so, but for
        // a join that has had no answer yet: there the client has stopped waiting for it.
        self.abandon(to.topic);
        if let Some(old) = self.channels.remove(to.topic) {
            self.reply(encode::phx_close(self.vsn, old.join_ref.as_deref(), to.topic));
            self.context.hub.leave(self.session, to.topic);
        }
        let limit = self.context.config.max_channels_per_connection;
        if self.channels.len() + self.pending.len() >= limit {
            let reason = "ChannelRateLimitReached: Too many channels";
            self.refuse_join(to, RefusedJoin::Channels, reason);
            return Ok(());
        }
        let topic: Arc<str> = to.topic.into();
        let joiner = Joiner {
            context: Arc::clone(&self.context),
            session: self.session,
            vsn: self.vsn,
            credentials: self.credentials.clone(),
            address: OwnedAddress {
                join_ref: to.join_ref.or(to.ref_).map(Into::into),
                ref_: to.ref_.map(Into::into),
                topic: Arc::clone(&topic),
            },
        };
        self.pending.begin(topic, Box::pin(join::join(joiner, payload)));
        Ok(())
    }

    fn leave(&mut self, to: Address<'_>) {
        match self.channels.get(to.topic) {
            Some(channel) if channel.is_stale(to.join_ref) => return,
            Some(channel) => {
                let close = encode::phx_close(self.vsn, channel.join_ref.as_deref(), to.topic);
                self.reply(encode::ok(self.vsn, to));
                self.reply(close);
                self.channels.remove(to.topic);
                self.context.hub.leave(self.session, to.topic);
            }
            // Left before it was joined, or twice: it is as the client wants it.
            None => self.reply(encode::ok(self.vsn, to)),
        }
        self.abandon(to.topic);
    }

    fn access_token(&mut self, topic: &str, token: String) {
        let Some(channel) = self.channels.get(topic) else { return };
        if !identity::is_token(&token) || channel.credentials.are_of(&token) {
            return;
        }
        let context = Arc::clone(&self.context);
        let renewal = async move { Outcome::Renewed(identity::of_token(&context, &token).await) };
        self.pending.begin(topic.into(), Box::pin(renewal));
    }

    fn renew(&mut self, topic: &str, credentials: Credentials) {
        let Some(channel) = self.channels.get_mut(topic) else { return };
        if channel.credentials.identity != credentials.identity {
            let identity = Arc::clone(&credentials.identity);
            self.context.hub.set_identity(self.session, topic, identity);
        }
        channel.credentials = credentials;
        self.changed = true;
    }

    /// Ends a channel for a reason that the application is told.
    fn expel(&mut self, topic: &str, text: &str) {
        let Some(channel) = self.channels.remove(topic) else { return };
        self.pending.cancel(topic);
        self.context.hub.leave(self.session, topic);
        let join_ref = channel.join_ref.as_deref();
        self.reply(encode::system_error(self.vsn, join_ref, topic, text));
        self.reply(encode::phx_close(self.vsn, join_ref, topic));
    }

    /// Drops a join that is under way; the hub may have heard of it already.
    fn abandon(&mut self, topic: &str) {
        if self.pending.cancel(topic) && self.channels.get(topic).is_none() {
            self.context.hub.leave(self.session, topic);
        }
    }

    fn malformed(&mut self, error: &DecodeError, breach: Breach) -> Result<(), Breach> {
        self.context.stats.malformed_frames_total.inc();
        if let DecodeError::Payload { join_ref, ref_, topic, reason, .. } = error {
            let to = Address { join_ref: join_ref.as_deref(), ref_: ref_.as_deref(), topic };
            self.reply(encode::error(self.vsn, to, reason));
        }
        self.malformed += 1;
        if self.malformed >= MALFORMED_LIMIT { Err(breach) } else { Ok(()) }
    }

    fn refuse_join(&self, to: Address<'_>, count: RefusedJoin, reason: &str) {
        self.context.stats.refused_join(count).inc();
        self.reply(encode::error(self.vsn, to, reason));
    }

    fn reply(&self, frame: Bytes) {
        self.queue.reply(frame);
    }
}

fn broadcast_refusal(topic: &str, broadcast: &Broadcast) -> &'static str {
    let reserved = topic.strip_prefix("realtime:").is_some_and(|name| name.starts_with("tide:"));
    if reserved && broadcast.event.starts_with("tide:") {
        "this request is not supported"
    } else if reserved {
        "topics that begin with tide: take no broadcasts"
    } else {
        "broadcasts from clients are not supported"
    }
}
