//! A websocket client that hides nothing: every frame can be looked at, any can be sent.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

use super::DEADLINE;

/// A frame from the server, of either protocol version.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub join_ref: Option<String>,
    pub reference: Option<String>,
    pub topic: String,
    pub event: String,
    pub payload: Value,
    /// As it was received.
    pub text: String,
}

/// What an upgrade was answered with instead of "101".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub body: String,
}

/// The websocket is closed; the code and reason of the server's close frame, if there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed(pub Option<(u16, String)>);

#[derive(Debug)]
pub struct Client {
    socket: WebSocket<TcpStream>,
    version: Version,
    next_ref: u64,
    /// Frames that a wait for another one has passed over.
    passed: VecDeque<Frame>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Objects,
    Arrays,
}

impl Client {
    pub fn connect(port: u16, path: &str) -> Result<Client, Refusal> {
        let version = if path.contains("vsn=2.0.0") { Version::Arrays } else { Version::Objects };
        let refused =
            |error: &dyn std::fmt::Display| Refusal { status: 0, body: error.to_string() };
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| refused(&error))?;
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let url = format!("ws://localhost:{port}{path}");
        let mut request = url.into_client_request().map_err(|error| refused(&error))?;
        // Who says a name of its own is refused over HTTP.
        request.headers_mut().insert("user-agent", HeaderValue::from_static("pg_tide tests"));
        // What the server sends is never too large.
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        match tungstenite::client::client_with_config(request, stream, Some(config)) {
            Ok((socket, _)) => Ok(Client { socket, version, next_ref: 1, passed: VecDeque::new() }),
            Err(tungstenite::HandshakeError::Failure(Error::Http(response))) => Err(Refusal {
                status: response.status().as_u16(),
                body: String::from_utf8_lossy(response.body().as_deref().unwrap_or_default())
                    .into_owned(),
            }),
            Err(error) => Err(refused(&error)),
        }
    }

    /// Sends a frame with a reference of its own, which is returned.
    pub fn push(&mut self, topic: &str, event: &str, payload: &Value) -> String {
        let reference = self.next_ref.to_string();
        self.next_ref += 1;
        let join_ref = if event == "phx_join" { json!(reference) } else { Value::Null };
        let frame = match self.version {
            Version::Arrays => json!([join_ref, reference, topic, event, payload]),
            Version::Objects => json!({
                "topic": topic, "event": event, "payload": payload,
                "ref": reference, "join_ref": join_ref,
            }),
        };
        self.send_text(&frame.to_string());
        reference
    }

    /// Sends a frame and waits for its reply's payload.
    #[track_caller]
    pub fn call(&mut self, topic: &str, event: &str, payload: &Value) -> Value {
        let reference = self.push(topic, event, payload);
        self.reply(&reference)
    }

    #[track_caller]
    pub fn reply(&mut self, reference: &str) -> Value {
        self.wait_for(&format!("the reply to {reference}"), |frame| {
            frame.event == "phx_reply" && frame.reference.as_deref() == Some(reference)
        })
        .payload
    }

    /// Joins with the given `config`; the whole reply, whatever it says.
    #[track_caller]
    pub fn try_join(&mut self, topic: &str, config: &Value) -> Value {
        self.call(topic, "phx_join", &json!({ "config": config }))
    }

    /// Joins and returns the response of the reply, which must be "ok".
    #[track_caller]
    pub fn join(&mut self, topic: &str, config: &Value) -> Value {
        let reply = self.try_join(topic, config);
        assert_eq!(reply["status"], "ok", "join of {topic}: {reply}");
        reply["response"].clone()
    }

    /// Joins `realtime:<topic>` for every change of one table in schema `public`, and waits until
    /// the server has said that it is subscribed. The binding's id is returned.
    #[track_caller]
    pub fn subscribe(&mut self, topic: &str, table: &str) -> u64 {
        self.subscribe_to(topic, json!({ "event": "*", "schema": "public", "table": table }))
    }

    /// The same with any binding.
    #[track_caller]
    pub fn subscribe_to(&mut self, topic: &str, binding: Value) -> u64 {
        let topic = format!("realtime:{topic}");
        let response = self.join(&topic, &json!({ "postgres_changes": [binding] }));
        let system = self
            .wait_for("the system frame", |frame| frame.event == "system" && frame.topic == topic);
        assert_eq!(system.payload["status"], "ok", "{}", system.text);
        response["postgres_changes"][0]["id"].as_u64().unwrap()
    }

    pub fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).unwrap();
    }

    pub fn send_binary(&mut self, bytes: &[u8]) {
        self.socket.send(Message::binary(bytes.to_vec())).unwrap();
    }

    /// Sends what the server may not like, or may already have closed the connection on.
    pub fn send_text_if_open(&mut self, text: &str) {
        let _ = self.socket.send(Message::text(text));
    }

    /// The bytes of the connection, for what is not a websocket frame at all.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.socket.get_mut().write_all(bytes);
    }

    /// The connection itself, for reading what is not to be parsed.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.socket.get_mut()
    }

    /// The next frame, those passed over first.
    #[track_caller]
    pub fn next(&mut self) -> Frame {
        if let Some(frame) = self.passed.pop_front() {
            return frame;
        }
        self.read(DEADLINE).expect("the connection is open").expect("a frame within the deadline")
    }

    /// The first frame that the condition holds for. Others stay for later, in order.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, condition: impl Fn(&Frame) -> bool) -> Frame {
        if let Some(index) = self.passed.iter().position(&condition) {
            return self.passed.remove(index).unwrap();
        }
        let start = Instant::now();
        loop {
            let left = DEADLINE.saturating_sub(start.elapsed());
            match self.read(left) {
                Ok(Some(frame)) if condition(&frame) => return frame,
                Ok(Some(frame)) => self.passed.push_back(frame),
                Ok(None) => panic!("no sign of {what}; got instead: {:#?}", self.texts()),
                Err(closed) => {
                    panic!("{closed:?} while waiting for {what}; got before: {:#?}", self.texts())
                }
            }
        }
    }

    /// The data of the next postgres_changes frame.
    #[track_caller]
    pub fn change(&mut self) -> Value {
        self.wait_for("a change", |frame| frame.event == "postgres_changes").payload["data"].clone()
    }

    /// The data of the next so many postgres_changes frames.
    #[track_caller]
    pub fn changes(&mut self, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.change()).collect()
    }

    /// The payload of the next broadcast on a topic.
    #[track_caller]
    pub fn broadcast(&mut self, topic: &str) -> Value {
        self.wait_for("a broadcast", |frame| frame.event == "broadcast" && frame.topic == topic)
            .payload
    }

    /// The first of the frames that waits have passed over.
    pub fn pop_passed(&mut self) -> Option<Frame> {
        self.passed.pop_front()
    }

    /// Frames that have been received and not been asked for, of this event.
    pub fn passed(&self, event: &str) -> Vec<&Frame> {
        self.passed.iter().filter(|frame| frame.event == event).collect()
    }

    /// Waits for the end of the connection, and says how it ended.
    #[track_caller]
    pub fn wait_until_closed(&mut self) -> Closed {
        let start = Instant::now();
        loop {
            match self.read(DEADLINE.saturating_sub(start.elapsed())) {
                Ok(Some(frame)) => self.passed.push_back(frame),
                Ok(None) => panic!("still connected; got: {:#?}", self.texts()),
                Err(closed) => return closed,
            }
        }
    }

    /// The next frame from the socket; `None` when the time is up.
    pub fn read(&mut self, timeout: Duration) -> Result<Option<Frame>, Closed> {
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.get_ref().set_read_timeout(Some(left)).map_err(|_| Closed(None))?;
            match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(Some(parse(&text))),
                Ok(Message::Binary(bytes)) => return Ok(Some(parse_binary(&bytes))),
                Ok(Message::Close(reason)) => return Err(self.finish(reason)),
                Ok(_) => {}
                Err(Error::Io(error))
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(None);
                }
                Err(_) => return Err(Closed(None)),
            }
        }
    }

    fn finish(&mut self, reason: Option<tungstenite::protocol::CloseFrame>) -> Closed {
        // Answers the close frame, so that the server need not wait for it.
        let _ = self.socket.flush();
        Closed(reason.map(|frame| (code(frame.code), frame.reason.to_string())))
    }

    fn texts(&self) -> Vec<&str> {
        self.passed.iter().map(|frame| frame.text.as_str()).collect()
    }
}

