//! Which changes are sent, and with what in them.

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::{Cluster, Database};

fn database() -> &'static Database<'static> {
    static DATABASE: std::sync::LazyLock<Database<'static>> =
        std::sync::LazyLock::new(|| Cluster::shared().database("sent_changes"));
    &DATABASE
}

/// A table and a client that gets every change of it.
fn watched(stem: &str, columns: &str) -> (String, Client) {
    let table = database().table(stem, columns);
    let mut client = database().client();
    client.subscribe("room", &table);
    (table, client)
}

fn run(statements: &str) {
    database().sql().batch_execute(statements).unwrap();
}

/// "INSERT 1", "DELETE 2" and so on, by the key `id`.
fn summary(change: &Value) -> String {
    let row = if change["type"] == "DELETE" { &change["old_record"] } else { &change["record"] };
    format!("{} {}", change["type"].as_str().unwrap(), row["id"])
}

fn summaries(client: &mut Client, count: usize) -> Vec<String> {
    client.changes(count).iter().map(summary).collect()
}

#[test]
fn insert_update_and_delete_arrive_in_order_with_their_images() {
    let (t, mut client) = watched("dml", "id int primary key, a text, b int");

    run(&format!("insert into {t} values (1, 'x', 1); update {t} set a = 'y'; delete from {t}"));

    let [insert, update, delete] = client.changes(3).try_into().unwrap();
    assert_eq!(insert["type"], "INSERT");
    assert_eq!(insert["record"], json!({ "id": 1, "a": "x", "b": 1 }));
    assert_eq!(update["type"], "UPDATE");
    assert_eq!(update["record"], json!({ "id": 1, "a": "y", "b": 1 }));
    assert_eq!(update["old_record"], json!({ "id": 1 }));
    assert_eq!(delete["type"], "DELETE");
    assert_eq!(delete["old_record"], json!({ "id": 1 }));
    assert_eq!(delete.get("record"), None);
}

#[test]
fn changes_of_every_statement_arrive() {
    let (t, mut client) = watched("statements", "id int primary key, n int default 0");

    run(&format!(
        "insert into {t} select g from generate_series(1, 3) g;
         insert into {t} values (3) on conflict (id) do update set n = 1;
         insert into {t} values (3) on conflict do nothing;
         with gone as (delete from {t} where id = 1 returning id) insert into {t} select id + 10 from gone;
         merge into {t} using (values (2), (4)) as v (id) on {t}.id = v.id
             when matched then update set n = 2 when not matched then insert values (v.id);
         do $$ begin execute 'update {t} set id = 5 where id = 4'; end $$"
    ));
    run(&format!("copy {t} from program 'printf \"20\\t1\\n21\\t1\\n\"'"));

    assert_eq!(
        summaries(&mut client, 11),
        [
            "INSERT 1",
            "INSERT 2",
            "INSERT 3",
            "UPDATE 3",
            "DELETE 1",
            "INSERT 11",
            "UPDATE 2",
            "INSERT 4",
            "UPDATE 5",
            "INSERT 20",
            "INSERT 21",
        ]
    );
}

#[test]
fn changes_of_triggers_and_foreign_keys_arrive() {
    let (parent, mut client) = watched("parent", "id int primary key, n int default 0");
    let child = database().table(
        "child",
        &format!("id int primary key, parent int references {parent} on delete cascade"),
    );
    client.subscribe("children", &child);
    run(&format!(
        "create function bump_{child}() returns trigger language plpgsql as $$
         begin update {parent} set n = n + 1 where id = new.parent; return null; end $$;
         create trigger bump after insert on {child} for each row execute function bump_{child}()"
    ));

    run(&format!(
        "begin; insert into {parent} values (1); insert into {child} values (7, 1); commit"
    ));
    run(&format!("delete from {parent}"));

    assert_eq!(
        summaries(&mut client, 5),
        ["INSERT 1", "INSERT 7", "UPDATE 1", "DELETE 1", "DELETE 7"]
    );
}

