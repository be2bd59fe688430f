//! (k) What clients that do not read cost one that does: from INSERT to it, with and without them.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::latency;
use super::pgbench;
use super::plan::Plan;
use super::process::Stopwatch;
use super::report::{Report, Sample, percentile};
use super::server::{self, Attached, Durability, Extension, Way};
use super::support::Database;
use super::websocket::{self, Topic};

const METRICS: &[&str] = &["p50 us", "p99 us", "server CPU us/tx"];

/// Who is there besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Nobody,
    /// So many that joined and read nothing more.
    Deaf(usize),
    /// So many more each second, which begin with everything that is still kept.
    Returning(u32),
}

const CASES: [(&str, Others); 2] = [
    ("70 that do not read", Others::Deaf(70)),
    ("10 joins/s from an old place", Others::Returning(10)),
];

const WAY: Way = Way::Tide(Topic::Changes);
const TABLE: &str = "tick";
const COLUMNS: &str =
    "id bigint generated always as identity primary key, sent bigint not null, body text";
/// Wide enough to fill the sockets of those who do not read within seconds.
const WRITE: &str = "insert into tick (sent, body) values \
    ((extract(epoch from clock_timestamp()) * 1e6)::bigint, repeat('x', 8000));";
const RATE: u32 = 200;

pub fn run(plan: &Plan) -> Report {
    let cluster = server::start(Extension::Tide, Durability::Fsync);
    let database = server::database(&cluster, Extension::Tide);
    server::publish(&database, Extension::Tide, TABLE, COLUMNS);
    let mut report =
        Report::new("(k) from INSERT to a client beside some that do not read", METRICS);
    for (name, others) in CASES {
        let ways = [("pg_tide", others), ("pg_tide, nobody else", Others::Nobody)];
        report.measure(name, plan, &ways, |others| measure(&database, others, plan.duration));
    }
    report
}

fn measure(database: &Database<'_>, others: Others, duration: Duration) -> Sample {
    database.sql().batch_execute("truncate tick; checkpoint").unwrap();
    database.restart_worker();
    let since = place(database);
    let mut attached = Attached::new(WAY, database, TABLE);
    let script = database.cluster.host().join("slow.sql");
    std::fs::write(&script, WRITE).unwrap();
    let over = AtomicBool::new(false);
    let server = Stopwatch::start(&[attached.server]);
    let (transactions, mut latencies) = std::thread::scope(|scope| {
        scope.spawn(|| crowd(database, others, &since, &over));
        let pgbench = scope.spawn(|| {
            let arguments = ["-f", script.to_str().unwrap()];
            let outcome = pgbench::run(database, 1, Some(RATE), duration, &arguments);
            // Tells the client that there is nothing more to come.
            database.sql().batch_execute("insert into tick (sent) values (0)").unwrap();
            over.store(true, Ordering::Relaxed);
            outcome.transactions
        });
        let latencies = latency::receive(&mut attached, WAY);
        (pgbench.join().unwrap(), latencies)
    });
    assert_eq!(latencies.len() as u64, transactions, "{others:?}: rows were lost");
    latencies.sort_unstable();
    let cpu = server.seconds() * 1e6 / transactions as f64;
    vec![percentile(&latencies, 0.5), percentile(&latencies, 0.99), cpu]
}

/// Keeps the others there until it is over.
fn crowd(database: &Database<'_>, others: Others, since: &str, over: &AtomicBool) {
    let join =
        || websocket::join(database.port, &database.token("authenticated"), Topic::Table, TABLE);
    let mut members: Vec<TcpStream> = match others {
        Others::Deaf(count) => (0..count).map(|_| join()).collect(),
        Others::Nobody | Others::Returning(_) => Vec::new(),
    };
    while !over.load(Ordering::Relaxed) {
        let pause = match others {
            Others::Returning(rate) => {
                members.push(come_back(database, since));
                Duration::from_secs(1) / rate
            }
            Others::Nobody | Others::Deaf(_) => Duration::from_millis(20),
        };
        std::thread::park_timeout(pause);
    }
}

/// The place of the first row of all.
fn place(database: &Database<'_>) -> String {
    let token = database.token("authenticated");
    let mut stream = websocket::join(database.port, &token, Topic::Table, TABLE);
    database.sql().batch_execute("insert into tick (sent) values (1)").unwrap();
    loop {
        let frame: Value = serde_json::from_slice(&websocket::receive(&mut stream)).unwrap();
        if let Some(id) = frame[4]["meta"]["id"].as_str() {
            return id.to_owned();
        }
    }
}

/// Joins from there on, and does not read the answer.
fn come_back(database: &Database<'_>, since: &str) -> TcpStream {
    let token = database.token("authenticated");
    let path = format!("/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let mut stream = websocket::connect(database.port, &path);
    let topic = format!("realtime:tide:table:public.{TABLE}");
    let config = json!({ "broadcast": { "since": since } });
    let frame = json!(["1", "1", topic, "phx_join", { "config": config }]);
    websocket::send(&mut stream, &frame.to_string());
    stream
}
