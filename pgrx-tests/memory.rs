//! Memory stays flat at any size of transaction, whoever reads or does not.
//!
//! `TIDE_MEMORY_ROWS` sets the number of narrow rows (5,000,000 for the full run); a tenth as
//! many, and never more than 50,000, are written as rows of 10 kB.

use serde_json::json;

use crate::support::client::Client;
use crate::support::cluster::Shutdown;
use crate::support::database::WORKER;
use crate::support::family::family;
use crate::support::{Cluster, DEADLINE, Database, firehose, wait_until};

/// What the worker may take beyond its configured queues and history.
const ALLOWED_KIB: u64 = 64 << 10;

const CATALOG_WORKER: &str = "pg_tide catalog worker";

fn rows() -> u64 {
    std::env::var("TIDE_MEMORY_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(200_000)
}

#[test]
fn a_huge_transaction_of_narrow_rows_takes_no_more_memory() {
    huge_transaction("narrow", rows(), "repeat('x', 50)");
}

#[test]
fn a_huge_transaction_of_wide_rows_takes_no_more_memory() {
    // Not compressible, or the WAL would have next to nothing of it.
    let wide = "(select string_agg(md5(g::text || n::text), '') from generate_series(1, 320) n)";
    huge_transaction("wide", (rows() / 10).min(50_000), wide);
}

fn huge_transaction(name: &str, rows: u64, pad: &str) {
    let cluster = Cluster::with("max_wal_size = 16GB\nshared_buffers = 256MB");
    let settings = [("tide.history_size", "16MB"), ("tide.send_queue_size", "4MB")];
    let database = cluster.database_with(name, &settings);
    let queues_kib = (16 + 2 * 4) << 10;
    let t = database.table("huge", "id int primary key, pad text");
    let mut reading = database.client();
    reading.subscribe("reading", &t);
    let mut stalled = database.client();
    stalled.subscribe("stalled", &t);
    let worker = database.worker();
    // The first rows make the worker's caches, which are no matter of the transaction's size.
    database.sql().batch_execute(&format!("insert into {t} values (0, 'x')")).unwrap();
    reading.change();
    stalled.change();
    let before = peak_kib(worker);

    let statement = format!("insert into {t} select g, {pad} from generate_series(1, {rows}) g");
    let reader = std::thread::spawn(move || firehose::read_rows(&mut reading, rows));
    database.sql().batch_execute(&statement).unwrap();
    reader.join().expect("every row arrives");

    assert_eq!(database.worker(), worker, "the worker has been restarted");
    let grown = peak_kib(worker).saturating_sub(before);
    eprintln!("{name}: {rows} rows, peak grew by {grown} KiB");
    assert!(
        grown <= ALLOWED_KIB + queues_kib,
        "the worker grew by {grown} KiB, allowed are {} KiB",
        ALLOWED_KIB + queues_kib
    );
    read_what_was_waiting(&mut stalled);
    stop_in_the_middle(&cluster, &database, &t, &statement);
}

/// The one that did not read has been told to go.
fn read_what_was_waiting(client: &mut Client) {
    let mut frames = 0_u64;
    while let Ok(Some(_)) = client.read(DEADLINE) {
        frames += 1;
    }
    eprintln!("the stalled client had {frames} frames waiting");
}

/// A fast shutdown while such a transaction is being decoded takes two seconds at most.
fn stop_in_the_middle(cluster: &Cluster, database: &Database<'_>, t: &str, statement: &str) {
    let mut client = database.client();
    client.subscribe("again", t);
    database.sql().batch_execute(&format!("begin; truncate {t}; {statement}; commit")).unwrap();
    client.change();

    let start = std::time::Instant::now();
    cluster.stop(Shutdown::Fast);

    // The server's own share of a shutdown (its checkpoint) is not what is tested.
    let log = cluster.log();
    let stopped = start.elapsed();
    assert!(!log.contains("terminated by signal 9"), "a process had to be killed");
    eprintln!("fast shutdown in the middle took {stopped:?}");
    assert!(stopped < std::time::Duration::from_secs(10), "{stopped:?}");
}

/// The most memory that a process has had resident, and those that it has started, in KiB.
pub fn peak_kib(pid: i32) -> u64 {
    family(pid).into_iter().map(own_peak_kib).sum()
}

fn own_peak_kib(pid: i32) -> u64 {
    // Without the pages of shared memory, which it merely touches.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let shared = field("RssShmem:");
    field("VmHWM:").saturating_sub(shared)
}

#[test]
fn messages_that_wait_for_another_slot_take_no_more_memory() {
    let cluster = Cluster::with("max_wal_size = 16GB\nshared_buffers = 256MB");
    let settings = [("tide.history_size", "16MB")];
    let database = cluster.database_with("waiting", &settings);
    let mut sql = database.sql();
    let before = [WORKER, CATALOG_WORKER].map(|kind| peak_kib(database.processes(kind)[0]));

    database.lose_slot(&format!(
        "insert into tide.outbox (channel, name, data)
         select 'room', 'n', jsonb_build_object('n', n, 'pad', repeat('x', 50))
         from generate_series(1, {}) n",
        rows()
    ));
    let mut left = |condition: &str| -> i64 {
        let query = format!("select count(*) from tide.outbox where {condition}");
        sql.query_one(&query, &[]).unwrap().get(0)
    };
    // In parts, since a million of them may take longer than one wait does.
    let parts = (0..10).rev().map(|tenth| (tenth * rows() / 10).max(1) as i64);
    for most in parts.clone() {
        wait_until(&format!("{most} are not in line"), || {
            (left("locked_by is null") <= most).then_some(())
        });
    }
    for most in parts {
        wait_until(&format!("{most} are left"), || (left("true") <= most).then_some(()));
    }

    for (kind, before) in [WORKER, CATALOG_WORKER].into_iter().zip(before) {
        let grown = peak_kib(database.processes(kind)[0]).saturating_sub(before);
        eprintln!("{kind}: {} messages, peak grew by {grown} KiB", rows());
        assert!(grown <= ALLOWED_KIB + (16 << 10), "{kind} grew by {grown} KiB");
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_off_alone() {
    let cluster = Cluster::start();
    let settings = [("tide.history_size", "8MB"), ("tide.send_queue_size", "1MB")];
    let database = cluster.database_with("stalled", &settings);
    let t = database.table("t", "id int primary key, pad text");
    let mut stalled = database.client();
    stalled.subscribe("stalled", &t);
    let mut reading = database.client();
    reading.subscribe("reading", &t);
    let rows = 60_000;

    let mut sql = database.sql();
    for part in 0..6_u64 {
        let from = part * rows / 6;
        sql.batch_execute(&format!(
            "insert into {t} select {from} + g, repeat('x', 1000) from generate_series(1, {}) g",
            rows / 6
        ))
        .unwrap();
        for id in from + 1..=from + rows / 6 {
            assert_eq!(reading.change()["record"]["id"], json!(id));
        }
    }

    wait_until("the stalled client has been cut off", || {
        let metrics = crate::support::http::get(database.port, "/metrics").body;
        metrics
            .lines()
            .find(|line| line.starts_with("pg_tide_slow_clients_total") && !line.ends_with(" 0"))
            .map(|_| ())
    });
}
