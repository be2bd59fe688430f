//! Where a client begins that is to have all rows: with a snapshot, in the middle of one, or with a query of
//! its own.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::follower::Follower;
use crate::support::{Cluster, Database, wait_until};

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| Cluster::shared().database("snapshots"));
    &DATABASE
}

/// Makes a published table of so many rows.
fn table(name: &str, rows: u32) {
    let columns = "id bigint primary key, n int, note text";
    let sql = format!(
        "create table {name} ({columns}); grant select on {name} to authenticated;
         select tide.publish('{name}');
         insert into {name} select i, i % 100, 'old' from generate_series(1, {rows}) as i"
    );
    database().sql().batch_execute(&sql).unwrap();
}

fn topic(table: &str) -> String {
    format!("realtime:tide:table:public.{table}")
}

fn join(client: &mut Client, table: &str, options: &Value) {
    client.join(&topic(table), &json!({ "broadcast": options }));
}

/// Why there are no rows.
fn refusal(client: &mut Client, table: &str) -> String {
    join(client, table, &json!({ "snapshot": true }));
    let said = client.wait_for("why", |frame| frame.payload["extension"] == "tide.snapshot");
    assert_eq!(said.payload["status"], "error");
    said.payload["message"].as_str().unwrap().to_owned()
}

#[test]
fn who_was_cut_off_in_the_middle_goes_on_there() {
    table("cut_off", 35_000);
    let mut follower = Follower::new(database(), "cut_off", &json!({ "snapshot": true }));
    while follower.rows.is_empty() {
        follower.take_next();
    }
    assert!(!follower.is_up_to_date);
    // Before the place where it is, across it, and beyond.
    let write = "begin; delete from cut_off where id = 5; update cut_off set n = -1 where id = 6;
                 update cut_off set id = 50001 where id = 7; update cut_off set id = -1 where id = 34000;
                 update cut_off set n = -1 where id = 34001; insert into cut_off values (0, 0, 'new'); commit";
    database().sql().batch_execute(write).unwrap();

    follower.reconnect();

    follower.equals("cut_off", "true", "after it came back");
    assert_eq!(follower.begun, 1);
}

#[test]
fn a_place_that_cannot_be_gone_on_from_is_one_to_begin_anew() {
    table("places", 15_000);
    table("other_places", 5);
    let mut client = database().client();
    join(&mut client, "places", &json!({ "snapshot": true }));
    let page = client.broadcast(&topic("places"));
    let resume = &page["meta"]["resume"];
    assert_eq!((&page["event"], &page["payload"]["fresh"]), (&json!("SNAPSHOT"), &json!(true)));

    let first_page = |name: &str, options: Value| {
        let mut client = database().client();
        join(&mut client, name, &options);
        client.broadcast(&topic(name))["payload"]["fresh"].clone()
    };
    let of_another_table = json!({ "snapshot": true, "resume": resume });
    assert_eq!(first_page("other_places", of_another_table), true);
    let with_a_filter = json!({ "snapshot": true, "resume": resume, "filter": "n=gt.1" });
    assert_eq!(first_page("places", with_a_filter), true);
    assert_eq!(first_page("places", json!({ "snapshot": true, "resume": resume })), Value::Null);
    for none in ["", "e30", "places"] {
        let options = json!({ "broadcast": { "snapshot": true, "resume": none } });
        let reply = database().client().try_join(&topic("places"), &options);
        let reason = reply["response"]["reason"].as_str().unwrap();
        assert!(reason.starts_with("InvalidPosition: resume is not"), "{reason}");
    }
}

#[test]
fn a_row_whose_large_values_the_wal_does_not_have_is_read() {
    table("large", 200);
    let mut sql = database().sql();
    let large = "(select string_agg(md5(i::text || id), '') from generate_series(1, 200) as i)";
    sql.batch_execute(&format!("update large set note = {large}")).unwrap();
    let options = json!({ "snapshot": true, "filter": "n=lt.50" });
    let mut follower = Follower::new(database(), "large", &options);
    follower.equals("large", "n < 50", "at first");

    // Into its sight, out of it and back, and under another key.
    sql.batch_execute(
        "update large set n = 1 where id between 50 and 60;
         update large set n = 70 where id = 55; update large set n = 2 where id = 55;
         begin; update large set n = 3 where id = 61; update large set id = 1061 where id = 61; commit;
         update large set n = 4 where id = 62; delete from large where id = 62",
    )
    .unwrap();
    follower.equals("large", "n < 50", "afterwards");

    assert_eq!(follower.begun, 1);
    assert!(follower.read >= 10, "{} were read", follower.read);
}

