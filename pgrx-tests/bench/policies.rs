//! (h) Row-level security: each row is visible to one of many subscribers, all of them different
//! people; beside a backend that asks `select exists(...)` for each change and each subscriber, as
//! that role and with those claims.

use std::net::TcpStream;
use std::ops::Range;
use std::time::Instant;

use serde_json::{Value, json};

use super::crowd::Crowd;
use super::plan::Plan;
use super::process::{self, Stopped, Stopwatch};
use super::reader::{Format, Row};
use super::report::{Report, Sample};
use super::server::{self, Durability, Extension};
use super::support::{DEADLINE, Database, token};
use super::websocket::{self, Frames};

const METRICS: &[&str] = &[
    "changes/s",
    "checks/s",
    "server CPU us/change",
    "client CPU us/change",
    "bytes/subscription",
    "joins/s",
];

const WAYS: [(&str, Way); 2] = [("pg_tide", Way::Tide), ("select exists() for each", Way::Exists)];

#[derive(Clone, Copy, Debug)]
enum Way {
    Tide,
    Exists,
}

/// Subscribers share sockets when there are more of them.
const SOCKETS: usize = 1_000;
/// Rows of one transaction.
const BATCH: usize = 1_000;
/// What the peer is timed with; from its checks per second follow its changes per second.
const PEER_CHECKS: usize = 20_000;

const SECRET: &str = "a-secret-of-more-than-thirty-two-bytes";

/// A table and its policy.
#[derive(Clone, Copy, Debug)]
struct Guard {
    title: &'static str,
    table: &'static str,
    policy: &'static str,
    /// Postgres has to be asked.
    asked: bool,
}

const GUARDS: [Guard; 2] = [
    Guard {
        title: "user_id = auth.uid()",
        table: "owned",
        policy: "create policy own on owned using (user_id = auth.uid())",
        asked: false,
    },
    Guard {
        title: "exists (... members ...)",
        table: "shared",
        policy: "create policy shared on shared using (exists (
                     select from members m where m.team = shared.user_id and m.person = auth.uid()))",
        asked: true,
    },
];

pub fn run(plan: &Plan) -> Report {
    let cluster = server::start(Extension::Tide, Durability::PageCache);
    cluster.configure("tide.memory_limit = '2GB'");
    cluster.reload();
    let settings = [("tide.jwt_secret", SECRET), ("tide.join_rate", "10000")];
    let database = cluster.database_with("bench", &settings);
    set_up(&database, plan.subscribers.iter().copied().max().unwrap_or(0));
    let mut report = Report::new("(h) rows that one of many subscribers may see", METRICS);
    for guard in GUARDS {
        for &subscribers in &plan.subscribers {
            let changes = match guard.asked {
                true => (plan.policy_checks / subscribers).clamp(20, plan.policy_changes),
                false => plan.policy_changes,
            };
            let case = format!("{}, {subscribers}", guard.title);
            report.measure(&case, plan, &WAYS, |way| match way {
                Way::Tide => tide(&database, guard, subscribers, changes),
                Way::Exists => exists(&database, guard, subscribers),
            });
        }
    }
    report
}

fn set_up(database: &Database<'_>, people: usize) {
    let mut sql = database.sql();
    sql.batch_execute(
        "create schema auth;
         grant usage on schema auth to public;
         create function auth.uid() returns uuid language sql stable as $$
             select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
         create function person(n bigint) returns uuid language sql immutable as $$
             select lpad(to_hex(n), 32, '0')::uuid $$;
         create table members (team uuid, person uuid, primary key (team, person));
         grant select on members to authenticated",
    )
    .unwrap();
    let fill =
        "insert into members select person(n), person(n) from generate_series(0, $1::bigint) n";
    sql.execute(fill, &[&(people as i64)]).unwrap();
    for guard in GUARDS {
        let table = guard.table;
        let columns = "id bigint primary key, user_id uuid, body text";
        server::publish(database, Extension::Tide, table, columns);
        sql.batch_execute(&format!(
            "alter table {table} enable row level security; {}",
            guard.policy
        ))
        .unwrap();
    }
    sql.batch_execute("analyze members").unwrap();
}

