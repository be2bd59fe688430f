//! (n) What clients write, beside sessions that do for each request what PostgREST does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::plan::Plan;
use super::report::{Report, Sample, percentile};
use super::server::{self, Durability, Extension};
use super::support::Database;
use super::support::mutator::MUTATIONS;
use super::websocket;

const METRICS: &[&str] = &["mutations/s", "p50 us", "p99 us"];

#[derive(Clone, Copy, Debug)]
enum Way {
    /// So many at a time, of which all but one wait for their turn.
    Tide(usize),
    Sessions,
}

/// Sessions twice: what they differ by is chance.
const WAYS: [(&str, Way); 4] = [
    ("pg_tide, 8 ahead", Way::Tide(8)),
    ("pg_tide, one at a time", Way::Tide(1)),
    ("sessions as PostgREST's", Way::Sessions),
    ("the same again", Way::Sessions),
];

const CLAIMS: &str = r#"{"role":"authenticated","sub":"bench"}"#;

pub fn run(plan: &Plan) -> Report {
    let mut report = Report::new("(n) what clients write", METRICS);
    for (disk, durability) in [("", Durability::PageCache), (", fsync on", Durability::Fsync)] {
        let cluster = server::start(Extension::Tide, durability);
        cluster.configure("tide.mutation_rate = 1000000\ntide.writers = 4");
        cluster.reload();
        let database = server::database(&cluster, Extension::Tide);
        server::publish(&database, Extension::Tide, "written", "id int primary key, n bigint");
        database
            .sql()
            .batch_execute(
                "grant insert, update on written to authenticated;
                 insert into written select i, 0 from generate_series(1, 1000) as i",
            )
            .unwrap();
        for clients in [1, 32] {
            let case = format!("{clients} clients{disk}");
            report
                .measure(&case, plan, &WAYS, |way| measure(&database, way, clients, plan.duration));
        }
    }
    report
}

fn measure(database: &Database<'_>, way: Way, clients: i32, duration: Duration) -> Sample {
    for statement in ["vacuum analyze written", "checkpoint"] {
        database.sql().batch_execute(statement).unwrap();
    }
    let begun = Instant::now();
    let mut latencies: Vec<u32> = std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=clients)
            .map(|id| {
                scope.spawn(move || match way {
                    Way::Tide(ahead) => mutate(database, id, ahead, duration),
                    Way::Sessions => write(database, id, duration),
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    vec![
        latencies.len() as f64 / seconds,
        percentile(&latencies, 0.5),
        percentile(&latencies, 0.99),
    ]
}

/// A client that writes a row of its own, over and over: microseconds from each request to its answer.
fn mutate(database: &Database<'_>, id: i32, ahead: usize, duration: Duration) -> Vec<u32> {
    let token = database.token_with("authenticated", CLAIMS, "1 hour");
    let path = format!("/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let mut stream = websocket::connect(database.port, &path);
    websocket::send(&mut stream, &json!(["1", "1", MUTATIONS, "phx_join", {}]).to_string());
    while !String::from_utf8_lossy(&websocket::receive(&mut stream)).contains("phx_reply") {}
    let client_id = format!("{id} {:?}", std::time::SystemTime::now());
    let (begun, mut latencies, mut sent) = (Instant::now(), Vec::new(), VecDeque::new());
    loop {
        while sent.len() < ahead && begun.elapsed() < duration {
            let n = latencies.len() + sent.len() + 1;
            let mutation = json!({ "mutation_id": "m", "client_id": client_id, "n": n, "ops": [
                { "op": "set", "table": "public.written", "key": { "id": id }, "values": { "n": n } }] });
            let payload =
                json!({ "type": "broadcast", "event": "tide:mutate", "payload": mutation });
            sent.push_back(Instant::now());
            websocket::send(
                &mut stream,
                &json!(["1", null, MUTATIONS, "broadcast", payload]).to_string(),
            );
        }
        let Some(when) = sent.pop_front() else { return latencies };
        let answer: Value = serde_json::from_slice(&websocket::receive(&mut stream)).unwrap();
        assert_eq!(answer[4]["payload"]["status"], "confirmed", "{answer}");
        latencies.push(micros(when));
    }
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// A session that does the same in transactions of its own.
fn write(database: &Database<'_>, id: i32, duration: Duration) -> Vec<u32> {
    let mut sql = database.sql();
    let settings = sql
        .prepare(
            "select set_config('search_path', 'public', true), set_config('role', 'authenticated', true),
                    set_config('request.jwt.claims', $1, true), set_config('request.method', 'PATCH', true),
                    set_config('request.path', '/written', true), set_config('request.headers', '{}', true),
                    set_config('request.cookies', '{}', true)",
        )
        .unwrap();
    let update = sql.prepare("update public.written set n = $2 where id = $1").unwrap();
    let (begun, mut latencies) = (Instant::now(), Vec::new());
    while begun.elapsed() < duration {
        let (before, n) = (Instant::now(), latencies.len() as i64);
        let mut transaction = sql.transaction().unwrap();
        transaction.query(&settings, &[&CLAIMS]).unwrap();
        assert_eq!(transaction.execute(&update, &[&id, &n]).unwrap(), 1);
        transaction.commit().unwrap();
        latencies.push(micros(before));
    }
    latencies
}
