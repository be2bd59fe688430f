//! What the hub tells the outbox cleaner: which rows have been published.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tide_feed::event::{Lsn, OutboxRow};
use tokio::sync::{Notify, mpsc};

/// Receipts on their way. The hub waits for nobody: one more is dropped, and the cleaner is told
/// that some are missing; it then asks the outboxes themselves what is left in them.
const CAPACITY: usize = 64 << 10;

/// A row of an outbox whose message is in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The outbox, by oid.
    pub table: u32,
    pub sequence_id: i64,
}

/// Rows of outboxes whose messages could not be published, until they say so themselves. None is
/// ever dropped: the slot stays where the first of them can be decoded again.
#[derive(Clone, Debug, Default)]
pub struct Failures(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    rows: Mutex<Rows>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Rows {
    /// SQLSTATEs by outbox and `sequence_id`.
    by_id: BTreeMap<(u32, i64), Box<str>>,
    /// The commit of the oldest, or of one that was older.
    held: Option<Lsn>,
}

impl Failures {
    pub(super) fn add(&self, row: &OutboxRow, sqlstate: &str, commit: Lsn) {
        let mut rows = self.rows();
        rows.by_id.insert((row.table, row.sequence_id), sqlstate.into());
        rows.held.get_or_insert(commit);
        self.0.news.notify_one();
    }

    /// Where decoding has to begin to meet them all again; `None`: there are none.
    pub(super) fn held(&self) -> Option<Lsn> {
        self.rows().held
    }

    /// Waits for the next one.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// The outboxes that have any.
    pub fn tables(&self) -> Vec<u32> {
        let mut tables: Vec<u32> = self.rows().by_id.keys().map(|(table, _)| *table).collect();
        tables.dedup();
        tables
    }

    /// Up to `limit` of an outbox's, each with its SQLSTATE.
    pub fn of(&self, table: u32, limit: usize) -> Vec<(i64, Box<str>)> {
        let rows = self.rows();
        let those = rows.by_id.range((table, i64::MIN)..=(table, i64::MAX)).take(limit);
        those.map(|((_, id), sqlstate)| (*id, sqlstate.clone())).collect()
    }

    pub fn has(&self, table: u32, sequence_id: i64) -> bool {
        self.rows().by_id.contains_key(&(table, sequence_id))
    }

    /// These say so themselves by now, or have gone.
    pub fn forget(&self, table: u32, ids: impl Iterator<Item = i64>) {
        let mut rows = self.rows();
        for id in ids {
            rows.by_id.remove(&(table, id));
        }
        if rows.by_id.is_empty() {
            rows.held = None;
        }
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hub's end.
#[derive(Debug)]
pub struct Receipts {
    sender: mpsc::Sender<Receipt>,
    missed: Arc<AtomicBool>,
    failures: Failures,
}

/// The outbox cleaner's end.
#[derive(Debug)]
pub struct Received {
    receipts: mpsc::Receiver<Receipt>,
    missed: Arc<AtomicBool>,
    failures: Failures,
}

/// Both ends.
pub fn channel() -> (Receipts, Received) {
    let (sender, receipts) = mpsc::channel(CAPACITY);
    let missed = Arc::new(AtomicBool::new(false));
    let failures = Failures::default();
    let hub = Receipts { sender, missed: Arc::clone(&missed), failures: failures.clone() };
    (hub, Received { receipts, missed, failures })
}

impl Receipts {
    /// The row's message is in the history.
    pub(super) fn note(&self, row: &OutboxRow) {
        let receipt = Receipt { table: row.table, sequence_id: row.sequence_id };
        if self.sender.try_send(receipt).is_err() {
            self.missed.store(true, Ordering::Release);
        }
    }

    pub(super) fn failures(&self) -> &Failures {
        &self.failures
    }
}

impl Received {
    /// Waits for receipts and appends up to `limit` of them; `false`: there will be no more.
    /// Loses nothing if it is given up.
    pub async fn next(&mut self, buffer: &mut Vec<Receipt>, limit: usize) -> bool {
        self.receipts.recv_many(buffer, limit).await > 0
    }

    /// Whether receipts were dropped since the last call.
    pub fn take_missed(&self) -> bool {
        self.missed.swap(false, Ordering::AcqRel)
    }

    pub fn failures(&self) -> Failures {
        self.failures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sequence_id: i64) -> OutboxRow {
        OutboxRow { table: 1, sequence_id, mutation_id: "".into(), rejected: false, headers: None }
    }

    #[test]
    fn the_slot_is_held_until_every_failed_row_says_so() {
        let (receipts, received) = channel();
        let failures = received.failures();
        assert_eq!(receipts.failures().held(), None);

        receipts.failures().add(&row(1), "54000", Lsn(10));
        receipts.failures().add(&OutboxRow { table: 2, ..row(2) }, "42939", Lsn(20));

        assert_eq!(failures.tables(), [1, 2]);
        assert_eq!(failures.of(1, 9), [(1, "54000".into())]);
        failures.forget(1, [1].into_iter());
        assert!(failures.has(2, 2) && !failures.has(1, 1));
        assert_eq!(receipts.failures().held(), Some(Lsn(10)));
        failures.forget(2, [2].into_iter());
        assert_eq!(receipts.failures().held(), None);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_dropped_and_told() {
        let (receipts, mut received) = channel();
        let mut buffer = Vec::new();

        for id in 0..=CAPACITY as i64 {
            receipts.note(&row(id));
        }

        assert!(received.take_missed());
        assert!(!received.take_missed());
        assert!(received.next(&mut buffer, 2 * CAPACITY).await);
        assert_eq!(buffer.len(), CAPACITY);
        assert_eq!(buffer.first(), Some(&Receipt { table: 1, sequence_id: 0 }));
    }
}
