//! What clients are told of tables and schemas that are made, altered or dropped.

use tide_feed::event::SchemaChange;
use tide_feed::json;

/// `{"schema":"public","table":"t","columns":[{"name":"id","type":"int8"}]}`, with the columns that
/// are in `readable`; no table for a change of the schema itself, no columns for a drop.
pub fn write_payload(out: &mut Vec<u8>, change: &SchemaChange, readable: &[i16]) {
    out.extend_from_slice(b"{\"schema\":");
    json::write_str(out, &change.schema);
    if let Some(table) = &change.table {
        out.extend_from_slice(b",\"table\":");
        json::write_str(out, table);
    }
    if change.table.is_some() && change.readers.is_none() {
        out.extend_from_slice(b",\"columns\":[");
        let shown = change.columns.iter().filter(|column| readable.contains(&column.attnum));
        for (index, column) in shown.enumerate() {
            out.extend_from_slice(if index == 0 { b"{\"name\":" } else { b",{\"name\":" });
            json::write_str(out, &column.name);
            out.extend_from_slice(b",\"type\":");
            json::write_str(out, &column.type_name);
            out.push(b'}');
        }
        out.push(b']');
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(message: &str, readable: &[i16]) -> String {
        let change = serde_json::from_str(message).expect("what the event triggers write");
        let mut out = Vec::new();
        write_payload(&mut out, &change, readable);
        String::from_utf8(out).expect("UTF-8")
    }

    const ALTERED: &str = r#"{"operation": "ALTER_TABLE", "schema": "s", "table": "t\"", "oid": 7,
        "columns": [{"attnum": 1, "name": "id", "type": "int8"},
                    {"attnum": 3, "name": "a", "type": "_text"}]}"#;

    #[test]
    fn columns_that_may_not_be_read_are_not_named() {
        assert_eq!(
            payload(ALTERED, &[1, 3]),
            r#"{"schema":"s","table":"t\"","columns":[{"name":"id","type":"int8"},{"name":"a","type":"_text"}]}"#
        );
        assert_eq!(
            payload(ALTERED, &[3]),
            r#"{"schema":"s","table":"t\"","columns":[{"name":"a","type":"_text"}]}"#
        );
        assert_eq!(payload(ALTERED, &[]), r#"{"schema":"s","table":"t\"","columns":[]}"#);
    }

    #[test]
    fn a_drop_has_no_columns_and_a_schema_no_table() {
        let dropped = r#"{"operation": "DROP_TABLE", "schema": "s", "table": "t", "oid": 7,
            "readers": ["web"]}"#;
        assert_eq!(payload(dropped, &[]), r#"{"schema":"s","table":"t"}"#);
        let made = r#"{"operation": "CREATE_SCHEMA", "schema": "s", "oid": 7}"#;
        assert_eq!(payload(made, &[]), r#"{"schema":"s"}"#);
        let gone = r#"{"operation": "DROP_SCHEMA", "schema": "s", "table": null, "oid": 7,
            "readers": []}"#;
        assert_eq!(payload(gone, &[]), r#"{"schema":"s"}"#);
    }
}
