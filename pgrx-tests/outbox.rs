//! Outboxes: what is inserted arrives, in commit order, and goes; nothing is lost with the slot.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use postgres::error::DbError;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::cluster::signal;
use crate::support::{Cluster, DEADLINE, Database, ably, wait_until};

pub const PUBLIC: (&str, &str) = ("tide.public_channels", "on");

/// A database whose channels anybody may join.
pub fn open<'a>(cluster: &'a Cluster, name: &str) -> Database<'a> {
    cluster.database_with(name, &[PUBLIC])
}

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| open(Cluster::shared(), "outbox"));
    &DATABASE
}

/// A client in a channel.
pub fn member(database: &Database<'_>, channel: &str) -> Client {
    let mut client = database.client();
    client.join(&format!("realtime:{channel}"), &json!({}));
    client
}

/// The next message on the channel.
#[track_caller]
pub fn message(client: &mut Client, channel: &str) -> Value {
    client.broadcast(&format!("realtime:{channel}"))
}

#[track_caller]
pub fn refused(sql: &mut postgres::Client, statement: &str) -> DbError {
    let error = sql.batch_execute(statement).expect_err(statement);
    error.as_db_error().unwrap_or_else(|| panic!("{error}")).clone()
}

pub fn count(sql: &mut postgres::Client, query: &str) -> i64 {
    sql.query_one(&format!("select count(*) from {query}"), &[]).unwrap().get(0)
}

/// Waits until all rows but the newest have gone, and that is flagged.
#[track_caller]
pub fn wait_until_swept(database: &Database<'_>, outbox: &str) {
    let mut sql = database.sql();
    wait_until(&format!("{outbox} is swept"), || {
        let rows = sql.query(&format!("select locked_by from {outbox}"), &[]).unwrap();
        let flags: Vec<Option<&str>> = rows.iter().map(|row| row.get(0)).collect();
        (flags == [Some("published")]).then_some(())
    });
}

#[test]
fn what_is_inserted_arrives() {
    let mut client = member(database(), "ob_room");
    let mut sql = database().sql();

    sql.batch_execute(
        "begin;
         insert into tide.outbox (channel, name, data, private) values ('ob_room', 'never', '{}', false);
         rollback;
         insert into tide.outbox (mutation_id, channel, name, data, headers, rejected, private)
         values ('m-1', 'ob_room', 'edit', '{\"id\": 1}', '{\"h\": [1]}', true, false);
         insert into tide.outbox (channel, name, data) values ('ob_room', 'for others', '{}')",
    )
    .unwrap();
    let id: i64 = sql
        .query_one("select tide.enqueue('ob_room', 'list', '[1, null]', private => false)", &[])
        .unwrap()
        .get(0);

    let first = message(&mut client, "ob_room");
    assert_eq!(first["event"], "edit");
    assert_eq!(first["payload"], json!({ "id": 1 }));
    assert_eq!(first["meta"]["mutation_id"], "m-1");
    assert_eq!(first["meta"]["headers"], json!({ "h": [1] }));
    assert_eq!(first["meta"]["rejected"], true);
    let second = message(&mut client, "ob_room");
    assert_eq!(second["event"], "list");
    assert_eq!(second["payload"], json!({ "data": [1, null] }));
    assert_eq!(second["meta"]["wrapped"], true);
    assert_eq!(second["meta"]["sequence_id"], id.to_string());
    assert_eq!(second["meta"]["rejected"], false);
    assert_eq!(second["meta"]["mutation_id"].as_str().map(str::len), Some(36));
    assert_eq!(second["meta"]["prev"], first["meta"]["id"]);
}

