//! The read loop: one decoding context, open for the worker's life, fed record by record.
//!
//! The context is only ever used with the historic catalogue. A context that has failed is given
//! up with [`Decoder::abandon`] and opened again.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::event::Lsn;

use crate::source::crash_page;
use crate::{compat, sys, wait};

/// While a slot is created the WAL that is waited for comes with the next commit, or when the WAL
/// writer comes round.
const WAL_NAP_MS: i64 = 50;

#[derive(Debug)]
pub(crate) struct Decoder {
    context: *mut pg_sys::LogicalDecodingContext,
    confirmed: Lsn,
}

impl Decoder {
    /// Opens the slot for decoding from its confirmed position on.
    pub(crate) fn open(slot: &CStr) -> Decoder {
        // SAFETY: a transaction of our own. The context has to be made inside it: else the
        // process would count as one whose snapshots hold back no vacuum. It outlives the
        // transaction in the top memory context. The caches filled so far are today's, and
        // must not be mixed with the historic ones.
        unsafe {
            pg_sys::StartTransactionCommand();
            pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            compat::acquire_slot(slot);
            let mut routine = resumable_routine();
            let context = pg_sys::CreateDecodingContext(
                0,
                null_mut(),
                false,
                &raw mut routine,
                None,
                None,
                None,
            );
            pg_sys::InvalidateSystemCaches();
            pg_sys::CommitTransactionCommand();
            pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let data = &raw const (*pg_sys::MyReplicationSlot).data;
            pg_sys::XLogBeginRead((*context).reader, (*data).restart_lsn);
            Decoder { context, confirmed: Lsn((*data).confirmed_flush) }
        }
    }

    /// Reads and decodes one record; `false` at the end of the flushed WAL. Can be called again.
    pub(crate) fn advance(&mut self) -> bool {
        let mut message: *mut c_char = null_mut();
        // SAFETY: the context is open, and we are in no transaction. A record's memory comes from
        // the context's own; what replaying a transaction leaves as current memory is not ours.
        unsafe {
            let reader = (*self.context).reader;
            // A read past the end would make the reader forget its segment: the next one would
            // open that again, and read its first page.
            if pg_sys::GetFlushRecPtr(null_mut()) <= (*reader).EndRecPtr {
                return false;
            }
            // What the reader comes to need is to go with the context, also if that is abandoned.
            pg_sys::MemoryContextSwitchTo((*self.context).context);
            let record = pg_sys::XLogReadRecord(reader, &raw mut message);
            pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            if !message.is_null() {
                let message = CStr::from_ptr(message).to_string_lossy();
                error!("could not read WAL: {message}");
            }
            if record.is_null() {
                return false;
            }
            let place = Lsn((*reader).ReadRecPtr);
            crash_page::enter(place, Lsn((*reader).EndRecPtr));
            decode(self.context, reader, record);
            crash_page::leave(place);
            pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        }
        true
    }

    /// End of the last record that was decoded; the slot's position before the first.
    pub(crate) fn position(&self) -> Lsn {
        // SAFETY: the context is open.
        let end = unsafe { (*(*self.context).reader).EndRecPtr };
        Lsn(end).max(self.confirmed)
    }

    pub(crate) fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// Lets the slot move: what committed before `lsn` will not be decoded again. Never backwards.
    pub(crate) fn confirm(&mut self, lsn: Lsn) {
        if lsn <= self.confirmed {
            return;
        }
        // SAFETY: this process holds the slot. Dirty, so that the next checkpoint writes it.
        unsafe {
            pg_sys::LogicalConfirmReceivedLocation(lsn.0);
            pg_sys::ReplicationSlotMarkDirty();
        }
        self.confirmed = lsn;
    }

    /// Saves and releases the slot.
    pub(crate) fn close(self) {
        // SAFETY: the context is open and the slot held by this process.
        unsafe {
            pg_sys::ReplicationSlotMarkDirty();
            pg_sys::ReplicationSlotSave();
            pg_sys::FreeDecodingContext(self.context);
            pg_sys::ReplicationSlotRelease();
        }
    }

