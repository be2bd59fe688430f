//! What the decoder's callbacks do: the changes of one transaction after the other, each made an
//! event, or none.

mod failing;
mod message;

use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgrx::{log, pg_sys};
use tide_feed::event::{
    CatalogChange, Change, Event, EventKind, Lsn, Operation, Position, RowStart,
};
use tide_feed::json::MICROS_1970_TO_2000;
use tide_feed::link::{self, Word};

use crate::process::server;
use crate::source::feed_writer::FeedWriter;
use crate::source::log_limit::RateLimitedLog;
use crate::source::logical_message::LogicalMessages;
use crate::source::relation::Relations;
use crate::source::{crash_page, invalidation};
use crate::tuple::{Image, Tuple};
use crate::{compat, guc, tuple, wait};

/// Looking whether a transaction has become visible: soon at first.
const VISIBLE_FIRST_MS: i64 = 1;
const VISIBLE_LONGEST_MS: i64 = 100;
/// A transaction that stays invisible for this long is worth a word.
const HELD: Duration = Duration::from_secs(5);
/// Memory of a change up to this is kept for the next.
const SCRATCH_BYTES: usize = 64 << 10;

/// All that the callbacks work with. Lives as long as the worker; main thread only.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) feed: FeedWriter,
    relations: Relations,
    publication: CString,
    messages: LogicalMessages,
    /// Of the slot that is read.
    generation: u32,
    transaction: Transaction,
    /// Each change in a subtransaction, so that an error costs no more than that change.
    is_careful: bool,
    /// The change that is being made an event.
    current: Option<Position>,
    /// Where its rows began in the batch.
    mark: Option<RowStart>,
    /// What `old` and `new` are read from, once it is to be an event or a message.
    reading: Option<RowChange>,
    /// The column that is being written, by its place in the relation.
    column: Option<usize>,
    /// Bytes that an event may have.
    limit: usize,
    /// A table at whose changes decoding stands still, for tests that end the process there.
    hang_on: Option<CString>,
    log: RateLimitedLog,
    /// The hub was told that the stream is held up.
    was_held: bool,
    old: Tuple,
    new: Tuple,
    /// Memory of Postgres's for one change.
    scratch: pg_sys::MemoryContext,
}

/// The transaction that is being replayed.
#[derive(Clone, Debug, Default)]
struct Transaction {
    commit: Lsn,
    end: Lsn,
    xid: u32,
    commit_time: i64,
    /// Changes so far, before any filter.
    changes: u32,
    mutation_id: Option<Arc<str>>,
}

/// A row change as the decoder gives it.
#[derive(Clone, Copy, Debug)]
struct RowChange {
    relation: pg_sys::Relation,
    operation: Operation,
    old: pg_sys::HeapTuple,
    new: pg_sys::HeapTuple,
}

impl Replay {
    pub(crate) fn new(publication: CString, limit: usize) -> Replay {
        // SAFETY: main thread; the name is a constant.
        let scratch = unsafe {
            pg_sys::AllocSetContextCreateExtended(
                pg_sys::TopMemoryContext,
                c"pg_tide change".as_ptr(),
                0,
                SCRATCH_BYTES,
                SCRATCH_BYTES,
            )
        };
        Replay {
            feed: FeedWriter::default(),
            relations: Relations::default(),
            publication,
            messages: LogicalMessages::default(),
            generation: 0,
            transaction: Transaction::default(),
            is_careful: false,
            current: None,
            mark: None,
            reading: None,
            column: None,
            limit,
            hang_on: guc::debug_hang_on(),
            log: RateLimitedLog::default(),
            was_held: false,
            old: Tuple::default(),
            new: Tuple::default(),
            scratch,
        }
    }

    /// Which slot is read from now on.
    pub(crate) fn set_generation(&mut self, generation: u32) {
        self.generation = generation;
    }

    pub(crate) fn set_careful(&mut self, is_careful: bool) {
        self.is_careful = is_careful;
    }

