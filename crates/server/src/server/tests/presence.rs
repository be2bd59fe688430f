//! Who is present, as clients see it.

use serde_json::{Value, json};
use tide_feed::config::Config;
use tokio::net::TcpStream;

use super::world::{Client, World, config};
use crate::stats::RefusedPush;

const ROOM: &str = "realtime:room";

fn watching(key: &str) -> Value {
    json!({"private": true, "presence": {"key": key, "enabled": true}})
}

impl Client<TcpStream> {
    /// Joins under a key and reads who is there.
    async fn watches(&mut self, key: &str) -> Value {
        self.join("1", ROOM, watching(key)).await;
        assert_eq!(self.next().await[4]["status"], "ok");
        let state = self.next().await;
        assert_eq!((&state[0], &state[3]), (&json!("1"), &json!("presence_state")));
        state[4].clone()
    }

    async fn present(&mut self, reference: &str, event: &str, payload: Value) {
        let push = json!({"type": "presence", "event": event, "payload": payload});
        self.send(json!(["1", reference, ROOM, "presence", push])).await;
    }

    /// The next change, whatever answers come before it.
    async fn diff(&mut self) -> Value {
        loop {
            let frame = self.next().await;
            if frame[3] == "presence_diff" {
                assert_eq!((&frame[0], &frame[1]), (&Value::Null, &Value::Null));
                return frame[4].clone();
            }
        }
    }
}

