//! (k) What clients that do not read cost one that does: from INSERT to it, beside them and beside as
//! many that read everything.

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
    /// So many that have joined the table.
    Joined(u32),
    /// So many more each second, which begin with everything that is still kept.
    Returning(u32),
    /// So many that have joined a NOTIFY channel, in which 10,000 notifications come each second.
    Notified(u32),
}

const CASES: [(&str, Others); 3] = [
    ("70 that do not read", Others::Joined(70)),
    ("10 joins/s from an old place", Others::Returning(10)),
    ("2 in a busy NOTIFY channel", Others::Notified(2)),
];

/// Whether the others read what they get.
const WAYS: [(&str, bool); 2] = [("pg_tide", false), ("pg_tide, they read", true)];

const WAY: Way = Way::Tide(Topic::Changes);
const TABLE: &str = "tick";
const COLUMNS: &str =
    "id bigint generated always as identity primary key, sent bigint not null, body text";
/// Wide enough to fill the sockets of those who do not read within seconds.
const WRITE: &str = "insert into tick (sent, body) values \
    ((extract(epoch from clock_timestamp()) * 1e6)::bigint, repeat('x', 8000));";
const RATE: u32 = 200;

/// Notifications of one transaction, and how many transactions there are each second.
const NOTIFY: &str =
    "select pg_notify('news', n || repeat('x', 200)) from generate_series(1, 100) n";
const NOTIFIES: u32 = 100;

pub fn run(plan: &Plan) -> Report {
    let cluster = server::start(Extension::Tide, Durability::Fsync);
    let settings = [("tide.notify_channels", "news"), ("tide.public_channels", "on")];
    let database = cluster.database_with("bench", &settings);
    server::publish(&database, Extension::Tide, TABLE, COLUMNS);
    let mut report =
        Report::new("(k) from INSERT to a client beside some that do not read", METRICS);
    for (name, others) in CASES {
        report.measure(name, plan, &WAYS, |read| measure(&database, others, read, plan.duration));
    }
    report
}

fn measure(database: &Database<'_>, others: Others, read: bool, duration: Duration) -> Sample {
    database.sql().batch_execute("truncate tick; checkpoint").unwrap();
    database.restart_worker();
    let since = place(database);
    let mut attached = Attached::new(WAY, database, TABLE);
    let script = database.cluster.host().join("slow.sql");
    std::fs::write(&script, WRITE).unwrap();
    let over = AtomicBool::new(false);
    let server = Stopwatch::start(&[attached.server]);
    let (transactions, mut latencies) = std::thread::scope(|scope| {
        scope.spawn(|| crowd(database, others, read, &since, &over));
        if let Others::Notified(_) = others {
            scope.spawn(|| notify(database, &over));
        }
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
fn crowd(database: &Database<'_>, others: Others, read: bool, since: &str, over: &AtomicBool) {
    let token = database.token("authenticated");
    let mut members: Vec<TcpStream> = match others {
        Others::Joined(count) => (0..count)
            .map(|_| websocket::join(database.port, &token, Topic::Table, TABLE))
            .collect(),
        Others::Notified(count) => (0..count).map(|_| join(database, NEWS, &json!({}))).collect(),
        Others::Returning(_) => Vec::new(),
    };
    let mut buffer = vec![0; 1 << 20];
    let mut next = Instant::now();
    for member in &members {
        member.set_nonblocking(true).unwrap();
    }
    while !over.load(Ordering::Relaxed) {
        if let Others::Returning(rate) = others
            && next.elapsed() >= Duration::from_secs(1) / rate
        {
            next += Duration::from_secs(1) / rate;
            let config = json!({ "broadcast": { "since": since } });
            let member = join(database, &format!("realtime:tide:table:public.{TABLE}"), &config);
            member.set_nonblocking(true).unwrap();
            members.push(member);
        }
        if read {
            for member in &mut members {
                read_all(member, &mut buffer);
            }
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

const NEWS: &str = "realtime:tide:notify:news";

/// Asks to join, and does not wait for the answer.
fn join(database: &Database<'_>, topic: &str, config: &Value) -> TcpStream {
    let token = database.token("authenticated");
    let path = format!("/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let mut stream = websocket::connect(database.port, &path);
    let frame = json!(["1", "1", topic, "phx_join", { "config": config }]);
    websocket::send(&mut stream, &frame.to_string());
    stream
}

/// Reads what has arrived. Whoever is cut off nevertheless stays away.
fn read_all(stream: &mut TcpStream, buffer: &mut [u8]) {
    loop {
        match stream.read(buffer) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

fn notify(database: &Database<'_>, over: &AtomicBool) {
    let mut sql = database.sql();
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        sql.batch_execute(NOTIFY).unwrap();
        std::thread::park_timeout(
            (Duration::from_secs(1) / NOTIFIES).saturating_sub(begun.elapsed()),
        );
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
