//! Whatever text a filter is, it is parsed or refused, and judges any row without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tide_feed::catalog::{ColumnAccess, TableAccess};
use tide_feed::event::{Datum, Kind};
use tide_server::filter::{Effort, casts, compile, parse};

const KINDS: [Kind; 11] = [
    Kind::Bool,
    Kind::Int,
    Kind::Float,
    Kind::Numeric,
    Kind::Text,
    Kind::Uuid,
    Kind::Date,
    Kind::Timestamp,
    Kind::Timestamptz,
    Kind::Json,
    Kind::Other,
];

fuzz_target!(|input: (&str, &str)| {
    let (text, value) = input;
    let Ok(Some(filter)) = parse(text) else { return };
    for kind in KINDS {
        let names: Vec<&str> =
            filter.conditions.iter().map(|condition| condition.column.as_str()).collect();
        let table = table(&names, kind);
        let Ok(types) = casts(&filter, &table) else { continue };
        // Answers that an executor would never give are survived as well.
        let answers: Vec<Vec<String>> = types
            .iter()
            .map(|(_, values)| values.iter().map(|value| json(value)).collect())
            .collect();
        let Ok(predicate) = compile(&filter, &table, &answers) else { continue };
        let json = json(value);
        for datum in [
            Datum::Json(json.as_bytes()),
            Datum::Json(value.as_bytes()),
            Datum::Null,
            Datum::Unchanged,
            Datum::Absent,
        ] {
            let _ = predicate.matches(|_| datum, &Effort::default());
        }
    }
});

fn json(value: &str) -> String {
    serde_json::to_string(value).expect("text is JSON")
}

fn table(names: &[&str], kind: Kind) -> TableAccess {
    let columns = names
        .iter()
        .enumerate()
        .map(|(index, name)| ColumnAccess {
            attnum: index as i16 + 1,
            name: (*name).to_owned(),
            type_name: "type".to_owned(),
            type_sql: "type".to_owned(),
            kind,
            readable: true,
            primary_key: index == 0,
            labels: Vec::new(),
        })
        .collect();
    TableAccess { oid: 1, schema: "s".into(), table: "t".into(), row_security: None, columns }
}