/// The rows are written while the worker stands still, so that the writer takes no part.
fn tide(database: &Database<'_>, guard: Guard, subscribers: usize, changes: usize) -> Sample {
    database.sql().batch_execute(&format!("truncate {}; checkpoint", guard.table)).unwrap();
    // A fresh process: memory that was given back is not always the kernel's again.
    database.restart_worker();
    let worker = database.worker();
    let sockets = subscribers.min(SOCKETS);
    let mut streams: Vec<TcpStream> = (0..sockets).map(|_| connect(database)).collect();
    process::wait_until_idle(worker);
    let memory = process::memory(worker);
    let begun = Instant::now();
    for (socket, stream) in streams.iter_mut().enumerate() {
        let people: Vec<usize> = (socket..subscribers).step_by(sockets).collect();
        join_all(stream, guard.table, &people);
    }
    let joins = subscribers as f64 / begun.elapsed().as_secs_f64();
    process::wait_until_idle(worker);
    let grown = process::memory(worker).anonymous - memory.anonymous;
    let mut crowd =
        Crowd::new(streams.into_iter().map(|s| (s, Box::new(Frames) as Box<dyn Format>)).collect());
    // The first change has the claims of everyone evaluated.
    let first = if guard.asked { 20 } else { subscribers };
    let mut seen = vec![false; first + changes];
    let mut receive = |count: usize| {
        let mut missing = count;
        while missing > 0 {
            crowd.read(DEADLINE, |member, row: &Row<'_>| {
                let id = row.number(0) as usize;
                assert_eq!(id % subscribers % sockets, member, "row {id} came to somebody else");
                assert!(!std::mem::replace(&mut seen[id], true), "row {id} came twice");
                missing -= 1;
            });
        }
    };
    write(database, guard.table, subscribers, 0..first);
    receive(first);
    let stopped = Stopped::new(worker);
    write(database, guard.table, subscribers, first..first + changes);
    let server = Stopwatch::start(&database.processes("pg_tide"));
    let client = Stopwatch::start(&[process::this()]);
    let start = Instant::now();
    drop(stopped);
    receive(changes);
    let seconds = start.elapsed().as_secs_f64();
    let changes = changes as f64;
    vec![
        changes / seconds,
        changes * subscribers as f64 / seconds,
        server.seconds() * 1e6 / changes,
        client.seconds() * 1e6 / changes,
        grown * 1024.0 / subscribers as f64,
        joins,
    ]
}

fn write(database: &Database<'_>, table: &str, subscribers: usize, rows: Range<usize>) {
    let mut sql = database.sql();
    let insert = format!(
        "insert into {table} select n, person(n % $3::bigint), 'the body of row ' || n
         from generate_series($1::bigint, $2::bigint - 1) n"
    );
    let insert = sql.prepare(&insert).unwrap();
    for first in rows.clone().step_by(BATCH) {
        let last = rows.end.min(first + BATCH);
        sql.execute(&insert, &[&(first as i64), &(last as i64), &(subscribers as i64)]).unwrap();
    }
}

/// In one backend, with a plan that is made once: nothing is faster that asks each time.
fn exists(database: &Database<'_>, guard: Guard, subscribers: usize) -> Sample {
    let mut sql = database.sql();
    let people = subscribers.min(PEER_CHECKS);
    let changes = (PEER_CHECKS / people) as i64;
    let table = guard.table;
    sql.batch_execute(&format!(
        "truncate {table};
         insert into {table} select n, person(n % {subscribers}), 'the body of row ' || n
             from generate_series(0, {changes} - 1) n;
         analyze {table};
         create or replace function check_all(changes bigint, claims text[]) returns bigint
         language plpgsql as $$
         declare
             seen bigint := 0;
             claim text;
         begin
             for change in 0 .. changes - 1 loop
                 foreach claim in array claims loop
                     perform set_config('request.jwt.claims', claim, true);
                     if exists (select from {table} where id = change) then
                         seen := seen + 1;
                     end if;
                 end loop;
             end loop;
             return seen;
         end $$;
         set role authenticated"
    ))
    .unwrap();
    let claims: Vec<String> = (0..people).map(|person| claims(person).to_string()).collect();
    let backend: i32 = sql.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let server = Stopwatch::start(&[backend]);
    let start = Instant::now();
    let row = sql.query_one("select check_all($1, $2)", &[&changes, &claims]).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let seen = (0..changes as usize).filter(|change| change % subscribers < people).count();
    assert_eq!(row.get::<_, i64>(0), seen as i64, "each row is one subscriber's");
    let checks = (changes as usize * people) as f64 / seconds;
    let changes = checks / subscribers as f64;
    vec![changes, checks, server.seconds() / seconds * 1e6 / changes, f64::NAN, f64::NAN, f64::NAN]
}

fn claims(person: usize) -> Value {
    json!({
        "role": "authenticated",
        "sub": format!("00000000-0000-0000-0000-{person:012x}"),
        "exp": 4_102_444_800_u64,
    })
}

fn sign(person: usize) -> String {
    let header = json!({ "alg": "HS256", "typ": "JWT" });
    token::signed(&header, &claims(person), SECRET.as_bytes())
}

fn connect(database: &Database<'_>) -> TcpStream {
    let path = format!("/realtime/v1/websocket?apikey={}&vsn=2.0.0", sign(0));
    websocket::connect(database.port, &path)
}

/// A channel for each of these people, with a token of its own.
fn join_all(stream: &mut TcpStream, table: &str, people: &[usize]) {
    for person in people {
        let join = json!({
            "config": { "postgres_changes": [{ "event": "*", "schema": "public", "table": table }] },
            "access_token": sign(*person),
        });
        let reference = person.to_string();
        let topic = format!("realtime:{person}");
        let frame = json!([reference, reference, topic, "phx_join", join]);
        websocket::send(stream, &frame.to_string());
    }
    let mut subscribed = 0;
    while subscribed < people.len() {
        let frame: Value = serde_json::from_slice(&websocket::receive(stream)).unwrap();
        assert_eq!(frame[4]["status"], "ok", "{frame}");
        subscribed += usize::from(frame[4]["extension"] == "postgres_changes");
    }
}
