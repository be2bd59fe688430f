//! (f) Memory of the worker while one huge transaction goes to a client that reads and to one that
//! does not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::plan::Plan;
use super::process::{self, Memory, Stopwatch};
use super::report::{Report, Sample};
use super::server::{self, Attached, Durability, Extension, Way};
use super::support::Database;
use super::websocket::{self, Topic};

const METRICS: &[&str] =
    &["peak RSS, MiB more", "peak private, MiB more", "rows/s", "server CPU us/row"];

const WAYS: [(&str, Way); 2] =
    [("pg_tide", Way::Tide(Topic::Changes)), ("walsender pgoutput, socket", Way::Walsender)];

const TABLE: &str = "burst";

/// How often the memory is looked at; the kernel itself keeps the peak of RSS.
const PAUSE: Duration = Duration::from_millis(20);

pub fn run(plan: &Plan) -> Report {
    let clusters = [Extension::None, Extension::Tide]
        .map(|extension| (extension, server::start(extension, Durability::PageCache)));
    let databases = clusters.each_ref().map(|(extension, cluster)| {
        let database = server::database(cluster, *extension);
        let columns = "id bigint primary key, body text";
        server::publish(&database, *extension, TABLE, columns);
        // Wide values are to be wide in the WAL as well.
        let external = "alter table burst alter column body set storage external";
        database.sql().batch_execute(external).unwrap();
        database
    });
    let mut report = Report::new("(f) memory of one transaction", METRICS);
    for (case, rows, body) in [
        ("narrow rows", plan.burst_rows, "'row ' || i"),
        ("rows of 10 kB", plan.burst_wide_rows, "repeat(md5(i::text), 320)"),
    ] {
        report.measure(&format!("{rows} {case}"), plan, &WAYS, |way| {
            measure(&databases[way.extension() as usize], way, rows, body)
        });
    }
    report
}

fn measure(database: &Database<'_>, way: Way, rows: u64, body: &str) -> Sample {
    let mut sql = database.sql();
    sql.batch_execute("truncate burst; checkpoint").unwrap();
    if let Way::Tide(_) = way {
        database.restart_worker();
    }
    let mut attached = Attached::new(way, database, TABLE);
    let stalled = match way {
        Way::Tide(topic) => {
            let token = database.token("authenticated");
            Some(websocket::join(database.port, &token, topic, TABLE))
        }
        _ => None,
    };
    let pid = attached.server;
    process::wait_until_idle(pid);
    process::forget_peak(pid);
    let before = process::quick_memory(pid);
    let server = Stopwatch::start(&[pid]);
    let start = Instant::now();
    let over = AtomicBool::new(false);
    let private = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(pid, &over));
        let insert =
            format!("insert into burst select i, {body} from generate_series(1, {rows}) i");
        scope.spawn(move || sql.batch_execute(&insert).unwrap());
        let mut received = 0;
        while received < rows {
            let read = attached.reader.read(|row| {
                received += 1;
                assert_eq!(row.number(0), received as i64);
            });
            read.unwrap_or_else(|error| panic!("{error} after {received} rows"));
        }
        over.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    let seconds = start.elapsed().as_secs_f64();
    drop(stalled);
    let after = process::quick_memory(pid);
    vec![
        (after.peak - before.rss) / 1024.0,
        (private - before.anonymous) / 1024.0,
        rows as f64 / seconds,
        server.seconds() * 1e6 / rows as f64,
    ]
}

/// The most private memory that was seen.
fn watch(pid: i32, over: &AtomicBool) -> f64 {
    let mut most: f64 = 0.0;
    while !over.load(Ordering::Relaxed) {
        let Memory { anonymous, .. } = process::quick_memory(pid);
        most = most.max(anonymous);
        std::thread::park_timeout(PAUSE);
    }
    most
}
