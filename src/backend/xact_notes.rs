//! What a transaction leaves to be done at its end: a note to the launcher, which has a probe
//! look at what was committed, and the workers it has sent away.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::drops;
use crate::process::shmem;
use crate::process::shmem::Entry;

/// How long a statement waits for the worker of its database to leave.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the worker may take to leave by itself.
const GRACE: Duration = Duration::from_millis(500);

thread_local! {
    /// This transaction created or dropped an extension.
    static EXTENSIONS_CHANGED: Cell<bool> = const { Cell::new(false) };
    /// Databases that this transaction made, altered or dropped.
    static CHANGED: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
    /// The database that a statement is about to move to another tablespace.
    static MOVING: Cell<Option<pg_sys::Oid>> = const { Cell::new(None) };
    /// The database that this transaction has moved.
    static MOVED: Cell<Option<pg_sys::Oid>> = const { Cell::new(None) };
    /// Workers that are kept away until this transaction ends.
    static HELD: RefCell<Vec<&'static Entry>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn extensions_changed() {
    EXTENSIONS_CHANGED.set(true);
}

pub(crate) fn database_moves(database: pg_sys::Oid) {
    MOVING.set(Some(database));
}

pub(crate) fn database_changed(database: pg_sys::Oid) {
    CHANGED.with_borrow_mut(|changed| changed.push(database));
    if MOVING.get() == Some(database) {
        MOVED.set(Some(database));
    }
}

/// The transaction is about to be committed, or prepared: the last moment to look at catalogues.
/// Extensions other than pg_tide are nobody's concern here.
pub(crate) fn before_commit() {
    if !EXTENSIONS_CHANGED.get() {
        return;
    }
    // SAFETY: still in the transaction.
    let (database, extension) =
        unsafe { (pg_sys::MyDatabaseId, pg_sys::get_extension_oid(c"pg_tide".as_ptr(), true)) };
    let known = shmem::shared().is_some_and(|shared| shared.entry(database).is_some());
    EXTENSIONS_CHANGED.set(known || extension != pg_sys::InvalidOid);
}

/// The transaction is committed: the launcher is told.
pub(crate) fn committed() {
    if EXTENSIONS_CHANGED.replace(false) {
        // SAFETY: a plain variable of this process.
        recheck(unsafe { pg_sys::MyDatabaseId });
    }
    // Also of one that has no worker.
    if let Some((database, shared)) = MOVED.get().zip(shmem::shared()) {
        shared.claim(database, shmem::Entry::forget_history);
    }
    CHANGED.with_borrow_mut(|changed| changed.drain(..).for_each(recheck));
    tear_up();
}

/// The transaction's outcome is for COMMIT PREPARED to decide.
pub(crate) fn prepared() {
    if EXTENSIONS_CHANGED.get()
        && let Some(shared) = shmem::shared()
    {
        shared.prepare_extensions();
    }
    tear_up();
}

/// The transaction came to nothing.
pub(crate) fn aborted() {
    tear_up();
}

/// Nothing is left to be done.
fn tear_up() {
    EXTENSIONS_CHANGED.set(false);
    CHANGED.with_borrow_mut(Vec::clear);
    MOVING.set(None);
    MOVED.set(None);
    drops::forget();
    HELD.with_borrow_mut(|held| held.drain(..).for_each(Entry::unhold));
}

fn recheck(database: pg_sys::Oid) {
    let Some(shared) = shmem::shared() else { return };
    if !shared.recheck(database) {
        warning!("pg_tide serves at most {} databases of a server", shmem::DATABASES);
    }
}

/// Keeps the worker away until this transaction ends, and waits until it and its helpers have
/// left. What still is there after that is for the statement itself to complain about. False: the
/// database is none of pg_tide's.
pub(crate) fn send_away(database: pg_sys::Oid) -> bool {
    let Some(shared) = shmem::shared() else { return false };
    let held = shared.with(database, |entry| {
        entry.hold();
        entry
    });
    let Some(entry) = held else { return false };
    HELD.with_borrow_mut(|all| all.push(entry));

    let begun = Instant::now();
    let mut killed = false;
    while !entry.is_deserted() && begun.elapsed() < PATIENCE {
        if !killed && begun.elapsed() > GRACE {
            killed = true;
            entry.terminate();
        }
        pause();
    }
    true
}

fn pause() {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: waits on this process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, 10, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check_for_interrupts!();
}
