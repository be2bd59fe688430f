//! Schemas and records from SQL, and what clients are told of them.

use std::sync::LazyLock;

use postgres::error::DbError;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::{Cluster, Database, wait_until};

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| Cluster::shared().database("records"));
    &DATABASE
}

/// A schema of the test's own, streamed, that `authenticated` may read.
fn schema(stem: &str) -> String {
    let name = database().fresh_name(stem);
    let statement = format!(
        "select tide.create_schema('{name}');
         grant usage on schema \"{name}\" to authenticated;
         alter default privileges in schema \"{name}\" grant select on tables to authenticated;"
    );
    database().sql().batch_execute(&statement).unwrap();
    name
}

#[track_caller]
fn refused(sql: &mut postgres::Client, statement: &str) -> DbError {
    let error = sql.batch_execute(statement).expect_err(statement);
    error.as_db_error().unwrap_or_else(|| panic!("{error}")).clone()
}

#[track_caller]
fn code(sql: &mut postgres::Client, statement: &str) -> String {
    refused(sql, statement).code().code().to_owned()
}

fn set(sql: &mut postgres::Client, schema: &str, key: &str, value: &Value) -> i64 {
    let statement = "select tide.record_set($1, $2::text::jsonb, schema => $3)";
    sql.query_one(statement, &[&key, &value.to_string(), &schema]).unwrap().get(0)
}

/// The version and value of a record, if there is one.
fn get(sql: &mut postgres::Client, schema: &str, key: &str) -> Option<(i64, Value)> {
    let statement = "select version, value::text from tide.record_get($1, $2)";
    let row = sql.query_opt(statement, &[&key, &schema]).unwrap()?;
    Some((row.get(0), serde_json::from_str(row.get(1)).unwrap()))
}

