//! LISTEN and NOTIFY in process: the worker listens to the channels that clients have joined, and
//! passes on what comes to its server.
//!
//! Postgres refuses the statement LISTEN in a background worker, since nobody would read what
//! comes; here somebody does. It writes notifications to what it takes for the client's socket:
//! for as long as the queue is read that is [`METHODS`]. Neither LISTEN nor the queue has anything
//! to do with the catalogue, so the decoder's historic one is safe.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{CStr, c_char, c_int};
use std::panic::AssertUnwindSafe;

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::link::Word;
use tide_feed::notification::Notification;

use crate::encoding::Encoding;
use crate::failure::{Failure, attempt};
use crate::process::server;
use crate::source::decoder;
use crate::sys;
use crate::sys::PqCommMethods;

/// A batch of this many bytes, or of this many notifications, is sent.
const FULL_BYTES: usize = 64 << 10;
const FULL_COUNT: usize = 512;

thread_local! {
    /// What [`METHODS`] write to; there is one while the queue is read.
    static BATCH: RefCell<Option<NotifyBatch>> = const { RefCell::new(None) };
}

/// Notifications that were read and not sent yet.
struct NotifyBatch {
    encoding: Encoding,
    /// A conversion was looked up in the catalogue.
    has_converted: bool,
    notifications: Vec<Notification>,
    bytes: usize,
}

/// LISTENs to the channels that clients have joined.
#[derive(Debug, Default)]
pub(crate) struct NotifyListener {
    /// Channels to listen to, if they are others than before.
    wanted: Option<Vec<String>>,
    /// Channels listened to.
    heard: HashSet<String>,
}

impl NotifyListener {
    /// The channels that clients want to hear.
    pub(crate) fn want(&mut self, channels: Vec<String>) {
        self.wanted = Some(channels);
    }

    /// There is another server, which has yet to say what it wants.
    pub(crate) fn begin_again(&mut self) {
        self.wanted = Some(Vec::new());
    }

    /// Follows what clients want to hear, and reads what has come. Outside a transaction only.
    pub(crate) fn tend(&mut self) {
        if let Some(wanted) = self.wanted.take() {
            self.follow(&wanted);
        }
        if sys::notify_pending() {
            self.drain();
        }
    }

    fn follow(&mut self, wanted: &[String]) {
        let gone: Vec<_> = self.heard.iter().filter(|c| !wanted.contains(c)).cloned().collect();
        for channel in gone {
            if self.change(&channel, sys::unlisten) {
                self.heard.remove(&channel);
            }
        }
        for channel in wanted {
            if !self.heard.contains(channel) && self.change(channel, sys::listen) {
                self.heard.insert(channel.clone());
            }
            let heard = self.heard.contains(channel);
            server::tell(&Word::Heard { channel: channel.clone(), heard });
        }
    }

    /// LISTEN or UNLISTEN, in a transaction of its own.
    fn change(&self, channel: &str, statement: unsafe fn(&CStr)) -> bool {
        // The first LISTEN may already find something in the queue.
        let changed = self.catching(|| {
            let encoding = Encoding::of_database();
            // SAFETY: outside a transaction; the name is copied.
            unsafe {
                pg_sys::StartTransactionCommand();
                let (name, is_converted) = encoding.server(channel);
                mark_converted(is_converted);
                let Some(name) = name else {
                    pg_sys::AbortCurrentTransaction();
                    return false;
                };
                statement(&name);
                pg_sys::CommitTransactionCommand();
            }
            true
        });
        changed.unwrap_or(false)
    }

    fn drain(&self) {
        // SAFETY: outside a transaction, with METHODS in place.
        self.catching(|| unsafe { sys::process_notify_interrupt() });
    }

