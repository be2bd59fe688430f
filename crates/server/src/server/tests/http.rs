//! What is answered over HTTP.

use std::time::Duration;

use serde_json::{Value, json};
use tide_feed::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::{World, config};

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_stream() {
    let world = World::stalled(config(), None).await;

    let (before, reason) = world.get("/health").await;
    world.go_live().await;
    let (after, _) = world.get("/health").await;

    assert_eq!((before, after), (503, 200));
    let reason: Value = serde_json::from_str(&reason).unwrap();
    assert_eq!(reason["status"], "unavailable");
    assert!(reason["reason"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_text_for_prometheus() {
    let world = World::new(config()).await;

    let (status, text) = world.get("/metrics").await;

    assert_eq!(status, 200);
    assert!(text.contains("\npg_tide_http_requests_total 1\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let world = World::new(config()).await;

    for path in ["/nothing", "//", "/health/", "/socket/../health", "/%68ealth", "/socket"] {
        let (status, body) = world.get(path).await;
        assert_eq!(status, 404, "{path}");
        assert!(serde_json::from_str::<Value>(&body).unwrap()["error"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_and_preflights_are_answered_clearly() {
    let world = World::new(config()).await;
    let ask = async |method: &str, path: &str| {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        world.http(&request).await
    };

    let refused = ask("POST", "/health").await;
    assert_eq!(refused.status(), 405);
    assert!(
        refused.0.to_lowercase().contains("\r\nallow: get, head, options\r\n"),
        "{}",
        refused.0
    );
    assert_eq!(ask("GET", "/api/broadcast").await.status(), 405);
    let preflight = ask("OPTIONS", "/realtime/v1/api/broadcast").await;
    assert_eq!(preflight.status(), 204);
    assert!(preflight.0.to_lowercase().contains("\r\naccess-control-allow-origin: *\r\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_metrics_are_for_loopback_by_its_own_name_only() {
    let world = World::new(config()).await;
    let ask = async |path: &str, headers: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
        world.http(&request).await
    };

    for host in ["localhost", "localhost:4000", "127.0.0.1:4000", "[::1]:4000"] {
        let page = ask("/", &format!("Host: {host}\r\n")).await;
        assert_eq!(page.status(), 200, "{host}");
        assert!(page.body().contains("id=\"events\""));
        let head = page.0.to_lowercase();
        assert!(head.contains("content-security-policy: default-src 'none'"));
        assert!(!head.contains("access-control-allow-origin"));
    }
    let proxied = [
        "Forwarded: for=1.2.3.4",
        "Via: 1.1 proxy",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Host: example",
        "X-Forwarded-Proto: https",
        "X-Real-IP: 1.2.3.4",
    ];
    let proxied = proxied.map(|header| format!("Host: localhost\r\n{header}\r\n"));
    for headers in proxied.iter().map(String::as_str).chain(["Host: evil.example\r\n"]) {
        assert_eq!(ask("/", headers).await.status(), 404, "{headers}");
        assert_eq!(ask("/check", headers).await.status(), 404, "{headers}");
        assert_eq!(ask("/metrics", headers).await.status(), 403, "{headers}");
    }
    let check = ask("/check", "Host: localhost\r\n").await;
    assert_eq!(
        serde_json::from_str::<Value>(check.body()).unwrap(),
        json!([{"item": "preload", "ok": true}])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_can_be_opened_to_other_machines() {
    let world = World::new(Config { public_metrics: true, ..config() }).await;
    let request = "GET /metrics HTTP/1.1\r\nHost: db.example\r\nConnection: close\r\n\r\n";

    assert_eq!(world.http(request).await.status(), 200);
    assert_eq!(world.http(&request.replace("/metrics", "/check")).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_can_be_turned_off() {
    let world = World::new(Config { page: false, ..config() }).await;

    assert_eq!(world.get("/").await.0, 404);
    assert_eq!(world.get("/check").await.0, 404);
    assert_eq!(world.get("/health").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends_is_cut_off() {
    let short = Duration::from_millis(50);
    let world = World::new(Config { handshake_timeout: short, ..config() }).await;
    let mut slow = TcpStream::connect(world.address).await.unwrap();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let mut silent = TcpStream::connect(world.address).await.unwrap();

    // Both calls come back only when the server hangs up.
    let _ = slow.read_to_end(&mut Vec::new()).await;
    let _ = silent.read_to_end(&mut Vec::new()).await;

    assert_eq!(world.get("/health").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_only_its_own_connection() {
    let world = World::new(config()).await;
    let mut client = world.client().await;

    for garbage in ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n"] {
        let answer = world.http(garbage).await;
        assert!(matches!(answer.status(), 400 | 0), "{answer:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(200_000));
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    // The server may close before all of it is written.
    let _ = stream.write_all(long.as_bytes()).await;
    let _ = stream.read_to_end(&mut Vec::new()).await;

    client.settle().await;
}
