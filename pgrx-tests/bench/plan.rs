//! How much to measure: everything can be made smaller by the environment, for a quick look.

use std::time::Duration;

#[derive(Debug)]
pub struct Plan {
    /// `BENCH_PAIRS`: how often each way is measured, in turns.
    pub pairs: usize,
    /// `BENCH_ONLY=rows,tps`: which figures; empty: all.
    only: Vec<String>,
    /// `BENCH_WAYS=pg_tide`: only those whose names begin with one of these; empty: all. Ratios
    /// are then those to the first that is left.
    ways: Vec<String>,
    /// `BENCH_ROWS`: rows of one run with transactions of 1,000 rows; a fifth of it with
    /// transactions of one.
    pub rows: u64,
    /// `BENCH_SECONDS`: how long one run of pgbench takes.
    pub duration: Duration,
    /// `BENCH_CLIENTS=100,1000`: how many clients share each message.
    pub clients: Vec<usize>,
    /// `BENCH_DELIVERIES`: messages times clients, in one run at full speed.
    pub deliveries: usize,
    /// `BENCH_FANOUT_RATE`: deliveries per second of the run at a fixed rate.
    pub fanout_rate: usize,
    /// `BENCH_IDLE`: idle connections.
    pub idle: usize,
    /// `BENCH_BURST_ROWS`: narrow rows in one transaction.
    pub burst_rows: u64,
    /// `BENCH_BURST_WIDE_ROWS`: rows of 10 kB in one transaction.
    pub burst_wide_rows: u64,
    /// `BENCH_SUBSCRIBERS=1,100`: how many subscribers, each of them somebody else.
    pub subscribers: Vec<usize>,
    /// `BENCH_POLICY_CHANGES`: rows behind a policy, in one run.
    pub policy_changes: usize,
    /// `BENCH_POLICY_CHECKS`: rows times subscribers, in one run where Postgres has to be asked.
    pub policy_checks: usize,
    /// `BENCH_JOINS`: joins of tables that are known.
    pub joins: usize,
    /// `BENCH_JOIN_TABLES`: tables, each of which is joined once.
    pub join_tables: usize,
}

impl Plan {
    pub fn from_env() -> Plan {
        Plan {
            pairs: number("BENCH_PAIRS", 5) as usize,
            only: list("BENCH_ONLY"),
            ways: list("BENCH_WAYS"),
            rows: number("BENCH_ROWS", 500_000),
            duration: Duration::from_secs(number("BENCH_SECONDS", 10)),
            clients: counts("BENCH_CLIENTS", &[100, 1_000]),
            deliveries: number("BENCH_DELIVERIES", 2_000_000) as usize,
            fanout_rate: number("BENCH_FANOUT_RATE", 50_000) as usize,
            idle: number("BENCH_IDLE", 5_000) as usize,
            burst_rows: number("BENCH_BURST_ROWS", 5_000_000),
            burst_wide_rows: number("BENCH_BURST_WIDE_ROWS", 100_000),
            subscribers: counts("BENCH_SUBSCRIBERS", &[1, 100, 1_000, 10_000, 100_000]),
            policy_changes: number("BENCH_POLICY_CHANGES", 50_000) as usize,
            policy_checks: number("BENCH_POLICY_CHECKS", 1_000_000) as usize,
            joins: number("BENCH_JOINS", 20_000) as usize,
            join_tables: number("BENCH_JOIN_TABLES", 3_000) as usize,
        }
    }

    pub fn wants(&self, figure: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == figure)
    }

    pub fn wants_way(&self, name: &str) -> bool {
        self.ways.is_empty() || self.ways.iter().any(|way| name.starts_with(way.as_str()))
    }
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("{name} should be a number, not {text:?}"))
        }
        Err(_) => default,
    }
}

fn counts(name: &str, default: &[usize]) -> Vec<usize> {
    match list(name) {
        counts if counts.is_empty() => default.to_vec(),
        counts => counts.iter().map(|count| count.parse().unwrap()).collect(),
    }
}

fn list(name: &str) -> Vec<String> {
    let text = std::env::var(name).unwrap_or_default();
    text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}
