//! Deaths from within: the server aborts, overflows its stack, or finds no memory.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{
    TOPIC, another_server, failures, follow, followed_with, is_alive, keep_from_starting,
    last_failure, next, postmaster_start_time, server,
};
use crate::support::client::Client;
use crate::support::cluster::{by_owner, signal, succeed};
use crate::support::{Cluster, DEADLINE, Database, wait_until};

/// Has the server die in this way, by a switch that is for tests only. The session learns of
/// it as of any other answer that does not come.
fn ask_for(database: &Database<'_>, fault: &str) -> Result<(), postgres::Error> {
    let ask = format!(r#"select tide_internal.control('{{"op": "fault", "fault": "{fault}"}}')"#);
    database.sql().batch_execute(&ask)
}

#[test]
fn whatever_the_server_dies_of_is_its_own_death() {
    let cluster = Cluster::start();
    let on = [("tide.debug_faults", "on")];
    let (database, mut client, mut position) = followed_with(&cluster, "faulty", &on);
    let mut bystander = database.sql();
    bystander.batch_execute("create temp table mine as select 1").unwrap();
    let (worker, started) = (database.worker(), postmaster_start_time(&database));

    let faults = [
        ("abort", "signal 6"),
        ("stack_overflow", "has overflowed its stack"),
        ("out_of_memory", "memory allocation of"),
    ];
    for (round, (fault, words)) in faults.into_iter().enumerate() {
        let (before, id) = (server(&database).unwrap(), 2 * round as i64 + 1);
        ask_for(&database, fault).unwrap_err();
        database.sql().batch_execute(&format!("insert into t values ({id})")).unwrap();

        // On the port that it had.
        another_server(&database, before);
        assert!(!is_alive(before), "after {fault}");
        assert!(last_failure(&database).contains("signal 6"), "{}", last_failure(&database));
        cluster.wait_for_log(0, words);
        client = database.client();
        follow(&mut client, Some(&position));
        next(&mut client, id);
        // What the server was told before counts as dealt with once this one has arrived.
        database.sql().batch_execute(&format!("insert into t values ({})", id + 1)).unwrap();
        position = next(&mut client, id + 1);
    }

    assert_eq!(failures(&database), faults.len(), "each death is one start");
    assert_eq!(database.worker(), worker);
    assert_eq!(postmaster_start_time(&database), started);
    bystander.batch_execute("select * from mine").unwrap();
    drop(client);
}

/// What it holds is WAL that nothing else would remove, until the disk is full.
#[test]
fn a_server_that_does_not_let_the_slot_move_is_replaced() {
    let cluster = Cluster::start();
    let settings = [
        ("tide.debug_faults", "on"),
        ("tide.server_timeout", "3s"),
        ("tide.history_size", "1MB"),
        ("tide.max_slot_wal_keep_size", "4MB"),
    ];
    let (database, client, _) = followed_with(&cluster, "clinging", &settings);
    let (worker, started) = (database.worker(), postmaster_start_time(&database));
    let before = server(&database).unwrap();

    ask_for(&database, "cling").unwrap();
    let wal = "select pg_logical_emit_message(false, 'somebody', repeat('x', 1 << 20))
               from generate_series(1, 300)";
    database.sql().batch_execute(wal).unwrap();

    another_server(&database, before);
    let failure = last_failure(&database);
    assert!(failure.contains("does not let go of the past"), "{failure}");
    drop(client);
    let mut client = database.client();
    follow(&mut client, None);
    database.sql().batch_execute("insert into t values (1)").unwrap();
    next(&mut client, 1);
    wait_until("the slot has moved", || {
        let held = "select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) < 16 << 20
                    from pg_replication_slots where database = 'clinging'";
        database.sql().query_one(held, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    assert_eq!(database.worker(), worker);
    assert_eq!(postmaster_start_time(&database), started);
}

/// The log is on a disk that has an end.
#[test]
fn a_server_with_much_to_say_does_not_fill_the_log() {
    let cluster = Cluster::start();
    let database = cluster.database_with("chattering", &[("tide.debug_faults", "on")]);

    ask_for(&database, "chatter").unwrap();

    cluster.wait_for_log(0, "lines that the server had for the log were dropped");
    // A hundred, and one more for each moment that it took to read them.
    let lines = cluster.log().matches("chatter, line").count();
    assert!((1..500).contains(&lines), "{lines}");
    assert!(server(&database).is_some());
}

#[test]
fn nobody_asks_for_a_fault_outside_of_tests() {
    let database = Cluster::shared().database("faultless");
    let before = server(&database);

    for fault in ["abort", "stack_overflow", "out_of_memory"] {
        let error = ask_for(&database, fault).unwrap_err();
        let message = error.as_db_error().unwrap().message().to_owned();
        assert!(message.contains("tide.debug_faults is off"), "{message}");
    }

    assert_eq!(server(&database), before);
    let shown = "select count(*) from pg_settings where name = 'tide.debug_faults'";
    assert_eq!(database.sql().query_one(shown, &[]).unwrap().get::<_, i64>(0), 0);
}

#[test]
fn a_server_that_cannot_start_is_tried_ever_less_often() {
    let cluster = Cluster::start();
    let (database, mut client, _) = followed_with(&cluster, "unstartable", &[]);
    let (worker, started) = (database.worker(), postmaster_start_time(&database));
    let before = server(&database).unwrap();
    let obstacle = keep_from_starting(&database);

    let killed = Instant::now();
    signal("KILL", before);
    client.wait_until_closed();
    wait_until("it has failed five times", || (failures(&database) >= 5).then_some(()));

    // The pauses in between double: 0.2, 0.4, 0.8, 1.6 s. It may take longer, but not less.
    assert!(killed.elapsed() >= Duration::from_secs(3), "{:?}", killed.elapsed());
    let mut sql = database.sql();
    let row = sql.query_one("select state, reason from tide.status()", &[]).unwrap();
    assert_eq!(row.get::<_, &str>(0), "stalled");
    assert!(row.get::<_, &str>(1).contains("status 1"), "{:?}", row.get::<_, &str>(1));
    assert_eq!(database.worker(), worker);
    assert_eq!(postmaster_start_time(&database), started);

    std::fs::remove_dir(obstacle).unwrap();
    another_server(&database, before);
    let mut client = database.client();
    follow(&mut client, None);
    database.sql().batch_execute("insert into t values (1)").unwrap();
    next(&mut client, 1);
}

#[test]
fn a_server_that_finds_no_memory_comes_back_and_nothing_is_missed() {
    let cluster = Cluster::start();
    let (database, mut client, position) = followed_with(&cluster, "starved", &[]);
    let started = postmaster_start_time(&database);
    let before = server(&database).unwrap();
    database.sql().batch_execute("alter table t add column pad text").unwrap();

    // Not a byte more than it has. The history alone wants some megabytes.
    let limit = format!("--data={}", data_size(before));
    let mut prlimit = by_owner(Command::new("prlimit"));
    succeed(prlimit.arg(limit).arg("--pid").arg(before.to_string()));
    let rows = "select g, repeat(md5(g::text), 1000) from generate_series(1, 500) g";
    database.sql().batch_execute(&format!("insert into t {rows}")).unwrap();

    another_server(&database, before);
    assert!(last_failure(&database).contains("signal 6"), "{}", last_failure(&database));
    cluster.wait_for_log(0, "memory allocation of");
    client.wait_until_closed();
    let mut client = database.client();
    follow(&mut client, Some(&position));
    (1..=500).for_each(|id| drop(next(&mut client, id)));
    assert_eq!(postmaster_start_time(&database), started);
}

/// Bytes of a process that count against its limit of data.
fn data_size(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_flood_at_the_lowest_memory_limit_is_the_servers_concern_alone() {
    let cluster = Cluster::with("tide.memory_limit = '64MB'");
    let (database, client, _) = followed_with(&cluster, "flooded", &[]);
    let (worker, started) = (database.worker(), postmaster_start_time(&database));
    let mut bystander = database.sql();
    bystander.batch_execute("create temp table mine as select 1").unwrap();
    bystander.batch_execute("alter table t add column pad text").unwrap();

    // Clients that do not read, each with a message that it does not finish.
    let token = database.token("authenticated");
    let flood: Vec<Client> = (0..300).filter_map(|_| flooding(&database, &token)).collect();
    let rows = "select g, repeat(md5(g::text), 1000) from generate_series(1, 2000) g";
    database.sql().batch_execute(&format!("insert into t {rows}")).unwrap();

    drop((flood, client));
    wait_until("clients are served again", || {
        let mut client = database.try_connect(&format!("apikey={token}&vsn=2.0.0")).ok()?;
        client.send_text_if_open(&join());
        let reply = client.read(DEADLINE).ok()??;
        (reply.payload["status"] == "ok").then_some(())
    });
    assert_eq!(database.worker(), worker);
    assert_eq!(postmaster_start_time(&database), started);
    bystander.batch_execute("select * from mine").unwrap();
}

/// A client that has joined and has begun a message of nearly a megabyte; `None` once no more are
/// let in.
fn flooding(database: &Database<'_>, token: &str) -> Option<Client> {
    const ANNOUNCED: u32 = 1_000_000;
    // The end of a text, masked, with a length of eight bytes and a mask that changes nothing.
    let head = [&[0x81, 0xff][..], &u64::from(ANNOUNCED).to_be_bytes(), &[0; 4]].concat();
    let mut client = database.try_connect(&format!("apikey={token}&vsn=2.0.0")).ok()?;
    client.send_text_if_open(&join());
    let stream = client.stream();
    // A server that does not read any more is no reason to wait.
    stream.set_write_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(&head).ok()?;
    stream.write_all(&vec![b'['; ANNOUNCED as usize - 1]).ok()?;
    Some(client)
}

fn join() -> String {
    json!(["1", "1", TOPIC, "phx_join", { "config": {} }]).to_string()
}