#[test]
fn order_is_that_of_the_commits() {
    let mut client = member(database(), "ob_order");
    let (mut slow, mut fast) = (database().sql(), database().sql());
    let insert = |name: &str| {
        format!(
            "insert into tide.outbox (channel, name, private) values ('ob_order', '{name}', false)"
        )
    };

    slow.batch_execute(&format!("begin; {}", insert("inserted first"))).unwrap();
    fast.batch_execute(&insert("committed first")).unwrap();
    let first = message(&mut client, "ob_order");
    slow.batch_execute(&format!("{}; commit", insert("and another"))).unwrap();
    let rest = [message(&mut client, "ob_order"), message(&mut client, "ob_order")];

    assert_eq!(first["event"], "committed first");
    assert_eq!(rest[0]["event"], "inserted first");
    assert_eq!(rest[1]["event"], "and another");
    let number = |message: &Value| -> i64 {
        message["meta"]["sequence_id"].as_str().unwrap().parse().unwrap()
    };
    assert!(number(&rest[0]) < number(&first), "{first} {rest:?}");
    assert!(rest[0]["meta"]["id"].as_str() > first["meta"]["id"].as_str());
}

#[test]
fn published_rows_go_but_for_the_newest_and_nobody_hears_of_it() {
    let cluster = Cluster::shared();
    let swept = open(cluster, "outbox_swept");
    let mut sql = swept.sql();
    // Even a publication for all tables does not stream what becomes of the rows.
    sql.batch_execute(
        "create publication tide for all tables; create table t (id int primary key);
         grant select on t to authenticated",
    )
    .unwrap();
    let mut client = member(&swept, "sw_room");
    client.join("realtime:tide:table:*", &json!({}));

    sql.batch_execute(
        "insert into tide.outbox (channel, name, data, private)
         select 'sw_room', 'n', jsonb_build_object('n', n), false from generate_series(1, 2500) n",
    )
    .unwrap();
    for n in 1..=2500 {
        assert_eq!(message(&mut client, "sw_room")["payload"]["n"], n);
    }
    wait_until_swept(&swept, "tide.outbox");
    sql.batch_execute("select tide.enqueue('sw_room', 'last', '{}', private => false)").unwrap();
    assert_eq!(message(&mut client, "sw_room")["event"], "last");
    wait_until_swept(&swept, "tide.outbox");

    sql.batch_execute("insert into t values (1)").unwrap();
    let change = client.broadcast("realtime:tide:table:*");
    assert_eq!(change["payload"]["table"], "t");
    assert!(client.passed("broadcast").is_empty());
    let tables: i64 =
        count(&mut sql, "tide.recent(10000) where operation not in ('MESSAGE', 'CREATE_TABLE')");
    assert_eq!(tables, 1);
}

#[test]
fn rows_are_kept_for_as_long_as_asked() {
    let cluster = Cluster::shared();
    let kept = cluster.database_with("outbox_kept", &[PUBLIC, ("tide.outbox_retention", "1h")]);
    let mut sql = kept.sql();
    sql.batch_execute("select tide.enqueue('r', 'n', '1') from generate_series(1, 3)").unwrap();
    wait_until("all are flagged", || {
        (count(&mut sql, "tide.outbox where locked_by = 'published'") == 3).then_some(())
    });

    // An hour ago.
    sql.batch_execute("update tide.outbox set lock_expiry = lock_expiry - interval '1 hour'")
        .unwrap();
    sql.batch_execute("select tide.restart_worker()").unwrap();

    wait_until_swept(&kept, "tide.outbox");
}

