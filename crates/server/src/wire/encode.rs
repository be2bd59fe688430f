//! Server frames other than events. Each function returns the text of one whole frame.

use std::borrow::Cow;

use bytes::Bytes;
use tide_feed::event::{Cursor, Operation};
use tide_feed::json;

use super::Vsn;
use super::decode::ClientFrame;
use super::envelope::META_INSIDE;
use super::join::{ChangeParams, binding_id};
use crate::presence::{Diff, Room};

/// Whom a frame answers: the refs and the topic of the client's own frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address<'a> {
    pub join_ref: Option<&'a str>,
    pub ref_: Option<&'a str>,
    /// With its `realtime:`.
    pub topic: &'a str,
}

impl<'a> Address<'a> {
    /// Nobody's request: what the server sends by itself.
    pub fn of(topic: &'a str) -> Address<'a> {
        Address { topic, ..Address::default() }
    }
}

impl ClientFrame {
    pub fn address(&self) -> Address<'_> {
        Address {
            join_ref: self.join_ref.as_deref(),
            ref_: self.ref_.as_deref(),
            topic: &self.topic,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    Error,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Error => "error",
        }
    }
}

/// A frame with any event and payload. `payload` is JSON, and an object: clients look into it
/// without asking.
pub fn push(vsn: Vsn, to: Address<'_>, event: &str, payload: &[u8]) -> Bytes {
    let mut frame = Frame::open(vsn, to, event);
    frame.out.extend_from_slice(payload);
    frame.close()
}

/// `phx_reply`. `response` is JSON, and an object.
pub fn reply(vsn: Vsn, to: Address<'_>, status: Status, response: &str) -> Bytes {
    let mut frame = Frame::open(vsn, to, "phx_reply");
    let status = status.name();
    for part in ["{\"status\":\"", status, "\",\"response\":", response, "}"] {
        frame.out.extend_from_slice(part.as_bytes());
    }
    frame.close()
}

/// The plain good answer: to a heartbeat, a leave, an acknowledged broadcast, a `track`.
pub fn ok(vsn: Vsn, to: Address<'_>) -> Bytes {
    reply(vsn, to, Status::Ok, "{}")
}

/// The answer to a join, but for where the channel begins.
#[derive(Clone, Debug)]
pub struct Joined {
    vsn: Vsn,
    join_ref: Option<Box<str>>,
    ref_: Option<Box<str>>,
    topic: Box<str>,
    /// The bindings: JSON, an array.
    changes: String,
}

impl Joined {
    /// `position`: for `since`, so that what comes on the channel from now on comes again.
    pub fn at(&self, position: Option<Cursor>) -> Bytes {
        let mut response = format!("{{\"postgres_changes\":{}", self.changes);
        if let Some(position) = position {
            response.push_str(&format!(",\"position\":\"{position}\""));
        }
        response.push('}');
        let (join_ref, ref_) = (self.join_ref.as_deref(), self.ref_.as_deref());
        let to = Address { join_ref, ref_, topic: &self.topic };
        reply(self.vsn, to, Status::Ok, &response)
    }
}

/// The answer to a join: each binding as it was received, with its id, in the client's order.
pub fn joined(vsn: Vsn, to: Address<'_>, bindings: &[ChangeParams]) -> Joined {
    let mut changes = String::from("[");
    for (index, params) in bindings.iter().enumerate() {
        if index > 0 {
            changes.push(',');
        }
        changes.push_str("{\"id\":");
        changes.push_str(itoa::Buffer::new().format(binding_id(params)));
        if !params.raw.is_empty() {
            changes.push(',');
            changes.push_str(&params.raw);
        }
        changes.push('}');
    }
    changes.push(']');
    let [join_ref, ref_] = [to.join_ref, to.ref_].map(|text| text.map(Box::from));
    Joined { vsn, join_ref, ref_, topic: to.topic.into(), changes }
}

