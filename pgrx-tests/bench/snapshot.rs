//! (m) The rows that there are, to one client, and what a bystander's queries take meanwhile.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::plan::Plan;
use super::report::{Report, Sample, percentile};
use super::server::{self, Durability, Extension};
use super::support::{Database, wait_until};
use super::websocket;

const METRICS: &[&str] = &["rows/s", "bystander p50 us", "bystander p99 us"];

#[derive(Clone, Copy, Debug)]
enum Way {
    Tide,
    Copy,
    /// Only the bystander.
    Nothing,
}

/// COPY twice: what they differ by is chance.
const WAYS: [(&str, Way); 4] = [
    ("pg_tide snapshot", Way::Tide),
    ("COPY (select row_to_json ...)", Way::Copy),
    ("the same again", Way::Copy),
    ("nothing", Way::Nothing),
];

const TABLE: &str = "present";
const COLUMNS: &str = "id bigint primary key, device int not null, kind text not null, \
    value numeric(10,2) not null, ok boolean not null, at timestamptz not null, note text not null";
const FILL: &str = "
insert into present
select i, i::bigint * 7919 % 100000, (array['temperature', 'pressure', 'humidity'])[1 + i % 3],
    (i % 1000000) / 100.0, i % 3 = 0, timestamptz '2026-01-01' + i * interval '1 ms',
    md5(i::text) || md5((-i)::text) || '-' || i
from generate_series(1, $rows) i";

/// Between two queries of the bystander.
const PAUSE: Duration = Duration::from_millis(1);
/// For how long it is measured alone.
const ALONE: Duration = Duration::from_secs(3);

pub fn run(plan: &Plan) -> Report {
    let cluster = server::start(Extension::Tide, Durability::PageCache);
    let database = server::database(&cluster, Extension::Tide);
    server::publish(&database, Extension::Tide, TABLE, COLUMNS);
    let fill = FILL.replace("$rows", &plan.rows.to_string());
    for statement in [&*fill, "vacuum analyze present", "checkpoint"] {
        database.sql().batch_execute(statement).unwrap();
    }
    let query = "select decoded_lsn >= pg_current_wal_lsn() from tide.status()";
    wait_until("all is decoded", || {
        let decoded: Option<bool> = database.sql().query_one(query, &[]).unwrap().get(0);
        decoded?.then_some(())
    });
    let mut report = Report::new("(m) rows that are there, to one client", METRICS);
    report.measure(&format!("{} rows", plan.rows), plan, &WAYS, |way| {
        measure(&database, way, plan.rows)
    });
    report
}

fn measure(database: &Database<'_>, way: Way, rows: u64) -> Sample {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let bystander = scope.spawn(|| ask_all_the_time(database, rows, &over));
        let begun = Instant::now();
        let told = match way {
            Way::Tide => snapshot(database),
            Way::Copy => copy(database),
            Way::Nothing => {
                std::thread::sleep(ALONE);
                0
            }
        };
        let seconds = begun.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let mut latencies = bystander.join().unwrap();
        latencies.sort_unstable();
        let rate = match way {
            Way::Nothing => f64::NAN,
            _ => {
                assert_eq!(told, rows);
                rows as f64 / seconds
            }
        };
        vec![rate, percentile(&latencies, 0.5), percentile(&latencies, 0.99)]
    })
}

/// Joins, and reads until it is said that all has come; how many rows that was.
fn snapshot(database: &Database<'_>) -> u64 {
    let token = database.token("authenticated");
    let path = format!("/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let mut stream = websocket::connect(database.port, &path);
    let config = json!({ "config": { "broadcast": { "snapshot": true } } });
    let topic = format!("realtime:tide:table:public.{TABLE}");
    websocket::send(&mut stream, &json!(["1", "1", topic, "phx_join", config]).to_string());
    loop {
        let frame = websocket::receive(&mut stream);
        // Pages are not taken apart; neither are the lines of COPY.
        if frame.len() < 1_000 {
            let frame: Value = serde_json::from_slice(&frame).unwrap();
            if frame[4]["event"] == "up_to_date" {
                return frame[4]["payload"]["rows"].as_u64().unwrap();
            }
        }
    }
}

fn copy(database: &Database<'_>) -> u64 {
    let mut sql = database.sql();
    let copy = format!("copy (select row_to_json(t) from {TABLE} as t order by id) to stdout");
    let mut lines = sql.copy_out(&copy).unwrap();
    let (mut buffer, mut count) = (vec![0; 256 << 10], 0);
    loop {
        match lines.read(&mut buffer).unwrap() {
            0 => return count,
            read => count += memchr::memchr_iter(b'\n', &buffer[..read]).count() as u64,
        }
    }
}

/// A row by its key, every millisecond: microseconds that each took.
fn ask_all_the_time(database: &Database<'_>, rows: u64, over: &AtomicBool) -> Vec<u32> {
    let mut sql = database.sql();
    let query = sql.prepare(&format!("select note from {TABLE} where id = $1")).unwrap();
    let (mut latencies, mut key) = (Vec::new(), 0);
    while !over.load(Ordering::Relaxed) {
        key = (key + 7_919) % rows;
        let begun = Instant::now();
        sql.query(&query, &[&(1 + key as i64)]).unwrap();
        latencies.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
        std::thread::park_timeout(PAUSE);
    }
    latencies
}