/// The members of the metas under a key, without their refs.
fn metas(side: &Value, key: &str) -> Vec<Value> {
    let metas = side[key]["metas"].as_array().cloned().unwrap_or_default();
    let without_refs = |mut meta: Value| {
        let members = meta.as_object_mut().unwrap();
        assert!(members.remove("phx_ref").is_some_and(|reference| reference.is_string()));
        members.remove("phx_ref_prev");
        meta
    };
    metas.into_iter().map(without_refs).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_see_each_other_come_change_and_go() {
    let world = World::new(config()).await;
    let (mut one, mut two) = (world.client().await, world.client().await);
    assert_eq!(one.watches("one").await, json!({}));

    one.present("2", "track", json!({"at": "home"})).await;
    assert_eq!(metas(&one.diff().await["joins"], "one"), [json!({"at": "home"})]);
    assert_eq!(metas(&two.watches("two").await, "one"), [json!({"at": "home"})]);
    one.present("3", "TRACK", json!({"at": "work"})).await;
    let changed = two.diff().await;
    assert_eq!(metas(&changed["leaves"], "one"), [json!({"at": "home"})]);
    assert_eq!(metas(&changed["joins"], "one"), [json!({"at": "work"})]);
    let previous = &changed["joins"]["one"]["metas"][0]["phx_ref_prev"];
    assert_eq!(previous, &changed["leaves"]["one"]["metas"][0]["phx_ref"]);
    one.present("4", "track", json!({"at": "work"})).await;
    one.present("5", "untrack", json!({})).await;

    let left = two.diff().await;
    assert_eq!(left["joins"], json!({}));
    assert_eq!(metas(&left["leaves"], "one"), [json!({"at": "work"})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_gone_is_not_present() {
    let world = World::new(config()).await;
    let (mut one, mut two) = (world.client().await, world.client().await);
    one.watches("one").await;
    two.watches("two").await;
    for end in ["crash", "leave", "join again"] {
        let mut third = world.client().await;
        third.watches("third").await;
        third.present("2", "track", json!({})).await;
        assert_eq!(metas(&one.diff().await["joins"], "third"), [json!({})], "{end}");

        match end {
            "crash" => drop(third),
            "leave" => third.send(json!(["1", "3", ROOM, "phx_leave", {}])).await,
            _ => third.join("4", ROOM, watching("third")).await,
        }

        assert_eq!(metas(&one.diff().await["leaves"], "third"), [json!({})], "{end}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_connections_of_one_key_are_both_there() {
    let world = World::new(config()).await;
    let (mut phone, mut laptop) = (world.client().await, world.client().await);
    phone.watches("me").await;
    phone.present("2", "track", json!({"on": "phone"})).await;
    phone.diff().await;
    laptop.watches("me").await;
    laptop.present("2", "track", json!({"on": "laptop"})).await;
    laptop.diff().await;

    let mut third = world.client().await;
    let state = third.watches("third").await;
    assert_eq!(metas(&state, "me"), [json!({"on": "phone"}), json!({"on": "laptop"})]);
    drop(phone);

    assert_eq!(metas(&third.diff().await["leaves"], "me"), [json!({"on": "phone"})]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_did_not_ask_for_presence_is_present_and_sees_nobody() {
    let world = World::new(config()).await;
    let (mut watcher, mut quiet) = (world.client().await, world.client().await);
    watcher.watches("watcher").await;
    let config = json!({"private": true, "presence": {"key": "", "enabled": false}});
    quiet.join("1", ROOM, config).await;
    quiet.next().await;

    quiet.present("2", "track", json!({"n": 1})).await;

    assert_eq!(quiet.next().await[4]["status"], "ok");
    let joins = watcher.diff().await["joins"].clone();
    // It is given a name.
    let key = joins.as_object().unwrap().keys().next().unwrap().clone();
    assert_eq!((key.len(), metas(&joins, &key)), (36, vec![json!({"n": 1})]));
    quiet.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_say_who_may_be_present_and_who_may_see_it() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let config =
        json!({"private": true, "presence": {"enabled": true}, "broadcast": {"ack": true}});
    client.join("1", "realtime:news", config.clone()).await;
    assert_eq!(client.next().await[4]["status"], "ok");
    assert_eq!(client.next().await[3], "presence_state");
    let track = json!({"type": "presence", "event": "track", "payload": {}});
    client.send(json!(["1", "2", "realtime:news", "presence", track])).await;
    let reason =
        "Unauthorized: You do not have permissions to track presence on this Channel topic: news";
    assert_eq!(client.next().await[4]["response"]["reason"], reason);

    client.join("1", "realtime:presence-only", config).await;
    assert_eq!(client.next().await[4]["status"], "ok");
    assert_eq!(client.next().await[3], "presence_state");
    let broadcast = json!({"event": "e", "payload": {}});
    client.send(json!(["1", "3", "realtime:presence-only", "broadcast", broadcast])).await;
    assert_eq!(client.next().await[4]["status"], "error");
    client.send(json!(["1", "4", "realtime:presence-only", "presence", track])).await;
    let frames = [client.next().await, client.next().await];
    assert!(frames.iter().any(|frame| frame[3] == "presence_diff"));
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_has_limits_that_are_told_and_counted() {
    let limits =
        Config { presence_rate: 2, max_presence_size: 50, max_presence_entries: 1, ..config() };
    let world = World::new(limits).await;
    let stats = &world.context.stats;
    let (mut one, mut two, mut three) =
        (world.client().await, world.client().await, world.client().await);
    one.watches("one").await;
    one.present("2", "track", json!({})).await;
    // The answer and the change, in either order.
    for _ in 0..2 {
        one.next().await;
    }

    two.watches("two").await;
    two.present("2", "track", json!({})).await;
    let full = two.next().await;
    assert_eq!(
        full[4]["response"]["reason"],
        "PresenceLimitReached: Too many are present on this channel"
    );
    two.present("3", "track", json!("text")).await;
    let refused = two.next().await;
    assert_eq!(refused[4]["response"]["reason"], "Presence track payload must be a map");
    two.present("4", "track", json!({})).await;
    assert_eq!(two.next().await[4]["message"], "Client presence rate limit exceeded");
    assert_eq!(two.next().await[3], "phx_close");
    three.watches("three").await;
    three.present("2", "track", json!({"x": "x".repeat(50)})).await;
    assert_eq!(three.next().await[4]["message"], "Track message size exceeded");
    assert_eq!(three.next().await[3], "phx_close");

    let counts = [RefusedPush::Full, RefusedPush::Request, RefusedPush::Rate, RefusedPush::Size]
        .map(|reason| stats.refused_presence(reason).get());
    assert_eq!(counts, [1, 1, 1, 1]);
    one.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_key_is_refused_at_the_join() {
    let world = World::new(config()).await;
    let mut client = world.client().await;

    client.join("1", ROOM, watching(&"k".repeat(256))).await;

    assert_eq!(client.next().await[4]["status"], "error");
}

/// A client that does not read misses changes; once it reads again it is told the whole.
#[tokio::test(flavor = "multi_thread")]
async fn who_missed_changes_is_told_afresh() {
    let limits = Config {
        send_queue_size: 4 << 10,
        presence_rate: 1_000_000,
        max_presence_size: 1 << 20,
        ..config()
    };
    let world = World::new(limits).await;
    let (mut slow, mut busy) = (world.client().await, world.client().await);
    slow.watches("slow").await;
    busy.join("1", ROOM, json!({"private": true, "presence": {"enabled": false}})).await;
    busy.next().await;

    let mut last = 0;
    while world.context.stats.dropped_casts_total.get() == 0 {
        last += 1;
        let payload = json!({"n": last, "pad": "x".repeat(100_000)});
        busy.present(&last.to_string(), "track", payload).await;
        busy.next().await;
    }

    // It is told the whole once there is room, and in the end knows what is so.
    let (mut known, mut told_afresh) = (Value::Null, false);
    while known != json!(last) || !told_afresh {
        let frame = slow.next().await;
        told_afresh |= frame[3] == "presence_state";
        let metas = if frame[3] == "presence_state" { &frame[4] } else { &frame[4]["joins"] };
        let newest = metas.as_object().and_then(|keys| keys.values().next());
        known = newest.map_or(known, |metas| metas["metas"][0]["n"].clone());
    }
}