fn tables(sql: &mut postgres::Client, schema: &str) -> Vec<(String, i64)> {
    let statement = "select table_name, row_count from tide.schema_overview($1)";
    let rows = sql.query(statement, &[&schema]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn every_json_value_comes_back_as_it_was() {
    let (s, mut sql) = (schema("values"), database().sql());
    for value in [
        json!(null),
        json!(true),
        json!("a \"string\" with 'quotes', \\ and \u{1f600}"),
        json!(""),
        json!(-1.5),
        json!([]),
        json!({"a": {"b": [1, null, {"c": "d"}]}}),
    ] {
        set(&mut sql, &s, "t/x", &value);
        assert_eq!(get(&mut sql, &s, "t/x").unwrap().1, value);
    }
    assert_eq!(code(&mut sql, "select tide.record_set('t/x', null)"), "22004");
}

#[test]
fn a_key_is_a_table_and_an_id_byte_by_byte() {
    let (s, mut sql) = (schema("keys"), database().sql());
    for (key, table, id) in [
        ("cars/bmw", "cars", "bmw"),
        ("x/y/z", "x", "y/z"),
        ("plain", "default", "plain"),
        ("semi;colon\"q/it's;\"", "semi;colon\"q", "it's;\""),
        ("semicolonq/its", "semicolonq", "its"),
        ("a:b/k:with:colons", "a:b", "k:with:colons"),
        ("X/' OR '1'='1", "X", "' OR '1'='1"),
        ("x/", "x", ""),
        ("x//", "x", "/"),
        ("\u{fc}ber/\u{1f600} %I%s\\", "\u{fc}ber", "\u{1f600} %I%s\\"),
        ("", "default", ""),
    ] {
        set(&mut sql, &s, key, &json!(key));
        assert_eq!(get(&mut sql, &s, key), Some((1, json!(key))), "{key}");
        let quoted = format!("\"{s}\".\"{}\"", table.replace('"', "\"\""));
        let statement = format!("select val::text from {quoted} where id = $1");
        let row = sql.query_one(&statement, &[&id]).unwrap();
        assert_eq!(serde_json::from_str::<Value>(row.get(0)).unwrap(), json!(key));
    }
}

#[test]
fn names_that_postgres_would_cut_off_are_refused() {
    let (s, mut sql) = (schema("names"), database().sql());
    let longest = "\u{fc}".repeat(31) + "x";
    set(&mut sql, &s, &format!("{longest}/k"), &json!(1));
    assert_eq!(tables(&mut sql, &s), [(longest, 1)]);
    let long = "\u{fc}".repeat(32);
    for statement in [
        format!("select tide.record_set('{long}/k', '1', schema => '{s}')"),
        format!("select * from tide.record_get('{long}/k', '{s}')"),
        format!("select * from tide.record_get('k', '{long}')"),
        format!("select * from tide.record_get_many(array['{long}/k'], '{s}')"),
        format!("select tide.record_delete('{long}/k', schema => '{s}')"),
        format!("select * from tide.record_set_many(array['{long}/k'], '{{1}}', schema => '{s}')"),
        format!("select tide.record_delete_many(array['{long}/k'], '{s}')"),
        format!("select tide.create_schema('{long}')"),
        format!("select tide.destroy_schema('{long}')"),
    ] {
        assert_eq!(code(&mut sql, &statement), "42622", "{statement}");
    }
    for statement in ["select tide.record_set('/k', '1')", "select tide.create_schema('')"] {
        assert_eq!(code(&mut sql, statement), "42602", "{statement}");
    }
    for statement in [
        "select tide.record_set(null, '1')",
        "select tide.record_set('k', '1', schema => null)",
        "select tide.create_schema(null)",
    ] {
        assert_eq!(code(&mut sql, statement), "22004", "{statement}");
    }
    assert_eq!(code(&mut sql, "select tide.record_set('k', '1', schema => 'nowhere')"), "3F000");
    assert_eq!(code(&mut sql, "select tide.record_set('k', '1', schema => 'tide')"), "42939");
}

#[test]
fn what_the_caller_has_on_its_search_path_changes_nothing() {
    let (s, mut sql) = (schema("path"), database().sql());
    sql.batch_execute(&format!(
        "create schema mine;
         create type mine.text as enum ('a'); create type mine.jsonb as enum ('a');
         create function mine.format(pg_catalog.text, variadic pg_catalog.text[])
             returns pg_catalog.text language sql return 'nowhere';
         create function mine.never(pg_catalog.text, pg_catalog.text)
             returns pg_catalog.bool language sql return false;
         create operator mine.= (function = mine.never, leftarg = pg_catalog.text,
                                 rightarg = pg_catalog.text);
         set search_path = mine, pg_catalog;
         select tide.record_set('t/x', '1', schema => '{s}');
         select tide.record_set('t/x', '2', expected_version => 1, schema => '{s}');
         create table public.found as select * from tide.record_get('t/x', '{s}');
         reset search_path"
    ))
    .unwrap();
    let found = sql.query_one("select version, value::text from public.found", &[]).unwrap();
    assert_eq!((found.get::<_, i64>(0), found.get::<_, &str>(1)), (2, "2"));
}

#[test]
fn versions_count_up_or_are_as_given() {
    let (s, mut sql) = (schema("versions"), database().sql());
    assert_eq!(set(&mut sql, &s, "t/x", &json!(1)), 1);
    assert_eq!(set(&mut sql, &s, "t/x", &json!(2)), 2);
    let statement = "select tide.record_set('t/x', '3', 3000000000, schema => $1)";
    assert_eq!(sql.query_one(statement, &[&s]).unwrap().get::<_, i64>(0), 3_000_000_000);
    assert_eq!(set(&mut sql, &s, "t/x", &json!(4)), 3_000_000_001);
}

#[test]
fn what_is_not_as_expected_is_refused_with_the_record_as_it_is() {
    let (s, mut sql) = (schema("expected"), database().sql());
    let expecting = |version: i64| {
        format!(
            "select tide.record_set('t/x', '\"new\"', expected_version => {version}, schema => '{s}')"
        )
    };
    let error = refused(&mut sql, &expecting(1));
    assert_eq!((error.code().code(), error.detail()), ("TD001", Some("null")));

    sql.batch_execute(&expecting(-1)).unwrap();
    for statement in [
        expecting(-1),
        expecting(2),
        format!("select tide.record_delete('t/x', 2, '{s}')"),
        format!("select tide.record_set_many('{{t/y,t/x}}', '{{1,2}}', null, '{{null,2}}', '{s}')"),
    ] {
        let error = refused(&mut sql, &statement);
        assert_eq!(error.code().code(), "TD001", "{statement}");
        let current: Value = serde_json::from_str(error.detail().unwrap()).unwrap();
        assert_eq!(current, json!({ "key": "t/x", "version": 1, "value": "new" }));
        assert!(error.hint().is_some());
    }
    assert_eq!(get(&mut sql, &s, "t/y"), None, "nothing is half done");
    sql.batch_execute(&expecting(1)).unwrap();
    assert_eq!(get(&mut sql, &s, "t/x"), Some((2, json!("new"))));
}

#[test]
fn many_records_are_stored_read_and_deleted_at_once() {
    let (s, mut sql) = (schema("many"), database().sql());
    set(&mut sql, &s, "a/old", &json!(0));
    let statement = "select key, version from tide.record_set_many(
                         array['a/x', 'b/y', 'plain', 'a/x', 'a/old', 'default/plain'],
                         array['1', '2', '3', '4', '5', '6']::jsonb[],
                         array[7, null, 9, 8, null, 10], schema => $1)";
    let rows = sql.query(statement, &[&s]).unwrap();
    let mut stored: Vec<(String, i64)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
    stored.sort();
    let expected = [("a/old", 2), ("a/x", 8), ("b/y", 1), ("default/plain", 10)];
    assert_eq!(stored, expected.map(|(key, version)| (key.to_owned(), version)));

    let statement = "select key, version, value::text
                     from tide.record_get_many(array['b/y', 'a/x', 'plain', 'a/none', 'none/x'], $1)
                     order by key";
    let rows = sql.query(statement, &[&s]).unwrap();
    let found: Vec<(String, i64, String)> =
        rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect();
    let expected = [("a/x", 8, "4"), ("b/y", 1, "2"), ("plain", 10, "6")];
    assert_eq!(found, expected.map(|(key, version, value)| (key.into(), version, value.into())));

    let statement = "select tide.record_delete_many(array['a/x', 'b/y', 'none/x', 'a/x'], $1, drop_empty => true)";
    assert_eq!(sql.query_one(statement, &[&s]).unwrap().get::<_, i64>(0), 2);
    assert_eq!(tables(&mut sql, &s), [("a".to_owned(), 1), ("default".to_owned(), 1)]);

    let error = refused(
        &mut sql,
        &format!("select tide.record_set_many('{{c/x,tide/y}}', '{{1}}', schema => '{s}')"),
    );
    assert_eq!(error.code().code(), "2202E");
}

#[test]
fn what_a_transaction_has_stored_it_reads_and_nobody_else() {
    let (s, mut sql, mut other) = (schema("own"), database().sql(), database().sql());
    let mut transaction = sql.transaction().unwrap();
    transaction.execute("select tide.record_set('t/x', '1', schema => $1)", &[&s]).unwrap();
    let statement = "select value::text from tide.record_get('t/x', $1)";
    assert_eq!(transaction.query_one(statement, &[&s]).unwrap().get::<_, String>(0), "1");
    assert_eq!(get(&mut other, &s, "t/x"), None);
    transaction.rollback().unwrap();
    assert_eq!(tables(&mut other, &s), []);
}

#[test]
fn sessions_that_make_the_same_table_at_once_all_succeed() {
    let s = &schema("race");
    let (sessions, rounds) = (8, 10);
    let barrier = &std::sync::Barrier::new(sessions);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..sessions)
            .map(|session| {
                scope.spawn(move || {
                    let mut sql = database().sql();
                    let mut results = Vec::new();
                    for round in 0..rounds {
                        barrier.wait();
                        let key = format!("t{round}/{session}");
                        let statement = "select tide.record_set($1, '1', schema => $2)";
                        let result = sql.query_one(statement, &[&key, s]);
                        results.push(result.map(|row| row.get::<_, i64>(0)));
                    }
                    results
                })
            })
            .collect();
        for result in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            assert_eq!(result.unwrap(), 1);
        }
    });
    let expected: Vec<_> = (0..rounds).map(|round| (format!("t{round}"), 8)).collect();
    assert_eq!(tables(&mut database().sql(), s), expected);
}

