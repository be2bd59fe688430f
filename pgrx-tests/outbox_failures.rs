//! Messages that cannot be published: told, kept and counted, and never taken for published ones.

use serde_json::json;

use crate::outbox::{PUBLIC, count, member, message, open, refused, wait_until_swept};
use crate::support::client::{Client, Frame};
use crate::support::{Cluster, Database, ably, http, wait_until};

/// Data that would be a gigabyte as text.
const HUGE: &str = "(select jsonb_agg('1e131071'::numeric) from generate_series(1, 8500))";

/// The next word of a message that could not be decoded.
#[track_caller]
fn failure(client: &mut Client) -> Frame {
    client.wait_for("an error event", |frame| frame.payload["extension"] == "tide.error")
}

fn kept(database: &Database<'_>, outbox: &str) -> Vec<(String, String)> {
    let query = format!(
        "select mutation_id, locked_by from {outbox} where locked_by like 'failed: %' order by sequence_id"
    );
    let rows = database.sql().query(&query, &[]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[track_caller]
fn wait_until_kept(database: &Database<'_>, outbox: &str, expected: &[(&str, &str)]) {
    let expected: Vec<(String, String)> =
        expected.iter().map(|(id, why)| ((*id).to_owned(), (*why).to_owned())).collect();
    wait_until("the rows say that they have failed", || {
        (kept(database, outbox) == expected).then_some(())
    });
}

fn failed_messages(database: &Database<'_>) -> i64 {
    let query = "select failed_messages from tide.status()";
    database.sql().query_one(query, &[]).unwrap().get(0)
}

/// Three rows of `tide.outbox` have failed.
fn wait_until_others_are_gone(sql: &mut postgres::Client) {
    wait_until("the others have gone", || {
        (count(sql, "tide.outbox where locked_by is distinct from 'published'") == 3).then_some(())
    });
}

#[test]
fn a_message_too_large_to_be_published_is_told_and_kept_until_somebody_deletes_it() {
    let cluster = Cluster::start();
    let failing = open(&cluster, "outbox_failing");
    let mut sql = failing.sql();
    let mut client = member(&failing, "room");
    let mut other = member(&failing, "other");

    sql.batch_execute(&format!(
        "select tide.enqueue('room', 'huge', {HUGE}, 'm-1', private => false);
         select tide.enqueue('room', 'control', to_jsonb(repeat(E'\\x01', 200 << 20)), 'm-2', private => false);
         select tide.enqueue('room', 'private', {HUGE}, 'm-3');
         select tide.enqueue('room', 'good', '{{}}', private => false);
         select tide.enqueue('other', 'good', '{{}}', private => false)"
    ))
    .unwrap();

    for (id, number) in [("m-1", "1"), ("m-2", "2")] {
        let told = failure(&mut client).payload;
        assert_eq!(told["sqlstate"], "54000", "{told}");
        assert_eq!(told["mutation_id"], id, "{told}");
        assert_eq!(told["sequence_id"], number, "{told}");
    }
    assert_eq!(message(&mut client, "room")["event"], "good");
    assert_eq!(message(&mut other, "other")["event"], "good");
    assert!(other.passed("system").is_empty() && client.passed("system").is_empty());
    let all = [("m-1", "failed: 54000"), ("m-2", "failed: 54000"), ("m-3", "failed: 54000")];
    wait_until_kept(&failing, "tide.outbox", &all);
    wait_until("they are counted", || (failed_messages(&failing) == 3).then_some(()));
    let metrics = http::get(failing.port, "/metrics").body;
    assert!(metrics.contains("\npg_tide_failed_messages 3\n"), "{metrics}");
    let check = "select problem, fix from tide.check() where item = 'messages of tide.outbox'";
    let row = sql.query_one(check, &[]).unwrap();
    let (problem, fix): (String, String) = (row.get(0), row.get(1));
    assert!(problem.contains("3 could not be published"), "{problem}");

    // What is not known to be published when the slot is lost would be published again.
    wait_until_others_are_gone(&mut sql);

    // Neither a worker that looks what is left, nor another slot, publishes or deletes them.
    failing.restart_worker();
    failing.lose_slot("select tide.enqueue('room', 'after', '{}', private => false)");
    failing.wait_until_live();
    let mut client = failing.client();
    client.join("realtime:room", &json!({ "broadcast": { "last": 100 } }));
    assert_eq!(message(&mut client, "room")["event"], "after");
    wait_until_others_are_gone(&mut sql);
    assert!(client.passed("system").is_empty(), "{:?}", client.passed("system"));
    assert_eq!(kept(&failing, "tide.outbox").len(), 3);
    assert_eq!(failed_messages(&failing), 3);

    // What tide.check() advises works.
    let mend = "insert into tide.outbox (mutation_id, channel, name, data, private)
                select mutation_id, channel, name, '1', private from tide.outbox
                where mutation_id = 'm-1'";
    sql.batch_execute(mend).unwrap();
    let mended = message(&mut client, "room");
    assert_eq!(mended["meta"]["mutation_id"], "m-1");
    sql.batch_execute(&fix).unwrap();
    assert_eq!(kept(&failing, "tide.outbox").len(), 3);
    let (_, delete) = fix.split_once("delete these: ").unwrap();
    sql.batch_execute(delete).unwrap();
    failing.restart_worker();
    wait_until("none is counted", || (failed_messages(&failing) == 0).then_some(()));
    assert!(sql.query_opt(check, &[]).unwrap().is_none());
    wait_until_swept(&failing, "tide.outbox");
}

#[test]
fn a_failed_message_that_could_not_be_marked_is_not_taken_for_a_published_one() {
    let cluster = Cluster::start();
    let settings = [PUBLIC, ("tide.history_retention", "0")];
    let locked = cluster.database_with("outbox_locked", &settings);
    let mut client = member(&locked, "room");
    let (mut sql, mut locker) = (locked.sql(), locked.sql());
    locker.batch_execute("set statement_timeout = 0").unwrap();

    sql.batch_execute(&format!(
        "begin; select tide.enqueue('room', 'huge', {HUGE}, 'm-1', private => false)"
    ))
    .unwrap();
    // Whoever waits for the lock longer comes first: the outbox cleaner cannot mark the row.
    let locking = std::thread::spawn(move || {
        locker.batch_execute("begin; lock table tide.outbox in share mode").unwrap();
        locker
    });
    wait_until("the other one waits for the lock", || {
        let waiting = "pg_locks where not granted and relation = 'tide.outbox'::regclass";
        (count(&mut cluster.connect("outbox_locked"), waiting) == 1).then_some(())
    });
    sql.batch_execute("commit").unwrap();
    let mut locker = locking.join().unwrap();
    assert_eq!(failure(&mut client).payload["mutation_id"], "m-1");
    let read = wait_until("more has been decoded", || {
        let query =
            "select pg_logical_emit_message(true, 'x', ''), pg_current_wal_insert_lsn()::text";
        let lsn: String = sql.query_one(query, &[]).unwrap().get(1);
        let query = format!("select decoded_lsn > '{lsn}' from tide.status()");
        let decoded: Option<bool> = sql.query_one(&query, &[]).unwrap().get(0);
        decoded.filter(|decoded| *decoded).map(|_| lsn)
    });
    locked.restart_worker();
    assert!(locked.slot("confirmed_flush_lsn").is_some(), "{read}");
    locker.batch_execute("rollback").unwrap();

    wait_until_kept(&locked, "tide.outbox", &[("m-1", "failed: 54000")]);
    // And then the slot goes on.
    wait_until("the slot has passed it", || {
        sql.batch_execute("select pg_logical_emit_message(true, 'x', '')").unwrap();
        let query = format!("pg_replication_slots where confirmed_flush_lsn > '{read}'");
        (count(&mut sql, &query) == 1).then_some(())
    });
    assert_eq!(kept(&locked, "tide.outbox").len(), 1);
}

#[test]
fn a_channel_that_nobody_can_join_is_refused() {
    let database = open(Cluster::shared(), "outbox_names");
    let mut sql = database.sql();
    let mut client = member(&database, &"x".repeat(246));

    for (name, sqlstate) in [("''", "22023"), ("repeat('x', 247)", "42622")] {
        for statement in [
            format!("insert into tide.outbox (channel, name) values ({name}, 'x')"),
            format!("select tide.enqueue({name}, 'x', '{{}}')"),
            format!("select tide.send({name}, 'x', '{{}}')"),
        ] {
            let error = refused(&mut sql, &statement);
            assert_eq!(error.code().code(), sqlstate, "{statement}: {error}");
        }
    }
    sql.batch_execute("select tide.enqueue(repeat('x', 246), 'longest', '{}', private => false)")
        .unwrap();

    assert_eq!(message(&mut client, &"x".repeat(246))["event"], "longest");
}

#[test]
fn a_row_that_is_for_no_channel_is_kept_and_counted() {
    let cluster = Cluster::shared();
    let bad = open(cluster, "outbox_bad");
    let mut sql = bad.sql();
    sql.batch_execute(&ably::outbox("public", "o")).unwrap();
    sql.batch_execute("select tide.adopt_outbox('o', false)").unwrap();
    let mut client = member(&bad, "room");

    sql.batch_execute(
        "insert into o (mutation_id, channel, name, data) values
             ('a', 'tide:table:public.t', 'INSERT', '{\"secret\": \"hunter2\"}'),
             ('b', '', 'nowhere', '{}'),
             ('c', repeat('x', 247), 'too long', '{}'),
             ('d', repeat('x', 10000000), 'much too long', '{}'),
             ('e', 'room', 'good', '{}'),
             ('f', 'room', 'last', '{}')",
    )
    .unwrap();

    assert_eq!(message(&mut client, "room")["event"], "good");
    assert_eq!(message(&mut client, "room")["event"], "last");
    let names = [
        ("a", "failed: 42939"),
        ("b", "failed: 22023"),
        ("c", "failed: 42622"),
        ("d", "failed: 42622"),
    ];
    wait_until_kept(&bad, "o", &names);
    wait_until("the rest is swept", || (count(&mut sql, "o") == 5).then_some(()));
    wait_until("they are counted", || (failed_messages(&bad) == 4).then_some(()));
    let metrics = http::get(bad.port, "/metrics").body;
    assert!(metrics.contains("pg_tide_refused_messages_total 3\n"), "{metrics}");
    assert!(!cluster.log().contains("hunter2"));
}
