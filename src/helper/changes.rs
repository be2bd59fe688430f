//! Changes of the catalogue as the catalog worker hears of them, numbered, so that whoever has been
//! told something can ask whether it still holds.
//!
//! Postgres tells every session what to drop from its caches, before whoever made the change hears
//! that it is committed. So somebody who knows that a REVOKE is committed, and asks after that, is
//! not told that nothing has changed.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys;
use tide_feed::changes::ChangeLog;

use crate::compat;
use crate::source::invalidation;

thread_local! {
    static LOG: RefCell<Option<ChangeLog>> = const { RefCell::new(None) };
    /// What was known of when the caches were last dropped.
    static FRESH: Cell<Option<Fresh>> = const { Cell::new(None) };
}

#[derive(Clone, Copy, Debug)]
struct Fresh {
    /// Changes that the stream had told of.
    streamed: u64,
    /// Transactions that had ended.
    ended: u64,
}

/// From now on changes are heard of; once per process, before the first question.
pub(crate) fn listen() {
    invalidation::listen();
    let mut start = [0_u8; 8];
    // SAFETY: fills the buffer, of which it is told the length.
    let is_random = unsafe { pg_sys::pg_strong_random(start.as_mut_ptr().cast(), start.len()) };
    if !is_random {
        pgrx::error!("could not get a random number");
    }
    // Of another process's numbers none is taken for one of these.
    LOG.set(Some(ChangeLog::starting_at(u64::from_le_bytes(start) >> 2)));
}

/// The number of the newest change that what is looked up from here on knows of. In a transaction,
/// which has heard of all changes that were committed before its snapshot.
pub(crate) fn newest() -> u64 {
    take_notes();
    LOG.with_borrow(|log| log.as_ref().map_or(0, ChangeLog::newest))
}

/// The tables that have changed since the change of that number; `None`: it may be any.
pub(crate) fn since(number: u64) -> Option<Vec<u32>> {
    LOG.with_borrow(|log| log.as_ref().and_then(|log| log.since(number)))
}

/// Another server counts what its stream tells of.
pub(crate) fn begin_stream() {
    FRESH.set(None);
}

/// Before a look-up by somebody whose stream has told of so many changes: has it read the catalogue
/// itself, unless what is remembered knows of them.
///
/// A transaction tells other processes to drop what they remember only after it has become visible,
/// which the stream may tell of sooner: without this, a REVOKE that clients are already asked about
/// could be missed. It has every plan made anew as well, which takes longer than the look-up.
pub(crate) fn forget_catalogue(streamed: u64) {
    // Read before: a transaction that ends from here on is for the next time.
    let ended = compat::ended_transactions();
    let is_known = |fresh: Fresh| fresh.streamed == streamed || fresh.ended == ended;
    if FRESH.get().is_some_and(is_known) {
        return;
    }
    FRESH.set(Some(Fresh { streamed, ended }));
    take_notes();
    // SAFETY: outside a transaction, where nothing of the caches is in use.
    unsafe { pg_sys::InvalidateSystemCaches() };
    // That everything is stale is of our own making.
    invalidation::take();
}

fn take_notes() {
    let Some(stale) = invalidation::take() else { return };
    LOG.with_borrow_mut(|log| {
        let Some(log) = log else { return };
        if stale.all_relations || stale.entitlements || !stale.types.is_empty() {
            return log.all_changed();
        }
        stale.relations.into_iter().for_each(|table| log.changed(table));
    });
}
