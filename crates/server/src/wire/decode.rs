//! Client frames: bytes to typed frames, total and in bounded memory.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use serde_json::value::RawValue;

use super::Vsn;
use super::join::JoinPayload;
use super::members::{Members, text};

/// Arrays and objects within each other that a client's message may have: far more than any
/// client sends, and fewer than the parsers of other clients give up at.
pub const MAX_DEPTH: usize = 100;

/// Bytes of a ref, which is a counter in every known client; as many as a binary frame can hold.
const MAX_REF: usize = 255;

/// One message from a client.
#[derive(Debug)]
pub struct ClientFrame {
    pub join_ref: Option<String>,
    pub ref_: Option<String>,
    /// As received: `realtime:...`, or `phoenix` for heartbeats.
    pub topic: String,
    pub event: ClientEvent,
}

#[derive(Debug)]
pub enum ClientEvent {
    Join(Box<JoinPayload>),
    Leave,
    Heartbeat,
    /// A new token; `None` if there is none in the payload, which changes nothing.
    AccessToken(Option<String>),
    Broadcast(Broadcast),
    Presence(Presence),
    Other(String),
}

/// A message for the others on the channel, or a request of ours (`tide:...`).
#[derive(Debug)]
pub struct Broadcast {
    pub event: String,
    pub payload: Payload,
}

#[derive(Debug)]
pub enum Payload {
    Json(Box<RawValue>),
    /// Of a v2 binary frame.
    Binary(Vec<u8>),
}

#[derive(Debug)]
pub enum Presence {
    /// `None`: the payload is not an object.
    Track(Option<Box<RawValue>>),
    Untrack,
    Other(String),
}

/// Why a message is not a frame. None of the texts has anything of the client's in it.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the message is not JSON")]
    NotJson,
    #[error("the message is nested too deeply")]
    TooDeep,
    /// JSON or binary, but not a frame: there is nobody to answer.
    #[error("the message is not a frame: {0}")]
    NotAFrame(&'static str),
    /// A frame whose payload is not what its event needs: it can be answered with an error reply.
    #[error("{reason}")]
    Payload {
        join_ref: Option<String>,
        ref_: Option<String>,
        topic: String,
        event: String,
        reason: &'static str,
    },
}

/// Decodes a text message.
pub fn decode_text(vsn: Vsn, message: &str) -> Result<ClientFrame, DecodeError> {
    if is_too_deep(message.as_bytes()) {
        return Err(DecodeError::TooDeep);
    }
    let parsed = match vsn {
        Vsn::V1 => serde_json::from_str::<Object<'_>>(message).map(Parts::from),
        Vsn::V2 => serde_json::from_str::<Array<'_>>(message).map(Parts::from),
    };
    let parts = parsed.map_err(|error| match error.classify() {
        serde_json::error::Category::Data => DecodeError::NotAFrame(match vsn {
            Vsn::V1 => "expected an object with topic, event, payload and ref",
            Vsn::V2 => "expected [join_ref, ref, topic, event, payload]",
        }),
        _ => DecodeError::NotJson,
    })?;
    let payload = parts.payload.map_or("{}", RawValue::get);
    let event = match client_event(&parts.topic, &parts.event, payload) {
        Ok(event) => event,
        Err(reason) => return Err(parts.refused(reason)),
    };
    Ok(ClientFrame { join_ref: parts.join_ref.0, ref_: parts.ref_.0, topic: parts.topic, event })
}

/// Decodes a binary message: kind 3, a client's broadcast; only `vsn` 2 has them.
pub fn decode_binary(message: &[u8]) -> Result<ClientFrame, DecodeError> {
    const CUT: DecodeError = DecodeError::NotAFrame("the binary message is cut short");
    let Some((header, rest)) = message.split_first_chunk::<7>() else { return Err(CUT) };
    let [kind, join_ref, ref_, topic, event, meta, encoding] = *header;
    if kind != 3 {
        return Err(DecodeError::NotAFrame("a binary message must be of kind 3"));
    }
    let mut rest = rest;
    let mut field = |length: u8| -> Result<String, DecodeError> {
        let (bytes, tail) = rest.split_at_checked(usize::from(length)).ok_or(CUT)?;
        rest = tail;
        let text = str::from_utf8(bytes);
        Ok(text.map_err(|_| DecodeError::NotAFrame("the binary message is not UTF-8"))?.to_owned())
    };
    let (join_ref, ref_) = (field(join_ref)?, field(ref_)?);
    let (topic, event) = (field(topic)?, field(event)?);
    // Its keys are for features that pg_tide does not have.
    let _meta = field(meta)?;

    let payload = match encoding {
        0 => Payload::Binary(rest.to_vec()),
        1 => Payload::Json(json_payload(rest)?),
        _ => return Err(DecodeError::NotAFrame("the binary message has an unknown encoding")),
    };
    let ref_of = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(ClientFrame {
        join_ref: ref_of(join_ref),
        ref_: ref_of(ref_),
        topic,
        event: ClientEvent::Broadcast(Broadcast { event, payload }),
    })
}

