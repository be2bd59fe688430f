//! Somebody else in tide-server's place: what answers Postgres's own processes, or does not, costs
//! what was asked and nothing else.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde_json::{Value, json};

use crate::support::{Cluster, DEADLINE, Database};

const NOTIFIER: &str = "pg_tide notifier";
const LATIN1: &str = "encoding 'LATIN1' locale 'C' template template0";

fn open_to_all(path: &PathBuf) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
}

fn read(stream: &mut UnixStream) -> Value {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).unwrap();
    serde_json::from_slice(&body).unwrap()
}

fn write(stream: &mut UnixStream, body: &[u8]) -> std::io::Result<()> {
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes())?;
    stream.write_all(body)
}

/// Answers the next questions of SQL functions with these.
fn answer(database: &Database<'_>, answers: Vec<String>) -> JoinHandle<()> {
    let path = database.vacant_socket();
    let listener = UnixListener::bind(&path).unwrap();
    open_to_all(&path);
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            assert_eq!(read(&mut stream), "control");
            read(&mut stream);
            // Who asked may have heard enough.
            let _ = write(&mut stream, answer.as_bytes());
        }
    })
}

/// Most memory that a session has ever had, in kB.
fn peak_memory(sql: &mut postgres::Client) -> u64 {
    let pid: i32 = sql.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn an_answer_that_would_be_blown_up_in_memory_is_not_taken_in() {
    let cluster = Cluster::start();
    let database = cluster.database("hostile_large");
    let objects = |bytes: usize| {
        let object = r#"{"":0},"#;
        format!(r#"{{"ok":[{}0]}}"#, object.repeat(bytes / object.len()))
    };
    let answers = vec![objects(60 << 20), objects(1_000_000), objects(1_000_000)];
    let server = answer(&database, answers);
    let mut sql = database.sql();
    let status = "select reason from tide.status()";
    let events = "select count(*) from tide.recent()";
    sql.batch_execute("select * from pg_class").unwrap();
    let before = peak_memory(&mut sql);

    let mut reason = || sql.query_one(status, &[]).unwrap().get::<_, String>(0);
    assert!(reason().contains("is too large"));
    assert!(reason().contains("could not be understood"));
    let error = sql.query_one(events, &[]).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("could not be understood"));

    let grown = peak_memory(&mut sql) - before;
    assert!(grown < 32 << 10, "{grown} kB");
    server.join().unwrap();
}

#[test]
fn an_answer_is_a_text_of_the_databases_encoding_or_an_error() {
    let cluster = Cluster::start();
    let database = Database::without_extension_with(&cluster, "hostile_latin1", LATIN1, &[]);
    database.sql().batch_execute("create extension pg_tide").unwrap();
    database.wait_until_live();
    let event = |table: &str| {
        json!({ "ok": { "events": [{
            "id": "1", "commit_time": 0, "schema": "public", "table": table, "operation": "INSERT",
            "record": { "name": table },
        }] } })
    };
    let answers = [
        json!({ "ok": "größe" }),
        json!({ "ok": "zu €" }),
        event("größe"),
        event("zu €"),
        event("zu \0"),
        json!({ "error": { "sqlstate": "XX000", "message": "zu € \0" } }),
    ];
    let server = answer(&database, answers.map(|answer| answer.to_string()).into());
    let mut sql = database.sql();
    let ask = r#"select (tide_internal.control('{"op": "status"}'))::text"#;
    let recent = "select \"table\", record::text from tide.recent()";

    assert_eq!(sql.query_one(ask, &[]).unwrap().get::<_, &str>(0), r#""größe""#);
    assert_eq!(sql.query_one(ask, &[]).unwrap_err().code().unwrap().code(), "22P05");
    let row = sql.query_one(recent, &[]).unwrap();
    assert_eq!((row.get(0), row.get(1)), ("größe", r#"{"name": "größe"}"#));
    assert_eq!(sql.query_one(recent, &[]).unwrap_err().code().unwrap().code(), "22P05");
    assert_eq!(sql.query_one(recent, &[]).unwrap_err().code().unwrap().code(), "22021");
    let error = sql.query_one(recent, &[]).unwrap_err();
    assert_eq!(error.as_db_error().unwrap().message(), "zu ? ?");
    server.join().unwrap();
}

#[test]
fn a_question_is_text_of_the_databases_encoding_or_refused() {
    let cluster = Cluster::start();
    let database = Database::without_extension_with(&cluster, "hostile_asked", LATIN1, &[]);
    database
        .sql()
        .batch_execute("create extension pg_tide; grant authenticated to tide_authenticator")
        .unwrap();
    database.wait_until_live();
    let path = database.vacant_socket();
    let listener = UnixListener::bind(&path).unwrap();
    open_to_all(&path);
    for pid in database.processes("pg_tide executor") {
        database.sql().execute("select pg_terminate_backend($1)", &[&pid]).unwrap();
    }
    let mut executor = std::iter::from_fn(|| {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Some((read(&mut stream), stream))
    })
    .find_map(|(hello, stream)| (hello == "executor").then_some(stream))
    .unwrap();
    let mut ask = |expression: &str, claims: &str| {
        let question = json!({
            "op": "evaluate_claims", "role": "authenticated",
            "expressions": [expression], "claims": [claims],
        });
        write(&mut executor, question.to_string().as_bytes()).unwrap();
        read(&mut executor)["ok"]["outcomes"].take()
    };
    let claimed = "length(current_setting('request.jwt.claims')::jsonb ->> 'name')";

    assert_eq!(ask("length('größe')", "{}"), json!([{ "values": ["5"] }]));
    assert_eq!(ask("length('zu €')", "{}"), json!([{ "failed": "22P05" }]));
    assert_eq!(ask("length('zu \0')", "{}"), json!([{ "failed": "22021" }]));
    assert_eq!(ask(claimed, r#"{"name":"größe"}"#), json!([{ "values": ["5"] }]));
    assert_eq!(ask(claimed, r#"{"name":"zu €"}"#), json!([{ "failed": "22P05" }]));
}

#[test]
fn a_server_that_accepts_nobody_keeps_no_session_waiting() {
    let cluster = Cluster::start();
    let database = cluster.database("hostile_deaf");
    let path = database.vacant_socket();
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    open_to_all(&path);
    // One may wait to be accepted, and does.
    rustix::net::listen(&socket, 0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    let mut sql = database.sql();
    sql.batch_execute("set statement_timeout = '20s'").unwrap();

    let row = sql.query_one("select reason from tide.status()", &[]).unwrap();

    assert!(row.get::<_, &str>(0).contains("is not running"), "{}", row.get::<_, &str>(0));
    // At the end of a transaction, where nothing can be cancelled.
    sql.batch_execute("select tide.rotate_jwt_secret()").unwrap();
}

/// The next notifier that connects, in the place of whose server this is.
fn next_notifier(database: &Database<'_>) -> UnixStream {
    let path = database.vacant_socket();
    let listener = UnixListener::bind(&path).unwrap();
    open_to_all(&path);
    let notifier = database.processes(NOTIFIER).pop().unwrap();
    database.sql().execute("select pg_terminate_backend($1)", &[&notifier]).unwrap();
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        if read(&mut stream) == "notifier" {
            return stream;
        }
    }
}

fn notifier_of(name: &str, cluster: &Cluster) -> (UnixStream, i32) {
    let settings = [("tide.notify_channels", "*"), ("tide.public_channels", "on")];
    let database = cluster.database_with(name, &settings);
    let mut client = database.client();
    client.join("realtime:tide:notify:jobs", &json!({}));
    let stream = next_notifier(&database);
    (stream, database.processes(NOTIFIER)[0])
}

#[test]
fn a_server_that_reads_nothing_is_not_listened_to() {
    const LONG: usize = 400_000;
    let cluster = Cluster::start();
    let (mut stream, notifier) = notifier_of("hostile_unread", &cluster);
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{notifier}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = peak();
    // Postgres refuses a name of that length, and the answer repeats it.
    let lists = ["x", "y"].map(|letter| json!([letter.repeat(LONG)]).to_string());

    stream.set_write_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let taken =
        (0..100).take_while(|n| write(&mut stream, lists[n % 2].as_bytes()).is_ok()).count();

    assert!((1..20).contains(&taken), "{taken} lists were taken");
    let grown = peak() - before;
    assert!(grown < 64 << 10, "{grown} kB");
    // Once it reads, it is answered.
    for n in 0..taken {
        let letter = if n % 2 == 0 { "x" } else { "y" };
        let answer = read(&mut stream)["listening"].take();
        assert!(answer["channel"].as_str().unwrap().starts_with(letter), "the {n}th");
        assert_eq!(answer["heard"], false);
    }
}

#[test]
fn a_list_is_answered_by_what_is_new_in_it() {
    let cluster = Cluster::start();
    let (mut stream, _) = notifier_of("hostile_lists", &cluster);
    let mut say = |channels: Value| write(&mut stream, channels.to_string().as_bytes()).unwrap();

    say(json!(["one"]));
    say(json!(["one", "two"]));
    say(json!([]));
    say(json!(["two"]));
    say(json!(["two", "three"]));

    let answers: Vec<Value> = (0..4).map(|_| read(&mut stream)).collect();
    let heard = |channel: &str| json!({ "listening": { "channel": channel, "heard": true } });
    assert_eq!(answers, ["one", "two", "two", "three"].map(heard));
}
