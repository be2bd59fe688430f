//! The Supabase Realtime protocol, frame by frame.

use serde_json::{Value, json};

use crate::support::client::{Client, Closed};
use crate::support::{Cluster, Database, http};

fn database() -> &'static Database<'static> {
    static DATABASE: std::sync::LazyLock<Database<'static>> =
        std::sync::LazyLock::new(|| Cluster::shared().database("protocol"));
    &DATABASE
}

fn client_of(vsn: &str) -> Client {
    let token = database().token("authenticated");
    database().connect(&format!("apikey={token}&vsn={vsn}"))
}

fn bindings(bindings: Value) -> Value {
    json!({ "postgres_changes": bindings })
}

fn reason(reply: &Value) -> String {
    assert_eq!(reply["status"], "error", "{reply}");
    reply["response"]["reason"]
        .as_str()
        .unwrap_or_else(|| panic!("no reason in {reply}"))
        .to_owned()
}

#[test]
fn heartbeats_are_answered_in_both_versions() {
    for vsn in ["1.0.0", "2.0.0"] {
        let mut client = client_of(vsn);

        let reference = client.push("phoenix", "heartbeat", &json!({}));

        let frame = client.next();
        assert_eq!(frame.topic, "phoenix");
        assert_eq!(frame.event, "phx_reply");
        assert_eq!(frame.reference, Some(reference));
        assert_eq!(frame.payload, json!({ "status": "ok", "response": {} }));
        assert_eq!(frame.text.starts_with('['), vsn == "2.0.0", "{}", frame.text);
    }
}

#[test]
fn without_a_version_frames_are_objects() {
    let token = database().token("authenticated");
    let mut client = database().connect(&format!("apikey={token}"));

    client.push("phoenix", "heartbeat", &json!({}));

    assert!(client.next().text.starts_with('{'));
}

#[test]
fn a_join_is_answered_with_the_bindings_and_their_ids() {
    let t = database().table("joined", "id int primary key, a text");
    for vsn in ["1.0.0", "2.0.0"] {
        let mut client = client_of(vsn);
        let wanted = json!([
            { "event": "*", "schema": "public", "table": t, "filter": "id=eq.1" },
            { "event": "INSERT", "schema": "public", "table": t, "select": ["id"] },
            { "event": "*", "schema": "*" },
            { "event": "DELETE", "schema": "public" },
        ]);

        let reference = client.push(
            "realtime:room",
            "phx_join",
            &json!({ "config": bindings(wanted.clone()) }),
        );

        let reply = client.next();
        assert_eq!(reply.event, "phx_reply");
        assert_eq!(reply.reference, Some(reference));
        assert_eq!(reply.payload["status"], "ok");
        let echoed = reply.payload["response"]["postgres_changes"].as_array().unwrap();
        assert_eq!(echoed.len(), 4);
        for (echo, wanted) in echoed.iter().zip(wanted.as_array().unwrap()) {
            assert!(echo["id"].as_u64().unwrap() > 0, "{echo}");
            for (key, value) in wanted.as_object().unwrap() {
                assert_eq!(&echo[key], value, "{echo}");
            }
        }
        let system = client.wait_for("the system frame", |frame| frame.event == "system");
        assert_eq!(
            system.payload,
            json!({
                "message": "Subscribed to PostgreSQL", "status": "ok",
                "extension": "postgres_changes", "channel": "room",
            })
        );
    }
}

#[test]
fn equal_bindings_have_equal_ids() {
    let t = database().table("same", "id int primary key");
    let wanted = bindings(json!([{ "event": "*", "schema": "public", "table": t }]));

    let ids: Vec<Value> = (0..2)
        .map(|_| {
            database().client().join("realtime:room", &wanted)["postgres_changes"][0]["id"].clone()
        })
        .collect();

    assert_eq!(ids[0], ids[1]);
}

