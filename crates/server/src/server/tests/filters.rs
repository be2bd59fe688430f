//! Filters that would take much memory or work: refused, or ended, alone.

use std::collections::HashMap;

use serde_json::{Value, json};
use tide_feed::config::Config;
use tokio::net::TcpStream;

use super::world::{Client, World, config, until};
use crate::memory::Kind;
use crate::stats::RefusedJoin;

fn binding(filter: &str) -> Value {
    json!({"event": "*", "schema": "public", "table": "t", "filter": filter})
}

fn changes(filters: impl IntoIterator<Item = String>) -> Value {
    let bindings: Vec<Value> = filters.into_iter().map(|filter| binding(&filter)).collect();
    json!({"postgres_changes": bindings})
}

/// The reason of the refusal, or nothing.
async fn join(client: &mut Client<TcpStream>, topic: &str, config: Value) -> String {
    client.join("1", topic, config).await;
    let reply = client.next().await;
    let response = &reply[4]["response"];
    if reply[4]["status"] == "ok" {
        assert_eq!(client.next().await[4]["message"], "Subscribed to PostgreSQL");
        return String::new();
    }
    response["reason"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_has_so_many_bindings() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let like = |count: usize| changes((0..count).map(|n| format!("note=like.%{n}%")));

    assert_eq!(join(&mut client, "realtime:a", like(100)).await, "");
    for count in [101, 6_000, 10_000] {
        let reason = join(&mut client, "realtime:b", like(count)).await;
        assert_eq!(reason, "BindingLimitReached: A channel has at most 100 bindings");
    }

    assert_eq!(world.context.stats.refused_join(RefusedJoin::Bindings).get(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_pattern_is_refused_by_name() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let many = vec![r"note=match.\w{8}x"; 64].join(",");

    for (topic, filter) in [("a", many.as_str()), ("b", "note=match.1[01]{4000}2")] {
        client.join("1", &format!("realtime:{topic}"), changes([filter.to_owned()])).await;
        assert_eq!(client.next().await[4]["status"], "ok");
        let refused = client.next().await;
        assert_eq!(refused[4]["status"], "error");
        let message = refused[4]["message"].as_str().unwrap();
        assert!(message.contains("the pattern for match filter on column note is too large"));
    }
    let config = json!({"broadcast": {"filter": many}});
    let reason = join(&mut client, "realtime:tide:table:public.t", config).await;
    assert!(reason.ends_with("is too large"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filters_of_one_join_have_so_many_values_and_patterns() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let list = vec!["1"; 100].join(",");
    let lists = changes(vec![vec![format!("id=in.({list})"); 2].join(","); 51]);
    let patterns = changes((0..5).map(|n| format!("note=match.{n}{}", "x".repeat(900))));

    let reason = join(&mut client, "realtime:a", lists).await;
    assert!(reason.starts_with("FilterLimitReached: "), "{reason}");
    let reason = join(&mut client, "realtime:a", patterns).await;
    assert!(reason.starts_with("FilterLimitReached: "), "{reason}");
    assert_eq!(join(&mut client, "realtime:a", changes([format!("id=in.({list})")])).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_for_filters_is_limited_per_connection_and_in_all() {
    let world = World::new(Config { memory_limit: 64 << 20, ..config() }).await;
    // Each takes about 10 kB, and each connection may have 512.
    let some = |n: usize| changes((0..30).map(|m| format!("note=like.%{n} {m}%")));
    let (mut clients, mut of_connections) = (Vec::new(), 0);
    loop {
        let mut client = world.client().await;
        let mut reasons = Vec::new();
        for n in 0..10 {
            // Channels that are alike share their filters; these are not.
            let topic = format!("realtime:{}-{n}", clients.len());
            reasons.push(join(&mut client, &topic, some(n)).await);
        }
        clients.push(client);
        if reasons.iter().any(|reason| reason.ends_with("no memory for more filters, try again")) {
            break;
        }
        of_connections += reasons.iter().filter(|reason| reason.contains("connection")).count();
        assert!(clients.len() < 40, "memory is never used up");
    }

    assert!(of_connections > 0);
    drop(clients);
    until(|| world.context.memory().of(Kind::Filters).used() == 0).await;
    let mut client = world.client().await;
    assert_eq!(join(&mut client, "realtime:a", some(0)).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_makes_too_much_work_ends_and_everything_else_goes_on() {
    let world = World::new(Config { public_channels: true, ..config() }).await;
    let (mut greedy, mut other) = (world.client().await, world.client().await);
    let hard = changes(["note=match.1[01]{1500}2".to_owned()]);
    assert_eq!(join(&mut greedy, "realtime:hard", hard).await, "");
    for client in [&mut greedy, &mut other] {
        let usual = changes(["note=like.%1%".to_owned()]);
        assert_eq!(join(client, "realtime:usual", usual).await, "");
    }
    let digit = |n: u64| if (n.wrapping_mul(2_654_435_761) >> 13) & 1 == 1 { '1' } else { '0' };
    let note: String = (0..1_000_000).map(digit).collect();

    world.insert(1000, 1, &note);
    world.insert(1010, 2, "0101");

    assert_eq!(other.next().await[4]["data"]["record"]["id"], 1);
    assert_eq!(other.next().await[4]["data"]["record"]["id"], 2);
    let (mut ended, mut ids) = (0, Vec::new());
    while ids.len() < 2 {
        let frame = greedy.next().await;
        if frame[3] == "system" {
            assert_eq!(
                (&frame[2], &frame[4]["status"]),
                (&json!("realtime:hard"), &json!("error"))
            );
            assert!(frame[4]["message"].as_str().unwrap().contains("too much work"), "{frame}");
            ended += 1;
        } else {
            assert_eq!(frame[2], "realtime:usual");
            ids.push(frame[4]["data"]["record"]["id"].clone());
        }
    }
    assert_eq!((ended, ids), (1, vec![json!(1), json!(2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_pays_for_all_its_channels_together_and_the_others_are_not_held_up() {
    let world = World::new(Config { public_channels: true, ..config() }).await;
    let (mut greedy, mut other) = (world.client().await, world.client().await);
    // Each of them alone could go on for hundreds of events.
    let some = || changes((0..15).map(|n| format!("note=lt.a{n}")).chain(["id=gt.0".into()]));
    for n in 0..12 {
        assert_eq!(join(&mut greedy, &format!("realtime:{n}"), some()).await, "");
    }
    let usual = changes(["note=like.x%".to_owned()]);
    assert_eq!(join(&mut other, "realtime:usual", usual).await, "");

    let rows = 100;
    for id in 1..=rows {
        world.insert(1000 + 10 * id, id as i64, &"x".repeat(2_000));
        assert_eq!(other.next().await[4]["data"]["record"]["id"], id);
    }

    let (mut ended, mut ids) = (0, HashMap::<String, Vec<u64>>::new());
    while !ids.values().any(|ids| ids.last() == Some(&rows)) {
        let frame = greedy.next().await;
        let topic = frame[2].as_str().unwrap().to_owned();
        if frame[3] == "system" {
            assert!(frame[4]["message"].as_str().unwrap().contains("too much work"), "{frame}");
            ids.remove(&topic);
            ended += 1;
        } else {
            let id = frame[4]["data"]["record"]["id"].as_u64().unwrap();
            ids.entry(topic).or_default().push(id);
        }
    }

    assert!((6..12).contains(&ended), "{ended}");
    let whole: Vec<u64> = (1..=rows).collect();
    assert!(ids.values().all(|ids| whole.starts_with(ids)), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_longer_than_the_stream_waits_comes_in_order_all_the_same() {
    let world = World::new(Config { public_channels: true, ..config() }).await;
    let mut client = world.client().await;
    // With one more such channel than an event has time for in the stream.
    for topic in ["realtime:a", "realtime:b", "realtime:c"] {
        let some = (0..20).map(|n| format!("note=lt.a{n}")).chain(["id=gt.0".into()]);
        assert_eq!(join(&mut client, topic, changes(some)).await, "");
    }

    let rows = 20;
    for id in 1..=rows {
        world.insert(1000 + 10 * id, id as i64, &"x".repeat(2_000));
    }

    let mut ids = Vec::new();
    for _ in 0..3 * rows {
        ids.push(client.next().await[4]["data"]["record"]["id"].as_u64().unwrap());
    }
    let each_three_times: Vec<u64> = (1..=rows).flat_map(|id| [id; 3]).collect();
    assert_eq!(ids, each_three_times);
}
