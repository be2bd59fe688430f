//! (d) Messages of 200 bytes to many clients at once, beside nats-server's websocket.
//!
//! The publisher stays within a window of messages ahead of the slowest client, on both sides: so
//! nothing need be dropped, and every client checks that it gets every message in its place.

use std::net::TcpStream;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::crowd::Crowd;
use super::latency::now;
use super::nats::{Nats, NatsFrames};
use super::plan::Plan;
use super::process::{Stopwatch, this};
use super::reader::{Format, Row, number};
use super::report::{Report, Sample, percentile};
use super::server::{self, Durability, Extension};
use super::support::{DEADLINE, Database};
use super::websocket::{self, Frames, Topic};

const METRICS: &[&str] =
    &["deliveries/s", "p50 us", "p99 us", "server CPU us/deliv.", "client CPU us/deliv."];

const WAYS: [(&str, Medium); 3] = [
    ("pg_tide", Medium::Tide(Topic::Changes)),
    ("nats-server", Medium::Nats),
    ("pg_tide tide:table:", Medium::Tide(Topic::Table)),
];

#[derive(Clone, Copy, Debug)]
enum Medium {
    Tide(Topic),
    Nats,
}

/// How fast messages are published.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// As fast as the slowest client takes them.
    Window,
    /// So many per second.
    PerSecond(f64),
}

/// Messages that may be under way at full speed.
const WINDOW: usize = 64;
/// Messages published together, in one transaction or one write.
const BATCH: usize = 8;
const SIZE: usize = 200;

type Member = (TcpStream, Box<dyn Format>);

pub fn run(plan: &Plan) -> Report {
    let cluster = server::start(Extension::Tide, Durability::PageCache);
    let database = server::database(&cluster, Extension::Tide);
    server::publish(&database, Extension::Tide, "feed", "id bigint primary key, body text");
    let nats = Nats::start();
    let mut report = Report::new("(d) messages of 200 bytes to many clients", METRICS);
    for &clients in &plan.clients {
        let rate = plan.fanout_rate as f64 / clients as f64;
        for (case, pace, deliveries) in [
            ("at full speed", Pace::Window, plan.deliveries),
            ("at a fixed rate", Pace::PerSecond(rate), plan.fanout_rate * 5),
        ] {
            let case = format!("{clients} clients {case}");
            let messages = deliveries / clients;
            report.measure(&case, plan, &WAYS, |medium| match medium {
                Medium::Tide(topic) => tide(&database, topic, clients, messages, pace),
                Medium::Nats => through_nats(&nats, clients, messages, pace),
            });
        }
    }
    report
}

fn tide(
    database: &Database<'_>,
    topic: Topic,
    clients: usize,
    messages: usize,
    pace: Pace,
) -> Sample {
    let mut sql = database.sql();
    sql.batch_execute("truncate feed; checkpoint").unwrap();
    let backend: i32 = sql.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let insert =
        sql.prepare("insert into feed select * from unnest($1::bigint[], $2::text[])").unwrap();
    let mut next = 0;
    let publish = move |bodies: &[String]| {
        let ids: Vec<i64> = (next..).take(bodies.len()).collect();
        next += bodies.len() as i64;
        sql.execute(&insert, &[&ids, &bodies]).unwrap();
    };
    let members = tide_members(database, topic, clients);
    deliver(members, messages, pace, &[database.worker(), backend], publish)
}

fn through_nats(nats: &Nats, clients: usize, messages: usize, pace: Pace) -> Sample {
    let mut publisher = nats.publisher();
    let publish = move |bodies: &[String]| publisher.publish(bodies);
    deliver(nats_members(nats, clients), messages, pace, &[nats.pid()], publish)
}

pub fn tide_members(database: &Database<'_>, topic: Topic, clients: usize) -> Vec<Member> {
    let token = database.token("authenticated");
    (0..clients)
        .map(|_| {
            let stream = websocket::join(database.port, &token, topic, "feed");
            (stream, Box::new(Frames) as Box<dyn Format>)
        })
        .collect()
}

