//! Many connections read by one thread.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};

use super::reader::{Format, Row};

pub struct Crowd {
    poll: Poll,
    events: Events,
    members: Vec<Member>,
    /// What was read of one connection at a time.
    buffer: Vec<u8>,
}

struct Member {
    stream: mio::net::TcpStream,
    format: Box<dyn Format>,
    /// The beginning of a message whose end has not come yet.
    rest: Vec<u8>,
}

impl Crowd {
    pub fn new(members: Vec<(TcpStream, Box<dyn Format>)>) -> Crowd {
        let poll = Poll::new().unwrap();
        let members = members
            .into_iter()
            .enumerate()
            .map(|(index, (stream, format))| {
                stream.set_nonblocking(true).unwrap();
                let mut stream = mio::net::TcpStream::from_std(stream);
                poll.registry().register(&mut stream, Token(index), Interest::READABLE).unwrap();
                Member { stream, format, rest: Vec::new() }
            })
            .collect();
        Crowd { poll, events: Events::with_capacity(1_024), members, buffer: vec![0; 512 << 10] }
    }

    /// Waits until something comes, and hands it on with the number of the connection.
    pub fn read(&mut self, timeout: Duration, mut each: impl FnMut(usize, &Row<'_>)) {
        self.poll.poll(&mut self.events, Some(timeout)).unwrap();
        assert!(!self.events.is_empty(), "nothing came for {timeout:?}");
        for event in &self.events {
            let Token(index) = event.token();
            self.members[index].read(&mut self.buffer, &mut |row| each(index, row));
        }
    }
}

impl Member {
    /// Reads until the socket is empty, as its readiness is told only once.
    fn read(&mut self, buffer: &mut [u8], each: &mut dyn FnMut(&Row<'_>)) {
        loop {
            let kept = self.rest.len();
            buffer[..kept].copy_from_slice(&self.rest);
            let read = match self.stream.read(&mut buffer[kept..]) {
                Ok(0) => panic!("the server ended a connection"),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            };
            let bytes = &buffer[..kept + read];
            let taken = self.format.take(bytes, each);
            self.rest.clear();
            self.rest.extend_from_slice(&bytes[taken..]);
            if kept + read < buffer.len() {
                return;
            }
        }
    }
}