#[test]
fn a_type_in_the_way_of_a_table_is_told() {
    let (s, mut sql) = (schema("type"), database().sql());
    sql.batch_execute(&format!("create type {s}.t as enum ('a'); create type {s}.u as (a int)"))
        .unwrap();
    for (key, refusal) in [("t/x", "42710"), ("u/x", "42809")] {
        let statement = format!("select tide.record_set('{key}', '1', schema => '{s}')");
        assert_eq!(code(&mut sql, &statement), refusal);
    }
}

#[test]
fn a_session_that_waits_for_a_table_to_be_made_goes_on_when_it_was_not() {
    let (s, mut sql) = (schema("race"), database().sql());
    let mut transaction = sql.transaction().unwrap();
    transaction.execute("select tide.record_set('t/x', '1', schema => $1)", &[&s]).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| set(&mut database().sql(), &s, "t/x", &json!(2)));
        wait_until("the other session waits", || {
            let waiting = "select 1 from pg_stat_activity
                           where datname = 'records' and wait_event_type = 'Lock'";
            database().sql().query_opt(waiting, &[]).unwrap()
        });
        transaction.rollback().unwrap();
        assert_eq!(waiter.join().unwrap(), 1);
    });
}

#[test]
fn a_table_is_dropped_only_when_it_is_empty_and_nobody_uses_it() {
    let (s, mut sql, mut other) = (schema("drop"), database().sql(), database().sql());
    let delete = format!("select tide.record_delete('t/x', schema => '{s}', drop_empty => true)");
    set(&mut sql, &s, "t/x", &json!(1));
    set(&mut sql, &s, "t/y", &json!(1));
    sql.batch_execute(&delete).unwrap();
    assert_eq!(tables(&mut sql, &s), [("t".to_owned(), 1)], "it was not empty");

    sql.batch_execute(&format!("delete from {s}.t")).unwrap();
    set(&mut sql, &s, "t/x", &json!(1));
    let mut transaction = other.transaction().unwrap();
    transaction.execute("select tide.record_set('t/z', '1', schema => $1)", &[&s]).unwrap();
    sql.batch_execute(&delete).unwrap();
    transaction.commit().unwrap();
    assert_eq!(get(&mut sql, &s, "t/z"), Some((1, json!(1))), "somebody stored a record in it");

    set(&mut sql, &s, "t/x", &json!(1));
    sql.batch_execute(&format!("begin isolation level repeatable read; select from {s}.t"))
        .unwrap();
    sql.batch_execute(&format!("select tide.record_delete('t/z', schema => '{s}')")).unwrap();
    sql.batch_execute(&delete).unwrap();
    sql.batch_execute("commit").unwrap();
    assert_eq!(tables(&mut sql, &s), [("t".to_owned(), 0)], "the snapshot may be old");

    set(&mut sql, &s, "t/x", &json!(1));
    sql.batch_execute(&delete).unwrap();
    assert_eq!(tables(&mut sql, &s), []);
    let gone: bool = sql.query_one(&delete, &[]).unwrap().get(0);
    assert!(!gone);
}