    /// Puts aside what an error has left, and says which change it arose in.
    pub(crate) fn recover(&mut self) -> Option<Position> {
        self.feed.discard();
        self.relations.clear();
        self.messages.forget_keys();
        self.mark = None;
        self.reading = None;
        // SAFETY: nothing of the failed change is used any more.
        unsafe { pg_sys::MemoryContextReset(self.scratch) };
        self.current.take()
    }

    /// A transaction begins: waits until others can see it.
    ///
    /// # Safety
    /// As called by the decoder.
    pub(crate) unsafe fn begin(&mut self, transaction: *mut pg_sys::ReorderBufferTXN) {
        // SAFETY: as above.
        self.transaction = unsafe {
            let transaction = &*transaction;
            Transaction {
                commit: Lsn(transaction.final_lsn),
                end: Lsn(transaction.end_lsn),
                xid: transaction.xid.into_inner(),
                commit_time: transaction.xact_time.commit_time.saturating_add(MICROS_1970_TO_2000),
                changes: 0,
                mutation_id: None,
            }
        };
        self.messages.begin();
        let xid = pg_sys::TransactionId::from(self.transaction.xid);
        // The commit record is flushed before the transaction ends for others: mostly it has by
        // now; a missing synchronous standby makes it last.
        // SAFETY: reads shared memory.
        let is_visible = || unsafe { !pg_sys::TransactionIdIsInProgress(xid) };
        if !is_visible() {
            self.feed.flush();
            self.feed.decoded(self.transaction.commit, true);
            self.await_visible(is_visible);
        }
    }

    fn await_visible(&mut self, is_visible: impl Fn() -> bool) {
        let since = Instant::now();
        let look = || {
            let is_visible = is_visible();
            if !is_visible && !self.was_held && since.elapsed() > HELD {
                self.was_held = true;
                let xid = self.transaction.xid;
                let reason = format!(
                    "transaction {xid} has committed, but others cannot see it yet: it waits for a synchronous standby"
                );
                log!("pg_tide: {reason}");
                server::offer(&link::json(&Word::Stalled { reason }));
            }
            is_visible
        };
        wait::until(look, VISIBLE_FIRST_MS, VISIBLE_LONGEST_MS);
    }

    /// Whether the hub was told that the stream is held up, since the last call.
    pub(crate) fn take_was_held(&mut self) -> bool {
        std::mem::take(&mut self.was_held)
    }

    /// The transaction is complete.
    pub(crate) fn commit(&mut self) {
        self.feed.end_transaction(self.transaction.commit);
    }

    /// A row was inserted, updated or deleted.
    ///
    /// # Safety
    /// As called by the decoder.
    pub(crate) unsafe fn change(
        &mut self,
        relation: pg_sys::Relation,
        change: *mut pg_sys::ReorderBufferChange,
    ) {
        use pg_sys::ReorderBufferChangeType as Action;
        let position = self.next_position();
        if self.feed.has_sent(position) {
            return;
        }
        // SAFETY: as above.
        let (action, (old, new)) = unsafe { ((*change).action, compat::tuples(change)) };
        let operation = match action {
            Action::REORDER_BUFFER_CHANGE_INSERT => Operation::Insert,
            Action::REORDER_BUFFER_CHANGE_UPDATE => Operation::Update,
            Action::REORDER_BUFFER_CHANGE_DELETE => Operation::Delete,
            _ => return,
        };
        if let Some(table) = &self.hang_on {
            // SAFETY: as above; a name ends with a zero byte.
            let name = unsafe { CStr::from_ptr((*(*relation).rd_rel).relname.data.as_ptr()) };
            if name == table.as_c_str() {
                hang(table);
            }
        }
        let row = RowChange { relation, operation, old, new };
        // SAFETY: as above.
        self.guarded(Some(relation), position, |replay| unsafe { replay.row(position, row) });
    }

