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
use crate::process::awaited;

thread_local! {
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
    // SAFETY: a plain variable of this process; the record of this very commit ends there, if it wrote one.
    let end = unsafe { pg_sys::XactLastCommitEnd };
    if LAST_COMMIT.replace(end) != end {
        awaited::wake_worker(end);
    }
}
