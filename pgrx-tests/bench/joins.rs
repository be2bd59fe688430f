//! (j) Joins: of tables that are known already, of tables that nobody has asked about yet, and while
//! the catalogue changes; beside a backend that is asked the same of its catalogue, as fast as it
//! can answer.

use std::collections::HashSet;
use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::plan::Plan;
use super::process::{self, Stopwatch};
use super::report::{Report, Sample};
use super::server::{self, Durability, Extension};
use super::session::Session;
use super::support::Database;
use super::websocket::{self, Split};

const METRICS: &[&str] = &["joins/s", "server CPU us/join"];

const WAYS: [(&str, Way); 2] = [("pg_tide", Way::Tide), ("prepared SELECT", Way::Select)];

#[derive(Clone, Copy, Debug)]
enum Way {
    Tide,
    Select,
}

const SOCKETS: usize = 50;
/// Tables that all clients share where they are known.
const SHARED: usize = 10;
/// Questions that the peer has before it at a time: as many as joins go on at once, four for each socket.
const WINDOW: usize = 4 * SOCKETS;
/// Between two changes of the catalogue.
const PAUSE: Duration = Duration::from_millis(5);

/// Whether the table is there and what of it the role may read: the least that a join is about.
const QUESTION: &str = "
select c.oid, pg_catalog.json_agg(pg_catalog.json_build_object(
           'name', a.attname, 'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
           'readable', pg_catalog.has_column_privilege('authenticated', c.oid, a.attnum, 'SELECT')))
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where n.nspname = 'public' and c.relname = $1
  and pg_catalog.has_schema_privilege('authenticated', n.oid, 'USAGE')
  and pg_catalog.has_any_column_privilege('authenticated', c.oid, 'SELECT')
group by c.oid";

/// Where the answers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// All tables have been joined before.
    Known,
    /// Each table is joined for the first time.
    New,
    /// The same, while transactions with changes of the catalogue commit.
    Changing,
}

pub fn run(plan: &Plan) -> Report {
    let cluster = server::start(Extension::Tide, Durability::PageCache);
    let settings = [
        ("tide.join_rate", "100000"),
        ("tide.max_channels_per_connection", "10000"),
        ("tide.handshake_timeout", "60s"),
    ];
    let database = cluster.database_with("bench", &settings);
    set_up(&database, plan.join_tables);
    let mut report = Report::new("(j) joins of channels with one table each", METRICS);
    let cases = [
        (format!("{} of {SHARED} known tables", plan.joins), Case::Known, plan.joins),
        (format!("{} of new tables", plan.join_tables), Case::New, plan.join_tables),
        (format!("{} and changes", plan.join_tables), Case::Changing, plan.join_tables),
    ];
    for (name, case, joins) in cases {
        report.measure(&name, plan, &WAYS, |way| match way {
            Way::Tide => tide(&database, case, joins),
            Way::Select => select(&database, case, joins),
        });
    }
    report
}

fn set_up(database: &Database<'_>, tables: usize) {
    let create = format!(
        "do $$ begin
             for n in 0 .. {} loop
                 execute 'create table t' || n || ' (id bigint primary key, owner uuid, body text, made timestamptz)';
                 execute 'grant select on t' || n || ' to authenticated';
                 execute 'alter publication tide add table t' || n;
                 if n % 1000 = 999 then commit; end if;
             end loop;
         end $$",
        tables.max(SHARED) - 1
    );
    let mut sql = database.sql();
    sql.batch_execute("create table first (id int primary key); select tide.publish('first')")
        .unwrap();
    sql.batch_execute(&create).unwrap();
    sql.batch_execute("create role joins_changing").unwrap();
    sql.batch_execute("vacuum analyze").unwrap();
}

fn table(case: Case, join: usize) -> String {
    let number = if case == Case::Known { join % SHARED } else { join };
    format!("t{number}")
}

fn tide(database: &Database<'_>, case: Case, joins: usize) -> Sample {
    // What was known is forgotten, and the channels of the last time are gone.
    database.restart_worker();
    let token = database.token("authenticated");
    let path = format!("/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let connect = |_| websocket::connect(database.port, &path);
    let mut streams: Vec<TcpStream> = (0..SOCKETS).map(connect).collect();
    if case == Case::Known {
        join_all(&mut streams, Case::Known, SHARED, "warm");
    }
    let server = database.processes("pg_tide");
    process::wait_until_idle(database.worker());
    beside(database, case, || {
        measure(&server, joins, || join_all(&mut streams, case, joins, "join"))
    })
}

fn select(database: &Database<'_>, case: Case, joins: usize) -> Sample {
    let mut session = Session::connect(database, false);
    let server = [session.pid];
    session.prepare(QUESTION);
    let tables: Vec<String> = (0..joins).map(|join| table(case, join)).collect();
    beside(database, case, || measure(&server, joins, || session.ask_all(&tables, WINDOW)))
}

fn measure(server: &[i32], joins: usize, work: impl FnOnce()) -> Sample {
    let stopwatch = Stopwatch::start(server);
    let begun = Instant::now();
    work();
    let seconds = begun.elapsed().as_secs_f64();
    let joins = joins as f64;
    vec![joins / seconds, stopwatch.seconds() * 1e6 / joins]
}

/// Does the work; if it is the case, while the catalogue changes.
fn beside(database: &Database<'_>, case: Case, work: impl FnOnce() -> Sample) -> Sample {
    let is_over = AtomicBool::new(case != Case::Changing);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut sql = database.sql();
            while !is_over.load(Ordering::Relaxed) {
                sql.batch_execute("alter role joins_changing connection limit 7").unwrap();
                thread::sleep(PAUSE);
            }
        });
        let sample = work();
        is_over.store(true, Ordering::Relaxed);
        sample
    })
}

/// Asks for all channels at once, and waits until each is joined and live.
fn join_all(streams: &mut [TcpStream], case: Case, joins: usize, stem: &str) {
    for join in 0..joins {
        let changes = [json!({ "event": "*", "schema": "public", "table": table(case, join) })];
        let payload = json!({ "config": { "postgres_changes": changes } });
        let (reference, topic) = (join.to_string(), format!("realtime:{stem}{join}"));
        let frame = json!([reference, reference, topic, "phx_join", payload]);
        websocket::send(&mut streams[join % SOCKETS], &frame.to_string());
    }
    for (socket, stream) in streams.iter_mut().enumerate() {
        await_joined(stream, (socket..joins).step_by(SOCKETS).count());
    }
}

fn await_joined(stream: &mut TcpStream, count: usize) {
    let (mut buffer, mut filled) = (vec![0; 256 << 10], 0);
    let mut joined = HashSet::new();
    while joined.len() < count {
        let read = stream.read(&mut buffer[filled..]).unwrap();
        assert!(read > 0, "the server ended a connection");
        filled += read;
        let mut used = 0;
        while let Split::Frame { payload, length, .. } = websocket::split(&buffer[used..filled]) {
            used += length;
            let Ok(frame) = serde_json::from_slice::<Value>(payload) else { continue };
            assert_eq!(frame[4]["status"], "ok", "{frame}");
            if frame[4]["extension"] == "postgres_changes" {
                assert!(joined.insert(frame[2].as_str().unwrap().to_owned()), "{frame}");
            }
        }
        buffer.copy_within(used..filled, 0);
        filled -= used;
    }
}
