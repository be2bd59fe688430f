//! Plain HTTP/1.1 requests, so that tests see exactly what is on the wire.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::DEADLINE;

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// `GET path`, connection closed afterwards.
pub fn get(port: u16, path: &str) -> Response {
    request(port, "GET", path, &[])
}

/// A request without a body and with extra headers.
pub fn request(port: u16, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    try_request(port, method, path, headers)
        .unwrap_or_else(|error| panic!("{method} {path} on port {port}: {error}"))
}

/// `POST path` with a body of JSON.
pub fn post_json(port: u16, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let headers = [headers, &[("content-type", "application/json")]].concat();
    send(port, "POST", path, &headers, body)
        .unwrap_or_else(|error| panic!("POST {path} on port {port}: {error}"))
}

pub fn try_request(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Response> {
    send(port, method, path, headers, "")
}

fn send(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Response> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: localhost:{port}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("connection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    socket.write_all(text.as_bytes())?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| std::io::Error::other("not an HTTP response"))
}

fn parse(answer: &str) -> Option<Response> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { join_chunks(body) } else { body.to_owned() };
    Some(Response { status, head: head.to_owned(), body })
}

fn join_chunks(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size).filter(|chunk| !chunk.is_empty()) else { break };
        whole.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    whole
}