    /// Tables were emptied.
    ///
    /// # Safety
    /// As called by the decoder.
    pub(crate) unsafe fn truncate(&mut self, relations: &[pg_sys::Relation]) {
        for relation in relations {
            let position = self.next_position();
            if self.feed.has_sent(position) {
                continue;
            }
            // SAFETY: as above.
            let one = |replay: &mut Replay| unsafe { replay.truncated(position, *relation) };
            self.guarded(Some(*relation), position, one);
        }
    }

    /// Passes on what the catalogue's invalidations have made stale.
    pub(crate) fn pass_on_invalidations(&mut self) {
        let Some(stale) = invalidation::take() else { return };
        let retyped = self.relations.forget(&stale);
        self.messages.forget(&stale);
        if stale.all_relations || stale.entitlements {
            return self.feed.catalog(CatalogChange::All);
        }
        for table in stale.relations.into_iter().chain(retyped) {
            // The others are asked about when their first event comes.
            if self.relations.has_seen(table) {
                self.feed.catalog(CatalogChange::Relation(table));
            }
        }
    }

    fn next_position(&mut self) -> Position {
        let position =
            Position { commit: self.transaction.commit, ordinal: self.transaction.changes };
        self.transaction.changes = self.transaction.changes.saturating_add(1);
        crash_page::at_change(self.transaction.changes);
        position
    }

    /// Does the work on one change in memory of its own and, if need be, in a subtransaction.
    fn guarded(
        &mut self,
        relation: Option<pg_sys::Relation>,
        position: Position,
        work: impl FnOnce(&mut Replay),
    ) {
        self.current = Some(position);
        (self.mark, self.reading, self.column) = (None, None, None);
        // SAFETY: the scratch memory is used for nothing but the change at hand.
        let before = unsafe { pg_sys::MemoryContextSwitchTo(self.scratch) };
        self.pass_on_invalidations();
        if self.is_careful {
            self.carefully(relation, position, work);
        } else {
            work(self);
        }
        // SAFETY: as above.
        unsafe {
            pg_sys::MemoryContextSwitchTo(before);
            if !(*self.scratch).isReset {
                pg_sys::MemoryContextReset(self.scratch);
            }
        }
        self.current = None;
    }

    unsafe fn row(&mut self, position: Position, mut change: RowChange) {
        // SAFETY: as for `change`, for all of this.
        unsafe {
            let index = self.relations.find(change.relation, &self.publication);
            if self.relations.outbox(index).is_some() {
                return self.outbox_row(position, index, change);
            }
            let Replay { relations, old, new, .. } = self;
            let Some(published) = relations.get(index) else { return };
            // A DELETE without an old row, of a table without a replica identity, says nothing.
            let has_row = !change.old.is_null() || !change.new.is_null();
            if !has_row || !published.operations.include(change.operation) {
                return;
            }
            let descriptor = (*change.relation).rd_att;
            if !change.new.is_null() {
                new.read(change.new, descriptor);
            }
            if !change.old.is_null() {
                old.read(change.old, descriptor);
                if !change.new.is_null() {
                    new.fill_unchanged(old, published);
                }
            }
            if let Some(filter) = &mut published.filter {
                let old = (!change.old.is_null()).then_some(&*old);
                let new = (!change.new.is_null()).then_some(&*new);
                let Some(operation) = filter.apply(change.operation, old, new) else { return };
                change.operation = operation;
            }
            self.reading = Some(change);
            self.announce(index);
            self.feed.make_room();
            self.write(position, index, change);
        }
    }

