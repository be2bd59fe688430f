//! Postgres functions that pgrx does not bind: each behind a guard that turns a Postgres error
//! into unwinding.

use std::ffi::{CStr, c_char, c_int};

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

/// The bare symbols. Those that Postgres wants as function pointers are used from here.
pub(crate) mod raw {
    use super::{c_char, c_int};
    use crate::pg_sys;

    unsafe extern "C-unwind" {
        pub(crate) fn LogicalDecodingProcessRecord(
            context: *mut pg_sys::LogicalDecodingContext,
            reader: *mut pg_sys::XLogReaderState,
        );
        pub(crate) fn read_local_xlog_page(
            reader: *mut pg_sys::XLogReaderState,
            page: pg_sys::XLogRecPtr,
            wanted: c_int,
            target: pg_sys::XLogRecPtr,
            buffer: *mut c_char,
        ) -> c_int;
        pub(crate) fn wal_segment_open(
            reader: *mut pg_sys::XLogReaderState,
            segment: pg_sys::XLogSegNo,
            timeline: *mut pg_sys::TimeLineID,
        );
        pub(crate) fn wal_segment_close(reader: *mut pg_sys::XLogReaderState);
        pub(crate) fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;
        pub(crate) fn Async_Listen(channel: *const c_char);
        pub(crate) fn Async_Unlisten(channel: *const c_char);
        pub(crate) fn Async_UnlistenAll();
        pub(crate) fn GetLatestSnapshot() -> pg_sys::Snapshot;
        pub(crate) fn ApplySetting(
            snapshot: pg_sys::Snapshot,
            database: pg_sys::Oid,
            role: pg_sys::Oid,
            settings: pg_sys::Relation,
            source: pg_sys::GucSource::Type,
        );
        pub(crate) fn ResetSequenceCaches();
        pub(crate) fn ProcessNotifyInterrupt(flush: bool);
        /// A `volatile sig_atomic_t`, set by a signal's handler.
        pub(crate) static notifyInterruptPending: c_int;
        pub(crate) static mut PqCommMethods: *const super::PqCommMethods;
    }
}

/// What Postgres calls to talk to its client.
#[repr(C)]
pub(crate) struct PqCommMethods {
    pub(crate) comm_reset: unsafe extern "C-unwind" fn(),
    pub(crate) flush: unsafe extern "C-unwind" fn() -> c_int,
    pub(crate) flush_if_writable: unsafe extern "C-unwind" fn() -> c_int,
    pub(crate) is_send_pending: unsafe extern "C-unwind" fn() -> bool,
    pub(crate) putmessage: unsafe extern "C-unwind" fn(c_char, *const c_char, usize) -> c_int,
    pub(crate) putmessage_noblock: unsafe extern "C-unwind" fn(c_char, *const c_char, usize),
}

/// Whether there may be something in the queue of notifications.
pub(crate) fn notify_pending() -> bool {
    // SAFETY: a variable of this process that is written whole.
    unsafe { (&raw const raw::notifyInterruptPending).read_volatile() != 0 }
}

/// LISTEN, from the end of the transaction on.
///
/// # Safety
/// In a transaction.
pub(crate) unsafe fn listen(channel: &CStr) {
    // SAFETY: as above; the closure owns nothing.
    unsafe { pg_guard_ffi_boundary(|| raw::Async_Listen(channel.as_ptr())) }
}

/// UNLISTEN, from the end of the transaction on.
///
/// # Safety
/// In a transaction.
pub(crate) unsafe fn unlisten(channel: &CStr) {
    // SAFETY: as above; the closure owns nothing.
    unsafe { pg_guard_ffi_boundary(|| raw::Async_Unlisten(channel.as_ptr())) }
}

/// Reads all of the queue that has been committed, and sends it to what is taken for the client.
///
/// # Safety
/// Outside a transaction.
pub(crate) unsafe fn process_notify_interrupt() {
    // SAFETY: as above; the closure owns nothing.
    unsafe { pg_guard_ffi_boundary(|| raw::ProcessNotifyInterrupt(false)) }
}