pub fn nats_members(nats: &Nats, clients: usize) -> Vec<Member> {
    (0..clients)
        .map(|_| (nats.join(), Box::new(NatsFrames::default()) as Box<dyn Format>))
        .collect()
}

fn deliver(
    members: Vec<Member>,
    messages: usize,
    pace: Pace,
    servers: &[i32],
    // Not given away: with it its connection ends, and that connection's process.
    mut publish: impl FnMut(&[String]) + Send,
) -> Sample {
    let clients = members.len();
    let mut crowd = Crowd::new(members);
    let mut audience = Audience::new(clients, messages);
    let progress = Progress::default();
    let server = Stopwatch::start(servers);
    let client = Stopwatch::start(&[this()]);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| publish_all(messages, pace, &progress, &mut publish));
        while audience.complete < messages {
            crowd.read(DEADLINE, |member, row| audience.receive(member, row));
            progress.report(audience.complete);
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    audience.latencies.sort_unstable();
    let deliveries = (messages * clients) as f64;
    vec![
        deliveries / seconds,
        percentile(&audience.latencies, 0.5),
        percentile(&audience.latencies, 0.99),
        server.seconds() * 1e6 / deliveries,
        client.seconds() * 1e6 / deliveries,
    ]
}

fn publish_all(
    messages: usize,
    pace: Pace,
    progress: &Progress,
    mut publish: impl FnMut(&[String]),
) {
    let start = Instant::now();
    let batch = match pace {
        Pace::Window => BATCH,
        Pace::PerSecond(_) => 1,
    };
    for first in (0..messages).step_by(batch) {
        let last = messages.min(first + batch);
        match pace {
            Pace::Window => progress.wait_for(last.saturating_sub(WINDOW)),
            Pace::PerSecond(rate) => {
                let due = start + Duration::from_secs_f64(first as f64 / rate);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        let bodies: Vec<String> = (first..last).map(body).collect();
        publish(&bodies);
    }
}

/// The message's number and its time, padded to its size.
fn body(number: usize) -> String {
    let mut body = format!("{number:08} {:016} ", now());
    while body.len() < SIZE {
        body.push((b'a' + (body.len() % 26) as u8) as char);
    }
    body
}

/// How many messages have reached everyone.
#[derive(Debug, Default)]
struct Progress {
    complete: Mutex<usize>,
    changed: Condvar,
}

impl Progress {
    fn report(&self, complete: usize) {
        let mut known = self.complete.lock().unwrap();
        if *known < complete {
            *known = complete;
            self.changed.notify_one();
        }
    }

    fn wait_for(&self, enough: usize) {
        let known = self.complete.lock().unwrap();
        drop(self.changed.wait_while(known, |known| *known < enough).unwrap());
    }
}

/// What the clients have got so far.
struct Audience {
    /// Of each client, the message that comes next.
    next: Vec<usize>,
    /// Of each message, how many clients are without it.
    missing: Vec<usize>,
    complete: usize,
    latencies: Vec<u32>,
}

impl Audience {
    fn new(clients: usize, messages: usize) -> Audience {
        Audience {
            next: vec![0; clients],
            missing: vec![clients; messages],
            complete: 0,
            latencies: Vec::with_capacity(clients * messages),
        }
    }

    fn receive(&mut self, member: usize, row: &Row<'_>) {
        let body = row.columns().last().unwrap();
        assert_eq!(body.len(), SIZE);
        let index = number(&body[..8]) as usize;
        assert_eq!(index, self.next[member], "a client missed a message");
        self.next[member] += 1;
        self.missing[index] -= 1;
        self.complete += usize::from(self.missing[index] == 0);
        self.latencies.push(u32::try_from(now() - number(&body[9..25])).unwrap_or(0));
    }
}
