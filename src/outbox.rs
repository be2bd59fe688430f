//! The keeper of the outboxes: has the steward put rows in line for a new slot, delete rows that
//! have been published, and find those whose receipts got lost. Off the events' way: the hub only
//! drops receipts into a bounded channel.
//!
//! A row goes only once its message is in the history. The slot trails that, so a crash decodes it
//! again; and after a lost slot whatever is still there, and not flagged, is published again.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::catalog::{Catalog, CatalogError};
use crate::hub::handle::Live;
use crate::hub::receipts::{Receipt, Received};
use crate::stats::Stats;

/// Rows per statement.
const PAGE: u32 = 1_000;
/// Rows that are put in line at a time; writers to the outbox wait that long.
const LINE: u32 = 10_000;
/// How long receipts gather.
const GATHER: Duration = Duration::from_millis(100);
/// Receipts that may wait here for a steward that cannot delete. One more makes all be dropped:
/// they are found again in the outboxes, page by page.
const MOST_PENDING: usize = 256 << 10;
/// Before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks at rows that were kept for a while.
const SWEEP: Duration = Duration::from_secs(30);
/// How long the decoder may take to get where a page of rows was looked at.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether it has.
const NAP: Duration = Duration::from_millis(50);

/// What the keeper works with.
#[derive(Debug)]
pub struct Parts {
    pub catalog: Catalog,
    pub stats: Arc<Stats>,
    pub live: watch::Receiver<Option<Live>>,
    pub received: Received,
    /// Another table is an outbox.
    pub changed: Arc<Notify>,
    /// For how long published rows are kept.
    pub retention: Duration,
}

/// What has to be done about one outbox.
#[derive(Debug, Default)]
struct Book {
    /// Published, and not deleted or flagged yet.
    pending: Vec<i64>,
    /// Flagged, and to go as soon as it is not the newest row any more.
    kept: Vec<i64>,
}

/// One task of the network half.
#[derive(Debug)]
pub struct Keeper {
    catalog: Catalog,
    stats: Arc<Stats>,
    live: watch::Receiver<Option<Live>>,
    received: Received,
    changed: Arc<Notify>,
    retention: Duration,
    books: HashMap<u32, Book>,
    fresh: Vec<Receipt>,
    /// All outboxes are this slot's.
    settled: Option<u32>,
    /// Receipts may have been lost: by an earlier worker, if nothing else.
    searches: bool,
    /// When to delete next, if there is anything.
    due: Option<Instant>,
    sweep: Instant,
    /// What was complained of last.
    complaint: Option<String>,
}

impl Keeper {
    pub fn new(parts: Parts) -> Keeper {
        let Parts { catalog, stats, live, received, changed, retention } = parts;
        Keeper {
            catalog,
            stats,
            live,
            received,
            changed,
            retention,
            books: HashMap::new(),
            fresh: Vec::new(),
            settled: None,
            searches: true,
            due: None,
            sweep: Instant::now(),
            complaint: None,
        }
    }

    /// Works for as long as the worker runs.
    pub async fn run(mut self) {
        loop {
            let next = self.due.unwrap_or(self.sweep).min(self.sweep);
            let changed = Arc::clone(&self.changed);
            tokio::select! {
                more = self.received.next(&mut self.fresh, PAGE as usize) => {
                    if !more {
                        // The hub has stopped, and so will this.
                        return std::future::pending().await;
                    }
                    self.enter();
                }
                _ = self.live.changed() => self.due = Some(Instant::now()),
                () = changed.notified() => {
                    self.settled = None;
                    self.due = Some(Instant::now());
                }
                () = sleep_until(next) => {}
            }
            if Instant::now() >= self.due.unwrap_or(self.sweep).min(self.sweep) {
                self.work().await;
            }
        }
    }