#[test]
fn channels_of_pg_tides_own_are_refused() {
    let mut sql = database().sql();
    for statement in [
        "insert into tide.outbox (channel, name) values ('tide:notify:jobs', 'x')",
        "select tide.enqueue('tide:table:t', 'x', '{}')",
    ] {
        let error = refused(&mut sql, statement);
        assert_eq!(error.code().code(), "42939", "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
}

#[test]
fn a_table_of_ablys_is_adopted_with_what_waits_in_it() {
    let database = database();
    let mut sql = database.sql();
    sql.batch_execute(&ably::outbox("Odd \"\"Schema", "Out Box")).unwrap();
    let outbox = r#""Odd ""Schema"."Out Box""#;
    sql.batch_execute(&format!(
        "insert into {outbox} (sequence_id, mutation_id, channel, name, data, processed) values
             (3, 'c', 'ad_room', 'third', null, false),
             (1, 'a', 'ad_room', 'done', '{{}}', true),
             (2, 'b', 'ad_room', 'second', '{{\"x\": 1}}', false);
         select setval(pg_get_serial_sequence('{outbox}', 'sequence_id'), 3)"
    ))
    .unwrap();
    let mut client = member(database, "ad_room");

    let adopt = format!("select tide.adopt_outbox('{outbox}', private => false)");
    sql.batch_execute(&adopt).unwrap();
    sql.batch_execute(&adopt).unwrap();
    sql.batch_execute(&format!(
        "insert into {outbox} (mutation_id, channel, name, data) values ('d', 'ad_room', 'fourth', '4')"
    ))
    .unwrap();

    let got: Vec<Value> = (0..3).map(|_| message(&mut client, "ad_room")).collect();
    let names: Vec<&str> = got.iter().map(|message| message["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["second", "third", "fourth"]);
    assert_eq!(got[1]["payload"], json!({ "data": null }));
    assert_eq!(got[2]["payload"], json!({ "data": 4 }));
    assert_eq!(got[2]["meta"]["sequence_id"], "4");
    wait_until("the waiting rows have gone", || {
        let rows = sql
            .query(
                &format!("select sequence_id, processed from {outbox} order by sequence_id"),
                &[],
            )
            .unwrap();
        let rows: Vec<(i32, bool)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        (rows == [(1, true), (4, true)]).then_some(())
    });
    assert_eq!(
        refused(&mut sql, &format!("select tide.publish('{outbox}')")).code().code(),
        "42809"
    );

    sql.batch_execute(&format!(
        "select tide.release_outbox('{outbox}');
         insert into {outbox} (mutation_id, channel, name) values ('e', 'ad_room', 'released');
         select tide.enqueue('ad_room', 'after', '{{}}', private => false)"
    ))
    .unwrap();
    assert_eq!(message(&mut client, "ad_room")["event"], "after");
}

#[test]
fn what_cannot_be_an_outbox_is_told_why() {
    let mut sql = database().sql();
    sql.batch_execute("create schema misshapen; set search_path = misshapen").unwrap();
    let good = "sequence_id bigserial primary key, mutation_id text, channel text, name text,
                locked_by text, lock_expiry timestamptz";
    sql.batch_execute(&format!(
        "create unlogged table unlogged ({good});
         create temporary table temporary ({good});
         create table partitioned ({good}) partition by range (sequence_id);
         create table slice partition of partitioned for values from (1) to (9);
         create table parent ({good}); create table child () inherits (parent);
         create table referred ({good}); create table referring (id bigint references referred);
         create table ruled ({good}); create rule r as on delete to ruled do instead nothing;
         create table forced ({good}); alter table forced force row level security;
         create view seen as select * from ruled;
         create foreign data wrapper w; create server s foreign data wrapper w;
         create foreign table elsewhere (sequence_id bigint) server s;
         create table unkeyed (like ruled);
         create table few (sequence_id bigint primary key, mutation_id text, channel text);
         create table odd (sequence_id numeric primary key, mutation_id uuid, channel text, name text,
                           locked_by text, lock_expiry timestamp, data text)"
    ))
    .unwrap();

    for (table, problem) in [
        ("unlogged", "it is unlogged"),
        ("temporary", "it is temporary"),
        ("partitioned", "it is partitioned"),
        ("slice", "it is a partition"),
        ("parent", "child inherits from it"),
        ("referred", "referring refers to its rows"),
        ("ruled", "rule \"r\""),
        ("forced", "row-level security"),
        ("seen", "it is a view"),
        ("elsewhere", "it is a foreign table"),
        ("unkeyed", "no unique index"),
        (
            "few",
            "column \"lock_expiry\" is missing; column \"locked_by\" is missing; column \"name\"",
        ),
        ("odd", "column \"sequence_id\" is of type numeric, not integer or bigint"),
        ("odd", "column \"data\" is of type text, not json or jsonb"),
        ("tide.secret", "one of pg_tide's own tables"),
        ("pg_class", "it is a system table"),
    ] {
        let error = refused(&mut sql, &format!("select tide.adopt_outbox('{table}')"));
        assert_eq!(error.code().code(), "42809", "{table}: {error}");
        let detail = error.detail().unwrap();
        assert!(detail.contains(problem), "{table}: {detail}");
        assert!(error.hint().is_some());
    }
    sql.batch_execute(&format!(
        "create table published ({good}); select tide.publish('published')"
    ))
    .unwrap();
    let error = refused(&mut sql, "select tide.adopt_outbox('published')");
    assert_eq!(error.code().code(), "55000", "{error}");
    sql.batch_execute(error.hint().unwrap()).unwrap();
    sql.batch_execute("select tide.adopt_outbox('published'); drop schema misshapen cascade")
        .unwrap();
}

#[test]
fn an_owner_who_was_granted_it_adopts_and_nobody_else() {
    let cluster = Cluster::shared();
    let granted = open(cluster, "outbox_granted");
    granted
        .sql()
        .batch_execute(
            "create role ob_owner login; create role ob_stranger login;
             create schema authorization ob_owner",
        )
        .unwrap();
    let mut sql = cluster.try_connect("outbox_granted", "ob_owner").unwrap();
    let mut stranger = cluster.try_connect("outbox_granted", "ob_stranger").unwrap();
    sql.batch_execute(
        &ably::outbox("ob_owner", "mine").replace("create schema if not exists \"ob_owner\";", ""),
    )
    .unwrap();

    let adopt = "select tide.adopt_outbox('ob_owner.mine', false)";
    assert_eq!(refused(&mut sql, adopt).code().code(), "42501");
    for closed in [
        "insert into tide.outboxes (relation) values ('ob_owner.mine')",
        "insert into tide.outbox (channel, name) values ('x', 'y')",
        "select tide.enqueue('x', 'y', '{}')",
        "select tide_internal.adopt_outbox('ob_owner.mine', false)",
        "select tide.release_outbox('tide.outbox')",
    ] {
        assert_eq!(refused(&mut sql, closed).code().code(), "42501", "{closed}");
    }
    granted
        .sql()
        .batch_execute(
            "grant execute on function tide.adopt_outbox, tide.release_outbox to ob_owner, ob_stranger;
             grant usage on schema ob_owner to ob_stranger;
             grant insert on tide.outbox to ob_owner",
        )
        .unwrap();
    assert_eq!(refused(&mut stranger, adopt).code().code(), "42501");

    let mut client = member(&granted, "room");
    sql.batch_execute(adopt).unwrap();
    sql.batch_execute(
        "insert into mine (mutation_id, channel, name) values ('a', 'room', 'theirs');
         insert into tide.outbox (channel, name, private) values ('room', 'ours', false)",
    )
    .unwrap();
    let mut names =
        [0, 1].map(|_| message(&mut client, "room")["event"].as_str().unwrap().to_owned());
    names.sort();
    assert_eq!(names, ["ours", "theirs"]);
    assert_eq!(
        refused(&mut stranger, "select tide.release_outbox('ob_owner.mine')").code().code(),
        "42501"
    );
}

#[test]
fn what_an_adopted_tables_owner_wrote_runs_as_that_owner() {
    let cluster = Cluster::shared();
    let hostile = open(cluster, "outbox_hostile");
    let mut sql = hostile.sql();
    sql.batch_execute(
        "create role ob_hostile login; create schema h authorization ob_hostile;
         grant execute on function tide.adopt_outbox to ob_hostile",
    )
    .unwrap();
    let mut theirs = cluster.try_connect("outbox_hostile", "ob_hostile").unwrap();
    theirs
        .batch_execute(&ably::outbox("h", "o").replace("create schema if not exists \"h\";", ""))
        .unwrap();
    // Fires also for pg_tide's own deletions, and tries to become somebody.
    theirs
        .batch_execute(
            "create table h.log (who text, became text);
             create table h.audit (who text);
             create function h.audit() returns trigger language plpgsql as $$
             begin insert into h.audit values (new.who); return new; end $$;
             create trigger audit before insert on h.log for each row execute function h.audit();
             create function h.grab() returns trigger language plpgsql as $$
             declare became text := 'nobody';
             begin
                 begin
                     execute 'reset session authorization';
                     execute 'set role postgres';
                     became := current_user;
                 exception when others then became := sqlstate;
                 end;
                 insert into h.log values (current_user, became);
                 return coalesce(new, old);
             end $$;
             create trigger grab before delete or update on h.o for each row execute function h.grab();
             alter table h.o enable always trigger grab;
             select tide.adopt_outbox('h.o', false)",
        )
        .unwrap();

    theirs
        .batch_execute(
            "insert into h.o (mutation_id, channel, name) values ('a', 'room', '1'), ('b', 'room', '2')",
        )
        .unwrap();
    wait_until_swept(&hostile, "h.o");

    let rows = sql.query("select distinct who, became from h.log", &[]).unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        assert_eq!((row.get(0), row.get(1)), ("ob_hostile", "42501"));
    }
    // What watches other tables is not off for it.
    let audited = "select (select count(*) from h.log) = (select count(*) from h.audit)";
    assert!(sql.query_one(audited, &[]).unwrap().get::<_, bool>(0));
}

#[test]
fn an_outbox_that_lost_a_column_keeps_its_rows_until_it_has_it_again() {
    let cluster = Cluster::shared();
    let mended = open(cluster, "outbox_mended");
    let mut sql = mended.sql();
    sql.batch_execute(&ably::outbox("public", "o")).unwrap();
    sql.batch_execute("select tide.adopt_outbox('o', false)").unwrap();
    let mut client = member(&mended, "room");
    let insert = |sql: &mut postgres::Client, table: &str, channel: &str, name: &str| {
        let columns = format!("mutation_id, {channel}, name, rejected");
        sql.batch_execute(&format!(
            "insert into {table} ({columns}) values ('m', 'room', '{name}', false)"
        ))
        .unwrap();
    };
    insert(&mut sql, "o", "channel", "whole");
    assert_eq!(message(&mut client, "room")["event"], "whole");

    sql.batch_execute("alter table o rename column channel to room").unwrap();
    insert(&mut sql, "o", "room", "lost");
    let query = "select problem from tide.check() where item = 'outbox public.o'";
    let problem: String = sql.query_one(query, &[]).unwrap().get(0);
    assert!(problem.contains("column \"channel\" is missing"), "{problem}");
    // The restart is for the outbox cleaner to look soon.
    mended.restart_worker();
    wait_until("the outbox is nobody's", || {
        let query = "tide.outboxes where relation = 'o'::regclass and generation is null";
        (count(&mut sql, query) == 1).then_some(())
    });
    sql.batch_execute("alter table o rename column room to channel").unwrap();
    // By itself it looks again within a minute, which is as long as a silent client may stay.
    mended.restart_worker();

    let mut client = mended.client();
    client.join("realtime:room", &json!({ "broadcast": { "last": 1 } }));
    insert(&mut sql, "o", "channel", "whole again");
    let wait_for = |client: &mut Client, name: &str| {
        while message(client, "room")["event"] != name {}
    };
    wait_for(&mut client, "lost");
    wait_for(&mut client, "whole again");
}

#[test]
fn what_waits_when_the_slot_is_lost_is_published_in_order_before_the_rest() {
    let cluster = Cluster::start();
    let lost = open(&cluster, "outbox_lost");
    let mut sql = lost.sql();
    sql.batch_execute("select tide.enqueue('room', 'before', '{}', private => false)").unwrap();
    wait_until_swept(&lost, "tide.outbox");
    let insert = |from: i64, to: i64| {
        format!(
            "insert into tide.outbox (channel, name, data, private)
             select 'room', n::text, '{{}}', false from generate_series({from}, {to}) n"
        )
    };

    let before = lost.slot("slot_name").unwrap();
    lost.lose_slot(&insert(1, 25_000));
    // Others go on to write while there is no slot, while there is one, and while it takes over.
    for n in 25_001..=26_000 {
        sql.batch_execute(&insert(n, n)).unwrap();
    }
    lost.wait_until_live();
    assert_ne!(lost.slot("slot_name"), Some(before));
    let mut client = lost.client();
    client.join("realtime:room", &json!({ "broadcast": { "last": 100_000 } }));
    sql.batch_execute(&insert(26_001, 27_000)).unwrap();

    for n in 1..=27_000 {
        assert_eq!(message(&mut client, "room")["event"], n.to_string());
    }
    sql.batch_execute("select tide.enqueue('room', 'end', '{}', private => false)").unwrap();
    assert_eq!(message(&mut client, "room")["event"], "end");
    wait_until_swept(&lost, "tide.outbox");
}

#[test]
fn a_row_whose_receipt_died_with_the_worker_is_deleted_all_the_same() {
    let cluster = Cluster::start();
    let settings = [PUBLIC, ("tide.history_retention", "0")];
    let receipts = cluster.database_with("outbox_receipts", &settings);
    let mut client = member(&receipts, "room");
    let (mut sql, mut locker) = (receipts.sql(), receipts.sql());
    sql.batch_execute("select tide.enqueue('room', 'first', '{}', private => false)").unwrap();
    wait_until_swept(&receipts, "tide.outbox");
    assert_eq!(message(&mut client, "room")["event"], "first");

    sql.batch_execute(
        "begin; select tide.enqueue('room', n::text, '{}', private => false) from generate_series(2, 3) n;
         lock table tide.outboxes in access exclusive mode",
    )
    .unwrap();
    locker.batch_execute("set statement_timeout = 0").unwrap();
    // The catalog worker cannot look, so cannot delete.
    let locking = std::thread::spawn(move || {
        locker.batch_execute("begin; lock table tide.outboxes in access exclusive mode").unwrap();
        locker
    });
    wait_until("the other one waits for the lock", || {
        let waiting = "pg_locks where not granted and relation = 'tide.outboxes'::regclass and mode = 'AccessExclusiveLock'";
        (count(&mut cluster.connect("outbox_receipts"), waiting) == 1).then_some(())
    });
    sql.batch_execute("commit").unwrap();
    let mut locker = locking.join().unwrap();
    for n in ["2", "3"] {
        assert_eq!(message(&mut client, "room")["event"], n);
    }
    let written: String =
        sql.query_one("select pg_current_wal_insert_lsn()::text", &[]).unwrap().get(0);
    wait_until("the slot has passed them", || {
        let query = format!("pg_replication_slots where confirmed_flush_lsn >= '{written}'");
        (count(&mut sql, &query) == 1).then_some(())
    });
    receipts.restart_worker();
    locker.batch_execute("rollback").unwrap();

    wait_until_swept(&receipts, "tide.outbox");
    let left: i64 = sql.query_one("select max(sequence_id) from tide.outbox", &[]).unwrap().get(0);
    assert_eq!(left, 3);
}

#[test]
fn every_message_arrives_once_whoever_is_killed() {
    let cluster = Cluster::with("restart_after_crash = on");
    let killed = open(&cluster, "outbox_killed");
    let mut sql = killed.sql();
    sql.batch_execute("create table ledger (n bigint primary key)").unwrap();
    let path = format!("/realtime/v1/websocket?apikey={}&vsn=2.0.0", killed.token("authenticated"));
    let writes = AtomicBool::new(true);
    let mut seen = Seen { port: killed.port, path, client: None, messages: Vec::new() };

    std::thread::scope(|scope| {
        seen.read();
        scope.spawn(|| write(&killed, &writes));
        for round in 0..6 {
            while seen.messages.len() < 100 * (round + 1) {
                seen.read();
            }
            let victim = ["pg_tide catalog worker", "pg_tide worker"][round % 2];
            let victim = wait_until("there is one to kill", || {
                let mut sql = cluster.try_connect("postgres", "postgres").ok()?;
                let query = "select pid from pg_stat_activity where backend_type = $1 and datname = 'outbox_killed'";
                sql.query_opt(query, &[&victim]).ok()?.map(|row| row.get(0))
            });
            signal(["TERM", "KILL"][round / 2 % 2], victim);
        }
        writes.store(false, Ordering::Relaxed);
    });

    killed.wait_until_live();
    let mut sql = killed.sql();
    let ledger = sql.query("select n from ledger order by n", &[]).unwrap();
    let ledger: Vec<i64> = ledger.iter().map(|row| row.get(0)).collect();
    while seen.messages.len() < ledger.len() {
        seen.read();
    }
    let numbers: Vec<i64> = seen.messages.iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers, ledger);
    assert!(seen.messages.is_sorted_by(|a, b| a.0 < b.0));
    wait_until_swept(&killed, "tide.outbox");
}

/// One message per transaction, each with its line in the ledger, one after the other.
fn write(database: &Database<'_>, goes_on: &AtomicBool) {
    let mut number = 0;
    while goes_on.load(Ordering::Relaxed) {
        let Ok(mut sql) = database.cluster.try_connect(&database.name, "postgres") else {
            std::thread::yield_now();
            continue;
        };
        let statement = |number: i64| {
            format!(
                "insert into ledger values ({number});
                 select tide.enqueue('room', 'n', '{number}', private => false)"
            )
        };
        while goes_on.load(Ordering::Relaxed) {
            number += 1;
            if sql.batch_execute(&statement(number)).is_err() {
                break;
            }
        }
    }
}

/// A client that comes back whenever it is cut off, and what it has got: `meta.id` and number.
struct Seen {
    port: u16,
    path: String,
    client: Option<Client>,
    messages: Vec<(String, i64)>,
}

impl Seen {
    /// Reads one frame, or joins (again).
    fn read(&mut self) {
        let Some(client) = &mut self.client else {
            self.client = wait_until("the client is back", || self.join());
            return;
        };
        match client.read(DEADLINE) {
            Ok(Some(frame)) if frame.event == "broadcast" => {
                let id = frame.payload["meta"]["id"].as_str().unwrap().to_owned();
                self.messages.push((id, frame.payload["payload"]["data"].as_i64().unwrap()));
            }
            Ok(Some(frame)) => assert!(!frame.text.contains("resync"), "{}", frame.text),
            Ok(None) => panic!("nothing comes any more"),
            Err(_) => self.client = None,
        }
    }

    fn join(&self) -> Option<Option<Client>> {
        let mut client = Client::connect(self.port, &self.path).ok()?;
        let since = self.messages.last().map(|(id, _)| json!({ "since": id }));
        let config = json!({ "config": { "broadcast": since.unwrap_or_else(|| json!({})) } });
        let join = client.push("realtime:room", "phx_join", &config);
        let reply = client.read(DEADLINE).ok()??;
        assert_eq!(reply.reference.as_ref(), Some(&join), "{}", reply.text);
        (reply.payload["status"] == "ok").then_some(Some(client))
    }
}

#[test]
fn every_message_committed_on_the_promoted_server_arrives() {
    let primary = Cluster::with("wal_keep_size = 64MB\nhot_standby = on");
    let database = open(&primary, "outbox_failover");
    database.sql().batch_execute(&ably::outbox("public", "adopted")).unwrap();
    database.sql().batch_execute("select tide.adopt_outbox('adopted', false)").unwrap();
    let standby = primary.standby();
    standby.resume();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let mut sql = database.sql();
            std::thread::spawn(move || {
                let mut written = 0_i64;
                loop {
                    let statement = if written % 2 == 0 {
                        format!("select tide.enqueue('room', 'n', '{written}', '{writer}-{written}', private => false)")
                    } else {
                        format!(
                            "insert into adopted (mutation_id, channel, name, data)
                             values ('{writer}-{written}', 'room', 'n', '{written}')"
                        )
                    };
                    if sql.batch_execute(&statement).is_err() {
                        return written;
                    }
                    written += 1;
                }
            })
        })
        .collect();
    wait_until("the standby has some of it", || {
        let mut sql = standby.connect("outbox_failover");
        let query = "select coalesce(max(sequence_id), 0) from tide.outbox";
        (sql.query_one(query, &[]).unwrap().get::<_, i64>(0) > 200).then_some(())
    });

    signal("KILL", primary.postmaster());
    for writer in writers {
        writer.join().unwrap();
    }
    standby.promote();
    let promoted = Database { cluster: &standby, name: database.name.clone(), port: database.port };
    // What is there, before the worker is, and what it has not flagged.
    let mut expected: HashMap<String, bool> = HashMap::new();
    let mut sql = promoted.sql();
    let rows = sql
        .query(
            "select mutation_id from tide.outbox where locked_by is distinct from 'published'
             union all
             select mutation_id from adopted where locked_by is distinct from 'published'",
            &[],
        )
        .unwrap();
    expected.extend(rows.iter().map(|row| (row.get(0), false)));
    sql.batch_execute("select tide.enqueue('room', 'n', '0', 'end', private => false)").unwrap();
    expected.insert("end".to_owned(), false);
    promoted.wait_until_live();

    let mut client = promoted.client();
    client.join("realtime:room", &json!({ "broadcast": { "last": 1_000_000 } }));
    while expected.values().any(|seen| !seen) {
        let message = message(&mut client, "room");
        let id = message["meta"]["mutation_id"].as_str().unwrap().to_owned();
        let seen = expected.entry(id.clone()).or_default();
        assert!(!*seen, "{id} came twice");
        *seen = true;
    }
    wait_until_swept(&promoted, "tide.outbox");
    wait_until_swept(&promoted, "adopted");
}

