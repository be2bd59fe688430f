//! `POST /api/broadcast`: broadcasts from those who have no websocket.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::http::request::Parts;

use super::broadcast::{self, CheckedBroadcast, Refused};
use super::context::ServerContext;
use super::credentials::Credentials;
use super::grant::{Access, BROADCAST};
use super::post::{self, Denied, Unread};
use super::{access, handshake, identity, route};
use crate::allowance::Share;
use crate::memory::Kind;
use crate::stats::RefusedPush;
use crate::topic::{PREFIX, Topic};
use crate::wire::decode::{Broadcast, Payload};
use crate::wire::rest::{self, Addressed, BodyError};

/// Bytes of an event's name: what a binary frame has room for.
const MAX_EVENT: usize = 255;

impl From<BodyError> for Denied {
    fn from(error: BodyError) -> Denied {
        Denied::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

/// A request that has arrived whole.
pub(super) struct Post<'a> {
    request: Request<'a>,
    content: Content,
    /// The topic and the event, where the path names them.
    addressee: Option<(String, String)>,
    private: bool,
    body: Bytes,
    /// Held until the request has been dealt with.
    _memory: Share,
}

impl<'a> Post<'a> {
    /// Waits for the body of a request that is not refused without it. Asks nothing of the database.
    pub(super) async fn read(
        context: &'a ServerContext,
        parts: &Parts,
        body: Incoming,
    ) -> Result<Post<'a>, Denied> {
        let credentials = post::sender(context, parts)?;
        let content = Content::of(&parts.headers)?;
        let addressee = route::addressee(parts.uri.path()).map(decoded).transpose()?;
        let query = parts.uri.query().unwrap_or_default();
        let private = handshake::parameter(query, "private").as_deref() == Some("true");
        let mut memory = context.share(Kind::Inbound);
        let body = read(context, body, &mut memory).await?;
        let request = Request { context, credentials };
        Ok(Post { request, content, addressee, private, body, _memory: memory })
    }

    /// Does what the request asks for, or says why not.
    pub(super) async fn publish(self) -> Result<(), Denied> {
        let Post { request, content, addressee, private, body, .. } = &self;
        identity::check_role(request.context, request.credentials.role()).await?;
        let Some((name, event)) = addressee else { return request.batch(*content, body).await };
        let broadcast = Broadcast { event: event.clone(), payload: content.payload(body.clone())? };
        request.one(&Addressed { name: name.clone(), private: *private, broadcast }).await
    }
}

fn decoded((name, event): (&str, &str)) -> Result<(String, String), Denied> {
    let decoded = |text| handshake::percent_decoded(text).map(Cow::into_owned);
    decoded(name)
        .zip(decoded(event))
        .ok_or_else(|| Denied::new(StatusCode::UNPROCESSABLE_ENTITY, "the path is malformed"))
}

/// The body, or why it is not dealt with.
async fn read(
    context: &ServerContext,
    body: Incoming,
    memory: &mut Share,
) -> Result<Bytes, Denied> {
    let read = post::read(body, context.config().max_message_size, memory).await;
    read.map_err(|unread| match unread {
        Unread::Memory => {
            context.stats.refused_broadcast(RefusedPush::Memory).inc();
            let reason = "there is no memory for the body, try again";
            Denied::new(StatusCode::SERVICE_UNAVAILABLE, reason)
        }
        Unread::Cut => Denied::new(StatusCode::BAD_REQUEST, "the body did not arrive whole"),
        Unread::TooLarge => Denied::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"),
    })
}

/// What the body is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Json,
    Bytes,
}

impl Content {
    /// Clients that say nothing send JSON.
    fn of(headers: &HeaderMap) -> Result<Content, Denied> {
        let Some(kind) = post::media_type(headers) else { return Ok(Content::Json) };
        if kind.eq_ignore_ascii_case("application/json") {
            Ok(Content::Json)
        } else if kind.eq_ignore_ascii_case("application/octet-stream") {
            Ok(Content::Bytes)
        } else {
            Err(Content::unsupported())
        }
    }

    fn unsupported() -> Denied {
        let reason = "the content type must be application/json, or application/octet-stream \
                      for a single payload";
        Denied::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason)
    }

    fn payload(self, body: Bytes) -> Result<Payload, Denied> {
        match self {
            Content::Json => Ok(rest::payload(&body)?),
            Content::Bytes => Ok(Payload::Binary(body.into())),
        }
    }
}

/// Somebody who may ask.
struct Request<'a> {
    context: &'a ServerContext,
    credentials: Credentials,
}

impl Request<'_> {
    /// All are looked at before any is sent. Those that the client may not send are left out in
    /// silence, as Supabase does: the answer would be about several topics at once.
    async fn batch(&self, content: Content, body: &[u8]) -> Result<(), Denied> {
        if content != Content::Json {
            return Err(Content::unsupported());
        }
        let messages = rest::batch(body)?;
        self.take(messages.len())?;
        for message in &messages {
            self.check(message)?;
        }
        for message in &messages {
            if self.may_send(message).await? {
                self.send(message)?;
            } else {
                self.context.stats.refused_broadcast(RefusedPush::Policy).inc();
            }
        }
        Ok(())
    }

    async fn one(&self, message: &Addressed) -> Result<(), Denied> {
        self.take(1)?;
        self.check(message)?;
        if !self.may_send(message).await? {
            return Err(self.refuse(broadcast::not_permitted(&message.name)));
        }
        self.send(message)
    }

    fn take(&self, count: usize) -> Result<(), Denied> {
        let context = self.context;
        let rate = context.config().http_broadcast_rate;
        if context.http_broadcasts.take(&self.credentials, count, rate) {
            return Ok(());
        }
        Err(self.refuse(Refused::new(RefusedPush::Rate, "Too many messages per second")))
    }

    fn check(&self, message: &Addressed) -> Result<(), Denied> {
        let refuse = |reason: String| self.refuse(Refused::new(RefusedPush::Request, reason));
        Topic::parse(&topic(&message.name)).map_err(|error| refuse(error.to_string()))?;
        if message.broadcast.event.is_empty() || message.broadcast.event.len() > MAX_EVENT {
            return Err(refuse("an event has a name of at most 255 bytes".into()));
        }
        broadcast::check(&self.context.config(), &message.name, &message.broadcast)
            .map_err(|refused| self.refuse(refused))
    }

    async fn may_send(&self, message: &Addressed) -> Result<bool, Denied> {
        let access = if message.private {
            access::granted(self.context, &self.credentials, &message.name, BROADCAST).await?
        } else {
            Access::public(&self.context.config())
        };
        Ok(access.broadcast().write)
    }

    fn send(&self, message: &Addressed) -> Result<(), Denied> {
        let topic = topic(&message.name);
        let checked = CheckedBroadcast::new(&topic, message.private, &message.broadcast);
        if checked.send(self.context, None) {
            return Ok(());
        }
        Err(Denied::new(StatusCode::SERVICE_UNAVAILABLE, broadcast::NO_MEMORY))
    }

    fn refuse(&self, refused: Refused) -> Denied {
        self.context.stats.refused_broadcast(refused.count).inc();
        let status = match refused.count {
            RefusedPush::Policy => StatusCode::FORBIDDEN,
            RefusedPush::Rate => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Denied::new(status, refused.reason)
    }
}

fn topic(name: &str) -> String {
    [PREFIX, name].concat()
}
