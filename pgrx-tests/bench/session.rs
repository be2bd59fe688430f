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

    /// Has a statement with one text parameter planned, for [`Session::ask_all`].
    pub fn prepare(&mut self, statement: &str) {
        let parse = format!("\0{statement}\0\0\0");
        self.send(Some(b'P'), parse.as_bytes());
        self.send(Some(b'S'), &[]);
        self.wait_for(b'Z');
    }

    /// Runs the prepared statement with each argument, in a transaction of its own, so many sent
    /// ahead of their answers.
    pub fn ask_all(&mut self, arguments: &[String], window: usize) {
        for some in arguments.chunks(window) {
            let mut messages = Vec::new();
            for argument in some {
                let mut bind = vec![0, 0, 0, 0, 0, 1];
                bind.extend_from_slice(&(argument.len() as u32).to_be_bytes());
                bind.extend_from_slice(argument.as_bytes());
                bind.extend_from_slice(&[0, 0]);
                write(&mut messages, Some(b'B'), &bind);
                write(&mut messages, Some(b'E'), &[0, 0, 0, 0, 0]);
                write(&mut messages, Some(b'S'), &[]);
            }
            self.stream.write_all(&messages).unwrap();
            some.iter().for_each(|_| self.wait_for(b'Z'));
        }
    }

    fn query(&mut self, command: &str) {
        self.send(Some(b'Q'), format!("{command}\0").as_bytes());
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) {
        let mut message = Vec::new();
        write(&mut message, kind, body);
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

fn write(out: &mut Vec<u8>, kind: Option<u8>, body: &[u8]) {
    out.extend(kind);
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
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
