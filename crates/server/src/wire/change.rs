//! Row changes as JSON: the part of a frame that subscribers share. The hottest code there is:
//! fragments are copied, nothing is parsed, and nothing allocated but the buffer's growth.

use std::ops::Range;

use tide_feed::event::{Batch, Change, Datum, Event, Operation, Relation, RowRef};
use tide_feed::json;

use super::timestamp;

/// The columns of a table that one kind of subscriber may see, with everything that can be
/// written ahead. Made once per relation and shape, not per event.
#[derive(Debug)]
pub struct ColumnSet {
    columns: Box<[SentColumn]>,
    /// `,"name":` of each column, one after the other: see [`SentColumn::key`].
    keys: Box<[u8]>,
    /// `{"schema":...,"table":...`
    table: Box<[u8]>,
    /// `,"columns":[...]`
    list: Box<[u8]>,
    /// What a record takes beyond its values, roughly.
    overhead: usize,
}

#[derive(Debug)]
struct SentColumn {
    /// In [`Relation::columns`] and in rows.
    index: usize,
    key: Range<usize>,
    identity: bool,
    bytea: bool,
}

impl ColumnSet {
    /// `indexes` into [`Relation::columns`], in ascending order; those past its end are ignored.
    pub fn new(relation: &Relation, indexes: impl IntoIterator<Item = usize>) -> ColumnSet {
        let (mut columns, mut keys, mut list) = (Vec::new(), Vec::new(), Vec::new());
        for index in indexes {
            let Some(column) = relation.columns.get(index) else { continue };
            let start = keys.len();
            keys.push(b',');
            json::write_key(&mut keys, &column.name);
            columns.push(SentColumn {
                index,
                key: start..keys.len(),
                identity: column.identity,
                bytea: &*column.type_name == "bytea",
            });
            list.extend_from_slice(if list.is_empty() { b",\"columns\":[" } else { b"," });
            list.extend_from_slice(b"{\"name\":");
            json::write_str(&mut list, &column.name);
            list.extend_from_slice(b",\"type\":");
            json::write_str(&mut list, &column.type_name);
            list.push(b'}');
        }
        list.extend_from_slice(if list.is_empty() { b",\"columns\":[]" } else { b"]" });
        let mut table = Vec::new();
        write_table(&mut table, relation);
        ColumnSet {
            // A value is guessed to take 16 bytes; the buffer grows if it takes more.
            overhead: 160 + table.len() + list.len() + keys.len() + 16 * columns.len(),
            columns: columns.into(),
            keys: keys.into(),
            table: table.into(),
            list: list.into(),
        }
    }

    pub fn all(relation: &Relation) -> ColumnSet {
        ColumnSet::new(relation, 0..relation.columns.len())
    }

    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Whether the column of that name is sent.
    pub(super) fn has(&self, relation: &Relation, name: &str) -> bool {
        self.named(relation, name).is_some()
    }

