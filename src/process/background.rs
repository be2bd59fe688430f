//! Starting other processes of pg_tide: background workers that run once.

use std::ffi::c_char;
use std::ptr::{NonNull, null_mut};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// A background worker to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Background<'a> {
    /// What the server's log calls it.
    pub(crate) name: &'a str,
    /// `backend_type` in `pg_stat_activity`.
    pub(crate) kind: &'a str,
    /// The exported function it runs.
    pub(crate) function: &'static str,
    /// The database it is for; its main function's argument.
    pub(crate) database: pg_sys::Oid,
    /// `bgw_extra`.
    pub(crate) extra: &'a str,
}

/// A background worker that was asked for.
#[derive(Debug)]
pub(crate) struct Handle(NonNull<pg_sys::BackgroundWorkerHandle>);

/// Every place for background workers is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no place left for a background worker")]
pub(crate) struct Full;

impl Full {
    const HINT: &'static str =
        "Raise max_worker_processes in postgresql.conf and restart the server.";

    /// For `tide.status()`.
    pub(crate) fn reason(self) -> String {
        format!("{self}. {}", Full::HINT)
    }

    /// Says in the server's log that `what` cannot be started.
    pub(crate) fn log(self, what: &str) {
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("pg_tide: cannot start {what}: {self}"),
            function_name!(),
        )
        .set_hint(Full::HINT)
        .report(PgLogLevel::LOG);
    }
}

impl Background<'_> {
    fn description(&self) -> pg_sys::BackgroundWorker {
        let flags = pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION;
        let mut worker = pg_sys::BackgroundWorker {
            bgw_flags: flags as i32,
            bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
            bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
            bgw_main_arg: pg_sys::Datum::from(self.database),
            ..Default::default()
        };
        write(&mut worker.bgw_name, self.name);
        write(&mut worker.bgw_type, self.kind);
        write(&mut worker.bgw_library_name, "pg_tide");
        write(&mut worker.bgw_function_name, self.function);
        write(&mut worker.bgw_extra, self.extra);
        worker
    }

    /// Has the postmaster run it, and run it again `seconds` after it ends. In `_PG_init` only.
    pub(crate) fn keep(&self, seconds: i32) {
        let mut worker = self.description();
        worker.bgw_restart_time = seconds;
        // SAFETY: the description is copied.
        unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
    }

    /// Has the postmaster run it once; this process's latch is set when it starts and ends.
    pub(crate) fn start(&self) -> Result<Handle, Full> {
        let mut handle = null_mut();
        // SAFETY: the description is copied; the handle is made in a context that lives as long
        // as the process, and freed by `Handle`.
        let started = unsafe {
            let mut worker = self.description();
            worker.bgw_notify_pid = pg_sys::MyProcPid;
            let before = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let started = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
            pg_sys::MemoryContextSwitchTo(before);
            started
        };
        NonNull::new(handle).filter(|_| started).map(Handle).ok_or(Full)
    }
}

impl Handle {
    /// Whether it has ended, or will never start.
    pub(crate) fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle came from Postgres.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0.as_ptr(), &mut pid) };
        status == pg_sys::BgwHandleStatus::BGWH_STOPPED
            || status == pg_sys::BgwHandleStatus::BGWH_POSTMASTER_DIED
    }

    /// Sends SIGTERM, also to one that has yet to start.
    pub(crate) fn terminate(&self) {
        // SAFETY: the handle came from Postgres.
        unsafe { pg_sys::TerminateBackgroundWorker(self.0.as_ptr()) };
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle was allocated by `start`, and nobody else has it.
        unsafe { pg_sys::pfree(self.0.as_ptr().cast()) };
    }
}

/// Cuts off what does not fit; the last byte stays zero.
fn write(target: &mut [c_char], text: &str) {
    let room = target.len().saturating_sub(1);
    for (to, from) in target.iter_mut().zip(text.bytes().take(room)) {
        *to = from as c_char;
    }
}