    /// Gives up a context that an error has left in whatever state.
    pub(crate) fn abandon(self) {
        // SAFETY: the context was open; nothing uses it any more. Its memory goes as a whole, the
        // one other thing it holds is the open WAL segment.
        unsafe {
            let reader = (*self.context).reader;
            if (*reader).seg.ws_file >= 0 {
                pg_sys::wal_segment_close(reader);
            }
            pg_sys::MemoryContextDelete((*self.context).context);
        }
    }
}

/// Decodes the record that has just been read.
///
/// Postgres files a logical message under the end of its record, which is the beginning of the
/// next. Where the two are of different subtransactions of one transaction, nothing would say which
/// of them comes first; a byte less does.
///
/// # Safety
/// The context is open, and the record its reader's.
unsafe fn decode(
    context: *mut pg_sys::LogicalDecodingContext,
    reader: *mut pg_sys::XLogReaderState,
    record: *const pg_sys::XLogRecord,
) {
    // SAFETY: as above. After an error the reader is not used again.
    unsafe {
        let end = (*reader).EndRecPtr;
        if u32::from((*record).xl_rmid) == pg_sys::RmgrIds::RM_LOGICALMSG_ID {
            (*reader).EndRecPtr = end - 1;
        }
        sys::process_record(context, reader);
        (*reader).EndRecPtr = end;
    }
}

/// Leaves behind whatever an error interrupted: transaction, locks, slot.
pub(crate) fn clean_up_after_error() {
    // SAFETY: the caller has caught the error and runs nothing else. The order is that of the
    // main loops of Postgres: the abort gives back what the transaction had.
    unsafe {
        pg_sys::LWLockReleaseAll();
        pg_sys::ConditionVariableCancelSleep();
        pg_sys::AbortCurrentTransaction();
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
    }
}

/// Gives back the slot that this process may still hold; an ephemeral one vanishes.
pub(crate) fn release_slot() {
    // SAFETY: no decoding context uses the slot any more.
    unsafe {
        if !pg_sys::MyReplicationSlot.is_null() {
            pg_sys::ReplicationSlotRelease();
        }
    }
}

fn resumable_routine() -> pg_sys::XLogReaderRoutine {
    routine(read_flushed_page)
}

/// For the creation of a slot, which cannot be left and taken up again.
pub(crate) fn waiting_routine() -> pg_sys::XLogReaderRoutine {
    routine(await_page)
}

type PageRead = unsafe extern "C-unwind" fn(
    *mut pg_sys::XLogReaderState,
    pg_sys::XLogRecPtr,
    c_int,
    pg_sys::XLogRecPtr,
    *mut c_char,
) -> c_int;

fn routine(page_read: PageRead) -> pg_sys::XLogReaderRoutine {
    pg_sys::XLogReaderRoutine {
        page_read: Some(page_read),
        segment_open: Some(sys::raw::wal_segment_open),
        segment_close: Some(sys::raw::wal_segment_close),
    }
}

fn is_flushed(page: pg_sys::XLogRecPtr, wanted: c_int) -> bool {
    let wanted = u64::try_from(wanted).unwrap_or(0);
    // SAFETY: reads shared memory.
    page + wanted <= unsafe { pg_sys::GetFlushRecPtr(null_mut()) }
}

/// Never waits: at the end of the flushed WAL the reader gives nothing, without an error, and can
/// be asked again.
#[pg_guard]
unsafe extern "C-unwind" fn read_flushed_page(
    reader: *mut pg_sys::XLogReaderState,
    page: pg_sys::XLogRecPtr,
    wanted: c_int,
    target: pg_sys::XLogRecPtr,
    buffer: *mut c_char,
) -> c_int {
    if !is_flushed(page, wanted) {
        return -1;
    }
    // SAFETY: as called by the reader.
    unsafe { sys::read_local_page(reader, page, wanted, target, buffer) }
}

/// Waits on the latch, so that a shutdown is not kept waiting.
#[pg_guard]
unsafe extern "C-unwind" fn await_page(
    reader: *mut pg_sys::XLogReaderState,
    page: pg_sys::XLogRecPtr,
    wanted: c_int,
    target: pg_sys::XLogRecPtr,
    buffer: *mut c_char,
) -> c_int {
    wait::until(|| is_flushed(page, wanted), WAL_NAP_MS, WAL_NAP_MS);
    // SAFETY: as called by the reader.
    unsafe { sys::read_local_page(reader, page, wanted, target, buffer) }
}
