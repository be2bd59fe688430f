//! What a worker waits for: its latch, its threads' bell, and the end of the server.

use std::os::fd::RawFd;
use std::ptr::null_mut;
use std::time::Duration;

use pgrx::pg_sys;

use crate::compat;

/// Made once; making one costs several system calls.
#[derive(Debug)]
pub(crate) struct WaitSet(*mut pg_sys::WaitEventSet);

impl WaitSet {
    pub(crate) fn new(bell: RawFd) -> WaitSet {
        // SAFETY: the set lives as long as the process, as do its latch and the bell.
        unsafe {
            let set = compat::create_wait_event_set(3);
            let add = |events, fd, latch| {
                pg_sys::AddWaitEventToSet(set, events, fd, latch, null_mut());
            };
            add(pg_sys::WL_LATCH_SET, pg_sys::PGINVALID_SOCKET, pg_sys::MyLatch);
            add(pg_sys::WL_EXIT_ON_PM_DEATH, pg_sys::PGINVALID_SOCKET, null_mut());
            add(pg_sys::WL_SOCKET_READABLE, bell, null_mut());
            WaitSet(set)
        }
    }

    /// Waits for at most `time`; true: the bell rang.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        // Rounded up: waking a moment early would only be to wait again.
        let milliseconds = i64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i64::MAX);
        let mut events = [pg_sys::WaitEvent::default(); 3];
        // SAFETY: the set was made by `new`; room for each of its events.
        let count = unsafe {
            pg_sys::WaitEventSetWait(
                self.0,
                milliseconds,
                events.as_mut_ptr(),
                3,
                pg_sys::PG_WAIT_EXTENSION,
            )
        };
        let count = usize::try_from(count).unwrap_or(0);
        events.iter().take(count).any(|event| event.events & pg_sys::WL_SOCKET_READABLE != 0)
    }
}
