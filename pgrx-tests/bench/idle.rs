//! (e) Memory of an idle connection that has joined a channel.

use super::fanout::{nats_members, tide_members};
use super::nats::Nats;
use super::plan::Plan;
use super::process::{self, Memory, Stopwatch};
use super::report::{Report, Sample};
use super::server::{self, Durability, Extension};
use super::support::Database;
use super::websocket::Topic;

const METRICS: &[&str] = &["RSS KiB/connection", "PSS KiB/connection", "CPU us/connection"];

const WAYS: [(&str, Medium); 2] = [("pg_tide", Medium::Tide), ("nats-server", Medium::Nats)];

#[derive(Clone, Copy, Debug)]
enum Medium {
    Tide,
    Nats,
}

/// Connections that are there before the measurement, so that what is made once is made.
const FIRST: usize = 20;

pub fn run(plan: &Plan) -> Report {
    let cluster = server::start(Extension::Tide, Durability::PageCache);
    let database = server::database(&cluster, Extension::Tide);
    server::publish(&database, Extension::Tide, "feed", "id bigint primary key, body text");
    let mut report = Report::new("(e) memory of an idle connection", METRICS);
    let case = format!("{} connections", plan.idle);
    report.measure(&case, plan, &WAYS, |medium| match medium {
        Medium::Tide => tide(&database, plan.idle),
        Medium::Nats => through_nats(plan.idle),
    });
    report
}

/// In a fresh process each time: memory that was given back is not always the kernel's again.
fn tide(database: &Database<'_>, count: usize) -> Sample {
    database.restart_worker();
    let first = tide_members(database, Topic::Changes, FIRST);
    let before = Moment::now(database.worker());
    let members = tide_members(database, Topic::Changes, count);
    let sample = before.until_now(count);
    drop((first, members));
    sample
}

fn through_nats(count: usize) -> Sample {
    let nats = Nats::start();
    let first = nats_members(&nats, FIRST);
    let before = Moment::now(nats.pid());
    let members = nats_members(&nats, count);
    let sample = before.until_now(count);
    drop((first, members));
    sample
}

struct Moment {
    pid: i32,
    memory: Memory,
    stopwatch: Stopwatch,
}

impl Moment {
    fn now(pid: i32) -> Moment {
        process::wait_until_idle(pid);
        Moment { pid, memory: process::memory(pid), stopwatch: Stopwatch::start(&[pid]) }
    }

    fn until_now(self, count: usize) -> Sample {
        process::wait_until_idle(self.pid);
        let memory = process::memory(self.pid);
        let count = count as f64;
        vec![
            (memory.rss - self.memory.rss) / count,
            (memory.pss - self.memory.pss) / count,
            self.stopwatch.seconds() * 1e6 / count,
        ]
    }
}
