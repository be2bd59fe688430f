//! The output plugin that Postgres calls: each callback only passes on.
//!
//! Not registered, on purpose: streaming and prepare callbacks (a transaction is decoded when it
//! has committed, whole) and the origin filter (all changes count, wherever they began).

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::source::replay::Replay;

/// What the callbacks work with; set in a worker only.
static REPLAY: AtomicPtr<Replay> = AtomicPtr::new(null_mut());

/// From now on this process decodes into `replay`.
pub(crate) fn install(replay: *mut Replay) {
    REPLAY.store(replay, Ordering::Relaxed);
}

/// # Safety
/// In a callback only: nothing else uses the replay meanwhile.
unsafe fn replay<'a>() -> &'a mut Replay {
    let replay = REPLAY.load(Ordering::Relaxed);
    // SAFETY: as above; it lives as long as the process. The decoder runs no callback of a plugin
    // that has refused to start.
    unsafe { &mut *replay }
}

#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn _PG_output_plugin_init(
    callbacks: *mut pg_sys::OutputPluginCallbacks,
) {
    // SAFETY: Postgres passes a table to fill.
    let callbacks = unsafe { &mut *callbacks };
    callbacks.startup_cb = Some(on_startup);
    callbacks.begin_cb = Some(on_begin);
    callbacks.change_cb = Some(on_change);
    callbacks.truncate_cb = Some(on_truncate);
    callbacks.message_cb = Some(on_message);
    callbacks.commit_cb = Some(on_commit);
}

#[pg_guard]
unsafe extern "C-unwind" fn on_startup(
    _context: *mut pg_sys::LogicalDecodingContext,
    options: *mut pg_sys::OutputPluginOptions,
    _is_init: bool,
) {
    // pg_upgrade makes the slots of the old cluster anew, and replays nothing.
    // SAFETY: set when the server started.
    let is_upgrade = unsafe { pg_sys::IsBinaryUpgrade };
    if REPLAY.load(Ordering::Relaxed).is_null() && !is_upgrade {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "pg_tide decodes only in its own worker"
        );
    }
    // SAFETY: Postgres passes options to fill.
    unsafe {
        (*options).output_type = pg_sys::OutputPluginOutputType::OUTPUT_PLUGIN_BINARY_OUTPUT;
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_begin(
    _context: *mut pg_sys::LogicalDecodingContext,
    transaction: *mut pg_sys::ReorderBufferTXN,
) {
    // SAFETY: a callback, with a live transaction.
    unsafe { replay().begin(transaction) }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_change(
    _context: *mut pg_sys::LogicalDecodingContext,
    _transaction: *mut pg_sys::ReorderBufferTXN,
    relation: pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: a callback, with an open relation and a live change, under a historic snapshot.
    unsafe { replay().change(relation, change) }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_truncate(
    _context: *mut pg_sys::LogicalDecodingContext,
    _transaction: *mut pg_sys::ReorderBufferTXN,
    count: c_int,
    relations: *mut pg_sys::Relation,
    _change: *mut pg_sys::ReorderBufferChange,
) {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: a callback, with as many open relations.
    unsafe { replay().truncate(std::slice::from_raw_parts(relations, count)) }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_message(
    _context: *mut pg_sys::LogicalDecodingContext,
    transaction: *mut pg_sys::ReorderBufferTXN,
    _lsn: pg_sys::XLogRecPtr,
    is_transactional: bool,
    prefix: *const c_char,
    size: pg_sys::Size,
    content: *const c_char,
) {
    // SAFETY: a callback, with a live transaction if there is one, a C string, and bytes of the
    // size.
    unsafe {
        let prefix = CStr::from_ptr(prefix);
        let content = std::slice::from_raw_parts(content.cast(), size);
        let transaction = is_transactional.then_some(transaction.cast_const());
        replay().message(transaction, prefix, content);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_commit(
    _context: *mut pg_sys::LogicalDecodingContext,
    _transaction: *mut pg_sys::ReorderBufferTXN,
    _lsn: pg_sys::XLogRecPtr,
) {
    // SAFETY: a callback.
    unsafe { replay().commit() }
}
