//! Questions to the database that leave nothing behind, and chores that do: one transaction each.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::PgTryBuilder;
use pgrx::pg_sys::{self, errcodes::PgSqlErrorCode, panic::CaughtError};

mod raw {
    use std::ffi::c_int;

    // utils/timeout.h, which pgrx does not bind.
    unsafe extern "C-unwind" {
        pub(super) fn enable_timeout_after(id: c_int, delay_ms: c_int);
        pub(super) fn disable_timeout(id: c_int, keep_indicator: bool);
    }
}

/// `TimeoutId`'s STATEMENT_TIMEOUT; the same in every version from 15 to 18.
const STATEMENT_TIMEOUT: i32 = 3;
/// `lock.h`'s USER_LOCKMETHOD: advisory locks.
const USER_LOCKMETHOD: u16 = 2;

/// Postgres said no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) sqlstate: String,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Refusal {
        Refusal { sqlstate: sqlstate(code), message: message.into() }
    }
}

/// Runs `work` in a read-only transaction that is rolled back whatever happens, within `timeout`.
/// To be called outside a transaction, by a process that has no other use for the statement
/// time-out.
pub(super) fn rolled_back<R>(
    timeout: Duration,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    let work = AssertUnwindSafe(|| {
        begin(timeout);
        work()
    });
    let result = PgTryBuilder::new(work).catch_others(|error| Err(refusal(&error))).execute();
    abort();
    result
}

/// Runs `work` in a transaction that is committed if that succeeds, within `timeout`. To be called
/// as [`rolled_back`] is.
pub(super) fn committed<R>(
    timeout: Duration,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    let work = AssertUnwindSafe(|| {
        begin(timeout);
        // SAFETY: in a transaction that has done nothing yet, whatever its default is.
        unsafe { pg_sys::XactReadOnly = false };
        let result = work()?;
        commit();
        Ok(result)
    });
    let result = PgTryBuilder::new(work).catch_others(|error| Err(refusal(&error))).execute();
    abort();
    result
}

fn commit() {
    // SAFETY: ends the transaction that `begin` started.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| raw::disable_timeout(STATEMENT_TIMEOUT, false));
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
    }
}

fn begin(timeout: Duration) {
    let timeout = milliseconds(timeout);
    // SAFETY: the caller is not in a transaction; the timeouts were set up when the process
    // connected to its database.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::XactReadOnly = true;
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            raw::enable_timeout_after(STATEMENT_TIMEOUT, timeout)
        });
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
}

/// Within [`rolled_back`]: gives what follows so much time, from now on.
pub(super) fn allow(timeout: Duration) {
    let timeout = milliseconds(timeout);
    // SAFETY: the timeouts were set up when the process connected to its database.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            raw::disable_timeout(STATEMENT_TIMEOUT, false);
            raw::enable_timeout_after(STATEMENT_TIMEOUT, timeout);
        });
    }
}

fn milliseconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Takes back everything that was not committed: the role, the settings, the snapshot, the locks. What a role's code
/// could leave beyond a transaction is refused in a security-restricted one, except for session
/// level advisory locks.
fn abort() {
    // SAFETY: ends the transaction that `begin` started, in whatever state it is. A time-out that
    // came too late must not hit the next question.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| raw::disable_timeout(STATEMENT_TIMEOUT, false));
        pg_sys::AbortCurrentTransaction();
        pg_sys::QueryCancelPending = 0;
        pg_sys::LockReleaseSession(USER_LOCKMETHOD);
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
    }
}

fn refusal(error: &CaughtError) -> Refusal {
    match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
            Refusal::new(report.sql_error_code(), report.message())
        }
        // A bug of ours; what it says is for the log.
        CaughtError::RustPanic { ereport, .. } => {
            pgrx::log!("pg_tide: {}", ereport.message());
            Refusal::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "internal error")
        }
    }
}

/// The five characters that Postgres packs into a number.
fn sqlstate(code: PgSqlErrorCode) -> String {
    let packed = code as i32;
    (0..5).map(|i| char::from((packed >> (6 * i) & 0x3F) as u8 + b'0')).collect()
}
