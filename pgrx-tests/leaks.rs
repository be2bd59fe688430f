//! What nobody learns who may not see a row, a column or a table: not from what is sent, and not
//! from what is said about it.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::client::{Client, Frame};
use crate::support::{Cluster, Database, http, wait_until};

const ALICE: &str = "00000000-0000-0000-0000-00000000000a";
const BOB: &str = "00000000-0000-0000-0000-00000000000b";

/// In rows and columns that the subscriber must hear nothing of.
const HIDDEN: &str = "kept-from-view";

/// A cluster of its own: its log is looked at, and its log has a lot in it.
fn database() -> &'static Database<'static> {
    static CLUSTER: LazyLock<Cluster> =
        LazyLock::new(|| Cluster::with("log_min_messages = debug1\nlog_error_verbosity = verbose"));
    static DATABASE: LazyLock<Database<'static>> = LazyLock::new(|| {
        let database = CLUSTER.database("leaks");
        database
            .sql()
            .batch_execute(
                "create schema auth;
                 grant usage on schema auth to public;
                 create function auth.uid() returns uuid language sql stable as $$
                     select (current_setting('request.jwt.claims', true)::jsonb ->> 'sub')::uuid $$",
            )
            .unwrap();
        database
    });
    &DATABASE
}

fn run(statements: &str) {
    database().sql().batch_execute(statements).unwrap();
}

/// A published table of rows that belong to somebody, who alone sees them.
fn owned_rows(stem: &str) -> String {
    let t = database().table(stem, "id int primary key, owner uuid, body text");
    run(&format!(
        "alter table {t} replica identity full;
         alter table {t} enable row level security;
         create policy own on {t} using (owner = auth.uid())"
    ));
    t
}

fn user(sub: &str) -> Client {
    let claims = json!({ "sub": sub }).to_string();
    let token = database().token_with("authenticated", &claims, "1 hour");
    database().connect(&format!("apikey={token}&vsn=2.0.0"))
}

/// A table's own topic.
fn topic(table: &str) -> String {
    format!("realtime:tide:table:public.{table}")
}

fn is_change_of(frame: &Frame, id: i32) -> bool {
    let payload = &frame.payload;
    [&payload["data"]["record"], &payload["payload"]["record"]].iter().any(|row| row["id"] == id)
}

/// Everything that a client gets up to the row with this id, as text.
fn texts_until(client: &mut Client, id: i32) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let frame = client.next();
        texts.push(frame.text.clone());
        if is_change_of(&frame, id) {
            return texts;
        }
    }
}

#[track_caller]
fn assert_silent_about(texts: &[String], words: &[&str]) {
    for text in texts {
        for word in words {
            assert!(!text.contains(word), "{word:?} is in {text}");
        }
    }
}

#[test]
fn a_policy_that_fails_says_nothing_of_the_row_it_failed_on() {
    let t = database().table("failing", "id int primary key, body text");
    run(&format!(
        "create function {t}_opinion(body text) returns boolean language plpgsql stable as $$
         begin
             if body = '{HIDDEN}' then raise exception 'no: %', body using detail = body, hint = body; end if;
             return true;
         end $$;
         alter table {t} enable row level security;
         create policy opinion on {t} using ({t}_opinion(body))"
    ));
    let mut alice = user(ALICE);
    alice.subscribe("room", &t);
    alice.join(&topic(&t), &json!({}));
    let since = database().cluster.log().len();

    run(&format!("insert into {t} values (740074007, '{HIDDEN}'), (740074008, '{HIDDEN}')"));
    run(&format!("insert into {t} values (1, 'open')"));

    // On both topics, before and after one another.
    let mut texts = texts_until(&mut alice, 1);
    texts.extend(texts_until(&mut alice, 1));
    assert_silent_about(&texts, &[HIDDEN, "740074007", "740074008"]);
    assert!(texts.iter().any(|text| text.contains("tide.policy")), "nobody was told: {texts:#?}");
    let log = database().cluster.log()[since..].to_owned();
    let told: Vec<String> =
        log.lines().filter(|line| !line.contains("insert into")).map(str::to_owned).collect();
    assert_silent_about(&told, &[HIDDEN]);
}

