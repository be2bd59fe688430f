//! One connection's side of the protocol: client frames in, answers into its queue. No sockets.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tide_feed::catalog::Grant;

use super::channel::{Channel, Channels};
use super::context::ServerContext;
use super::credentials::Credentials;
use super::grant::{Access, Extensions};
use super::identity::{self, Refusal};
use super::join::{self, Joiner, Refused};
use super::limit::TokenBucket;
use super::mutations::{Mutations, Refusals};
use super::pending::Pending;
use super::tracking::{self, PresenceError};
use super::{access, broadcast, credentials};
use crate::allowance::Allowance;
use crate::hub::handle::SessionId;
use crate::hub::queue::Queue;
use crate::hub::subscription::{Facet, Style};
use crate::memory::Kind;
use crate::stats::{RefusedJoin, RefusedPush};
use crate::topic::PREFIX;
use crate::wire::Vsn;
use crate::wire::decode::{
    self, Broadcast, ClientEvent, ClientFrame, DecodeError, Payload, Presence,
};
use crate::wire::encode::{self, Address};
use crate::wire::join::JoinPayload;
use crate::wire::mutation::{MUTATE, Recipient};

/// Messages in a row that are not frames before a client is sent away.
const MALFORMED_LIMIT: u32 = 10;

/// The client does not keep to the protocol, and is to be sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProtocolViolation {
    /// Too many messages that are not frames.
    Text,
    Binary,
    JoinRate,
}

