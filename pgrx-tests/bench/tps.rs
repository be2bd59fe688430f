//! (c) What writers pay: pgbench's transactions per second with one subscriber to all its tables,
//! with a reader of pgoutput, and with nobody.

use std::time::Duration;

use super::pgbench;
use super::plan::Plan;
use super::process::Stopwatch;
use super::report::{Report, Sample};
use super::server::{self, Attached, Durability, Extension, Way};
use super::support::{Cluster, Database};
use super::websocket::Topic;

const METRICS: &[&str] = &["transactions/s", "server CPU us/tx", "client CPU us/tx"];

/// Clients of pgbench: enough to keep two cores and the disk busy.
const CLIENTS: usize = 8;
const SCALE: u32 = 10;

const WAYS: [(&str, Option<Way>); 3] = [
    ("pg_tide", Some(Way::Tide(Topic::Changes))),
    ("off", None),
    ("pg_recvlogical pgoutput", Some(Way::Pgoutput)),
];

pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new("(c) pgbench with one subscriber", METRICS);
    for (case, durability) in [
        ("simple-update, fsync on", Durability::Fsync),
        ("simple-update, fsync off", Durability::PageCache),
    ] {
        // "Off" and pgoutput have a server each, so that none has the others' past.
        let clusters = WAYS.map(|(_, way)| server::start(extension(way), durability));
        let databases = [0, 1, 2].map(|index| prepare(&clusters[index], extension(WAYS[index].1)));
        report.measure(case, plan, &WAYS, |way| {
            let index = WAYS.iter().position(|(_, other)| *other == way).unwrap();
            measure(&databases[index], way, plan.duration)
        });
    }
    report
}

fn extension(way: Option<Way>) -> Extension {
    way.map_or(Extension::None, Way::extension)
}

fn prepare(cluster: &Cluster, extension: Extension) -> Database<'_> {
    let database = server::database(cluster, extension);
    pgbench::initialise(&database, SCALE);
    for table in ["pgbench_accounts", "pgbench_tellers", "pgbench_branches", "pgbench_history"] {
        server::publish(&database, extension, table, "");
    }
    database
}

fn measure(database: &Database<'_>, way: Option<Way>, duration: Duration) -> Sample {
    database.sql().batch_execute("checkpoint").unwrap();
    let script = ["--builtin=simple-update"];
    let Some(way) = way else {
        return vec![pgbench::run(database, CLIENTS, None, duration, &script).tps, 0.0, 0.0];
    };
    let mut attached = Attached::new(way, database, "*");
    let server = Stopwatch::start(&[attached.server]);
    let client = Stopwatch::start(&attached.clients);
    let (outcome, received) = std::thread::scope(|scope| {
        let pgbench = scope.spawn(|| {
            let outcome = pgbench::run(database, CLIENTS, None, duration, &script);
            database.sql().batch_execute(LAST).unwrap();
            outcome
        });
        let received = receive(&mut attached);
        (pgbench.join().unwrap(), received)
    });
    // Of each transaction an UPDATE and an INSERT.
    assert_eq!(received, 2 * outcome.transactions, "{way:?} lost rows");
    let per_transaction = 1e6 / outcome.transactions as f64;
    vec![outcome.tps, server.seconds() * per_transaction, client.seconds() * per_transaction]
}

/// A change that the script does not make, in a table with a number of columns of its own: tells
/// the client that there is nothing more to come.
const LAST: &str = "update pgbench_branches set bbalance = bbalance where bid = 1";
const LAST_COLUMNS: usize = 3;

fn receive(attached: &mut Attached<'_>) -> u64 {
    let (mut received, mut over) = (0, false);
    while !over {
        attached
            .reader
            .read(|row| match row.columns().len() {
                LAST_COLUMNS => over = true,
                _ => received += 1,
            })
            .unwrap();
    }
    received
}
