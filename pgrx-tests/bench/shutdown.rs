//! (l) How long a fast shutdown takes in the middle of one huge transaction that goes to a client.

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::plan::Plan;
use super::report::{Report, Sample};
use super::server::{self, Durability, Extension};
use super::support::cluster::Shutdown;
use super::support::{Cluster, Database, wait_until};
use super::websocket::{self, Topic};

const METRICS: &[&str] = &["seconds"];

const WAYS: [(&str, Extension); 2] =
    [("pg_tide", Extension::Tide), ("no extension, no client", Extension::None)];

const TABLE: &str = "burst";
/// The least that a row takes on the wire: when all have come, as many bytes as this have.
const LEAST: u64 = 150;

pub fn run(plan: &Plan) -> Report {
    let clusters = [Extension::None, Extension::Tide]
        .map(|extension| (extension, server::start(extension, Durability::PageCache)));
    let databases = clusters.each_ref().map(|(extension, cluster)| {
        let database = server::database(cluster, *extension);
        server::publish(&database, *extension, TABLE, "id bigint primary key, body text");
        database
    });
    let mut report = Report::new("(l) fast shutdown in the middle of a transaction", METRICS);
    report.measure(&format!("{} rows", plan.burst_rows), plan, &WAYS, |extension| {
        let (_, cluster) = &clusters[extension as usize];
        measure(cluster, &databases[extension as usize], extension, plan.burst_rows)
    });
    report
}

fn measure(cluster: &Cluster, database: &Database<'_>, extension: Extension, rows: u64) -> Sample {
    let received = AtomicU64::new(0);
    let insert = format!(
        "truncate burst; insert into burst select i, 'row ' || i from generate_series(1, {rows}) i"
    );
    let seconds = std::thread::scope(|scope| {
        if extension == Extension::Tide {
            database.wait_until_live();
            let token = database.token("authenticated");
            let client = websocket::join(database.port, &token, Topic::Changes, TABLE);
            scope.spawn(|| drain(client, &received));
        }
        database.sql().batch_execute(&insert).unwrap();
        // Writing out what was inserted takes both the same time, and is not what is measured.
        database.sql().batch_execute("checkpoint").unwrap();
        if extension == Extension::Tide {
            let begun = || (received.load(Ordering::Relaxed) > LEAST * 1_000).then_some(());
            wait_until("the client gets rows", begun);
        }
        let start = Instant::now();
        cluster.stop(Shutdown::Fast);
        start.elapsed().as_secs_f64()
    });
    let received = received.into_inner();
    assert!(received < rows * LEAST, "all rows had come before: the middle was missed");
    cluster.resume();
    vec![seconds]
}

/// Reads until the server ends the connection.
fn drain(mut client: TcpStream, received: &AtomicU64) {
    let mut buffer = vec![0; 512 << 10];
    while let Ok(read @ 1..) = client.read(&mut buffer) {
        received.fetch_add(read as u64, Ordering::Relaxed);
    }
}
