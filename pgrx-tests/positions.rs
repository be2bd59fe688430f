//! Where a channel begins: what a client could not see by a query when it joined, or when it took
//! its position, arrives; and a position that is not of this history is told as such.

mod rounds;

use std::process::Command;

use serde_json::{Value, json};

use crate::support::client::{Client, Frame};
use crate::support::cluster::{Shutdown, succeed};
use crate::support::{Cluster, Database, wait_until};

/// Commits wait for a standby that does not exist, unless the session says otherwise.
const NOBODY: &str = "synchronous_standby_names = 'nobody'\nsynchronous_commit = local";

fn topic(table: &str) -> String {
    format!("realtime:tide:table:public.{table}")
}

fn position(sql: &mut postgres::Client) -> String {
    sql.query_one("select tide.current_position()", &[]).unwrap().get(0)
}

fn since(position: &str) -> Value {
    json!({ "broadcast": { "since": position } })
}

fn insert(sql: &mut postgres::Client, table: &str, id: i32) {
    sql.batch_execute(&format!("insert into {table} values ({id})")).unwrap();
}

/// The ids of the rows that arrive, up to and including `last`.
#[track_caller]
fn ids_until(client: &mut Client, topic: &str, last: i64) -> Vec<i64> {
    let mut ids = Vec::new();
    while ids.last() != Some(&last) {
        ids.push(client.broadcast(topic)["payload"]["record"]["id"].as_i64().unwrap());
    }
    ids
}

#[track_caller]
fn system(client: &mut Client, extension: &str) -> Frame {
    client.wait_for(extension, |frame| {
        frame.event == "system" && frame.payload["extension"] == extension
    })
}

/// The reason of the resync that a join with this `since` is told.
#[track_caller]
fn resync(database: &Database<'_>, table: &str, position: &str) -> Value {
    let mut client = database.client();
    client.join(&topic(table), &since(position));
    system(&mut client, "tide.resync").payload["reason"].clone()
}

/// A position so many bytes of WAL further.
fn moved(position: &str, bytes: u64) -> String {
    let (epoch, rest) = position.split_at(15);
    let (commit, ordinal) = rest.split_at(16);
    format!("{epoch}{:016x}{ordinal}", u64::from_str_radix(commit, 16).unwrap() + bytes)
}

/// Has a session insert a row; its commit hangs until the pid that is returned is dealt with.
fn hang(database: &Database<'_>, statement: &str) -> i32 {
    let mut sql = database.sql();
    let pid: i32 = sql.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let statement = statement.to_owned();
    std::thread::spawn(move || {
        sql.batch_execute("set synchronous_commit = on").unwrap();
        // How it ends is for the one who ends it.
        let _ = sql.batch_execute(&statement);
    });
    let mut looks = database.sql();
    wait_until("the commit hangs", || {
        let query = "select 1 from pg_stat_activity where pid = $1 and wait_event = 'SyncRep'";
        looks.query_opt(query, &[&pid]).unwrap()
    });
    pid
}

#[test]
fn a_commit_that_hangs_is_told_to_whoever_joins_meanwhile() {
    let cluster = Cluster::with(NOBODY);
    let database = cluster.database("hangs");
    let t = database.table("t", "id int primary key");
    let topic = topic(&t);
    let mut sql = database.sql();
    insert(&mut sql, &t, 1);

    for (base, end) in [(10, "pg_cancel_backend"), (20, "pg_terminate_backend")] {
        let pid = hang(&database, &format!("insert into {t} values ({base})"));
        insert(&mut sql, &t, base + 1);
        let mut joined = database.client();
        let reply = joined.join(&topic, &json!({}));
        let mut since_sql = database.client();
        since_sql.join(&topic, &since(&position(&mut sql)));
        let mut since_reply = database.client();
        since_reply.join(&topic, &since(reply["position"].as_str().unwrap()));

        sql.batch_execute(&format!("select {end}({pid})")).unwrap();
        insert(&mut sql, &t, base + 2);

        let [first, last] = [base, base + 2].map(i64::from);
        // What it could see is not told to it.
        assert_eq!(ids_until(&mut joined, &topic, last), [first, last]);
        for client in [&mut since_sql, &mut since_reply] {
            let ids = ids_until(client, &topic, last);
            assert!(ids.contains(&first), "{ids:?}");
        }
    }
}

