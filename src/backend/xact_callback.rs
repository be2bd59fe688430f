//! The end of every transaction: a commit wakes its database's worker.
//!
//! What runs at a commit cannot fail: no allocation, no error, no lock. The exceptions are the
//! few transactions that created or dropped something the launcher must know of.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::xact_notes;
use crate::process::shmem;
use crate::process::shmem::{Entry, Shared};

/// The entry of this backend's database, as of a generation of the table.
#[derive(Clone, Copy)]
struct Found {
    generation: u32,
    entry: Option<&'static Entry>,
}

thread_local! {
    static FOUND: Cell<Option<Found>> = const { Cell::new(None) };
    static LAST_COMMIT: Cell<pg_sys::XLogRecPtr> = const { Cell::new(0) };
}

/// In `_PG_init` only: every backend inherits it.
pub(crate) fn init() {
    // SAFETY: the callback is a function of a library that is never unloaded.
    unsafe { pg_sys::RegisterXactCallback(Some(on_transaction), null_mut()) };
}

#[pg_guard]
unsafe extern "C-unwind" fn on_transaction(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT => {
            wake_worker();
            xact_notes::committed();
        }
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT | pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => {
            xact_notes::before_commit();
        }
        pg_sys::XactEvent::XACT_EVENT_PREPARE => xact_notes::prepared(),
        pg_sys::XactEvent::XACT_EVENT_ABORT => xact_notes::aborted(),
        _ => {}
    }
}

fn wake_worker() {
    let Some(shared) = shmem::shared() else { return };
    // SAFETY: plain variables of this process; the record of this very commit ends there, if it
    // wrote one.
    let (end, database) = unsafe { (pg_sys::XactLastCommitEnd, pg_sys::MyDatabaseId) };
    if LAST_COMMIT.replace(end) == end || database == pg_sys::InvalidOid {
        return;
    }
    if let Some(entry) = my_entry(shared, database) {
        entry.committed(end);
    }
}

fn my_entry(shared: &'static Shared, database: pg_sys::Oid) -> Option<&'static Entry> {
    let generation = shared.generation();
    let found = FOUND.get().filter(|found| found.generation == generation).unwrap_or_else(|| {
        let found = Found { generation, entry: shared.entry(database) };
        FOUND.set(Some(found));
        found
    });
    // An entry that was given back belongs to nobody, or to another database.
    found.entry.filter(|entry| entry.database() == database)
}