#[test]
fn there_are_not_more_rows_than_may_be() {
    let settings = [("tide.snapshot_max_rows", "12000")];
    let few = Cluster::shared().database_with("few", &settings);
    let t = few.table("t", "id int primary key");
    few.sql().batch_execute(&format!("insert into {t} select generate_series(1, 12001)")).unwrap();
    let reason = refusal(&mut few.client(), &t);
    assert!(reason.contains("tide.snapshot_max_rows = 12000"), "{reason}");

    few.sql().batch_execute(&format!("delete from {t} where id = 1")).unwrap();
    Follower::new(&few, &t, &json!({ "snapshot": true })).wait_until_up_to_date();
}

/// All rows that a client of a table without a key has in the end.
fn bag(client: &mut Client, topic: &str, wanted: &mut dyn FnMut() -> Vec<String>) {
    let mut rows: Vec<String> = Vec::new();
    let mut is_up_to_date = false;
    loop {
        let said = client.broadcast(topic);
        let body = &said["payload"];
        let mut remove = |row: &Value| {
            let row = row.to_string();
            let at = rows.iter().position(|known| *known == row);
            rows.remove(at.unwrap_or_else(|| panic!("unknown: {said}")));
        };
        match said["event"].as_str().unwrap() {
            "SNAPSHOT" => {
                rows.extend(body["rows"].as_array().unwrap().iter().map(Value::to_string))
            }
            "up_to_date" => is_up_to_date = true,
            "INSERT" => rows.push(body["record"].to_string()),
            "UPDATE" => {
                remove(&body["old_record"]);
                rows.push(body["record"].to_string());
            }
            "DELETE" => remove(&body["old_record"]),
            other => panic!("{other}"),
        }
        rows.sort();
        if is_up_to_date && rows == wanted() {
            return;
        }
    }
}

#[test]
fn a_table_without_a_key_is_read_at_once() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create table keyless (n int, note text); alter table keyless replica identity full;
         grant select on keyless to authenticated; select tide.publish('keyless');
         insert into keyless select i % 10, 'old' from generate_series(1, 2000) as i",
    )
    .unwrap();
    for filter in [None, Some("n=lt.5")] {
        let mut client = database().client();
        let condition = if filter.is_some() { "n < 5" } else { "true" };
        join(&mut client, "keyless", &json!({ "snapshot": true, "filter": filter }));
        // Two alike, one that changes, one that comes into sight, one that leaves it.
        sql.batch_execute(
            "insert into keyless values (1, 'new'), (1, 'new');
             delete from keyless where ctid = (select ctid from keyless where n = 2 limit 1);
             update keyless set note = 'x' where ctid = (select ctid from keyless where n = 3 limit 1);
             update keyless set n = 1 where ctid = (select ctid from keyless where n = 7 limit 1);
             update keyless set n = 8 where ctid = (select ctid from keyless where n = 4 limit 1)",
        )
        .unwrap();
        let query = format!("select to_jsonb(t)::text from keyless as t where {condition}");
        bag(&mut client, &topic("keyless"), &mut || {
            let rows = sql.query(&query, &[]).unwrap();
            let row = |row: &postgres::Row| row.get::<_, String>(0);
            let json = |text: String| serde_json::from_str::<Value>(&text).unwrap().to_string();
            let mut rows: Vec<String> = rows.iter().map(row).map(json).collect();
            rows.sort();
            rows
        });
    }
}

