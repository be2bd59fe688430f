//! Nothing is lost when Postgres, the worker or its server dies under load.
//!
//! Writers keep a ledger of what they committed. A client rejoins as soon as it has been cut off,
//! and asks for what came after the last event it saw. What it got must be the ledger, in commit
//! order, whole.
//!
//! `TIDE_KILL_ROUNDS` sets the number of rounds, which take turns through the ways to die.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::cluster::{Shutdown, signal};
use crate::support::{Cluster, DEADLINE, Database, wait_until};

const WRITERS: usize = 3;
/// Rows by which the writers may be ahead of the reader: so many are still in the history.
const AHEAD: usize = 20_000;
const TOPIC: &str = "realtime:tide:table:public.ledger";

fn rounds() -> usize {
    std::env::var("TIDE_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(50)
}

#[test]
fn every_transaction_arrives_whole_and_in_order_whoever_is_killed() {
    let cluster = Cluster::with("fsync = on\nfull_page_writes = on\nrestart_after_crash = on");
    let database = cluster.database("killed");
    database
        .sql()
        .batch_execute(
            "create table ledger (id bigserial primary key, tx bigint, step int, steps int, pad text);
             grant select on ledger to authenticated;
             select tide.publish('ledger');",
        )
        .unwrap();
    let token = database.token("authenticated");
    let reader = Reader::start(&database, &token);
    wait_until("the reader has joined", || reader.joined().then_some(()));
    let writers = Writers::start(&cluster, &database, &reader);

    for round in 0..rounds() {
        let committed = writers.committed();
        wait_until("the writers go on", || (writers.committed() > committed + 60).then_some(()));
        // A server that fails twice in a row gives up the past, so its turns have others between.
        match round % 5 {
            0 => end_worker(&database, "TERM"),
            1 => end_server(&database, "KILL"),
            2 => end_worker(&database, "KILL"),
            3 => end_server(&database, "STOP"),
            _ => {
                cluster.stop(Shutdown::Immediate);
                cluster.resume();
            }
        }
        database.wait_until_live();
    }

    writers.stop();
    let ledger = ledger(&database);
    // What comes after all of them has come.
    let end = "insert into ledger (tx, step, steps) values (-1, 0, 1) returning id";
    let end: i64 = database.sql().query_one(end, &[]).unwrap().get(0);
    let mut seen = reader.wait_for(end);
    seen.retain(|arrival| arrival.id != end);
    compare(&ledger, &seen);
    eprintln!("{} rows in {} rounds", ledger.len(), rounds());
}

/// Sends the worker a signal, and waits for another one.
fn end_worker(database: &Database<'_>, how: &str) {
    let worker = database.worker();
    signal(how, worker);
    // Postgres itself may be away for a moment.
    let pid = "select pid from pg_stat_activity
               where datname = 'killed' and backend_type = 'pg_tide worker'";
    wait_for_another(database, pid, worker);
}

/// Sends the worker's server a signal, and waits for another one. The worker stays.
fn end_server(database: &Database<'_>, how: &str) {
    let pid = "select server_pid from tide.status()";
    let server = wait_for_another(database, pid, 0);
    let worker = database.worker();
    signal(how, server);
    wait_for_another(database, pid, server);
    assert_eq!(database.worker(), worker, "the worker outlives its server");
}

/// Waits until the query says that there is a process, other than this one.
fn wait_for_another(database: &Database<'_>, query: &str, before: i32) -> i32 {
    wait_until(&format!("another process than {before}: {query}"), || {
        let mut sql = database.cluster.try_connect(&database.name, "postgres").ok()?;
        let pid: Option<i32> = sql.query_opt(query, &[]).ok()??.get(0);
        pid.filter(|pid| *pid != before)
    })
}

/// One row as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrival {
    position: String,
    id: i64,
    tx: i64,
    step: i64,
    steps: i64,
}

/// Committed rows by id. A writer whose connection died does not know whether its last
/// transaction was committed: the table does.
fn ledger(database: &Database<'_>) -> BTreeMap<i64, (i64, i64)> {
    database
        .sql()
        .query("select id, tx, step::bigint from ledger", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), (row.get(1), row.get(2))))
        .collect()
}

fn compare(ledger: &BTreeMap<i64, (i64, i64)>, seen: &[Arrival]) {
    let ids: HashSet<i64> = seen.iter().map(|arrival| arrival.id).collect();
    let missing: Vec<&i64> = ledger.keys().filter(|id| !ids.contains(id)).collect();
    assert!(missing.is_empty(), "{} rows never arrived: {missing:?}", missing.len());
    let made_up: Vec<&i64> = ids.iter().filter(|id| !ledger.contains_key(id)).collect();
    assert!(made_up.is_empty(), "rows arrived that were not committed: {made_up:?}");
    assert_eq!(seen.len(), ledger.len(), "rows arrived twice");
    assert!(seen.is_sorted_by(|a, b| a.position < b.position), "positions went back");

    // A transaction's rows come one after the other, all of them, in its own order.
    let mut rest = seen;
    while let Some(first) = rest.first() {
        let (transaction, after) = rest.split_at_checked(first.steps as usize).unwrap();
        let steps: Vec<i64> = transaction.iter().map(|arrival| arrival.step).collect();
        assert_eq!(steps, (0..first.steps).collect::<Vec<_>>(), "around row {}", first.id);
        assert!(
            transaction.iter().all(|arrival| arrival.tx == first.tx),
            "around row {}",
            first.id
        );
        rest = after;
    }
}

