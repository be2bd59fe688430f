//! What stands around an event's shared bytes: prefix, the bytes, suffix.

use bytes::Bytes;
use tide_feed::event::{Cursor, Operation};
use tide_feed::json;

use super::Vsn;
use super::encode::{Address, Frame};
use super::frame_buf::FrameBuf;
use super::timestamp;

/// The frame of one topic's events, up to the shared part and after it. Worth keeping where many
/// events go to one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    prefix: Box<[u8]>,
    suffix: Box<[u8]>,
}

impl Envelope {
    /// `postgres_changes` for the bindings `ids`, around what [`super::change::change_data`]
    /// writes.
    pub fn changes(vsn: Vsn, topic: &str, ids: &[u32]) -> Envelope {
        let mut frame = Frame::open(vsn, Address::of(topic), "postgres_changes");
        frame.out.extend_from_slice(b"{\"ids\":[");
        for (index, id) in ids.iter().enumerate() {
            if index > 0 {
                frame.out.push(b',');
            }
            json::write_u64(&mut frame.out, u64::from(*id));
        }
        frame.out.extend_from_slice(b"],\"data\":");
        Envelope::new(frame, b"}")
    }

    /// realtime-js 1.x: the operation is the frame's event, the change its payload.
    pub fn legacy(vsn: Vsn, topic: &str, operation: Operation) -> Envelope {
        Envelope::new(Frame::open(vsn, Address::of(topic), operation.name()), b"")
    }

    /// A broadcast named `event` around its payload, an object.
    pub fn broadcast(vsn: Vsn, topic: &str, event: &str) -> Envelope {
        let mut frame = Frame::open(vsn, Address::of(topic), "broadcast");
        frame.out.extend_from_slice(b"{\"type\":\"broadcast\",\"event\":");
        json::write_str(&mut frame.out, event);
        frame.out.extend_from_slice(b",\"payload\":");
        Envelope::new(frame, b"}")
    }

    fn new(frame: Frame, close: &[u8]) -> Envelope {
        let (prefix, end) = frame.into_parts();
        Envelope { prefix: prefix.into(), suffix: [close, &end].concat().into() }
    }

    /// The whole frame.
    pub fn wrap(&self, frame_buf: &mut FrameBuf, data: &[u8]) -> Bytes {
        frame_buf.split(&[&self.prefix, data, &self.suffix])
    }

    /// [`Envelope::wrap`] with `meta` beside the payload: for [`Envelope::broadcast`] only.
    pub fn wrap_with(&self, frame_buf: &mut FrameBuf, payload: &[u8], meta: &Meta<'_>) -> Bytes {
        let mut written = Vec::with_capacity(meta.length());
        meta.write(&mut written);
        let inside = if meta.in_payload { inside(payload) } else { None };
        let Some((members, comma)) = inside else {
            return frame_buf.split(&[&self.prefix, payload, META, &written, &self.suffix]);
        };
        let parts = [
            &self.prefix,
            members,
            comma,
            META_INSIDE,
            &written,
            b"}",
            META,
            &written,
            &self.suffix,
        ];
        frame_buf.split(&parts)
    }
}

/// Beside the payload ...
const META: &[u8] = b",\"meta\":";
/// ... and in it, for clients that pass nothing else on.
pub(super) const META_INSIDE: &[u8] = b"\"_meta\":";

/// An object without the brace that closes it, and what has to be before another member. That is the last
/// one, so that it counts where the object has one of the same name.
fn inside(object: &[u8]) -> Option<(&[u8], &[u8])> {
    let members = object.trim_ascii_end().strip_suffix(b"}")?;
    let is_empty = members.trim_ascii_end().ends_with(b"{");
    Some((members, if is_empty { b"" } else { b"," }))
}

/// `meta` of a broadcast of ours.
#[derive(Clone, Copy, Debug)]
pub struct Meta<'a> {
    /// The event's position: what a client resumes from.
    pub id: Cursor,
    /// The position of the channel's event before this one.
    pub prev: Option<Cursor>,
    /// Of its transaction: microseconds since the Unix epoch.
    pub commit_time: i64,
    /// A JSON list, from [`super::change::unchanged_list`]; empty: none.
    pub unchanged: &'a [u8],
    /// Of a message to a channel.
    pub message: Option<MessageMeta<'a>>,
    pub mutation_id: Option<&'a str>,
    /// The last event of its transaction.
    pub last_in_tx: bool,
    /// It is told in the payload as well.
    pub in_payload: bool,
}

