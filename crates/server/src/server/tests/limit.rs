//! Clients that ask for too much, or send what they should not: each is its own problem only.

use std::sync::Arc;
use std::time::Duration;

use futures_util::SinkExt;
use serde_json::json;
use tide_feed::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::world::{World, config, until};
use crate::descriptors::ConnectionLimits;
use crate::memory::Kind;
use crate::server::credentials::Credentials;
use crate::server::http::Admission;
use crate::server::read_budget::Metered;
use crate::server::session;
use crate::stats::RefusedConnection;
use crate::wire::Vsn;

#[tokio::test(flavor = "multi_thread")]
async fn one_channel_too_many_is_refused_and_the_rest_stay() {
    let limits = Config { max_channels_per_connection: 2, public_channels: true, ..config() };
    let world = World::new(limits).await;
    let mut client = world.client().await;
    for topic in ["realtime:a", "realtime:b"] {
        client.join("1", topic, json!({})).await;
        assert_eq!(client.next().await[4]["status"], "ok");
    }

    client.join("3", "realtime:c", json!({})).await;
    let refused = client.next().await;
    // One that is joined already takes no further place.
    client.join("4", "realtime:a", json!({})).await;
    assert_eq!(client.next().await, json!(["1", "1", "realtime:a", "phx_close", {}]));
    assert_eq!(client.next().await[4]["status"], "ok");

    assert_eq!(refused[4]["response"]["reason"], "ChannelRateLimitReached: Too many channels");
    until(|| world.context.stats.channels.get() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_joins_per_second_end_the_connection() {
    let world = World::new(Config { join_rate: 3, public_channels: true, ..config() }).await;
    let mut client = world.client().await;
    for n in 0..20 {
        client.join("1", &format!("realtime:{n}"), json!({})).await;
    }

    let mut reasons = Vec::new();
    let code = loop {
        match client.message().await {
            Some(Ok(Message::Text(text))) => reasons.push(text.to_string()),
            Some(Ok(Message::Close(Some(close)))) => break u16::from(close.code),
            other => panic!("{other:?}"),
        }
    };

    assert_eq!(code, 1008);
    let last = reasons.last().unwrap();
    assert!(last.contains("ClientJoinRateLimitReached: Too many joins per second"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_are_borne_for_a_while() {
    let world = World::new(config()).await;
    let mut client = world.client().await;

    for _ in 0..9 {
        client.send_text("not json".into()).await;
    }
    client.settle().await;
    for garbage in ["[", "{}", "[[[[[[", "null", "[1,2,3]", "\u{0}"] {
        client.send_text(garbage.into()).await;
    }
    client.settle().await;
    for _ in 0..10 {
        client.send_text("[".repeat(100_000)).await;
    }

    assert_eq!(client.closed().await, 1007);
    assert_eq!(world.context.stats.malformed_frames_total.get(), 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_messages_are_no_frames_in_the_first_version() {
    let world = World::new(config()).await;
    let mut client = world.client_at("/socket/websocket").await.unwrap();

    for _ in 0..10 {
        let _ = client.socket.send(Message::Binary(vec![3, 0, 0, 0, 0, 0, 1].into())).await;
    }

    assert_eq!(client.closed().await, 1003);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_message_ends_its_connection_only() {
    let world = World::new(Config { max_message_size: 10_000, ..config() }).await;
    let (mut greedy, mut other) = (world.client().await, world.client().await);

    greedy.send_text("x".repeat(10_001)).await;

    assert_eq!(greedy.closed().await, 1009);
    other.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf8_ends_its_connection() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let frame = tokio_tungstenite::tungstenite::protocol::frame::Frame::message(
        vec![0xff, 0xfe],
        tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode::Data(
            tokio_tungstenite::tungstenite::protocol::frame::coding::Data::Text,
        ),
        true,
    );

    client.socket.send(Message::Frame(frame)).await.unwrap();

    assert_eq!(client.closed().await, 1007);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_is_closed_and_one_with_heartbeats_is_not() {
    let world = World::new(Config { idle_timeout: Duration::from_millis(500), ..config() }).await;
    let (mut silent, mut lively) = (world.client().await, world.client().await);

    let closing = tokio::spawn(async move { silent.closed().await });
    while !closing.is_finished() {
        lively.settle().await;
    }

    assert_eq!(closing.await.unwrap(), 1000);
    lively.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_cut_off_alone() {
    let limits = Config { send_queue_size: 100_000, history_size: 1_000_000, ..config() };
    let world = World::new(limits).await;
    let (mut stalled, mut reading) = (world.client().await, world.client().await);
    let changes = json!({"postgres_changes": [{"event": "*", "schema": "public", "table": "t"}]});
    for client in [&mut stalled, &mut reading] {
        client.join("1", "realtime:a", changes.clone()).await;
        assert_eq!(client.next().await[4]["status"], "ok");
        assert_eq!(client.next().await[3], "system");
    }

    let note = "x".repeat(20_000);
    let mut id = 0;
    while world.context.stats.slow_clients_total.get() == 0 {
        id += 1;
        world.insert(1000 + 10 * id, id as i64, &note);
        let event = reading.next().await;
        assert_eq!(event[4]["data"]["record"]["id"], id);
    }

    // Should it read on after all, it is told why.
    assert_eq!(stalled.closed().await, 1013);
    until(|| world.context.stats.connections.get() == 1).await;
    reading.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_does_not_hold_up_the_stop() {
    let world = World::new(Config { send_queue_size: 64 << 20, ..config() }).await;
    let mut stalled = world.client().await;
    let changes = json!({"postgres_changes": [{"event": "*", "schema": "public", "table": "t"}]});
    stalled.join("1", "realtime:a", changes).await;
    assert_eq!(stalled.next().await[4]["status"], "ok");
    let note = "x".repeat(100_000);
    for id in 0..200 {
        world.insert(1000 + 10 * id, id as i64, &note);
    }
    until(|| world.context.stats.position.get() >= 2990).await;

    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_ask_for_nothing_make_room_for_each_other_and_are_told_why() {
    let limits = ConnectionLimits { websockets: 2, opening: 4, waiting: 8 };
    let world = World::with_limits(config(), None, limits).await;
    world.go_live().await;
    let mut joined = world.client().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(world.address).await.unwrap());
    }

    // Neither those who watch over it nor clients are kept out, and nobody is sent away for them.
    assert_eq!(world.get("/health").await.0, 200);
    let mut client = world.client().await;
    joined.settle().await;
    client.settle().await;

    let refused = &world.context.stats.refused_connection(RefusedConnection::Handshake);
    until(|| refused.get() >= 192).await;
    let mut answer = String::new();
    silent.first_mut().unwrap().read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
    assert!(body.contains("too many connections"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_takes_little_room() {
    let world = World::new(config()).await;
    let (stream, _far) = tokio::io::duplex(64);
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let admission = Admission {
        credentials: Credentials::anonymous("web"),
        vsn: Vsn::V2,
        user_agent: None,
        memory: world.context.share(Kind::Connections),
        permit: Arc::clone(&world.context.websockets).try_acquire_owned().unwrap(),
    };

    let context = Arc::clone(&world.context);
    let stream = Metered::new(stream, context.share(Kind::Inbound), 0);
    let session = session::run(stream, Vec::new(), world.address, admission, context, stopped);

    // With its read buffer, and what the hub has of it, far below 10 KiB.
    assert!(size_of_val(&session) < 3 << 10, "{}", size_of_val(&session));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_come_keep_no_websocket_out() {
    let limits = ConnectionLimits { websockets: 10, opening: 1, waiting: 3 };
    let world = World::with_limits(config(), None, limits).await;
    world.go_live().await;
    let head = "POST /api/broadcast?apikey=anon HTTP/1.1\r\nHost: x\r\n\
                Content-Length: 100\r\n\r\n{";
    let requests = || world.context.stats.http_requests_total.get();
    let mut slow = Vec::new();
    for _ in 0..3 {
        let (mut stream, before) = (TcpStream::connect(world.address).await.unwrap(), requests());
        stream.write_all(head.as_bytes()).await.unwrap();
        until(|| requests() > before).await;
        slow.push(stream);
    }

    // The first of them has to go for it.
    let mut client = world.client().await;
    client.settle().await;

    let mut answer = String::new();
    slow[0].read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}
