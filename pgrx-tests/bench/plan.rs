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
}

impl Plan {
    pub fn from_env() -> Plan {
        Plan {
            pairs: number("BENCH_PAIRS", 5) as usize,
            only: list("BENCH_ONLY"),
            ways: list("BENCH_WAYS"),
            rows: number("BENCH_ROWS", 500_000),
            duration: Duration::from_secs(number("BENCH_SECONDS", 10)),
            clients: match list("BENCH_CLIENTS") {
                clients if clients.is_empty() => vec![100, 1_000],
                clients => clients.iter().map(|count| count.parse().unwrap()).collect(),
            },
            deliveries: number("BENCH_DELIVERIES", 2_000_000) as usize,
            fanout_rate: number("BENCH_FANOUT_RATE", 50_000) as usize,
            idle: number("BENCH_IDLE", 5_000) as usize,
            burst_rows: number("BENCH_BURST_ROWS", 5_000_000),
            burst_wide_rows: number("BENCH_BURST_WIDE_ROWS", 100_000),
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

fn list(name: &str) -> Vec<String> {
    let text = std::env::var(name).unwrap_or_default();
    text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}
