//! Joining channels, and what arrives on them.

use serde_json::{Value, json};
use tide_feed::catalog::{Policy, RowSecurity};
use tide_feed::config::Config;

use super::world::{TABLE, World, config, table};

fn changes(list: Value) -> Value {
    json!({"postgres_changes": list})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_of_a_table_gets_its_rows() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let wanted = json!({"event": "INSERT", "schema": "public", "table": "t", "filter": "id=gt.1"});

    client.join("1", "realtime:a", changes(json!([wanted]))).await;
    let reply = client.next().await;
    let system = client.next().await;
    world.insert(1000, 1, "no");
    world.insert(1010, 2, "yes");
    let event = client.next().await;

    let id = reply[4]["response"]["postgres_changes"][0]["id"].clone();
    assert!(id.as_u64().unwrap() > 0);
    let position = "00000007000001.0000000000000063ffffffff";
    let mut echoed = wanted.clone();
    echoed["id"] = id.clone();
    assert_eq!(
        reply,
        json!(["1", "1", "realtime:a", "phx_reply",
            {"status": "ok", "response": {"postgres_changes": [echoed], "position": position}}])
    );
    assert_eq!(
        system,
        json!(["1", null, "realtime:a", "system", {"message": "Subscribed to PostgreSQL",
            "status": "ok", "extension": "postgres_changes", "channel": "a"}])
    );
    assert_eq!(event[3], "postgres_changes");
    assert_eq!(event[4]["ids"], json!([id]));
    assert_eq!(event[4]["data"]["record"], json!({"id": 2, "note": "yes"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_cannot_be_had_is_told_after_the_reply() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let lists = [
        json!([{"event": "*", "schema": "public", "table": "secret"}]),
        json!([{"event": "*", "schema": "public", "table": "t", "filter": "no_column=eq.1"}]),
        json!([{"event": "*", "schema": "public", "table": "t", "filter": "id=eq.x"}]),
        json!([{"event": "*", "schema": "public", "table": "t", "filter": "id"}]),
        json!([{"event": "*", "schema": "public", "table": "t", "select": ["no_column"]}]),
        json!([{"event": "*", "schema": "public", "select": ["id"]}]),
        json!([{"event": "MERGE", "schema": "public", "table": "t"}]),
    ];
    for list in lists {
        client.join("1", "realtime:a", changes(list.clone())).await;
        let (reply, system) = (client.next().await, client.next().await);
        assert_eq!(reply[4]["status"], "ok", "{list}");
        assert_eq!(reply[4]["response"]["postgres_changes"].as_array().map(Vec::len), Some(1));
        assert_eq!(system[4]["status"], "error", "{list}");
        assert_eq!(system[4]["extension"], "postgres_changes");

        // Who waits for the subscription is told by the reply.
        let config = json!({"postgres_changes": list, "postgres_changes_options": {"wait": true}});
        client.join("2", "realtime:b", config).await;
        let reply = client.next().await;
        assert_eq!(reply[4]["status"], "error", "{list}");
        assert_eq!(reply[4]["response"]["reason"], system[4]["message"]);

        client.send(json!(["1", "9", "realtime:a", "phx_leave", {}])).await;
        assert_eq!(client.next().await[3], "phx_reply");
        assert_eq!(client.next().await[3], "phx_close");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_good_bindings_of_a_channel_work_beside_a_bad_one() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let list = json!([
        {"event": "*", "schema": "public", "table": "secret"},
        {"event": "*", "schema": "public", "table": "t"},
    ]);

    client.join("1", "realtime:a", changes(list)).await;
    let statuses = [client.next().await, client.next().await, client.next().await];
    world.insert(1000, 1, "x");

    let statuses = statuses.map(|frame| frame[4]["status"].clone());
    assert_eq!(statuses, ["ok", "ok", "error"]);
    assert_eq!(client.next().await[4]["data"]["table"], "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_identity_that_says_too_little_for_the_policies_is_told() {
    let world = World::new(config()).await;
    let mut secured = table(TABLE, "t");
    secured.row_security = Some(RowSecurity {
        policies: vec![Policy {
            name: "own".into(),
            permissive: true,
            condition: "(owner = CURRENT_USER)".into(),
            columns: Some(vec![2]),
        }],
        identity: vec![1],
        ..RowSecurity::default()
    });
    *world.granted.lock().unwrap() = vec![secured];
    let mut client = world.client().await;

    client.join("1", "realtime:a", changes(json!([{"event": "*", "table": "t"}]))).await;

    assert_eq!(client.next().await[4]["status"], "ok");
    assert_eq!(client.next().await[4]["message"], "Subscribed to PostgreSQL");
    let told = client.next().await;
    assert_eq!(told[4]["extension"], "tide.row_security");
    assert_eq!(told[4]["status"], "ok");
    assert!(told[4]["message"].as_str().unwrap().contains("REPLICA IDENTITY FULL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_topic_has_positions_to_resume_from() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let topic = "realtime:tide:table:public.t";
    client.join("1", topic, json!({"broadcast": {"select": ["id"], "events": ["INSERT"]}})).await;
    let position = "00000007000001.0000000000000063ffffffff";
    assert_eq!(
        client.next().await[4],
        json!({"status": "ok", "response": {"postgres_changes": [], "position": position}})
    );
    for id in 1..=3 {
        world.insert(1000 + 10 * id, id as i64, "x");
    }

    let first = client.next().await;
    assert_eq!(first[3], "broadcast");
    assert_eq!(first[4]["event"], "INSERT");
    assert_eq!(first[4]["payload"]["record"], json!({"id": 1}));
    let since = first[4]["meta"]["id"].clone();
    assert!(since.is_string());
    let mut again = world.client().await;
    again.join("1", topic, json!({"broadcast": {"since": since}})).await;
    assert_eq!(again.next().await[4]["status"], "ok");

    assert_eq!(again.next().await[4]["payload"]["record"]["id"], 2);
    assert_eq!(again.next().await[4]["payload"]["record"]["id"], 3);
    assert_eq!(again.next().await[4]["extension"], "tide.caught_up");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_it_has_the_meta_in_the_payload() {
    let world = World::new(config()).await;
    let topic = "realtime:tide:table:public.t";
    let mut told = Vec::new();
    for broadcast in [json!({"meta_in_payload": true}), json!({"meta_in_payload": false})] {
        let mut client = world.client().await;
        client.join("1", topic, json!({"broadcast": broadcast})).await;
        assert_eq!(client.next().await[4]["status"], "ok");
        told.push(client);
    }
    world.insert(1000, 1, "x");

    let [with, without] = [told[0].next().await, told[1].next().await];
    assert!(with[4]["meta"]["id"].is_string());
    assert_eq!(with[4]["payload"]["_meta"], with[4]["meta"]);
    assert_eq!(with[4]["meta"], without[4]["meta"]);
    assert_eq!(without[4]["payload"].get("_meta"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_table_topic_cannot_give_is_refused_at_the_join() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let cases = [
        ("realtime:tide:table:public.secret", json!({}), "Unauthorized: "),
        ("realtime:tide:table:public", json!({}), "TopicNameInvalid: "),
        ("realtime:tide:other", json!({}), "UnknownTopic: "),
        ("realtime:tide:table:public.t", json!({"since": "yesterday"}), "InvalidPosition: "),
        ("realtime:tide:table:public.t", json!({"since": 5}), "config.broadcast.since"),
        ("realtime:tide:table:public.t", json!({"filter": "id"}), "InvalidFilter: "),
        ("realtime:tide:table:public.t", json!({"filter": "x=eq.1"}), "Unauthorized: "),
        ("realtime:tide:table:public.t", json!({"select": ["x"]}), "Unauthorized: "),
        ("realtime:tide:table:public.*", json!({"snapshot": true}), "NotSupported: "),
        ("realtime:tide:table:public.t", json!({"snapshot": true, "last": 5}), "InvalidJoin: "),
    ];
    for (topic, broadcast, expected) in cases {
        client.join("1", topic, json!({"broadcast": broadcast})).await;
        let reply = client.next().await;
        assert_eq!(reply[4]["status"], "error", "{topic} {broadcast}");
        let reason = reply[4]["response"]["reason"].as_str().unwrap();
        assert!(reason.starts_with(expected), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_topic_style_is_a_subscription_by_name() {
    let world = World::new(config()).await;
    let mut client = world.client_at("/socket/websocket").await.unwrap();
    let topic = "realtime:public:t:id=eq.2";

    client.send(json!({"topic": topic, "event": "phx_join", "payload": {}, "ref": "1"})).await;
    let reply = client.next().await;
    world.insert(1000, 1, "no");
    world.insert(1010, 2, "yes");
    let event = client.next().await;

    let echoed = &reply["payload"]["response"]["postgres_changes"][0];
    assert_eq!((&echoed["schema"], &echoed["table"]), (&json!("public"), &json!("t")));
    assert_eq!(echoed["filter"], "id=eq.2");
    assert_eq!(reply["ref"], "1");
    assert_eq!(event["event"], "INSERT");
    assert_eq!(event["topic"], topic);
    assert_eq!(event["payload"]["record"]["id"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_without_changes_are_for_servers_that_allow_public_ones() {
    let strict = World::new(config()).await;
    let open = World::new(Config { public_channels: true, ..config() }).await;
    let presence = json!({"presence": {"enabled": true}});

    let mut client = strict.client().await;
    client.join("1", "realtime:a", json!({})).await;
    let refused = client.next().await;
    let mut client = open.client().await;
    client.join("1", "realtime:a", presence).await;
    let (joined, state) = (client.next().await, client.next().await);
    client.join("2", "realtime:b", json!({"private": true})).await;
    let private = client.next().await;

    assert_eq!(
        refused[4]["response"]["reason"],
        "PrivateOnly: This project only allows private channels"
    );
    assert_eq!(joined[4]["status"], "ok");
    assert_eq!(state, json!(["1", null, "realtime:a", "presence_state", {}]));
    assert_eq!(
        private[4]["response"]["reason"],
        "Unauthorized: You do not have permissions to read from this Channel topic: b"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_waits_for_the_stream_and_holds_up_nothing_else() {
    let world = World::stalled(Config { public_channels: true, ..config() }, None).await;
    let mut client = world.client().await;
    client.join("1", "realtime:a", changes(json!([{"event": "*", "table": "t"}]))).await;
    client.settle().await;
    client.join("2", "realtime:b", json!({})).await;
    client.send(json!(["2", "3", "realtime:b", "phx_leave", {}])).await;
    assert_eq!(client.next().await[1], "3");

    world.go_live().await;

    let reply = client.next().await;
    assert_eq!((&reply[2], &reply[4]["status"]), (&json!("realtime:a"), &json!("ok")));
    assert_eq!(client.next().await[3], "system");
    client.settle().await;
}
