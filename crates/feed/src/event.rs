//! What flows from the decoder to the hub: plain, owned data, decoded once.
//!
//! Events travel in batches. A batch is one arena of bytes plus small structs that point into it,
//! so that a row costs no allocation of its own and subscribers can share it.

mod batch;
mod bytes;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use batch::{Batch, BatchBuilder, Row, RowRef, RowStart, Span};
pub use bytes::{BatchWriter, Relations};
use serde::{Deserialize, Serialize};

use crate::labels::Labels;

/// A WAL address.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Where an event stands in the history of its database: commit order, then order in the
/// transaction. Decoding the same WAL again gives the same positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Start of the transaction's commit record.
    pub commit: Lsn,
    /// Count of the transaction's changes before this one, before any filter.
    pub ordinal: u32,
}

impl Position {
    /// The last before every transaction that commits at `lsn` or later.
    pub fn before(lsn: Lsn) -> Position {
        let before = lsn.0.checked_sub(1).map(Lsn);
        before.map_or_else(Position::default, Position::end_of)
    }

    /// The last of the transaction that commits there.
    pub fn end_of(commit: Lsn) -> Position {
        Position { commit, ordinal: u32::MAX }
    }
}

impl fmt::Display for Position {
    /// 24 hexadecimal digits: positions sort as text as they do as numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:08x}", self.commit.0, self.ordinal)
    }
}

/// Which history a position belongs to: the slot's generation and the timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Random number in the slot's name; a new slot is a new history.
    pub generation: u32,
    pub timeline: u32,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:06x}", self.generation, self.timeline)
    }
}

/// A position as clients see it, `<epoch>.<position>`: opaque text of fixed width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub epoch: Epoch,
    pub position: Position,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.position)
    }
}

/// The text is not a cursor that pg_tide gave out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a position: expected <epoch>.<position> as received in meta.id")]
pub struct CursorError;

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let hex = |range: std::ops::Range<usize>| {
            let digits = text.get(range).ok_or(CursorError)?;
            if !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(CursorError);
            }
            u64::from_str_radix(digits, 16).map_err(|_| CursorError)
        };
        if text.len() != 39 || text.as_bytes().get(14) != Some(&b'.') {
            return Err(CursorError);
        }
        Ok(Cursor {
            epoch: Epoch {
                generation: u32::try_from(hex(0..8)?).map_err(|_| CursorError)?,
                timeline: u32::try_from(hex(8..14)?).map_err(|_| CursorError)?,
            },
            position: Position {
                commit: Lsn(hex(15..31)?),
                ordinal: u32::try_from(hex(31..39)?).map_err(|_| CursorError)?,
            },
        })
    }
}

/// How values of a type compare and print; what filters and the index need to know of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Bool,
    /// int2, int4, int8, oid: a JSON number that fits i64.
    Int,
    /// float4, float8: a JSON number, or the strings "NaN", "Infinity", "-Infinity".
    Float,
    /// A JSON number of any precision, or "NaN", "Infinity", "-Infinity".
    Numeric,
    /// text, varchar, bpchar, name, "char", citext excluded.
    Text,
    Uuid,
    Date,
    Timestamp,
    Timestamptz,
    /// Labels; their order is the type's, not the alphabet's.
    Enum,
    /// json and jsonb: any JSON, inline.
    Json,
    /// Everything else: arrays, ranges, composites, network types and so on.
    Other,
}

impl Kind {
    /// The kind of a built-in base type (domains resolved by the caller) by its oid and `typtype`.
    pub fn of(base_type: u32, is_enum: bool) -> Kind {
        match base_type {
            16 => Kind::Bool,
            20 | 21 | 23 | 26 => Kind::Int,
            700 | 701 => Kind::Float,
            1700 => Kind::Numeric,
            18 | 19 | 25 | 1042 | 1043 => Kind::Text,
            2950 => Kind::Uuid,
            1082 => Kind::Date,
            1114 => Kind::Timestamp,
            1184 => Kind::Timestamptz,
            114 | 3802 => Kind::Json,
            _ if is_enum => Kind::Enum,
            _ => Kind::Other,
        }
    }
}

/// A column of a table as of the event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub attnum: i16,
    pub name: Box<str>,
    /// `pg_type.typname`, arrays as `_text`.
    pub type_name: Box<str>,
    pub kind: Kind,
    /// Part of the replica identity (of the primary key by default).
    pub identity: bool,
    /// Those that values are printed with: of the enum that it is, or of any within.
    pub labels: Box<[Arc<Labels>]>,
    /// JSON does not say all of a value (an array's bounds, say): rows that policies may be held
    /// against have its own text, too. See [`Relation::text_index`].
    pub lossy: bool,
    /// What the type was made of when the value was written: a text of the value says the same today if
    /// this is the same. Below 2^32 it is the oid of the base type; 0: no text says all of a value.
    pub form: u64,
}

/// A table as of the event: its live columns in attnum order, as far as the WAL has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    pub oid: u32,
    pub schema: Box<str>,
    pub name: Box<str>,
    pub columns: Box<[Column]>,
    /// The old row of an UPDATE or DELETE holds every column (REPLICA IDENTITY FULL).
    pub identity_full: bool,
}