/// What `meta` says of a message besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageMeta<'a> {
    /// Of its row in the outbox, and what else that has. Sent without one: none.
    pub row: Option<RowMeta<'a>>,
    /// The sender's data were no object: they are the payload's `data`.
    pub wrapped: bool,
}

/// A row of an outbox.
#[derive(Clone, Copy, Debug)]
pub struct RowMeta<'a> {
    pub sequence_id: i64,
    pub rejected: bool,
    /// A JSON value; empty: none.
    pub headers: &'a [u8],
}

impl<'a> Meta<'a> {
    /// What every event has: its position and its time.
    pub fn of(id: Cursor, commit_time: i64) -> Meta<'a> {
        Meta {
            id,
            prev: None,
            commit_time,
            unchanged: b"",
            message: None,
            mutation_id: None,
            last_in_tx: false,
            in_payload: false,
        }
    }

    /// How long it gets, mostly; a mutation's id with escapes in it makes the buffer grow.
    fn length(&self) -> usize {
        /// Bytes of a cursor's text.
        const CURSOR: usize = 39;
        const FIXED: usize = r#"{"id":"","prev":"","commit_timestamp":"2025-11-19T00:22:40.877Z","unchanged":,"mutation_id":"","last_in_tx":true}"#.len();
        let message = self.message.map_or(0, |message| message.length());
        FIXED + 2 * CURSOR + self.unchanged.len() + message + self.mutation_id.map_or(0, str::len)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":\"");
        write_cursor(out, &self.id);
        out.push(b'"');
        if let Some(prev) = &self.prev {
            out.extend_from_slice(b",\"prev\":\"");
            write_cursor(out, prev);
            out.push(b'"');
        }
        out.extend_from_slice(b",\"commit_timestamp\":\"");
        timestamp::write(out, self.commit_time);
        out.push(b'"');
        if !self.unchanged.is_empty() {
            out.extend_from_slice(b",\"unchanged\":");
            out.extend_from_slice(self.unchanged);
        }
        if let Some(message) = &self.message {
            message.write(out);
        }
        if let Some(mutation_id) = self.mutation_id {
            out.extend_from_slice(b",\"mutation_id\":");
            json::write_str(out, mutation_id);
        }
        if self.last_in_tx {
            out.extend_from_slice(b",\"last_in_tx\":true");
        }
        out.push(b'}');
    }
}

impl MessageMeta<'_> {
    fn length(&self) -> usize {
        const FIXED: usize =
            r#","sequence_id":"9223372036854775807","rejected":false,"headers":,"wrapped":true"#
                .len();
        FIXED + self.row.map_or(0, |row| row.headers.len())
    }

    fn write(&self, out: &mut Vec<u8>) {
        if let Some(row) = &self.row {
            // As text: JavaScript's numbers do not hold all of a bigint.
            out.extend_from_slice(b",\"sequence_id\":\"");
            out.extend_from_slice(itoa::Buffer::new().format(row.sequence_id).as_bytes());
            out.extend_from_slice(b"\",\"rejected\":");
            out.extend_from_slice(if row.rejected { b"true" } else { b"false" });
            if !row.headers.is_empty() {
                out.extend_from_slice(b",\"headers\":");
                out.extend_from_slice(row.headers);
            }
        }
        if self.wrapped {
            out.extend_from_slice(b",\"wrapped\":true");
        }
    }
}

/// The cursor's text, which [`std::fmt`] takes ten times as long for.
fn write_cursor(out: &mut Vec<u8>, cursor: &Cursor) {
    json::write_hex(out, u64::from(cursor.epoch.generation), 8);
    json::write_hex(out, u64::from(cursor.epoch.timeline), 6);
    out.push(b'.');
    json::write_hex(out, cursor.position.commit.0, 16);
    json::write_hex(out, u64::from(cursor.position.ordinal), 8);
}