#[test]
fn a_table_with_rows_that_its_owner_does_not_see_is_not_dropped() {
    let (s, mut sql) = (schema("hidden"), database().sql());
    sql.batch_execute(&format!(
        "create role r_hidden; grant usage, create on schema {s} to r_hidden; set role r_hidden"
    ))
    .unwrap();
    set(&mut sql, &s, "t/mine", &json!(1));
    set(&mut sql, &s, "t/others", &json!(1));
    sql.batch_execute(&format!(
        "alter table {s}.t enable row level security, force row level security;
         create policy own on {s}.t using (id = 'mine')"
    ))
    .unwrap();

    let delete =
        format!("select tide.record_delete('t/mine', schema => '{s}', drop_empty => true)");
    sql.batch_execute(&delete).unwrap();

    sql.batch_execute("reset role").unwrap();
    assert_eq!(tables(&mut sql, &s), [("t".to_owned(), 1)]);
}

#[test]
fn records_and_drops_of_their_table_race_without_an_error() {
    let s = schema("churn");
    std::thread::scope(|scope| {
        for session in 0..4 {
            let s = &s;
            scope.spawn(move || {
                let mut sql = database().sql();
                for _ in 0..100 {
                    let key = format!("t/{session}");
                    set(&mut sql, s, &key, &json!(session));
                    assert_eq!(get(&mut sql, s, &key), Some((1, json!(session))));
                    let delete = "select tide.record_delete($1, schema => $2, drop_empty => true)";
                    assert!(sql.query_one(delete, &[&key, s]).unwrap().get::<_, bool>(0));
                }
            });
        }
    });
    let rows: i64 = tables(&mut database().sql(), &s).iter().map(|(_, rows)| rows).sum();
    assert_eq!(rows, 0);
}

