//! Row-level security, with Postgres as the oracle: random tables, policies, privileges, claims and
//! transactions; what each client gets of a transaction is compared with what a SELECT with its
//! role and its claims returns before and after it.
//!
//! `TIDE_SEED=17` plays one seed, `TIDE_SEEDS=5000` so many, from `TIDE_SEED` (or 1) on.
//! `scripts/sabotage.sh` shows that this finds what it is there to find.

mod dice;
mod outcome;
mod play;
mod policy;
mod stage;
mod table;

use std::sync::Mutex;

use play::Play;
use stage::Stage;

use crate::support::Cluster;

const SEEDS: u64 = 500;

/// Databases that play seeds at the same time.
const STAGES: usize = 3;

#[test]
fn every_client_gets_what_postgres_would_show_it() {
    let seeds = Mutex::new(seeds());
    let cluster = Cluster::start();
    let faults: Vec<String> = std::thread::scope(|scope| {
        let stages: Vec<_> = (0..STAGES)
            .map(|number| {
                let (cluster, seeds) = (&cluster, &seeds);
                scope.spawn(move || play_all(&mut Stage::new(cluster, number), seeds))
            })
            .collect();
        stages.into_iter().filter_map(|stage| stage.join().unwrap()).collect()
    });
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

/// Plays seeds until there are no more; what went wrong first.
fn play_all(stage: &mut Stage<'_>, seeds: &Mutex<std::ops::Range<u64>>) -> Option<String> {
    loop {
        let seed = seeds.lock().unwrap().next()?;
        if let Err(fault) = Play::new(stage, seed).run() {
            // The others need not go on.
            *seeds.lock().unwrap() = 0..0;
            return Some(fault);
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = std::env::var(name).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name} should be a number, not {text:?}")))
    };
    let first = number("TIDE_SEED");
    let count = number("TIDE_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or(1);
    println!("seeds {first} to {}", first + count - 1);
    first..first + count
}
