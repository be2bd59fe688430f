//! What all requests with a body have in common: who sends them, and waiting for the body.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::http::request::Parts;

use super::context::ServerContext;
use super::credentials::Credentials;
use super::read_budget::lacks_memory;
use super::{handshake, identity};
use crate::allowance::Share;

/// What a body takes up, as a multiple of its size: it grows in a buffer that has room to spare, and
/// is taken apart.
const COPIES: usize = 3;

/// Why a request is not done.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) status: StatusCode,
    pub(super) reason: String,
}

impl Denied {
    pub(super) fn new(status: StatusCode, reason: impl Into<String>) -> Denied {
        Denied { status, reason: reason.into() }
    }
}

impl From<identity::Refusal> for Denied {
    fn from(refusal: identity::Refusal) -> Denied {
        Denied::new(refusal.status(), refusal.to_string())
    }
}

/// Who sends a request, as far as that can be told without the database.
pub(super) fn sender(context: &ServerContext, parts: &Parts) -> Result<Credentials, Denied> {
    if !handshake::origin_allowed(&parts.headers, &context.config().allowed_origins) {
        return Err(Denied::new(StatusCode::FORBIDDEN, "this origin is not allowed"));
    }
    let query = parts.uri.query().unwrap_or_default();
    let key = handshake::request_key(query, &parts.headers);
    Ok(identity::claimed(context, key.as_deref())?)
}

/// What the body is said to be, without parameters; `None`: nothing is said.
pub(super) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(CONTENT_TYPE)?.to_str().unwrap_or_default();
    Some(value.split(';').next().unwrap_or_default().trim())
}

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    Memory,
    /// It broke off.
    Cut,
    TooLarge,
}

/// The body, counted as it arrives; `most`: bytes of it.
pub(super) async fn read(
    mut body: Incoming,
    most: usize,
    memory: &mut Share,
) -> Result<Bytes, Unread> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match lacks_memory(&error) {
            true => Unread::Memory,
            false => Unread::Cut,
        });
        let Ok(data) = frame?.into_data() else { continue };
        if read.len() + data.len() > most {
            return Err(Unread::TooLarge);
        }
        if !memory.grow(COPIES * data.len()) {
            return Err(Unread::Memory);
        }
        read.extend_from_slice(&data);
    }
    Ok(read.into())
}
