//! What SQL functions ask the server, and its answers: JSON frames on the socket in the data
//! directory.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::catalog::MAX_FRAME;
use crate::few;

/// Bytes of an answer that is about one thing.
const SMALL: usize = 1 << 20;

/// Bytes of the reason why there is no answer, as it is written in JSON.
const LONGEST_REASON: usize = 16 << 10;

/// Events that one answer may have, however many are asked for.
pub const MOST_EVENTS: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ControlRequest {
    /// The newest `limit` events of the tables with these oids (`None`: of all), oldest first.
    Recent {
        limit: u32,
        tables: Option<Vec<u32>>,
    },
    Status,
    /// Who is connected and what they have joined.
    Connections,
    Disconnect {
        id: u64,
    },
    /// How the policies of a table are evaluated for a role.
    Explain {
        role: String,
        table: u32,
    },
    /// The secrets or keys changed: read them again. Answered by `null`.
    Reload,
    /// A table was made an outbox: take it over. Answered by `null`.
    Outboxes,
    /// Fail in this way. Obeyed under the hidden setting `tide.debug_faults` only, for tests.
    Fault {
        fault: Fault,
    },
}

impl ControlRequest {
    /// Bytes of a frame that answers it: whoever asked has one process to lose, and it is Postgres's.
    pub fn largest_answer(&self) -> usize {
        match self {
            ControlRequest::Recent { .. } | ControlRequest::Connections => MAX_FRAME,
            ControlRequest::Status
            | ControlRequest::Disconnect { .. }
            | ControlRequest::Explain { .. }
            | ControlRequest::Reload
            | ControlRequest::Outboxes
            | ControlRequest::Fault { .. } => SMALL,
        }
    }
}

/// Why a frame has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    #[error("the worker's answer could not be understood")]
    Garbled,
    #[error("{0}")]
    Refused(String),
}

/// The JSON in a frame that answers a [`ControlRequest`], where it lies: nothing is made of it here,
/// since a few bytes of JSON can be made to take much memory.
///
/// # Errors
/// There is none in it, but a reason, or nothing that would be understood.
pub fn answer(frame: &[u8]) -> Result<&str, NoAnswer> {
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Reply<'a> {
        #[serde(borrow)]
        Ok(&'a RawValue),
        #[serde(borrow)]
        Error(Reason<'a>),
    }
    #[derive(Deserialize)]
    struct Reason<'a> {
        #[serde(borrow)]
        message: &'a RawValue,
    }
    match serde_json::from_slice(frame).map_err(|_| NoAnswer::Garbled)? {
        Reply::Ok(json) => Ok(json.get()),
        Reply::Error(Reason { message }) if message.get().len() <= LONGEST_REASON => {
            let message = serde_json::from_str::<Cow<'_, str>>(message.get());
            Err(message.map_or(NoAnswer::Garbled, |text| NoAnswer::Refused(text.into_owned())))
        }
        Reply::Error(_) => Err(NoAnswer::Garbled),
    }
}

/// A way to fail that nothing can be done against from within.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    Abort,
    StackOverflow,
    OutOfMemory,
    /// Lives, but does not let the slot move any more.
    Cling,
    /// Lives, and has much to say in the log.
    Chatter,
}

/// Answer to [`ControlRequest::Recent`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Recent {
    /// Oldest first.
    #[serde(deserialize_with = "few::at_most::<MOST_EVENTS, _, _>")]
    pub events: Vec<RecentEvent>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct RecentEvent {
    /// The [`crate::event::Cursor`], as clients see it in `meta.id`.
    pub id: String,
    /// Microseconds since the Unix epoch.
    pub commit_time: i64,
    pub schema: String,
    pub table: String,
    /// INSERT, UPDATE, DELETE, TRUNCATE; ERROR for a change that could not be decoded.
    pub operation: String,
    #[serde(default)]
    pub record: Option<Box<RawValue>>,
    #[serde(default)]
    pub old_record: Option<Box<RawValue>>,
}