#[test]
fn tables_that_the_connector_made_keep_working() {
    let (s, mut sql) = (schema("connector"), database().sql());
    for (table, kind) in [("texts", "text"), ("jsons", "jsonb")] {
        let statement = format!(
            "create table {s}.{table} (id text not null, version int default 0, val {kind} not null,
                                       primary key (id));
             insert into {s}.{table} values ('old', 3, '{{\"a\": \"b\"}}'), ('bare', null, '1')"
        );
        sql.batch_execute(&statement).unwrap();
        assert_eq!(get(&mut sql, &s, &format!("{table}/old")), Some((3, json!({ "a": "b" }))));
        assert_eq!(set(&mut sql, &s, &format!("{table}/old"), &json!("text")), 4);
        assert_eq!(get(&mut sql, &s, &format!("{table}/old")), Some((4, json!("text"))));
        assert_eq!(set(&mut sql, &s, &format!("{table}/bare"), &json!([1])), 1);
        let many = format!(
            "select tide.record_set_many('{{{table}/m}}', '{{2}}', '{{5}}', '{{-1}}', '{s}');
             select tide.record_set_many('{{{table}/m}}', '{{3}}', schema => '{s}')"
        );
        sql.batch_execute(&many).unwrap();
        assert_eq!(get(&mut sql, &s, &format!("{table}/m")), Some((6, json!(3))));
        let too_big =
            format!("select tide.record_set('{table}/old', '1', 3000000000, schema => '{s}')");
        assert_eq!(code(&mut sql, &too_big), "22003");
    }
}

#[test]
fn records_are_the_callers_own_doing() {
    let (s, mut sql) = (schema("rights"), database().sql());
    sql.batch_execute(&format!(
        "create role r_group; create role r_writer login in role r_group; create role r_stranger login;
         alter schema {s} owner to r_group; grant usage on schema {s} to r_stranger;"
    ))
    .unwrap();
    let name = &database().name;
    let mut writer = database().cluster.try_connect(name, "r_writer").unwrap();
    let mut stranger = database().cluster.try_connect(name, "r_stranger").unwrap();

    set(&mut writer, &s, "t/x", &json!(1));
    let owner =
        format!("select relowner::regrole::text from pg_class where oid = '{s}.t'::regclass");
    assert_eq!(writer.query_one(&owner, &[]).unwrap().get::<_, String>(0), "r_group");
    for statement in [
        format!("select tide.record_set('t/x', '1', schema => '{s}')"),
        format!("select tide.record_set('new/x', '1', schema => '{s}')"),
        format!("select * from tide.record_get('t/x', '{s}')"),
        format!("select tide.record_delete('t/x', schema => '{s}')"),
        format!("select tide.destroy_schema('{s}', true)"),
    ] {
        assert_eq!(code(&mut stranger, &statement), "42501", "{statement}");
    }
    assert_eq!(tables(&mut stranger, &s), []);
    sql.batch_execute(&format!("grant all on schema {s} to r_stranger")).unwrap();
    set(&mut stranger, &s, "own/x", &json!(1));
    assert_eq!(tables(&mut stranger, &s), [("own".to_owned(), 1)]);
    let error =
        refused(&mut writer, &format!("select tide.record_set('own/x', '1', schema => '{s}')"));
    assert_eq!(error.code().code(), "42501");
}

#[test]
fn only_its_owner_publishes_a_schema() {
    let mut sql = database().sql();
    sql.batch_execute(
        "select tide.create_schema('p_first');
         create role p_owner login; create role p_other login;
         grant create on database records to p_owner;
         create schema p_theirs; create schema p_mine authorization p_owner;",
    )
    .unwrap();
    let name = &database().name;
    let mut owner = database().cluster.try_connect(name, "p_owner").unwrap();

    for (schema, made) in [("p_new", true), ("p_new", false), ("p_mine", false)] {
        let statement = format!("select tide.create_schema('{schema}')");
        assert_eq!(owner.query_one(&statement, &[]).unwrap().get::<_, bool>(0), made, "{schema}");
        let statement = "select count(*) from pg_publication_namespace
                         where pnnspid = $1::text::regnamespace";
        assert_eq!(sql.query_one(statement, &[&schema]).unwrap().get::<_, i64>(0), 1, "{schema}");
    }
    assert_eq!(code(&mut owner, "select tide.create_schema('p_theirs')"), "42501");
    let direct = "select tide_internal.publish_schema('p_theirs'::regnamespace)";
    assert_eq!(code(&mut owner, direct), "42501");
    let mut other = database().cluster.try_connect(name, "p_other").unwrap();
    assert_eq!(code(&mut other, "select tide.create_schema('p_others')"), "42501");
    // Who does not own it may still call for it, as programs do when they start.
    other.batch_execute("select tide.create_schema('p_new')").unwrap();
    let user: String = owner.query_one("select current_user::text", &[]).unwrap().get(0);
    assert_eq!(user, "p_owner", "a superuser's rights are given back");
}