/// An error reply: `{"reason": ...}`, for joins (`Code: text`) and everything else but broadcasts.
pub fn error(vsn: Vsn, to: Address<'_>, reason: &str) -> Bytes {
    refusal(vsn, to, "reason", reason)
}

/// The error reply to a broadcast: `{"error": ...}`.
pub fn broadcast_error(vsn: Vsn, to: Address<'_>, error: &str) -> Bytes {
    refusal(vsn, to, "error", error)
}

fn refusal(vsn: Vsn, to: Address<'_>, key: &str, text: &str) -> Bytes {
    let mut frame = Frame::open(vsn, to, "phx_reply");
    frame.out.extend_from_slice(b"{\"status\":\"error\",\"response\":{");
    json::write_key(&mut frame.out, key);
    json::write_str(&mut frame.out, text);
    frame.out.extend_from_slice(b"}}");
    frame.close()
}

/// The server ends the channel; the client does not come back by itself.
pub fn phx_close(vsn: Vsn, join_ref: Option<&str>, topic: &str) -> Bytes {
    push(vsn, Address { join_ref, ref_: join_ref, topic }, "phx_close", b"{}")
}

/// The channel failed; the client joins again.
pub fn phx_error(vsn: Vsn, join_ref: Option<&str>, topic: &str) -> Bytes {
    push(vsn, Address { join_ref, ref_: join_ref, topic }, "phx_error", b"{}")
}

/// Who is there: what a client that asked for presence must get after each join, since it holds
/// everything back until then.
pub fn presence_state(vsn: Vsn, join_ref: Option<&str>, topic: &str, room: &Room) -> Bytes {
    let mut state = Vec::with_capacity(room.bytes() + 2);
    room.write_state(&mut state);
    push(vsn, Address { join_ref, ref_: None, topic }, "presence_state", &state)
}

/// Who came and who went.
pub fn presence_diff(vsn: Vsn, topic: &str, diff: &Diff) -> Bytes {
    let mut payload = Vec::new();
    diff.write(&mut payload);
    push(vsn, Address::of(topic), "presence_diff", &payload)
}

/// A `system` frame in the making.
#[derive(Debug)]
pub struct System<'a> {
    /// `postgres_changes`, `system`, `broadcast`, or one of ours (`tide...`).
    pub extension: &'a str,
    /// `Error` makes Python's client leave the channel's good state: only where that is meant.
    pub status: Status,
    /// Says everything: Python's client passes nothing else on.
    pub message: &'a str,
    /// Further members, texts all of them.
    pub details: &'a [(&'a str, &'a str)],
}

/// `system`: what happened to the channel, for the application to listen to.
pub fn system(vsn: Vsn, join_ref: Option<&str>, topic: &str, system: &System<'_>) -> Bytes {
    let mut frame = Frame::open(vsn, Address { join_ref, ref_: None, topic }, "system");
    let out = &mut frame.out;
    let channel = topic.strip_prefix("realtime:").unwrap_or(topic);
    let members = [
        ("message", system.message),
        ("status", system.status.name()),
        ("extension", system.extension),
        ("channel", channel),
    ];
    for (index, (key, text)) in members.iter().chain(system.details).enumerate() {
        out.push(if index == 0 { b'{' } else { b',' });
        json::write_key(out, key);
        json::write_str(out, text);
    }
    out.push(b'}');
    frame.close()
}

/// The subscriptions of the channel are live.
pub fn subscribed(vsn: Vsn, join_ref: Option<&str>, topic: &str) -> Bytes {
    let message = System {
        extension: "postgres_changes",
        status: Status::Ok,
        message: "Subscribed to PostgreSQL",
        details: &[],
    };
    system(vsn, join_ref, topic, &message)
}

/// The channel's end is near: the text says why (`Token has expired 1 seconds ago`).
pub fn system_error(vsn: Vsn, join_ref: Option<&str>, topic: &str, text: &str) -> Bytes {
    let message =
        System { extension: "system", status: Status::Error, message: text, details: &[] };
    system(vsn, join_ref, topic, &message)
}

