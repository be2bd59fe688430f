//! What clients say to each other, and who may.

use std::time::Duration;

use serde_json::{Value, json};
use tide_feed::config::Config;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::world::{Client, World, config, token_with};
use crate::stats::RefusedPush;

const HOUR: Duration = Duration::from_secs(3600);

fn open() -> Config {
    Config { public_channels: true, public_channels_send: true, ..config() }
}

fn say(event: &str) -> Value {
    json!({"type": "broadcast", "event": event, "payload": {"n": 1}})
}

impl Client<TcpStream> {
    /// Joins and reads the reply.
    async fn joins(&mut self, topic: &str, config: Value) -> Value {
        self.join("1", topic, config).await;
        let reply = self.next().await;
        assert_eq!(reply[3], "phx_reply");
        reply[4].clone()
    }

    async fn broadcast(&mut self, reference: &str, topic: &str, event: &str) {
        self.send(json!(["1", reference, topic, "broadcast", say(event)])).await;
    }
}

fn private(more: Value) -> Value {
    let mut config = json!({"private": true});
    config["broadcast"] = more;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_says_the_others_hear_in_either_version() {
    let world = World::new(open()).await;
    let (mut sender, mut other) = (world.client().await, world.client().await);
    let mut old = world.client_at("/socket/websocket?vsn=1.0.0").await.unwrap();
    sender.joins("realtime:r", json!({"broadcast": {"ack": true}})).await;
    other.joins("realtime:r", json!({})).await;
    let join =
        json!({"topic": "realtime:r", "event": "phx_join", "payload": {"config": {}}, "ref": "1"});
    old.send(join).await;
    old.next().await;

    sender.broadcast("2", "realtime:r", "hi").await;

    let ack = json!(["1", "2", "realtime:r", "phx_reply", {"status": "ok", "response": {}}]);
    assert_eq!(sender.next().await, ack);
    let expected = json!([null, null, "realtime:r", "broadcast", say("hi")]);
    assert_eq!(other.next().await, expected);
    assert_eq!(old.next().await["payload"], say("hi"));
    // Without `self` it does not come back; without `ack` there is no answer.
    sender.settle().await;
    other.broadcast("2", "realtime:r", "back").await;
    other.settle().await;
    assert_eq!(sender.next().await[4], say("back"));
    assert_eq!(world.context.stats.broadcasts_total.get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_it_hears_itself() {
    let world = World::new(open()).await;
    let mut client = world.client().await;
    client.joins("realtime:r", json!({"broadcast": {"self": true}})).await;

    client.broadcast("2", "realtime:r", "echo").await;

    assert_eq!(client.next().await[4], say("echo"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_for_clients_that_can_take_them() {
    let world = World::new(open()).await;
    let (mut sender, mut other) = (world.client().await, world.client().await);
    let mut old = world.client_at("/socket/websocket?vsn=1.0.0").await.unwrap();
    sender.joins("realtime:r", json!({})).await;
    other.joins("realtime:r", json!({})).await;
    let join =
        json!({"topic": "realtime:r", "event": "phx_join", "payload": {"config": {}}, "ref": "1"});
    old.send(join).await;
    old.next().await;

    let bytes = b"\x03\x01\x01\x0a\x01\x00\x0012realtime:rb\x00\xff";
    sender.send_message(Message::Binary(bytes.to_vec().into())).await;
    let json = b"\x03\x01\x01\x0a\x01\x00\x0113realtime:rj{\"n\":1}";
    sender.send_message(Message::Binary(json.to_vec().into())).await;

    let Some(Ok(Message::Binary(heard))) = other.message().await else { panic!("bytes") };
    assert_eq!(&heard[..], b"\x04\x0a\x01\x00\x00realtime:rb\x00\xff");
    assert_eq!(other.next().await[4], say("j"));
    // The old client gets the second only.
    assert_eq!(old.next().await["payload"], say("j"));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_say_who_may_listen_and_who_may_speak() {
    let world = World::new(config()).await;
    let (mut sender, mut other) = (world.client().await, world.client().await);

    let refused = other.joins("realtime:closed", private(json!({}))).await;
    let reason =
        "Unauthorized: You do not have permissions to read from this Channel topic: closed";
    assert_eq!(refused, json!({"status": "error", "response": {"reason": reason}}));
    for topic in ["realtime:room", "realtime:news"] {
        assert_eq!(sender.joins(topic, private(json!({"ack": true}))).await["status"], "ok");
        assert_eq!(other.joins(topic, private(json!({}))).await["status"], "ok");
    }
    sender.broadcast("2", "realtime:news", "no").await;
    sender.broadcast("3", "realtime:room", "yes").await;

    let refused = sender.next().await;
    let reason = "Unauthorized: You do not have permissions to write to this Channel topic: news";
    assert_eq!(refused[4], json!({"status": "error", "response": {"error": reason}}));
    assert_eq!(sender.next().await[4]["status"], "ok");
    assert_eq!(other.next().await[4], say("yes"));
    assert_eq!(world.context.stats.refused_broadcast(RefusedPush::Policy).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_channel_and_a_public_one_of_the_same_name_are_two() {
    let world = World::new(open()).await;
    let (mut inside, mut outside) = (world.client().await, world.client().await);
    inside.joins("realtime:room", private(json!({"self": true}))).await;
    outside.joins("realtime:room", json!({"broadcast": {"self": true}})).await;

    inside.broadcast("2", "realtime:room", "secret").await;
    assert_eq!(inside.next().await[4], say("secret"));
    outside.broadcast("2", "realtime:room", "open").await;

    assert_eq!(outside.next().await[4], say("open"));
    inside.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn public_channels_are_silent_until_a_setting_lets_clients_speak() {
    let world = World::new(Config { public_channels: true, ..config() }).await;
    let (mut sender, mut other) = (world.client().await, world.client().await);
    sender.joins("realtime:r", json!({"broadcast": {"ack": true}})).await;
    other.joins("realtime:r", json!({})).await;

    sender.broadcast("2", "realtime:r", "no").await;

    assert_eq!(sender.next().await[4]["status"], "error");
    other.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_token_is_asked_about_again() {
    let world = World::new(config()).await;
    let good = token_with("web", json!({"n": 1}), HOUR);
    let banned = token_with("web", json!({"banned": true}), HOUR);
    let mut client = world.client().await;
    let mut other = world.client().await;
    client.joins("realtime:room", private(json!({"ack": true, "self": true}))).await;
    other.joins("realtime:room", private(json!({"ack": true}))).await;

    client.send(json!(["1", "2", "realtime:room", "access_token", {"access_token": good}])).await;
    client.broadcast("3", "realtime:room", "still").await;
    let frames = [client.next().await, client.next().await];
    assert!(frames.iter().any(|frame| frame[3] == "broadcast"));
    client.send(json!(["1", "4", "realtime:room", "access_token", {"access_token": banned}])).await;

    let told = client.next().await;
    assert_eq!((&told[3], &told[4]["status"]), (&json!("system"), &json!("error")));
    assert_eq!(
        told[4]["message"],
        "You do not have permissions to read from this Channel topic: room"
    );
    assert_eq!(client.next().await[3], "phx_close");
    other.next().await;
    other.broadcast("5", "realtime:room", "without it").await;
    assert_eq!(other.next().await[4]["status"], "ok");
    client.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_too_much_is_refused_and_counted() {
    let limits = Config { max_broadcast_size: 100, broadcast_rate: 3, ..open() };
    let world = World::new(limits).await;
    let (mut sender, mut other) = (world.client().await, world.client().await);
    sender.joins("realtime:r", json!({"broadcast": {"ack": true}})).await;
    other.joins("realtime:r", json!({})).await;

    let large = json!({"event": "large", "payload": {"x": "x".repeat(100)}});
    sender.send(json!(["1", "2", "realtime:r", "broadcast", large])).await;
    let refused = sender.next().await;
    assert_eq!(
        refused[4],
        json!({"status": "error", "response": {"error": "payload_size_exceeded"}})
    );
    for reference in ["3", "4", "5"] {
        sender.broadcast(reference, "realtime:r", "e").await;
    }
    assert_eq!(sender.next().await[1], "3");
    assert_eq!(sender.next().await[1], "4");
    let told = sender.next().await;
    assert_eq!(
        (&told[3], &told[4]["message"]),
        (&json!("system"), &json!("Too many messages per second"))
    );
    assert_eq!(sender.next().await[3], "phx_close");

    assert_eq!(
        [other.next().await, other.next().await].map(|frame| frame[4].clone()),
        [say("e"), say("e")]
    );
    other.settle().await;
    let stats = &world.context.stats;
    assert_eq!(stats.refused_broadcast(RefusedPush::Size).get(), 1);
    assert_eq!(stats.refused_broadcast(RefusedPush::Rate).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_ours_take_no_broadcasts() {
    let world = World::new(open()).await;
    let mut client = world.client().await;
    client.joins("realtime:tide:table:public.t", json!({})).await;
    client.joins("realtime:r", json!({"broadcast": {"self": true}})).await;

    for (topic, event) in [
        ("realtime:tide:table:public.t", "INSERT"),
        ("realtime:tide:table:public.t", "tide:ack"),
        ("realtime:r", "tide:mutated"),
    ] {
        client.broadcast("2", topic, event).await;
        let refused = client.next().await;
        assert_eq!((&refused[1], &refused[4]["status"]), (&json!("2"), &json!("error")));
    }
    let track = json!({"type": "presence", "event": "track", "payload": {}});
    client.send(json!(["1", "3", "realtime:tide:table:public.t", "presence", track])).await;
    assert_eq!(client.next().await[4]["status"], "error");
}
