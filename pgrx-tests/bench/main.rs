//! `make bench`: what pg_tide costs and delivers, beside other ways to do the same, measured
//! alternately in one run. See README.md beside this file.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on should stop where it is")]
#![allow(unreachable_pub, dead_code, reason = "support/ is written like a library")]

mod burst;
mod crowd;
mod deepstream;
mod fanout;
mod idle;
mod joins;
mod latency;
mod mutations;
mod nats;
mod pgbench;
mod pgoutput;
mod plan;
mod policies;
mod process;
mod reader;
mod report;
mod rows;
mod scan;
mod sending;
mod server;
mod session;
mod shutdown;
mod slow;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
mod tps;
mod websocket;

use plan::Plan;
use report::Report;

type Figure = (&'static str, fn(&Plan) -> Report);

const FIGURES: [Figure; 14] = [
    ("rows", rows::run),
    ("latency", latency::run),
    ("tps", tps::run),
    ("fanout", fanout::run),
    ("idle", idle::run),
    ("burst", burst::run),
    ("sending", sending::run),
    ("policies", policies::run),
    ("deepstream", deepstream::run),
    ("joins", joins::run),
    ("slow", slow::run),
    ("shutdown", shutdown::run),
    ("snapshot", snapshot::run),
    ("mutations", mutations::run),
];

fn main() {
    let plan = Plan::from_env();
    process::raise_file_limit();
    println!("{} pairs of each; see pgrx-tests/bench/README.md for what is measured.", plan.pairs);
    for (name, run) in FIGURES.iter().filter(|(name, _)| plan.wants(name)) {
        let report = run(&plan);
        report.print();
        report.write(name);
    }
}
