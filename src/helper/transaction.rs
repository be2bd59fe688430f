//! Questions to the database that leave nothing behind, and maintenance of outboxes, which does:
//! one transaction each.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;
use std::time::Duration;

use pgrx::PgTryBuilder;
use pgrx::pg_sys::errcodes::PgSqlErrorCode;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::pg_sys::{self};

use crate::compat::USER_TIMEOUT;
use crate::encoding::Encoding;
use crate::failure::{sqlstate, unpacked};
use crate::helper::log;
use crate::sys;

mod raw {
    use std::ffi::c_int;

    // utils/timeout.h, which pgrx does not bind.
    unsafe extern "C-unwind" {
        pub(crate) fn RegisterTimeout(id: c_int, handler: unsafe extern "C-unwind" fn()) -> c_int;
        pub(crate) fn enable_timeout_after(id: c_int, delay_ms: c_int);
        pub(crate) fn disable_timeout(id: c_int, keep_indicator: bool);
        pub(crate) fn die(signal: c_int);
    }
}

/// `TimeoutId`'s STATEMENT_TIMEOUT; the same in every version from 15 to 18.
const STATEMENT_TIMEOUT: i32 = 3;
/// Code that catches the cancellation of its statement has so much longer, then its process ends:
/// that cannot be caught.
const GRACE_MS: i32 = 1_000;
/// `lock.h`'s USER_LOCKMETHOD: advisory locks.
const USER_LOCKMETHOD: u16 = 2;

/// Postgres said no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) sqlstate: String,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Refusal {
        Refusal { sqlstate: sqlstate(code), message: message.into() }
    }

    /// What only a bug of ours can bring about.
    pub(crate) fn internal(message: &str) -> Refusal {
        Refusal::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, message)
    }

    /// What the log may know of code that belongs to others: names of objects, but no values, as
    /// a message may have them that is not of class 42 (syntax, names, privileges).
    pub(crate) fn for_log(&self) -> String {
        match self.sqlstate.as_str() {
            "57014" => "it took longer than tide.policy_timeout".into(),
            code if code.starts_with("42") => format!("{} (SQLSTATE {code})", self.message),
            code => format!("SQLSTATE {code}"),
        }
    }
}

/// How long a question waits for a lock: whoever asked does so again in a moment, and others have their
/// turn meanwhile. Shorter than `deadlock_timeout` usually is, so that nobody's transaction is ended
/// for a question's sake.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Runs `work` in a read-only transaction that is rolled back whatever happens, within `timeout`.
/// To be called outside a transaction, by a process that has no other use for the statement
/// time-out.
pub(crate) fn rolled_back<R>(
    timeout: Duration,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    let result = caught(|| {
        begin(timeout);
        limit_lock_waits(timeout);
        work()
    });
    abort();
    result
}

/// Runs `work` in a transaction that is committed if that succeeds, within `timeout`. To be called
/// as [`rolled_back`] is.
pub(crate) fn committed<R>(
    timeout: Duration,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    let prepare = || {
        // SAFETY: in a transaction that has done nothing yet, whatever its default is.
        unsafe { pg_sys::XactReadOnly = false };
        Ok(())
    };
    committed_after(timeout, prepare, work)
}

/// The same, with something that comes before the transaction's snapshot is taken.
pub(crate) fn committed_after<R>(
    timeout: Duration,
    prepare: impl FnOnce() -> Result<(), Refusal>,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    let result = caught(|| {
        start(timeout);
        prepare()?;
        look();
        let result = work()?;
        commit();
        Ok(result)
    });
    abort();
    // Autovacuum goes by them, and nobody else reports them in a background worker.
    // SAFETY: outside a transaction.
    unsafe { pg_sys::pgstat_report_stat(true) };
    result
}

/// Runs `work` in a subtransaction, which is undone if it fails. In a transaction.
pub(crate) fn subtransaction<R>(work: impl FnOnce() -> Result<R, Refusal>) -> Result<R, Refusal> {
    // SAFETY: in a transaction. Resource owner and memory context are put back as they were, as any user
    // of subtransactions does.
    let (owner, memory) = unsafe {
        let before = (pg_sys::CurrentResourceOwner, pg_sys::CurrentMemoryContext);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(before.1);
        before
    };
    let result = caught(work);
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

fn commit() {
    disarm();
    // SAFETY: ends the transaction that `begin` started.
    unsafe {
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
    }
}

fn begin(timeout: Duration) {
    start(timeout);
    look();
}

fn start(timeout: Duration) {
    // SAFETY: the caller is not in a transaction; the timeouts were set up when the process
    // connected to its database.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::XactReadOnly = true;
    }
    arm(timeout);
}

fn look() {
    // SAFETY: in a transaction.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
}

/// Does the work with what has been committed by now. In a transaction.
pub(crate) fn with_news<R>(work: impl FnOnce() -> Result<R, Refusal>) -> Result<R, Refusal> {
    // SAFETY: in a transaction, whose end takes it back where an error keeps this from it.
    unsafe { pg_sys::PushActiveSnapshot(sys::latest_snapshot()) };
    let result = work();
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    result
}

