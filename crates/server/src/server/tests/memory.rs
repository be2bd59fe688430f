//! Floods of each kind: what is held stays within the limit, who is refused is told why, and whoever
//! asks for little is served.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tide_feed::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error as SocketError;

use super::world::{Client, HttpAnswer, World, config, token_with, until};
use crate::hub::handle::Peer;
use crate::memory::{Kind, Memory};
use crate::server::conversation::OwnedAddress;
use crate::server::credentials::Credentials;
use crate::server::join::{self, Joiner};
use crate::stats::{RefusedConnection, RefusedJoin, RefusedPush};
use crate::wire::Vsn;

fn small() -> Config {
    Config {
        memory_limit: 16 << 20,
        history_size: 4 << 20,
        public_channels: true,
        public_channels_send: true,
        join_rate: 100_000,
        ..config()
    }
}

/// Looks at what is held, for as long as something goes on.
async fn within_limits<T>(world: &World, flood: impl Future<Output = T>) -> T {
    let memory = || world.context.memory();
    let look = async {
        loop {
            assert_is_within_limits(memory());
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        outcome = flood => {
            assert_is_within_limits(memory());
            outcome
        }
        () = look => unreachable!(),
    }
}

fn assert_is_within_limits(memory: &Memory) {
    assert!(memory.used() <= memory.limit(), "{}", memory.prometheus());
}

/// A client gets a row, and what another says, as ever.
async fn is_served(world: &World, client: &mut Client<TcpStream>, id: u64) {
    world.insert(1000 + 10 * id, id as i64, "a row");
    assert_eq!(client.next().await[4]["data"]["record"]["id"], id);
    client.settle().await;
}

async fn subscribed(world: &World) -> Client<TcpStream> {
    let mut client = world.client().await;
    let changes = json!({"postgres_changes": [{"event": "*", "schema": "public", "table": "t"}]});
    client.join("1", "realtime:rows", changes).await;
    assert_eq!(client.next().await[4]["status"], "ok");
    assert_eq!(client.next().await[3], "system");
    client
}

fn held(world: &World, kind: Kind) -> usize {
    world.context.memory().of(kind).used()
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_that_wait_are_refused_past_the_limit() {
    let world = World::stalled(small(), None).await;
    let pad = "x".repeat(30_000);
    let large = || json!({"postgres_changes": [{"event": "*", "schema": "public", "table": "t", "pad": pad}]});
    let mut clients = Vec::new();
    let reason = within_limits(&world, async {
        loop {
            let mut client = world.client().await;
            for n in 0..50 {
                client.join("1", &format!("realtime:{}-{n}", clients.len()), large()).await;
            }
            client.send(json!([null, "beat", "phoenix", "heartbeat", {}])).await;
            let answer = client.next().await;
            clients.push(client);
            if answer[3] == "phx_reply" && answer[4]["status"] == "error" {
                break answer[4]["response"]["reason"].as_str().unwrap().to_owned();
            }
            assert!(clients.len() < 100, "there is no end of it");
        }
    })
    .await;

    assert_eq!(reason, "MemoryLimitReached: There is no memory for more channels, try again");
    assert!(world.context.stats.refused_join(RefusedJoin::Memory).get() > 0);
    drop(clients);
    until(|| held(&world, Kind::Channels) == 0).await;
    world.go_live().await;
    let mut client = subscribed(&world).await;
    is_served(&world, &mut client, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joined_channels_are_refused_past_the_limit_and_tokens_count() {
    let world = World::new(small()).await;
    let mut healthy = subscribed(&world).await;
    let mut clients = Vec::new();
    let reason = within_limits(&world, async {
        loop {
            let mut client = world.client().await;
            for n in 0..100 {
                // Claims that fill a token.
                let claims = json!({"n": n, "rooms": "x".repeat(20_000)});
                let token = token_with("web", claims, Duration::from_secs(60));
                let topic = format!("realtime:{n}");
                client
                    .send(
                        json!(["1", "1", topic, "phx_join", {"config": {}, "access_token": token}]),
                    )
                    .await;
                let answer = client.next().await;
                if answer[4]["status"] == "error" {
                    return answer[4]["response"]["reason"].as_str().unwrap().to_owned();
                }
            }
            clients.push(client);
        }
    })
    .await;

    assert!(reason.starts_with("MemoryLimitReached: "), "{reason}");
    is_served(&world, &mut healthy, 1).await;
    drop(clients);
    until(|| held(&world, Kind::Channels) < 10_000).await;
    let mut client = world.client().await;
    client.join("1", "realtime:again", json!({})).await;
    assert_eq!(client.next().await[4]["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_refused_past_the_limit() {
    let world = World::new(small()).await;
    let mut healthy = subscribed(&world).await;
    let post = async |body: Vec<u8>, length: usize| {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let head = format!(
            "POST /realtime/v1/api/broadcast?apikey=anon HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        // It may be refused before it has said all.
        let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        HttpAnswer(String::from_utf8(answer).unwrap())
    };
    let mut posts: FuturesUnordered<_> =
        (0..10).map(|_| post(vec![b' '; 400_000], 500_000)).collect();

    let refused = within_limits(&world, posts.next()).await.unwrap();

    assert_eq!(refused.status(), 503, "{refused:?}");
    let reason: Value = serde_json::from_str(refused.body()).unwrap();
    // The body, or already the head.
    let reason = reason["error"].as_str().unwrap();
    assert!(reason.starts_with("there is no memory for "), "{reason}");
    let refused = world.context.stats.refused_broadcast(RefusedPush::Memory).get()
        + world.context.stats.refused_connection(RefusedConnection::Memory).get();
    assert!(refused > 0);
    is_served(&world, &mut healthy, 1).await;
    drop(posts);
    until(|| held(&world, Kind::Inbound) == 0).await;
    let body = json!({"messages": []}).to_string();
    assert_eq!(post(body.clone().into(), body.len()).await.status(), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_announced_and_do_not_come_cost_their_connections() {
    let world = World::new(small()).await;
    let mut healthy = subscribed(&world).await;
    let mut hoarders = Vec::new();
    within_limits(&world, async {
        let refused = &world.context.memory().of(Kind::Inbound);
        while refused.refused() == 0 {
            let mut client = world.client().await;
            let head = [&[0x81, 0xff][..], &900_000_u64.to_be_bytes(), &[0; 4]].concat();
            client.socket.get_mut().write_all(&head).await.unwrap();
            hoarders.push(client);
            assert!(hoarders.len() < 1000, "nothing is counted");
        }
    })
    .await;

    is_served(&world, &mut healthy, 1).await;
    drop(hoarders);
    until(|| held(&world, Kind::Inbound) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_refused_past_the_limit() {
    let limits = Config { presence_rate: 100_000, max_presence_size: 100_000, ..small() };
    let world = World::new(limits).await;
    let mut healthy = subscribed(&world).await;
    let mut clients = Vec::new();
    let reason = within_limits(&world, async {
        loop {
            let mut client = world.client().await;
            for n in 0..20 {
                let topic = format!("realtime:{}-{n}", clients.len());
                client.join("1", &topic, json!({})).await;
                assert_eq!(client.next().await[4]["status"], "ok");
                let track = json!({"type": "presence", "event": "track", "payload": {"x": "x".repeat(90_000)}});
                client.send(json!(["1", "2", topic, "presence", track])).await;
                let answer = client.next().await;
                if answer[4]["status"] == "error" {
                    return answer[4]["response"]["reason"].as_str().unwrap().to_owned();
                }
            }
            clients.push(client);
        }
    })
    .await;

    assert_eq!(reason, "MemoryLimitReached: There is no memory for more presence, try again");
    assert_eq!(world.context.stats.refused_presence(RefusedPush::Memory).get(), 1);
    is_served(&world, &mut healthy, 1).await;
    drop(clients);
    until(|| held(&world, Kind::Presence) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_are_refused_past_the_limit_and_silent_sockets_are_none_of_their_memory() {
    let world = World::new(small()).await;
    let mut healthy = subscribed(&world).await;
    let mut silent = Vec::new();
    let mut clients = Vec::new();
    let (status, body) = within_limits(&world, async {
        loop {
            silent.push(TcpStream::connect(world.address).await.unwrap());
            match world.client_at("/socket/websocket?vsn=2.0.0&apikey=anon").await {
                Ok(client) => clients.push(client),
                Err(SocketError::Http(answer)) => {
                    let body = answer.body().clone().unwrap_or_default();
                    return (answer.status().as_u16(), String::from_utf8(body).unwrap());
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;

    assert_eq!(status, 503);
    assert!(body.contains("there is no memory for more connections, try again"), "{body}");
    assert!(world.context.stats.refused_connection(RefusedConnection::Memory).get() > 0);
    assert!(clients.len() > 100, "{}", clients.len());
    is_served(&world, &mut healthy, 1).await;
    drop(clients);
    until(|| held(&world, Kind::Connections) < 20_000).await;
    let _ = subscribed(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_takes_no_more_than_is_counted_before_its_turn_and_after() {
    let world = World::new(small()).await;
    let peer = Peer { address: world.address, user_agent: None, connected_at: SystemTime::now() };
    let topic: Arc<str> = "realtime:room".into();
    let joiner = || Joiner {
        context: Arc::clone(&world.context),
        session: world.context.hub.connect(peer.clone()).0,
        vsn: Vsn::V2,
        credentials: Credentials::anonymous("web"),
        filters: world.context.own_filters(),
        memory: world.context.share(Kind::Channels),
        address: OwnedAddress { join_ref: None, ref_: None, topic: Arc::clone(&topic) },
    };

    let (waiting, at_work) =
        (join::waiting(joiner(), Box::default()), join::join(joiner(), Box::default()));

    assert!(size_of_val(&*waiting) < join::WAITING, "{}", size_of_val(&*waiting));
    assert!(size_of_val(&at_work) < join::JOIN, "{}", size_of_val(&at_work));
}
