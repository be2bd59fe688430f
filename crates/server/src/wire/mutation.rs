//! What clients are told of what they asked to be written.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tide_feed::event::{Cursor, Epoch, Lsn, Position};
use tide_feed::mutation::{LONGEST_NAME, Mutation, Rejection, Settled, Status};

use super::Vsn;
use super::broadcast::json_frame;
use super::encode::{Address, broadcast_error, ok};

/// The event of a broadcast that is a mutation.
pub const MUTATE: &str = "tide:mutate";

/// The event of the answer.
const ANSWER: &str = "tide:mutation";

/// Which mutation is meant, as far as its client has said it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name {
    pub mutation_id: Option<String>,
    pub client_id: Option<String>,
    pub n: Option<u64>,
}

impl Name {
    /// Of what may be no mutation at all.
    pub fn read(json: &str) -> Name {
        #[derive(Default, Deserialize)]
        struct Members<'a> {
            #[serde(borrow, default)]
            mutation_id: Option<&'a RawValue>,
            #[serde(borrow, default)]
            client_id: Option<&'a RawValue>,
            #[serde(borrow, default)]
            n: Option<&'a RawValue>,
        }
        let members: Members<'_> = serde_json::from_str(json).unwrap_or_default();
        let text = |raw: Option<&RawValue>| {
            let text: String = serde_json::from_str(raw?.get()).ok()?;
            Some(text).filter(|text| text.len() <= LONGEST_NAME)
        };
        Name {
            mutation_id: text(members.mutation_id),
            client_id: text(members.client_id),
            n: members.n.and_then(|raw| serde_json::from_str(raw.get()).ok()),
        }
    }
}

impl From<Mutation> for Name {
    fn from(mutation: Mutation) -> Name {
        let Mutation { mutation_id, client_id, n, .. } = mutation;
        Name { mutation_id: Some(mutation_id), client_id: Some(client_id), n: Some(n) }
    }
}

/// Why a mutation has no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It is none.
    Malformed,
    /// A number is missing before it.
    OutOfOrder,
    /// It had an outcome that is not remembered any more.
    Expired,
    /// Its number is another mutation's.
    Reused,
    /// `tide.mutation_rate`
    Rate,
    /// `tide.max_pending_mutations`
    Queue,
    /// `tide.max_mutation_size`
    Size,
    /// Its part of `tide.memory_limit` is used up.
    Memory,
    /// `tide.write_timeout`
    Timeout,
    /// The database could not do it, nor say why it could not.
    Unavailable,
    /// Postgres did not let it begin.
    Refused,
    /// `tide.writers` is 0.
    Disabled,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Code::Malformed => "malformed",
            Code::OutOfOrder => "out_of_order",
            Code::Expired => "expired",
            Code::Reused => "reused",
            Code::Rate => "rate",
            Code::Queue => "queue",
            Code::Size => "size",
            Code::Memory => "memory",
            Code::Timeout => "timeout",
            Code::Unavailable => "unavailable",
            Code::Refused => "refused",
            Code::Disabled => "disabled",
        }
    }
}

/// A mutation has no outcome: nothing of it was written, or remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    /// What the client can do about it.
    pub reason: Cow<'static, str>,
    pub sqlstate: Option<String>,
    /// The number of the mutation that is missing.
    pub expected: Option<u64>,
}

impl Failure {
    pub fn new(code: Code, reason: impl Into<Cow<'static, str>>) -> Failure {
        Failure { code, reason: reason.into(), sqlstate: None, expected: None }
    }
}

/// What has become of a mutation.
#[derive(Clone, Debug)]
pub enum Verdict {
    Settled(Settled),
    Failed(Failure),
}

/// Whether the client has been told of what it did before it is told that it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    First,
    Skipped,
}

/// What the client is told.
#[derive(Clone, Debug)]
pub struct Answer {
    pub name: Name,
    pub verdict: Verdict,
}

/// Whom it is told, and on which channel.
#[derive(Clone, Debug)]
pub struct Recipient {
    pub vsn: Vsn,
    pub join_ref: Option<Box<str>>,
    pub ref_: Option<Box<str>>,
    /// With its `realtime:`.
    pub topic: Arc<str>,
    /// It waits for a reply to its push.
    pub waits: bool,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Said<'a> {
    mutation_id: Option<&'a str>,
    client_id: Option<&'a str>,
    n: Option<u64>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    /// `None` within: it is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    op: Option<Option<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlstate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<Option<&'a RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    returning: Option<&'a [Option<Box<RawValue>>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    echo: Option<&'static str>,
}

impl Answer {
    pub fn failed(name: Name, failure: Failure) -> Answer {
        Answer { name, verdict: Verdict::Failed(failure) }
    }

    /// An address of the WAL before which lies all that the mutation did; 0: it did nothing.
    pub fn lsn(&self) -> Lsn {
        match &self.verdict {
            Verdict::Settled(settled) => Lsn(settled.lsn),
            Verdict::Failed(_) => Lsn(0),
        }
    }

