//! The protocol apart from what channels are about.

use futures_util::SinkExt;
use serde_json::json;
use tide_feed::config::Config;
use tokio_tungstenite::tungstenite::Message;

use super::world::{World, config, until};

fn open() -> Config {
    Config { public_channels: true, ..config() }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_are_answered_in_both_versions() {
    let world = World::stalled(open(), None).await;
    let mut second = world.client().await;
    let mut first = world.client_at("/socket/websocket?vsn=1.0.0&apikey=anon").await.unwrap();

    second.settle().await;
    first.send(json!({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "26"})).await;

    assert_eq!(
        first.next().await,
        json!({"topic": "phoenix", "event": "phx_reply", "ref": "26",
            "payload": {"status": "ok", "response": {}}})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_is_answered_and_then_closes() {
    let world = World::new(open()).await;
    let mut client = world.client().await;
    client.join("6", "realtime:a", json!({})).await;
    client.next().await;

    client.send(json!(["6", "13", "realtime:a", "phx_leave", {}])).await;

    let ok = json!({"status": "ok", "response": {}});
    assert_eq!(client.next().await, json!(["6", "13", "realtime:a", "phx_reply", ok]));
    assert_eq!(client.next().await, json!(["6", "6", "realtime:a", "phx_close", {}]));
    client.send(json!(["6", "14", "realtime:a", "phx_leave", {}])).await;
    assert_eq!(client.next().await, json!(["6", "14", "realtime:a", "phx_reply", ok]));
    super::world::until(|| world.context.stats.channels.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_join_of_a_topic_closes_the_first() {
    let world = World::new(open()).await;
    let mut client = world.client().await;
    client.join("1", "realtime:a", json!({})).await;
    client.next().await;

    client.join("2", "realtime:a", json!({})).await;

    assert_eq!(client.next().await, json!(["1", "1", "realtime:a", "phx_close", {}]));
    let reply = client.next().await;
    assert_eq!(
        (&reply[0], &reply[1], &reply[4]["status"]),
        (&json!("2"), &json!("2"), &json!("ok"))
    );
    // What still comes from the first is of the past.
    client.send(json!(["1", "3", "realtime:a", "phx_leave", {}])).await;
    client.send(json!(["1", "4", "realtime:a", "nonsense", {}])).await;
    client.settle().await;
    super::world::until(|| world.context.stats.channels.get() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_that_nobody_takes_are_answered_with_an_error() {
    let world = World::new(open()).await;
    let mut client = world.client().await;
    client.join("1", "realtime:acked", json!({"broadcast": {"ack": true}})).await;
    client.next().await;
    client.join("2", "realtime:plain", json!({})).await;
    client.next().await;
    let broadcast = json!({"type": "broadcast", "event": "e", "payload": {}});
    let track = json!({"type": "presence", "event": "track", "payload": {}});

    client.send(json!(["2", "5", "realtime:plain", "broadcast", broadcast])).await;
    client.send(json!(["1", "6", "realtime:acked", "broadcast", broadcast])).await;
    client.send(json!(["2", "7", "realtime:plain", "presence", track])).await;
    client.send(json!(["2", "8", "realtime:plain", "nonsense", {}])).await;
    client.send(json!([null, "9", "realtime:none", "broadcast", broadcast])).await;

    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(client.next().await);
    }
    let refs: Vec<_> = answers.iter().map(|answer| answer[1].clone()).collect();
    assert_eq!(refs, ["5", "6", "7", "8", "9"]);
    assert!(answers.iter().all(|answer| answer[4]["status"] == "error"));
    assert!(answers[0][4]["response"]["error"].is_string());
    assert_eq!(answers[4][4]["response"]["reason"], "unmatched topic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_needs_a_name() {
    let world = World::new(open()).await;
    let mut client = world.client().await;

    client.join("1", "realtime:", json!({})).await;
    client.join("2", "room", json!({})).await;

    let reason = |answer: serde_json::Value| answer[4]["response"]["reason"].clone();
    let mut reasons = [reason(client.next().await), reason(client.next().await)];
    reasons.sort_by_key(|reason| reason.to_string());
    assert_eq!(reasons, ["TopicNameRequired: You must provide a topic name", "unmatched topic"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_says_that_it_restarts() {
    let world = World::new(open()).await;
    let mut client = world.client().await;
    client.settle().await;

    let closing = tokio::spawn(async move { client.closed().await });
    let stats = std::sync::Arc::clone(&world.context.stats);
    world.stop().await;

    assert_eq!(closing.await.unwrap(), 1012);
    assert_eq!(stats.connections.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnected_client_is_told_so() {
    let world = World::new(open()).await;
    let mut client = world.client().await;
    client.settle().await;
    let session = world.context.hub.connections().await[0].id;

    assert!(world.context.hub.disconnect(session).await);

    assert_eq!(client.closed().await, 1008);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_or_vanishes_is_forgotten() {
    let world = World::new(open()).await;
    let (mut polite, rude) = (world.client().await, world.client().await);
    polite.join("1", "realtime:a", json!({})).await;
    polite.next().await;

    polite.socket.send(Message::Close(None)).await.unwrap();
    drop(rude);

    let stats = &world.context.stats;
    until(|| stats.connections.get() == 0 && stats.channels.get() == 0).await;
    assert_eq!(stats.connections_total.get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_amid_frames() {
    let world = World::new(open()).await;
    let mut client = world.client().await;

    client.socket.send(Message::Ping(b"are you there".as_slice().into())).await.unwrap();

    let pong = client.message().await.unwrap().unwrap();
    assert_eq!(pong, Message::Pong(b"are you there".as_slice().into()));
    client.settle().await;
}