#[test]
fn a_channel_without_bindings_is_public_which_is_off_to_begin_with() {
    let reply = database().client().try_join("realtime:room", &bindings(json!([])));
    assert!(reason(&reply).starts_with("PrivateOnly"), "{reply}");

    let public =
        Cluster::shared().database_with("protocol_public", &[("tide.public_channels", "on")]);
    let response = public.client().join("realtime:room", &bindings(json!([])));
    assert_eq!(response["postgres_changes"], json!([]));
}

#[test]
fn one_frame_names_every_binding_that_it_is_for() {
    let t = database().table("several", "id int primary key, a text");
    let mut client = database().client();
    let response = client.join(
        "realtime:room",
        &bindings(json!([
            { "event": "*", "schema": "public", "table": t },
            { "event": "UPDATE", "schema": "public", "table": t },
            { "event": "INSERT", "schema": "public", "table": t, "filter": "id=gt.5" },
            { "event": "INSERT", "schema": "public", "table": t, "filter": "id=in.(1,2)" },
        ])),
    );
    client.wait_for("the system frame", |frame| frame.event == "system");
    let id = |index: usize| response["postgres_changes"][index]["id"].as_u64().unwrap();

    let statement = format!(
        "insert into {t} values (1, 'x'); update {t} set a = 'y'; insert into {t} values (9, 'z')"
    );
    database().sql().batch_execute(&statement).unwrap();

    let mut ids = || {
        let frame = client.wait_for("a change", |frame| frame.event == "postgres_changes");
        let mut ids: Vec<u64> = frame.payload["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap())
            .collect();
        ids.sort_unstable();
        ids
    };
    let sorted = |mut ids: Vec<u64>| {
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(), sorted(vec![id(0), id(3)]));
    assert_eq!(ids(), sorted(vec![id(0), id(1)]));
    assert_eq!(ids(), sorted(vec![id(0), id(2)]));
}

#[test]
fn every_operator_selects_as_sql_would() {
    let t = database().table(
        "operators",
        "id int primary key, n int, f float8, s text, b bool, d date, u uuid, a text[]",
    );
    let filters = [
        ("n=eq.2", "n = 2"),
        ("n=neq.2", "n <> 2"),
        ("n=lt.2", "n < 2"),
        ("n=lte.2", "n <= 2"),
        ("n=gt.2", "n > 2"),
        ("n=gte.2", "n >= 2"),
        ("n=in.(1,3)", "n in (1, 3)"),
        ("n=not.in.(1,3)", "n not in (1, 3)"),
        ("n=is.null", "n is null"),
        ("n=not.is.null", "n is not null"),
        ("b=is.true", "b is true"),
        ("b=is.false", "b is false"),
        ("b=not.is.true", "b is not true"),
        ("n=isdistinct.2", "n is distinct from 2"),
        ("f=gt.1.5", "f > 1.5"),
        ("f=eq.NaN", "f = 'NaN'"),
        ("s=eq.it's", "s = 'it''s'"),
        ("s=like.a%", "s like 'a%'"),
        ("s=ilike.A%", "s ilike 'A%'"),
        ("s=not.like.a%", "s not like 'a%'"),
        ("s=match.^a.c$", "s ~ '^a.c$'"),
        ("s=imatch.^A", "s ~* '^A'"),
        (r#"s=in.("x,y","q\"(")"#, r#"s in ('x,y', 'q"(')"#),
        (r#"s=eq."x,y""#, "s = 'x,y'"),
        ("n=gte.1,n=lt.3", "n >= 1 and n < 3"),
        ("s=like.a%,b=is.true", "s like 'a%' and b is true"),
        ("d=gte.2024-02-29", "d >= '2024-02-29'"),
        ("u=eq.A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "u = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ];
    let mut client = database().client();
    let wanted: Vec<Value> = filters
        .iter()
        .map(|(filter, _)| json!({ "event": "INSERT", "schema": "public", "table": t, "filter": filter }))
        .chain([json!({ "event": "INSERT", "schema": "public", "table": t })])
        .collect();
    let response = client.join("realtime:room", &bindings(json!(wanted)));
    let system = client.wait_for("the system frame", |frame| frame.event == "system");
    assert_eq!(system.payload["status"], "ok", "{}", system.text);

    let mut sql = database().sql();
    sql.batch_execute(&format!(
        r#"insert into {t} values
           (1, 1, 1.0, 'abc', true, '2024-02-28', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{{}}'),
           (2, 2, 2.5, 'ABC', false, '2024-02-29', null, null),
           (3, 3, 'NaN', 'it''s', null, 'infinity', null, null),
           (4, null, null, null, null, null, null, null),
           (5, -7, '-Infinity', 'x,y', true, '-infinity', null, null),
           (6, 2147483647, 1.5, 'q"(', true, null, null, null),
           (7, 0, 0, E'a\nc', true, null, null, null),
           (8, 0, 0, 'a%', true, null, null, null)"#
    ))
    .unwrap();

    let mut got: Vec<Vec<i64>> = vec![Vec::new(); filters.len()];
    for _ in 0..8 {
        let frame = client.wait_for("a change", |frame| frame.event == "postgres_changes");
        let id = frame.payload["data"]["record"]["id"].as_i64().unwrap();
        for (index, rows) in got.iter_mut().enumerate() {
            let binding = &response["postgres_changes"][index]["id"];
            if frame.payload["ids"].as_array().unwrap().contains(binding) {
                rows.push(id);
            }
        }
    }
    for ((filter, condition), rows) in filters.iter().zip(got) {
        let statement = format!("select id::bigint from {t} where {condition} order by id");
        let expected: Vec<i64> =
            sql.query(&statement, &[]).unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(rows, expected, "{filter}");
    }
}

#[test]
fn deletions_are_filtered_by_what_is_known_of_the_old_row() {
    let t = database().table("deleted", "id int primary key, n int");
    let mut client = database().client();
    client.subscribe_to(
        "key",
        json!({ "event": "DELETE", "schema": "public", "table": t, "filter": "id=eq.2" }),
    );
    client.subscribe_to(
        "n",
        json!({ "event": "DELETE", "schema": "public", "table": t, "filter": "n=eq.1" }),
    );

    database()
        .sql()
        .batch_execute(&format!(
            "insert into {t} values (1, 1), (2, 1), (3, 1);
             delete from {t} where id < 3;
             alter table {t} replica identity full;
             delete from {t}"
        ))
        .unwrap();

    let frame = client.wait_for("a change", |frame| frame.event == "postgres_changes");
    assert_eq!(
        (frame.topic.as_str(), &frame.payload["data"]["old_record"]["id"]),
        ("realtime:key", &json!(2))
    );
    let frame = client.wait_for("a change", |frame| frame.event == "postgres_changes");
    assert_eq!(
        (frame.topic.as_str(), &frame.payload["data"]["old_record"]["id"]),
        ("realtime:n", &json!(3))
    );
}

#[test]
fn selected_columns_are_sent_with_the_key() {
    let t = database().table("selected", "id int primary key, a text, b text");
    let mut client = database().client();
    client.subscribe_to(
        "room",
        json!({ "event": "*", "schema": "public", "table": t, "select": ["b"] }),
    );

    database().sql().batch_execute(&format!("insert into {t} values (1, 'x', 'y')")).unwrap();

    let change = client.change();
    assert_eq!(change["record"], json!({ "id": 1, "b": "y" }));
    let names: Vec<&Value> =
        change["columns"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!(names, ["id", "b"]);
}

#[test]
fn what_cannot_be_subscribed_is_told_by_a_system_frame_and_missing_looks_like_forbidden() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create table forbidden (id int primary key); select tide.publish('forbidden')",
    )
    .unwrap();
    let message = |table: &str| {
        let mut client = database().client();
        client.join(
            "realtime:room",
            &bindings(json!([{ "event": "*", "schema": "public", "table": table }])),
        );
        let system = client.wait_for("the system frame", |frame| frame.event == "system");
        assert_eq!(system.payload["status"], "error", "{}", system.text);
        assert_eq!(system.payload["extension"], "postgres_changes");
        assert_eq!(system.payload["channel"], "room");
        system.text
    };

    let forbidden = message("forbidden");
    let missing = message("missings_");

    assert!(
        forbidden.contains("Unable to subscribe to changes with given parameters"),
        "{forbidden}"
    );
    assert_eq!(forbidden.replace("forbidden", "missings_"), missing);
}

#[test]
fn with_wait_a_failed_subscription_is_a_join_error() {
    let mut client = database().client();

    let reply = client.try_join(
        "realtime:room",
        &json!({
            "postgres_changes": [{ "event": "*", "schema": "public", "table": "no_such_table" }],
            "postgres_changes_options": { "wait": true },
        }),
    );

    assert!(reason(&reply).contains("Unable to subscribe"), "{reply}");
}

#[test]
fn filters_that_make_no_sense_are_refused() {
    let t = database().table("refused", "id int primary key, s text, n int");
    for filter in [
        "no_such_column=eq.1",
        "id=eq.text",
        "id=xx.1",
        "id",
        "id=eq",
        "=eq.1",
        "id=in.(1,x)",
        "n=like.1%",
        "s=match.(",
        "n=is.true",
        "n=eq.99999999999999999999",
    ] {
        let mut client = database().client();
        client.join(
            "realtime:room",
            &bindings(json!([{ "event": "*", "schema": "public", "table": t, "filter": filter }])),
        );

        let system = client.wait_for("the system frame", |frame| frame.event == "system");

        assert_eq!(system.payload["status"], "error", "{filter}: {}", system.text);
    }
}

#[test]
fn a_channel_can_be_left_and_hears_nothing_afterwards() {
    let t = database().table("left", "id int primary key");
    let mut client = database().client();
    client.subscribe("gone", &t);
    client.subscribe("kept", &t);

    let reply = client.call("realtime:gone", "phx_leave", &json!({}));
    assert_eq!(reply, json!({ "status": "ok", "response": {} }));
    let close = client.wait_for("the end of the channel", |frame| frame.event == "phx_close");
    assert_eq!(close.topic, "realtime:gone");

    database().sql().batch_execute(&format!("insert into {t} values (1)")).unwrap();
    let frame = client.wait_for("the change", |frame| frame.event == "postgres_changes");
    assert_eq!(frame.topic, "realtime:kept");
}

#[test]
fn a_second_join_of_a_topic_closes_the_first() {
    let t = database().table("twice", "id int primary key");
    let mut client = database().client();
    let config =
        json!({ "config": bindings(json!([{ "event": "*", "schema": "public", "table": t }])) });
    let first = client.push("realtime:room", "phx_join", &config);
    assert_eq!(client.reply(&first)["status"], "ok");

    let second = client.push("realtime:room", "phx_join", &config);

    let close = client.wait_for("the end of the first", |frame| frame.event == "phx_close");
    assert_eq!(close.join_ref.or(close.reference), Some(first));
    assert_eq!(client.reply(&second)["status"], "ok");
    database().sql().batch_execute(&format!("insert into {t} values (1), (2)")).unwrap();
    let ids: Vec<Value> =
        client.changes(2).iter().map(|change| change["record"]["id"].clone()).collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn a_push_to_an_unjoined_topic_is_refused() {
    let mut client = database().client();

    let reply = client.call("realtime:nowhere", "access_token", &json!({ "access_token": "x" }));

    assert_eq!(reason(&reply), "unmatched topic");
}

#[test]
fn topics_without_a_name_are_refused() {
    let mut client = database().client();
    assert!(reason(&client.try_join("realtime:", &json!({}))).starts_with("TopicNameRequired"));
    assert_eq!(client.try_join("other:topic", &json!({}))["status"], "error");
}

#[test]
fn broadcasts_and_presence_are_refused_on_a_channel_for_changes_alone() {
    let t = database().table("pushed", "id int primary key");
    let mut client = database().client();
    client.join(
        "realtime:room",
        &json!({
            "broadcast": { "ack": true },
            "postgres_changes": [{ "event": "*", "schema": "public", "table": t }],
        }),
    );
    for (event, payload) in [
        ("broadcast", json!({ "type": "broadcast", "event": "e", "payload": {} })),
        ("presence", json!({ "type": "presence", "event": "track", "payload": {} })),
        ("no_such_event", json!({})),
    ] {
        let reply = client.call("realtime:room", event, &payload);
        assert_eq!(reply["status"], "error", "{event}: {reply}");
    }
    database().sql().batch_execute(&format!("insert into {t} values (1)")).unwrap();
    assert_eq!(client.change()["record"]["id"], 1);
}

#[test]
fn the_old_topic_style_is_spoken() {
    let t = database().table("old_style", "id int primary key, n int");
    let token = database().token("authenticated");
    let mut client = database().connect(&format!("apikey={token}&vsn=1.0.0"));
    let topic = format!("realtime:public:{t}:n=eq.2");
    let reference = client.push(&topic, "phx_join", &json!({ "user_token": token }));
    assert_eq!(client.reply(&reference)["status"], "ok");
    let everything = client.push(&format!("realtime:public:{t}"), "phx_join", &json!({}));
    assert_eq!(client.reply(&everything)["status"], "ok");

    database()
        .sql()
        .batch_execute(&format!(
            "insert into {t} values (1, 1); update {t} set n = 2; delete from {t}"
        ))
        .unwrap();

    let filtered = client
        .wait_for("the filtered change", |frame| frame.topic == topic && frame.event == "UPDATE");
    assert_eq!(filtered.payload["record"], json!({ "id": 1, "n": 2 }));
    assert_eq!(filtered.payload["type"], "UPDATE");
    assert_eq!(filtered.reference, None);
    for event in ["INSERT", "UPDATE", "DELETE"] {
        let frame = client.wait_for(event, |frame| frame.event == event);
        assert_eq!(frame.payload["table"], json!(t));
    }
}

#[test]
fn tide_table_topics_carry_positions() {
    let t = database().table("positions", "id int primary key, a text, b text");
    let topic = format!("realtime:tide:table:public.{t}");
    let mut client = database().client();
    client.join(
        &topic,
        &json!({ "broadcast": { "filter": "a=eq.x", "select": ["id", "a"], "events": ["INSERT", "DELETE"] } }),
    );

    database()
        .sql()
        .batch_execute(&format!(
            "alter table {t} replica identity full;
             insert into {t} values (1, 'x', 'b'), (2, 'y', 'b');
             update {t} set b = 'c'; delete from {t}"
        ))
        .unwrap();

    let insert = client.broadcast(&topic);
    assert_eq!(insert["event"], "INSERT");
    assert_eq!(insert["payload"]["table"], json!(t));
    assert_eq!(insert["payload"]["operation"], "INSERT");
    assert_eq!(insert["payload"]["record"], json!({ "id": 1, "a": "x" }));
    let delete = client.broadcast(&topic);
    assert_eq!(delete["event"], "DELETE");
    let position = |payload: &Value| payload["meta"]["id"].as_str().unwrap().to_owned();
    assert!(position(&insert) < position(&delete));
    assert_eq!(position(&insert).len(), position(&delete).len());
}

#[test]
fn a_table_topic_for_what_may_not_be_read_is_a_join_error() {
    let reply =
        database().client().try_join("realtime:tide:table:public.no_such_table", &json!({}));

    assert_eq!(reply["status"], "error");
}

#[test]
fn a_resumed_table_topic_starts_after_the_last_event_seen() {
    let t = database().table("resumed", "id int primary key");
    let topic = format!("realtime:tide:table:public.{t}");
    let mut sql = database().sql();
    let mut first = database().client();
    first.join(&topic, &json!({}));
    sql.batch_execute(&format!("insert into {t} select generate_series(1, 10)")).unwrap();
    let seen: Vec<Value> = (0..4).map(|_| first.broadcast(&topic)).collect();
    drop(first);
    sql.batch_execute(&format!("insert into {t} select generate_series(11, 12)")).unwrap();

    let mut second = database().client();
    second.join(&topic, &json!({ "broadcast": { "since": seen[3]["meta"]["id"] } }));

    let ids: Vec<Value> =
        (0..8).map(|_| second.broadcast(&topic)["payload"]["record"]["id"].clone()).collect();
    assert_eq!(ids, (5..=12).collect::<Vec<_>>());
}

#[test]
fn garbage_ends_one_connection_and_no_other() {
    let t = database().table("garbage", "id int primary key");
    let mut good = database().client();
    good.subscribe("room", &t);
    let deep = format!(
        r#"[null,"1","realtime:x","phx_join",{}{}]"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let texts: [&str; 12] = [
        "",
        "x",
        "[]",
        "{}",
        "null",
        "[null,null,null,null,null]",
        r#"["1","1","t","e"]"#,
        r#"{"topic":1,"event":2}"#,
        &deep,
        "\u{0}",
        r#"[null,"1","phoenix","heartbeat""#,
        "[[[[[[",
    ];
    for text in texts {
        database().client().send_text_if_open(text);
    }
    for bytes in
        [&[][..], &[3], &[3, 255, 255, 255, 255, 255, 255], &[4, 0, 0], &[0; 100], &[255; 300]]
    {
        database().client().send_binary(bytes);
    }
    let mut raw = database().client();
    raw.send_raw(&[0xff; 64]);
    assert!(matches!(raw.wait_until_closed(), Closed(_)));

    database().sql().batch_execute(&format!("insert into {t} values (1)")).unwrap();
    assert_eq!(good.change()["record"]["id"], 1);
}

#[test]
fn an_oversized_message_ends_its_connection() {
    let small =
        Cluster::shared().database_with("protocol_small", &[("tide.max_message_size", "64kB")]);
    let mut client = small.client();

    client.send_text_if_open(&format!(
        r#"[null,"1","phoenix","heartbeat",{{"pad":"{}"}}]"#,
        "x".repeat(200_000)
    ));

    client.wait_until_closed();
}

#[test]
fn limits_are_told_by_the_protocols_own_errors() {
    let limited = Cluster::shared().database_with(
        "protocol_limited",
        &[
            ("tide.max_connections", "2"),
            ("tide.max_channels_per_connection", "2"),
            ("tide.public_channels", "on"),
        ],
    );
    let mut client = limited.client();
    client.join("realtime:a", &json!({}));
    client.join("realtime:b", &json!({}));

    assert!(
        reason(&client.try_join("realtime:c", &json!({}))).starts_with("ChannelRateLimitReached")
    );
    client.call("realtime:a", "phx_leave", &json!({}));
    client.join("realtime:c", &json!({}));

    let _second = limited.client();
    let token = limited.token("authenticated");
    let refusal = limited.try_connect(&format!("apikey={token}")).unwrap_err();
    assert_eq!(refusal.status, 429);
    assert_eq!(refusal.body, r#"{"error":"Too many connected users"}"#);
}

#[test]
fn too_many_joins_a_second_end_the_connection() {
    let limited = Cluster::shared().database_with("protocol_rate", &[("tide.join_rate", "5")]);
    let mut client = limited.client();

    for room in 0..200 {
        client.send_text_if_open(&format!(
            r#"["{room}","{room}","realtime:room{room}","phx_join",{{"config":{{}}}}]"#
        ));
    }

    client.wait_until_closed();
    assert!(
        client
            .passed("phx_reply")
            .iter()
            .any(|frame| frame.text.contains("ClientJoinRateLimitReached")),
        "no reply named the limit"
    );
}

#[test]
fn health_and_metrics_are_served() {
    let health = http::get(database().port, "/health");
    assert_eq!(health.status, 200);
    assert!(health.body.contains("ok"), "{}", health.body);

    let metrics = http::get(database().port, "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("# TYPE pg_tide_"), "{}", metrics.body);
}

#[test]
fn unknown_paths_are_not_found() {
    for path in ["/nothing", "//", "/../", "/%2e%2e/", "/realtime/v1/websocket/../..", "/?x=/"] {
        let status = http::get(database().port, path).status;
        assert!(status == 404 || (path == "/?x=/" && status == 200), "{path}: {status}");
    }
}
