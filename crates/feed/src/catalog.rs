//! Requests and answers between the server and the worker's helper processes.
//!
//! A frame is a big-endian u32 length and that many bytes of JSON. A helper connects, says
//! [`Hello`], then answers one [`Request`] after the other with a [`Reply`]. A SQL function that
//! wants something of the server connects the same way, says [`Hello::Control`] and asks
//! [`ControlRequest`](crate::control::ControlRequest)s.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::event::Kind;

use crate::few::{at_most, few};
use crate::snapshot::Snapshot;

/// Largest frame; enough for a page of `tide.recent`, far below what could hurt. A question that
/// is larger is not asked; in the place of an answer that is larger stands an error.
pub const MAX_FRAME: usize = 64 << 20;

/// Largest frame with a question for the catalog worker: pages of rows, ids and names, none of them
/// a row's content.
pub const MAX_QUESTION: usize = 4 << 20;

/// The SQLSTATE of what is too large to be asked or answered.
pub const TOO_LARGE: &str = "54000";

/// Rows that a question about an outbox may be about, at most, whatever limit it gives.
pub const MOST_ROWS: u32 = 65_536;

/// Columns of a table, at most: Postgres's own limit.
pub const MOST_COLUMNS: usize = 1600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hello {
    /// Session of the extension's owner; never runs a user's code.
    CatalogWorker,
    /// Session of `tide_authenticator`; switches to the client's role for each request.
    Executor,
    /// Listens to NOTIFY; is told what to listen to, and speaks unasked.
    Notifier,
    /// As an executor; reads the rows that there are, for clients that begin with them.
    Reader,
    /// Session of `tide_authenticator`; writes what clients ask to be written, as their roles.
    Writer,
    /// A backend that runs one of pg_tide's SQL functions.
    Control,
}

/// The SQLSTATE of what has taken longer than it may.
pub const QUERY_CANCELED: &str = "57014";

/// The SQLSTATE of a question made of what the catalogue said before it changed.
pub const OUTDATED: &str = "TD002";

/// The SQLSTATE of a question about values of a type that is another by now.
pub const ANOTHER_TYPE: &str = "TD003";

