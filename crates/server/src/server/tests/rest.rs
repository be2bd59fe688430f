//! Broadcasts over HTTP.

use std::time::Duration;

use serde_json::{Value, json};
use tide_feed::config::Config;
use tokio_tungstenite::tungstenite::Message;

use super::world::{World, config, token};
use crate::stats::RefusedPush;

const BATCH: &str = "/realtime/v1/api/broadcast";
const JSON: &str = "application/json";

fn open() -> Config {
    Config { public_channels: true, public_channels_send: true, ..config() }
}

impl World {
    pub(super) async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, Value) {
        let mut head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        let answer = self.http_bytes(&[head.as_bytes(), body].concat()).await;
        (answer.status(), serde_json::from_str(answer.body()).unwrap_or_default())
    }

    async fn post_json(&self, path: &str, body: Value) -> u16 {
        self.post(path, &[("Content-Type", JSON)], body.to_string().as_bytes()).await.0
    }
}

fn message(topic: &str, private: bool) -> Value {
    json!({"topic": topic, "event": "e", "payload": {"n": 1}, "private": private})
}

fn heard(event: &str) -> Value {
    json!({"type": "broadcast", "event": event, "payload": {"n": 1}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_goes_to_the_channels_that_it_names() {
    let world = World::new(open()).await;
    let mut client = world.client().await;
    client.join("1", "realtime:r", json!({})).await;
    client.next().await;
    client.join("2", "realtime:room", json!({"private": true})).await;
    client.next().await;

    let messages = json!({"messages": [
        message("r", false), message("room", false), message("closed", true), message("room", true),
    ]});
    // What may not be sent is left out; the answer is the same.
    assert_eq!(world.post_json(BATCH, messages.clone()).await, 202);
    assert_eq!(
        world.post_json("/api/broadcast?apikey=anon&vsn=2.0.0", json!({"messages": []})).await,
        202
    );

    let frames = [client.next().await, client.next().await];
    assert_eq!(frames.each_ref().map(|frame| frame[2].clone()), ["realtime:r", "realtime:room"]);
    assert!(frames.iter().all(|frame| frame[4] == heard("e")));
    client.settle().await;
    assert_eq!(world.context.stats.refused_broadcast(RefusedPush::Policy).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_has_its_topic_in_the_path() {
    let world = World::new(open()).await;
    let mut client = world.client().await;
    client.join("1", "realtime:a/b c", json!({})).await;
    client.next().await;
    client.join("2", "realtime:room", json!({"private": true})).await;
    client.next().await;
    let send = async |path: &str| world.post_json(&format!("{BATCH}{path}"), json!({"n": 1})).await;

    assert_eq!(send("/a%2Fb%20c/events/%C3%A9?apikey=anon&vsn=2.0.0").await, 202);
    assert_eq!(client.next().await[4], heard("é"));
    assert_eq!(send("/room/events/e?private=true").await, 202);
    assert_eq!(client.next().await[2], "realtime:room");
    assert_eq!(send("/news/events/e?private=true").await, 403);
    let bytes = world
        .post(
            &format!("{BATCH}/a%2Fb%20c/events/b"),
            &[("Content-Type", "application/octet-stream")],
            b"\x00\xff",
        )
        .await;
    assert_eq!(bytes.0, 202);
    let Some(Ok(Message::Binary(heard))) = client.message().await else { panic!("bytes") };
    assert!(heard.ends_with(b"b\x00\xff"));
    client.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_is_answered_by_its_status() {
    let limits = Config { max_broadcast_size: 100, max_message_size: 1000, ..open() };
    let world = World::new(limits).await;
    let one = |topic: &str, event: &str| json!({"messages": [{"topic": topic, "event": event, "payload": {}}]});
    let (long, large) = ("x".repeat(256), json!({"x": "x".repeat(100)}));
    for (path, body, expected) in [
        (BATCH, json!([]), 422),
        (BATCH, json!({"messages": [{"topic": "r"}]}), 422),
        (BATCH, one("tide:schema", "e"), 422),
        (BATCH, one("", "e"), 422),
        (BATCH, one(&long, "e"), 422),
        (BATCH, one("r", &long), 422),
        (BATCH, one("r", ""), 422),
        (BATCH, one("r", "tide:ack"), 422),
        ("/api/broadcast/r/events/e", large, 422),
        ("/api/broadcast/tide%3Aschema/events/e", json!({}), 422),
        ("/api/broadcast/%ff/events/e", json!({}), 422),
        ("/api/broadcast/r/events/e", json!({"x": "x".repeat(2000)}), 413),
        ("/api/broadcast/r/events", json!({}), 404),
    ] {
        assert_eq!(world.post_json(path, body.clone()).await, expected, "{path} {body}");
    }
    let text = world.post(BATCH, &[("Content-Type", "text/plain")], b"{}").await;
    assert_eq!(text.0, 415);
    assert!(text.1["error"].is_string());
    assert_eq!(world.post(BATCH, &[("Content-Type", JSON)], b"{").await.0, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_are_known_by_their_token() {
    let strict = World::new(Config { anon_role: None, ..open() }).await;
    let body = json!({"messages": [message("r", false)]}).to_string();
    let post =
        async |headers: &[(&str, &str)]| strict.post(BATCH, headers, body.as_bytes()).await.0;
    let good = format!("Bearer {}", token("web", Duration::from_secs(60)));
    let unusable = format!("Bearer {}", token("nobody", Duration::from_secs(60)));

    assert_eq!(post(&[]).await, 401);
    assert_eq!(post(&[("apikey", "anon")]).await, 401);
    assert_eq!(post(&[("Authorization", "Bearer eyJhbGciOiJub25lIn0.e30.")]).await, 401);
    assert_eq!(post(&[("Authorization", &unusable)]).await, 403);
    assert_eq!(post(&[("apikey", "anon"), ("Authorization", &good)]).await, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_a_pace() {
    let world = World::new(Config { http_broadcast_rate: 2, ..open() }).await;
    let batch = |count| json!({"messages": vec![message("r", false); count]});

    assert_eq!(world.post_json(BATCH, batch(3)).await, 429);
    assert_eq!(world.post_json(BATCH, batch(2)).await, 202);
    assert_eq!(world.post_json(BATCH, batch(1)).await, 429);
    assert_eq!(world.context.stats.refused_broadcast(RefusedPush::Rate).get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_origins_are_kept_out() {
    let allowed_origins = vec!["https://app.example".to_owned()];
    let world = World::new(Config { allowed_origins, ..open() }).await;
    let body = json!({"messages": [message("r", false)]}).to_string();
    let from = async |origin| world.post(BATCH, &[("Origin", origin)], body.as_bytes()).await.0;

    assert_eq!(from("https://evil.example").await, 403);
    assert_eq!(from("https://app.example").await, 202);
}