#[test]
fn a_table_that_cannot_be_read_in_chunks_says_why() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create table much (note text); create table nothing (id int primary key);
         alter table nothing replica identity nothing;
         create table hidden_key (id int primary key, n int);
         grant select on much, nothing to authenticated; grant select (n) on hidden_key to authenticated;
         select tide.publish('much', 'nothing', 'hidden_key');
         insert into much select repeat('x', 1000) from generate_series(1, 4000)",
    )
    .unwrap();
    for (table, expected) in [
        (
            "much",
            "the table has no key, and more rows than are read at once: give it a primary key",
        ),
        ("nothing", "the table has REPLICA IDENTITY NOTHING"),
        ("hidden_key", "its key may not be read"),
    ] {
        let reason = refusal(&mut database().client(), table);
        assert!(reason.contains(expected), "{table}: {reason}");
    }
}

#[test]
fn how_far_it_is_can_be_seen() {
    let mut sql = database().sql();
    // What is written before it is published is not streamed.
    sql.batch_execute(
        "create table progress (id int primary key, note text);
         insert into progress select i, repeat(md5(i::text), 300) from generate_series(1, 4000) as i;
         grant select on progress to authenticated; select tide.publish('progress')",
    )
    .unwrap();
    let query = "select snapshot_rows from tide.stat_channels where topic like '%progress'";
    let mut client = database().client();
    join(&mut client, "progress", &json!({ "snapshot": true }));

    // 40 MB: more than its queue, which it does not read.
    wait_until("some have been told", || {
        let rows: Option<i64> = sql.query_one(query, &[]).unwrap().get(0);
        (rows? > 0 && rows? < 4000).then_some(())
    });
    while client.broadcast(&topic("progress"))["event"] != "up_to_date" {}

    let rows: Option<i64> = sql.query_one(query, &[]).unwrap().get(0);
    assert_eq!(rows, None);
}

/// The ids of what a channel is given up to this one.
fn ids_until(client: &mut Client, table: &str, last: i64) -> Vec<i64> {
    let mut ids = Vec::new();
    while ids.last() != Some(&last) {
        let change = client.broadcast(&topic(table));
        assert_eq!(change["event"], "INSERT", "{change}");
        ids.extend(change["payload"]["record"]["id"].as_i64());
    }
    ids
}

#[test]
fn a_token_stands_for_what_its_query_saw() {
    table("tokens", 3);
    let (mut sql, mut early, mut late) = (database().sql(), database().sql(), database().sql());
    early.batch_execute("begin; insert into tokens values (10)").unwrap();
    late.batch_execute("begin; insert into tokens values (11)").unwrap();
    sql.batch_execute("insert into tokens values (12)").unwrap();
    sql.batch_execute("begin isolation level repeatable read").unwrap();
    let first = "select count(*) from tokens";
    assert_eq!(sql.query_one(first, &[]).unwrap().get::<_, i64>(0), 4);
    // After the transaction's snapshot, before the token.
    early.batch_execute("commit").unwrap();
    database().sql().batch_execute("insert into tokens values (13)").unwrap();
    let query = "select tide.snapshot_token(), count(*) from tokens";
    let row = sql.query_one(query, &[]).unwrap();
    let (token, count): (String, i64) = (row.get(0), row.get(1));
    assert_eq!(count, 4);
    sql.batch_execute("insert into tokens values (14); commit").unwrap();
    late.batch_execute("commit; insert into tokens values (15)").unwrap();

    let mut client = database().client();
    join(&mut client, "tokens", &json!({ "since": token }));

    assert_eq!(ids_until(&mut client, "tokens", 15), [10, 13, 14, 11, 15]);
}