#[test]
fn truncate_reaches_those_who_name_it() {
    let table = database().table("emptied", "id int primary key");
    let mut named = database().client();
    named.subscribe_to("a", json!({ "event": "TRUNCATE", "schema": "public", "table": table }));
    let mut others = database().client();
    others.subscribe("b", &table);

    run(&format!(
        "insert into {table} values (1); truncate {table}; insert into {table} values (2)"
    ));

    assert_eq!(named.change()["type"], "TRUNCATE");
    assert_eq!(others.change()["type"], "INSERT");
    let system = others.wait_for("word of the TRUNCATE", |frame| frame.event == "system");
    assert_eq!(system.payload["status"], "ok");
    assert!(system.text.contains(&table), "{}", system.text);
    assert_eq!(others.change()["record"]["id"], 2);
}

#[test]
fn replica_identity_decides_what_is_known_of_the_old_row() {
    let (t, mut client) = watched("identity", "id int primary key, a text not null, b int");

    run(&format!("insert into {t} values (1, 'x', 1)"));
    run(&format!("update {t} set id = 2"));
    run(&format!("alter table {t} replica identity full; update {t} set b = 2"));
    run(&format!(
        "create unique index {t}_a on {t} (a); alter table {t} replica identity using index {t}_a;
         update {t} set a = 'y'"
    ));
    run(&format!("alter table {t} replica identity full; delete from {t}"));

    let old: Vec<Value> =
        client.changes(5).iter().skip(1).map(|change| change["old_record"].clone()).collect();
    assert_eq!(
        old,
        [
            json!({ "id": 1 }),
            json!({ "id": 2, "a": "x", "b": 1 }),
            json!({ "a": "x" }),
            json!({ "id": 2, "a": "y", "b": 2 }),
        ]
    );
}

#[test]
fn without_a_replica_identity_inserts_arrive_and_updates_fail_in_the_application() {
    let t = database().fresh_name("no_identity");
    run(&format!(
        "create table {t} (id int, a text); grant select on {t} to authenticated;
         select tide.publish('{t}')"
    ));
    let mut client = database().client();
    client.subscribe("room", &t);

    run(&format!("insert into {t} values (1, 'x')"));
    let error = database().sql().batch_execute(&format!("update {t} set a = 'y'")).unwrap_err();

    assert_eq!(client.change()["record"]["id"], 1);
    assert_eq!(error.code().map(postgres::error::SqlState::code), Some("55000"));
}

#[test]
fn an_unchanged_toasted_value_is_left_out_and_never_null() {
    let (t, mut client) = watched("toast", "id int primary key, n int, big text");
    run(&format!("alter table {t} alter big set storage external"));

    run(&format!("insert into {t} values (1, 1, repeat('x', 100000))"));
    run(&format!("update {t} set n = 2"));
    run(&format!("update {t} set big = null"));
    run(&format!("update {t} set big = repeat('y', 100000)"));
    run(&format!("alter table {t} replica identity full; update {t} set n = 3"));

    let [insert, kept, emptied, filled, full] = client.changes(5).try_into().unwrap();
    assert_eq!(insert["record"]["big"].as_str().unwrap().len(), 100_000);
    assert_eq!(kept["record"], json!({ "id": 1, "n": 2 }));
    assert_eq!(emptied["record"], json!({ "id": 1, "n": 2, "big": null }));
    assert_eq!(filled["record"]["big"].as_str().unwrap().len(), 100_000);
    assert_eq!(full["record"]["n"], 3);
    assert_eq!(full["record"]["big"].as_str().unwrap().len(), 100_000);
}

#[test]
fn generated_columns_arrive_and_dropped_columns_do_not() {
    let (t, mut client) = watched(
        "generated",
        "gone int, id int primary key, n int, twice int generated always as (n * 2) stored",
    );
    run(&format!("alter table {t} drop gone"));

    run(&format!("insert into {t} values (1, 21)"));

    let change = client.change();
    assert_eq!(change["record"], json!({ "id": 1, "n": 21, "twice": 42 }));
    assert_eq!(change["columns"].as_array().unwrap().len(), 3);
}

