//! The notifier: listens to the channels that clients have joined, and passes on what comes.
//!
//! It has a session of its own, so that neither a slow client nor a transaction that the stream
//! waits for holds back Postgres's queue. What the server cannot take is kept for a while, within a
//! bound, and then dropped and counted.

use std::collections::{HashSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::notification::Notified;
use tide_feed::wishes::WishReader;

use crate::helper::notify_queue::{self, NotifyBatch};
use crate::process::signals;
use crate::socket::SocketError;

/// Bytes that may wait for the server.
const ROOM: usize = 64 << 20;
/// While more than this waits for the server, it is not listened to: it reads nothing, and whatever it
/// says has an answer.
const PATIENCE: usize = 1 << 20;
/// Bytes of a channel's name in Postgres, which refuses a longer one.
const LONGEST_NAME: usize = 63;
/// Notifications in one frame.
const FRAME: usize = 512;

/// The notifier's conversation with one server.
#[derive(Debug)]
struct Notifier {
    stream: UnixStream,
    wishes: WishReader,
    /// Frames that wait for the server, and how much of the first it has.
    outbox: VecDeque<Vec<u8>>,
    sent: usize,
    waiting: usize,
    /// What the server wants to hear, by its newest list.
    wanted: HashSet<String>,
    heard: HashSet<String>,
}

/// Serves a server until it closes the connection.
///
/// # Errors
/// The connection's end, or what is wrong with it.
pub(crate) fn serve(stream: UnixStream) -> Result<(), SocketError> {
    let mut notifier = Notifier {
        stream,
        wishes: WishReader::default(),
        outbox: VecDeque::new(),
        sent: 0,
        waiting: 0,
        wanted: HashSet::new(),
        heard: HashSet::new(),
    };
    let result = notifier.run();
    // The next server has wishes of its own.
    notifier.follow(HashSet::new());
    result
}

impl Notifier {
    fn run(&mut self) -> Result<(), SocketError> {
        loop {
            let wanted = if self.is_kept_waiting() { None } else { self.receive()? };
            let has_more = wanted.is_some();
            if let Some(wanted) = wanted {
                self.follow(wanted.into_iter().collect());
            }
            if notify_queue::is_pending() {
                let batch = notify_queue::read(self.room());
                self.add(batch);
            }
            self.send()?;
            // One list at a time: whoever sends them without end is not to keep the queue from being
            // read.
            if has_more {
                check_for_interrupts!();
            } else {
                self.wait();
            }
            signals::reload();
        }
    }

    fn room(&self) -> usize {
        ROOM.saturating_sub(self.waiting)
    }

    /// Whether the server leaves so much unread that it has to be waited for.
    fn is_kept_waiting(&self) -> bool {
        self.waiting > PATIENCE
    }

    /// Listens to these and no others; says what came of those that are new, or were not heard.
    fn follow(&mut self, wanted: HashSet<String>) {
        let gone: Vec<String> = self.heard.difference(&wanted).cloned().collect();
        for channel in gone {
            let (batch, changed) = notify_queue::unlisten(&channel, self.room());
            self.add(batch);
            if changed {
                self.heard.remove(&channel);
            }
        }
        for channel in &wanted {
            let was_heard = self.heard.contains(channel);
            if was_heard && self.wanted.contains(channel) {
                continue;
            }
            if !was_heard && (1..=LONGEST_NAME).contains(&channel.len()) {
                let (batch, changed) = notify_queue::listen(channel, self.room());
                self.add(batch);
                if changed {
                    self.heard.insert(channel.clone());
                }
            }
            let heard = self.heard.contains(channel);
            self.say(&Notified::Listening { channel: channel.clone(), heard });
        }
        self.wanted = wanted;
    }

    fn add(&mut self, batch: NotifyBatch) {
        let NotifyBatch { mut notifications, dropped, .. } = batch;
        while !notifications.is_empty() {
            let rest = notifications.split_off(notifications.len().min(FRAME));
            self.say(&Notified::Notifications(std::mem::replace(&mut notifications, rest)));
        }
        if dropped > 0 {
            self.say(&Notified::Dropped(dropped));
        }
    }

    /// Puts a frame behind those that wait: a length (big-endian u32) and JSON.
    fn say(&mut self, word: &Notified) {
        let mut frame = vec![0; 4];
        // Plain data: cannot fail.
        let _ = serde_json::to_writer(&mut frame, word);
        let length = u32::try_from(frame.len() - 4).unwrap_or(0).to_be_bytes();
        frame.splice(..4, length);
        self.waiting += frame.len();
        self.outbox.push_back(frame);
    }

    /// Writes what the socket has room for.
    fn send(&mut self) -> Result<(), SocketError> {
        while let Some(frame) = self.outbox.front() {
            match self.stream.write(frame.get(self.sent..).unwrap_or_default()) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(SocketError::Closed),
            }
            if self.sent >= frame.len() {
                self.waiting -= frame.len();
                self.sent = 0;
                self.outbox.pop_front();
            }
        }
        Ok(())
    }

    /// The next list of channels that the server wants, if it has sent one.
    fn receive(&mut self) -> Result<Option<Vec<String>>, SocketError> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(wanted) = self.wishes.cut()? {
                return Ok(Some(wanted));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(SocketError::Closed),
                Ok(read) => self.wishes.take_in(chunk.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(SocketError::Closed),
            }
        }
    }

    /// Until there is a notification, or the server says or takes something.
    fn wait(&self) {
        let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
        if !self.is_kept_waiting() {
            events |= pg_sys::WL_SOCKET_READABLE;
        }
        if !self.outbox.is_empty() {
            events |= pg_sys::WL_SOCKET_WRITEABLE;
        }
        // SAFETY: this process's own latch, and a descriptor that is open.
        unsafe {
            pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                i32::try_from(events).unwrap_or(0),
                self.stream.as_raw_fd(),
                -1,
                pg_sys::PG_WAIT_EXTENSION,
            );
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        check_for_interrupts!();
    }
}