/// Events are missing between what the client has seen and what follows: it must read afresh.
#[derive(Clone, Copy, Debug)]
pub struct Resync<'a> {
    /// One word, of those in docs/errors.md.
    pub reason: &'a str,
    /// The oldest and the newest event at hand.
    pub oldest: Option<Cursor>,
    pub newest: Option<Cursor>,
}

pub fn resync(vsn: Vsn, join_ref: Option<&str>, topic: &str, resync: Resync<'_>) -> Bytes {
    let text = |cursor: Option<Cursor>| cursor.map_or("none".to_owned(), |c| c.to_string());
    let (oldest, newest) = (text(resync.oldest), text(resync.newest));
    let message = format!("resync: {}; oldest {oldest} newest {newest}", resync.reason);
    let mut details = vec![("reason", resync.reason)];
    if resync.oldest.is_some() {
        details.push(("oldest", &oldest));
    }
    if resync.newest.is_some() {
        details.push(("newest", &newest));
    }
    let message = System {
        extension: "tide.resync",
        status: Status::Ok,
        message: &message,
        details: &details,
    };
    system(vsn, join_ref, topic, &message)
}

/// The channel has had everything that came after its `since`, or its `last` events; what comes
/// after `position` comes as it happens.
pub fn caught_up(vsn: Vsn, topic: &str, position: Cursor) -> Bytes {
    let position = position.to_string();
    let text = format!("caught up; position {position}");
    let details = [("position", &*position)];
    let (extension, status) = ("tide.caught_up", Status::Ok);
    system(vsn, None, topic, &System { extension, status, message: &text, details: &details })
}

/// A page of the rows that there are.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotPage<'a> {
    /// Its schema and name.
    pub table: (&'a str, &'a str),
    /// A JSON array of objects.
    pub rows: &'a str,
    /// The first of all: what the client has is to be forgotten.
    pub is_fresh: bool,
    /// What the client may say to go on after it.
    pub resume: Option<&'a str>,
}

/// Whom a broadcast of a synced channel is for.
#[derive(Clone, Copy, Debug)]
pub struct Listener<'a> {
    pub vsn: Vsn,
    /// With its `realtime:`.
    pub topic: &'a str,
    /// `meta` is told in the payload as well.
    pub meta_in_payload: bool,
}

