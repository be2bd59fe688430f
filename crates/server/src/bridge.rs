//! What the network half and the main thread tell each other besides the events: a few numbers, a
//! nudge, and notifications.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use tide_feed::event::Lsn;

use crate::notify::{Listening, Notification};

/// Batches of notifications on their way to the hub; when they are that many, draining waits.
const NOTICES: usize = 16;

/// Shared by both halves. The main thread reads it whenever it wakes.
pub struct Bridge {
    confirm: AtomicU64,
    helper_lost: AtomicBool,
    wake: Arc<dyn Fn() + Send + Sync>,
    /// Whose notifications are wanted.
    pub listening: Listening,
    /// Those that have come, from the main thread to the hub.
    notices: (Sender<Vec<Notification>>, Receiver<Vec<Notification>>),
}

impl Bridge {
    /// `wake` makes the main thread look again; it must be callable from any thread.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Bridge {
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(wake);
        let nudge = Arc::clone(&wake);
        Bridge {
            confirm: AtomicU64::new(0),
            helper_lost: AtomicBool::new(false),
            wake,
            listening: Listening::new(move || nudge()),
            notices: bounded(NOTICES),
        }
    }

    /// Where the main thread puts notifications, in the order they came. Bounded: the main thread
    /// waits for room, and Postgres keeps what it has not read.
    pub fn notices(&self) -> &Sender<Vec<Notification>> {
        &self.notices.0
    }

    /// Where the hub takes them from.
    pub fn notified(&self) -> Receiver<Vec<Notification>> {
        self.notices.1.clone()
    }

    /// The history no longer needs anything before `lsn`: the slot may move up to it.
    pub fn confirm(&self, lsn: Lsn) {
        self.confirm.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// How far the slot may move; 0 until the hub has said so.
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.confirm.load(Ordering::Acquire))
    }

    /// A new slot begins a new history.
    pub fn reset_confirmed(&self) {
        self.confirm.store(0, Ordering::Release);
    }

    /// The hub took something from the feed's full channel, or wants to be looked at.
    pub fn wake(&self) {
        (self.wake)();
    }

    /// A steward or executor went away: the main thread is to start another.
    pub fn helper_lost(&self) {
        self.helper_lost.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether a helper was lost since the last call.
    pub fn take_helper_lost(&self) -> bool {
        self.helper_lost.swap(false, Ordering::AcqRel)
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge").field("confirmed", &self.confirmed()).finish_non_exhaustive()
    }
}