    /// A row that was inserted into an outbox is a message. What becomes of it there is nobody's
    /// business.
    unsafe fn outbox_row(&mut self, position: Position, index: usize, change: RowChange) {
        if change.operation != Operation::Insert || change.new.is_null() {
            return;
        }
        let Replay { relations, feed, mark, new, generation, log, .. } = self;
        let Some(outbox) = relations.outbox(index) else { return };
        if !outbox.is_whole() {
            return log.write("rows of an outbox are not published: it has lost columns");
        }
        // SAFETY: as for `change`.
        let message = unsafe {
            new.read(change.new, (*change.relation).rd_att);
            if !outbox.publishes(new, *generation) {
                return;
            }
            self.reading = Some(change);
            feed.make_room();
            let batch = feed.batch();
            batch.begin_event(self.limit);
            *mark = Some(batch.begin_row());
            outbox.message(new, batch, self.limit)
        };
        match message {
            Ok(message) => self.add(position, EventKind::Message(message)),
            // SAFETY: as above.
            Err(sqlstate) => unsafe { self.row_unsaid(position, index, sqlstate) },
        }
    }

    /// Writes the rows and adds the event.
    unsafe fn write(&mut self, position: Position, index: usize, change: RowChange) {
        let Replay { relations, feed, mark, column, old: before, new: after, .. } = self;
        let Some(published) = relations.get(index) else { return };
        let relation = Arc::clone(&published.relation);
        let image = if relation.identity_full { Image::Full } else { Image::Key };
        let batch = feed.batch();
        batch.begin_event(self.limit);
        *mark = Some(batch.begin_row());
        let operation = change.operation;
        let wants_new = matches!(operation, Operation::Insert | Operation::Update);
        let wants_old = matches!(operation, Operation::Update | Operation::Delete);
        let has_new = wants_new && !change.new.is_null();
        let has_old = wants_old && !change.old.is_null();
        // SAFETY: as for `change`; the rows were read from that relation.
        let mut row = |is_wanted: bool, tuple: &Tuple, image| unsafe {
            is_wanted.then(|| tuple::write(batch, published, tuple, image, column)).transpose()
        };
        let rows = row(has_new, after, Image::Full)
            .and_then(|new| row(has_old, before, image).map(|old| (new, old)));
        match rows {
            Ok((new, old)) => {
                for (row, tuple) in [(new, after), (old, before)] {
                    let Some(row) = row else { continue };
                    // SAFETY: as above.
                    unsafe { tuple::write_texts(batch, published, tuple, row) };
                }
                self.add(position, EventKind::Change(Change { relation, operation, old, new }));
            }
            // SAFETY: as above.
            Err(why) => unsafe { self.too_large(position, index, why) },
        }
    }

    unsafe fn truncated(&mut self, position: Position, relation: pg_sys::Relation) {
        // SAFETY: as for `truncate`.
        let index = unsafe { self.relations.find(relation, &self.publication) };
        let Some(published) = self.relations.get(index) else { return };
        // A partition that is published as its root is emptied for itself, not the root.
        if published.is_via_root || !published.operations.include(Operation::Truncate) {
            return;
        }
        let relation = Arc::clone(&published.relation);
        self.announce(index);
        self.feed.make_room();
        let operation = Operation::Truncate;
        self.add(position, EventKind::Change(Change { relation, operation, old: None, new: None }));
    }

    /// Before a table's first event the hub asks what it knows of it again: it hears of changes
    /// to the catalogue only for tables that have had events.
    fn announce(&mut self, index: usize) {
        if let Some(table) = self.relations.first_event(index) {
            self.feed.catalog(CatalogChange::Relation(table));
        }
    }

    fn add(&mut self, position: Position, kind: EventKind) {
        let Transaction { end, xid, commit_time, .. } = self.transaction;
        let mutation_id = self.transaction.mutation_id.clone();
        let last_in_tx = false;
        let event = Event { position, end, xid, commit_time, last_in_tx, mutation_id, kind };
        self.feed.add(event);
    }
}

/// Until the process is ended.
#[cold]
fn hang(table: &CStr) -> ! {
    log!("pg_tide: hangs at a change of \"{}\"", table.to_string_lossy());
    loop {
        // SAFETY: sleeps. Not on the latch: then nothing would count as being decoded.
        unsafe { pg_sys::pg_usleep(10_000) };
        pgrx::check_for_interrupts!();
    }
}