#[test]
fn schemas_come_and_go() {
    let (s, mut sql) = (schema("Mixed Case"), database().sql());
    set(&mut sql, &s, "t/x", &json!(1));
    let error = refused(&mut sql, &format!("select tide.destroy_schema('{s}')"));
    assert_eq!(error.code().code(), "2BP01");
    assert!(error.hint().unwrap().contains("true"), "{error}");
    sql.batch_execute(&format!("select tide.destroy_schema('{s}', cascade => true)")).unwrap();
    assert_eq!(code(&mut sql, &format!("select tide.destroy_schema('{s}')")), "3F000");
    assert_eq!(tables(&mut sql, &s), []);
    assert_eq!(code(&mut sql, "select tide.create_schema('pg_mine')"), "42939");
}

#[test]
fn an_overview_has_what_the_caller_may_see() {
    let (s, mut sql) = (schema("overview"), database().sql());
    sql.batch_execute(&format!(
        "create table {s}.counted (id int); insert into {s}.counted select generate_series(1, 1000);
         create table {s}.parted (id int) partition by range (id);
         create table {s}.part partition of {s}.parted for values from (0) to (100);
         insert into {s}.parted select generate_series(0, 9);
         create view {s}.seen as select 1 / 0 as x;
         create table {s}.hidden (id int); revoke all on {s}.hidden from authenticated;
         grant select on {s}.counted to authenticated"
    ))
    .unwrap();
    let all = [("counted", 1000), ("hidden", 0), ("part", 10), ("parted", 10)];
    let all = all.map(|(table, rows)| (table.to_owned(), rows));
    assert_eq!(tables(&mut sql, &s), all);

    let estimate = "select table_name, row_count from tide.schema_overview($1, exact => false)";
    let estimates = |sql: &mut postgres::Client| -> Vec<(String, i64)> {
        let rows = sql.query(estimate, &[&s]).unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    assert!(estimates(&mut sql).iter().all(|(_, rows)| *rows >= 0), "nothing is -1");
    sql.batch_execute("analyze").unwrap();
    assert_eq!(estimates(&mut sql), all);
    assert_eq!(sql.query(estimate, &[&"nowhere"]).unwrap().len(), 0);

    sql.batch_execute("set role authenticated").unwrap();
    let visible: Vec<_> = estimates(&mut sql).into_iter().map(|(table, _)| table).collect();
    assert_eq!(visible, ["counted", "part", "parted"]);
}

fn topic(schema: &str) -> String {
    format!("realtime:tide:records:{schema}")
}

/// The event and payload of the next broadcast that is about a record, not about a table.
#[track_caller]
fn told(client: &mut Client, schema: &str) -> (String, Value) {
    let frame = told_whole(client, schema);
    (frame["event"].as_str().unwrap().to_owned(), frame["payload"].clone())
}

#[track_caller]
fn told_whole(client: &mut Client, schema: &str) -> Value {
    loop {
        let frame = client.broadcast(&topic(schema));
        if !frame["event"].as_str().unwrap().ends_with("_TABLE") {
            return frame;
        }
    }
}

#[test]
fn clients_are_told_of_tables_of_records_as_they_come_and_go() {
    let (s, mut sql, mut client) = (schema("tables"), database().sql(), database().client());
    client.join(&topic(&s), &json!({}));
    let mut next = || {
        let frame = client.broadcast(&topic(&s));
        assert!(frame["meta"]["id"].is_string(), "{frame}");
        (frame["event"].as_str().unwrap().to_owned(), frame["payload"].clone())
    };

    set(&mut sql, &s, "cars/1", &json!(1));
    assert_eq!(next(), ("CREATE_TABLE".to_owned(), json!({ "table": "cars" })));
    assert_eq!(next(), ("INSERT".to_owned(), json!({ "table": "cars", "key": "1" })));
    sql.batch_execute(&format!("drop table {s}.cars")).unwrap();

    assert_eq!(next(), ("DROP_TABLE".to_owned(), json!({ "table": "cars" })));
}

#[test]
fn clients_are_told_of_records_and_of_plain_sql_on_their_tables() {
    let (s, mut sql, mut client) = (schema("Told Of"), database().sql(), database().client());
    client.join(&topic(&s), &json!({}));
    let mut with_values = database().client();
    with_values.join(&topic(&s), &json!({ "broadcast": { "values": true } }));

    set(&mut sql, &s, "cars/k:with:colons", &json!({ "km": 1 }));
    sql.batch_execute(&format!(
        "update \"{s}\".cars set val = '2', version = 2;
         update \"{s}\".cars set id = 'renamed';
         delete from \"{s}\".cars;
         create table \"{s}\".texts (id text primary key, version int, val text);
         insert into \"{s}\".texts values ('t', 1, '{{\"a\": \"b\"}}');
         create table \"{s}\".others (id text primary key); insert into \"{s}\".others values ('x');
         truncate \"{s}\".texts, \"{s}\".others;
         select tide.record_set('last/x', 'null', schema => '{s}')"
    ))
    .unwrap();

    let key = "k:with:colons";
    for (event, short, long) in [
        ("INSERT", json!({ "key": key }), json!({ "version": 1, "value": { "km": 1 } })),
        ("UPDATE", json!({ "key": key }), json!({ "version": 2, "value": 2 })),
        (
            "UPDATE",
            json!({ "key": "renamed", "old_key": key }),
            json!({ "version": 2, "value": 2 }),
        ),
        ("DELETE", json!({ "key": "renamed" }), json!({})),
        ("INSERT", json!({ "key": "t" }), json!({ "version": 1, "value": { "a": "b" } })),
        ("TRUNCATE", json!({}), json!({})),
        ("INSERT", json!({ "key": "x" }), json!({ "version": 1, "value": null })),
    ] {
        let table = match event {
            "TRUNCATE" => "texts",
            _ if short["key"] == "t" => "texts",
            _ if short["key"] == "x" => "last",
            _ => "cars",
        };
        let merge = |parts: &[&Value]| {
            let members = parts.iter().flat_map(|part| part.as_object().unwrap().clone());
            let table = ("table".to_owned(), json!(table));
            Value::Object(std::iter::once(table).chain(members).collect())
        };
        assert_eq!(told(&mut client, &s), (event.to_owned(), merge(&[&short])));
        assert_eq!(told(&mut with_values, &s), (event.to_owned(), merge(&[&short, &long])));
    }
}

#[test]
fn a_client_goes_on_with_records_where_it_left_off() {
    let (s, mut sql, mut client) = (schema("resume"), database().sql(), database().client());
    client.join(&topic(&s), &json!({}));
    for key in ["t/1", "t/2", "t/3"] {
        set(&mut sql, &s, key, &json!(1));
    }
    let first = told_whole(&mut client, &s);
    let id = first["meta"]["id"].as_str().unwrap();

    let mut resumed = database().client();
    resumed.join(&topic(&s), &json!({ "broadcast": { "since": id } }));
    assert_eq!(told(&mut resumed, &s).1["key"], "2");
    assert_eq!(told(&mut resumed, &s).1["key"], "3");
    let mut newest = database().client();
    newest.join(&topic(&s), &json!({ "broadcast": { "last": 1 } }));
    assert_eq!(told(&mut newest, &s).1["key"], "3");
    let mut deletes = database().client();
    deletes.join(&topic(&s), &json!({ "broadcast": { "since": id, "events": ["DELETE"] } }));
    sql.batch_execute(&format!("select tide.record_delete('t/1', schema => '{s}')")).unwrap();
    assert_eq!(told(&mut deletes, &s), ("DELETE".into(), json!({ "table": "t", "key": "1" })));
}

#[test]
fn clients_are_told_only_of_records_they_may_read() {
    let (s, mut sql, mut client) = (schema("private"), database().sql(), database().client());
    client.join(&topic(&s), &json!({ "broadcast": { "values": true } }));
    sql.batch_execute(&format!(
        "select tide.record_set_many('{{hidden/0,keys/0,open/0}}', '{{0,0,0}}', schema => '{s}');
         revoke all on {s}.hidden, {s}.keys from authenticated;
         grant select (id) on {s}.keys to authenticated;
         create table {s}.valued (id text primary key, version int, val jsonb);
         revoke all on {s}.valued from authenticated;
         grant select (version, val) on {s}.valued to authenticated;"
    ))
    .unwrap();
    sql.batch_execute(&format!(
        "select tide.record_set_many('{{hidden/x,valued/x,keys/x,open/x}}', '{{1,2,3,4}}', schema => '{s}');"
    ))
    .unwrap();

    let mut heard = Vec::new();
    while heard.last().is_none_or(|payload: &Value| payload["value"] != 4) {
        heard.push(told(&mut client, &s).1);
    }
    heard.retain(|payload| payload["key"] == "x");
    assert_eq!(
        heard,
        [
            json!({ "table": "keys", "key": "x" }),
            json!({ "table": "open", "key": "x", "version": 1, "value": 4 }),
        ]
    );
}

#[test]
fn a_topic_of_records_takes_no_filter() {
    let mut client = database().client();
    for options in [json!({ "filter": "id=eq.1" }), json!({ "select": ["id"] })] {
        let reply = client.try_join(&topic("ds"), &json!({ "broadcast": options }));
        assert_eq!(reply["status"], "error", "{reply}");
    }
}

#[test]
fn policies_decide_whose_records_are_told() {
    let (s, mut sql) = (schema("policy"), database().sql());
    sql.batch_execute(&format!(
        "select tide.record_set('t/first', '{{\"owner\": \"bob\"}}', schema => '{s}');
         alter table {s}.t enable row level security;
         create policy own on {s}.t using (
             val ->> 'owner' = current_setting('request.jwt.claims', true)::jsonb ->> 'sub')"
    ))
    .unwrap();
    let claims = r#"{"sub": "alice"}"#;
    let token = database().token_with("authenticated", claims, "1 hour");
    let mut alice = database().connect(&format!("apikey={token}&vsn=2.0.0"));
    alice.join(&topic(&s), &json!({ "broadcast": { "values": true } }));

    sql.batch_execute(&format!(
        "select tide.record_set_many('{{t/a,t/b}}', array['{{\"owner\": \"alice\"}}',
                                     '{{\"owner\": \"bob\"}}']::jsonb[], schema => '{s}');
         update {s}.t set id = 'taken', val = '{{\"owner\": \"alice\"}}' where id = 'first'"
    ))
    .unwrap();

    let value = json!({ "owner": "alice" });
    let payload = |key: &str| json!({ "table": "t", "key": key, "version": 1, "value": value });
    assert_eq!(told(&mut alice, &s), ("INSERT".into(), payload("a")));
    // Whether it was in sight before cannot be told from its key: then neither is the key.
    assert_eq!(told(&mut alice, &s), ("UPDATE".into(), payload("taken")));
}

