//! Waiting, always interruptibly: in the worker's loop, and inside the decoder.

use std::os::fd::RawFd;
use std::ptr::null_mut;
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::compat;
use crate::process::helpers;
use crate::source::crash_page;

/// What a worker's loop waits for: its latch, its server's link, and the end of the postmaster.
/// Made once for each server; making one costs several system calls.
#[derive(Debug)]
pub(crate) struct WaitSet {
    set: *mut pg_sys::WaitEventSet,
    link: Option<RawFd>,
}

impl WaitSet {
    pub(crate) fn new(link: Option<RawFd>) -> WaitSet {
        // SAFETY: the set is freed with `self`; the latch lives as long as the process, and the
        // link as long as its server, with which the set goes.
        unsafe {
            let set = compat::create_wait_event_set(3);
            let add = |events, fd, latch| {
                pg_sys::AddWaitEventToSet(set, events, fd, latch, null_mut());
            };
            add(pg_sys::WL_LATCH_SET, pg_sys::PGINVALID_SOCKET, pg_sys::MyLatch);
            add(pg_sys::WL_EXIT_ON_PM_DEATH, pg_sys::PGINVALID_SOCKET, null_mut());
            if let Some(link) = link {
                add(pg_sys::WL_SOCKET_READABLE, link, null_mut());
            }
            WaitSet { set, link }
        }
    }

    /// The descriptor that is waited for besides.
    pub(crate) fn link(&self) -> Option<RawFd> {
        self.link
    }

    /// Waits for at most `time`.
    pub(crate) fn wait(&self, time: Duration) {
        // Rounded up: waking a moment early would only be to wait again.
        let milliseconds = i64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i64::MAX);
        let mut event = pg_sys::WaitEvent::default();
        // SAFETY: the set was made by `new`; room for one event, the others wait.
        unsafe {
            pg_sys::WaitEventSetWait(
                self.set,
                milliseconds,
                &raw mut event,
                1,
                pg_sys::PG_WAIT_EXTENSION,
            );
        }
    }
}

impl Drop for WaitSet {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used by nobody else.
        unsafe { pg_sys::FreeWaitEventSet(self.set) };
    }
}

/// Waits for the latch, or for so long.
pub(crate) fn until_latch_or(time: Duration) {
    let milliseconds = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: this process's own latch.
    unsafe {
        let events = i32::try_from(events).unwrap_or(0);
        pg_sys::WaitLatch(pg_sys::MyLatch, events, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check_for_interrupts!();
}

/// Waits until `done`, looking after `first` milliseconds, then ever more rarely down to every
/// `longest`, and whenever the latch is set. For use inside the decoder.
pub(crate) fn until(mut done: impl FnMut() -> bool, first: i64, longest: i64) {
    let mut latch = LatchKeeper::default();
    let mut pause = first;
    while !done() {
        latch.wait(None, pause);
        pause = (pause * 2).min(longest);
    }
}

/// Waits until `done`, looking whenever the socket can be written to or has something to be read,
/// every `pause` milliseconds, and whenever the latch is set. For use inside the decoder.
pub(crate) fn until_writable(
    socket: impl Fn() -> Option<RawFd>,
    pause: i64,
    mut done: impl FnMut() -> bool,
) {
    let mut latch = LatchKeeper::default();
    while !done() {
        latch.wait(socket(), pause);
    }
}

/// Waits on the latch where it is somebody else's turn to see to what it was set for: it is set
/// again at the end.
#[derive(Debug, Default)]
struct LatchKeeper {
    was_set: bool,
}

impl LatchKeeper {
    fn wait(&mut self, socket: Option<RawFd>, pause: i64) {
        let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        if socket.is_some() {
            events |= pg_sys::WL_SOCKET_WRITEABLE | pg_sys::WL_SOCKET_READABLE;
        }
        let was_decoding = crash_page::pause();
        // SAFETY: this process's own latch, and a descriptor that is open.
        let event = unsafe {
            pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                i32::try_from(events).unwrap_or(0),
                socket.unwrap_or(pg_sys::PGINVALID_SOCKET),
                pause,
                pg_sys::PG_WAIT_EXTENSION,
            )
        };
        if event & pg_sys::WL_LATCH_SET as i32 != 0 {
            self.was_set = true;
            // SAFETY: as above.
            unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        }
        check_for_interrupts!();
        // The server that is waited for may itself be waiting for a helper that has ended.
        helpers::tend();
        crash_page::resume(was_decoding);
    }
}

impl Drop for LatchKeeper {
    fn drop(&mut self) {
        if self.was_set {
            // SAFETY: as above; sets a flag, and raises nothing.
            unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
        }
    }
}