impl Listener<'_> {
    /// A broadcast: `write` writes the members of its payload, of which there are some; `meta` is an object.
    fn broadcast(&self, event: &str, meta: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut frame = Frame::open(self.vsn, Address::of(self.topic), "broadcast");
        let out = &mut frame.out;
        out.extend_from_slice(br#"{"type":"broadcast","event":"#);
        json::write_str(out, event);
        out.extend_from_slice(br#","payload":{"#);
        write(out);
        if self.meta_in_payload {
            out.push(b',');
            out.extend_from_slice(META_INSIDE);
            out.extend_from_slice(meta);
        }
        out.extend_from_slice(br#"},"meta":"#);
        out.extend_from_slice(meta);
        out.push(b'}');
        frame.close()
    }
}

/// The frame of a page.
pub fn snapshot(to: Listener<'_>, page: SnapshotPage<'_>) -> Bytes {
    let SnapshotPage { table: (schema, table), rows, is_fresh, resume } = page;
    let mut meta = br#"{"resume":"#.to_vec();
    write_or_null(&mut meta, resume);
    meta.push(b'}');
    to.broadcast("SNAPSHOT", &meta, |out| {
        out.reserve(rows.len());
        out.extend_from_slice(br#""schema":"#);
        json::write_str(out, schema);
        out.extend_from_slice(br#","table":"#);
        json::write_str(out, table);
        if is_fresh {
            out.extend_from_slice(br#","fresh":true"#);
        }
        out.extend_from_slice(br#","rows":"#);
        out.extend_from_slice(rows.as_bytes());
    })
}

fn write_or_null(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => json::write_str(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

/// A row that had to be read: an object, or `null` if it is not in sight any more; `old`: its key. It has
/// no position of its own.
pub fn read_row(
    to: Listener<'_>,
    (schema, table): (&str, &str),
    operation: Operation,
    (row, old): (&str, &str),
) -> Bytes {
    to.broadcast(operation.name(), br#"{"cause":"read","resume":null}"#, |out| {
        out.extend_from_slice(br#""schema":"#);
        json::write_str(out, schema);
        out.extend_from_slice(br#","table":"#);
        json::write_str(out, table);
        out.extend_from_slice(br#","operation":"#);
        json::write_str(out, operation.name());
        out.extend_from_slice(br#","record":"#);
        out.extend_from_slice(row.as_bytes());
        out.extend_from_slice(br#","old_record":"#);
        out.extend_from_slice(old.as_bytes());
    })
}

/// The client has been told of so many rows that there were, and of everything up to this position.
pub fn up_to_date(to: Listener<'_>, rows: u64, position: Cursor, resume: Option<&str>) -> Bytes {
    let mut meta = br#"{"id":"#.to_vec();
    json::write_str(&mut meta, &position.to_string());
    meta.extend_from_slice(br#","resume":"#);
    write_or_null(&mut meta, resume);
    meta.push(b'}');
    to.broadcast("up_to_date", &meta, |out| {
        out.extend_from_slice(br#""rows":"#);
        json::write_u64(out, rows);
    })
}

/// The rows that there are cannot be read; the subscription is over.
pub fn no_snapshot(vsn: Vsn, topic: &str, reason: &str) -> Bytes {
    let text = format!("the rows that there are cannot be read: {reason}");
    let (extension, status) = ("tide.snapshot", Status::Error);
    system(vsn, None, topic, &System { extension, status, message: &text, details: &[] })
}

/// A policy could not be evaluated: changes of the table are missing for this client, which it had
/// better read afresh. Says nothing of the rows, not even how many there are.
pub fn policy_failed(vsn: Vsn, topic: &str, table: (&str, &str), sqlstate: &str) -> Bytes {
    let (schema, name) = table;
    let text = format!(
        "row-level security of {schema}.{name} could not be evaluated: SQLSTATE {sqlstate}; \
         changes are missing until it can"
    );
    let details = [("schema", schema), ("table", name), ("sqlstate", sqlstate)];
    let message =
        System { extension: "tide.policy", status: Status::Ok, message: &text, details: &details };
    system(vsn, None, topic, &message)
}

/// A subscription to rows has ended, since its filters make too much work; the channel goes on.
pub fn too_much_work(vsn: Vsn, topic: &str, extension: &str) -> Bytes {
    let message = System {
        extension,
        status: Status::Error,
        message: "the filters of this subscription make too much work: no more changes are sent",
        details: &[("sqlstate", "54001")],
    };
    system(vsn, None, topic, &message)
}

/// A channel ends, since its table, or what its filters and columns were, is another by now.
pub fn outdated(vsn: Vsn, topic: &str) -> Bytes {
    let message = System {
        extension: "tide.subscription",
        status: Status::Error,
        message: "the table, or a column that this subscription names, has changed: subscribe again",
        details: &[("sqlstate", "55000")],
    };
    system(vsn, None, topic, &message)
}

/// Changes from before the table was altered are left out, since the filter cannot be held against
/// them.
pub fn incomparable(vsn: Vsn, topic: &str, (schema, table): (&str, &str)) -> Bytes {
    let text = format!(
        "changes of {schema}.{table} from before it was altered cannot be compared with the filter"
    );
    let message = System {
        extension: "tide.subscription",
        status: Status::Error,
        message: &text,
        details: &[("schema", schema), ("table", table), ("sqlstate", "55000")],
    };
    system(vsn, None, topic, &message)
}

/// A table was emptied, told to those whose bindings do not name TRUNCATE.
pub fn truncated(vsn: Vsn, topic: &str, schema: &str, table: &str) -> Bytes {
    let text = format!("TRUNCATE of {schema}.{table}: all of its rows are gone");
    let message = System {
        extension: "tide.truncate",
        status: Status::Ok,
        message: &text,
        details: &[("schema", schema), ("table", table)],
    };
    system(vsn, None, topic, &message)
}

/// What could not be turned into an event.
#[derive(Clone, Copy, Debug)]
pub enum Undecoded<'a> {
    /// A change; of which table is not always known.
    Change(Option<(&'a str, &'a str)>),
    Message,
}

impl<'a> From<Option<(&'a str, &'a str)>> for Undecoded<'a> {
    fn from(table: Option<(&'a str, &'a str)>) -> Undecoded<'a> {
        Undecoded::Change(table)
    }
}

/// A change or a message could not be turned into an event. Its status is ok: the channel goes on.
/// `details` are what else is known of it; the text has them all.
pub fn failed(
    vsn: Vsn,
    topic: &str,
    what: Undecoded<'_>,
    sqlstate: &str,
    id: &Cursor,
    details: &[(&str, &str)],
) -> Bytes {
    let position = id.to_string();
    let what_text = match what {
        Undecoded::Change(Some((schema, name))) => format!("a change of {schema}.{name}"),
        Undecoded::Change(None) => "a change".to_owned(),
        Undecoded::Message => "a message".to_owned(),
    };
    let known: String = details.iter().map(|(key, text)| format!("; {key} {text}")).collect();
    let text = format!(
        "{what_text} could not be decoded: SQLSTATE {sqlstate}{known}; position {position}"
    );
    let mut all = vec![("sqlstate", sqlstate), ("position", &*position)];
    if let Undecoded::Change(Some((schema, name))) = what {
        all.extend([("schema", schema), ("table", name)]);
    }
    all.extend_from_slice(details);
    let details = all;
    let message =
        System { extension: "tide.error", status: Status::Ok, message: &text, details: &details };
    system(vsn, None, topic, &message)
}

/// A frame in the making: what comes before its payload, then the payload, then what comes after.
pub(super) struct Frame {
    pub(super) out: Vec<u8>,
    end: Cow<'static, [u8]>,
}

impl Frame {
    pub(super) fn open(vsn: Vsn, to: Address<'_>, event: &str) -> Frame {
        let mut out = Vec::with_capacity(256 + to.topic.len());
        match vsn {
            Vsn::V2 => {
                out.push(b'[');
                write_ref(&mut out, to.join_ref);
                out.push(b',');
                write_ref(&mut out, to.ref_);
                out.push(b',');
                json::write_str(&mut out, to.topic);
                out.push(b',');
                json::write_str(&mut out, event);
                out.push(b',');
                Frame { out, end: Cow::Borrowed(b"]") }
            }
            Vsn::V1 => {
                out.extend_from_slice(b"{\"topic\":");
                json::write_str(&mut out, to.topic);
                out.extend_from_slice(b",\"event\":");
                json::write_str(&mut out, event);
                out.extend_from_slice(b",\"payload\":");
                // Python's client insists on a ref, be it null.
                let mut end = b",\"ref\":".to_vec();
                write_ref(&mut end, to.ref_);
                end.push(b'}');
                Frame { out, end: Cow::Owned(end) }
            }
        }
    }

    /// What comes before the rest of the payload, and what after it.
    pub(super) fn into_parts(self) -> (Vec<u8>, Cow<'static, [u8]>) {
        (self.out, self.end)
    }

    fn close(mut self) -> Bytes {
        self.out.extend_from_slice(&self.end);
        self.out.into()
    }
}

fn write_ref(out: &mut Vec<u8>, ref_: Option<&str>) {
    match ref_ {
        Some(text) => json::write_str(out, text),
        None => out.extend_from_slice(b"null"),
    }
}
