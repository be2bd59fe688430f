//! Clients begin while writers write whatever there is to write, and some commits hang for a while:
//! what a client has selected and what it is told are together what is in the table.
//!
//! `TIDE_POSITION_ROUNDS` sets the number of rounds.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use serde_json::json;

use super::{NOBODY, position, since, topic};
use crate::oracle::dice::Dice;
use crate::support::client::Client;
use crate::support::{Cluster, Database, wait_until};

const WRITERS: u64 = 8;
/// Rows that a round looks at besides its own: what hangs for longer than it takes to write these is not
/// looked for.
const NEWEST: i32 = 50_000;

fn rounds() -> usize {
    std::env::var("TIDE_POSITION_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(20)
}

#[test]
fn what_is_selected_and_what_is_told_are_together_what_is_in_the_table() {
    let cluster = Cluster::with(&format!("{NOBODY}\nmax_prepared_transactions = 20"));
    let database = cluster.database("rounds");
    let t = database.table("t", "id int primary key");
    let (next, stop) = (AtomicI32::new(1), AtomicBool::new(false));
    let writers = AtomicU64::new(WRITERS);
    let writing =
        Writing { database: &database, table: &t, next: &next, stop: &stop, writers: &writers };
    std::thread::scope(|scope| {
        for seed in 1..=WRITERS {
            let writing = &writing;
            scope.spawn(move || writing.write(&mut Dice::new(seed)));
        }
        scope.spawn(|| writing.end_hanging_commits(&mut Dice::new(0)));
        // Whatever happens, they are not waited for in vain.
        let _stop = StopAtEnd(&stop);
        let mut lost = 0;
        for round in 0..rounds() {
            for how in [How::Joins, How::Resumes, How::IsCutOff] {
                let missing = Round { writing: &writing, how }.play();
                lost += missing.len();
                if !missing.is_empty() {
                    eprintln!("round {round}, {how:?}: never told of {missing:?}");
                }
            }
        }
        assert_eq!(lost, 0, "rows were neither selected nor told");
    });
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How a client begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It joins, then selects.
    Joins,
    /// It takes a position, selects, then joins with it.
    Resumes,
    /// It joins, is cut off, selects, then joins with the position that it was told.
    IsCutOff,
}

struct Round<'a> {
    writing: &'a Writing<'a>,
    how: How,
}

impl Round<'_> {
    /// The rows that the client knows nothing of in the end.
    fn play(&self) -> Vec<i32> {
        let Writing { database, table, .. } = self.writing;
        let topic = topic(table);
        let mut sql = database.sql();
        let own = self.writing.insert(&mut sql);
        // So that the hundredth round takes no longer than the first.
        let first = own - NEWEST;
        let mut client = database.client();
        let selected = match self.how {
            How::Joins => {
                client.join(&topic, &json!({}));
                self.writing.select(&mut sql, first)
            }
            How::Resumes => {
                let position = position(&mut sql);
                let selected = self.writing.select(&mut sql, first);
                client.join(&topic, &since(&position));
                selected
            }
            How::IsCutOff => {
                let reply = client.join(&topic, &json!({}));
                drop(client);
                let selected = self.writing.select(&mut sql, first);
                client = database.client();
                client.join(&topic, &since(reply["position"].as_str().unwrap()));
                selected
            }
        };
        self.writing.wait_for_hanging_commits(&mut sql);
        let there = self.writing.select(&mut sql, first);
        let last = self.writing.insert(&mut sql);
        let told = told_until(&mut client, &topic, last);

        let unknown = |id: &&i32| !selected.contains(*id) && !told.contains(*id);
        let missing = there.iter().filter(unknown).copied().collect();
        let committed = self.writing.select(&mut sql, first);
        let made_up = told.difference(&committed).filter(|id| **id >= first);
        let made_up: Vec<_> = made_up.collect();
        assert!(made_up.is_empty(), "told of what was not committed: {made_up:?}");
        assert!(self.how != How::Joins || !told.contains(&own), "told of what it had committed");
        missing
    }
}

