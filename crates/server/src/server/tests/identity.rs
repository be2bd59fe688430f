//! Who gets in.

use std::time::Duration;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tide_feed::config::Config;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::world::{Client, World, config, token};
use crate::server::tls;
use crate::server::tls::tests::Certificate;
use crate::stats::RefusedConnection;

const HOUR: Duration = Duration::from_secs(3600);

/// The status and the error of a refused handshake. Who was told over a websocket asks again, and is
/// told the same.
async fn refusal(world: &World, path: &str) -> (u16, String) {
    if let Ok(client) = world.client_at(path).await
        && let Some((code, told)) = farewell(client).await
    {
        let (status, error) = Box::pin(refusal(world, path)).await;
        assert_eq!((code, told), (if status == 429 { 1013 } else { 1008 }, error.clone()));
        return (status, error);
    }
    match world.client_at(path).await {
        Err(SocketError::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            (answer.status().as_u16(), body["error"].as_str().unwrap_or_default().to_owned())
        }
        Err(other) => panic!("{other}"),
        Ok(_) => (101, String::new()),
    }
}

/// What a websocket is closed with, if it was opened for that alone.
async fn farewell(mut client: Client<TcpStream>) -> Option<(u16, String)> {
    let _ = client.socket.send(Message::Ping("there?".into())).await;
    match client.message().await {
        Some(Ok(Message::Close(Some(close)))) => {
            Some((close.code.into(), close.reason.to_string()))
        }
        _ => None,
    }
}

