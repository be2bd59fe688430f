//! The decoder's side of pg_tide's own messages: takes those that are genuine, and leaves what
//! somebody else wrote under our prefix.

use std::collections::HashSet;

use pgrx::pg_sys;
use tide_feed::wal::{Key, Sealed, WalMessage};

use crate::source::invalidation::Stale;
use crate::source::message_key;

/// What is known of the transaction that is being replayed, and of the keys.
#[derive(Debug, Default)]
pub(crate) struct LogicalMessages {
    /// As of a historic snapshot; forgotten when they change.
    keys: Vec<Key>,
    /// Oid of their table, once it has been read.
    table: u32,
    /// Number of the transaction's newest message. They begin with 1.
    last: u32,
    /// The transaction's committed subtransactions, once a message was in one.
    subtransactions: Option<HashSet<u32>>,
    forged: u64,
}

impl LogicalMessages {
    /// Another transaction is replayed from its beginning.
    pub(crate) fn begin(&mut self) {
        self.last = 0;
        self.subtransactions = None;
    }

    /// What a message under our prefix says; `None`, counted: it is not ours.
    ///
    /// # Safety
    /// In a message callback, with its transaction. Takes memory from the current context.
    pub(crate) unsafe fn open<'a>(
        &mut self,
        transaction: *const pg_sys::ReorderBufferTXN,
        content: &'a [u8],
    ) -> Option<WalMessage<'a>> {
        // SAFETY: as above.
        let body = unsafe { self.genuine(transaction, content) };
        if body.is_none() {
            self.refuse();
        }
        body.and_then(WalMessage::read)
    }

    /// Somebody else has written under our prefix.
    pub(crate) fn refuse(&mut self) {
        self.forged = self.forged.saturating_add(1);
    }

    /// How many messages were not ours, since they were last taken by
    /// [`LogicalMessages::forget_forged`].
    pub(crate) fn forged(&self) -> u64 {
        self.forged
    }

    pub(crate) fn forget_forged(&mut self) {
        self.forged = 0;
    }

    /// The keys may have changed.
    pub(crate) fn forget(&mut self, stale: &Stale) {
        if stale.all_relations || stale.relations.contains(&self.table) {
            self.forget_keys();
        }
    }

    /// Decoding goes back to an earlier place.
    pub(crate) fn forget_keys(&mut self) {
        self.keys.clear();
    }

    unsafe fn genuine<'a>(
        &mut self,
        transaction: *const pg_sys::ReorderBufferTXN,
        content: &'a [u8],
    ) -> Option<&'a [u8]> {
        let sealed = Sealed::parse(content)?;
        // SAFETY: as for `open`.
        unsafe {
            let body = sealed.open(self.key(sealed.key)?)?;
            let is_here = sealed.origin.transaction == full_id((*transaction).xid.into_inner())
                && self.has_committed(transaction, sealed.origin.subtransaction)
                && sealed.origin.number > self.last;
            self.last = self.last.max(if is_here { sealed.origin.number } else { 0 });
            is_here.then_some(body)
        }
    }

    /// The key with this id; one that is not known may be newer, or older, than those that are.
    unsafe fn key(&mut self, id: i64) -> Option<&Key> {
        if !self.keys.iter().any(|key| key.id() == id) {
            // SAFETY: as for `open`: under a historic snapshot.
            unsafe {
                let table = message_key::table()?;
                self.table = table.to_u32();
                self.keys = message_key::read(table);
            }
        }
        self.keys.iter().find(|key| key.id() == id)
    }

    /// Whether the subtransaction is part of what committed: those that were rolled back are not.
    unsafe fn has_committed(
        &mut self,
        transaction: *const pg_sys::ReorderBufferTXN,
        subtransaction: u32,
    ) -> bool {
        // SAFETY: as for `open`; the list does not change while the transaction is replayed.
        unsafe {
            (*transaction).xid.into_inner() == subtransaction
                || self
                    .subtransactions
                    .get_or_insert_with(|| committed_subtransactions(transaction))
                    .contains(&subtransaction)
        }
    }
}

/// # Safety
/// A live transaction of the reorder buffer.
unsafe fn committed_subtransactions(transaction: *const pg_sys::ReorderBufferTXN) -> HashSet<u32> {
    let mut found = HashSet::new();
    // SAFETY: a circular list through the `node` of each, that ends where it began; one that was
    // never used has null links.
    unsafe {
        let head = &raw const (*transaction).subtxns.head;
        let mut node = (*head).next.cast_const();
        while !node.is_null() && node != head {
            let offset = std::mem::offset_of!(pg_sys::ReorderBufferTXN, node);
            let subtransaction = node.byte_sub(offset).cast::<pg_sys::ReorderBufferTXN>();
            found.insert((*subtransaction).xid.into_inner());
            node = (*node).next;
        }
    }
    found
}

/// The 64-bit number of a transaction in the WAL, which began less than 2^31 transactions ago:
/// the slot holds back the horizon that Postgres keeps that near.
fn full_id(xid: u32) -> u64 {
    // SAFETY: reads shared memory.
    let next = unsafe { pg_sys::ReadNextFullTransactionId().value };
    let behind = (next as u32).wrapping_sub(xid);
    next.wrapping_sub(u64::from(behind))
}
