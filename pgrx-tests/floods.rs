//! Floods of every kind at the lowest `tide.memory_limit`: what the server takes of the system stays
//! within it, who is refused is told why, and a client that reads gets every row meanwhile.

use std::any::Any;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::client::{Client, Closed, Refusal};
use crate::support::{Cluster, DEADLINE, Database, http, wait_until};

const LIMIT_KIB: u64 = 64 << 10;

/// What the server may take besides: what it has before the first client, what is being decoded and
/// encoded at the moment, and what the allocator wastes.
const MARGIN_KIB: u64 = 48 << 10;

/// Rows that are written in the middle of each flood.
const ROWS: i64 = 200;

/// Opens as much as it is let, and gives it back with the reason why it was no more.
type Flood = fn(&Database<'_>) -> (Box<dyn Any>, String);

const FLOODS: [(&str, Flood, &str); 7] = [
    ("sockets", sockets, "too many connections have not sent a request"),
    ("websockets", websockets, "there is no memory for more connections"),
    ("messages", messages, "too many large messages at once"),
    ("bodies", bodies, "there is no memory for "),
    ("channels", channels, "MemoryLimitReached: There is no memory for more channels"),
    ("filters", filters, "FilterLimitReached: There is no memory for more filters"),
    ("presence", presence, "MemoryLimitReached: There is no memory for more presence"),
];

#[test]
fn whatever_clients_flood_the_server_with_it_keeps_to_its_limit_and_serves_the_others() {
    let cluster = Cluster::with("tide.memory_limit = '64MB'");
    let settings = [
        ("tide.public_channels", "on"),
        ("tide.public_channels_send", "on"),
        ("tide.join_rate", "100000"),
        ("tide.presence_rate", "100000"),
    ];
    let database = cluster.database_with("flooded", &settings);
    database
        .sql()
        .batch_execute(
            "create table t (id int primary key, pad text);
         grant select on t to authenticated;
         select tide.publish('t')",
        )
        .unwrap();
    let server = server(&database);
    let mut healthy = database.client();
    healthy.subscribe("healthy", "t");
    let mut next = serve(&database, &mut healthy, 1, 1);
    let before = kib(server, "VmHWM:");

    for (name, flood, expected) in FLOODS {
        let (kept, reason) = flood(&database);
        assert!(reason.contains(expected), "{name}: {reason}");
        next = serve(&database, &mut healthy, next, 100);
        let (resident, data) = (kib(server, "VmRSS:"), kib(server, "VmData:"));
        eprintln!("{name}: {resident} KiB, data {data} KiB");
        assert!(data <= LIMIT_KIB + MARGIN_KIB, "{name}: data {data} KiB");
        drop(kept);
        wait_until("the flood is over", || (metric(&database, "connections") == 1).then_some(()));
    }
    next = deaf_readers(&database, &mut healthy, next);
    serve(&database, &mut healthy, next, 1);

    assert_eq!(self::server(&database), server, "the server has been restarted");
    let peak = kib(server, "VmHWM:");
    eprintln!("peak {peak} KiB, {before} before");
    assert!(peak <= LIMIT_KIB + MARGIN_KIB, "{peak} KiB, {before} before");
}

fn server(database: &Database<'_>) -> i32 {
    let pid = "select server_pid from tide.status()";
    database.sql().query_one(pid, &[]).unwrap().get(0)
}

/// A number from the process's status.
fn kib(pid: i32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn metric(database: &Database<'_>, name: &str) -> u64 {
    let metrics = http::get(database.port, "/metrics").body;
    let name = format!("pg_tide_{name} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
}

fn refused(database: &Database<'_>, kind: &str) -> u64 {
    metric(database, &format!("memory_refused_total{{kind=\"{kind}\"}}"))
}

/// Writes rows from this one on, which all arrive; the next.
fn serve(database: &Database<'_>, client: &mut Client, from: i64, size: usize) -> i64 {
    let rows = format!(
        "insert into t select g, repeat('x', {size}) from generate_series({from}, {}) g",
        from + ROWS - 1
    );
    database.sql().batch_execute(&rows).unwrap();
    for id in from..from + ROWS {
        assert_eq!(client.change()["record"]["id"], id);
    }
    from + ROWS
}

fn sockets(database: &Database<'_>) -> (Box<dyn Any>, String) {
    let open = || TcpStream::connect(("127.0.0.1", database.port)).unwrap();
    let mut opened: Vec<TcpStream> = (0..2_000).map(|_| open()).collect();
    let answer = answer(&mut opened[0]);
    (Box::new(opened), answer)
}

/// What the server says before it closes.
fn answer(socket: &mut TcpStream) -> String {
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn websockets(database: &Database<'_>) -> (Box<dyn Any>, String) {
    let query = format!("apikey={}&vsn=2.0.0", database.token("authenticated"));
    let mut opened = Vec::new();
    loop {
        match database.try_connect(&query) {
            Ok(client) => opened.push(client),
            Err(Refusal { status, body }) => {
                assert_eq!(status, 503, "{body}");
                return (Box::new(opened), body);
            }
        }
    }
}

/// Messages of nearly a megabyte of which the end does not come.
fn messages(database: &Database<'_>) -> (Box<dyn Any>, String) {
    let head = [&[0x81, 0xff][..], &1_000_000_u64.to_be_bytes(), &[0; 4]].concat();
    let before = refused(database, "inbound");
    let mut opened = Vec::new();
    while refused(database, "inbound") == before {
        let mut client = database.client();
        client.send_raw(&head);
        client.send_raw(&vec![b'['; 900_000]);
        opened.push(client);
    }
    let closed: Vec<Closed> =
        opened.iter_mut().rev().take(1).map(Client::wait_until_closed).collect();
    let Some(Closed(Some((1013, reason)))) = closed.into_iter().next() else { panic!("not told") };
    (Box::new(opened), reason)
}

fn bodies(database: &Database<'_>) -> (Box<dyn Any>, String) {
    let head = format!(
        "POST /realtime/v1/api/broadcast HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 1000000\r\n\r\n",
        database.token("authenticated")
    );
    let before = refused(database, "inbound");
    let mut opened = Vec::new();
    while refused(database, "inbound") == before {
        let mut socket = TcpStream::connect(("127.0.0.1", database.port)).unwrap();
        let _ = socket.write_all(&[head.as_bytes(), &vec![b' '; 400_000]].concat());
        opened.push(socket);
    }
    let reason = answer(opened.last_mut().unwrap());
    assert!(reason.starts_with("HTTP/1.1 503 "), "{reason}");
    (Box::new(opened), reason)
}

/// Joins, each with a config of its own, until one is refused because of the server's memory.
fn join_until_refused(
    database: &Database<'_>,
    config: impl Fn(usize) -> Value,
    is_enough: impl Fn(&str) -> bool,
) -> (Box<dyn Any>, String) {
    let mut opened = Vec::new();
    loop {
        let mut client = database.client();
        for n in 0..60 {
            let number = 100 * opened.len() + n;
            let reply = client.try_join(&format!("realtime:room{number}"), &config(number));
            let reason = reply["response"]["reason"].as_str().unwrap_or_default();
            if is_enough(reason) {
                return (Box::new((opened, client)), reason.to_owned());
            }
        }
        opened.push(client);
    }
}

/// Channels that keep what they asked for: a hundred selections of a column each.
fn channels(database: &Database<'_>) -> (Box<dyn Any>, String) {
    let config = |_| {
        let binding = |n: usize| {
            let columns = ["id", "pad"];
            let select = &columns[..1 + n % 2];
            json!({"event": "*", "schema": "public", "table": "t", "select": select, "n": n})
        };
        json!({ "postgres_changes": (0..100).map(binding).collect::<Vec<_>>() })
    };
    join_until_refused(database, config, |reason| reason.contains("MemoryLimitReached"))
}

fn filters(database: &Database<'_>) -> (Box<dyn Any>, String) {
    let config = |number: usize| {
        let binding = |n: usize| {
            let filter = format!("pad=like.%{number} {n}%");
            json!({"event": "*", "schema": "public", "table": "t", "filter": filter})
        };
        json!({ "postgres_changes": (0..30).map(binding).collect::<Vec<_>>() })
    };
    join_until_refused(database, config, |reason| reason.contains("There is no memory"))
}

fn presence(database: &Database<'_>) -> (Box<dyn Any>, String) {
    let track = json!({"type": "presence", "event": "track", "payload": {"x": "x".repeat(16_000)}});
    let mut opened = Vec::new();
    loop {
        let mut client = database.client();
        for n in 0..60 {
            let topic = format!("realtime:room{}-{n}", opened.len());
            client.join(&topic, &json!({}));
            let reply = client.call(&topic, "presence", &track);
            if reply["status"] == "error" {
                let reason = reply["response"]["reason"].as_str().unwrap().to_owned();
                return (Box::new((opened, client)), reason);
            }
        }
        opened.push(client);
    }
}

/// Clients that do not read, each with frames of its own, until all have been cut off; the next row.
fn deaf_readers(database: &Database<'_>, healthy: &mut Client, from: i64) -> i64 {
    let mut deaf: Vec<Client> = (0..70).map(|_| database.client()).collect();
    for (n, client) in deaf.iter_mut().enumerate() {
        let filter = format!("id=gt.-{n}");
        let binding = json!({"event": "*", "schema": "public", "table": "t", "filter": filter});
        client.subscribe_to("deaf", binding);
    }
    let mut next = from;
    while metric(database, "slow_clients_total") < 70 {
        next = serve(database, healthy, next, 10_000);
    }
    for client in &mut deaf {
        let Closed(reason) = client.wait_until_closed();
        // Who was in the middle of a large write cannot be told any more.
        assert!(reason.is_none_or(|(code, _)| code == 1013));
    }
    next
}