#[test]
fn an_event_that_cannot_be_decoded_is_told_to_those_only_who_may_read_the_table() {
    // An output function that fails on one value: enum_out does on an oid that is no label.
    run("create type l_broken;
         create function l_broken_in(cstring) returns l_broken
             language internal strict immutable as 'oidin';
         create function l_broken_out(l_broken) returns cstring
             language internal strict immutable as 'enum_out';
         create type l_broken (input = l_broken_in, output = l_broken_out, like = oid)");
    let columns = "id int primary key, v l_broken";
    let (closed, guarded) = (database().fresh_name("closed"), database().table("guarded", columns));
    run(&format!(
        "create table {closed} ({columns}); select tide.publish('{closed}');
         alter table {guarded} enable row level security;
         create policy nobody on {guarded} using (false)"
    ));
    let open = database().table("open", "id int primary key");
    let mut alice = user(ALICE);
    alice.subscribe_to("room", json!({ "event": "*", "schema": "public" }));
    alice.join("realtime:tide:table:public.*", &json!({}));

    run(&format!("insert into {closed} values (1, '1'); insert into {guarded} values (1, '1')"));
    run(&format!("insert into {open} values (1)"));

    let mut texts = Vec::new();
    while texts.iter().filter(|text: &&String| text.contains(&open)).count() < 2 {
        texts.push(alice.next().text);
    }
    assert_silent_about(&texts, &[&closed, &guarded, "could not be decoded"]);
}

#[test]
fn positions_lead_from_what_was_seen_to_what_was_seen() {
    let t = owned_rows("counted");
    let mut alice = user(ALICE);
    alice.join(&topic(&t), &json!({}));

    for id in [1, 10] {
        run(&format!("insert into {t} values ({id}, '{ALICE}')"));
        run(&format!("insert into {t} select {id} + n, '{BOB}' from generate_series(1, 5) n"));
    }
    run(&format!("insert into {t} values (20, '{ALICE}')"));

    let metas: Vec<Value> = (0..3).map(|_| alice.broadcast(&topic(&t))["meta"].clone()).collect();
    // Where it is given.
    for pair in metas.windows(2) {
        let prev = &pair[1]["prev"];
        assert!(prev.is_null() || *prev == pair[0]["id"], "{metas:?}");
    }
}

#[test]
fn missing_and_forbidden_tables_are_refused_with_the_same_bytes() {
    let forbidden = database().fresh_name("forbidden");
    let unpublished = forbidden.replace("forbidden", "unpublish");
    let missing = forbidden.replace("forbidden", "notatable");
    run(&format!(
        "create table {forbidden} (id int primary key); select tide.publish('{forbidden}');
         create table {unpublished} (id int primary key);
         grant select on {unpublished} to authenticated"
    ));
    let answers = |table: &str| -> Vec<String> {
        let mut client = user(ALICE);
        let binding = json!({ "event": "*", "schema": "public", "table": table });
        let waiting = json!({
            "postgres_changes": [binding],
            "postgres_changes_options": { "wait": true },
        });
        let mut answer = |topic: &str, config: &Value, event: &str| {
            client.push(topic, "phx_join", &json!({ "config": config }));
            let frame =
                client.wait_for(event, |frame| frame.topic == topic && frame.event == event);
            // Ids of bindings are made of the names.
            let mut text = frame.text.replace(table, "TABLE");
            if let Some(id) = frame.payload["response"]["postgres_changes"][0]["id"].as_u64() {
                text = text.replace(&id.to_string(), "ID");
            }
            text
        };
        vec![
            answer("realtime:a", &json!({ "postgres_changes": [binding] }), "system"),
            answer("realtime:b", &waiting, "phx_reply"),
            answer(&topic(table), &json!({}), "phx_reply"),
            answer(&format!("realtime:public:{table}"), &json!({}), "phx_reply"),
        ]
    };

    let expected = answers(&missing);
    assert_eq!(answers(&forbidden), expected);
    assert_eq!(answers(&unpublished), expected);
}

#[test]
fn hidden_and_missing_columns_are_refused_with_the_same_bytes() {
    let t = database().fresh_name("half_open");
    run(&format!(
        "create table {t} (id int primary key, hidden text, open text);
         grant select (id, open) on {t} to authenticated;
         select tide.publish('{t}')"
    ));
    let answers = |column: &str| -> Vec<String> {
        let filter = format!("{column}=eq.{HIDDEN}");
        let mut texts = Vec::new();
        for (name, options) in [("filter", json!(filter)), ("select", json!(["id", column]))] {
            let mut client = user(ALICE);
            let mut binding = json!({ "event": "*", "schema": "public", "table": t });
            binding[name] = options.clone();
            client.join("realtime:room", &json!({ "postgres_changes": [binding] }));
            texts.push(client.wait_for("an answer", |frame| frame.event == "system").text);
            let config = json!({ "broadcast": { name: options } });
            let reference = client.push(&topic(&t), "phx_join", &json!({ "config": config }));
            let reply = client.wait_for("a reply", |frame| {
                frame.reference.as_ref() == Some(&reference) && frame.topic == topic(&t)
            });
            assert_eq!(reply.payload["status"], "error", "{}", reply.text);
            texts.push(reply.text);
        }
        texts.iter().map(|text| text.replace(column, "COLUMN")).collect()
    };

    assert_eq!(answers("hidden"), answers("nosuch"));
}

#[test]
fn the_old_row_is_cut_to_what_could_be_seen_of_it() {
    let t = owned_rows("past");
    run(&format!(
        "revoke select on {t} from authenticated; grant select (id, owner) on {t} to authenticated"
    ));
    let (mut alice, mut bob) = (user(ALICE), user(BOB));
    for client in [&mut alice, &mut bob] {
        client.subscribe("room", &t);
        client.join(&topic(&t), &json!({}));
    }

    run(&format!(
        "insert into {t} values (740074007, '{BOB}', '{HIDDEN}');
         update {t} set id = 1, owner = '{ALICE}';
         update {t} set body = '{HIDDEN} too';
         update {t} set owner = '{BOB}', id = 740074008"
    ));
    run(&format!("insert into {t} values (2, '{ALICE}'), (3, '{BOB}')"));

    // What was Bob's before, and what it is afterwards, is not hers to know.
    let mut texts = texts_until(&mut alice, 2);
    texts.extend(texts_until(&mut alice, 2));
    assert_silent_about(&texts, &[HIDDEN, BOB, "740074007", "740074008"]);
    assert_eq!(texts.iter().filter(|text| text.contains("UPDATE")).count(), 2, "{texts:#?}");
    let mut texts = texts_until(&mut bob, 3);
    texts.extend(texts_until(&mut bob, 3));
    assert_silent_about(&texts, &[HIDDEN, ALICE]);
}

#[test]
fn recent_events_of_a_table_are_hidden_from_who_is_bound_by_its_policies() {
    let t = owned_rows("recent");
    let (owner, reader) = (format!("{t}_owner"), format!("{t}_reader"));
    run(&format!(
        "create role {owner} login; create role {reader} login in role authenticated;
         alter table {t} owner to {owner};
         insert into {t} values (1, '{BOB}', '{HIDDEN}')"
    ));
    let seen = |user: &str| -> i64 {
        let mut sql = database().cluster.try_connect(&database().name, user).unwrap();
        // Changes of the table itself are events, too.
        let query =
            "select count(*) from tide.recent(10000) where \"table\" = $1 and operation = 'INSERT'";
        sql.query_one(query, &[&t]).unwrap().get(0)
    };
    wait_until("the row is decoded", || (seen("postgres") == 1).then_some(()));

    assert_eq!(seen(&reader), 0);
    assert_eq!(seen(&owner), 1);
    run(&format!("alter table {t} force row level security"));
    assert_eq!(seen(&owner), 0);
}

#[test]
fn metrics_and_health_name_no_table_role_topic_or_value() {
    let t = owned_rows("measured");
    let mut alice = user(ALICE);
    alice.subscribe("room-of-alice", &t);
    run(&format!("insert into {t} values (1, '{BOB}', '{HIDDEN}'), (2, '{ALICE}', '{HIDDEN}')"));
    alice.change();

    let bodies: Vec<String> =
        ["/metrics", "/health"].map(|path| http::get(database().port, path).body).to_vec();

    assert!(bodies[0].contains("tide_"), "{}", bodies[0]);
    let words = [HIDDEN, ALICE, BOB, t.as_str(), "authenticated", "room-of-alice"];
    assert_silent_about(&bodies, &words);
}

#[test]
fn the_log_has_no_values_claims_or_tokens() {
    const CLAIM: &str = "claimed-in-confidence";
    let t = owned_rows("logged");
    run(&format!(
        "create function {t}_wants(owner uuid, body text) returns boolean language sql stable as $$
             select body::int = 1 or current_setting('request.jwt.claims', true)::jsonb ->> 'x' = '1' $$;
         create policy casting on {t} using ({t}_wants(owner, body))"
    ));
    let claims = json!({ "sub": ALICE, "secret": CLAIM }).to_string();
    let token = database().token_with("authenticated", &claims, "1 hour");
    let since = database().cluster.log().len();
    let mut client = database().connect(&format!("apikey={token}&vsn=2.0.0"));
    client.subscribe("room", &t);
    client.join(
        "realtime:filtered",
        &json!({ "postgres_changes": [{
            "event": "*", "schema": "public", "table": t, "filter": format!("id=eq.{HIDDEN}"),
        }] }),
    );
    client.push("realtime:room", "access_token", &json!({ "access_token": format!("{token}x") }));
    client.wait_for("the end of the channel", |frame| frame.event == "phx_close");
    client.subscribe("room2", &t);

    run(&format!("insert into {t} values (1, '{BOB}', '{HIDDEN}')"));
    run(&format!("insert into {t} values (2, '{ALICE}', '1')"));
    texts_until(&mut client, 2);

    let log = database().cluster.log()[since..].to_owned();
    let lines: Vec<String> = log.lines().map(str::to_owned).collect();
    let signature = token.rsplit('.').next().unwrap();
    assert_silent_about(&lines, &[HIDDEN, CLAIM, ALICE, BOB, signature]);
}

#[test]
fn the_key_of_a_deleted_row_reaches_those_only_who_could_see_the_row() {
    let t = owned_rows("deleted");
    let (mut alice, mut bob) = (user(ALICE), user(BOB));
    for client in [&mut alice, &mut bob] {
        client.subscribe("room", &t);
        client.join(&topic(&t), &json!({}));
    }

    run(&format!("insert into {t} values (740074007, '{BOB}'); delete from {t}"));
    // With the key alone nobody can tell whose row it was.
    run(&format!("alter table {t} replica identity default"));
    run(&format!("insert into {t} values (740074008, '{BOB}'); delete from {t}"));
    run(&format!("insert into {t} values (1, '{ALICE}'), (2, '{BOB}')"));

    let mut texts = texts_until(&mut alice, 1);
    texts.extend(texts_until(&mut alice, 1));
    assert_silent_about(&texts, &["740074007", "740074008", "DELETE"]);
    let mut texts = texts_until(&mut bob, 2);
    texts.extend(texts_until(&mut bob, 2));
    let told =
        |id: &str| texts.iter().filter(|text| text.contains("DELETE") && text.contains(id)).count();
    assert_eq!((told("740074007"), told("740074008")), (2, 0), "{texts:#?}");
}

#[test]
fn the_past_is_cut_to_what_may_be_seen_today() {
    let t = owned_rows("history");
    let start: String =
        database().sql().query_one("select tide.current_position()", &[]).unwrap().get(0);
    run(&format!(
        "insert into {t} values (1, '{ALICE}', '{HIDDEN}'), (740074007, '{BOB}', '{HIDDEN}'), (2, '{ALICE}', '');
         revoke select on {t} from authenticated;
         grant select (id, owner) on {t} to authenticated"
    ));
    for options in [json!({ "since": start }), json!({ "last": 50 })] {
        let mut alice = user(ALICE);
        alice.join(&topic(&t), &json!({ "broadcast": options }));
        let texts = texts_until(&mut alice, 2);
        assert!(texts.iter().any(|text| text.contains("INSERT")), "{texts:#?}");
        assert_silent_about(&texts, &[HIDDEN, BOB, "740074007"]);
        assert_eq!(texts.iter().filter(|text| text.contains("INSERT")).count(), 2, "{options}");
    }

    // Under another policy the same past is another.
    run(&format!("alter policy own on {t} using (owner = auth.uid() and id > 1)"));
    let mut alice = user(ALICE);
    alice.join(&topic(&t), &json!({ "broadcast": { "since": start } }));
    let texts = texts_until(&mut alice, 2);
    assert_eq!(texts.iter().filter(|text| text.contains("INSERT")).count(), 1, "{texts:#?}");
}
