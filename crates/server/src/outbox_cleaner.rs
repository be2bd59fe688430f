//! The outbox cleaner: has the catalog worker put rows in line for a new slot, delete rows
//! that have been published, and find those whose receipts got lost. Off the events' way: the hub
//! only drops receipts into a bounded channel.
//!
//! A row whose message could not be published says so in `locked_by`, and stays. Until it does the
//! slot does not pass it, so that it is never taken for one that was published.
//!
//! A row goes only once its message is in the history. The slot trails that, so a crash decodes it
//! again; and after a lost slot whatever is still there, and not flagged, is published again.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tide_feed::backoff::Backoff;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::catalog::{Catalog, CatalogError};
use crate::hub::handle::Live;
use crate::hub::receipts::{Failures, Receipt, Received};
use crate::stats::Stats;

/// Rows per statement.
const PAGE: u32 = 1_000;
/// Rows that are put in line at a time; writers to the outbox wait that long.
const LINE: u32 = 10_000;
/// How long receipts gather.
const GATHER: Duration = Duration::from_millis(100);
/// Receipts of an outbox that may wait here while nothing can be deleted. One more makes all be
/// dropped: they are found again in the outbox, page by page.
const MOST_PENDING: usize = 256 << 10;
/// Before a catalog worker that is not there is asked again.
const RETRY: Duration = Duration::from_secs(1);
/// Before what the database refuses is tried again, at the longest.
const LONGEST: Duration = Duration::from_secs(60);
/// Between two looks at rows that were kept for a while.
const SWEEP: Duration = Duration::from_secs(30);
/// How long the decoder may take to get where a page of rows was looked at.
const PATIENCE: Duration = Duration::from_secs(10);
/// A page that takes longer has its owner's code in it, or waits.
const SLOW: Duration = Duration::from_secs(1);
/// Between two looks whether the decoder is there.
const POLL: Duration = Duration::from_millis(50);

/// What the cleaner works with.
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

/// What is known of one outbox, and what has to be done about it.
#[derive(Debug)]
struct OutboxState {
    /// Published, and not deleted or flagged yet.
    pending: Vec<i64>,
    /// Flagged, and to go as soon as it is not the newest row any more.
    kept: Vec<i64>,
    /// The slot that has taken it over.
    generation: Option<i64>,
    /// No receipt is missing: this, or the worker before, has looked.
    complete: bool,
    /// Rows that could not be published, once they have been counted.
    failed: Option<u64>,
    /// The longest that a page has taken since it rested.
    slowest: Duration,
    backoff: Backoff,
    /// The newest error that the log has.
    last_error: Option<String>,
}

impl OutboxState {
    fn new() -> OutboxState {
        OutboxState {
            pending: Vec::new(),
            kept: Vec::new(),
            generation: None,
            complete: false,
            failed: None,
            slowest: Duration::ZERO,
            backoff: Backoff::up_to(LONGEST),
            last_error: None,
        }
    }

    /// All is done for now. What its owner has made slow is left alone for as long as it took: the catalog
    /// worker has others to serve.
    fn rest(&mut self) {
        match std::mem::take(&mut self.slowest) {
            slow if slow >= SLOW => self.backoff.timed_out_after(slow),
            _ => self.backoff.reset(),
        }
    }

    fn belongs_to(&self, generation: u32) -> bool {
        self.generation == Some(i64::from(generation))
    }

    fn has_work(&self, generation: u32) -> bool {
        !self.pending.is_empty()
            || !self.complete
            || self.failed.is_none()
            || !self.belongs_to(generation)
    }
}

/// One task of the network half.
#[derive(Debug)]
pub struct OutboxCleaner {
    catalog: Catalog,
    stats: Arc<Stats>,
    live: watch::Receiver<Option<Live>>,
    received: Received,
    failures: Failures,
    changed: Arc<Notify>,
    retention: Duration,
    outboxes: HashMap<u32, OutboxState>,
    fresh: Vec<Receipt>,
    /// For which slot it was last asked which outboxes there are.
    listed: Option<u32>,
    /// When there is something to do next.
    due: Option<Instant>,
    sweep: Instant,
}

impl OutboxCleaner {
    pub fn new(parts: Parts) -> OutboxCleaner {
        let Parts { catalog, stats, live, received, changed, retention } = parts;
        OutboxCleaner {
            catalog,
            stats,
            live,
            failures: received.failures(),
            received,
            changed,
            retention,
            outboxes: HashMap::new(),
            fresh: Vec::new(),
            listed: None,
            due: None,
            sweep: Instant::now(),
        }
    }