#[test]
fn a_prepared_transaction_whose_commit_hangs_is_told_to_whoever_joins_meanwhile() {
    let cluster = Cluster::with(NOBODY);
    let database = cluster.database("prepared");
    let t = database.table("t", "id int primary key");
    let topic = topic(&t);
    let mut sql = database.sql();
    sql.batch_execute(&format!("begin; insert into {t} values (1); prepare transaction 'p'"))
        .unwrap();
    let pid = hang(&database, "commit prepared 'p'");
    let mut joined = database.client();
    joined.join(&topic, &json!({}));
    let mut resumes = database.client();
    resumes.join(&topic, &since(&position(&mut sql)));

    sql.batch_execute(&format!("select pg_cancel_backend({pid})")).unwrap();
    insert(&mut sql, &t, 2);

    assert_eq!(ids_until(&mut joined, &topic, 2), [1, 2]);
    assert_eq!(ids_until(&mut resumes, &topic, 2), [1, 2]);
}

#[test]
fn a_client_that_was_cut_off_before_its_first_message_resumes_from_where_it_joined() {
    let cluster = Cluster::shared();
    let database = cluster.database_with("cut_off", &[("tide.public_channels", "on")]);
    let t = database.table("t", "id int primary key");
    let mut sql = database.sql();
    insert(&mut sql, &t, 1);
    let mut client = database.client();
    let [of_rows, of_messages, of_bindings] = [
        (topic(&t), json!({})),
        ("realtime:room".into(), json!({})),
        (
            "realtime:rows".into(),
            json!({ "postgres_changes": [{ "event": "*", "schema": "public", "table": t }] }),
        ),
    ]
    .map(|(topic, config)| client.join(&topic, &config)["position"].as_str().unwrap().to_owned());
    drop(client);
    insert(&mut sql, &t, 2);
    sql.batch_execute("select tide.send('room', 'missed', '{}', private => false)").unwrap();

    let mut client = database.client();
    client.join(&topic(&t), &since(&of_rows));
    assert_eq!(ids_until(&mut client, &topic(&t), 2).last(), Some(&2));
    client.join("realtime:room", &since(&of_messages));
    assert_eq!(client.broadcast("realtime:room")["event"], "missed");
    let mut config = since(&of_bindings);
    config["postgres_changes"] = json!([{ "event": "*", "schema": "public", "table": t }]);
    client.join("realtime:rows", &config);
    while client.change()["record"]["id"] != 2 {}
}

#[test]
fn a_channel_of_notifications_has_no_position() {
    let settings = [("tide.public_channels", "on"), ("tide.notify_channels", "jobs")];
    let database = Cluster::shared().database_with("positionless", &settings);

    let reply = database.client().join("realtime:tide:notify:jobs", &json!({}));

    assert!(reply.get("position").is_none(), "{reply}");
}

#[test]
fn the_end_of_a_replay_is_told_with_a_position_to_resume_from() {
    let database = Cluster::shared().database("caught_up");
    let t = database.table("t", "id int primary key");
    let topic = topic(&t);
    let mut sql = database.sql();
    let start = position(&mut sql);
    for id in 1..=3 {
        insert(&mut sql, &t, id);
    }
    let mut reader = database.client();
    reader.join(&topic, &since(&start));
    ids_until(&mut reader, &topic, 3);

    for (options, expected) in [(json!({ "since": start }), 3), (json!({ "last": 2 }), 2)] {
        let mut client = database.client();
        client.join(&topic, &json!({ "broadcast": options }));
        let mut rows = 0;
        let told = loop {
            let frame = client.next();
            match frame.event.as_str() {
                "broadcast" => rows += 1,
                "system" => break frame.payload,
                _ => {}
            }
        };
        assert_eq!(rows, expected);
        assert_eq!((&told["extension"], &told["status"]), (&json!("tide.caught_up"), &json!("ok")));

        // Again with nothing to replay: it is told at once.
        let mut client = database.client();
        client.join(&topic, &since(told["position"].as_str().unwrap()));
        system(&mut client, "tide.caught_up");
        assert!(client.passed("broadcast").is_empty());
    }
}