#[test]
fn an_outbox_that_is_dropped_is_forgotten() {
    let database = Cluster::shared().database("dropped_outbox");
    let mut sql = database.sql();
    let outboxes = |sql: &mut postgres::Client| -> Vec<String> {
        let rows = sql.query("select relation::text from tide.outboxes order by 1", &[]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    sql.batch_execute(
        "create schema boxes;
         create table boxes.one (like tide.outbox including all);
         create table boxes.other (like tide.outbox including all);
         select tide.adopt_outbox('boxes.one'), tide.adopt_outbox('boxes.other')",
    )
    .unwrap();
    assert_eq!(outboxes(&mut sql), ["boxes.one", "boxes.other", "tide.outbox"]);

    sql.batch_execute("begin; drop table boxes.one; rollback; drop table boxes.one").unwrap();
    assert_eq!(outboxes(&mut sql), ["boxes.other", "tide.outbox"]);
    sql.batch_execute("drop schema boxes cascade").unwrap();
    assert_eq!(outboxes(&mut sql), ["tide.outbox"]);

    database.delivers();
}

#[test]
fn autovacuum_hears_of_the_rows_that_are_deleted() {
    let cluster = Cluster::start();
    let database = cluster.database("vacuumed");
    // Rows that are there before it is taken over are deleted once more than others.
    wait_until("the outbox is taken over", || {
        let taken = "select from tide.outboxes where generation is not null";
        database.sql().query_opt(taken, &[]).unwrap().map(drop)
    });
    let rows = 500_i64;
    let insert = format!(
        "insert into tide.outbox (channel, name, data)
         select 'room', 'news', '{{}}' from generate_series(1, {rows})"
    );
    database.sql().batch_execute(&insert).unwrap();

    // The newest row stays. An attempt that failed counts, too.
    let deleted = "select n_tup_del from pg_stat_user_tables
                   where schemaname = 'tide' and relname = 'outbox'";
    wait_until("the deletions are counted", || {
        let count: i64 = database.sql().query_one(deleted, &[]).unwrap().get(0);
        (count >= rows - 1).then_some(())
    });
}