impl Relation {
    /// Where a row may have the text, in JSON, of the value of a [lossy](Column::lossy) column: after
    /// those of all columns come the texts, in the order of the columns.
    pub fn text_index(&self, index: usize) -> usize {
        let before = self.columns.iter().take(index);
        self.columns.len() + before.filter(|column| column.lossy).count()
    }
}

/// One column's value in a row: text in JSON as `to_jsonb` would print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datum<'a> {
    Json(&'a [u8]),
    /// SQL NULL, as against a JSON `null`.
    Null,
    /// A TOASTed value that the statement did not change: the WAL does not have it.
    Unchanged,
    /// Not part of this image (an old row with only the key; a column outside the publication).
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Operation::Insert => "INSERT",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Truncate => "TRUNCATE",
        }
    }
}

/// A row change. INSERT has `new`; UPDATE `new` and, where the replica identity gives one, `old`;
/// DELETE `old`; TRUNCATE neither.
#[derive(Clone, Debug)]
pub struct Change {
    pub relation: Arc<Relation>,
    pub operation: Operation,
    pub old: Option<Row>,
    pub new: Option<Row>,
}

/// What was said to a channel: by `tide.send`, or by a row of an outbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Message {
    /// As applications call it, without `realtime:`.
    pub channel: Arc<str>,
    pub name: Box<str>,
    /// For those only who joined the channel as a private one; else only for the others.
    pub private: bool,
    /// A JSON object.
    pub payload: Span,
    /// The sender's data were no object: they are the payload's `data`.
    pub wrapped: bool,
    /// `None`: sent without one.
    pub row: Option<OutboxRow>,
}

/// What an outbox has besides the message itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutboxRow {
    /// The outbox, by oid.
    pub table: u32,
    pub sequence_id: i64,
    pub mutation_id: Box<str>,
    pub rejected: bool,
    /// A JSON value.
    pub headers: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SchemaOperation {
    CreateTable,
    AlterTable,
    DropTable,
    CreateSchema,
    DropSchema,
}

impl SchemaOperation {
    pub fn name(self) -> &'static str {
        match self {
            SchemaOperation::CreateTable => "CREATE_TABLE",
            SchemaOperation::AlterTable => "ALTER_TABLE",
            SchemaOperation::DropTable => "DROP_TABLE",
            SchemaOperation::CreateSchema => "CREATE_SCHEMA",
            SchemaOperation::DropSchema => "DROP_SCHEMA",
        }
    }
}

/// A column of a table that was made or altered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaColumn {
    pub attnum: i16,
    pub name: Box<str>,
    /// `pg_type.typname`.
    #[serde(rename = "type")]
    pub type_name: Box<str>,
}

/// A table or schema was made, altered or dropped. Read from what the event triggers write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaChange {
    pub operation: SchemaOperation,
    pub schema: Box<str>,
    /// `None`: it is about the schema itself.
    #[serde(default)]
    pub table: Option<Box<str>>,
    /// Of the table, or of the schema.
    pub oid: u32,
    /// Of a table that was made or altered: its columns then.
    #[serde(default)]
    pub columns: Box<[SchemaColumn]>,
    /// Of something dropped: the clients' roles that could see it until then.
    #[serde(default)]
    pub readers: Option<Box<[Box<str>]>>,
}

#[derive(Clone, Debug)]
pub enum EventKind {
    Change(Change),
    Message(Message),
    Schema(SchemaChange),
    Failed(Failed),
}

/// A change or a message that could not be turned into an event.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Failed {
    /// The table, if it was a change of a row.
    #[serde(skip)]
    pub relation: Option<Arc<Relation>>,
    /// The row's key, as far as it could be read: other columns are absent.
    pub key: Option<Row>,
    /// The column that it failed in, by its place in [`Relation::columns`].
    pub column: Option<usize>,
    /// The message, if it was one.
    pub unsaid: Option<Box<Unsaid>>,
    pub sqlstate: Box<str>,
    /// Has the SQLSTATE and the relation, never a value.
    pub message: Box<str>,
}

/// What is known of a message that could not be turned into an event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unsaid {
    pub channel: Arc<str>,
    pub private: bool,
    pub row: Option<OutboxRow>,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub position: Position,
    /// End of the commit record: where decoding may start to skip this transaction.
    pub end: Lsn,
    pub xid: u32,
    /// Microseconds since the Unix epoch.
    pub commit_time: i64,
    pub last_in_tx: bool,
    /// Of `tide.set_mutation_id`, for all events of the transaction.
    pub mutation_id: Option<Arc<str>>,
    pub kind: EventKind,
}

#[cfg(any(test, feature = "test-support"))]
impl Event {
    /// The only event of a transaction.
    pub fn alone(commit: u64, kind: EventKind) -> Event {
        Event {
            position: Position { commit: Lsn(commit), ordinal: 0 },
            end: Lsn(commit + 8),
            xid: 1,
            commit_time: 0,
            last_in_tx: true,
            mutation_id: None,
            kind,
        }
    }
}

/// What the catalogue invalidations of a decoded transaction, or of another session, made stale.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CatalogChange {
    /// A table's definition, privileges, policies or membership in the publication.
    Relation(u32),
    /// Roles, memberships, schemas, types: anything may be meant.
    All,
}

#[cfg(test)]
mod tests;