    /// The value of the column of that name, if it is sent; `older` as in records.
    pub(super) fn datum<'a>(
        &self,
        relation: &Relation,
        name: &str,
        row: RowRef<'a>,
        older: Option<RowRef<'a>>,
    ) -> Datum<'a> {
        self.named(relation, name).map_or(Datum::Absent, |column| value(column, row, older))
    }

    fn named(&self, relation: &Relation, name: &str) -> Option<&SentColumn> {
        let is_named = |column: &&SentColumn| {
            relation.columns.get(column.index).is_some_and(|column| *column.name == *name)
        };
        self.columns.iter().find(is_named)
    }

    /// Appends the row as an object. Values that the WAL does not have are left out, unless
    /// `older`, an image of the row before the change, has them.
    fn write_record(
        &self,
        out: &mut Vec<u8>,
        row: RowRef<'_>,
        older: Option<RowRef<'_>>,
        dialect: Dialect,
    ) {
        let sent = self.columns.iter().map(|column| (column, value(column, row, older)));
        self.write_object(out, sent, dialect);
    }

    /// Appends the columns of the replica identity only.
    fn write_identity(&self, out: &mut Vec<u8>, row: RowRef<'_>, dialect: Dialect) {
        let identity = self.columns.iter().filter(|column| column.identity);
        self.write_object(out, identity.map(|column| (column, row.get(column.index))), dialect);
    }

    #[inline]
    fn write_object<'a>(
        &self,
        out: &mut Vec<u8>,
        members: impl Iterator<Item = (&'a SentColumn, Datum<'a>)>,
        dialect: Dialect,
    ) {
        out.push(b'{');
        let mut comma = 1;
        for (column, datum) in members {
            let json = match datum {
                Datum::Json(json) => json,
                Datum::Null => b"null",
                Datum::Unchanged | Datum::Absent => continue,
            };
            let key = column.key.start + comma..column.key.end;
            comma = 0;
            out.extend_from_slice(self.keys.get(key).unwrap_or_default());
            match json.strip_prefix(b"\"\\\\x") {
                Some(hex) if column.bytea && dialect == Dialect::Supabase => {
                    out.push(b'"');
                    out.extend_from_slice(hex);
                }
                _ => out.extend_from_slice(json),
            }
        }
        out.push(b'}');
    }
}

/// How `bytea` is written: Supabase sends bare hexadecimal digits, `to_jsonb` a `\x` before them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Supabase,
    Postgres,
}

#[inline]
fn value<'a>(column: &SentColumn, row: RowRef<'a>, older: Option<RowRef<'a>>) -> Datum<'a> {
    match (row.get(column.index), older) {
        (Datum::Unchanged, Some(older)) => match older.get(column.index) {
            Datum::Absent => Datum::Unchanged,
            datum => datum,
        },
        (datum, _) => datum,
    }
}

/// The rows of a change, where its batch holds them.
struct Images<'a> {
    old: Option<RowRef<'a>>,
    new: Option<RowRef<'a>>,
}

