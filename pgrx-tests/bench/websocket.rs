//! The client's side of a websocket to a trusted server: frames are split without copying.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::reader::{Format, Reader, Row};
use super::scan;
use super::support::{DEADLINE, Database};

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// Connects and upgrades; the stream stands before the first frame.
pub fn connect(port: u16, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost:{port}\r\nupgrade: websocket\r\n\
         connection: Upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream
}

/// Sends a text frame, masked with zeros.
pub fn send(stream: &mut TcpStream, text: &str) {
    let mut frame = vec![0x80 | TEXT];
    match text.len() {
        length @ ..126 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    stream.write_all(&frame).unwrap();
}

/// Reads exactly one frame; for setting up only.
pub fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; 2];
    stream.read_exact(&mut bytes).unwrap();
    loop {
        let missing = match split(&bytes) {
            Split::Frame { payload, .. } => return payload.to_vec(),
            Split::Missing(missing) => missing,
        };
        let start = bytes.len();
        bytes.resize(start + missing, 0);
        stream.read_exact(&mut bytes[start..]).unwrap();
    }
}

pub enum Split<'a> {
    Frame {
        payload: &'a [u8],
        /// With its header.
        length: usize,
        /// Not followed by more of the same message.
        last: bool,
    },
    /// At least so many bytes are missing.
    Missing(usize),
}

/// The frame at the front. A close ends the run: no measurement expects one.
#[inline]
pub fn split(bytes: &[u8]) -> Split<'_> {
    let (Some(first), Some(second)) = (bytes.first(), bytes.get(1)) else {
        return Split::Missing(2 - bytes.len());
    };
    let (header, size) = match second {
        126 => (4, 2),
        127 => (10, 8),
        length => (2, usize::from(*length)),
    };
    let size = if header == 2 {
        size
    } else {
        let Some(word) = bytes.get(2..header) else {
            return Split::Missing(header - bytes.len());
        };
        word.iter().fold(0, |size, byte| size << 8 | usize::from(*byte))
    };
    let Some(payload) = bytes.get(header..header + size) else {
        return Split::Missing(header + size - bytes.len());
    };
    let (length, last) = (header + size, first & 0x80 != 0);
    match first & 0x0f {
        CLOSE => panic!("the server closed: {}", String::from_utf8_lossy(payload)),
        PING => Split::Frame { payload: b"", length, last },
        _ => Split::Frame { payload, length, last },
    }
}

/// Rows in frames of pg_tide's.
#[derive(Debug)]
pub struct Frames;

impl Format for Frames {
    fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&Row<'_>)) -> usize {
        let mut used = 0;
        while let Split::Frame { payload, length, last } = split(&bytes[used..]) {
            assert!(last, "a frame in fragments");
            if !payload.is_empty() {
                match scan::frame(payload) {
                    Some(row) => each(&row),
                    None => expect_no_trouble(payload),
                }
            }
            used += length;
        }
        used
    }
}

fn expect_no_trouble(frame: &[u8]) {
    let text = String::from_utf8_lossy(frame);
    assert!(!text.contains("\"status\":\"error\"") && !text.contains("resync"), "{text}");
}

/// What to subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Supabase's `postgres_changes`, on a channel of any name.
    Changes,
    /// pg_tide's own `tide:table:`, whose frames do without the list of columns.
    Table,
}

/// A client that has joined; `table` may be `*`.
pub fn join(port: u16, token: &str, topic: Topic, table: &str) -> TcpStream {
    let mut stream = connect(port, &format!("/realtime/v1/websocket?apikey={token}&vsn=2.0.0"));
    let (name, config) = match topic {
        Topic::Changes => (
            "realtime:bench".to_owned(),
            json!({ "postgres_changes": [{ "event": "*", "schema": "public", "table": table }] }),
        ),
        Topic::Table => (format!("realtime:tide:table:public.{table}"), json!({})),
    };
    let frame = json!(["1", "1", name, "phx_join", { "config": config }]);
    send(&mut stream, &frame.to_string());
    wait_for(&mut stream, "phx_reply");
    if topic == Topic::Changes {
        wait_for(&mut stream, "system");
    }
    stream
}

fn wait_for(stream: &mut TcpStream, event: &str) {
    loop {
        let frame: Value = serde_json::from_slice(&receive(stream)).unwrap();
        if frame[3] == event {
            assert_eq!(frame[4]["status"], "ok", "{frame}");
            return;
        }
    }
}

/// A joined client whose rows can be read.
pub fn reader(database: &Database<'_>, topic: Topic, table: &str) -> Reader {
    let token = database.token("authenticated");
    Reader::new(join(database.port, &token, topic, table), Frames)
}