    /// Notes what was received.
    fn enter(&mut self) {
        for receipt in self.fresh.drain(..) {
            self.books.entry(receipt.table).or_default().pending.push(receipt.sequence_id);
        }
        let pending: usize = self.books.values().map(|book| book.pending.len()).sum();
        if pending > MOST_PENDING {
            self.books.clear();
            self.searches = true;
        }
        let wait = if pending >= PAGE as usize { Duration::ZERO } else { GATHER };
        let due = Instant::now() + wait;
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Does what there is to do, and says when there will be more.
    async fn work(&mut self) {
        self.due = None;
        let Some(generation) = self.live.borrow_and_update().map(|live| live.epoch.generation)
        else {
            self.sweep = Instant::now() + SWEEP;
            return;
        };
        match self.try_work(generation).await {
            Ok(()) => self.complaint = None,
            Err(error) => {
                self.complain(&error);
                self.due = Some(Instant::now() + RETRY);
            }
        }
        self.sweep = self.sweep.max(Instant::now() + RETRY.min(SWEEP));
    }

    async fn try_work(&mut self, generation: u32) -> Result<(), CatalogError> {
        // What the slot before has published need not be published by the next.
        self.retire().await?;
        let sweeps = Instant::now() >= self.sweep;
        // Outboxes may also come to be in other ways: by a restored dump.
        if self.settled != Some(generation) || sweeps {
            self.take_over(generation).await?;
            self.settled = Some(generation);
        }
        if self.received.take_missed() || self.searches {
            self.searches = true;
            self.search(generation).await?;
            self.searches = false;
        }
        if sweeps {
            self.expire().await?;
            self.sweep = Instant::now() + SWEEP;
        }
        Ok(())
    }

    /// Deletes published rows, or flags them.
    async fn retire(&mut self) -> Result<(), CatalogError> {
        let keep = !self.retention.is_zero();
        for (table, book) in &mut self.books {
            while !book.pending.is_empty() {
                let page = book.pending.len().min(PAGE as usize);
                let mut ids = book.pending.get(..page).unwrap_or_default().to_vec();
                ids.append(&mut book.kept.clone());
                let kept = self.catalog.retire(*table, ids, keep).await?;
                book.pending.drain(..page);
                book.kept = kept;
            }
        }
        Ok(())
    }

    /// Puts the rows that wait in line for this slot, in every outbox that is another's.
    async fn take_over(&self, generation: u32) -> Result<(), CatalogError> {
        for outbox in self.catalog.outboxes().await? {
            if outbox.generation == Some(i64::from(generation)) {
                continue;
            }
            let mut after = i64::MIN;
            loop {
                let taken = self.catalog.take_over(outbox.table, generation, after, LINE).await?;
                if taken.done {
                    break;
                }
                after = taken.after;
            }
        }
        Ok(())
    }

    /// Finds rows whose receipts were lost. What has committed before an address that the decoder
    /// has got past has been published.
    async fn search(&mut self, generation: u32) -> Result<(), CatalogError> {
        for outbox in self.catalog.outboxes().await? {
            if outbox.generation != Some(i64::from(generation)) {
                // Adopted at this very moment: its rows are not in line yet.
                continue;
            }
            let mut after = i64::MIN;
            loop {
                let found = self.catalog.unpublished(outbox.table, after, PAGE).await?;
                let Some(last) = found.ids.last() else { break };
                after = *last;
                if !self.has_decoded(found.lsn, generation).await {
                    return Err(CatalogError::Unavailable);
                }
                self.books.entry(outbox.table).or_default().pending.extend(found.ids);
                self.retire().await?;
            }
        }
        Ok(())
    }

    /// Waits until this slot's stream has got there.
    async fn has_decoded(&self, lsn: u64, generation: u32) -> bool {
        let arrived = async {
            while self.stats.decoded.get() < lsn {
                tokio::time::sleep(NAP).await;
            }
        };
        timeout(PATIENCE, arrived).await.is_ok()
            && self.live.borrow().is_some_and(|live| live.epoch.generation == generation)
    }

    /// Deletes what has been kept for long enough.
    async fn expire(&self) -> Result<(), CatalogError> {
        for outbox in self.catalog.outboxes().await? {
            while self.catalog.expire(outbox.table, self.retention, PAGE).await? == u64::from(PAGE)
            {
            }
        }
        Ok(())
    }

    fn complain(&mut self, error: &CatalogError) {
        let text = error.to_string();
        if self.complaint.as_ref() != Some(&text) {
            log::warn!("outboxes cannot be tended for now: {text}");
            self.complaint = Some(text);
        }
    }
}