/// The status that a client's library gets which reads answers over HTTP, as it says by its name.
async fn status(world: &World, path: &str, headers: &str) -> u16 {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    );
    world.http(&request).await.status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_browser_is_told_over_the_websocket_and_soon_after_over_http() {
    let world = World::new(Config::default()).await;
    let path = "/realtime/v1/websocket?apikey=a.b.c&vsn=2.0.0";

    let told = farewell(world.client_at(path).await.unwrap()).await;

    assert_eq!(told, Some((1008, "The token provided is not a valid JWT".into())));
    assert_eq!(status(&world, path, "Origin: https://app.example\r\n").await, 401);
    assert_eq!(world.context.stats.refused_connection(RefusedConnection::Unauthorized).get(), 2);
    assert_eq!(world.context.stats.connections_total.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_program_that_says_its_name_is_told_over_http() {
    let world = World::new(Config::default()).await;

    let answer = status(&world, "/socket/websocket", "User-Agent: Python websockets\r\n").await;

    assert_eq!(answer, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_get_of_a_websockets_address_says_why_it_would_be_refused() {
    let world = World::new(Config::default()).await;

    let refused = world.get("/realtime/v1/websocket?apikey=a.b.c").await;

    assert_eq!(refused, (401, r#"{"error":"The token provided is not a valid JWT"}"#.into()));
    let good = format!("/realtime/v1/websocket?apikey={}", token("web", HOUR));
    assert_eq!(world.get(&good).await.0, 426);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_token_stands_for_the_anonymous_role_if_there_is_one() {
    let open = World::new(config()).await;
    let closed = World::new(Config::default()).await;

    for query in ["apikey=anon", "apikey=sb_publishable_x", ""] {
        let path = format!("/socket/websocket?{query}");
        assert_eq!(refusal(&open, &path).await.0, 101, "{query}");
        assert_eq!(refusal(&closed, &path).await.0, 401, "{query}");
    }
    assert_eq!(refusal(&closed, "/socket/websocket").await.1, "API key is missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_looks_like_a_token_must_be_one() {
    let world = World::new(config()).await;
    let forged = format!("{}x", token("web", HOUR));

    for (key, error) in [
        ("a.b.c", "The token provided is not a valid JWT"),
        (&forged, "Failed to validate JWT signature"),
        (&token("web", Duration::ZERO), "Token has expired"),
    ] {
        let path = format!("/realtime/v1/websocket?apikey={key}");
        assert_eq!(refusal(&world, &path).await, (401, error.to_owned()));
    }
    let good = format!("/realtime/v1/websocket?apikey={}", token("web", HOUR));
    assert_eq!(refusal(&world, &good).await.0, 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_clients_may_not_use_are_refused() {
    let strict = World::new(config()).await;
    let lax = World::new(Config { allow_privileged_roles: true, ..config() }).await;
    let path = |role| format!("/socket/websocket?apikey={}", token(role, HOUR));

    assert_eq!(refusal(&strict, &path("nobody")).await.0, 403);
    assert_eq!(refusal(&strict, &path("boss")).await.0, 403);
    assert_eq!(refusal(&lax, &path("boss")).await.0, 101);
    assert_eq!(refusal(&lax, &path("nobody")).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_says_so_and_lets_the_next_in_when_somebody_leaves() {
    let world = World::new(Config { max_connections: 1, ..config() }).await;
    let first = world.client().await;

    let refused = refusal(&world, "/socket/websocket").await;
    drop(first);
    super::world::until(|| world.context.stats.connections.get() == 0).await;

    assert_eq!(refused, (429, "Too many connected users".into()));
    super::world::until(|| world.context.websockets.available_permits() == 1).await;
    world.client().await.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_is_refused_where_origins_are_listed() {
    let allowed_origins = vec!["https://app.example".into()];
    let world = World::new(Config { allowed_origins, ..config() }).await;

    let evil = status(&world, "/socket/websocket", "Origin: https://evil.example\r\n").await;

    assert_eq!(evil, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_request_is_told_what_keeps_a_websocket_from_being_opened() {
    let world = World::new(Config { max_connections: 1, ..config() }).await;
    let ask = async |key: &str| {
        let (status, body) = world.get(&format!("/realtime/v1/websocket?apikey={key}")).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        (status, body["error"].as_str().unwrap().to_owned())
    };

    assert_eq!(ask(&token("web", HOUR)).await.0, 426);
    let expired = ask(&token("web", Duration::ZERO)).await;
    assert_eq!(expired, (401, "Token has expired".into()));
    let role = ask(&token("nobody", HOUR)).await;
    assert_eq!(role, (403, "the role \"nobody\" may not be used by clients".into()));
    let client = world.client().await;
    assert_eq!(ask("anon").await, (429, "Too many connected users".into()));
    drop(client);
    super::world::until(|| world.context.websockets.available_permits() == 1).await;
    assert_eq!(ask("anon").await.0, 426, "it has taken nobody's place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_ends_with_its_token() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let short = token("web", Duration::from_secs(2));
    let changes = json!({"postgres_changes": [{"event": "*", "schema": "public", "table": "t"}]});
    client
        .send(
            json!(["1", "1", "realtime:a", "phx_join", {"config": changes, "access_token": short}]),
        )
        .await;
    assert_eq!(client.next().await[4]["status"], "ok");
    assert_eq!(client.next().await[3], "system");

    let (said, closed) = (client.next().await, client.next().await);

    assert_eq!(said[3], "system");
    assert_eq!(said[4]["status"], "error");
    let text = said[4]["message"].as_str().unwrap();
    assert!(text.starts_with("Token has expired ") && text.ends_with(" seconds ago"), "{text}");
    assert_eq!(closed, json!(["1", "1", "realtime:a", "phx_close", {}]));
    client.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_keeps_the_channel_and_a_bad_one_ends_it() {
    let world = World::new(Config { public_channels: true, ..config() }).await;
    let mut client = world.client().await;
    let first = token("web", HOUR);
    client
        .send(json!(["1", "1", "realtime:a", "phx_join", {"config": {}, "access_token": first}]))
        .await;
    assert_eq!(client.next().await[4]["status"], "ok");
    let push =
        |token: Value| json!(["1", "2", "realtime:a", "access_token", {"access_token": token}]);

    for ignored in
        [json!(first), json!(null), json!("sb_publishable_x"), json!(token("web", HOUR * 2))]
    {
        client.send(push(ignored)).await;
        client.settle().await;
    }
    client.send(push(json!("a.b.c"))).await;

    assert_eq!(client.next().await[4]["message"], "The token provided is not a valid JWT");
    assert_eq!(client.next().await, json!(["1", "1", "realtime:a", "phx_close", {}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_with_a_bad_token_is_refused() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    let cases = [
        ("a.b.c".to_owned(), "MalformedJWT: "),
        (token("web", Duration::ZERO), "InvalidJWTToken: Token has expired"),
        (token("nobody", HOUR), "Unauthorized: "),
        (token("boss", HOUR), "Unauthorized: "),
    ];
    for (token, expected) in cases {
        let payload = json!({"config": {}, "access_token": token});
        client.send(json!(["1", "1", "realtime:a", "phx_join", payload])).await;
        let answer = client.next().await;
        assert_eq!(answer[4]["status"], "error");
        let reason = answer[4]["response"]["reason"].as_str().unwrap();
        assert!(reason.starts_with(expected), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_works_over_tls_and_a_stalled_tls_handshake_ends() {
    let certificate = Certificate::new();
    let acceptor = tls::acceptor(&certificate.certificate, &certificate.key).unwrap();
    let short = Config { handshake_timeout: Duration::from_millis(300), ..config() };
    let world = World::stalled(short, Some(acceptor)).await;
    let mut stalled = TcpStream::connect(world.address).await.unwrap();

    let stream = TcpStream::connect(world.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = certificate.connector().connect(name, stream).await.unwrap();
    let mut client =
        Client::over(stream, "ws://localhost/socket/websocket?vsn=2.0.0").await.unwrap();

    client.settle().await;
    let mut rest = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut stalled, &mut rest).await;
    client.settle().await;
}
