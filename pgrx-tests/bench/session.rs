//! A session with Postgres in the bare protocol: the leanest way to hear notifications, and to be
//! a walsender's client without `pg_recvlogical` in between.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::pgoutput;
use super::reader::{Format, Reader, Row};
use super::support::Database;

pub struct Session {
    stream: UnixStream,
    /// The backend's process.
    pub pid: i32,
}

impl Session {
    pub fn connect(database: &Database<'_>, replication: bool) -> Session {
        let stream = UnixStream::connect(database.cluster.host().join(".s.PGSQL.5432")).unwrap();
        let mut session = Session { stream, pid: 0 };
        let mut startup = 196_608_u32.to_be_bytes().to_vec();
        let mut parameters = vec!["user", "postgres", "database", &database.name];
        if replication {
            parameters.extend(["replication", "database"]);
        }
        for text in parameters {
            startup.extend_from_slice(text.as_bytes());
            startup.push(0);
        }
        startup.push(0);
        session.send(None, &startup);
        session.wait_for(b'Z');
        session
    }

    /// Runs a command that returns nothing.
    pub fn run(&mut self, command: &str) {
        self.query(command);
        self.wait_for(b'Z');
    }

    /// Hears what is sent to a channel from now on: each payload a row of one column.
    pub fn listen(mut self, channel: &str) -> Reader {
        self.run(&format!("listen {channel}"));
        Reader::new(self.stream, Messages)
    }

    /// Receives a slot's changes by pgoutput.
    pub fn stream(mut self, slot: &str, publication: &str) -> Reader {
        self.query(&format!(
            "START_REPLICATION SLOT {slot} LOGICAL 0/0 \
             (proto_version '1', publication_names '{publication}')"
        ));
        self.wait_for(b'W');
        Reader::new(self.stream, Messages)
    }

    fn query(&mut self, command: &str) {
        self.send(Some(b'Q'), format!("{command}\0").as_bytes());
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) {
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        self.stream.write_all(&message).unwrap();
    }

    fn wait_for(&mut self, wanted: u8) {
        loop {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head).unwrap();
            let mut body = vec![0; length(&head).unwrap() - 4];
            self.stream.read_exact(&mut body).unwrap();
            match head[0] {
                b'E' => panic!("{}", String::from_utf8_lossy(&body)),
                b'K' => self.pid = i32::from_be_bytes(body[..4].try_into().unwrap()),
                _ => {}
            }
            if head[0] == wanted {
                return;
            }
        }
    }
}

/// Of a message with its length word, but without its type.
fn length(head: &[u8]) -> Option<usize> {
    Some(u32::from_be_bytes(head.get(1..5)?.try_into().ok()?) as usize)
}

/// The server's messages: notifications, and pgoutput's wrapped in copy data.
#[derive(Debug)]
struct Messages;

impl Format for Messages {
    fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&Row<'_>)) -> usize {
        let mut used = 0;
        while let Some(length) = length(&bytes[used..]) {
            let Some(message) = bytes.get(used..used + 1 + length) else { break };
            match (message[0], message.get(5)) {
                (b'd', Some(b'w')) => {
                    if let Some((Some(row), _)) = pgoutput::message(&message[30..]) {
                        each(&row);
                    }
                }
                (b'A', _) => {
                    let mut row = Row::default();
                    row.push(message[9..].split(|byte| *byte == 0).nth(1).unwrap());
                    each(&row);
                }
                (b'E', _) => panic!("{}", String::from_utf8_lossy(message)),
                _ => {}
            }
            used += 1 + length;
        }
        used
    }
}
