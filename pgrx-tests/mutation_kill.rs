//! Whoever dies while clients write: each mutation has one effect and one answer.
//!
//! A client sends what it has had no answer to again, as often as it has to. `TIDE_MUTATION_KILLS` sets how
//! many are killed, at whatever moment.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::cluster::{Shutdown, signal};
use crate::support::mutator::MUTATIONS;
use crate::support::{Cluster, DEADLINE, Database, wait_until};

const CLIENTS: u64 = 3;
/// Mutations that a client sends ahead of their answers.
const AHEAD: u64 = 5;

fn kills() -> u64 {
    std::env::var("TIDE_MUTATION_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(10)
}

#[test]
fn each_mutation_has_one_effect_and_one_answer() {
    let cluster = Cluster::with("fsync = on\nrestart_after_crash = on");
    let database = cluster.database("killed_writers");
    database
        .sql()
        .batch_execute(
            "create table done (id bigserial primary key, client int, n bigint check (n % 7 <> 0));
             create table counter (client int primary key, n bigint not null);
             insert into counter select i, 0 from generate_series(1, 3) as i;
             grant all on done, done_id_seq, counter to authenticated;
             select tide.publish('done', 'counter');
             create function count_one(client int) returns bigint language sql as
             'update counter as c set n = n + 1 where c.client = $1 returning n';
             select tide.allow_call('count_one(int)')",
        )
        .unwrap();
    let token = database.token("authenticated");
    let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|number| {
                let (database, token, answered, stop) = (&database, &token, &answered, &stop);
                scope.spawn(move || Writer::new(database, token, number).run(answered, stop))
            })
            .collect();
        for kill in 0..kills() {
            let before = answered.load(Ordering::Relaxed);
            wait_until("the clients go on", || {
                (answered.load(Ordering::Relaxed) >= before + 5 + kill % 13).then_some(())
            });
            kill_somebody(&database, kill);
        }
        let before = answered.load(Ordering::Relaxed);
        wait_until("they go on after all", || {
            (answered.load(Ordering::Relaxed) >= before + 10).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        for (client, answers) in (1..).zip(clients) {
            check(&database, client, &answers.join().unwrap());
        }
    });
}

fn kill_somebody(database: &Database<'_>, kill: u64) {
    let pid = |kind: &str| {
        let query = "select pid from pg_stat_activity where backend_type = $1 limit 1";
        let mut sql = database.cluster.try_connect(&database.name, "postgres").ok()?;
        sql.query_opt(query, &[&kind]).ok()?.map(|row| row.get::<_, i32>(0))
    };
    match kill % 5 {
        0 => pid("pg_tide writer").into_iter().for_each(|pid| signal_if_there("TERM", pid)),
        1 => {
            let query = "select server_pid from tide.status()";
            let mut sql = database.sql();
            let server =
                sql.query_opt(query, &[]).unwrap().and_then(|row| row.get::<_, Option<i32>>(0));
            server.into_iter().for_each(|pid| signal_if_there("KILL", pid));
        }
        2 => pid("pg_tide writer").into_iter().for_each(|pid| signal_if_there("KILL", pid)),
        3 => pid("pg_tide worker").into_iter().for_each(|pid| signal_if_there("TERM", pid)),
        _ => {
            database.cluster.stop(Shutdown::Immediate);
            database.cluster.resume();
        }
    }
    wait_until("the cluster is there", || {
        database.cluster.try_connect(&database.name, "postgres").ok()
    });
    database.wait_until_live();
}

/// It may have gone by itself.
fn signal_if_there(name: &str, pid: i32) {
    if std::path::Path::new(&format!("/proc/{pid}")).exists() {
        signal(name, pid);
    }
}

/// What each of its mutations was answered with, without where.
type Answers = BTreeMap<u64, Value>;

struct Writer<'a> {
    database: &'a Database<'a>,
    token: &'a str,
    number: u64,
    client: Option<Client>,
    answers: Answers,
    /// The newest that was sent on this connection.
    sent: u64,
}

