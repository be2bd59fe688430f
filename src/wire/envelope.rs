//! What stands around an event's shared bytes: prefix, the bytes, suffix.

use bytes::Bytes;

use super::Vsn;
use crate::event::{Cursor, Operation};

/// The frame of one topic's events, up to the shared part and after it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    prefix: Bytes,
    suffix: Bytes,
}

impl Envelope {
    /// `postgres_changes` for the bindings `ids`.
    pub fn changes(_vsn: Vsn, _topic: &str, _ids: &[u32]) -> Envelope {
        Envelope { prefix: Bytes::new(), suffix: Bytes::new() }
    }

    /// realtime-js 1.x: the operation is the frame's event, the change its payload.
    pub fn legacy(_vsn: Vsn, _topic: &str, _operation: Operation) -> Envelope {
        Envelope { prefix: Bytes::new(), suffix: Bytes::new() }
    }

    /// The whole frame, in one allocation.
    pub fn wrap(&self, _data: &[u8]) -> Bytes {
        Bytes::new()
    }
}

/// [`Envelope::changes`] at once, around what [`super::change::change_data`] wrote.
pub fn changes_frame(vsn: Vsn, topic: &str, ids: &[u32], data: &[u8]) -> Bytes {
    Envelope::changes(vsn, topic, ids).wrap(data)
}

/// [`Envelope::legacy`] at once, around what [`super::change::change_data`] wrote.
pub fn legacy_frame(vsn: Vsn, topic: &str, operation: Operation, data: &[u8]) -> Bytes {
    Envelope::legacy(vsn, topic, operation).wrap(data)
}

/// `meta` of a broadcast of ours.
#[derive(Clone, Copy, Debug)]
pub struct Meta<'a> {
    /// The event's position: what a client resumes from.
    pub id: Cursor,
    /// The position of the channel's event before this one.
    pub prev: Option<Cursor>,
    /// A JSON list, from [`super::change::unchanged_list`]; empty: none.
    pub unchanged: &'a [u8],
    pub mutation_id: Option<&'a str>,
    /// The last event of its transaction.
    pub last_in_tx: bool,
}

/// A `tide:table:` event: a broadcast named `event` (the operation, or `SNAPSHOT`) around what
/// [`super::change::table_payload`] wrote.
pub fn table_frame(
    _vsn: Vsn,
    _topic: &str,
    _event: &str,
    _payload: &[u8],
    _meta: &Meta<'_>,
) -> Bytes {
    Bytes::new()
}
