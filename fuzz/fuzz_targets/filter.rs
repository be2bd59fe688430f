//! Whatever a client writes as a filter is a filter or an error, and evaluating it on whatever is
//! in the columns ends with yes or no.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pg_tide::catalog::protocol::{ColumnAccess, TableAccess};
use pg_tide::event::{Datum, Kind};
use pg_tide::filter;

fuzz_target!(|input: (&str, &str)| {
    let (text, value) = input;
    let filter = match filter::parse(text) {
        Ok(Some(filter)) => filter,
        Ok(None) => return,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let table = table();
    let Ok(casts) = filter::casts(&filter, &table) else { return };
    // Postgres's part: here every text is its own cast, as the JSON that to_jsonb might print.
    let answers: Vec<Vec<String>> = casts
        .iter()
        .map(|(type_sql, values)| values.iter().map(|value| json(type_sql, value)).collect())
        .collect();
    let Ok(predicate) = filter::compile(&filter, &table, &answers) else { return };
    let _ = predicate.equality();
    let text = serde_json::to_string(value).expect("text can be written");
    for datum in [Datum::Null, Datum::Absent, Datum::Unchanged] {
        let _ = predicate.matches(|_| datum);
    }
    for json in [text.as_str(), value, "1", "-2.5e3", "true", "\"NaN\"", "[{}]"] {
        let _ = predicate.matches(|_| Datum::Json(json.as_bytes()));
    }
});

fn json(type_sql: &str, value: &str) -> String {
    let bare = matches!(type_sql, "bool" | "int8" | "float8" | "numeric" | "jsonb");
    match serde_json::from_str::<serde_json::Value>(value) {
        Ok(json) if bare => json.to_string(),
        _ => serde_json::to_string(value).expect("text can be written"),
    }
}

/// A column of each kind, with names of one letter for the fuzzer to find.
fn table() -> TableAccess {
    let kinds = [
        ("b", "bool", Kind::Bool),
        ("i", "int8", Kind::Int),
        ("f", "float8", Kind::Float),
        ("n", "numeric", Kind::Numeric),
        ("t", "text", Kind::Text),
        ("u", "uuid", Kind::Uuid),
        ("d", "date", Kind::Date),
        ("s", "timestamp", Kind::Timestamp),
        ("z", "timestamptz", Kind::Timestamptz),
        ("e", "mood", Kind::Enum),
        ("j", "jsonb", Kind::Json),
        ("o", "int4range", Kind::Other),
    ];
    let column = |(attnum, (name, type_name, kind)): (i16, (&str, &str, Kind))| ColumnAccess {
        attnum,
        name: name.into(),
        type_name: type_name.into(),
        type_sql: type_name.into(),
        kind,
        readable: true,
        primary_key: attnum == 1,
        labels: ["sad", "ok", "happy"].map(String::from).to_vec(),
    };
    TableAccess {
        oid: 16_384,
        schema: "public".into(),
        table: "t".into(),
        row_security: false,
        columns: (1..).zip(kinds).map(column).collect(),
    }
}
