//! Changes of records, as `tide:records:<schema>` tells them: which key, and on request what it
//! holds now.

use serde_json::value::RawValue;
use tide_feed::event::{Batch, Change, Datum, Operation, Relation};
use tide_feed::json;

use super::change::ColumnSet;

/// What a table of records has at least: a text that tells its rows apart, a number that counts
/// their changes, and JSON.
const ID: &str = "id";
const VERSION: &str = "version";
const VALUE: &str = "val";

/// The columns that tell which record it is.
pub const KEY: &[&str] = &[ID];
/// Those, and what it holds.
pub const ALL: &[&str] = &[ID, VERSION, VALUE];

/// Whether the rows of a table are records.
pub fn is_table_of(relation: &Relation) -> bool {
    let columns = || relation.columns.iter();
    let is_key =
        relation.identity_full || columns().all(|column| column.identity == (&*column.name == ID));
    let is_text = columns().any(|column| &*column.name == ID && &*column.type_name == "text");
    let has = |name: &str| columns().any(|column| *column.name == *name);
    is_key && is_text && has(VERSION) && has(VALUE)
}

/// Whether the columns say which record it is.
pub fn has_key(relation: &Relation, columns: &ColumnSet) -> bool {
    columns.has(relation, ID)
}

/// Appends `{"table"}`: of a table that was made or dropped.
pub fn table(out: &mut Vec<u8>, name: &str) {
    begin(out, name);
    out.push(b'}');
}

fn begin(out: &mut Vec<u8>, table: &str) {
    out.extend_from_slice(b"{\"table\":");
    json::write_str(out, table);
}

/// Appends `{"table","key"}`, with `version` and `value` if they are among the columns and there
/// still is a record, and with `old_key` if the change gave it another key.
pub fn payload(out: &mut Vec<u8>, batch: &Batch, change: &Change, columns: &ColumnSet) {
    let relation = &*change.relation;
    let old = change.old.map(|row| batch.row(row));
    let new = change.new.map(|row| batch.row(row));
    begin(out, &relation.name);
    let row = match change.operation {
        Operation::Insert | Operation::Update => new,
        // The key did not change with the row that is out of sight now.
        Operation::Delete => old.or(new),
        Operation::Truncate => None,
    };
    let Some(row) = row else { return out.push(b'}') };
    let id = columns.datum(relation, ID, row, old);
    write_member(out, b",\"key\":", id);
    if change.operation == Operation::Update
        && let Some(old) = old
        && let before @ Datum::Json(_) = columns.datum(relation, ID, old, None)
        && before != id
    {
        write_member(out, b",\"old_key\":", before);
    }
    if change.operation != Operation::Delete {
        write_member(out, b",\"version\":", columns.datum(relation, VERSION, row, old));
        write_value(out, relation, columns.datum(relation, VALUE, row, old));
    }
    out.push(b'}');
}

fn write_member(out: &mut Vec<u8>, key: &[u8], datum: Datum<'_>) {
    let json = match datum {
        Datum::Json(json) => json,
        Datum::Null => b"null",
        Datum::Unchanged | Datum::Absent => return,
    };
    out.extend_from_slice(key);
    out.extend_from_slice(json);
}

