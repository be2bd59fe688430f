//! Errors of the SQL functions.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, function_name};

/// Raises an error; the hint says what to do about it.
pub(crate) fn raise(code: PgSqlErrorCode, message: impl Into<String>, hint: &str) -> ! {
    let report = ErrorReport::new(code, message.into(), function_name!());
    let report = if hint.is_empty() { report } else { report.set_hint(hint) };
    report.report(PgLogLevel::ERROR);
    unreachable!("an error has been raised")
}

/// Has errors tell what is wrong, and not from where in the code: pgrx adds a backtrace as their detail
/// where RUST_BACKTRACE is set for the server. Of this library only; a panic of tide-server has its own.
pub(crate) fn without_backtraces() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    let before = std::env::var_os(VARIABLE);
    // SAFETY: a process that loads a library has one thread.
    unsafe {
        std::env::set_var(VARIABLE, "0");
        // Looks at the variable once and for all.
        let _ = std::backtrace::Backtrace::capture();
        match before {
            Some(value) => std::env::set_var(VARIABLE, value),
            None => std::env::remove_var(VARIABLE),
        }
    }
}