/// `streamed` is how many changes of the catalogue the stream has told the server of: an answer has to
/// know of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// (catalog worker) What identity checks need.
    Secrets,
    /// (catalog worker) May this role be used by clients at all?
    Role { role: String, streamed: u64 },
    /// (catalog worker) Tables as `role` may see them. A table that is missing, not published, or
    /// that the role has no SELECT on any column of, is left out of the answer: there is no telling
    /// which of the three it was.
    Tables { role: String, publication: String, which: Which, streamed: u64 },
    /// (catalog worker) What has changed in the catalogue after the change of this number; answers
    /// [`Changes`].
    Changes { since: u64 },
    /// (catalog worker) What `role` may know of a table or schema, published or not; answers
    /// [`Visibility`].
    Visibility { role: String, object: Object, streamed: u64 },
    /// (executor) Casts each text to the type, as the role; answers `to_jsonb` of the results.
    Cast {
        role: String,
        type_sql: String,
        #[serde(deserialize_with = "few")]
        values: Vec<String>,
    },
    /// (executor) Which of the rows the table's policies admit, for each of the clients, whose claims
    /// these are. `labels` are those of enums that are in the rows, with their oids: if one has another
    /// name by now, or the policies look at other columns, the answer is SQLSTATE [`OUTDATED`]. Answers
    /// [`PolicyOutcomes`].
    EvaluatePolicy {
        role: String,
        table: u32,
        rows: Rows,
        #[serde(deserialize_with = "few")]
        labels: Vec<(u32, String)>,
        #[serde(deserialize_with = "few")]
        claims: Vec<String>,
    },
    /// (executor) What the expressions are worth to each of the clients. Answers
    /// [`ClaimsOutcomes`].
    EvaluateClaims {
        role: String,
        #[serde(deserialize_with = "few")]
        expressions: Vec<String>,
        #[serde(deserialize_with = "few")]
        claims: Vec<String>,
    },
    /// (executor) What the role, with these claims, may do on a channel; answers a list of
    /// [`Grant`]s, one for each extension. A policy that fails or takes too long grants nothing.
    Channel {
        role: String,
        claims: String,
        topic: String,
        #[serde(deserialize_with = "few")]
        extensions: Vec<String>,
    },
    /// (reader) The next rows of a table, in the order of a key; answers [`Chunk`].
    Chunk(Box<ChunkRequest>),
    /// (reader) Of each key beyond how many of the borders it lies, in the order of the keys; answers a
    /// list of numbers.
    Places {
        role: String,
        claims: String,
        table: u32,
        #[serde(deserialize_with = "at_most::<{ MOST_COLUMNS }, _, _>")]
        key: Vec<i16>,
        keys: Rows,
        borders: Rows,
    },
    /// (writer) Does what a client asks to be written, a JSON [`Mutation`](crate::mutation::Mutation),
    /// unless that has been done; answers [`Mutated`](crate::mutation::Mutated).
    Mutate { role: String, claims: String, mutation: String },
    /// (catalog worker) Forgets how mutations ended that were done so long ago, of the `limit` oldest;
    /// answers how many.
    ForgetMutations { age: Duration, limit: u32 },
    /// (catalog worker) The rows of `tide.check()`, for the page; answers a list of [`Finding`]s.
    Check,
    /// (catalog worker) The tables that are outboxes; answers a list of [`Outbox`]es.
    Outboxes,
    /// (catalog worker) Puts rows of an outbox that wait in line for a new slot, a page at a time;
    /// answers [`TakenOver`].
    TakeOver { table: u32, generation: u32, after: i64, limit: u32 },
    /// (catalog worker) These rows of an outbox have been published: deletes them, but for the
    /// newest of the table, which is flagged; all are if they are to be kept. Answers [`Retired`].
    Retire {
        table: u32,
        #[serde(deserialize_with = "at_most::<{ MOST_ROWS as usize }, _, _>")]
        ids: Vec<i64>,
        keep: bool,
    },
    /// (catalog worker) These rows of an outbox could not be published, each for an SQLSTATE: has
    /// them say so. Answered by `null`.
    SetAside {
        table: u32,
        #[serde(deserialize_with = "at_most::<{ MOST_ROWS as usize }, _, _>")]
        rows: Vec<(i64, Box<str>)>,
    },
    /// (catalog worker) How many rows of an outbox say that they could not be published.
    CountFailed { table: u32 },
    /// (catalog worker) Rows of an outbox that are not flagged; answers [`Unpublished`].
    Unpublished { table: u32, after: i64, limit: u32 },
    /// (catalog worker) Deletes, of the oldest rows of an outbox, those flagged so long ago;
    /// answers how many.
    Expire { table: u32, age: Duration, limit: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    Named(#[serde(deserialize_with = "few")] Vec<TableName>),
    Oids(#[serde(deserialize_with = "few")] Vec<u32>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

/// A table or a schema, by oid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    Table(u32),
    Schema(u32),
}

/// Answer to [`Request::Visibility`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visibility {
    /// USAGE on the schema and, of a table, SELECT on any column.
    pub visible: bool,
    /// The columns that the role may SELECT.
    pub columns: Vec<i16>,
}

/// The answer to a request, or why there is none.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Ok(Box<RawValue>),
    Error { sqlstate: String, message: String },
}

/// Answer to [`Request::Secrets`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Secrets {
    /// Generated at CREATE EXTENSION, newest first.
    pub jwt_secrets: Vec<String>,
}

/// Answer to [`Request::Role`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleStatus {
    Usable,
    /// Superuser, BYPASSRLS or REPLICATION.
    Privileged,
    /// Not there, or not granted to `tide_authenticator`.
    Refused,
}

/// A table as one role may see it; [`Request::Tables`] answers a list of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableAccess {
    pub oid: u32,
    pub schema: String,
    pub table: String,
    /// What row-level security has to say, if it is on and the role is subject to it.
    #[serde(default)]
    pub row_security: Option<RowSecurity>,
    pub columns: Vec<ColumnAccess>,
}