/// A column of text holds JSON in a JSON string; what is no JSON is told as the text that it is.
fn write_value(out: &mut Vec<u8>, relation: &Relation, datum: Datum<'_>) {
    const MEMBER: &[u8] = b",\"value\":";
    let holds_text =
        || relation.columns.iter().any(|c| &*c.name == VALUE && &*c.type_name == "text");
    if let Datum::Json(json) = datum
        && holds_text()
        && let Ok(text) = serde_json::from_slice::<String>(json)
        && let Ok(value) = serde_json::from_str::<&RawValue>(&text)
    {
        return write_member(out, MEMBER, Datum::Json(value.get().as_bytes()));
    }
    write_member(out, MEMBER, datum);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tide_feed::event::{BatchBuilder, Column, Kind};

    use super::*;

    fn relation(columns: &[(&str, &str, bool)]) -> Relation {
        let columns = columns.iter().zip(1..).map(|((name, type_name, identity), attnum)| {
            Column::new(attnum, name, type_name, Kind::Other, *identity)
        });
        Relation {
            oid: 16_384,
            schema: "ds".into(),
            name: "cars".into(),
            columns: columns.collect(),
            identity_full: false,
        }
    }

    fn records(value_type: &str) -> Relation {
        relation(&[("id", "text", true), ("version", "int8", false), ("val", value_type, false)])
    }

    #[track_caller]
    fn assert_told(
        value_type: &str,
        columns: &[&str],
        operation: Operation,
        images: [Option<[Option<&str>; 3]>; 2],
        expected: &str,
    ) {
        let relation = Arc::new(records(value_type));
        let mut batch = BatchBuilder::default();
        let [old, new] = images.map(|image| image.map(|values| batch.row_of(&values)));
        let sent = (relation.columns.iter().enumerate())
            .filter(|(_, column)| columns.contains(&&*column.name))
            .map(|(index, _)| index);
        let columns = ColumnSet::new(&relation, sent);
        let change = Change { relation, operation, old, new };
        let mut out = Vec::new();
        payload(&mut out, &batch.finish(), &change, &columns);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_change_is_told_by_its_key_and_by_what_it_holds_if_asked_for() {
        use Operation::{Delete, Insert, Truncate, Update};
        let full = Some([Some("\"bmw\""), Some("7"), Some("{\"km\": 1}")]);
        let key = r#"{"table":"cars","key":"bmw"}"#;
        let all = r#"{"table":"cars","key":"bmw","version":7,"value":{"km": 1}}"#;
        assert_told("jsonb", KEY, Insert, [None, full], key);
        assert_told("jsonb", ALL, Insert, [None, full], all);
        assert_told("jsonb", ALL, Update, [None, full], all);
        assert_told("jsonb", ALL, Delete, [Some([Some("\"bmw\""), None, None]), None], key);
        assert_told("jsonb", ALL, Truncate, [None, None], r#"{"table":"cars"}"#);

        // An UPDATE that a policy makes a DELETE of: there is no old row if the key is the same.
        assert_told("jsonb", ALL, Delete, [None, full], key);
        let renamed = r#"{"table":"cars","key":"bmw","old_key":"audi"}"#;
        assert_told("jsonb", KEY, Update, [Some([Some("\"audi\""), None, None]), full], renamed);
        let toasted = Some([Some("\"bmw\""), Some("8"), Some("unchanged")]);
        let left_out = r#"{"table":"cars","key":"bmw","version":8}"#;
        assert_told("jsonb", ALL, Update, [None, toasted], left_out);
    }

    #[test]
    fn json_in_a_column_of_text_is_told_as_json() {
        for (stored, value) in [
            (r#""{\"km\": \"\\u00fc\"}""#, r#"{"km": "\u00fc"}"#),
            (r#""null""#, "null"),
            (r#""no json""#, r#""no json""#),
            (r#""""#, r#""""#),
        ] {
            let image = Some([Some("\"k\""), Some("1"), Some(stored)]);
            let expected = format!(r#"{{"table":"cars","key":"k","version":1,"value":{value}}}"#);
            assert_told("text", ALL, Operation::Insert, [None, image], &expected);
        }
    }

    #[test]
    fn tables_of_records_have_their_columns_and_key() {
        assert!(is_table_of(&records("jsonb")));
        assert!(is_table_of(&records("text")));
        let (version, val) = (("version", "int8", false), ("val", "jsonb", false));
        let key = ("id", "text", true);
        assert!(is_table_of(&relation(&[val, ("more", "int4", false), version, key])));
        for other in [
            &[key, version][..],
            &[key, val],
            &[version, val],
            &[("id", "int8", true), version, val],
            &[("id", "text", false), version, val],
            &[key, version, val, ("tenant", "text", true)],
        ] {
            assert!(!is_table_of(&relation(other)), "{other:?}");
        }
    }
}