/// A lock that is not free is to be told from work that takes too long.
fn limit_lock_waits(timeout: Duration) {
    limit_locks(LOCK_TIMEOUT.min(timeout / 2));
}

/// To the end of the transaction, or of the GUC nest level.
pub(crate) fn limit_locks(limit: Duration) {
    let limit = limit.as_millis().max(1);
    let Ok(limit) = CString::new(limit.to_string()) else { return };
    // SAFETY: in a transaction, whose end takes it back.
    unsafe {
        pg_sys::SetConfigOption(
            c"lock_timeout".as_ptr(),
            limit.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

/// Within [`rolled_back`]: gives what follows so much time, from now on.
pub(crate) fn allow(timeout: Duration) {
    disarm();
    arm(timeout);
}

fn arm(timeout: Duration) {
    let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1);
    let end = end_timeout();
    // SAFETY: both are registered.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            raw::enable_timeout_after(STATEMENT_TIMEOUT, timeout);
            raw::enable_timeout_after(end, timeout.saturating_add(GRACE_MS));
        });
    }
}

/// Ends the time that was given.
fn disarm() {
    let end = end_timeout();
    // SAFETY: both are registered.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            raw::disable_timeout(STATEMENT_TIMEOUT, false);
            raw::disable_timeout(end, false);
        });
    }
}

/// The time-out that ends the process.
fn end_timeout() -> i32 {
    static ID: OnceLock<i32> = OnceLock::new();
    // SAFETY: the process is connected, so the timeouts are set up; registered once.
    *ID.get_or_init(|| unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| raw::RegisterTimeout(USER_TIMEOUT, end_process))
    })
}

/// What SIGTERM does: FATAL at the next safe point.
unsafe extern "C-unwind" fn end_process() {
    // SAFETY: Postgres's own signal handler, called where it would be: in one.
    unsafe { raw::die(0) };
}

/// Takes back everything that was not committed: the role, the settings, the snapshot, the locks.
/// What a role's code could leave beyond a transaction is refused in a security-restricted one,
/// except for session level advisory locks.
fn abort() {
    disarm();
    // SAFETY: ends the transaction that `begin` started, in whatever state it is. A time-out that
    // came too late must not hit the next question.
    unsafe {
        pg_sys::AbortCurrentTransaction();
        pg_sys::QueryCancelPending = 0;
        pg_sys::LockReleaseSession(USER_LOCKMETHOD);
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
    }
}

/// An error as it was raised.
#[derive(Default)]
struct Raised {
    /// Its SQLSTATE as Postgres packs it.
    code: c_int,
    /// In the encoding of the database.
    message: Vec<u8>,
}

thread_local! {
    static RAISED: RefCell<Raised> = RefCell::default();
}

/// Runs `work`; an error of Postgres's in it ends it.
fn caught<R>(work: impl FnOnce() -> Result<R, Refusal>) -> Result<R, Refusal> {
    let mut callback =
        pg_sys::ErrorContextCallback { callback: Some(note_raised), ..Default::default() };
    // SAFETY: main thread. The callback is taken away again before it goes out of scope, also after an
    // error, and what was there before is called as well.
    unsafe {
        callback.previous = pg_sys::error_context_stack;
        pg_sys::error_context_stack = &raw mut callback;
    }
    let work = AssertUnwindSafe(work);
    let result = PgTryBuilder::new(work).catch_others(|error| Err(refusal(&error))).execute();
    // SAFETY: as above.
    unsafe { pg_sys::error_context_stack = callback.previous };
    result
}

/// Called where an error, or a notice, is raised.
unsafe extern "C-unwind" fn note_raised(_argument: *mut c_void) {
    // SAFETY: in an error's callback; what is copied is freed.
    unsafe {
        let code = pg_sys::geterrcode();
        // There is no memory to copy it to.
        if code == PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY as c_int {
            return RAISED.set(Raised { code, message: Vec::new() });
        }
        let memory = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let error = pg_sys::CopyErrorData();
        if (*error).elevel >= pgrx::PgLogLevel::ERROR as c_int {
            let text = (*error).message;
            let message =
                if text.is_null() { Vec::new() } else { CStr::from_ptr(text).to_bytes().to_vec() };
            RAISED.set(Raised { code, message });
        }
        pg_sys::FreeErrorData(error);
        pg_sys::MemoryContextSwitchTo(memory);
    }
}

fn refusal(error: &CaughtError) -> Refusal {
    match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
            as_raised(report.message())
                .unwrap_or_else(|| Refusal::new(report.sql_error_code(), report.message()))
        }
        // A bug of ours; what it says is for the log.
        CaughtError::RustPanic { ereport, .. } => {
            log::say(ereport.message());
            Refusal::internal("internal error")
        }
    }
}

/// The error that was raised last, if it is this one: pgrx knows nothing of SQLSTATEs that users have made
/// up, and takes every text for UTF-8.
fn as_raised(message: &str) -> Option<Refusal> {
    RAISED.with_borrow(|raised| {
        let is_it = raised.code != 0 && String::from_utf8_lossy(&raised.message) == message;
        is_it.then(|| Refusal {
            sqlstate: unpacked(raised.code),
            message: Encoding::of_database().utf8(&raised.message).into_owned(),
        })
    })
}