/// Sessions that write transactions of one to five rows until they are told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    /// Rows.
    committed: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writers {
    fn start(cluster: &Cluster, database: &Database<'_>, reader: &Reader) -> Writers {
        let (stop, committed) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = (0..WRITERS)
            .map(|writer| {
                let (stop, committed) = (Arc::clone(&stop), Arc::clone(&committed));
                let seen = Arc::clone(&reader.seen);
                let mut config = postgres::Config::new();
                config.host_path(cluster.host()).user("postgres").dbname(&database.name);
                std::thread::spawn(move || write(&config, writer as i64, &stop, &committed, &seen))
            })
            .collect();
        Writers { stop, committed, threads }
    }

    fn committed(&self) -> usize {
        self.committed.load(Ordering::Relaxed)
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn write(
    config: &postgres::Config,
    writer: i64,
    stop: &AtomicBool,
    committed: &AtomicUsize,
    seen: &Mutex<Vec<Arrival>>,
) {
    let mut tx = writer << 32;
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut sql) = config.connect(postgres::NoTls) else {
            std::thread::yield_now();
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            if committed.load(Ordering::Relaxed) > seen.lock().unwrap().len() + AHEAD {
                std::thread::yield_now();
                continue;
            }
            tx += 1;
            let steps = tx % 5 + 1;
            let statement = format!(
                "insert into ledger (tx, step, steps, pad)
                 select {tx}, g, {steps}, repeat('x', 50) from generate_series(0, {steps} - 1) g"
            );
            if sql.batch_execute(&statement).is_err() {
                break;
            }
            committed.fetch_add(steps as usize, Ordering::Relaxed);
        }
    }
}

/// A client that is always joined, and collects what arrives.
struct Reader {
    seen: Arc<Mutex<Vec<Arrival>>>,
    /// Where its first join was answered.
    joined: Arc<Mutex<Option<String>>>,
    failure: Arc<Mutex<Option<String>>>,
    /// Goes with it: then nobody reads any more.
    wanted: Arc<()>,
}

impl Reader {
    fn start(database: &Database<'_>, token: &str) -> Reader {
        let reader = Reader {
            seen: Arc::default(),
            joined: Arc::default(),
            failure: Arc::default(),
            wanted: Arc::default(),
        };
        let (seen, joined, failure) =
            (Arc::clone(&reader.seen), Arc::clone(&reader.joined), Arc::clone(&reader.failure));
        let is_wanted = Arc::downgrade(&reader.wanted);
        let (port, path) =
            (database.port, format!("/realtime/v1/websocket?apikey={token}&vsn=2.0.0"));
        std::thread::spawn(move || {
            while is_wanted.strong_count() > 0 && failure.lock().unwrap().is_none() {
                match Client::connect(port, &path) {
                    Ok(mut client) => read(&mut client, &seen, &joined, &failure),
                    Err(_) => std::thread::yield_now(),
                }
            }
        });
        reader
    }

    fn joined(&self) -> bool {
        self.joined.lock().unwrap().is_some()
    }

    /// Waits until the row with this id has arrived, and with it all before.
    fn wait_for(&self, id: i64) -> Vec<Arrival> {
        wait_until(&format!("row {id} has arrived"), || {
            if let Some(failure) = self.failure.lock().unwrap().as_ref() {
                panic!("{failure}");
            }
            let seen = self.seen.lock().unwrap();
            seen.iter().any(|arrival| arrival.id == id).then(|| seen.clone())
        })
    }
}

/// Joins, resuming after the last arrival or the first join, and reads until the connection ends.
fn read(
    client: &mut Client,
    seen: &Mutex<Vec<Arrival>>,
    joined: &Mutex<Option<String>>,
    failure: &Mutex<Option<String>>,
) {
    let last = seen.lock().unwrap().last().map(|arrival| arrival.position.clone());
    let since = last.or_else(|| joined.lock().unwrap().clone());
    let broadcast = since.map_or_else(|| json!({}), |since| json!({ "since": since }));
    let join = client.push(TOPIC, "phx_join", &json!({ "config": { "broadcast": broadcast } }));
    while let Ok(frame) = client.read(DEADLINE) {
        // Nothing for the whole deadline is for the waiting test to judge.
        let Some(frame) = frame else { continue };
        match frame.event.as_str() {
            "phx_reply" if frame.reference.as_deref() == Some(&join) => {
                if frame.payload["status"] != "ok" {
                    // The stream may be on its way down or up; the next connection tries again.
                    return;
                }
                let position = frame.payload["response"]["position"].as_str().unwrap();
                joined.lock().unwrap().get_or_insert_with(|| position.to_owned());
            }
            "system" if frame.text.contains("resync") => {
                *failure.lock().unwrap() = Some(format!("a gap: {}", frame.text));
            }
            "broadcast" => seen.lock().unwrap().push(arrival(&frame.payload)),
            _ => {}
        }
    }
}

fn arrival(payload: &Value) -> Arrival {
    let record = &payload["payload"]["record"];
    let number = |name: &str| record[name].as_i64().unwrap();
    Arrival {
        position: payload["meta"]["id"].as_str().unwrap().to_owned(),
        id: number("id"),
        tx: number("tx"),
        step: number("step"),
        steps: number("steps"),
    }
}
