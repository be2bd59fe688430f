//! What clients can use up: open files and memory, of which Postgres needs its part.

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::support::client::{Client, Closed};
use crate::support::{Cluster, DEADLINE, Database, http, wait_until};

/// Sockets that are opened and say nothing.
const IDLE: usize = 3_000;

#[test]
fn idle_sockets_under_a_low_soft_limit_of_open_files_harm_nobody() {
    let cluster = Cluster::with_open_files("1024:20000");
    let database = cluster.database("soft");

    withstand_idle_sockets(&database);

    assert_eq!(unmet(&database), Vec::<String>::new());
}

#[test]
fn idle_sockets_under_a_low_hard_limit_of_open_files_harm_nobody() {
    let cluster = Cluster::with_open_files("1024:1024");
    let database = cluster.database("hard");

    withstand_idle_sockets(&database);

    assert_eq!(unmet(&database), ["tide.max_connections"]);
    let query = "select connection_limit from tide.status()";
    let limit: i64 = database.sql().query_one(query, &[]).unwrap().get(0);
    assert!((100..1_000).contains(&limit), "{limit}");
}

/// The items of `tide.check()` that are not met.
fn unmet(database: &Database<'_>) -> Vec<String> {
    let query = "select item from tide.check() where not ok";
    database.sql().query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

fn started(database: &Database<'_>) -> SystemTime {
    database.sql().query_one("select pg_postmaster_start_time()", &[]).unwrap().get(0)
}

/// Opens far more sockets than there are descriptors, without a token, while the server is busy with
/// files.
fn withstand_idle_sockets(database: &Database<'_>) {
    let t = database.table("kept", "id int primary key");
    let mut joined: Vec<Client> = (0..20).map(|_| database.client()).collect();
    for client in &mut joined {
        client.subscribe("room", &t);
    }
    let (before, worker) = (started(database), database.worker());
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let writing = threads.spawn(|| write_and_check_point(database, &done));
        let idle = open_idle(database);
        // Of those that had to make room, the first.
        let mut told = String::new();
        let mut first = &idle[0];
        first.set_read_timeout(Some(DEADLINE)).unwrap();
        first.read_to_string(&mut told).unwrap();
        assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
        assert!(told.contains("too many connections"), "{told}");
        // There is still a place for those who have a token.
        joined.push(database.client());
        joined.last_mut().unwrap().subscribe("room", &t);
        done.store(true, Ordering::Relaxed);
        writing.join().unwrap();
        drop(idle);
    });
    database.sql().batch_execute(&format!("insert into {t} values (1)")).unwrap();
    for client in &mut joined {
        assert_eq!(client.change()["record"]["id"], 1);
    }
    assert_eq!(started(database), before);
    assert_eq!(database.worker(), worker);
    assert!(!database.cluster.log().contains("PANIC"), "{}", database.cluster.log());
}

fn open_idle(database: &Database<'_>) -> Vec<TcpStream> {
    let mut idle = Vec::with_capacity(IDLE);
    while idle.len() < IDLE {
        idle.push(TcpStream::connect(("127.0.0.1", database.port)).unwrap());
        if idle.len() % 200 == 0 {
            let health = http::get(database.port, "/health");
            assert_eq!(health.status, 200, "{}", health.body);
            assert_eq!(http::get(database.port, "/metrics").status, 200);
        }
    }
    idle
}

/// Bulk writes to tables that are made and dropped, and checkpoints, until it is done.
fn write_and_check_point(database: &Database<'_>, done: &AtomicBool) {
    let mut sql = database.sql();
    let mut rounds = 0;
    while rounds == 0 || !done.load(Ordering::Relaxed) {
        sql.batch_execute(
            "create table bulk (id int primary key, pad text);
             select tide.publish('bulk');
             insert into bulk select g, repeat('x', 100) from generate_series(1, 20000) g;
             checkpoint;
             drop table bulk;",
        )
        .unwrap();
        rounds += 1;
    }
}

#[test]
fn constants_that_print_large_take_no_more_than_they_say() {
    let database = Cluster::shared().database("limits_constants");
    let t = database.table("numbers", "id int primary key, n numeric");
    let mut client = database.client();
    let peak = crate::memory::peak_kib;
    let join = |client: &mut Client, room: usize| {
        let numbers: Vec<String> = (0..100).map(|n| format!("1e{}", 131_071 - n)).collect();
        let filter = format!("n=in.({})", numbers.join(","));
        let (schema, select) = ("public", ["id"]);
        let binding = json!({
            "event": "*", "schema": schema, "table": t, "filter": filter, "select": select
        });
        client.subscribe_to(&format!("room{room}"), binding);
    };
    let worker = database.worker();
    join(&mut client, 0);
    let before = peak(worker);

    for room in 1..30 {
        join(&mut client, room);
    }

    // 13 MB each, if they were kept as they print.
    let grown = peak(worker) - before;
    assert!(grown < 100 << 10, "the worker grew by {grown} kB");
    database.sql().batch_execute(&format!("insert into {t} values (1, 1e131070)")).unwrap();
    for _ in 0..30 {
        assert_eq!(client.change()["record"]["id"], 1);
    }
}

