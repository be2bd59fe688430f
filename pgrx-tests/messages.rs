//! Messages that are in the WAL and nowhere else: `tide.send` and `tide.set_mutation_id`.

use postgres::error::SqlState;
use serde_json::{Value, json};

use crate::support::client::{Client, Frame};
use crate::support::cluster::Shutdown;
use crate::support::{Cluster, Database, wait_until};

const ROOM: &str = "realtime:room";
const PUBLIC: (&str, &str) = ("tide.public_channels", "on");

fn cluster() -> &'static Cluster {
    Cluster::shared()
}

fn database() -> &'static Database<'static> {
    static DATABASE: std::sync::LazyLock<Database<'static>> =
        std::sync::LazyLock::new(|| cluster().database_with("messages", &[PUBLIC]));
    &DATABASE
}

/// Joins a channel as a public one.
fn listener(database: &Database<'_>, topic: &str) -> Client {
    let mut client = database.client();
    client.join(topic, &json!({ "private": false }));
    client
}

/// A channel of the test's own.
fn room() -> (String, String) {
    let channel = database().fresh_name("room");
    let topic = format!("realtime:{channel}");
    (channel, topic)
}

fn send(channel: &str, name: &str) -> String {
    format!("select tide.send('{channel}', '{name}', '{{}}', false);")
}

/// The names of the messages that arrive up to and including `last`.
fn names(client: &mut Client, topic: &str, last: &str) -> Vec<String> {
    let mut names = Vec::new();
    while names.last().is_none_or(|name| name != last) {
        names.push(client.broadcast(topic)["event"].as_str().unwrap().to_owned());
    }
    names
}

#[track_caller]
fn refused(statement: &str) -> (SqlState, String, Option<String>) {
    let error = database().sql().batch_execute(statement).expect_err(statement);
    let error = error.as_db_error().expect("an error of the server");
    (error.code().clone(), error.message().to_owned(), error.hint().map(str::to_owned))
}

#[test]
fn messages_and_rows_arrive_in_the_order_of_their_transaction() {
    let t = database().table("ordered", "id int primary key");
    let (channel, topic) = room();
    let mut client = database().client();
    client.subscribe(&channel, &t);

    let row = |id: i32| format!("insert into {t} values ({id});");
    let steps = [send(&channel, "one"), row(1), send(&channel, "two"), row(2), row(3)].concat();
    database().sql().batch_execute(&format!("begin; {steps} commit")).unwrap();

    let frames: Vec<Frame> =
        (0..5).map(|_| client.wait_for("an event", |frame| frame.topic == topic)).collect();
    let told: Vec<Value> = frames
        .iter()
        .map(|frame| match frame.event.as_str() {
            "broadcast" => frame.payload["event"].clone(),
            _ => frame.payload["data"]["record"]["id"].clone(),
        })
        .collect();
    assert_eq!(told, [json!("one"), json!(1), json!("two"), json!(2), json!(3)]);
    let ids = [0, 2].map(|index| frames[index].payload["meta"]["id"].as_str().unwrap());
    assert!(ids[0] < ids[1], "{ids:?}");
}

/// Postgres gives a message and the row that follows it the same place in the WAL.
#[test]
fn messages_keep_their_place_among_rows_of_other_subtransactions() {
    let t = database().table("nested", "id int primary key");
    let (channel, topic) = room();
    let mut client = database().client();
    client.subscribe(&channel, &t);
    let (say, row) = (
        |name: i32| send(&channel, &name.to_string()),
        |id: i32| format!("insert into {t} values ({id});"),
    );

    let steps = [
        "begin; savepoint a;".to_owned(),
        say(1) + "release a;",
        row(2) + "savepoint b;",
        row(3) + "savepoint c;",
        say(4) + "release c;",
        row(5) + &say(6) + "release b; savepoint d;",
        row(7) + &say(8) + "release d;",
        row(9) + "commit",
    ];
    database().sql().batch_execute(&steps.concat()).unwrap();

    let told: Vec<String> = (1..=9)
        .map(|_| client.wait_for("an event", |frame| frame.topic == topic).payload)
        .map(|payload| match payload["event"].as_str() {
            Some(name) => name.to_owned(),
            None => payload["data"]["record"]["id"].to_string(),
        })
        .collect();
    assert_eq!(told, ["1", "2", "3", "4", "5", "6", "7", "8", "9"]);
}

