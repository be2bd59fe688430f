//! Whatever size a value has, or would have as JSON: the worker's memory stays flat, and what is too
//! large for an event is told as one that failed, with its key.

use serde_json::{Value, json};

use crate::memory::peak_kib;
use crate::support::{Cluster, Database};

/// More than a value of the largest size takes, in the row, as text, and as JSON.
const ALLOWED_KIB: u64 = 100 << 10;

/// A few kB to 1 MB in the WAL each, and gigabytes, or tens of megabytes, as JSON. None that is much
/// larger unpacked: for a TOASTed value Postgres's own reorder buffer takes as much as that.
const INPUTS: &[(&str, &str)] = &[
    ("json", "('[' || repeat('1e131071,', 40000) || '1]')::json"),
    ("jsonb", "(select jsonb_agg('1e131071'::numeric) from generate_series(1, 8500))"),
    ("numeric[]", "array_fill('1e131071'::numeric, array[20000])"),
    ("numbers", "(1, array_fill('1e131071'::numeric, array[20000]))::numbers"),
    (
        "numbers[]",
        "array_fill((1, array_fill('1e131071'::numeric, array[100]))::numbers, array[100])",
    ),
    (
        "nummultirange",
        "(select range_agg(numrange(n * '1e100000'::numeric, (n + 0.5) * '1e100000'::numeric))
          from generate_series(1, 10000) n)",
    ),
    ("int[]", "array_fill(null::int, array[100000000])"),
    ("text", r"repeat(E'\x01', 40 << 20)"),
    ("text", r"repeat(E'\x01', 15 << 20)"),
    ("text", "repeat('x', 17 << 20)"),
    ("json", r#"('"' || repeat('\u0001', 5 << 20) || '"')::json"#),
    ("jsonb", r"to_jsonb(repeat(E'\x01', 12 << 20))"),
    ("bytea", "convert_to(repeat('x', 10 << 20), 'UTF8')"),
    (
        "json",
        "('[' || repeat('[', 900) || repeat('0.5e-16000,', 2000) || '1' || repeat(']', 901))::json",
    ),
];

fn start_time(database: &Database<'_>) -> String {
    let query = "select pg_postmaster_start_time()::text";
    database.sql().query_one(query, &[]).unwrap().get(0)
}

#[test]
fn what_would_be_gigabytes_is_told_with_its_key_and_the_rest_goes_on() {
    let cluster = Cluster::with("max_wal_size = 4GB");
    let database = cluster.database("bounds");
    let mut sql = database.sql();
    sql.batch_execute("create type numbers as (n int, list numeric[])").unwrap();
    let mut client = database.client();
    let tables: Vec<String> = (INPUTS.iter().enumerate())
        .map(|(n, (type_name, _))| {
            let columns = format!("id int primary key, small text, big {type_name}");
            let table = database.table("t", &columns);
            client.subscribe(&format!("t{n}"), &table);
            client.join(&format!("realtime:tide:table:public.{table}"), &json!({}));
            table
        })
        .collect();
    sql.batch_execute(&format!("insert into {} values (0, 'warm')", tables[0])).unwrap();
    assert_eq!(client.change()["record"]["id"], 0);
    client.broadcast(&format!("realtime:tide:table:public.{}", tables[0]));
    let (started, worker) = (start_time(&database), database.worker());
    let before = peak_kib(worker);

    for (table, (type_name, value)) in tables.iter().zip(INPUTS) {
        let statement = format!(
            "begin;
             insert into {table} values (1, 'before', null), (2, 'too large', {value}), (3, 'after', null);
             commit"
        );
        sql.batch_execute(&statement).unwrap();

        let ids: Vec<Value> = client.changes(3).iter().map(summary).collect();
        let failed = json!([2, "Error 413: Payload Too Large (54000, column \"big\")"]);
        assert_eq!(ids, [json!([1, null]), failed, json!([3, null])], "{type_name} {value}");
        let topic = format!("realtime:tide:table:public.{table}");
        let told = client.wait_for("the error event", |frame| {
            frame.topic == topic && frame.payload["extension"] == "tide.error"
        });
        assert_eq!(told.payload["sqlstate"], "54000");
        assert_eq!(told.payload["column"], "big");
        assert_eq!(told.payload["key"], "{\"id\":2}");
        for id in [1, 3] {
            assert_eq!(client.broadcast(&topic)["payload"]["record"]["id"], id);
        }
        let grown = peak_kib(worker).saturating_sub(before);
        eprintln!("{type_name} {value}: peak has grown by {grown} KiB");
        assert!(grown < ALLOWED_KIB, "{type_name} {value}: grown by {grown} KiB");
    }

    assert_eq!(database.worker(), worker, "the worker has been restarted");
    assert_eq!(start_time(&database), started, "the server has been restarted");
    let recent = "select record->>'id' from tide.recent(1000) where operation = 'ERROR'";
    let recent = sql.query(recent, &[]).unwrap();
    assert_eq!(recent.len(), INPUTS.len());
    assert!(recent.iter().all(|row| row.get::<_, &str>(0) == "2"));
}

/// The id and what went wrong.
fn summary(change: &Value) -> Value {
    json!([change["record"]["id"], change["errors"][0]])
}

#[test]
fn the_limit_is_one_events_not_one_columns_nor_one_transactions() {
    let cluster = Cluster::shared();
    let settings = [("tide.max_event_size", "64kB")];
    let database = cluster.database_with("bounds_small", &settings);
    let t = database.table("t", "id int primary key, a text, b text");
    let mut client = database.client();
    client.subscribe("t", &t);
    let mut sql = database.sql();
    // JSON of 64 kB at most: two strings with their quotes, and an id of one digit.
    let text = |length: usize| format!("repeat('x', {length})");
    let half = (64 << 10) / 2 - 2;

    sql.batch_execute(&format!(
        "insert into {t} values (1, {fits}, {almost});
         insert into {t} values (2, {fits}, {fits});
         insert into {t} select n, {fits} from generate_series(3, 9) n;
         alter table {t} replica identity full;
         update {t} set b = {almost} where id = 3;
         update {t} set a = '' where id = 1;
         delete from {t} where id = 1",
        fits = text(half),
        almost = text(half - 1),
    ))
    .unwrap();

    let got: Vec<Value> = client.changes(12).iter().map(summary).collect();
    assert_eq!(got[0], json!([1, null]));
    assert_eq!(got[1], json!([2, "Error 413: Payload Too Large (54000, column \"b\")"]));
    assert!((3..10).all(|id| got[id - 1] == json!([id, null])), "{got:?}");
    // The new row alone would do, and the old one not.
    for change in &got[9..11] {
        assert!(change[1].as_str().is_some_and(|error| error.contains("54000")), "{got:?}");
    }
}

#[test]
fn json_with_unsorted_keys_at_every_level_arrives() {
    let database = Cluster::shared().database("bounds_deep");
    let t = database.table("t", "id int primary key, v json");
    let mut client = database.client();
    client.subscribe("t", &t);

    database
        .sql()
        .batch_execute(&format!(
            "insert into {t} values
                 (1, (repeat('{{\"b\":1,\"a\":', 120) || '\"' || repeat('x', 10 << 20) || '\"' || repeat('}}', 120))::json),
                 (2, '2')"
        ))
        .unwrap();

    let first = client.change();
    assert_eq!(first["record"]["id"], 1, "{}", first["errors"]);
    assert_eq!(first["record"]["v"]["a"]["a"]["b"], 1);
    assert_eq!(client.change()["record"]["id"], 2);
}
