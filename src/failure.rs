//! Errors of Postgres as values that can be told to the hub and the log: never with a row's
//! values in them.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, UnwindSafe};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;

/// An error that was caught.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) sqlstate: Box<str>,
    /// The SQLSTATE's own name in words.
    pub(crate) condition: String,
    /// What Postgres said. May hold values if the error arose in a row.
    pub(crate) message: String,
}

/// Runs `work`; an error of Postgres or a panic in it ends it. Whoever calls this has to abort
/// what was begun.
pub(crate) fn attempt<T>(work: impl FnOnce() -> T + UnwindSafe) -> Result<T, Box<CaughtError>> {
    PgTryBuilder::new(|| Ok(work())).catch_others(|error| Err(Box::new(error))).execute()
}

/// Runs `work` in a subtransaction, which is undone if it fails.
pub(crate) fn attempt_in_subtransaction<T>(
    work: impl FnOnce() -> T,
) -> Result<T, Box<CaughtError>> {
    // SAFETY: in a transaction: the one that a decoded transaction is replayed in. Resource owner
    // and memory context are put back as they were, as any user of subtransactions does.
    let (owner, memory) = unsafe {
        let before = (pg_sys::CurrentResourceOwner, pg_sys::CurrentMemoryContext);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(before.1);
        before
    };
    let result = attempt(AssertUnwindSafe(work));
    // SAFETY: as above.
    unsafe {
        match &result {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(memory);
        pg_sys::CurrentResourceOwner = owner;
    }
    result
}

/// Whether the error says nothing about what was done when it arose: a cancel, a shutdown.
pub(crate) fn is_interruption(error: &CaughtError) -> bool {
    sqlstate(report(error).sql_error_code()).starts_with("57")
}

impl From<&CaughtError> for Failure {
    fn from(error: &CaughtError) -> Failure {
        let report = report(error);
        let code = report.sql_error_code();
        let name = format!("{code:?}");
        let name = name.strip_prefix("ERRCODE_").unwrap_or(&name);
        let mut message = report.message().to_owned();
        if let Some(detail) = report.detail() {
            message = format!("{message}: {detail}");
        }
        Failure {
            sqlstate: sqlstate(code).into(),
            condition: name.to_lowercase().replace('_', " "),
            message,
        }
    }
}

fn report(error: &CaughtError) -> &pg_sys::panic::ErrorReportWithLevel {
    match error {
        CaughtError::PostgresError(report)
        | CaughtError::ErrorReport(report)
        | CaughtError::RustPanic { ereport: report, .. } => report,
    }
}

/// The five characters of an SQLSTATE.
pub(crate) fn sqlstate(code: PgSqlErrorCode) -> String {
    unpacked(code as c_int)
}

/// The five characters of an SQLSTATE, which Postgres packs into a number at six bits each.
pub(crate) fn unpacked(code: c_int) -> String {
    let character = |position: u32| {
        let bits = u8::try_from((code >> (6 * position)) & 0x3F).unwrap_or(0);
        char::from(bits.saturating_add(b'0'))
    };
    (0..5).map(character).collect()
}