    /// Runs `work` with what Postgres sends going to a batch. `None`: an error, which has been
    /// cleaned up.
    fn catching<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let batch = NotifyBatch {
            encoding: Encoding::of_database(),
            has_converted: false,
            notifications: Vec::new(),
            bytes: 0,
        };
        BATCH.set(Some(batch));
        let result = attempt(AssertUnwindSafe(|| {
            let _diverted = Diverted::new();
            work()
        }));
        let result = result.map_err(|error| {
            let failure = Failure::from(&*error);
            decoder::clean_up_after_error();
            log!(
                "pg_tide: listening for notifications failed: {} (SQLSTATE {})",
                failure.condition,
                failure.sqlstate
            );
        });
        if let Some(mut batch) = BATCH.take() {
            if batch.has_converted {
                // The decoder must find nothing of today's catalogue in the caches.
                // SAFETY: outside a transaction.
                unsafe { pg_sys::InvalidateSystemCaches() };
            }
            batch.send();
        }
        // SAFETY: main thread. Transactions leave their own memory behind.
        unsafe { pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext) };
        result.ok()
    }
}

/// While this lives, what Postgres sends to its client comes to the batch.
struct Diverted {
    methods: *const PqCommMethods,
    destination: pg_sys::CommandDest::Type,
}

impl Diverted {
    fn new() -> Diverted {
        // SAFETY: main thread; nobody else writes these variables in a background worker.
        unsafe {
            let before = Diverted {
                methods: sys::raw::PqCommMethods,
                destination: pg_sys::whereToSendOutput,
            };
            sys::raw::PqCommMethods = &raw const METHODS;
            pg_sys::whereToSendOutput = pg_sys::CommandDest::DestRemote;
            before
        }
    }
}

impl Drop for Diverted {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            sys::raw::PqCommMethods = self.methods;
            pg_sys::whereToSendOutput = self.destination;
        }
    }
}

static METHODS: PqCommMethods = PqCommMethods {
    comm_reset: nothing,
    flush: succeed,
    flush_if_writable: succeed,
    is_send_pending: no,
    putmessage,
    putmessage_noblock,
};

unsafe extern "C-unwind" fn nothing() {}

unsafe extern "C-unwind" fn succeed() -> c_int {
    0
}

unsafe extern "C-unwind" fn no() -> bool {
    false
}

/// A message of the frontend protocol: notifications are kept, anything else is for nobody.
#[pg_guard]
unsafe extern "C-unwind" fn putmessage(
    kind: c_char,
    content: *const c_char,
    length: usize,
) -> c_int {
    if kind as u8 == b'A' {
        // SAFETY: Postgres passes a message of that length.
        let content = unsafe { std::slice::from_raw_parts(content.cast::<u8>(), length) };
        BATCH.with_borrow_mut(|batch| {
            if let Some(batch) = batch {
                batch.add(content);
            }
        });
    }
    0
}

#[pg_guard]
unsafe extern "C-unwind" fn putmessage_noblock(
    kind: c_char,
    content: *const c_char,
    length: usize,
) {
    // SAFETY: as we were called.
    unsafe { putmessage(kind, content, length) };
}

fn mark_converted(is_converted: bool) {
    BATCH.with_borrow_mut(|batch| {
        if let Some(batch) = batch {
            batch.has_converted |= is_converted;
        }
    });
}

impl NotifyBatch {
    /// The sender's pid, the channel and the payload; both end with a zero byte.
    fn add(&mut self, content: &[u8]) {
        let Some((pid, texts)) = content.split_first_chunk::<4>() else { return };
        let mut texts = texts.split(|byte| *byte == 0);
        let (Some(channel), Some(payload)) = (texts.next(), texts.next()) else { return };
        self.bytes += content.len();
        let notification = Notification {
            channel: self.text(channel),
            payload: self.text(payload),
            pid: i32::from_be_bytes(*pid),
        };
        self.notifications.push(notification);
        if self.bytes >= FULL_BYTES || self.notifications.len() >= FULL_COUNT {
            self.send();
        }
    }

    fn text(&mut self, text: &[u8]) -> Box<str> {
        // Every encoding of a server has ASCII in it.
        let is_converted = self.encoding == Encoding::Other && !text.is_ascii();
        self.has_converted |= is_converted;
        let encoding = if is_converted { self.encoding } else { Encoding::Utf8 };
        encoding.utf8(text).into()
    }

    /// Hands over what there is; waits for room, interruptibly. Postgres keeps the rest meanwhile.
    fn send(&mut self) {
        if self.notifications.is_empty() {
            return;
        }
        self.bytes = 0;
        server::tell(&Word::Notified(std::mem::take(&mut self.notifications)));
    }
}
