//! Runs of pgbench.

use std::process::Command;
use std::time::Duration;

use super::support::Database;
use super::support::cluster::{as_owner, succeed};

/// What pgbench says at its end.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub transactions: u64,
    pub tps: f64,
}

fn pgbench(database: &Database<'_>) -> Command {
    let mut command = as_owner("pgbench");
    command.arg("--host").arg(database.cluster.host()).args(["--username", "postgres"]);
    command
}

pub fn initialise(database: &Database<'_>, scale: u32) {
    let scale = format!("--scale={scale}");
    let arguments = ["--initialize", "--quiet", scale.as_str(), database.name.as_str()];
    succeed(pgbench(database).args(arguments));
}

/// Runs pgbench with further arguments: a builtin script, or the file of a script.
pub fn run(
    database: &Database<'_>,
    clients: usize,
    rate: Option<u32>,
    duration: Duration,
    script: &[&str],
) -> Outcome {
    let mut command = pgbench(database);
    command.args(["--no-vacuum", "--protocol=prepared", &format!("--client={clients}")]);
    command.args([format!("--jobs={}", clients.min(2)), format!("--time={}", duration.as_secs())]);
    if let Some(rate) = rate {
        command.arg(format!("--rate={rate}"));
    }
    let output = succeed(command.args(script).arg(&database.name));
    let text = String::from_utf8_lossy(&output.stdout);
    let after = |label: &str| {
        let (_, rest) = text.split_once(label).unwrap_or_else(|| panic!("{text}"));
        rest.split_whitespace().next().unwrap().to_owned()
    };
    Outcome {
        transactions: after("actually processed: ").split('/').next().unwrap().parse().unwrap(),
        tps: after("tps = ").parse().unwrap(),
    }
}