/// What work beside the reading came to.
pub(super) enum Outcome {
    Joined(Channel),
    Refused {
        address: OwnedAddress,
        refused: Refused,
    },
    /// With what the policies grant under the new token, if they were asked.
    Renewed(Result<(Credentials, Option<Access>), Refusal>),
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
    mutations: Mutations,
    joins: TokenBucket,
    broadcasts: TokenBucket,
    presence: TokenBucket,
    /// Memory for the filters of its channels.
    filters: Arc<Allowance>,
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
            mutations: Mutations::new(Arc::clone(&context), session),
            joins: TokenBucket::full(context.config().join_rate, Instant::now()),
            broadcasts: TokenBucket::full(context.config().broadcast_rate, Instant::now()),
            presence: TokenBucket::full(context.config().presence_rate, Instant::now()),
            filters: context.own_filters(),
            malformed: 0,
            changed: false,
            context,
        }
    }

    pub(super) fn text(&mut self, text: &str) -> Result<(), ProtocolViolation> {
        match decode::decode_text(self.vsn, text) {
            Ok(frame) => self.frame(frame),
            Err(error) => self.malformed(&error, ProtocolViolation::Text),
        }
    }

    pub(super) fn binary(&mut self, bytes: &[u8]) -> Result<(), ProtocolViolation> {
        let decoded = match self.vsn {
            Vsn::V1 => Err(DecodeError::NotAFrame("vsn 1.0.0 has no binary frames")),
            Vsn::V2 => decode::decode_binary(bytes),
        };
        match decoded {
            Ok(frame) => self.frame(frame),
            Err(error) => self.malformed(&error, ProtocolViolation::Binary),
        }
    }

    /// The next result of [`Pending`]; to be given to [`Conversation::settle`]. Has mutations done
    /// meanwhile. Cancel safe.
    pub(super) async fn outcome(&mut self) -> (Arc<str>, Outcome) {
        tokio::select! {
            outcome = self.pending.next() => outcome,
            never = self.mutations.run() => match never {},
        }
    }

    /// What has to be ready before the next message is read.
    pub(super) fn refusals(&self) -> Refusals {
        self.mutations.refusals()
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
            Outcome::Renewed(Ok((credentials, access))) => {
                self.renew(&topic, credentials, access);
            }
            // It could not be looked at: the old one goes on for as long as it lasts.
            Outcome::Renewed(Err(Refusal::Unavailable)) => {}
            Outcome::Renewed(Err(refusal)) => self.close_channel(&topic, &refusal.message()),
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
            self.close_channel(&topic, &text);
        }
    }

    fn frame(&mut self, frame: ClientFrame) -> Result<(), ProtocolViolation> {
        self.malformed = 0;
        let ClientFrame { join_ref, ref_, topic, event } = frame;
        let to = Address { join_ref: join_ref.as_deref(), ref_: ref_.as_deref(), topic: &topic };
        match event {
            ClientEvent::Heartbeat => self.reply(encode::ok(self.vsn, to)),
            ClientEvent::Join(payload) => return self.join(to, payload),
            ClientEvent::Leave => self.leave(to),
            event => match self.channels.get(&topic) {
                Some(channel) if channel.is_stale(to.join_ref) => {}
                Some(_) => self.pushed(to, event),
                // Nothing can be pushed to a channel that is not joined yet.
                None => self.reply(encode::error(self.vsn, to, "unmatched topic")),
            },
        }
        Ok(())
    }

    /// A push to a joined channel.
    fn pushed(&mut self, to: Address<'_>, event: ClientEvent) {
        match event {
            ClientEvent::AccessToken(Some(token)) => self.access_token(to, token),
            ClientEvent::AccessToken(None) => {}
            ClientEvent::Broadcast(Broadcast { event, payload }) if event == MUTATE => {
                self.mutate(to, payload);
            }
            ClientEvent::Broadcast(broadcast) => self.broadcast(to, &broadcast),
            ClientEvent::Presence(presence) => self.presence(to, &presence),
            _ => self.reply(encode::error(self.vsn, to, "unknown event")),
        }
    }

    fn broadcast(&mut self, to: Address<'_>, broadcast: &Broadcast) {
        let Some(channel) = self.channels.get(to.topic) else { return };
        if !self.broadcasts.take(self.context.config().broadcast_rate, Instant::now()) {
            self.context.stats.refused_broadcast(RefusedPush::Rate).inc();
            return self.close_channel(to.topic, "Too many messages per second");
        }
        match broadcast::of_client(&self.context.config(), channel, to.topic, broadcast) {
            Ok(broadcast) => {
                let ack = channel.ack;
                let except = (!channel.echo).then_some(self.session);
                if !broadcast.send(&self.context, except) {
                    return self.reply(encode::broadcast_error(self.vsn, to, broadcast::NO_MEMORY));
                }
                // Without `ack` the client counts it as sent and waits for nothing.
                if ack {
                    self.reply(encode::ok(self.vsn, to));
                }
            }
            Err(refused) => {
                self.context.stats.refused_broadcast(refused.count).inc();
                self.reply(encode::broadcast_error(self.vsn, to, &refused.reason));
            }
        }
    }

    /// A mutation is for the database to allow: any channel will do to send it on.
    fn mutate(&mut self, to: Address<'_>, payload: Payload) {
        self.expire(credentials::now());
        let Some(channel) = self.channels.get(to.topic) else { return };
        let recipient = Recipient {
            vsn: self.vsn,
            join_ref: to.join_ref.map(Into::into),
            ref_: to.ref_.map(Into::into),
            topic: to.topic.into(),
            // Without `ack` the client counts it as sent and waits for nothing.
            waits: channel.ack && to.ref_.is_some(),
        };
        self.mutations.ask(channel, recipient, payload);
    }

    fn presence(&mut self, to: Address<'_>, presence: &Presence) {
        let config = self.context.config();
        if !self.presence.take(config.presence_rate, Instant::now()) {
            self.context.stats.refused_presence(RefusedPush::Rate).inc();
            return self.close_channel(to.topic, "Client presence rate limit exceeded");
        }
        let Some(channel) = self.channels.get_mut(to.topic) else { return };
        match tracking::track(channel, to.topic, presence, config.max_presence_size) {
            Ok(()) => self.reply(encode::ok(self.vsn, to)),
            Err(PresenceError::Refused { count, reason }) => {
                self.context.stats.refused_presence(count).inc();
                self.reply(encode::error(self.vsn, to, &reason));
            }
            Err(PresenceError::TooLarge) => {
                self.context.stats.refused_presence(RefusedPush::Size).inc();
                self.close_channel(to.topic, "Track message size exceeded");
            }
        }
    }

    /// The client was not told of all who came and went: tells it who is present, on every channel
    /// that it watches.
    pub(super) fn refresh_presence(&self) {
        for channel in self.channels.iter() {
            if let Some(presence) = &channel.presence
                && channel.watches_presence
                && channel.access.presence().read
            {
                presence.tell(self.session, self.vsn, channel.join_ref.as_deref());
            }
        }
    }

    fn join(
        &mut self,
        to: Address<'_>,
        payload: Box<JoinPayload>,
    ) -> Result<(), ProtocolViolation> {
        if !self.joins.take(self.context.config().join_rate, Instant::now()) {
            let reason = "ClientJoinRateLimitReached: Too many joins per second";
            self.refuse_join(to, RefusedJoin::Rate, reason);
            return Err(ProtocolViolation::JoinRate);
        }
        // The newest join of a topic is the one that counts. The old channel is told so, but for
        // a join that has had no answer yet: there the client has stopped waiting for it.
        self.abandon(to.topic);
        // What it has asked to be written goes on: it is answered on the topic.
        if let Some(old) = self.channels.remove(to.topic) {
            self.reply(encode::phx_close(self.vsn, old.join_ref.as_deref(), to.topic));
            self.context.hub.make_way(self.session, to.topic);
        }
        let limit = self.context.config().max_channels_per_connection;
        if self.channels.len() + self.pending.len() >= limit {
            let reason = "ChannelRateLimitReached: Too many channels";
            self.refuse_join(to, RefusedJoin::Channels, reason);
            return Ok(());
        }
        let mut memory = self.context.share(Kind::Channels);
        if !memory.grow(join::WAITING + payload.memory() + self.credentials.memory()) {
            let Refused { count, reason } = Refused::memory();
            self.refuse_join(to, count, &reason);
            return Ok(());
        }
        let topic: Arc<str> = to.topic.into();
        let joiner = Joiner {
            context: Arc::clone(&self.context),
            session: self.session,
            vsn: self.vsn,
            credentials: self.credentials.clone(),
            filters: Arc::clone(&self.filters),
            memory,
            address: OwnedAddress {
                join_ref: to.join_ref.or(to.ref_).map(Into::into),
                ref_: to.ref_.map(Into::into),
                topic: Arc::clone(&topic),
            },
        };
        self.pending.begin(topic, join::waiting(joiner, payload));
        Ok(())
    }

    fn leave(&mut self, to: Address<'_>) {
        match self.channels.get(to.topic) {
            Some(channel) if channel.is_stale(to.join_ref) => return,
            Some(channel) => {
                let close = encode::phx_close(self.vsn, channel.join_ref.as_deref(), to.topic);
                self.reply(encode::ok(self.vsn, to));
                self.reply(close);
                self.remove(to.topic);
                self.context.hub.leave(self.session, to.topic);
            }
            // Left before it was joined, or twice: it is as the client wants it.
            None => {
                self.reply(encode::ok(self.vsn, to));
                if self.pending.cancel(to.topic) {
                    self.context.hub.leave(self.session, to.topic);
                }
            }
        }
        self.abandon(to.topic);
    }

    fn access_token(&mut self, to: Address<'_>, token: String) {
        let Some(channel) = self.channels.get(to.topic) else { return };
        if !identity::is_token(&token) || channel.credentials.are_of(&token) {
            return;
        }
        let mut memory = self.context.share(Kind::Channels);
        if !memory.grow(join::WAITING + 2 * token.len()) {
            return self.reply(encode::error(self.vsn, to, &Refused::memory().reason));
        }
        let (context, asked) = (Arc::clone(&self.context), channel.access.asked());
        let topic: Arc<str> = to.topic.into();
        let name = Arc::clone(&topic);
        let renewal = async move {
            if !memory.grow(join::JOIN) {
                return Outcome::Renewed(Err(Refusal::Unavailable));
            }
            // It takes memory only from here on, when its turn has come.
            let name = name.strip_prefix(PREFIX);
            Outcome::Renewed(Box::pin(renewal(&context, &token, name, asked)).await)
        };
        self.pending.begin(topic, Box::pin(renewal));
    }

    fn renew(&mut self, topic: &Arc<str>, credentials: Credentials, access: Option<Access>) {
        let Some(channel) = self.channels.get_mut(topic) else { return };
        let others = channel.memory.bytes().saturating_sub(channel.credentials.memory());
        if !channel.memory.resize(others + credentials.memory()) {
            return self.close_channel(topic, &Refused::memory().reason);
        }
        if channel.credentials.identity != credentials.identity {
            let identity = Arc::clone(&credentials.identity);
            self.context.hub.set_identity(self.session, topic, identity);
        }
        channel.credentials = credentials;
        self.changed = true;
        if let Some(access) = access {
            self.regrant(topic, access);
        }
    }

    /// The policies grant a channel something else than they did.
    fn regrant(&mut self, topic: &Arc<str>, access: Access) {
        let Some(channel) = self.channels.get_mut(topic) else { return };
        let before = std::mem::replace(&mut channel.access, access);
        let Some(presence) = &mut channel.presence else { return };
        let receive = |style, before: Grant, now: Grant| {
            if before.read != now.read {
                let facet = Facet::of_topic(style, channel.private)
                    .with_meta_in_payload(channel.meta_in_payload);
                self.context.hub.receive(self.session, topic, self.vsn, facet, now.read);
            }
        };
        receive(Style::Channel, before.broadcast(), access.broadcast());
        if channel.watches_presence {
            receive(Style::Presence, before.presence(), access.presence());
            if access.presence().read && !before.presence().read {
                presence.tell(self.session, self.vsn, channel.join_ref.as_deref());
            }
        }
        if !access.presence().write {
            presence.untrack();
        }
    }

    fn remove(&mut self, topic: &str) -> Option<Channel> {
        self.mutations.forget(topic);
        self.channels.remove(topic)
    }

    /// Ends a channel for a reason that the application is told.
    fn close_channel(&mut self, topic: &str, text: &str) {
        let Some(channel) = self.remove(topic) else { return };
        self.pending.cancel(topic);
        self.context.hub.leave(self.session, topic);
        let join_ref = channel.join_ref.as_deref();
        self.reply(encode::system_error(self.vsn, join_ref, topic, text));
        self.reply(encode::phx_close(self.vsn, join_ref, topic));
    }

    /// Drops a join that is under way; the hub may have heard of it already.
    fn abandon(&mut self, topic: &str) {
        if self.pending.cancel(topic) && self.channels.get(topic).is_none() {
            self.context.hub.make_way(self.session, topic);
        }
    }

    fn malformed(
        &mut self,
        error: &DecodeError,
        violation: ProtocolViolation,
    ) -> Result<(), ProtocolViolation> {
        self.context.stats.malformed_frames_total.inc();
        if let DecodeError::Payload { join_ref, ref_, topic, reason, .. } = error {
            let to = Address { join_ref: join_ref.as_deref(), ref_: ref_.as_deref(), topic };
            self.reply(encode::error(self.vsn, to, reason));
        }
        self.malformed += 1;
        if self.malformed >= MALFORMED_LIMIT { Err(violation) } else { Ok(()) }
    }

    fn refuse_join(&self, to: Address<'_>, count: RefusedJoin, reason: &str) {
        self.context.stats.refused_join(count).inc();
        self.reply(encode::error(self.vsn, to, reason));
    }

    fn reply(&self, frame: Bytes) {
        self.queue.reply(frame);
    }
}

/// Who the client is under its new token, and what the channel's policies grant then.
async fn renewal(
    context: &ServerContext,
    token: &str,
    name: Option<&str>,
    asked: Extensions,
) -> Result<(Credentials, Option<Access>), Refusal> {
    let credentials = identity::of_token(context, token).await?;
    match name {
        Some(name) if !asked.is_empty() => {
            let access = access::to_read(context, &credentials, name, asked).await?;
            Ok((credentials, Some(access)))
        }
        _ => Ok((credentials, None)),
    }
}