#[test]
fn more_bindings_than_there_may_be_are_refused_and_nobody_waits() {
    let settings = [("tide.max_message_size", "4MB")];
    let database = Cluster::shared().database_with("limits_bindings", &settings);
    let t = database.table("texts", "id int primary key, t text");
    let (mut greedy, mut other) = (database.client(), database.client());
    other.subscribe("room", &t);
    let join = |count: usize, filter: &str| {
        let filter = |n: usize| filter.replace('#', &n.to_string());
        let binding =
            |n: usize| json!({ "event": "*", "schema": "public", "table": t, "filter": filter(n) });
        let bindings: Vec<Value> = (0..count).map(binding).collect();
        json!({ "postgres_changes": bindings })
    };

    for (count, filter) in [(6_000, "id=eq.#"), (25_000, "t=like.%#%")] {
        let reply = greedy.try_join("realtime:greedy", &join(count, filter));
        let reason = reply["response"]["reason"].as_str().unwrap();
        assert_eq!(reason, "BindingLimitReached: A channel has at most 100 bindings");
    }
    let large = greedy.join("realtime:large", &join(1, &vec![r"t=match.\w{8}x"; 64].join(",")));
    assert!(large["postgres_changes"][0]["id"].is_u64());
    let system = greedy.wait_for("the refusal", |frame| frame.event == "system");
    assert!(system.text.contains("is too large"), "{}", system.text);

    database.sql().batch_execute(&format!("insert into {t} values (1, 'x')")).unwrap();
    assert_eq!(other.change()["record"]["id"], 1);
}

#[test]
fn a_filter_that_makes_too_much_work_ends_alone() {
    let database = Cluster::shared().database("limits_work");
    let t = database.table("digits", "id int primary key, t text");
    let (mut greedy, mut other) = (database.client(), database.client());
    for (client, filter) in [(&mut greedy, "t=match.1[01]{1500}2"), (&mut other, "t=like.%1%")] {
        let binding = json!({ "event": "*", "schema": "public", "table": t, "filter": filter });
        client.subscribe_to("room", binding);
    }

    let digits =
        "(select string_agg((random() > 0.5)::int::text, '') from generate_series(1, 1000000))";
    database.sql().batch_execute(&format!("insert into {t} values (1, {digits})")).unwrap();

    assert_eq!(other.change()["record"]["id"], 1);
    let system = greedy.wait_for("the end", |frame| frame.event == "system");
    assert!(system.text.contains("too much work"), "{}", system.text);
    assert_eq!(system.payload["status"], "error");
}

#[test]
fn a_client_that_is_cut_off_as_slow_is_told_so() {
    let settings = [("tide.history_size", "1MB"), ("tide.send_queue_size", "128kB")];
    let database = Cluster::shared().database_with("limits_slow", &settings);
    let t = database.table("wide", "id int primary key, pad text");
    let mut stalled: Vec<Client> = (0..5).map(|_| database.client()).collect();
    for client in &mut stalled {
        client.subscribe("room", &t);
    }
    let metrics = || http::get(database.port, "/metrics").body;

    let rows = "select g, repeat('x', 10000) from generate_series(1, 5000) g";
    database.sql().batch_execute(&format!("insert into {t} {rows}")).unwrap();
    wait_until("they are cut off", || {
        metrics().contains("\npg_tide_slow_clients_total 5\n").then_some(())
    });

    for client in &mut stalled {
        let Closed(reason) = client.wait_until_closed();
        assert_eq!(reason.map(|(code, _)| code), Some(1013));
    }
}

#[test]
fn clients_that_do_not_read_cost_the_others_no_broadcast() {
    let settings = [("tide.broadcast_rate", "1000000")];
    let database = Cluster::shared().database_with("limits_crowd", &settings);
    let policy = "create policy everybody on tide.channel to authenticated using (true)";
    database.sql().batch_execute(policy).unwrap();
    let channel = json!({ "private": true });
    let join = || {
        let mut client = database.client();
        client.join("realtime:crowd", &channel);
        client
    };
    let _stalled: Vec<Client> = (0..70).map(|_| join()).collect();
    let (mut sender, mut reading) = (join(), join());

    let pad = "x".repeat(10_000);
    let reader = std::thread::spawn(move || {
        for n in 0..1_000 {
            assert_eq!(reading.broadcast("realtime:crowd")["payload"]["n"], n);
        }
    });
    for n in 0..1_000 {
        let payload =
            json!({ "type": "broadcast", "event": "e", "payload": { "n": n, "pad": pad } });
        sender.push("realtime:crowd", "broadcast", &payload);
    }

    reader.join().expect("it gets all of them");
}