#[test]
fn a_position_in_the_future_is_told_as_a_resync() {
    let database = Cluster::shared().database("future");
    let t = database.table("t", "id int primary key");
    let mut sql = database.sql();
    insert(&mut sql, &t, 1);
    let position = position(&mut sql);
    let mut client = database.client();
    client.join(&topic(&t), &since(&moved(&position, 1 << 40)));

    assert_eq!(system(&mut client, "tide.resync").payload["reason"], "future");
    insert(&mut sql, &t, 2);
    assert_eq!(ids_until(&mut client, &topic(&t), 2), [1, 2], "what is at hand follows");
}

#[test]
fn a_position_where_no_event_is_is_told_as_a_resync() {
    let database = Cluster::shared().database("unknown");
    let t = database.table("t", "id int primary key");
    let mut sql = database.sql();
    let mut client = database.client();
    client.join(&topic(&t), &json!({}));
    insert(&mut sql, &t, 1);
    let seen = client.broadcast(&topic(&t))["meta"]["id"].as_str().unwrap().to_owned();
    insert(&mut sql, &t, 2);
    ids_until(&mut client, &topic(&t), 2);

    assert_eq!(resync(&database, &t, &moved(&seen, 1)), "unknown");
}

#[test]
fn a_position_ahead_of_what_a_restarted_worker_has_decoded_is_resumed_from() {
    let cluster = Cluster::start();
    let database = cluster.database("ahead");
    let t = database.table("t", "id int primary key");
    let topic = topic(&t);
    let mut sql = database.sql();
    let mut seen = position(&mut sql);
    for id in 1..=5 {
        // Enough to take a moment to decode again.
        let rows = format!("insert into {t} select -{id}0000 - g from generate_series(1, 5000) g");
        sql.batch_execute(&rows).unwrap();
        insert(&mut sql, &t, 2 * id - 1);
        let mut client = database.client();
        client.join(&topic, &since(&seen));
        let newest = client.wait_for("the newest row", |frame| {
            frame.payload["payload"]["record"]["id"] == 2 * id - 1
        });
        seen = match id % 2 {
            0 => position(&mut sql),
            _ => newest.payload["meta"]["id"].as_str().unwrap().to_owned(),
        };
        let worker = database.restart_worker_without_waiting();
        wait_until("another worker", || (database.worker() != worker).then_some(()));
        let mut client = wait_until("a client", || {
            let token = database.token("authenticated");
            database.try_connect(&format!("apikey={token}&vsn=2.0.0")).ok()
        });
        client.join(&topic, &since(&seen));
        insert(&mut sql, &t, 2 * id);
        assert_eq!(ids_until(&mut client, &topic, 2 * i64::from(id)), [2 * i64::from(id)]);
        assert!(client.passed("system").iter().all(|f| f.payload["extension"] != "tide.resync"));
    }
}

#[test]
fn a_client_of_another_life_is_told_when_a_copy_of_the_data_directory_has_taken_its_place() {
    let cluster = Cluster::start();
    let database = cluster.database("restored");
    let t = database.table("t", "id int primary key");
    let copy = cluster.host().join("copy");
    let copied = |from: &std::path::Path, to: &std::path::Path| {
        succeed(Command::new("rm").arg("-rf").arg(to));
        succeed(Command::new("cp").arg("-a").arg(from).arg(to));
    };
    cluster.stop(Shutdown::Fast);
    copied(&cluster.data(), &copy);
    cluster.resume();
    database.wait_until_live();
    let mut client = database.client();
    client.join(&topic(&t), &json!({}));
    let mut sql = database.sql();
    sql.batch_execute(&format!("insert into {t} select generate_series(1, 1000)")).unwrap();
    insert(&mut sql, &t, 2000);
    let newest =
        client.wait_for("the newest row", |f| f.payload["payload"]["record"]["id"] == 2000);
    let seen = newest.payload["meta"]["id"].as_str().unwrap().to_owned();
    drop(sql);

    cluster.stop(Shutdown::Fast);
    copied(&copy, &cluster.data());
    cluster.resume();
    database.wait_until_live();

    assert_eq!(resync(&database, &t, &seen), "future");
    // Once the WAL has come as far again, with something else in it.
    let mut sql = database.sql();
    let mut reader = database.client();
    reader.join(&topic(&t), &json!({}));
    for id in 1..=50 {
        let rows = format!("insert into {t} select {id}0000 + g from generate_series(1, 100) g");
        sql.batch_execute(&rows).unwrap();
    }
    reader.wait_for("the last row", |frame| frame.payload["payload"]["record"]["id"] == 500_100);
    assert_eq!(resync(&database, &t, &seen), "unknown");
}