#[test]
fn a_token_whose_unseen_is_not_kept_any_more_is_a_resync() {
    let settings = [("tide.history_size", "64kB")];
    let short = Cluster::shared().database_with("short", &settings);
    let t = short.table("t", "id int primary key, pad text");
    let mut sql = short.sql();
    sql.batch_execute(&format!("begin isolation level repeatable read; select from {t}")).unwrap();
    let mut writer = short.sql();
    for round in 0..4 {
        let first = round * 100;
        writer
            .batch_execute(&format!(
                "insert into {t} select {first} + i, repeat('x', 500) from generate_series(1, 100) as i"
            ))
            .unwrap();
    }
    // The position alone is at hand.
    let query = "select decoded_lsn >= pg_current_wal_lsn() from tide.status()";
    wait_until("all is decoded", || {
        writer.query_one(query, &[]).unwrap().get::<_, Option<bool>>(0)?.then_some(())
    });
    let token: String = sql.query_one("select tide.snapshot_token()", &[]).unwrap().get(0);

    let mut client = short.client();
    join(&mut client, &t, &json!({ "since": token }));

    let said = client.wait_for("a resync", |frame| frame.payload["extension"] == "tide.resync");
    assert!(said.text.contains("trimmed"), "{}", said.text);
}

#[test]
fn a_position_then_a_query_then_a_join_have_all_rows_by_key() {
    table("recipe", 100);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut sql = database().sql();
            for id in 101.. {
                let (gone, changed) = (id - 60, id - 30);
                sql.batch_execute(&format!(
                    "insert into recipe values ({id}, 0, 'new'); delete from recipe where id = {gone};
                     update recipe set n = {id} where id = {changed}"
                ))
                .unwrap();
                if stop.load(Ordering::Relaxed) && id > 400 {
                    break;
                }
            }
        });
        let mut sql = database().sql();
        let select = "select id, to_jsonb(t)::text from recipe as t";
        let read = |sql: &mut postgres::Client| -> BTreeMap<i64, Value> {
            let rows = sql.query(select, &[]).unwrap();
            let json = |row: &postgres::Row| serde_json::from_str(row.get(1)).unwrap();
            rows.iter().map(|row| (row.get(0), json(row))).collect()
        };
        let position: String = sql.query_one("select tide.current_position()", &[]).unwrap().get(0);
        let mut rows = read(&mut sql);
        let mut client = database().client();
        join(&mut client, "recipe", &json!({ "since": position }));
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        while rows != read(&mut sql) {
            let change = client.broadcast(&topic("recipe"));
            let (record, old) = (&change["payload"]["record"], &change["payload"]["old_record"]);
            // Some of it twice: what is there is overwritten, what is not need not be removed.
            old["id"].as_i64().map(|id| rows.remove(&id));
            record["id"].as_i64().map(|id| rows.insert(id, record.clone()));
        }
    });
}

#[test]
fn an_update_that_leaves_alone_what_decides_is_no_end_of_a_row() {
    table("undecided", 100);
    let mut sql = database().sql();
    let large = "(select string_agg(md5(i::text || id), '') from generate_series(1, 200) as i)";
    sql.batch_execute(&format!(
        "update undecided set note = {large}; update undecided set note = note || 'x' where id <= 50"
    ))
    .unwrap();
    let options = json!({ "snapshot": true, "filter": "note=like.%x" });
    let mut follower = Follower::new(database(), "undecided", &options);
    follower.equals("undecided", "note like '%x'", "at first");

    sql.batch_execute(
        "update undecided set n = 1000 where id in (1, 99); update undecided set id = 1002 where id = 2;
         update undecided set n = 1001 where id = 3; delete from undecided where id = 3;
         update undecided set note = 'small x' where id = 98; update undecided set note = 'y' where id = 4",
    )
    .unwrap();
    follower.equals("undecided", "note like '%x'", "afterwards");

    assert_eq!(follower.begun, 1);
}

#[test]
fn a_channel_goes_on_under_a_new_token_of_the_same_role() {
    table("renewed", 35_000);
    let mut client = database().client();
    join(&mut client, "renewed", &json!({ "snapshot": true, "filter": "n=gte.0" }));
    let mut told = 0;
    loop {
        let said = client.broadcast(&topic("renewed"));
        if said["event"] == "up_to_date" {
            break;
        }
        told += said["payload"]["rows"].as_array().unwrap().len();
        let sql = "select tide.token('authenticated', jsonb_build_object('n', random()::text))";
        let token: String = database().sql().query_one(sql, &[]).unwrap().get(0);
        client.push(&topic("renewed"), "access_token", &json!({ "access_token": token }));
    }
    assert_eq!(told, 35_000);
}

