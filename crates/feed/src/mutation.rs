//! What a client asks to be written, and what becomes of it.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::few::at_most;

/// Operations of one mutation, at most.
pub const MOST_OPS: usize = 1_000;

/// Bytes of a mutation that a writer reads, whatever `tide.max_mutation_size` is.
pub const MAX_MUTATION: usize = 4 << 20;

/// Bytes of the name that a client has, or of a mutation's id.
pub const LONGEST_NAME: usize = 255;

/// The SQLSTATE of a row that is of another version than the client has seen.
pub const ANOTHER_VERSION: &str = "TD004";

/// Values by the names of their columns, as they were written.
pub type Fields = BTreeMap<String, Box<RawValue>>;

/// What a client asks to be written, all of it or nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutation {
    /// Stamps the events that come of it.
    pub mutation_id: String,
    /// Whose mutations are done in the order of their numbers, and none of them twice.
    pub client_id: String,
    /// Its number among those of the client, which begin with 1.
    pub n: u64,
    #[serde(deserialize_with = "at_most::<MOST_OPS, _, _>")]
    pub ops: Vec<Op>,
}

/// One thing to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Op {
    pub op: Verb,
    /// `schema.table`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// `schema.function`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// Which row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Fields>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Fields>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Fields>,
    /// What the row's version has to be. NULL is no version of a row's.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub if_version: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returning: Option<Returning>,
}

/// What is there, also if it is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    Insert,
    /// Changes some columns of a row.
    Set,
    /// Inserts a row, or changes some columns of the one that is there.
    Upsert,
    Delete,
    /// Calls a function.
    Call,
}

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Verb::Insert => "insert",
            Verb::Set => "set",
            Verb::Upsert => "upsert",
            Verb::Delete => "delete",
            Verb::Call => "call",
        }
    }
}

/// What a client wants to hear of the row that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Returning {
    /// All columns that it may read, or none.
    All(bool),
    Columns(Vec<String>),
}

/// Why a mutation is none. The texts are for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MutationError {
    #[error("the mutation is not understood: {0}")]
    Malformed(String),
    #[error("{0} must have 1 to 255 bytes, and no null character")]
    Name(&'static str),
    #[error("n must be from 1 to 9223372036854775807")]
    Number,
    #[error("a mutation has 1 to 1000 ops")]
    Ops,
    #[error("op {index}: {verb} {reason}")]
    Op { index: usize, verb: &'static str, reason: &'static str },
}

impl Mutation {
    /// Reads one, and looks at what can be told of it without a database.
    ///
    /// # Errors
    /// It is none, or can never be done.
    pub fn read(json: &str) -> Result<Mutation, MutationError> {
        let mutation: Mutation =
            serde_json::from_str(json).map_err(|error| MutationError::Malformed(said(&error)))?;
        for (name, text) in
            [("mutation_id", &mutation.mutation_id), ("client_id", &mutation.client_id)]
        {
            if !(1..=LONGEST_NAME).contains(&text.len()) || text.contains('\0') {
                return Err(MutationError::Name(name));
            }
        }
        if mutation.n == 0 || i64::try_from(mutation.n).is_err() {
            return Err(MutationError::Number);
        }
        if mutation.ops.is_empty() {
            return Err(MutationError::Ops);
        }
        for (index, op) in mutation.ops.iter().enumerate() {
            if let Some(reason) = op.misses() {
                return Err(MutationError::Op { index, verb: op.op.name(), reason });
            }
        }
        Ok(mutation)
    }

    /// Stands for all that it says: the same number with another digest is another mutation.
    pub fn digest(&self) -> Vec<u8> {
        // Plain data: cannot fail.
        sha256(&serde_json::to_string(self).unwrap_or_default())
    }
}

/// Stands for a text.
pub fn sha256(text: &str) -> Vec<u8> {
    digest(&SHA256, text.as_bytes()).as_ref().to_vec()
}

/// What was wrong, without where: the place is one in a text that the client did not write so.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    text.get(..end).unwrap_or_default().to_owned()
}

impl Op {
    /// What it lacks, or has too much.
    fn misses(&self) -> Option<&'static str> {
        let Op { table, function, key, values, args, if_version, returning, .. } = self;
        // Postgres's texts cannot hold it.
        if [table, function].into_iter().flatten().any(|name| name.contains('\0')) {
            return Some("has a name with a null character");
        }
        if self.op == Verb::Call {
            return if function.is_none() {
                Some("needs a function")
            } else if table.is_some() || key.is_some() || values.is_some() || if_version.is_some() {
                Some("takes function, args and returning only")
            } else if matches!(returning, Some(Returning::Columns(_))) {
                Some("returns what the function does: returning is true or false")
            } else {
                None
            };
        }
        if table.is_none() {
            return Some("needs a table");
        }
        if function.is_some() || args.is_some() {
            return Some("takes neither function nor args");
        }
        let is_empty = |fields: &Option<Fields>| fields.as_ref().is_none_or(Fields::is_empty);
        match self.op {
            Verb::Insert if key.is_some() => Some("has its key among its values"),
            Verb::Insert if if_version.is_some() => Some("takes no if_version"),
            Verb::Set | Verb::Delete if is_empty(key) => Some("needs a key"),
            Verb::Set if is_empty(values) => Some("needs values"),
            Verb::Upsert if is_empty(key) && is_empty(values) => Some("needs values"),
            Verb::Delete if values.is_some() => Some("takes no values"),
            _ => None,
        }
    }
}