/// Decodes the record that `reader` has just read.
///
/// # Safety
/// A live context and its own reader.
pub(crate) unsafe fn process_record(
    context: *mut pg_sys::LogicalDecodingContext,
    reader: *mut pg_sys::XLogReaderState,
) {
    // SAFETY: as above; the closure owns nothing.
    unsafe { pg_guard_ffi_boundary(|| raw::LogicalDecodingProcessRecord(context, reader)) }
}

/// Reads a page of this server's own WAL, waiting for it if it is not there yet.
///
/// # Safety
/// To be called by a WAL reader's `page_read` with what that was given.
pub(crate) unsafe fn read_local_page(
    reader: *mut pg_sys::XLogReaderState,
    page: pg_sys::XLogRecPtr,
    wanted: c_int,
    target: pg_sys::XLogRecPtr,
    buffer: *mut c_char,
) -> c_int {
    // SAFETY: as above; the closure owns nothing.
    unsafe {
        pg_guard_ffi_boundary(|| raw::read_local_xlog_page(reader, page, wanted, target, buffer))
    }
}

/// The partitioned tables above a partition, the nearest first.
///
/// # Safety
/// Needs a transaction or a historic snapshot.
pub(crate) unsafe fn partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List {
    // SAFETY: as above; the closure owns nothing.
    unsafe { pg_guard_ffi_boundary(|| raw::get_partition_ancestors(relation)) }
}

/// Evaluates a prepared expression; `None` is SQL NULL.
///
/// # Safety
/// A live state and context; memory is taken from the context's per-tuple memory.
pub(crate) unsafe fn evaluate(
    state: *mut pg_sys::ExprState,
    context: *mut pg_sys::ExprContext,
) -> Option<pg_sys::Datum> {
    let mut is_null = false;
    // SAFETY: as above; the closure owns nothing, and the expression's own function is C.
    unsafe {
        let function = (*state).evalfunc?;
        let before = pg_sys::MemoryContextSwitchTo((*context).ecxt_per_tuple_memory);
        let value = pg_guard_ffi_boundary(|| function(state, context, &raw mut is_null));
        pg_sys::MemoryContextSwitchTo(before);
        (!is_null).then_some(value)
    }
}

/// UNLISTEN *, from the end of the transaction on.
///
/// # Safety
/// In a transaction.
pub(crate) unsafe fn unlisten_all() {
    // SAFETY: as above.
    unsafe { pg_guard_ffi_boundary(|| raw::Async_UnlistenAll()) }
}

/// DISCARD SEQUENCES.
///
/// # Safety
/// Main thread of a process with a session.
pub(crate) unsafe fn forget_sequences() {
    // SAFETY: as above.
    unsafe { pg_guard_ffi_boundary(|| raw::ResetSequenceCaches()) }
}

/// The schema of this session's temporary tables, if it has had any.
///
/// # Safety
/// Main thread of a process with a session.
pub(crate) unsafe fn temporary_schema() -> pg_sys::Oid {
    // SAFETY: as above. The function reads a variable.
    let schema = unsafe { pgrx::direct_function_call(pg_sys::pg_my_temp_schema, &[]) };
    schema.unwrap_or(pg_sys::InvalidOid)
}

/// Applies the settings of a database or role, or of a role in a database, as the beginning of a session does.
///
/// # Safety
/// In a transaction that has `pg_db_role_setting` open.
pub(crate) unsafe fn apply_settings(
    database: pg_sys::Oid,
    role: pg_sys::Oid,
    settings: pg_sys::Relation,
    source: pg_sys::GucSource::Type,
) {
    // SAFETY: as above; without a snapshot it is today's.
    unsafe {
        let none = std::ptr::null_mut();
        pg_guard_ffi_boundary(|| raw::ApplySetting(none, database, role, settings, source));
    }
}

/// A snapshot that sees what has been committed by now, whatever the transaction's isolation.
///
/// # Safety
/// In a transaction; to be pushed or registered at once.
pub(crate) unsafe fn latest_snapshot() -> pg_sys::Snapshot {
    // SAFETY: as above.
    unsafe { pg_guard_ffi_boundary(|| raw::GetLatestSnapshot()) }
}