#[test]
fn quoted_names_arrive_as_they_are() {
    run(r#"create schema "Odd Schema";
           create table "Odd Schema"."Tab""le" ("Id" int primary key, "a b" text, "ünï" int, "select" int);
           grant usage on schema "Odd Schema" to authenticated;
           grant select on "Odd Schema"."Tab""le" to authenticated;
           select tide.publish('"Odd Schema"."Tab""le"')"#);
    let mut client = database().client();
    client.subscribe_to(
        "room",
        json!({ "event": "*", "schema": "Odd Schema", "table": "Tab\"le", "filter": "Id=eq.1" }),
    );

    run(r#"insert into "Odd Schema"."Tab""le" values (1, 'x', 2, 3)"#);

    let change = client.change();
    assert_eq!(change["schema"], "Odd Schema");
    assert_eq!(change["table"], "Tab\"le");
    assert_eq!(change["record"], json!({ "Id": 1, "a b": "x", "ünï": 2, "select": 3 }));
}

#[test]
fn partitions_arrive_as_their_root() {
    let t = database().fresh_name("partitioned");
    run(&format!(
        "create table {t} (id int, region text, n int, primary key (id, region)) partition by list (region);
         create table {t}_eu partition of {t} for values in ('eu');
         -- Another order of columns, so that the parent's has to be restored.
         create table {t}_us (gone int, region text not null, n int, id int not null);
         alter table {t}_us drop gone;
         alter table {t} attach partition {t}_us for values in ('us');
         grant select on {t} to authenticated;
         select tide.publish('{t}')"
    ));
    let mut client = database().client();
    client.subscribe("room", &t);

    run(&format!(
        "insert into {t} values (1, 'eu', 1), (2, 'us', 2);
         update {t} set region = 'us' where id = 1;
         insert into {t}_us (id, region) values (3, 'us')"
    ));

    let changes = client.changes(5);
    assert!(changes.iter().all(|change| change["table"] == json!(t)), "{changes:#?}");
    assert_eq!(changes[0]["record"], json!({ "id": 1, "region": "eu", "n": 1 }));
    assert_eq!(changes[1]["record"], json!({ "id": 2, "region": "us", "n": 2 }));
    // Postgres moves a row between partitions by a deletion and an insertion.
    assert_eq!(summary(&changes[2]), "DELETE 1");
    assert_eq!(changes[3]["record"], json!({ "id": 1, "region": "us", "n": 1 }));
    assert_eq!(changes[4]["record"], json!({ "id": 3, "region": "us", "n": null }));
}

/// Rows in the WAL do not have them. Postgres has had them since 18.
#[test]
fn rows_are_filtered_by_virtual_generated_columns() {
    if database().server_version() < 180_000 {
        return;
    }
    let t = database().fresh_name("virtual");
    let publication = format!("p_{t}");
    let cluster = Cluster::shared();
    let other = cluster.database_with(&format!("db_{t}"), &[("tide.publication", &publication)]);
    let mut sql = other.sql();
    sql.batch_execute(&format!(
        "create table {t} (id int primary key, twice int generated always as (id * 2) virtual);
         create publication {publication} for table {t} where (twice > 4) with (publish = 'insert');
         grant select on {t} to authenticated"
    ))
    .unwrap();
    let mut client = other.client();
    client.subscribe("room", &t);

    sql.batch_execute(&format!("insert into {t} values (1), (2), (3), (4)")).unwrap();

    assert_eq!(summaries(&mut client, 2), ["INSERT 3", "INSERT 4"]);
}

#[test]
fn the_publications_filter_columns_and_operations_hold() {
    let t = database().fresh_name("filtered");
    let publication = format!("p_{t}");
    let cluster = Cluster::shared();
    let other = cluster.database_with(&format!("db_{t}"), &[("tide.publication", &publication)]);
    let mut sql = other.sql();
    sql.batch_execute(&format!(
        "create table {t} (id int primary key, open bool, secret text, n int);
         alter table {t} replica identity full;
         create publication {publication} for table {t} where (open) with (publish = 'insert, update');
         grant select on {t} to authenticated"
    ))
    .unwrap();
    let mut client = other.client();
    client.subscribe("room", &t);

    sql.batch_execute(&format!(
        "insert into {t} values (1, true, 'x', 0), (2, false, 'y', 0), (3, null, 'z', 0);
         update {t} set open = false where id = 1; update {t} set open = true where id = 2;
         update {t} set n = 1 where id = 3; delete from {t} where id = 2;
         insert into {t} values (4, true, 'w', 0)"
    ))
    .unwrap();
    // An UPDATE that leaves the filter is sent as DELETE and one that enters it as INSERT; what
    // counts for `publish` is the statement's own operation.
    assert_eq!(summaries(&mut client, 4), ["INSERT 1", "DELETE 1", "INSERT 2", "INSERT 4"]);

    sql.batch_execute(&format!(
        "alter publication {publication} set (publish = 'insert, update, delete');
         alter publication {publication} set table {t} (id, n);
         alter table {t} replica identity default;
         update {t} set n = 5 where id = 4; delete from {t} where id = 4"
    ))
    .unwrap();
    let [update, delete] = client.changes(2).try_into().unwrap();
    assert_eq!(update["record"], json!({ "id": 4, "n": 5 }));
    assert_eq!(delete["old_record"], json!({ "id": 4 }));
}

#[test]
fn an_unpublished_table_is_silent_and_published_again_is_heard() {
    let (t, mut client) = watched("unpublished", "id int primary key");

    run(&format!("insert into {t} values (1)"));
    assert_eq!(summaries(&mut client, 1), ["INSERT 1"]);
    run(&format!("select tide.unpublish('{t}')"));
    run(&format!("insert into {t} values (2)"));
    run(&format!("select tide.publish('{t}')"));
    run(&format!("insert into {t} values (3)"));
    assert_eq!(summaries(&mut client, 1), ["INSERT 3"]);
}

#[test]
fn publishing_and_unpublishing_hold_within_their_own_transaction() {
    let (t, mut client) = watched("republished", "id int primary key");

    run(&format!(
        "begin; insert into {t} values (1); select tide.unpublish('{t}');
         insert into {t} values (2); select tide.publish('{t}'); insert into {t} values (3); commit"
    ));

    assert_eq!(summaries(&mut client, 2), ["INSERT 1", "INSERT 3"]);
}

#[test]
fn savepoints_keep_what_was_released_and_lose_what_was_rolled_back() {
    let (t, mut client) = watched("savepoints", "id int primary key");

    run(&format!(
        "begin;
         insert into {t} values (1);
         savepoint a; insert into {t} values (2); rollback to a;
         savepoint b; insert into {t} values (3);
             savepoint c; insert into {t} values (4); release c;
         release b;
         insert into {t} values (5);
         commit"
    ));
    run(&format!(
        "do $$ begin
             insert into {t} values (6);
             begin insert into {t} values (7), (1); exception when unique_violation then null; end;
         end $$"
    ));

    assert_eq!(
        summaries(&mut client, 5),
        ["INSERT 1", "INSERT 3", "INSERT 4", "INSERT 5", "INSERT 6"]
    );
}

#[test]
fn two_phase_transactions_arrive_when_they_are_committed() {
    let (t, mut client) = watched("two_phase", "id int primary key");

    run(&format!("begin; insert into {t} values (1); prepare transaction 'x_{t}'"));
    run(&format!("begin; insert into {t} values (2); prepare transaction 'y_{t}'"));
    run(&format!("insert into {t} values (3)"));
    run(&format!("rollback prepared 'y_{t}'"));
    run(&format!("commit prepared 'x_{t}'"));

    assert_eq!(summaries(&mut client, 2), ["INSERT 3", "INSERT 1"]);
}

#[test]
fn interleaved_transactions_arrive_whole_in_commit_order() {
    let (t, mut client) = watched("interleaved", "id int primary key");
    let (mut one, mut two) = (database().sql(), database().sql());
    let step = |session: &mut postgres::Client, sql: String| session.batch_execute(&sql).unwrap();

    step(&mut one, format!("begin; insert into {t} values (1)"));
    step(&mut two, format!("begin; insert into {t} values (11)"));
    step(&mut one, format!("insert into {t} values (2)"));
    step(&mut two, format!("insert into {t} values (12); commit"));
    step(&mut one, format!("insert into {t} values (3); commit"));

    assert_eq!(
        summaries(&mut client, 5),
        ["INSERT 11", "INSERT 12", "INSERT 1", "INSERT 2", "INSERT 3"]
    );
}

#[test]
fn schema_changes_between_transactions_show_from_then_on() {
    let (t, mut client) = watched("altered", "id int primary key, a int");

    // Each is waited for: of a column that is dropped by the time its row is sent, nobody can say
    // who may see it, and nobody does.
    let mut record = |statements: String| {
        run(&statements);
        client.change()["record"].clone()
    };
    let records = [
        record(format!("insert into {t} values (1, 1)")),
        record(format!("alter table {t} add b text default 'new'; insert into {t} values (2, 2)")),
        record(format!("alter table {t} rename a to c; insert into {t} values (3, 3)")),
        record(format!(
            "alter table {t} alter c type text using c || '!'; insert into {t} values (4, '4')"
        )),
        record(format!("alter table {t} drop b; insert into {t} values (5, '5')")),
    ];

    assert_eq!(
        records,
        [
            json!({ "id": 1, "a": 1 }),
            json!({ "id": 2, "a": 2, "b": "new" }),
            json!({ "id": 3, "c": 3, "b": "new" }),
            json!({ "id": 4, "c": "4", "b": "new" }),
            json!({ "id": 5, "c": "5" }),
        ]
    );
}

#[test]
fn schema_changes_within_a_transaction_show_from_then_on() {
    let (t, mut client) = watched("altering", "id int primary key, a int");

    run(&format!(
        "begin;
         insert into {t} values (1, 1);
         alter table {t} add b int default 7;
         insert into {t} values (2, 2);
         alter table {t} alter a type text;
         insert into {t} values (3, 'three');
         alter table {t} rename b to c;
         insert into {t} values (4, 'four');
         commit"
    ));

    let records: Vec<Value> =
        client.changes(4).iter().map(|change| change["record"].clone()).collect();
    assert_eq!(
        records,
        [
            json!({ "id": 1, "a": 1 }),
            json!({ "id": 2, "a": 2, "b": 7 }),
            json!({ "id": 3, "a": "three", "b": 7 }),
            json!({ "id": 4, "a": "four", "c": 7 }),
        ]
    );
}

#[test]
fn a_column_dropped_since_its_rows_were_written_harms_nobody() {
    let (t, mut client) = watched("dropping", "id int primary key, a int, b text");

    run(&format!(
        "begin;
         insert into {t} values (1, 1, 'x');
         alter table {t} drop b;
         insert into {t} values (2, 2);
         alter table {t} add b int;
         insert into {t} values (3, 3, 3);
         commit"
    ));

    let ids: Vec<Value> =
        client.changes(3).iter().map(|change| change["record"]["a"].clone()).collect();
    assert_eq!(ids, [1, 2, 3]);
}

#[test]
fn a_table_that_is_renamed_is_told_under_its_new_name_to_those_who_have_not_named_it() {
    let (t, mut client) = watched("renamed", "id int primary key");
    let mut everything = database().client();
    everything.subscribe_to("all", json!({ "event": "*", "schema": "public" }));

    run(&format!("insert into {t} values (1); alter table {t} rename to {t}_new"));
    run(&format!("insert into {t}_new values (2)"));

    let mut tables = [(); 2].map(|()| {
        loop {
            let change = everything.change();
            if change["table"].as_str().unwrap().starts_with(&t) {
                break change["table"].clone();
            }
        }
    });
    tables.sort_by_key(ToString::to_string);
    assert_eq!(tables, [json!(t), json!(format!("{t}_new"))]);
    assert_eq!(client.change()["table"], json!(t));
    let told = client.wait_for("the end", |frame| frame.event == "phx_error");
    assert_eq!(told.topic, "realtime:room");
    assert_eq!(client.passed("system").last().unwrap().payload["extension"], "tide.subscription");
}

#[test]
fn the_last_row_of_a_transaction_is_marked_whatever_the_transaction_does_after_it() {
    let t = database().table("last", "id int primary key");
    let mut client = database().client();
    let topic = format!("realtime:tide:table:public.{t}");
    client.join(&topic, &json!({}));
    for (id, statements) in [
        "",
        "create function c_after() returns int language sql as 'select 1'",
        "create role c_after; grant select on $t to c_after; drop owned by c_after; drop role c_after",
    ]
    .iter()
    .enumerate()
    {
        let statements = statements.replace("$t", &t);
        run(&format!(
            "begin; insert into {t} values ({id}); insert into {t} values ({id} + 10); {statements}; commit"
        ));
        let marks = [(); 2].map(|()| client.broadcast(&topic)["meta"]["last_in_tx"].clone());
        assert_eq!(marks, [Value::Null, Value::Bool(true)], "{statements}");
    }
}

#[test]
fn tables_that_never_reach_the_wal_or_are_rewritten_make_no_events() {
    let (t, mut client) = watched("rewritten", "id int primary key, a int");

    run(&format!(
        "insert into {t} values (1, 1);
         alter table {t} alter a type bigint;
         cluster {t} using {t}_pkey;
         create temp table scratch as select * from {t};
         create unlogged table {t}_u as select * from {t};
         create materialized view {t}_m as select * from {t};
         refresh materialized view {t}_m;
         insert into {t} values (2, 2)"
    ));

    assert_eq!(summaries(&mut client, 2), ["INSERT 1", "INSERT 2"]);
}

#[test]
fn a_value_that_cannot_be_sent_costs_one_event() {
    // An output function that fails on one value: enum_out does on an oid that is no label.
    run("create type c_label as enum ('fine');
         create type c_broken;
         create function c_broken_in(cstring) returns c_broken
             language internal strict immutable as 'oidin';
         create function c_broken_out(c_broken) returns cstring
             language internal strict immutable as 'enum_out';
         create type c_broken (input = c_broken_in, output = c_broken_out, like = oid)");
    let (t, mut client) = watched("poisoned", "id int primary key, v c_broken");
    let label: u32 = database()
        .sql()
        .query_one("select oid from pg_enum where enumtypid = 'c_label'::regtype", &[])
        .unwrap()
        .get(0);

    run(&format!(
        "insert into {t} values (1, '{label}'), (2, '1'), (3, '{label}');
         insert into {t} values (4, '{label}')"
    ));

    assert_eq!(summaries(&mut client, 1), ["INSERT 1"]);
    assert_eq!(summaries_of_good(&mut client, 2), ["INSERT 3", "INSERT 4"]);
    let errors = client.passed("postgres_changes");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let data = &errors[0].payload["data"];
    assert_eq!(data["table"], json!(t));
    assert!(data["errors"].as_array().is_some_and(|errors| !errors.is_empty()), "{data}");
}

/// Skips events that say that a change could not be sent.
fn summaries_of_good(client: &mut Client, count: usize) -> Vec<String> {
    (0..count)
        .map(|_| {
            let frame = client.wait_for("a change without errors", |frame| {
                frame.event == "postgres_changes" && frame.payload["data"]["errors"].is_null()
            });
            summary(&frame.payload["data"])
        })
        .collect()
}

#[test]
fn a_transaction_of_many_rows_arrives_whole() {
    let (t, mut client) = watched("many", "id int primary key, pad text");

    run(&format!("insert into {t} select g, repeat('x', 100) from generate_series(1, 50000) g"));

    for id in 1..=50_000 {
        let change = client.change();
        assert_eq!(change["record"]["id"], id, "{change}");
    }
}
