//! Client frames: bytes to typed frames, total and in bounded memory.

use serde_json::value::RawValue;

use super::Vsn;
use super::join::JoinPayload;

/// Arrays and objects within each other that a client's message may have: far more than any
/// client sends, and fewer than the parsers of other clients give up at.
pub const MAX_DEPTH: usize = 100;

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
pub fn decode_text(_vsn: Vsn, _text: &str) -> Result<ClientFrame, DecodeError> {
    Err(DecodeError::NotJson)
}

/// Decodes a binary message: kind 3, a client's broadcast; only `vsn` 2 has them.
pub fn decode_binary(_bytes: &[u8]) -> Result<ClientFrame, DecodeError> {
    Err(DecodeError::NotAFrame("binary"))
}