/// The policies that decide which rows of a table a role may see, and what is to be known to
/// decide without asking Postgres.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSecurity {
    /// For SELECT or ALL, of this role or one that it is a member of; by name.
    pub policies: Vec<Policy>,
    /// Functions that are not Postgres's own, in the policies and in one another; none if there
    /// are too many.
    pub functions: Vec<Function>,
    /// The columns of old images: the replica identity.
    pub identity: Vec<i16>,
    /// Columns whose equal values may be different texts.
    pub nondeterministic: Vec<i16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub name: String,
    /// One permissive policy has to admit a row, and every other one.
    pub permissive: bool,
    /// As `pg_get_expr` prints it with no schema but `pg_catalog` in the `search_path`.
    pub condition: String,
    /// The columns that the condition looks at; `None`: any of them.
    pub columns: Option<Vec<i16>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    pub schema: String,
    pub name: String,
    /// As `format_type` prints it.
    pub returns: String,
    /// Types of its arguments, in the same way.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Some of them need not be given.
    #[serde(default)]
    pub has_defaults: bool,
    /// `pg_proc.provolatile`
    pub volatility: char,
    pub language: String,
    /// Its source, where the language is SQL or PL/pgSQL, it is not too long, and the role may use its
    /// schema: without that a policy can call it, but nothing that is read anew can.
    pub body: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnAccess {
    pub attnum: i16,
    pub name: String,
    /// `pg_type.typname`.
    pub type_name: String,
    /// The type as SQL writes it, for casts: `format_type(atttypid, atttypmod)`. A cast reads
    /// values without the modifier: `varchar(3)` would cut a filter's value down to one that
    /// matches.
    pub type_sql: String,
    pub kind: Kind,
    /// The role has SELECT on it.
    pub readable: bool,
    pub primary_key: bool,
    /// For `Kind::Enum`: the labels with their oids, in the order of the type; else empty, and
    /// where there are too many to be told.
    #[serde(default)]
    pub labels: Vec<(u32, String)>,
}

/// Answer to [`Request::Tables`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tables {
    /// `pg_current_wal_insert_lsn()` taken before the look-up, as a number.
    pub lsn: u64,
    /// The transactions that were running right after that.
    pub running: Vec<u32>,
    /// The number of the newest change of the catalogue that the look-up knows of.
    pub change: u64,
    pub tables: Vec<TableAccess>,
}

/// Answer to [`Request::Changes`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// As in [`Tables`].
    pub lsn: u64,
    pub running: Vec<u32>,
    /// The number of the newest change.
    pub change: u64,
    /// The tables that have changed; `None`: it may be any.
    pub tables: Option<Vec<u32>>,
}

/// A table that is an outbox; [`Request::Outboxes`] answers a list of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    /// Its oid.
    pub table: u32,
    /// Of the slot that has taken it over.
    pub generation: Option<i64>,
}

/// Answer to [`Request::TakeOver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// Where to go on.
    pub after: i64,
    /// There is nothing left to do: the outbox is the slot's.
    pub done: bool,
}

/// Answer to [`Request::Retire`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// Those that are still there, and have to be mentioned again.
    pub kept: Vec<i64>,
}

/// Answer to [`Request::Unpublished`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpublished {
    /// In ascending order.
    pub ids: Vec<i64>,
    /// They have committed before this address.
    pub lsn: u64,
}

/// Answer to [`Request::Cast`]: `to_jsonb` of each value, as text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cast {
    pub values: Vec<String>,
}

/// Rows of a table, as texts that the types of its columns read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// By their numbers: those that the texts are of. All others are NULL.
    #[serde(deserialize_with = "at_most::<{ MOST_COLUMNS }, _, _>")]
    pub columns: Vec<i16>,
    /// What the types of these columns were made of when the values were written: see
    /// [`Column::form`](crate::event::Column::form).
    #[serde(deserialize_with = "at_most::<{ MOST_COLUMNS }, _, _>")]
    pub forms: Vec<u64>,
    /// A JSON array of texts and nulls for each row, one after the other.
    pub texts: String,
}

