//! The way to the hub: events gather in a batch until it is worth sending, or nobody waits for
//! more.

use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use pgrx::prelude::*;
use tide_feed::event::{Batch, CatalogChange, Event, Feed, Lsn, Position};

use crate::nap;

/// A batch of this many bytes is sent before the next event is added.
const FULL_BYTES: usize = 64 << 10;
/// So is one of this many events, whose rows may be tiny.
const FULL_EVENTS: usize = 512;
/// One huge row must not make every batch huge.
const LIKEWISE_BYTES: usize = 2 * FULL_BYTES;
/// How long to wait at a time for room in the channel, which the hub makes all the while.
const FIRST_NAP_MS: i64 = 1;
const LONGEST_NAP_MS: i64 = 10;
/// How long to wait for room for what can be done without.
const OFFER: Duration = Duration::from_millis(100);
/// Less of them than this is not worth a message of its own.
const DECODED_BYTES: u64 = 256 << 10;

#[derive(Debug)]
pub(crate) struct Outlet {
    feed: Sender<Feed>,
    batch: Batch,
    /// Of the newest event that the hub has; it will not get any up to here again.
    sent: Position,
    /// What the hub knows to be decoded.
    decoded: Lsn,
}

impl Outlet {
    pub(crate) fn new(feed: Sender<Feed>) -> Outlet {
        Outlet { feed, batch: Batch::default(), sent: Position::default(), decoded: Lsn(0) }
    }

    /// Whether the hub has this one already, from before an error.
    pub(crate) fn has_sent(&self, position: Position) -> bool {
        position <= self.sent
    }

    /// The batch that the next event's rows go into.
    pub(crate) fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    /// Sends the batch if it is full. To be called before an event that will be added for
    /// certain: until then the newest event stays here, so that it can still be marked as its
    /// transaction's last.
    pub(crate) fn make_room(&mut self) {
        if self.is_full() {
            self.flush();
        }
    }

    fn is_full(&self) -> bool {
        self.batch.len() >= FULL_BYTES || self.batch.events.len() >= FULL_EVENTS
    }

    pub(crate) fn add(&mut self, event: Event) {
        self.batch.events.push(event);
    }

    /// The transaction that began its commit record at `commit` is complete. It is not sent at
    /// once: where small transactions crowd, one batch takes many, and the next nudge is near.
    pub(crate) fn end_transaction(&mut self, commit: Lsn) {
        let Some(newest) = self.batch.events.last_mut() else { return };
        if newest.position.commit == commit {
            newest.last_in_tx = true;
        }
    }

    /// Sends what there is if the hub has nothing to do.
    pub(crate) fn nudge(&mut self) {
        if self.feed.is_empty() {
            self.flush();
        }
    }

    /// Sends what there is.
    pub(crate) fn flush(&mut self) {
        let Some(newest) = self.batch.events.last().map(|event| event.position) else { return };
        // After a full one the next is likely to be as full.
        let next = if self.is_full() && self.batch.len() <= LIKEWISE_BYTES {
            self.batch.likewise()
        } else {
            Batch::default()
        };
        let batch = std::mem::replace(&mut self.batch, next);
        self.send(Feed::Batch(batch));
        self.sent = newest;
    }

    /// Tells the hub that something of the catalogue is stale, after the events before it.
    pub(crate) fn catalog(&mut self, change: CatalogChange) {
        self.flush();
        self.send(Feed::Catalog(change));
    }

    /// Tells the hub how far everything has been fed: at the end of a round, else now and then.
    pub(crate) fn decoded(&mut self, lsn: Lsn, is_end: bool) {
        if lsn <= self.decoded || (!is_end && lsn.0 - self.decoded.0 < DECODED_BYTES) {
            return;
        }
        self.flush();
        // Without waiting: the next one says the same and more.
        if self.try_send(Feed::Decoded(lsn)) {
            self.decoded = lsn;
        }
    }

    /// How far the hub knows everything to have been fed.
    pub(crate) fn told(&self) -> Lsn {
        self.decoded
    }

    /// After an error: what has not been sent will be decoded again.
    pub(crate) fn discard(&mut self) {
        self.batch = Batch::default();
    }

    /// A new history begins.
    pub(crate) fn restart(&mut self) {
        self.discard();
        self.sent = Position::default();
        self.decoded = Lsn(0);
    }

    /// Hands a message to the hub; waits for room, interruptibly.
    pub(crate) fn send(&mut self, message: Feed) {
        let mut waiting = match self.feed.try_send(message) {
            Ok(()) => return,
            Err(TrySendError::Disconnected(_)) => gone(),
            Err(TrySendError::Full(message)) => Some(message),
        };
        let feed = &self.feed;
        let try_again = || {
            let Some(message) = waiting.take() else { return true };
            match feed.try_send(message) {
                Ok(()) => true,
                Err(TrySendError::Disconnected(_)) => gone(),
                Err(TrySendError::Full(message)) => {
                    waiting = Some(message);
                    false
                }
            }
        };
        wait::until(try_again, FIRST_NAP_MS, LONGEST_NAP_MS);
    }

    /// Hands over a message if there is room for it right now.
    pub(crate) fn try_send(&self, message: Feed) -> bool {
        self.feed.try_send(message).is_ok()
    }

    /// Hands over a message, or drops it if there is no room for it soon.
    pub(crate) fn offer(&mut self, message: Feed) {
        let _ = self.feed.send_timeout(message, OFFER);
    }
}

/// The hub's thread has ended; the worker will notice, and end too.
fn gone() -> ! {
    ereport!(ERROR, PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "the network threads have ended");
}