/// What has become of a mutation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mutated {
    /// It has an outcome, from now on or since before.
    Settled(Settled),
    /// A number is missing before it: this one is expected.
    OutOfOrder(u64),
    /// Older than what is remembered: it has been settled, but there is no telling how.
    Expired,
    /// Its number is another mutation's.
    Reused,
}

/// A mutation that will not be done again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settled {
    /// An address of the WAL, which is on disk up to it: all that the mutation did lies before.
    pub lsn: u64,
    pub outcome: Outcome,
}

/// How it ended. The same each time that it is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub status: Status,
    /// For each operation what the client wanted to hear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returning: Option<Vec<Option<Box<RawValue>>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejection: Option<Rejection>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Confirmed,
    /// Nothing was written.
    Rejected,
}

/// Why nothing was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rejection {
    /// Which operation failed; `None`: what was checked at the end.
    pub op: Option<usize>,
    pub sqlstate: String,
    pub reason: String,
    /// The row that it was about, as the client may see it; `None` where it may not, or there is none.
    pub current: Option<Box<RawValue>>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(ops: &str) -> Result<Mutation, MutationError> {
        Mutation::read(&format!(r#"{{"mutation_id":"m","client_id":"c","n":1,"ops":{ops}}}"#))
    }

    #[test]
    fn values_stay_as_they_were_written() {
        let text =
            r#"[{"op":"set","table":"public.t","key":{"id":1},"values":{"a":1.10e400,"b":[ 1]}}]"#;
        let mutation = read(text).unwrap();

        let values = mutation.ops[0].values.as_ref().unwrap();
        assert_eq!(values["a"].get(), "1.10e400");
        assert_eq!(values["b"].get(), "[ 1]");
    }

    #[test]
    fn the_order_of_members_does_not_make_another_mutation() {
        let one = read(r#"[{"op":"insert","table":"a.b","values":{"x":1,"y":2}}]"#).unwrap();
        let other = read(r#"[{"values":{"y":2,"x":1},"table":"a.b","op":"insert"}]"#).unwrap();
        let third = read(r#"[{"op":"insert","table":"a.b","values":{"x":1,"y":3}}]"#).unwrap();

        assert_eq!(one.digest(), other.digest());
        assert_ne!(one.digest(), third.digest());
    }

    #[test]
    fn what_can_never_be_done_is_refused() {
        for ops in [
            "[]",
            "{}",
            r#"[{"op":"drop","table":"a.b"}]"#,
            r#"[{"op":"insert"}]"#,
            r#"[{"op":"insert","table":"a.b","valuess":{}}]"#,
            r#"[{"op":"insert","table":"a.b","key":{"id":1}}]"#,
            r#"[{"op":"insert","table":"a.b","if_version":1}]"#,
            r#"[{"op":"set","table":"a.b","values":{"a":1}}]"#,
            r#"[{"op":"set","table":"a.b","key":{},"values":{"a":1}}]"#,
            r#"[{"op":"set","table":"a.b","key":{"id":1}}]"#,
            r#"[{"op":"delete","table":"a.b"}]"#,
            r#"[{"op":"delete","table":"a.b","key":{"id":1},"values":{}}]"#,
            r#"[{"op":"upsert","table":"a.b"}]"#,
            r#"[{"op":"call","table":"a.b"}]"#,
            r#"[{"op":"call","function":"a.b","values":{}}]"#,
            r#"[{"op":"call","function":"a.b","returning":["x"]}]"#,
        ] {
            assert!(read(ops).is_err(), "{ops}");
        }
        let too_many = vec![r#"{"op":"call","function":"a.b"}"#; MOST_OPS + 1].join(",");
        assert!(read(&format!("[{too_many}]")).is_err());
    }

    #[test]
    fn names_and_numbers_have_bounds() {
        let long = "x".repeat(256);
        for head in [
            r#""mutation_id":"","client_id":"c","n":1"#,
            r#""mutation_id":"m","client_id":"c\u0000","n":1"#,
            r#""mutation_id":"m","client_id":"c","n":0"#,
            r#""mutation_id":"m","client_id":"c","n":-1"#,
            r#""mutation_id":"m","client_id":"c","n":1.5"#,
            r#""mutation_id":"m","client_id":"c","n":9223372036854775808"#,
            &format!(r#""mutation_id":"{long}","client_id":"c","n":1"#),
        ] {
            let text = format!(r#"{{{head},"ops":[{{"op":"call","function":"a.b"}}]}}"#);
            assert!(Mutation::read(&text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_mutation_or_an_error(text in ".{0,200}") {
            let _ = Mutation::read(&text);
        }
    }
}
