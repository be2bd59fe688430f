//! LISTEN and NOTIFY in a background worker.
//!
//! Postgres refuses the statement LISTEN there, since nobody would read what comes; here somebody
//! does. It writes notifications to what it takes for the client's socket: for as long as the queue
//! is read that is [`METHODS`], which keep them in memory. So the queue is read as fast as it can be,
//! however slow those are who are told of it, and holds up nobody's transactions.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int};
use std::panic::AssertUnwindSafe;

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::notification::Notification;

use crate::encoding::Encoding;
use crate::failure::{Failure, attempt};
use crate::helper::log;
use crate::source::decoder;
use crate::sys;
use crate::sys::PqCommMethods;

thread_local! {
    /// What [`METHODS`] write to; there is one while the queue is read.
    static BATCH: RefCell<Option<NotifyBatch>> = const { RefCell::new(None) };
}

/// Notifications as they are read off the queue.
#[derive(Debug)]
pub(crate) struct NotifyBatch {
    encoding: Encoding,
    pub(crate) notifications: Vec<Notification>,
    /// Bytes of memory left for them. What has no room is dropped, and counted.
    room: usize,
    pub(crate) dropped: u64,
}

/// Whether there may be something in the queue.
pub(crate) fn is_pending() -> bool {
    sys::notify_pending()
}

/// Reads the queue to its end; keeps what fits into so many bytes. Outside a transaction only.
pub(crate) fn read(room: usize) -> NotifyBatch {
    // SAFETY: outside a transaction, with METHODS in place.
    let (batch, _) = catching(room, || unsafe { sys::process_notify_interrupt() });
    batch
}

/// LISTEN, in a transaction of its own; whether that worked, and what was in the queue already.
pub(crate) fn listen(channel: &str, room: usize) -> (NotifyBatch, bool) {
    change(channel, room, sys::listen)
}

/// UNLISTEN, likewise.
pub(crate) fn unlisten(channel: &str, room: usize) -> (NotifyBatch, bool) {
    change(channel, room, sys::unlisten)
}

fn change(channel: &str, room: usize, statement: unsafe fn(&CStr)) -> (NotifyBatch, bool) {
    let (batch, changed) = catching(room, || {
        // SAFETY: outside a transaction; the name is copied.
        unsafe {
            pg_sys::StartTransactionCommand();
            let (name, _) = Encoding::of_database().server(channel);
            let Some(name) = name else {
                pg_sys::AbortCurrentTransaction();
                return false;
            };
            statement(&name);
            pg_sys::CommitTransactionCommand();
        }
        true
    });
    (batch, changed.unwrap_or(false))
}

/// Runs `work`, and gives what was notified meanwhile. `None`: an error, which has been cleaned up.
fn catching<T>(room: usize, work: impl FnOnce() -> T) -> (NotifyBatch, Option<T>) {
    let encoding = Encoding::of_database();
    BATCH.set(Some(NotifyBatch { encoding, notifications: Vec::new(), room, dropped: 0 }));
    let result = attempt(AssertUnwindSafe(|| {
        let _diverted = Diverted::new();
        work()
    }));
    let result = result.map_err(|error| {
        let failure = Failure::from(&*error);
        decoder::clean_up_after_error();
        log::say(&format!(
            "listening for notifications failed: {} (SQLSTATE {})",
            failure.condition, failure.sqlstate
        ));
    });
    // SAFETY: this process's only thread. Transactions leave their own memory behind.
    unsafe { pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext) };
    let none = NotifyBatch { encoding, notifications: Vec::new(), room, dropped: 0 };
    (BATCH.take().unwrap_or(none), result.ok())
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

impl NotifyBatch {
    /// The sender's pid, the channel and the payload; both end with a zero byte.
    fn add(&mut self, content: &[u8]) {
        let Some((pid, texts)) = content.split_first_chunk::<4>() else { return };
        let mut texts = texts.split(|byte| *byte == 0);
        let (Some(channel), Some(payload)) = (texts.next(), texts.next()) else { return };
        let size = content.len() + size_of::<Notification>();
        let Some(room) = self.room.checked_sub(size) else {
            self.dropped += 1;
            return;
        };
        self.room = room;
        self.notifications.push(Notification {
            channel: self.encoding.utf8(channel).into(),
            payload: self.encoding.utf8(payload).into(),
            pid: i32::from_be_bytes(*pid),
        });
    }
}
