//! nats-server, and its protocol: over a websocket to subscribe, over TCP to publish.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use memchr::memmem;

use super::reader::{Format, Row, number};
use super::support::cluster::free_port;
use super::support::{DEADLINE, wait_until};
use super::websocket::{self, Split};

const SUBJECT: &str = "feed";
const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n";

#[derive(Debug)]
pub struct Nats {
    child: Child,
    port: u16,
    websocket_port: u16,
    config: std::path::PathBuf,
}

impl Nats {
    pub fn start() -> Nats {
        let (port, websocket_port) = (free_port(), free_port());
        let config = std::env::temp_dir().join(format!("pg_tide-bench-{port}.conf"));
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nmax_connections: 100000\nping_interval: \"1h\"\n\
             websocket {{ listen: \"127.0.0.1:{websocket_port}\", no_tls: true }}\n"
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("nats-server")
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server, of the Debian package of that name");
        wait_until("nats-server listens", || {
            TcpStream::connect(("127.0.0.1", websocket_port)).ok()
        });
        Nats { child, port, websocket_port, config }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// A websocket client that has subscribed.
    pub fn join(&self) -> TcpStream {
        let mut stream = websocket::connect(self.websocket_port, "/");
        websocket::send(&mut stream, &format!("{CONNECT}SUB {SUBJECT} 1\r\nPING\r\n"));
        while !websocket::receive(&mut stream).ends_with(b"PONG\r\n") {}
        stream
    }

    pub fn publisher(&self) -> Publisher {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(format!("{CONNECT}PING\r\n").as_bytes()).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while lines.next().unwrap().unwrap() != "PONG" {}
        Publisher(stream)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = std::fs::remove_file(&self.config);
    }
}

#[derive(Debug)]
pub struct Publisher(TcpStream);

impl Publisher {
    pub fn publish(&mut self, messages: &[String]) {
        let mut text = String::new();
        for message in messages {
            text.push_str(&format!("PUB {SUBJECT} {}\r\n{message}\r\n", message.len()));
        }
        self.0.write_all(text.as_bytes()).unwrap();
    }
}

/// NATS's protocol in websocket frames, whose ends mean nothing to it. Each message is a row of
/// one column.
#[derive(Debug, Default)]
pub struct NatsFrames {
    /// The beginning of a message whose end is in a later frame.
    rest: Vec<u8>,
}

impl Format for NatsFrames {
    fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&Row<'_>)) -> usize {
        let mut used = 0;
        while let Split::Frame { payload, length, .. } = websocket::split(&bytes[used..]) {
            if self.rest.is_empty() {
                let taken = take_messages(payload, each);
                self.rest.extend_from_slice(&payload[taken..]);
            } else {
                self.rest.extend_from_slice(payload);
                let taken = take_messages(&self.rest, each);
                self.rest.drain(..taken);
            }
            used += length;
        }
        used
    }
}

fn take_messages(bytes: &[u8], each: &mut dyn FnMut(&Row<'_>)) -> usize {
    let mut used = 0;
    while let Some(length) = memmem::find(&bytes[used..], b"\r\n") {
        let line = &bytes[used..used + length];
        let body = used + length + 2;
        if !line.starts_with(b"MSG ") {
            assert!(!line.starts_with(b"-ERR"), "{}", String::from_utf8_lossy(line));
            used = body;
            continue;
        }
        let size = number(line.rsplit(|byte| *byte == b' ').next().unwrap()) as usize;
        let Some(message) = bytes.get(body..body + size + 2) else { break };
        let mut row = Row::default();
        row.push(&message[..size]);
        each(&row);
        used = body + size + 2;
    }
    used
}