#[test]
fn what_is_rolled_back_is_never_told() {
    let (channel, topic) = room();
    let mut client = listener(database(), &topic);
    let mut sql = database().sql();
    let say = |name: &str| send(&channel, name);

    sql.batch_execute(&format!("begin; {} rollback", say("rolled back"))).unwrap();
    sql.batch_execute(
        &[
            "begin;",
            &say("one"),
            "savepoint a;",
            &say("inside a"),
            "savepoint b;",
            &say("inside b"),
            "release b;",
            "rollback to a;",
            &say("two"),
            "release a; savepoint c;",
            &say("three"),
            "release c;",
            &say("end"),
            "commit",
        ]
        .concat(),
    )
    .unwrap();

    assert_eq!(names(&mut client, &topic, "end"), ["one", "two", "three", "end"]);
}

#[test]
fn a_prepared_message_is_told_when_its_transaction_commits() {
    let (channel, topic) = room();
    let mut client = listener(database(), &topic);
    let mut sql = database().sql();

    let prepare =
        |name: &str| format!("begin; {} prepare transaction '{name}'", send(&channel, name));
    sql.batch_execute(&prepare("given up")).unwrap();
    sql.batch_execute(&prepare("prepared")).unwrap();
    sql.batch_execute("rollback prepared 'given up'").unwrap();
    sql.batch_execute("commit prepared 'prepared'").unwrap();

    assert_eq!(names(&mut client, &topic, "prepared"), ["prepared"]);
}

