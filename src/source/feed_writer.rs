//! The way to the server: events gather in a batch until it is worth sending, or nobody waits for
//! more.

use tide_feed::event::{BatchBuilder, BatchWriter, CatalogChange, Event, Lsn, Position};
use tide_feed::link::{self, Kind, Word};

use crate::process::server;

/// A batch of this many bytes is sent before the next event is added.
const FULL_BYTES: usize = 64 << 10;
/// A batch of this many events is sent, too: their rows may be tiny.
const FULL_EVENTS: usize = 512;
/// Memory of a batch up to this is kept for the next: one huge row must not make every batch huge.
const USUAL_BYTES: usize = 2 * FULL_BYTES;
/// The hub is told of decoded WAL without events when it is this many bytes: less is not worth a
/// message of its own.
const DECODED_BYTES: u64 = 256 << 10;

#[derive(Debug, Default)]
pub(crate) struct FeedWriter {
    batch: BatchBuilder,
    writer: BatchWriter,
    /// What the hub is to be told after these events, and before others.
    stale: Vec<CatalogChange>,
    /// Of the newest event that the hub has; it will not get any up to here again.
    sent: Position,
    /// What the hub knows to be decoded.
    decoded: Lsn,
}

impl FeedWriter {
    /// Whether the hub has this one already, from before an error.
    pub(crate) fn has_sent(&self, position: Position) -> bool {
        position <= self.sent
    }

    /// The batch that the next event's rows go into.
    pub(crate) fn batch(&mut self) -> &mut BatchBuilder {
        &mut self.batch
    }

    /// Sends the batch if it is full, or the catalogue has changed since. To be called before an event
    /// that will be added for certain: until then the newest event stays here, so that it can still be
    /// marked as its transaction's last.
    pub(crate) fn make_room(&mut self) {
        if self.is_full() || !self.stale.is_empty() {
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
        if let Some(newest) = self.batch.events.last_mut()
            && newest.position.commit == commit
        {
            newest.last_in_tx = true;
        }
        if !self.stale.is_empty() {
            self.flush();
        }
    }

    /// Sends what there is if the server has nothing to do.
    pub(crate) fn nudge(&mut self) {
        if !self.batch.is_empty() && server::is_idle() {
            self.flush();
        }
    }

    /// Sends what there is; waits for room, interruptibly.
    pub(crate) fn flush(&mut self) {
        self.send();
        for change in std::mem::take(&mut self.stale) {
            server::tell(&Word::Catalog(change));
        }
    }

    fn send(&mut self) {
        let Some(newest) = self.batch.events.last().map(|event| event.position) else { return };
        let [head, arena] = self.writer.write(&self.batch);
        let header = link::header(Kind::Batch, head.len() + arena.len());
        server::set_fed(newest.commit);
        server::send(&[&header, head, arena]);
        self.batch.clear(USUAL_BYTES);
        self.sent = newest;
    }

    /// Tells the hub that something of the catalogue is stale, after the events before it.
    pub(crate) fn catalog(&mut self, change: CatalogChange) {
        if self.stale.contains(&CatalogChange::All) || self.stale.contains(&change) {
            return;
        }
        if change == CatalogChange::All {
            self.stale.clear();
        }
        self.stale.push(change);
    }

    /// Tells the hub how far everything has been fed: at the end of a round, else now and then.
    pub(crate) fn decoded(&mut self, lsn: Lsn, is_end: bool) {
        if lsn <= self.decoded || (!is_end && lsn.0 - self.decoded.0 < DECODED_BYTES) {
            return;
        }
        self.flush();
        // Without waiting: the next one says the same and more.
        server::set_fed(lsn);
        if server::offer(&link::address(Kind::Decoded, lsn)) {
            self.decoded = lsn;
        }
    }

    /// How far the hub knows everything to have been fed.
    pub(crate) fn told(&self) -> Lsn {
        self.decoded
    }

    /// After an error: what has not been sent will be decoded again.
    pub(crate) fn discard(&mut self) {
        self.batch.clear(USUAL_BYTES);
    }

    /// A new history begins, or another server is told the same one.
    pub(crate) fn restart(&mut self) {
        self.discard();
        self.writer = BatchWriter::default();
        self.stale.clear();
        self.sent = Position::default();
        self.decoded = Lsn(0);
    }
}
