//! (g) What a transaction pays for telling others: the same small transaction with a message in it,
//! by pg_tide's ways and by those of its peers, and without.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres::fallible_iterator::FallibleIterator;

use super::pgbench;
use super::plan::Plan;
use super::report::Report;
use super::server::{self, Durability, Extension};
use super::support::{Database, ably, wait_until};

const METRICS: &[&str] = &["transactions/s", "of without", "of a bare server"];

const CLIENTS: usize = 32;

/// How a transaction says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// `tide.send`.
    Send,
    /// `tide.enqueue`; the rows are deleted as they are published.
    Enqueue,
    /// An INSERT into `tide.outbox`, the same way.
    Insert,
    /// An INSERT into Ably's table, which notifies, and nobody who takes it from there.
    Ably,
    /// The same with the connector at work.
    AblyClaimed,
    Notify,
}

const WAYS: [(&str, Way); 6] = [
    ("tide.send", Way::Send),
    ("tide.enqueue", Way::Enqueue),
    ("insert into tide.outbox", Way::Insert),
    ("Ably's table, claimed", Way::AblyClaimed),
    ("Ably's table, not claimed", Way::Ably),
    ("pg_notify", Way::Notify),
];

impl Way {
    fn extension(self) -> Extension {
        match self {
            Way::Send | Way::Enqueue | Way::Insert => Extension::Tide,
            Way::Ably | Way::AblyClaimed | Way::Notify => Extension::None,
        }
    }

    fn step(self) -> &'static str {
        match self {
            Way::Send => "select tide.send('room' || :room, 'edit', '{\"line\": 7, \"text\": \"twenty characters...\"}')",
            Way::Enqueue => "select tide.enqueue('room' || :room, 'edit', '{\"line\": 7, \"text\": \"twenty characters...\"}')",
            Way::Insert => {
                "insert into tide.outbox (mutation_id, channel, name, data)
                 values ('m' || :room, 'room' || :room, 'edit', '{\"line\": 7, \"text\": \"twenty characters...\"}')"
            }
            Way::Ably | Way::AblyClaimed => {
                "insert into outbox (mutation_id, channel, name, data)
                 values ('m' || :room, 'room' || :room, 'edit', '{\"line\": 7, \"text\": \"twenty characters...\"}')"
            }
            Way::Notify => "select pg_notify('room', '{\"line\": 7, \"text\": \"twenty characters...\"}')",
        }
    }
}

/// As many statements as with a message, so that both have the same round trips.
const NOTHING: &str = "select 1";

const BUSINESS: &str =
    "create table business (id bigint generated always as identity primary key, pad text)";

pub fn run(plan: &Plan) -> Report {
    let clusters = [Extension::None, Extension::Tide]
        .map(|extension| server::start(extension, Durability::Fsync));
    let [plain, tide] = [
        server::database(&clusters[0], Extension::None),
        server::database(&clusters[1], Extension::Tide),
    ];
    plain
        .sql()
        .batch_execute(&[BUSINESS, ";", &ably::outbox("public", "outbox")].concat())
        .unwrap();
    tide.sql().batch_execute(BUSINESS).unwrap();
    let mut report = Report::new("(g) a transaction that tells others, fsync on", METRICS);
    report.measure("one INSERT and one message", plan, &WAYS, |way| {
        let database = if way.extension() == Extension::Tide { &tide } else { &plain };
        // Right before, so that all find the machine and its disk alike.
        let without = transactions(database, NOTHING, plan.duration);
        let bare = match way.extension() {
            Extension::Tide => transactions(&plain, NOTHING, plan.duration),
            Extension::None => without,
        };
        let with = match way {
            Way::AblyClaimed => {
                claimed(database, || transactions(database, way.step(), plan.duration))
            }
            _ => transactions(database, way.step(), plan.duration),
        };
        clean_up(database, way);
        vec![with, with / without, with / bare]
    });
    report
}

fn transactions(database: &Database<'_>, step: &str, duration: Duration) -> f64 {
    database.sql().batch_execute("truncate business; checkpoint").unwrap();
    let script = script(database, step);
    pgbench::run(database, CLIENTS, None, duration, &["-f", script.to_str().unwrap()]).tps
}

fn script(database: &Database<'_>, step: &str) -> PathBuf {
    let path = database.cluster.host().join("sending.sql");
    let text = format!(
        "\\set room random(1, 1000)\nbegin;\ninsert into business (pad) values (repeat('x', 100));\n{};\nend;\n",
        step.replace('\n', " ")
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// What was sent has been published, and the tables are as they were.
fn clean_up(database: &Database<'_>, way: Way) {
    match way {
        Way::Enqueue | Way::Insert => {
            wait_until("the outbox is empty but for its newest row", || {
                let count = "select count(*) from tide.outbox";
                (database.sql().query_one(count, &[]).unwrap().get::<_, i64>(0) <= 1).then_some(())
            })
        }
        Way::Ably | Way::AblyClaimed => database.sql().batch_execute("truncate outbox").unwrap(),
        Way::Send | Way::Notify => {}
    }
}

/// Does what Ably's connector does while `run` runs: woken by the notifications it claims rows, in
/// their order, and deletes them, all but the newest. (The publishing itself would be elsewhere.)
fn claimed<T>(database: &Database<'_>, run: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let connector = scope.spawn(|| {
            let mut claimed = 0;
            let mut sql = database.sql();
            sql.batch_execute("listen ably_adbc").unwrap();
            while !stop.load(Ordering::Relaxed) {
                while let Ok(Some(_)) = sql.notifications().iter().next() {}
                match claim(&mut sql) {
                    0 => drop(sql.notifications().timeout_iter(Duration::from_millis(20)).next()),
                    count => claimed += count,
                }
            }
            claimed
        });
        let result = run();
        stop.store(true, Ordering::Relaxed);
        assert!(connector.join().unwrap() > 0, "nothing was claimed");
        result
    })
}

/// Rows per round.
const BATCH: usize = 1000;

fn claim(sql: &mut postgres::Client) -> usize {
    let claim = format!(
        "with claimed as (
             update outbox set locked_by = 'node', lock_expiry = now() + interval '30 s'
             where sequence_id in (select sequence_id from outbox
                                   where locked_by is null order by sequence_id
                                   limit {BATCH} for update skip locked)
             returning sequence_id, mutation_id, channel, name, rejected, data::text, headers::text)
         select * from claimed order by sequence_id"
    );
    let rows = sql.query(&claim, &[]).unwrap();
    let ids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    let delete = "delete from outbox where sequence_id = any($1)
                  and sequence_id < (select max(sequence_id) from outbox)";
    if !ids.is_empty() {
        sql.execute(delete, &[&ids]).unwrap();
    }
    ids.len()
}