    /// Works for as long as the worker runs.
    pub async fn run(mut self) {
        loop {
            let next = self.next();
            let (changed, failures) = (Arc::clone(&self.changed), self.failures.clone());
            tokio::select! {
                more = self.received.next(&mut self.fresh, PAGE as usize) => {
                    if !more {
                        // The hub has stopped, and so will this.
                        return std::future::pending().await;
                    }
                    self.note_received();
                }
                () = failures.news() => self.due = Some(Instant::now()),
                _ = self.live.changed() => self.due = Some(Instant::now()),
                () = changed.notified() => {
                    self.listed = None;
                    self.due = Some(Instant::now());
                }
                () = sleep_until(next) => {}
            }
            if Instant::now() >= self.next() {
                self.work().await;
            }
        }
    }

    fn next(&self) -> Instant {
        self.due.unwrap_or(self.sweep).min(self.sweep)
    }

    /// Notes what was received.
    fn note_received(&mut self) {
        for receipt in self.fresh.drain(..) {
            let outbox = self.outboxes.entry(receipt.table).or_insert_with(OutboxState::new);
            if outbox.pending.len() >= MOST_PENDING {
                outbox.pending.clear();
                outbox.complete = false;
            }
            outbox.pending.push(receipt.sequence_id);
        }
        let is_page = self.outboxes.values().any(|outbox| outbox.pending.len() >= PAGE as usize);
        let due = Instant::now() + if is_page { Duration::ZERO } else { GATHER };
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Does what there is to do, and says when there will be more.
    async fn work(&mut self) {
        self.due = None;
        let live = *self.live.borrow_and_update();
        let Some(generation) = live.map(|live| live.epoch.generation) else {
            self.sweep = Instant::now() + RETRY;
            return;
        };
        let sweeps = Instant::now() >= self.sweep;
        if sweeps {
            self.sweep = Instant::now() + SWEEP;
        }
        if self.tend_all(generation, sweeps).await.is_err() {
            // There is no catalog worker at the moment, or the slot has changed.
            self.due = Some(Instant::now() + RETRY);
            return;
        }
        let has_work = |(table, outbox): &(&u32, &OutboxState)| {
            outbox.has_work(generation) || !self.failures.of(**table, 1).is_empty()
        };
        let waits = self.outboxes.iter().filter(has_work);
        self.due =
            waits.map(|(_, outbox)| outbox.backoff.wait()).min().map(|wait| Instant::now() + wait);
    }

    /// What the database refuses about one outbox is not to hold up the others.
    async fn tend_all(&mut self, generation: u32, sweeps: bool) -> Result<(), CatalogError> {
        // Outboxes may also come to be without a word: by a restored dump.
        if sweeps || self.listed != Some(generation) {
            self.list().await?;
            if self.listed.replace(generation) != Some(generation) {
                // There is something to take over.
                self.outboxes.values_mut().for_each(|outbox| outbox.backoff.reset());
            }
        }
        if self.received.take_missed() {
            self.outboxes.values_mut().for_each(|outbox| outbox.complete = false);
        }
        let failed = self.failures.tables();
        let tables: BTreeSet<u32> = self.outboxes.keys().copied().chain(failed).collect();
        for table in tables {
            if !self.outbox(table).backoff.is_due() {
                continue;
            }
            let begun = Instant::now();
            match self.tend(table, generation, sweeps).await {
                Ok(()) => self.outbox(table).rest(),
                Err(CatalogError::Refused { message, .. }) => {
                    self.refused(table, message, begun.elapsed());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Asks which outboxes there are.
    async fn list(&mut self) -> Result<(), CatalogError> {
        let outboxes = self.catalog.outboxes().await?;
        let is_one = |table: &u32| outboxes.iter().any(|outbox| outbox.table == *table);
        self.outboxes.retain(|table, _| is_one(table));
        self.stats.failed_messages().retain(|table, _| is_one(table));
        for outbox in outboxes {
            self.outbox(outbox.table).generation = outbox.generation;
        }
        Ok(())
    }

    fn outbox(&mut self, table: u32) -> &mut OutboxState {
        self.outboxes.entry(table).or_insert_with(OutboxState::new)
    }

    async fn tend(
        &mut self,
        table: u32,
        generation: u32,
        sweeps: bool,
    ) -> Result<(), CatalogError> {
        // What the slot before has published need not be published by the next.
        self.retire(table).await?;
        // What could not be published by this slot cannot be by the next.
        self.set_aside(table).await?;
        if !self.outbox(table).belongs_to(generation) {
            self.take_over(table, generation).await?;
        }
        if !self.outbox(table).complete {
            self.search(table, generation).await?;
        }
        let failed = self.outbox(table).failed;
        if failed.is_none() || (sweeps && failed != Some(0)) {
            let count = self.catalog.count_failed(table).await?;
            self.outbox(table).failed = Some(count);
            self.stats.failed_messages().insert(table, count);
        }
        if sweeps {
            while self.catalog.expire(table, self.retention, PAGE).await? == u64::from(PAGE) {}
        }
        Ok(())
    }

    /// Deletes published rows, or flags them.
    async fn retire(&mut self, table: u32) -> Result<(), CatalogError> {
        let keep = !self.retention.is_zero();
        loop {
            let outbox = self.outbox(table);
            let page = outbox.pending.len().min(PAGE as usize);
            if page == 0 {
                return Ok(());
            }
            let mut ids = outbox.pending.get(..page).unwrap_or_default().to_vec();
            ids.extend_from_slice(&outbox.kept);
            let asked = Instant::now();
            let kept = self.catalog.retire(table, ids, keep).await?;
            let outbox = self.outbox(table);
            outbox.slowest = outbox.slowest.max(asked.elapsed());
            outbox.pending.drain(..page);
            outbox.kept = kept;
        }
    }

    /// Has the rows that could not be published say so, and stay.
    async fn set_aside(&mut self, table: u32) -> Result<(), CatalogError> {
        loop {
            let page = self.failures.of(table, PAGE as usize);
            if page.is_empty() {
                return Ok(());
            }
            let ids: Vec<i64> = page.iter().map(|(id, _)| *id).collect();
            self.catalog.set_aside(table, page).await?;
            self.failures.forget(table, ids.into_iter());
            self.outbox(table).failed = None;
        }
    }

    /// Puts the rows that wait in line for this slot.
    async fn take_over(&mut self, table: u32, generation: u32) -> Result<(), CatalogError> {
        let mut after = i64::MIN;
        loop {
            let taken = self.catalog.take_over(table, generation, after, LINE).await?;
            if taken.done {
                break;
            }
            after = taken.after;
        }
        let outbox = self.outbox(table);
        outbox.generation = Some(i64::from(generation));
        // A worker before this one may have begun, and died with the receipts.
        outbox.complete = false;
        Ok(())
    }

    /// Finds rows whose receipts were lost. What has committed before an address that the decoder
    /// has got past has been published.
    async fn search(&mut self, table: u32, generation: u32) -> Result<(), CatalogError> {
        let mut after = i64::MIN;
        loop {
            let found = self.catalog.unpublished(table, after, PAGE).await?;
            let Some(last) = found.ids.last() else { break };
            after = *last;
            if !self.has_decoded(found.lsn, generation).await {
                return Err(CatalogError::Unavailable);
            }
            let is_published = |id: &i64| !self.failures.has(table, *id);
            let published: Vec<i64> = found.ids.into_iter().filter(is_published).collect();
            self.outbox(table).pending.extend(published);
            self.retire(table).await?;
            self.set_aside(table).await?;
        }
        self.outbox(table).complete = true;
        Ok(())
    }

    /// Waits until this slot's stream has got there.
    async fn has_decoded(&self, lsn: u64, generation: u32) -> bool {
        let arrived = async {
            while self.stats.decoded.get() < lsn {
                tokio::time::sleep(POLL).await;
            }
        };
        timeout(PATIENCE, arrived).await.is_ok()
            && self.live.borrow().is_some_and(|live| live.epoch.generation == generation)
    }

    /// Somebody holds a lock, or the table is not what it was.
    fn refused(&mut self, table: u32, message: String, lasted: Duration) {
        let outbox = self.outbox(table);
        if lasted >= SLOW {
            outbox.backoff.timed_out_after(lasted);
        } else {
            outbox.backoff.failed_after(Duration::ZERO);
        }
        if outbox.last_error.as_ref() != Some(&message) {
            log::warn!("the outbox {table}::regclass cannot be tended for now: {message}");
            outbox.last_error = Some(message);
        }
    }
}