fn json_payload(bytes: &[u8]) -> Result<Box<RawValue>, DecodeError> {
    if is_too_deep(bytes) {
        return Err(DecodeError::TooDeep);
    }
    if bytes.is_empty() {
        return Ok(owned("{}"));
    }
    serde_json::from_slice::<&RawValue>(bytes)
        .map(ToOwned::to_owned)
        .map_err(|_| DecodeError::NotJson)
}

fn client_event(topic: &str, event: &str, payload: &str) -> Result<ClientEvent, &'static str> {
    const NOT_AN_OBJECT: &str = "the payload must be an object";
    Ok(match event {
        "heartbeat" if topic == "phoenix" => ClientEvent::Heartbeat,
        "phx_leave" => ClientEvent::Leave,
        "phx_join" => {
            let members = Members::of(payload).ok_or(NOT_AN_OBJECT)?;
            ClientEvent::Join(Box::new(JoinPayload::from(&members)))
        }
        "access_token" => {
            let members = Members::of(payload).ok_or(NOT_AN_OBJECT)?;
            ClientEvent::AccessToken(members.get("access_token").and_then(text))
        }
        "broadcast" => {
            let members = Members::of(payload).ok_or(NOT_AN_OBJECT)?;
            let event = members.get("event").and_then(text).ok_or("a broadcast needs an event")?;
            let payload = owned(members.get("payload").unwrap_or("{}"));
            ClientEvent::Broadcast(Broadcast { event, payload: Payload::Json(payload) })
        }
        "presence" => {
            let members = Members::of(payload).ok_or(NOT_AN_OBJECT)?;
            ClientEvent::Presence(presence(&members))
        }
        other => ClientEvent::Other(other.to_owned()),
    })
}

fn presence(members: &Members<'_>) -> Presence {
    let event = members.get("event").and_then(text).unwrap_or_default();
    match event.to_ascii_lowercase().as_str() {
        "track" => {
            let payload = members.get("payload").unwrap_or("{}");
            Presence::Track(payload.starts_with('{').then(|| owned(payload)))
        }
        "untrack" => Presence::Untrack,
        _ => Presence::Other(event),
    }
}

/// `json` comes out of a parsed message, so it is JSON.
fn owned(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Whether arrays and objects are nested deeper than [`MAX_DEPTH`], told without recursion and
/// before any parser sees the message.
pub(super) fn is_too_deep(json: &[u8]) -> bool {
    let mut depth = 0usize;
    let mut rest = json;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => rest = after_string(rest),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}

/// What follows the string that `rest` is the inside of.
fn after_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = memchr::memchr2(b'"', b'\\', rest) {
        let closed = rest.get(at) == Some(&b'"');
        rest = rest.get(at + if closed { 1 } else { 2 }..).unwrap_or_default();
        if closed {
            return rest;
        }
    }
    &[]
}

struct Parts<'a> {
    join_ref: Ref,
    ref_: Ref,
    topic: String,
    event: String,
    payload: Option<&'a RawValue>,
}

impl Parts<'_> {
    fn refused(self, reason: &'static str) -> DecodeError {
        DecodeError::Payload {
            join_ref: self.join_ref.0,
            ref_: self.ref_.0,
            topic: self.topic,
            event: self.event,
            reason,
        }
    }
}

/// `vsn` 2.
type Array<'a> = (Ref, Ref, String, String, Option<&'a RawValue>);

impl<'a> From<Array<'a>> for Parts<'a> {
    fn from((join_ref, ref_, topic, event, payload): Array<'a>) -> Parts<'a> {
        Parts { join_ref, ref_, topic, event, payload }
    }
}

/// `vsn` 1.
#[derive(Deserialize)]
struct Object<'a> {
    topic: String,
    event: String,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(default, rename = "ref")]
    ref_: Ref,
    #[serde(default)]
    join_ref: Ref,
}

impl<'a> From<Object<'a>> for Parts<'a> {
    fn from(frame: Object<'a>) -> Parts<'a> {
        Parts {
            join_ref: frame.join_ref,
            ref_: frame.ref_,
            topic: frame.topic,
            event: frame.event,
            payload: frame.payload,
        }
    }
}

/// A ref: text, or a number in some clients, or none.
#[derive(Default)]
struct Ref(Option<String>);

impl<'de> Deserialize<'de> for Ref {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ref, D::Error> {
        deserializer.deserialize_any(RefVisitor)
    }
}

struct RefVisitor;

impl Visitor<'_> for RefVisitor {
    type Value = Ref;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a ref")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Ref, E> {
        if text.len() > MAX_REF {
            return Err(E::custom("a ref is too long"));
        }
        Ok(Ref(Some(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Ref, E> {
        Ok(Ref(Some(number.to_string())))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Ref, E> {
        Ok(Ref(Some(number.to_string())))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Ref, E> {
        Ok(Ref(Some(number.to_string())))
    }

    fn visit_unit<E>(self) -> Result<Ref, E> {
        Ok(Ref(None))
    }
}

#[cfg(test)]
mod tests;