#[test]
fn the_payload_is_an_object_whatever_was_sent() {
    let (channel, topic) = room();
    let mut client = listener(database(), &topic);
    for (data, payload, wrapped) in [
        (r#"'{"line": 7, "ä": [null]}'"#, json!({ "line": 7, "ä": [null] }), Value::Null),
        ("'[1, 2]'", json!({ "data": [1, 2] }), json!(true)),
        (r#"'"text"'"#, json!({ "data": "text" }), json!(true)),
        ("'null'", json!({ "data": null }), json!(true)),
        ("null", json!({ "data": null }), json!(true)),
    ] {
        let statement = format!("select tide.send('{channel}', 'näme', {data}, false)");
        database().sql().batch_execute(&statement).unwrap();

        let message = client.broadcast(&topic);

        assert_eq!(message["event"], "näme");
        assert_eq!(message["payload"], payload);
        assert_eq!(message["meta"]["wrapped"], wrapped, "{message}");
    }
}

#[test]
fn texts_of_any_encoding_arrive_as_utf_8() {
    let create = "create database latin template template0 encoding 'LATIN1' locale 'C'";
    cluster().connect("postgres").batch_execute(create).unwrap();
    let database = Database::template(cluster(), "messages_latin", "latin");
    database
        .sql()
        .batch_execute(
            "alter database messages_latin set tide.public_channels = on;
             create extension pg_tide; grant authenticated to tide_authenticator",
        )
        .unwrap();
    database.wait_until_live();
    let mut client = listener(&database, "realtime:größe");

    database
        .sql()
        .batch_execute(r#"select tide.send('größe', 'ä', '{"ö": "ü €"}', false)"#)
        .unwrap_err();
    database.sql().batch_execute(r#"select tide.send('größe', 'ä', '{"ö": "ü"}', false)"#).unwrap();

    let message = client.broadcast("realtime:größe");
    assert_eq!((&message["event"], &message["payload"]), (&json!("ä"), &json!({ "ö": "ü" })));
}

#[test]
fn private_messages_are_not_for_public_channels() {
    let (channel, topic) = room();
    let mut client = listener(database(), &topic);
    let mut sql = database().sql();

    sql.batch_execute(&format!("select tide.send('{channel}', 'by default', '{{}}')")).unwrap();
    sql.batch_execute(&format!("select tide.send('{channel}', 'no answer', '{{}}', null)"))
        .unwrap();
    sql.batch_execute(&send(&channel, "public")).unwrap();

    assert_eq!(names(&mut client, &topic, "public"), ["public"]);
}

#[test]
fn what_cannot_be_sent_is_refused_in_the_senders_transaction() {
    let sent = |channel: &str, name: &str, data: &str| {
        refused(&format!("select tide.send({channel}, {name}, {data})"))
    };
    let (code, message, hint) = sent("'tide:notify:x'", "'a'", "'{}'");
    assert_eq!(code.code(), "42939");
    assert!(message.contains("tide:notify:x") && hint.is_some(), "{message}");
    assert_eq!(sent("repeat('x', 247)", "'a'", "'{}'").0.code(), "42622");
    assert_eq!(sent("'room'", "repeat('x', 256)", "'{}'").0.code(), "42622");
    assert_eq!(sent("''", "'a'", "'{}'").0, SqlState::INVALID_PARAMETER_VALUE);
    assert_eq!(sent("'room'", "''", "'{}'").0, SqlState::INVALID_PARAMETER_VALUE);
    assert_eq!(sent("null", "'a'", "'{}'").0, SqlState::NULL_VALUE_NOT_ALLOWED);
    assert_eq!(sent("'room'", "null", "'{}'").0, SqlState::NULL_VALUE_NOT_ALLOWED);

    let (code, _, hint) = sent("'room'", "'a'", "to_jsonb(repeat('x', 1024 * 1024))");
    assert_eq!(code, SqlState::PROGRAM_LIMIT_EXCEEDED);
    assert!(hint.is_some_and(|hint| hint.contains("tide.max_message_size")));
}

#[test]
fn the_longest_names_and_the_largest_message_arrive() {
    let channel = format!("{:x<246}", database().fresh_name("long"));
    let topic = format!("realtime:{channel}");
    let mut client = listener(database(), &topic);
    let name = "n".repeat(255);

    database()
        .sql()
        .batch_execute(&format!(
            "select tide.send('{channel}', '{name}', to_jsonb(repeat('x', 1048576 - 246 - 255 - 2)), false)"
        ))
        .unwrap();

    let message = client.broadcast(&topic);
    assert_eq!(message["event"], json!(name));
    assert_eq!(message["payload"]["data"].as_str().unwrap().len(), 1_048_576 - 503);
}

#[test]
fn sending_is_for_those_it_was_granted_to() {
    let (channel, topic) = room();
    let mut client = listener(database(), &topic);
    let mut sql = database().sql();
    sql.batch_execute("create role backend; set role backend").unwrap();

    let denied = sql.batch_execute(&send(&channel, "denied")).unwrap_err();
    assert_eq!(denied.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let denied = sql.batch_execute("select key from tide.message_key").unwrap_err();
    assert_eq!(denied.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    let denied = sql.batch_execute("select tide.rotate_message_key()").unwrap_err();
    assert_eq!(denied.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    sql.batch_execute(
        "reset role;
         grant execute on function tide.send(text, text, jsonb, boolean) to backend;
         set role backend",
    )
    .unwrap();
    sql.batch_execute(&send(&channel, "granted")).unwrap();
    sql.batch_execute("reset role; drop owned by backend; drop role backend").unwrap();

    assert_eq!(names(&mut client, &topic, "granted"), ["granted"]);
}

#[test]
fn messages_of_64_megabytes_arrive() {
    let sizes = [
        PUBLIC,
        ("tide.max_message_size", "65MB"),
        ("tide.max_event_size", "66MB"),
        ("tide.send_queue_size", "128MB"),
        ("tide.history_size", "256MB"),
    ];
    let database = cluster().database_with("messages_large", &sizes);
    let mut client = listener(&database, ROOM);

    database
        .sql()
        .batch_execute(
            "begin;
             select tide.send('room', 'before', '{}', false);
             select tide.send('room', 'large',
                              jsonb_build_object('text', repeat('0123456789abcdef', 4 * 1024 * 1024)), false);
             select tide.send('room', 'after', '{}', false);
             commit",
        )
        .unwrap();

    assert_eq!(client.broadcast(ROOM)["event"], "before");
    let large = client.broadcast(ROOM);
    let text = large["payload"]["text"].as_str().unwrap();
    assert_eq!(text.len(), 64 << 20);
    assert!(text.as_bytes().chunks(16).all(|chunk| chunk == b"0123456789abcdef"));
    assert_eq!(client.broadcast(ROOM)["event"], "after");
}

/// What `tide.status()` counts.
fn forged(database: &Database<'_>) -> i64 {
    database.sql().query_one("select forged_messages from tide.status()", &[]).unwrap().get(0)
}

#[track_caller]
fn wait_for_forged(database: &Database<'_>, count: i64) {
    wait_until(&format!("{count} forged messages are counted"), || {
        (forged(database) == count).then_some(())
    });
}

/// A database of a forger's own, and what was sealed in it.
struct Forgery {
    database: Database<'static>,
    sql: postgres::Client,
}

impl Forgery {
    fn new(name: &str) -> Forgery {
        let database = cluster().database_with(name, &[PUBLIC]);
        let mut sql = database.sql();
        sql.batch_execute("create extension pg_walinspect; create table flushed ()").unwrap();
        Forgery { database, sql }
    }

    fn lsn(&mut self) -> String {
        self.sql.query_one("select pg_current_wal_insert_lsn()::text", &[]).unwrap().get(0)
    }

    /// The content of pg_tide's newest message in the WAL since then, which may be of the very
    /// transaction that goes on.
    fn captured(&mut self, since: &str) -> Vec<u8> {
        // Another session's commit has the WAL up to there flushed.
        self.database.sql().batch_execute("insert into flushed default values").unwrap();
        let select = format!(
            "select decode(replace(split_part(description, 'bytes): ', 2), ' ', ''), 'hex')
             from pg_get_wal_records_info('{since}', pg_current_wal_flush_lsn())
             where resource_manager = 'LogicalMessage' and description like '%prefix \"pg_tide\"%'
             order by start_lsn desc limit 1"
        );
        self.sql.query_one(&select, &[]).unwrap().get(0)
    }

    /// Emits a genuine message with its place changed to where it is emitted: all is right but the
    /// MAC.
    fn forge(&mut self, genuine: &[u8]) {
        let mut changed = genuine.to_vec();
        self.sql.batch_execute("begin").unwrap();
        let current = "select pg_current_xact_id()::text::bigint";
        let id: i64 = self.sql.query_one(current, &[]).unwrap().get(0);
        // After MAC, version and key.
        changed[41..49].copy_from_slice(&id.to_be_bytes());
        changed[49..53].copy_from_slice(&id.to_be_bytes()[4..]);
        self.emit(&changed);
        self.sql.batch_execute("commit").unwrap();
    }

    fn emit(&mut self, content: &[u8]) {
        let emit = "select pg_logical_emit_message(true, 'pg_tide', $1::bytea)";
        self.sql.query_one(emit, &[&content]).unwrap();
    }
}

#[test]
fn forged_messages_are_ignored_and_counted() {
    let mut forgery = Forgery::new("messages_forged");
    let mut client = listener(&forgery.database, ROOM);
    let since = forgery.lsn();
    forgery.sql.batch_execute(&send("room", "genuine")).unwrap();
    let genuine = forgery.captured(&since);

    forgery.emit(b"");
    forgery.emit(b"{\"channel\": \"room\"}");
    forgery.emit(&vec![0; 1 << 20]);
    forgery.forge(&genuine);
    let emit = "select pg_logical_emit_message(false, 'pg_tide', 'outside of any transaction')";
    forgery.sql.batch_execute(emit).unwrap();
    // Somebody else's prefix is somebody else's affair.
    forgery
        .sql
        .batch_execute("select pg_logical_emit_message(true, 'pg_tides', 'x'), pg_logical_emit_message(true, '', 'x')")
        .unwrap();
    forgery.sql.batch_execute(&send("room", "end")).unwrap();

    assert_eq!(names(&mut client, ROOM, "end"), ["genuine", "end"]);
    wait_for_forged(&forgery.database, 5);
    let metrics = crate::support::http::get(forgery.database.port, "/metrics").body;
    assert!(metrics.contains("\npg_tide_forged_messages_total 5\n"), "{metrics}");
}

#[test]
fn copies_of_a_message_are_ignored_and_counted() {
    let mut forgery = Forgery::new("messages_copied");
    let mut client = listener(&forgery.database, ROOM);

    // In another transaction.
    let since = forgery.lsn();
    forgery.sql.batch_execute(&send("room", "first")).unwrap();
    let first = forgery.captured(&since);
    forgery.emit(&first);
    // In the same one.
    let since = forgery.lsn();
    forgery.sql.batch_execute(&format!("begin; {}", send("room", "second"))).unwrap();
    let second = forgery.captured(&since);
    forgery.emit(&second);
    forgery.sql.batch_execute(&send("room", "third")).unwrap();
    forgery.emit(&second);
    forgery.sql.batch_execute("commit").unwrap();
    // In the same one, after the original was rolled back.
    let since = forgery.lsn();
    forgery
        .sql
        .batch_execute(&format!("begin; savepoint a; {}", send("room", "rolled back")))
        .unwrap();
    let rolled_back = forgery.captured(&since);
    forgery.sql.batch_execute("rollback to a").unwrap();
    forgery.emit(&rolled_back);
    forgery.sql.batch_execute("savepoint b").unwrap();
    forgery.emit(&rolled_back);
    forgery.sql.batch_execute(&format!("release b; {} commit", send("room", "end"))).unwrap();

    assert_eq!(names(&mut client, ROOM, "end"), ["first", "second", "third", "end"]);
    wait_for_forged(&forgery.database, 5);
}

#[test]
fn a_key_may_be_rotated_at_any_time() {
    let database = cluster().database_with("messages_rotated", &[PUBLIC]);
    let mut client = listener(&database, ROOM);
    database.sql().batch_execute(&send("room", "zero")).unwrap();
    let from = client.broadcast(ROOM)["meta"]["id"].clone();
    let mut sender = database.sql();
    let mut superuser = database.sql();
    let mut say = |name: &str| sender.batch_execute(&send("room", name)).unwrap();
    let mut rotate = || superuser.batch_execute("select tide.rotate_message_key()").unwrap();

    say("one");
    rotate();
    say("two");
    rotate();
    rotate();
    rotate();
    say("three");
    database
        .sql()
        .batch_execute(&format!(
            "begin; {} select tide.rotate_message_key(); {} savepoint a;
             select tide.rotate_message_key(); {} rollback to a; {} commit",
            send("room", "four"),
            send("room", "five"),
            send("room", "rolled back"),
            send("room", "six"),
        ))
        .unwrap();
    say("seven");

    let all = ["one", "two", "three", "four", "five", "six", "seven"];
    assert_eq!(names(&mut client, ROOM, "seven"), all);
    let keys: i64 =
        database.sql().query_one("select count(*) from tide.message_key", &[]).unwrap().get(0);
    assert_eq!(keys, 2);

    // And it is so again when all of it is decoded again, after most of its keys are gone.
    database.restart_worker();
    database.sql().batch_execute("vacuum full tide.message_key").unwrap();
    database.restart_worker();
    let mut client = database.client();
    client.join(ROOM, &json!({ "broadcast": { "since": from } }));
    assert_eq!(names(&mut client, ROOM, "seven"), all);
    assert_eq!(forged(&database), 0);
}

#[test]
fn a_message_from_before_two_rotations_counts_when_its_transaction_commits() {
    let database = cluster().database_with("messages_open", &[PUBLIC]);
    let mut client = listener(&database, ROOM);
    let mut slow = database.sql();

    slow.batch_execute(&format!("begin; {}", send("room", "slow"))).unwrap();
    let rotate = "select tide.rotate_message_key(), tide.rotate_message_key()";
    database.sql().batch_execute(rotate).unwrap();
    database.sql().batch_execute(&send("room", "quick")).unwrap();
    assert_eq!(client.broadcast(ROOM)["event"], "quick");
    slow.batch_execute("commit").unwrap();

    assert_eq!(client.broadcast(ROOM)["event"], "slow");
}

/// Names and positions.
fn heard(client: &mut Client, count: usize) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (0..count)
        .map(|_| client.broadcast(ROOM))
        .map(|message| (text(&message["event"]), text(&message["meta"]["id"])))
        .collect()
}

#[test]
fn positions_are_the_same_after_a_crash() {
    let cluster = Cluster::start();
    let database = cluster.database_with("messages_killed", &[PUBLIC]);
    let t = database.table("t", "id int primary key");
    let mut client = listener(&database, ROOM);
    for (id, name) in ["one", "two", "three"].iter().enumerate() {
        let (before, after) =
            (send("room", &format!("{name} a")), send("room", &format!("{name} b")));
        let steps = format!("begin; {before} insert into {t} values ({id}); {after} commit");
        database.sql().batch_execute(&steps).unwrap();
    }
    let before = heard(&mut client, 6);
    assert!(before.is_sorted_by_key(|(_, position)| position.clone()), "{before:?}");
    let since = json!({ "broadcast": { "since": before[0].1 } });

    let mut again = database.client();
    again.join(ROOM, &since);
    assert_eq!(heard(&mut again, 5), before[1..]);

    cluster.stop(Shutdown::Immediate);
    cluster.resume();
    database.wait_until_live();

    let mut again = database.client();
    again.join(ROOM, &since);
    assert_eq!(heard(&mut again, 5), before[1..]);
    let mut newest = database.client();
    newest.join(ROOM, &json!({ "broadcast": { "last": 2 } }));
    assert_eq!(heard(&mut newest, 2), before[4..]);
}

#[test]
fn a_mutation_id_stamps_all_events_of_its_transaction() {
    let database = database();
    let t = database.table("stamped", "id int primary key");
    let audit = database.table("audited", "id int primary key");
    let (channel, topic) = room();
    let mut sql = database.sql();
    sql.batch_execute(&format!(
        "create function {t}() returns trigger language plpgsql as $$
         begin
             insert into {audit} values (new.id);
             return null;
         end $$;
         create trigger audit after insert on {t} for each row execute function {t}()"
    ))
    .unwrap();
    let topics = [&t, &audit].map(|table| format!("realtime:tide:table:public.{table}"));
    let mut client = listener(database, &topic);
    for topic in &topics {
        client.join(topic, &json!({}));
    }
    let mut ids = |topic: &str| client.broadcast(topic)["meta"]["mutation_id"].clone();

    let insert = |id: i32| format!("insert into {t} values ({id}); {}", send(&channel, "said"));
    sql.batch_execute(&format!("begin; select tide.set_mutation_id('m\"1'); {} commit", insert(1)))
        .unwrap();
    sql.batch_execute(&format!("begin; {} commit", insert(2))).unwrap();
    sql.batch_execute(&format!(
        "begin; savepoint a; select tide.set_mutation_id('m2'); rollback to a; {} commit",
        insert(3)
    ))
    .unwrap();
    sql.batch_execute(&format!(
        "begin; savepoint a; select tide.set_mutation_id('m3'); release a; {} commit",
        insert(4)
    ))
    .unwrap();

    for id in [json!("m\"1"), Value::Null, Value::Null, json!("m3")] {
        for topic in [&topic, &topics[0], &topics[1]] {
            assert_eq!(ids(topic), id, "{topic}");
        }
    }
}

#[test]
fn a_mutation_id_must_come_first() {
    let t = database().table("late", "id int primary key");
    for before in [
        format!("insert into {t} values (1)"),
        "select tide.set_mutation_id('m1')".to_owned(),
        send("room", "a"),
    ] {
        let (code, _, hint) =
            refused(&format!("begin; {before}; select tide.set_mutation_id('m2')"));
        assert_eq!(code, SqlState::ACTIVE_SQL_TRANSACTION);
        assert!(hint.is_some_and(|hint| hint.contains("BEGIN")));
    }
    assert_eq!(refused("select tide.set_mutation_id(null)").0, SqlState::NULL_VALUE_NOT_ALLOWED);
    assert_eq!(refused("select tide.set_mutation_id(repeat('x', 256))").0.code(), "42622");
    // Reading first does no harm; nor is it only for superusers.
    database()
        .sql()
        .batch_execute(&format!(
            "set role authenticated; begin; select count(*) from {t}; select tide.set_mutation_id('m'); commit"
        ))
        .unwrap();
}