/// Answer to [`ControlRequest::Status`]. LSNs are numbers; 0 where there is none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the server.
    pub server_pid: u32,
    /// What keeps the server to itself, whoever has taken hold of it: `landlock`, `seccomp`.
    #[serde(default)]
    pub confined_by: Vec<String>,
    pub state: State,
    /// Why it is not live.
    #[serde(default)]
    pub reason: Option<String>,
    /// The stream's, while or since it was live.
    #[serde(default)]
    pub epoch: Option<String>,
    /// Everything that committed before this address has been handed to subscribers.
    pub decoded_lsn: u64,
    /// The slot may move up to here: older events are out of the history.
    pub confirmed_lsn: u64,
    /// Events in the history, and their bytes.
    pub history_events: u64,
    pub history_bytes: u64,
    pub connections: u64,
    pub channels: u64,
    /// Messages in the WAL that were not ours, since the worker started.
    #[serde(default)]
    pub forged_messages: u64,
    /// Rows that outboxes keep because they could not be published.
    #[serde(default)]
    pub failed_messages: Vec<FailedMessages>,
    /// Base URL of the listener, if there is one.
    #[serde(default)]
    pub url: Option<String>,
    /// Why there is none, or not everywhere.
    #[serde(default)]
    pub listener_error: Option<String>,
    /// How many clients can be connected: `tide.max_connections`, or as many as the process may
    /// have open files for.
    #[serde(default)]
    pub connection_limit: u64,
    /// The catalog worker is connected.
    pub catalog_worker: bool,
    /// How many executors are.
    pub executors: u32,
}

/// Of one outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedMessages {
    /// Its oid.
    pub table: u32,
    pub count: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The slot is being made or opened.
    #[default]
    Starting,
    Live,
    Stalled,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Live => "live",
            State::Stalled => "stalled",
        }
    }
}

/// Answer to [`ControlRequest::Connections`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    pub connections: Vec<Connection>,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub id: u64,
    /// Address and port.
    pub address: String,
    #[serde(default)]
    pub user_agent: Option<String>,
    /// Microseconds since the Unix epoch.
    pub connected_at: i64,
    pub sent_frames: u64,
    pub sent_bytes: u64,
    pub queued_frames: u64,
    pub queued_bytes: u64,
    /// Its queue was full; it is served from the history.
    pub lagging: bool,
    /// How many events of the history it has still to be served.
    pub lag: u64,
    pub channels: Vec<ConnectedChannel>,
}

/// What a client has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectedChannel {
    pub topic: String,
    pub role: String,
    /// The claim `sub` of its token.
    #[serde(default)]
    pub subject: Option<String>,
    pub private: bool,
    /// Microseconds since the Unix epoch.
    pub joined_at: i64,
    /// How many things it is subscribed to.
    pub bindings: u32,
    /// How many events of the history it has still to be served.
    pub lag: u64,
    /// How many rows it has been told of so far, of those that it begins with. `None`: of all, or it does
    /// not begin with rows.
    #[serde(default)]
    pub snapshot_rows: Option<u64>,
}

/// Answer to [`ControlRequest::Explain`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `constant`, `worker`, `postgres`
    pub way: String,
    pub reason: String,
    /// All the policies in one.
    pub condition: String,
    /// The expressions over the claims that are asked for once for each client.
    pub claims: Vec<String>,
    /// Rows that leave a client's sight are told to it whatever the change.
    pub sees_old_rows: bool,
}

/// Answer to [`ControlRequest::Disconnect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disconnected {
    /// There was such a connection.
    pub found: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stays_the_text_that_it_is() {
        let frame = br#"{"ok":[{"":0},{"":0}, 1e1000]}"#;

        assert_eq!(answer(frame), Ok(r#"[{"":0},{"":0}, 1e1000]"#));
    }

    #[test]
    fn a_refusal_is_its_reason_if_that_has_an_end() {
        let refusal = |length| {
            let message = "x".repeat(length);
            format!(r#"{{"error":{{"sqlstate":"XX000","message":"{message}"}}}}"#)
        };

        assert_eq!(answer(refusal(3).as_bytes()), Err(NoAnswer::Refused("xxx".into())));
        assert_eq!(answer(refusal(LONGEST_REASON).as_bytes()), Err(NoAnswer::Garbled));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for frame in ["", "null", "{}", r#"{"ok":}"#, r#"{"ok":1,"ok":2}"#, "\0", "[[[["] {
            assert_eq!(answer(frame.as_bytes()), Err(NoAnswer::Garbled), "{frame}");
        }
        assert_eq!(answer(b"{\"ok\":\"\xff\"}"), Err(NoAnswer::Garbled));
    }

    #[test]
    fn no_more_events_are_taken_in_than_can_be_asked_for() {
        let event = r#"{"id":"","commit_time":0,"schema":"","table":"","operation":""}"#;
        let recent = |count| format!(r#"{{"events":[{}]}}"#, vec![event; count].join(","));

        assert!(serde_json::from_str::<Recent>(&recent(MOST_EVENTS)).is_ok());
        assert!(serde_json::from_str::<Recent>(&recent(MOST_EVENTS + 1)).is_err());
    }
}