impl<'a> Writer<'a> {
    fn new(database: &'a Database<'a>, token: &'a str, number: u64) -> Writer<'a> {
        Writer { database, token, number, client: None, answers: Answers::new(), sent: 0 }
    }

    /// Writes until it is told to stop, and all that it has sent is answered.
    fn run(mut self, answered: &AtomicU64, stop: &AtomicBool) -> Answers {
        let deadline = Instant::now() + 20 * DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "{} answers only", self.answers.len());
            let done = self.answers.len() as u64;
            let is_over = stop.load(Ordering::Relaxed);
            if is_over && self.sent <= done {
                return self.answers;
            }
            let Some(client) = &mut self.client else {
                self.client = self.connect();
                self.sent = done;
                continue;
            };
            if !is_over && self.sent < done + AHEAD {
                self.sent += 1;
                let text = push(self.number, self.sent);
                client.send_text_if_open(&text);
                continue;
            }
            match client.read(Duration::from_secs(1)) {
                Ok(Some(frame)) if frame.payload["event"] == "tide:mutation" => {
                    self.take(frame.payload["payload"].clone(), answered);
                }
                Ok(_) => {}
                Err(_) => self.client = None,
            }
        }
    }

    fn take(&mut self, mut answer: Value, answered: &AtomicU64) {
        let n = answer["n"].as_u64().unwrap();
        if answer["status"] == "error" {
            // Nothing was remembered: it is sent again, with all that came after.
            let code = answer["code"].as_str().unwrap();
            assert!(["unavailable", "timeout", "out_of_order"].contains(&code), "{answer}");
            self.sent = self.sent.min(n - 1).max(self.answers.len() as u64);
            return;
        }
        for member in ["position", "echo"] {
            answer.as_object_mut().unwrap().remove(member);
        }
        match self.answers.get(&n) {
            Some(before) => assert_eq!(before, &answer, "two answers"),
            None => {
                assert_eq!(n, self.answers.len() as u64 + 1, "in order: {answer}");
                self.answers.insert(n, answer);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn connect(&self) -> Option<Client> {
        let query = format!("/realtime/v1/websocket?apikey={}&vsn=2.0.0", self.token);
        let mut client = Client::connect(self.database.port, &query).ok()?;
        client.send_text_if_open(&format!(r#"["1","1","{MUTATIONS}","phx_join",{{}}]"#));
        loop {
            match client.read(DEADLINE) {
                Ok(Some(frame)) if frame.event == "phx_reply" => {
                    return (frame.payload["status"] == "ok").then_some(client);
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

/// The frame that asks for a mutation; every seventh is to be rejected.
fn push(client: u64, n: u64) -> String {
    let mutation = json!({
        "mutation_id": format!("{client}/{n}"), "client_id": format!("client {client}"), "n": n,
        "ops": [
            { "op": "call", "function": "public.count_one", "args": { "client": client } },
            { "op": "insert", "table": "public.done", "values": { "client": client, "n": n } },
        ],
    });
    let payload = json!({ "type": "broadcast", "event": "tide:mutate", "payload": mutation });
    json!(["1", (n + 1).to_string(), MUTATIONS, "broadcast", payload]).to_string()
}

fn check(database: &Database<'_>, client: u64, answers: &Answers) {
    let mut sql = database.sql();
    let client = i32::try_from(client).unwrap();
    let rows =
        sql.query("select n, id from done where client = $1 order by id", &[&client]).unwrap();
    let written: Vec<u64> = rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect();
    let confirmed: Vec<u64> = answers
        .iter()
        .filter(|(_, answer)| answer["status"] == "confirmed")
        .map(|(n, _)| *n)
        .collect();
    assert_eq!(written, confirmed, "one effect each, in order");
    assert_eq!(written.iter().collect::<HashSet<_>>().len(), written.len());
    for (n, answer) in answers {
        let is_rejected = answer["sqlstate"] == "23514";
        assert_eq!(is_rejected, n % 7 == 0, "{answer}");
    }
    let counted = "select n from counter where client = $1";
    let counted: i64 = sql.query_one(counted, &[&client]).unwrap().get(0);
    assert_eq!(counted as usize, confirmed.len());
    let known = "select count(*) from tide.mutation where client_id = 'client ' || $1::int";
    let known: i64 = sql.query_one(known, &[&client]).unwrap().get(0);
    assert_eq!(known as usize, answers.len());
}