#[test]
fn under_a_token_of_somebody_else_it_begins_anew() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create table own (id int primary key, owner text); grant select on own to authenticated;
         create policy p on own using (owner = current_setting('request.jwt.claims')::jsonb ->> 'sub');
         alter table own enable row level security; select tide.publish('own');
         insert into own values (1, 'ann'), (2, 'bob')",
    )
    .unwrap();
    let mut token = |sub: &str| -> String {
        let sql_token = format!("select tide.token('authenticated', '{{\"sub\":\"{sub}\"}}')");
        sql.query_one(&sql_token, &[]).unwrap().get(0)
    };
    let mut client = database().client();
    let topic = topic("own");
    let config = json!({ "broadcast": { "snapshot": true } });
    let joined = json!({ "config": config, "access_token": token("ann") });
    assert_eq!(client.call(&topic, "phx_join", &joined)["status"], "ok");
    assert_eq!(client.broadcast(&topic)["payload"]["rows"][0]["id"], 1);
    assert_eq!(client.broadcast(&topic)["event"], "up_to_date");

    client.push(&topic, "access_token", &json!({ "access_token": token("bob") }));

    client.wait_for("the end of the channel", |frame| frame.event == "phx_error");
    let joined = json!({ "config": config, "access_token": token("bob") });
    assert_eq!(client.call(&topic, "phx_join", &joined)["status"], "ok");
    assert_eq!(client.broadcast(&topic)["payload"]["rows"][0]["id"], 2);
}

#[test]
fn another_policy_counts_though_nothing_happens_in_the_table() {
    table("quiet", 100);
    let mut sql = database().sql();
    sql.batch_execute(
        "create policy p on quiet using (n > 50); alter table quiet enable row level security",
    )
    .unwrap();
    let options = json!({ "snapshot": true, "filter": "n=lt.90" });
    let mut follower = Follower::new(database(), "quiet", &options);
    follower.equals("quiet", "n > 50 and n < 90", "at first");

    sql.batch_execute("alter policy p on quiet using (n > 20)").unwrap();
    follower.equals("quiet", "n > 20 and n < 90", "under another policy");
}

#[test]
fn what_the_publication_leaves_out_is_left_out() {
    table("partly", 100);
    let mut sql = database().sql();
    sql.batch_execute(
        "alter publication tide drop table partly; alter table partly replica identity full;
         alter publication tide add table partly where (n < 50)",
    )
    .unwrap();
    let mut follower = Follower::new(database(), "partly", &json!({ "snapshot": true }));
    follower.equals("partly", "n < 50", "at first");

    sql.batch_execute("update partly set n = n + 30 where id < 90").unwrap();
    follower.equals("partly", "n < 50", "afterwards");
}

#[test]
fn values_are_read_and_printed_as_the_streams_are() {
    let cluster = Cluster::start();
    let database = cluster.database("settings");
    let mut sql = database.sql();
    let name = &database.name;
    sql.batch_execute(&format!(
        "alter database {name} set timezone = 'Europe/Berlin';
         alter database {name} set datestyle = 'iso, dmy'"
    ))
    .unwrap();
    database.restart_worker();
    sql.batch_execute(
        "create table spans (id tstzrange primary key, day date);
         grant select on spans to authenticated; select tide.publish('spans');
         insert into spans select tstzrange(d, d + interval '1 hour'), d::date
         from generate_series(timestamptz '2003-01-20', '2003-02-20', '1 day') as d",
    )
    .unwrap();
    let options = json!({ "snapshot": true, "filter": "day=gte.01/02/2003" });
    let mut follower = Follower::new(&database, "spans", &options);
    let condition = "day >= date '2003-02-01'";
    follower.printed_in_utc().equals("spans", condition, "at first");

    sql.batch_execute(
        "delete from spans where day = '2003-02-10';
         update spans set day = '2003-01-01' where day = '2003-02-11';
         update spans set day = '2003-03-01' where day = '2003-01-25'",
    )
    .unwrap();
    follower.equals("spans", condition, "afterwards");
    assert_eq!(follower.begun, 1);
}
