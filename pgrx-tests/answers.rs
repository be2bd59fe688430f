//! Questions and answers between the server and the helpers: none ends a helper, however large it
//! is, and what is remembered of answers is never older than what a client knows.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::{Value, json};

use crate::support::database::{CATALOG_WORKER, EXECUTOR};
use crate::support::{Cluster, DEADLINE, Database};

fn join(database: &Database<'_>, table: &str) -> String {
    let mut client = database.client();
    let topic = format!("realtime:tide:table:public.{table}");
    let reply = client.try_join(&topic, &json!({}));
    match reply["response"]["reason"].as_str() {
        Some(reason) => reason.split(':').next().unwrap().to_owned(),
        None => reply["status"].as_str().unwrap().to_owned(),
    }
}

/// A helper that has connected to a server of the test's own.
struct Helper(UnixStream);

impl Helper {
    fn accept(listener: &UnixListener) -> Helper {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Helper(stream)
    }

    fn read(&mut self) -> Value {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn ask(&mut self, question: &[u8]) -> Value {
        self.0.write_all(&u32::try_from(question.len()).unwrap().to_be_bytes()).unwrap();
        self.0.write_all(question).unwrap();
        self.read()
    }
}

/// Takes the helpers' server's place, and gives the first helper of a kind that comes.
fn impersonate(database: &Database<'_>, kind: &str, processes: &str) -> (UnixListener, Helper) {
    // One that is not might come to the test before it is ended.
    let path = database.vacant_socket();
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    for pid in &database.processes(processes) {
        database.sql().execute("select pg_terminate_backend($1)", &[pid]).unwrap();
    }
    loop {
        let mut helper = Helper::accept(&listener);
        if helper.read() == kind {
            return (listener, helper);
        }
    }
}

#[test]
fn an_answer_of_an_executor_that_is_too_large_is_an_error_or_comes_in_pages() {
    let cluster = Cluster::start();
    let settings = [("tide.policy_timeout", "20s")];
    let database = cluster.database_with("answers_executor", &settings);
    let (_listener, mut helper) = impersonate(&database, "executor", EXECUTOR);
    let mut evaluate = |expression: &str, clients: usize| {
        let question = json!({
            "op": "evaluate_claims",
            "role": "authenticated",
            "expressions": [expression],
            "claims": vec!["{}"; clients],
        });
        helper.ask(question.to_string().as_bytes())["ok"]["outcomes"].take()
    };

    assert_eq!(evaluate("repeat('x', 50000000)", 1), json!([{ "failed": "54000" }]));
    let page = evaluate("repeat('x', 5000000)", 5);
    assert!((1..=2).contains(&page.as_array().unwrap().len()));
    assert_eq!(evaluate("7", 5).as_array().unwrap().len(), 5);

    let mut cast = |type_sql: &str, value: String| {
        let question = json!({ "op": "cast", "role": "authenticated", "type_sql": type_sql, "values": [value] });
        helper.ask(question.to_string().as_bytes())["error"].take()
    };
    assert_eq!(cast("text", "x".repeat(40 << 20))["sqlstate"], "54000");
    let quoting = cast("int", "x".repeat(1 << 20));
    assert_eq!(quoting["sqlstate"], "22P02");
    assert!(quoting["message"].as_str().unwrap().len() <= 2_000);
}

#[test]
fn a_server_that_does_not_keep_to_the_protocol_costs_a_question_or_its_connection() {
    let cluster = Cluster::start();
    let database = cluster.database("answers_hostile");
    let (listener, mut helper) = impersonate(&database, "catalog_worker", CATALOG_WORKER);
    let before = database.processes(CATALOG_WORKER);
    let many = vec!["1"; (1 << 20) + 1].join(",");

    for question in [
        "".to_owned(),
        "no JSON".to_owned(),
        "[".repeat(100_000),
        r#"{"op":"no such question"}"#.to_owned(),
        r#"{"op":"cast","role":"authenticated","type_sql":"int","values":[]}"#.to_owned(),
        format!(r#"{{"op":"retire","table":1,"ids":[{many}],"keep":false}}"#),
    ] {
        assert_eq!(helper.ask(question.as_bytes())["error"]["sqlstate"], "08P01");
    }
    let limitless = r#"{"op":"unpublished","table":1,"after":0,"limit":4294967295}"#;
    assert_eq!(helper.ask(limitless.as_bytes())["ok"]["ids"], json!([]));
    assert!(helper.ask(br#"{"op":"secrets"}"#)["ok"].is_object());

    // A slot that nobody decodes: what was in line for it would wait for ever.
    let outbox = "select 'tide.outbox'::regclass::oid";
    let outbox: u32 = database.sql().query_one(outbox, &[]).unwrap().get(0);
    let slot = database.slot("slot_name").unwrap();
    let real = u32::from_str_radix(slot.rsplit('_').next().unwrap(), 16).unwrap();
    let mut take_over = |generation: u32| {
        let question = json!({
            "op": "take_over", "table": outbox, "generation": generation, "after": 0, "limit": 10,
        });
        helper.ask(question.to_string().as_bytes())
    };
    assert_eq!(take_over(real.wrapping_add(1))["error"]["sqlstate"], "55000");
    assert_eq!(take_over(real)["ok"]["done"], true);
    let taken = "select generation from tide.outboxes where relation = $1";
    let taken: i64 = database.sql().query_one(taken, &[&outbox]).unwrap().get(0);
    assert_eq!(taken, i64::from(real));

    // More than a frame may have.
    helper.0.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(helper.0.read(&mut [0]).unwrap(), 0, "the connection is at its end");
    let mut helper = Helper::accept(&listener);
    assert_eq!(helper.read(), "catalog_worker");
    assert!(helper.ask(br#"{"op":"secrets"}"#)["ok"].is_object());

    assert_eq!(database.processes(CATALOG_WORKER), before);
}

#[test]
fn a_join_after_a_revoke_is_refused_though_the_table_is_known() {
    let database = Cluster::shared().database("answers_revoked");
    let t = database.table("t", "id int primary key");
    let mut sql = database.sql();
    sql.batch_execute(&format!(
        "create role answers_readers; grant answers_readers to authenticated;
         revoke select on {t} from authenticated; grant select on {t} to answers_readers"
    ))
    .unwrap();
    let changes = [
        (
            format!("revoke select on {t} from answers_readers"),
            format!("grant select on {t} to answers_readers"),
        ),
        (
            "revoke answers_readers from authenticated".to_owned(),
            "grant answers_readers to authenticated".to_owned(),
        ),
        (
            "revoke usage on schema public from public".to_owned(),
            "grant usage on schema public to public".to_owned(),
        ),
        (
            format!("alter publication tide drop table {t}"),
            format!("alter publication tide add table {t}"),
        ),
        (format!("alter table {t} rename to away"), format!("alter table away rename to {t}")),
    ];

    for _ in 0..5 {
        for (revoke, grant) in &changes {
            assert_eq!(join(&database, &t), "ok", "before {revoke}");
            assert_eq!(join(&database, &t), "ok", "known before {revoke}");
            sql.batch_execute(revoke).unwrap();
            assert_eq!(join(&database, &t), "Unauthorized", "after {revoke}");
            sql.batch_execute(grant).unwrap();
        }
    }
    sql.batch_execute("drop owned by answers_readers; drop role answers_readers").unwrap();
}