/// The ids of the rows that arrive, each once, up to and including `last`.
fn told_until(client: &mut Client, topic: &str, last: i32) -> HashSet<i32> {
    let (mut told, mut position) = (HashSet::new(), String::new());
    while !told.contains(&last) {
        let event = client.broadcast(topic);
        let id = event["payload"]["record"]["id"].as_i64().unwrap();
        assert!(told.insert(i32::try_from(id).unwrap()), "{id} is told twice");
        let at = event["meta"]["id"].as_str().unwrap().to_owned();
        assert!(at > position, "positions went back");
        position = at;
    }
    told
}

struct Writing<'a> {
    database: &'a Database<'a>,
    table: &'a str,
    /// The next id that is free.
    next: &'a AtomicI32,
    stop: &'a AtomicBool,
    /// How many have not stopped.
    writers: &'a AtomicU64,
}

impl Writing<'_> {
    fn fresh(&self) -> i32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Those of the newest that there are.
    fn select(&self, sql: &mut postgres::Client, first: i32) -> HashSet<i32> {
        let query = format!("select id from {} where id >= $1", self.table);
        let rows = sql.query(&query, &[&first]).unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    fn insert(&self, sql: &mut postgres::Client) -> i32 {
        let id = self.fresh();
        super::insert(sql, self.table, id);
        id
    }

    /// Writes until it is told to stop; comes back if its backend is terminated.
    fn write(&self, dice: &mut Dice) {
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(mut sql) = self.database.cluster.try_connect(&self.database.name, "postgres")
            else {
                continue;
            };
            while !self.stop.load(Ordering::Relaxed) {
                if sql.batch_execute(&self.transaction(dice)).is_err() {
                    break;
                }
            }
        }
        self.writers.fetch_sub(1, Ordering::Relaxed);
    }

    fn transaction(&self, dice: &mut Dice) -> String {
        let insert = || format!("insert into {} values ({});", self.table, self.fresh());
        let (first, second, third) = (insert(), insert(), insert());
        let pause = format!("select pg_sleep({}e-4);", dice.below(50));
        let commit = if dice.percent(10) { "on" } else { *dice.pick(&["local", "local", "off"]) };
        let commit = format!("set synchronous_commit = {commit};");
        let id = self.fresh();
        let end = *dice.pick(&["commit", "commit", "rollback"]);
        match dice.below(4) {
            0 => format!("{commit} {first} {pause}"),
            1 => format!("{commit} begin; {first} {pause} {second} {end};"),
            2 => format!(
                "{commit} begin; {first} savepoint a; {second} {pause} rollback to a;
                 savepoint b; {third} release b; {end};"
            ),
            _ => format!(
                "set synchronous_commit = local; begin; {first} {second}
                 prepare transaction 'p{id}'; {pause} {commit} {end} prepared 'p{id}';"
            ),
        }
    }

    /// Ends commits that wait for the standby, some sooner than others: they become visible.
    fn end_hanging_commits(&self, dice: &mut Dice) {
        let mut sql = self.database.sql();
        // The last of the writers may still be about to wait.
        while self.writers.load(Ordering::Relaxed) > 0 {
            let end =
                *dice.pick(&["pg_cancel_backend", "pg_cancel_backend", "pg_terminate_backend"]);
            let statement = format!(
                "select {end}(pid) from pg_stat_activity
                 where wait_event = 'SyncRep' and random() < 0.3;
                 select pg_sleep({}e-3)",
                dice.below(40)
            );
            sql.batch_execute(&statement).unwrap();
        }
    }

    /// Waits until the commits that hang now hang no more.
    fn wait_for_hanging_commits(&self, sql: &mut postgres::Client) {
        // An autovacuum worker, which has no query, may hang as well.
        let hanging = "select coalesce(array_agg(pid || ' ' || query_start), '{}')
                       from pg_stat_activity
                       where wait_event = 'SyncRep' and query_start is not null";
        let mut look = || -> Vec<String> { sql.query_one(hanging, &[]).unwrap().get(0) };
        let before = look();
        wait_until("the commits that hang have ended", || {
            let now = look();
            (!before.iter().any(|one| now.contains(one))).then_some(())
        });
    }
}