impl Rows {
    /// The rows, one at a time: however many there are, no more than one is taken apart.
    pub fn each(&self) -> impl Iterator<Item = Result<Vec<Option<Box<str>>>, serde_json::Error>> {
        #[derive(Deserialize)]
        struct Row(
            #[serde(deserialize_with = "at_most::<{ MOST_COLUMNS }, _, _>")] Vec<Option<Box<str>>>,
        );
        let rows = serde_json::Deserializer::from_str(&self.texts).into_iter::<Row>();
        rows.map(|row| row.map(|Row(texts)| texts))
    }
}

/// Rows that are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRequest {
    pub role: String,
    pub claims: String,
    pub table: u32,
    /// Those to be told of, by their numbers.
    #[serde(deserialize_with = "at_most::<{ MOST_COLUMNS }, _, _>")]
    pub columns: Vec<i16>,
    /// All of which a row has to meet.
    #[serde(deserialize_with = "few")]
    pub conditions: Vec<Condition>,
    /// The key of the last row of the chunk before, as texts.
    pub after: Option<Vec<String>>,
    /// The key of the only row that is asked for.
    #[serde(default)]
    pub only: Option<Vec<String>>,
    /// How many rows, at most.
    pub limit: u32,
}

/// A condition on a column, as a filter has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub column: i16,
    pub negated: bool,
    pub operator: Operator,
    /// What it is compared with, as the type of the column reads it; for patterns, the pattern.
    #[serde(deserialize_with = "few")]
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
    In,
    Like,
    Ilike,
    Match,
    Imatch,
    IsNull,
    IsTrue,
    IsFalse,
    IsUnknown,
    Distinct,
}

/// Answer to [`Request::Chunk`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Chunk {
    /// The columns of the key: the replica identity, or the primary key where that is all columns. None:
    /// the table has no key, and these are all of its rows.
    pub key: Vec<i16>,
    /// How many rows.
    pub count: u64,
    /// An array of objects.
    pub rows: Box<RawValue>,
    /// Of each row the values of its key, in the same form: an array of arrays.
    pub keys: Box<RawValue>,
    /// The key of the last row, as texts.
    pub last: Option<Vec<String>>,
    /// There are no more.
    pub done: bool,
    pub snapshot: Snapshot,
    /// What could be seen has committed before this address of the WAL, which is on disk.
    pub lsn: u64,
}

/// Answer to [`Request::EvaluatePolicy`]: one for each of the clients, in their order; fewer if
/// that takes longer than a question may.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyOutcomes {
    pub outcomes: Vec<PolicyOutcome>,
}

/// What a policy says to one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyOutcome {
    /// For each row whether it is visible.
    Visible(Vec<bool>),
    /// The policy failed; with this SQLSTATE.
    Failed(String),
}

/// Answer to [`Request::EvaluateClaims`]: one for each of the clients, as in [`PolicyOutcomes`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClaimsOutcomes {
    pub outcomes: Vec<ClaimsOutcome>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimsOutcome {
    /// `to_jsonb` of each expression; `None` is NULL.
    Values(Vec<Option<String>>),
    Failed(String),
}

/// What a client may do with one extension of a channel: [`Request::Channel`] answers these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// A SELECT policy of `tide.channel` admits it: the client may join and receive.
    pub read: bool,
    /// An INSERT policy does: it may publish.
    pub write: bool,
}

/// One requirement, whether it is met, and what mends it; [`Request::Check`] answers these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub item: String,
    pub ok: bool,
    #[serde(default)]
    pub problem: Option<String>,
    /// SQL, or a line for postgresql.conf.
    #[serde(default)]
    pub fix: Option<String>,
}

/// Whether an error says nothing about what was asked: a lock that was not free, a deadlock, no
/// room, a shutdown, a catalogue that changed while it was read (that is an internal error). Not
/// that time ran out: that is what policies are said to have done that are too slow.
pub fn is_transient(sqlstate: &str) -> bool {
    match sqlstate {
        QUERY_CANCELED => false,
        "55P03" | "55006" | "XX000" => true,
        _ => ["40", "53", "57", "58"].iter().any(|class| sqlstate.starts_with(class)),
    }
}