#[test]
fn a_client_that_resumes_hears_nothing_of_other_schemas() {
    let (s, other) = (schema("here"), schema("elsewhere"));
    let (mut sql, mut client) = (database().sql(), database().client());
    let schema_topic = format!("realtime:tide:schema:{s}");
    client.join(&topic(&s), &json!({}));
    client.join(&schema_topic, &json!({}));
    set(&mut sql, &s, "t/1", &json!(1));
    let first = told_whole(&mut client, &s);
    let since = json!({ "broadcast": { "since": first["meta"]["id"] } });
    set(&mut sql, &other, "theirs/1", &json!(1));
    set(&mut sql, &s, "u/1", &json!(1));
    client.wait_for("table u", |frame| frame.payload["payload"]["table"] == "u");

    for topic in [topic(&s), schema_topic] {
        let mut resumed = database().client();
        resumed.join(&topic, &since);
        let next = resumed.broadcast(&topic);
        assert_eq!(
            (&next["event"], &next["payload"]["table"]),
            (&json!("CREATE_TABLE"), &json!("u"))
        );
    }
    set(&mut sql, &other, "also_theirs/1", &json!(1));
    let mut newest = database().client();
    newest.join(&topic(&s), &json!({ "broadcast": { "last": 1 } }));
    assert_eq!(newest.broadcast(&topic(&s))["payload"], json!({ "table": "u", "key": "1" }));
}

#[test]
fn sessions_that_make_the_publication_at_once_all_succeed() {
    let database = &Cluster::shared().database("records_publication");
    let (sessions, rounds) = (6, 10);
    for round in 0..rounds {
        database
            .sql()
            .batch_execute("drop publication if exists tide; create table if not exists t (id int primary key)")
            .unwrap();
        let barrier = &std::sync::Barrier::new(sessions);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..sessions)
                .map(|session| {
                    scope.spawn(move || {
                        let mut sql = database.sql();
                        barrier.wait();
                        sql.batch_execute(&if session % 2 == 0 {
                            format!("select tide.create_schema('s_{round}_{session}')")
                        } else {
                            format!(
                                "create table t_{round}_{session} (id int primary key);
                                     select tide.publish('t_{round}_{session}')"
                            )
                        })
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
    }
}
