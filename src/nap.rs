//! Waiting inside the decoder: on the latch, interruptible, for something that sets no latch.

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::process::helpers;

/// Naps until `done`, looking after `first` milliseconds, then ever more rarely down to every
/// `longest`, and whenever the latch is set. What the latch was set for is not lost: it is set
/// again at the end.
pub(crate) fn until(mut done: impl FnMut() -> bool, first: i64, longest: i64) {
    let mut woken = false;
    let mut nap = first;
    while !done() {
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        // SAFETY: this process's own latch; main thread.
        let event = unsafe {
            let events = i32::try_from(events).unwrap_or(0);
            pg_sys::WaitLatch(pg_sys::MyLatch, events, nap, pg_sys::PG_WAIT_EXTENSION)
        };
        if event & pg_sys::WL_LATCH_SET as i32 != 0 {
            woken = true;
            // SAFETY: as above.
            unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        }
        check_for_interrupts!();
        // The hub that is waited for may itself be waiting for a helper that has ended.
        helpers::tend();
        nap = (nap * 2).min(longest);
    }
    if woken {
        // SAFETY: as above.
        unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
    }
}
