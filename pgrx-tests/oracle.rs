//! Row-level security, with Postgres as the oracle: random tables, policies, privileges, claims and
//! transactions; what each client gets of a transaction is compared with what a SELECT with its
//! role and its claims returns before and after it.
//!
//! `TIDE_SEED=17` plays one seed, `TIDE_SEEDS=5000` so many, from `TIDE_SEED` (or 1) on.
//! `scripts/sabotage.sh` shows that this finds what it is there to find.

pub mod dice;
mod outcome;
mod play;
mod policy;
mod stage;
mod table;

use std::sync::Mutex;

use play::Play;
use serde_json::json;
use stage::Stage;

use crate::support::Cluster;
use crate::support::cluster::signal;

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

/// What is promised of policies that ask other tables: they are answered by the data as of the
/// question, which comes after the commit of the change.
#[test]
fn a_row_is_judged_by_the_members_of_the_moment_when_postgres_is_asked() {
    const BOB: &str = "00000000-0000-0000-0000-00000000000b";
    let database = Cluster::shared().database("oracle_lag");
    let t = database.table("shared", "id int primary key, team int");
    let mut sql = database.sql();
    sql.batch_execute(&format!(
        "create table members (team int, person uuid);
         grant select on members to authenticated;
         insert into members values (1, '{BOB}'), (2, '{BOB}');
         alter table {t} enable row level security;
         create policy team on {t} using (exists (
             select from members m
             where m.team = {t}.team
               and m.person = (current_setting('request.jwt.claims')::jsonb ->> 'sub')::uuid))"
    ))
    .unwrap();
    let token = database.token_with("authenticated", &format!(r#"{{"sub": "{BOB}"}}"#), "1 hour");
    let mut bob = database.connect(&format!("apikey={token}&vsn=2.0.0"));
    bob.subscribe("room", &t);
    let mut id = 0;
    let mut insert = |sql: &mut postgres::Client, team: i32| {
        id += 1;
        sql.batch_execute(&format!("insert into {t} values ({id}, {team})")).unwrap();
    };
    insert(&mut sql, 1);
    assert_eq!(bob.change()["record"]["id"], 1);

    // Nobody can be asked for a while, in which he is taken off one team and put on another.
    let executors = database.processes("pg_tide executor");
    assert!(!executors.is_empty());
    executors.iter().for_each(|pid| signal("STOP", *pid));
    insert(&mut sql, 1);
    insert(&mut sql, 3);
    sql.batch_execute(&format!("update members set team = 3 where team = 1 and person = '{BOB}'"))
        .unwrap();
    insert(&mut sql, 1);
    executors.iter().for_each(|pid| signal("CONT", *pid));
    insert(&mut sql, 2);

    assert_eq!(bob.change()["record"], json!({ "id": 3, "team": 3 }));
    assert_eq!(bob.change()["record"], json!({ "id": 5, "team": 2 }));
}
