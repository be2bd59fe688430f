//! What the hub tells the keeper of the outboxes: which rows have been published.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tide_feed::event::OutboxRow;
use tokio::sync::mpsc;

/// Receipts on their way. The hub waits for nobody: one more is dropped, and the keeper told that
/// some are missing; it then asks the outboxes themselves what is left in them.
const CAPACITY: usize = 64 << 10;

/// A row of an outbox whose message is in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The outbox, by oid.
    pub table: u32,
    pub sequence_id: i64,
}

/// The hub's end.
#[derive(Debug)]
pub struct Receipts {
    sender: mpsc::Sender<Receipt>,
    missed: Arc<AtomicBool>,
}

/// The keeper's end.
#[derive(Debug)]
pub struct Received {
    receipts: mpsc::Receiver<Receipt>,
    missed: Arc<AtomicBool>,
}

/// Both ends.
pub fn channel() -> (Receipts, Received) {
    let (sender, receipts) = mpsc::channel(CAPACITY);
    let missed = Arc::new(AtomicBool::new(false));
    (Receipts { sender, missed: Arc::clone(&missed) }, Received { receipts, missed })
}

impl Receipts {
    /// The row's message is in the history.
    pub(super) fn note(&self, row: &OutboxRow) {
        let receipt = Receipt { table: row.table, sequence_id: row.sequence_id };
        if self.sender.try_send(receipt).is_err() {
            self.missed.store(true, Ordering::Release);
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(sequence_id: i64) -> OutboxRow {
        OutboxRow { table: 1, sequence_id, mutation_id: "".into(), rejected: false, headers: None }
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
