//! (i) deepstream's storage connector: ours, and the one whose place it takes.
//!
//! Both run in node, each on a server of its own with the same settings; the earlier one's events
//! come from triggers and NOTIFY.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::pgbench;
use super::plan::Plan;
use super::report::{Report, Sample};
use super::server::{self, Durability, Extension};
use super::support::Database;

const METRICS: &[&str] = &["p50 us", "p99 us", "per second"];

const WAYS: [(&str, Extension); 2] =
    [("pg_tide", Extension::Tide), ("@deepstream/storage-postgres", Extension::None)];

/// What is called, by the names that `measure.js` has for it.
const CALLS: [(&str, &str); 5] = [
    ("get", "get"),
    ("get, 32 in flight", "gets"),
    ("set, writeInterval 1", "set"),
    ("set, subscribed as well", "set with subscriber"),
    ("set, 20,000 records", "sets"),
];

const ROLE: &str = "deepstream";

/// One row, whose key says when.
const INSERT: &str = "insert into ds.inserted values \
    ((extract(epoch from clock_timestamp()) * 1e6)::bigint || '-' || gen_random_uuid(), 1, '{}');";

pub fn run(plan: &Plan) -> Report {
    let clusters = [Extension::None, Extension::Tide]
        .map(|extension| (extension, server::start(extension, Durability::Fsync)));
    let databases = clusters.each_ref().map(|(extension, cluster)| {
        let database = server::database(cluster, *extension);
        prepare(&database, *extension);
        database
    });
    let mut report = Report::new("(i) deepstream's storage connector, fsync on", METRICS);
    for (case, name) in CALLS {
        report.measure(case, plan, &WAYS, |way| {
            let mut node = Node::start(&databases[way as usize], way, name);
            node.result()
        });
    }
    for (case, writers, rate) in
        [("INSERT to event, 200/s", 1, Some(200)), ("8 writers, one row each", 8, None)]
    {
        report.measure(case, plan, &WAYS, |way| {
            events(&databases[way as usize], way, plan, writers, rate)
        });
    }
    report
}

fn prepare(database: &Database<'_>, extension: Extension) {
    let (mut sql, name) = (database.sql(), &database.name);
    sql.batch_execute(&format!(
        "create role {ROLE} login; grant create on database {name} to {ROLE};
         grant create on schema public to {ROLE};"
    ))
    .unwrap();
    if extension == Extension::Tide {
        sql.batch_execute(&format!(
            "grant {ROLE} to tide_authenticator; grant execute on function tide.token to {ROLE}"
        ))
        .unwrap();
    }
}

/// Rows that pgbench inserts while a connector is subscribed to them.
fn events(
    database: &Database<'_>,
    way: Extension,
    plan: &Plan,
    writers: usize,
    rate: Option<u32>,
) -> Sample {
    let mut node = Node::start(database, way, "events");
    assert_eq!(node.line(), "ready");
    database.sql().batch_execute("checkpoint").unwrap();
    let script = database.cluster.host().join("insert.sql");
    fs::write(&script, INSERT).unwrap();
    let outcome =
        pgbench::run(database, writers, rate, plan.duration, &["-f", script.to_str().unwrap()]);
    writeln!(node.process.stdin.as_mut().unwrap(), "{}", outcome.transactions).unwrap();
    let mut sample = node.result();
    sample[2] = outcome.tps;
    sample
}

/// A connector in a process of its own.
struct Node {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Node {
    fn start(database: &Database<'_>, way: Extension, case: &str) -> Node {
        let folder: PathBuf =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../clients/deepstream-storage");
        let module = match way {
            Extension::Tide => "..",
            Extension::None => "@deepstream/storage-postgres",
        };
        let mut process = Command::new("node")
            .arg(folder.join("bench/measure.js"))
            .args([module, case])
            .env("PGHOST", database.cluster.host())
            .env("PGUSER", ROLE)
            .env("PGDATABASE", &database.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Node { process, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("node said nothing more").unwrap()
    }

    /// The figures at its end; NaN for what it has none of.
    fn result(&mut self) -> Sample {
        let figures: Vec<Option<f64>> = serde_json::from_str(&self.line()).unwrap();
        assert!(self.process.wait().unwrap().success());
        figures.into_iter().map(|figure| figure.unwrap_or(f64::NAN)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
