//! What pg_tide's background workers do on signals.

use std::ffi::c_int;

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