fn code(code: CloseCode) -> u16 {
    code.into()
}

#[track_caller]
fn parse(text: &str) -> Frame {
    let value: Value = serde_json::from_str(text)
        .unwrap_or_else(|error| panic!("not JSON from the server ({error}): {text}"));
    let string = |value: &Value| value.as_str().map(str::to_owned);
    let field = |index: usize, name: &str| match &value {
        Value::Array(items) => items[index].clone(),
        object => object[name].clone(),
    };
    Frame {
        join_ref: string(&field(0, "join_ref")),
        reference: string(&field(1, "ref")),
        topic: string(&field(2, "topic")).expect("a topic"),
        event: string(&field(3, "event")).expect("an event"),
        payload: field(4, "payload"),
        text: text.to_owned(),
    }
}

/// A user broadcast in its binary form: kind 4, three lengths, the payload's encoding.
fn parse_binary(bytes: &[u8]) -> Frame {
    let [4, topic, event, meta, encoding, rest @ ..] = bytes else {
        panic!("an unknown binary frame: {bytes:?}");
    };
    let (topic, rest) = rest.split_at(usize::from(*topic));
    let (event, rest) = rest.split_at(usize::from(*event));
    let (meta, body) = rest.split_at(usize::from(*meta));
    let payload = match encoding {
        1 => serde_json::from_slice(body).unwrap(),
        _ => json!(body),
    };
    let meta: Value = serde_json::from_slice(meta).unwrap_or_default();
    let event = String::from_utf8_lossy(event);
    Frame {
        join_ref: None,
        reference: None,
        topic: String::from_utf8_lossy(topic).into_owned(),
        event: "broadcast".to_owned(),
        payload: json!({ "type": "broadcast", "event": event, "payload": payload, "meta": meta }),
        text: format!("{bytes:?}"),
    }
}