impl<'a> Images<'a> {
    fn of(batch: &'a Batch, change: &Change) -> Images<'a> {
        Images {
            old: change.old.map(|row| batch.row(row)),
            new: change.new.map(|row| batch.row(row)),
        }
    }

    fn write_new(&self, out: &mut Vec<u8>, columns: &ColumnSet, dialect: Dialect) {
        match self.new {
            Some(new) => columns.write_record(out, new, self.old, dialect),
            None => out.extend_from_slice(b"{}"),
        }
    }

    /// An UPDATE that leaves the key alone has no old row in the WAL; its key is the new row's.
    fn write_old(&self, out: &mut Vec<u8>, columns: &ColumnSet, dialect: Dialect) {
        match (self.old, self.new) {
            (Some(old), _) => columns.write_record(out, old, None, dialect),
            (None, Some(new)) => columns.write_identity(out, new, dialect),
            (None, None) => out.extend_from_slice(b"{}"),
        }
    }
}

/// Appends the `data` object of `postgres_changes`, exactly Supabase's.
pub fn change_data(
    out: &mut Vec<u8>,
    batch: &Batch,
    event: &Event,
    change: &Change,
    columns: &ColumnSet,
) {
    let images = Images::of(batch, change);
    out.reserve(columns.overhead);
    out.extend_from_slice(&columns.table);
    out.extend_from_slice(b",\"commit_timestamp\":\"");
    timestamp::write(out, event.commit_time);
    out.extend_from_slice(match change.operation {
        Operation::Insert => b"\",\"type\":\"INSERT\"",
        Operation::Update => b"\",\"type\":\"UPDATE\"",
        Operation::Delete => b"\",\"type\":\"DELETE\"",
        Operation::Truncate => b"\",\"type\":\"TRUNCATE\"",
    });
    out.extend_from_slice(&columns.list);
    if change.operation != Operation::Delete {
        out.extend_from_slice(b",\"record\":");
        images.write_new(out, columns, Dialect::Supabase);
    }
    if change.operation != Operation::Insert {
        out.extend_from_slice(b",\"old_record\":");
        images.write_old(out, columns, Dialect::Supabase);
    }
    out.extend_from_slice(b",\"errors\":null}");
}

/// Appends the key of a row as an object, without the columns that the row does not have.
pub fn write_key(out: &mut Vec<u8>, row: RowRef<'_>, columns: &ColumnSet) {
    columns.write_identity(out, row, Dialect::Postgres);
}

/// Appends the payload of a `tide:table:` event:
/// `{"schema","table","operation","record","old_record"}`, `null` for the image there is none of.
pub fn table_payload(out: &mut Vec<u8>, batch: &Batch, change: &Change, columns: &ColumnSet) {
    let images = Images::of(batch, change);
    out.reserve(columns.overhead);
    out.extend_from_slice(&columns.table);
    out.extend_from_slice(match change.operation {
        Operation::Insert => b",\"operation\":\"INSERT\",\"record\":",
        Operation::Update => b",\"operation\":\"UPDATE\",\"record\":",
        Operation::Delete => b",\"operation\":\"DELETE\",\"record\":",
        Operation::Truncate => b",\"operation\":\"TRUNCATE\",\"record\":",
    });
    match change.operation {
        Operation::Insert | Operation::Update => images.write_new(out, columns, Dialect::Postgres),
        Operation::Delete | Operation::Truncate => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"old_record\":");
    match change.operation {
        Operation::Update | Operation::Delete => images.write_old(out, columns, Dialect::Postgres),
        Operation::Insert | Operation::Truncate => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
}

/// Appends the JSON list of columns whose values the WAL does not have, because the statement did
/// not change them; appends nothing if there are none.
pub fn unchanged_list(out: &mut Vec<u8>, batch: &Batch, change: &Change, columns: &ColumnSet) {
    let Images { old, new: Some(new) } = Images::of(batch, change) else { return };
    let mut separator = b'[';
    for column in &columns.columns {
        if value(column, new, old) != Datum::Unchanged {
            continue;
        }
        // The key without its comma and its colon is the name.
        let name = column.key.start + 1..column.key.end - 1;
        out.push(separator);
        out.extend_from_slice(columns.keys.get(name).unwrap_or_default());
        separator = b',';
    }
    if separator == b',' {
        out.push(b']');
    }
}

/// Appends the `data` object for a change that could not be turned into an event: Supabase's
/// `errors` form, with the time, which Python's client insists on. The operation is not known;
/// `*` is the one type that both JavaScript's and Python's client let through then. `key` is an
/// object.
pub fn failed_data(
    out: &mut Vec<u8>,
    event: &Event,
    relation: &Relation,
    sqlstate: &str,
    key: &[u8],
    column: Option<&str>,
) {
    write_table(out, relation);
    out.extend_from_slice(b",\"commit_timestamp\":\"");
    timestamp::write(out, event.commit_time);
    out.extend_from_slice(b"\",\"type\":\"*\",\"columns\":[],\"record\":");
    out.extend_from_slice(key);
    out.extend_from_slice(b",\"errors\":[");
    let error = match sqlstate {
        // As Supabase calls it.
        "54000" => "Error 413: Payload Too Large",
        _ => "Error 500: the change could not be decoded",
    };
    let column = column.map_or(String::new(), |name| format!(", column \"{name}\""));
    json::write_str(out, &format!("{error} ({sqlstate}{column})"));
    out.extend_from_slice(b"]}");
}

fn write_table(out: &mut Vec<u8>, relation: &Relation) {
    out.extend_from_slice(b"{\"schema\":");
    json::write_str(out, &relation.schema);
    out.extend_from_slice(b",\"table\":");
    json::write_str(out, &relation.name);
}