    /// Why the mutation was not done; `None`: it was.
    pub fn error(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Failed(failure) => Some(&failure.reason),
            Verdict::Settled(Settled { outcome, .. }) if outcome.status == Status::Confirmed => {
                None
            }
            Verdict::Settled(Settled { outcome, .. }) => {
                Some(outcome.rejection.as_ref().map_or("", |rejection| &rejection.reason))
            }
        }
    }

    /// `epoch`: of the stream; without it no position can be told.
    pub fn json(&self, epoch: Option<Epoch>, echo: Echo) -> String {
        let Name { mutation_id, client_id, n } = &self.name;
        let mut said = Said {
            mutation_id: mutation_id.as_deref(),
            client_id: client_id.as_deref(),
            n: *n,
            status: "error",
            position: None,
            code: None,
            expected: None,
            op: None,
            sqlstate: None,
            reason: None,
            current: None,
            returning: None,
            echo: None,
        };
        match &self.verdict {
            Verdict::Failed(Failure { code, reason, sqlstate, expected }) => {
                said.code = Some(code.name());
                said.expected = *expected;
                said.sqlstate = sqlstate.as_deref();
                said.reason = Some(reason);
            }
            Verdict::Settled(settled) => {
                let position = Position::before(Lsn(settled.lsn));
                said.position = epoch.map(|epoch| Cursor { epoch, position }.to_string());
                said.echo = (echo == Echo::Skipped).then_some("skipped");
                said.settle(settled);
            }
        }
        // Plain data: cannot fail.
        serde_json::to_string(&said).unwrap_or_default()
    }

    /// The reply to the push, if its sender waits for one, and the event that says all.
    pub fn frames(&self, to: &Recipient, epoch: Option<Epoch>, echo: Echo) -> Vec<Bytes> {
        let Recipient { vsn, join_ref, ref_, topic, waits } = to;
        let address = Address { join_ref: join_ref.as_deref(), ref_: ref_.as_deref(), topic };
        let reply = waits.then(|| match self.error() {
            None => ok(*vsn, address),
            Some(error) => broadcast_error(*vsn, address, error),
        });
        let event = json_frame(*vsn, topic, ANSWER, &self.json(epoch, echo));
        reply.into_iter().chain([event]).collect()
    }

    /// Bytes that it takes up, about.
    pub fn memory(&self) -> usize {
        let name = [&self.name.mutation_id, &self.name.client_id];
        let name = name.into_iter().flatten().map(String::len).sum::<usize>();
        let of_json = |json: &Option<Box<RawValue>>| {
            size_of::<Box<RawValue>>() + json.as_ref().map_or(0, |json| json.get().len())
        };
        let said = match &self.verdict {
            Verdict::Failed(failure) => failure.reason.len(),
            Verdict::Settled(Settled { outcome, .. }) => {
                let returning = outcome.returning.iter().flatten().map(of_json).sum::<usize>();
                let rejection = outcome.rejection.as_ref();
                returning + rejection.map_or(0, |r| r.reason.len() + of_json(&r.current))
            }
        };
        size_of::<Answer>() + name + said
    }
}

impl<'a> Said<'a> {
    fn settle(&mut self, Settled { outcome, .. }: &'a Settled) {
        match outcome.status {
            Status::Confirmed => {
                self.status = "confirmed";
                self.returning = outcome.returning.as_deref();
            }
            Status::Rejected => {
                self.status = "rejected";
                if let Some(Rejection { op, sqlstate, reason, current }) = &outcome.rejection {
                    (self.op, self.current) = (Some(*op), Some(current.as_deref()));
                    self.sqlstate = Some(sqlstate);
                    self.reason = Some(reason);
                }
            }
        }
    }
}

impl Recipient {
    /// Bytes that it takes up, about.
    pub fn memory(&self) -> usize {
        let refs = [&self.join_ref, &self.ref_].into_iter().flatten().map(|text| text.len());
        size_of::<Recipient>() + self.topic.len() + refs.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_read_as_far_as_it_goes() {
        let name = |mutation_id: Option<&str>, client_id: Option<&str>, n| Name {
            mutation_id: mutation_id.map(str::to_owned),
            client_id: client_id.map(str::to_owned),
            n,
        };
        let long = format!(r#"{{"mutation_id":"{}","n":1}}"#, "x".repeat(256));
        for (json, expected) in [
            (
                r#"{"mutation_id":"m","client_id":"c","n":7,"more":[]}"#,
                name(Some("m"), Some("c"), Some(7)),
            ),
            (r#"{"mutation_id":1,"client_id":"c","n":"7"}"#, name(None, Some("c"), None)),
            (r#"{"mutation_id":null,"n":-1}"#, name(None, None, None)),
            (&long, name(None, None, Some(1))),
            ("[]", Name::default()),
            ("null", Name::default()),
            ("", Name::default()),
        ] {
            assert_eq!(Name::read(json), expected, "{json}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_name(text in "[\\[\\]{}\":,a-z0-9]{0,80}") {
            let _ = Name::read(&text);
        }
    }
}
