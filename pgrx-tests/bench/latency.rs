//! (b) From a commit to the client.
//!
//! Each row holds the time when its INSERT ran; the client compares it with its own clock when it
//! has the row. So every way's latency includes the INSERT and its commit, with fsync.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::pgbench;
use super::plan::Plan;
use super::process::Stopwatch;
use super::reader::Row;
use super::report::{Report, Sample, percentile};
use super::server::{self, Attached, CHANNEL, Durability, Extension, Way};
use super::support::Database;
use super::websocket::Topic;

const METRICS: &[&str] =
    &["p50 us", "p99 us", "transactions/s", "server CPU us/tx", "client CPU us/tx"];

const WAYS: [(&str, Way); 4] = [
    ("pg_tide", Way::Tide(Topic::Changes)),
    ("NOTIFY", Way::Notify),
    ("pg_recvlogical pgoutput", Way::Pgoutput),
    ("walsender pgoutput, socket", Way::Walsender),
];

const TABLE: &str = "tick";
const COLUMNS: &str = "id bigint generated always as identity primary key, sent bigint not null";
const NOW: &str = "(extract(epoch from clock_timestamp()) * 1e6)::bigint";

pub fn run(plan: &Plan) -> Report {
    let clusters = [Extension::None, Extension::Tide]
        .map(|extension| (extension, server::start(extension, Durability::Fsync)));
    let databases = clusters.each_ref().map(|(extension, cluster)| {
        let database = server::database(cluster, *extension);
        server::publish(&database, *extension, TABLE, COLUMNS);
        database
    });
    let mut report = Report::new("(b) from INSERT to the client, fsync on", METRICS);
    for (case, clients, rate) in [("200 transactions/s", 1, Some(200)), ("full load", 8, None)] {
        report.measure(case, plan, &WAYS, |way| {
            let database = &databases[way.extension() as usize];
            measure(database, way, clients, rate, plan.duration)
        });
    }
    report
}

fn measure(
    database: &Database<'_>,
    way: Way,
    clients: usize,
    rate: Option<u32>,
    duration: Duration,
) -> Sample {
    database.sql().batch_execute("truncate tick; checkpoint").unwrap();
    let mut attached = Attached::new(way, database, TABLE);
    let script = script(database, way);
    let server = Stopwatch::start(&[attached.server]);
    let client = Stopwatch::start(&attached.clients);
    let (outcome, mut latencies) = std::thread::scope(|scope| {
        let pgbench = scope.spawn(|| {
            let outcome =
                pgbench::run(database, clients, rate, duration, &["-f", script.to_str().unwrap()]);
            // Tells the client that there is nothing more to come.
            let end = match way {
                Way::Notify => format!("select pg_notify('{CHANNEL}', '0')"),
                _ => "insert into tick (sent) values (0)".to_owned(),
            };
            database.sql().batch_execute(&end).unwrap();
            outcome
        });
        let latencies = receive(&mut attached, way);
        (pgbench.join().unwrap(), latencies)
    });
    assert_eq!(latencies.len() as u64, outcome.transactions, "{way:?} lost rows");
    latencies.sort_unstable();
    let per_transaction = 1e6 / outcome.transactions as f64;
    vec![
        percentile(&latencies, 0.5),
        percentile(&latencies, 0.99),
        outcome.tps,
        server.seconds() * per_transaction,
        client.seconds() * per_transaction,
    ]
}

/// Latencies in microseconds, until the row that says 0.
pub fn receive(attached: &mut Attached<'_>, way: Way) -> Vec<u32> {
    let column = usize::from(way != Way::Notify);
    let (mut latencies, mut over) = (Vec::new(), false);
    while !over {
        attached
            .reader
            .read(|row: &Row<'_>| match row.number(column) {
                0 => over = true,
                sent => latencies.push(u32::try_from(now() - sent).unwrap_or(0)),
            })
            .unwrap();
    }
    latencies
}

pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// pgbench's script: one INSERT, and for NOTIFY the notification in the same statement.
fn script(database: &Database<'_>, way: Way) -> PathBuf {
    let statement = match way {
        Way::Notify => format!(
            "with row as (insert into tick (sent) values ({NOW}) returning sent)
             select pg_notify('{CHANNEL}', sent::text) from row;"
        ),
        _ => format!("insert into tick (sent) values ({NOW});"),
    };
    let path = database.cluster.host().join("script.sql");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(statement.replace('\n', " ").as_bytes()).unwrap();
    path
}
