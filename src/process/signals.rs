//! What pg_tide's background workers do on signals.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use pgrx::pg_sys;

use crate::compat::on_signal;
use crate::source::crash_page;

mod raw {
    use std::ffi::c_int;

    // pgrx's wrappers are Rust functions, which cannot be signal handlers.
    unsafe extern "C-unwind" {
        pub(crate) fn die(signal: c_int);
        pub(crate) fn SignalHandlerForConfigReload(signal: c_int);
        pub(crate) fn SignalHandlerForCrashExit(signal: c_int);
    }
}

/// SIGTERM ends the process at the next safe point (by FATAL, exit code 1), SIGHUP asks it to
/// read the settings again. SIGINT stays what it is: it cancels a query. Before connecting.
pub(crate) fn install() {
    // SAFETY: called once by a background worker's main thread; the handlers are Postgres's own.
    unsafe {
        on_signal(libc::SIGTERM, raw::die);
        on_signal(libc::SIGHUP, raw::SignalHandlerForConfigReload);
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// For a process that runs no queries: there is nothing to cancel.
pub(crate) fn ignore_cancel() {
    // SAFETY: the handler does nothing.
    unsafe { on_signal(libc::SIGINT, ignore) };
}

/// For a process that decodes: when another one has crashed, the postmaster ends all by SIGQUIT,
/// which is not to count as a crash of this one.
pub(crate) fn survive_blame() {
    // SAFETY: the handler does no more than what one may.
    unsafe { on_signal(libc::SIGQUIT, quit) };
}

/// For a process that decodes: where it is it says in a mapped file, which may come to lack room.
pub(crate) fn survive_bus_errors() {
    // SAFETY: the handler does no more than what one may; `sa_mask` is empty when it is zero.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, null_mut());
    }
}

/// What was being done is done again when this returns.
extern "C" fn bus_error(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel says where. A fault of any other kind ends the process the next time.
    unsafe {
        if !crash_page::bear((*info).si_addr()) {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

unsafe extern "C-unwind" fn quit(signal: c_int) {
    crash_page::idle();
    // SAFETY: Postgres's own handler of this signal, which ends the process at once.
    unsafe { raw::SignalHandlerForCrashExit(signal) };
}

unsafe extern "C-unwind" fn ignore(_signal: c_int) {}

/// Reads the settings again if SIGHUP came; true: it did. Outside a transaction only.
pub(crate) fn reload() -> bool {
    // SAFETY: the flag is set by the signal handler on this very thread.
    unsafe {
        let pending = &raw mut pg_sys::ConfigReloadPending;
        if pending.read_volatile() == 0 {
            return false;
        }
        pending.write_volatile(0);
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
    true
}
