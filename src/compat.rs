//! Where the versions of Postgres differ.

use std::ffi::{CStr, c_char, c_int};
#[cfg(any(feature = "pg15", feature = "pg16"))]
use std::ptr::null_mut;

use pgrx::pg_sys;

/// Connects a background worker to a database by its oid, as a role by its name. (Postgres's own
/// functions want two oids or two names; only the name of the role is fixed, and only the oid of
/// the database survives its renaming.)
pub(crate) fn connect(database: pg_sys::Oid, role: &CStr) {
    use std::ptr::{null, null_mut};

    // SAFETY: does what BackgroundWorkerInitializeConnection does, for a worker that has not
    // connected yet.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pg_sys::InitPostgres(
            null(),
            database,
            role.as_ptr(),
            pg_sys::InvalidOid,
            false,
            false,
            null_mut(),
        );
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        pg_sys::InitPostgres(null(), database, role.as_ptr(), pg_sys::InvalidOid, 0, null_mut());
        pg_sys::Mode = pg_sys::ProcessingMode::NormalProcessing;
    }
}

/// Whether the role owns the database, or has an owner's rights.
///
/// # Safety
/// In a transaction only.
pub(crate) unsafe fn owns_database(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: as above.
    #[cfg(feature = "pg15")]
    unsafe {
        pg_sys::pg_database_ownercheck(database, role)
    }
    // SAFETY: as above.
    #[cfg(not(feature = "pg15"))]
    unsafe {
        pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role)
    }
}

/// Whether the user may create databases. Postgres's own function for this is not exported before 16,
/// but by its newest minor versions: a library that calls it does not load in those before.
///
/// # Safety
/// In a transaction only.
pub(crate) unsafe fn may_create_databases() -> bool {
    // SAFETY: as above; the row is read before it is released.
    unsafe {
        if pg_sys::superuser() {
            return true;
        }
        let cache = pg_sys::SysCacheIdentifier::AUTHOID as i32;
        let row = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(pg_sys::GetUserId()));
        if row.is_null() {
            return false;
        }
        let data = (*row).t_data.cast::<u8>().add(usize::from((*(*row).t_data).t_hoff));
        let may = (*data.cast::<pg_sys::FormData_pg_authid>()).rolcreatedb;
        pg_sys::ReleaseSysCache(row);
        may
    }
}

/// Whether the role owns the schema, or has an owner's rights.
///
/// # Safety
/// In a transaction only.
pub(crate) unsafe fn owns_schema(schema: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: as above.
    #[cfg(feature = "pg15")]
    unsafe {
        pg_sys::pg_namespace_ownercheck(schema, role)
    }
    // SAFETY: as above.
    #[cfg(not(feature = "pg15"))]
    unsafe {
        pg_sys::object_ownercheck(pg_sys::NamespaceRelationId, schema, role)
    }
}

/// `TimeoutId`'s USER_TIMEOUT: the first that is free for others.
pub(crate) const USER_TIMEOUT: c_int =
    if cfg!(any(feature = "pg15", feature = "pg16")) { 12 } else { 13 };

/// The index of `ReplicationSlotControlLock` among the named locks, the same in 15 to 18.
const REPLICATION_SLOT_CONTROL_LOCK: usize = 37;

/// # Safety
/// In a process attached to shared memory.
pub(crate) unsafe fn replication_slot_control_lock() -> *mut pg_sys::LWLock {
    // SAFETY: the array is complete before any process attaches.
    unsafe { &raw mut (*pg_sys::MainLWLockArray.add(REPLICATION_SLOT_CONTROL_LOCK)).lock }
}

/// Lets go of what `GetRunningTransactionData` leaves locked: `XidGenLock` and `ProcArrayLock`, at
/// the same places in every version from 15 to 18.
///
/// # Safety
/// After that call only.
pub(crate) unsafe fn release_running_transactions() {
    for place in [3, 4] {
        // SAFETY: as above; the array is complete before any process attaches.
        unsafe { pg_sys::LWLockRelease(&raw mut (*pg_sys::MainLWLockArray.add(place)).lock) };
    }
}

/// How many transactions with an id have ended, in the life of the cluster's shared memory. Counted
/// before others can see that one has.
pub(crate) fn ended_transactions() -> u64 {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: in shared memory, which is complete before any process attaches; an aligned word.
    unsafe {
        (&raw const (*pg_sys::ShmemVariableCache).xactCompletionCount).read_volatile()
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: as above.
    unsafe {
        (&raw const (*pg_sys::TransamVariables).xactCompletionCount).read_volatile()
    }
}

/// Creates a logical slot of this database that vanishes unless it is made persistent.
///
/// # Safety
/// In a transaction, holding no slot.
pub(crate) unsafe fn create_slot(name: &CStr) {
    let ephemeral = pg_sys::ReplicationSlotPersistency::RS_EPHEMERAL;
    // SAFETY: as above. Two-phase decoding is off: such transactions come at COMMIT PREPARED.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    unsafe {
        pg_sys::ReplicationSlotCreate(name.as_ptr(), true, ephemeral, false);
    }
    // SAFETY: as above.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    unsafe {
        pg_sys::ReplicationSlotCreate(name.as_ptr(), true, ephemeral, false, false, false);
    }
}

/// Takes a slot, or fails at once if another process has it.
///
/// # Safety
/// Holding no slot.
pub(crate) unsafe fn acquire_slot(name: &CStr) {
    // SAFETY: as above.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true);
    }
    // SAFETY: as above.
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::ReplicationSlotAcquire(name.as_ptr(), true, true);
    }
}

/// Whether the WAL that the slot needs is gone.
pub(crate) fn is_invalidated(slot: &pg_sys::ReplicationSlotPersistentData) -> bool {
    #[cfg(feature = "pg15")]
    {
        slot.invalidated_at != 0
    }
    #[cfg(not(feature = "pg15"))]
    {
        slot.invalidated != pg_sys::ReplicationSlotInvalidationCause::RS_INVAL_NONE
    }
}

/// The old and the new row of a change, null where there is none.
///
/// # Safety
/// A live change of a row.
pub(crate) unsafe fn tuples(
    change: *mut pg_sys::ReorderBufferChange,
) -> (pg_sys::HeapTuple, pg_sys::HeapTuple) {
    // SAFETY: as above; a row change has the union's `tp`.
    unsafe {
        let rows = (*change).data.tp;
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        {
            let tuple = |buffer: *mut pg_sys::ReorderBufferTupleBuf| {
                if buffer.is_null() { null_mut() } else { &raw mut (*buffer).tuple }
            };
            (tuple(rows.oldtuple), tuple(rows.newtuple))
        }
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        {
            (rows.oldtuple, rows.newtuple)
        }
    }
}

/// A column of a descriptor.
///
/// # Safety
/// A live descriptor with more than `index` columns.
pub(crate) unsafe fn attribute<'a>(
    descriptor: pg_sys::TupleDesc,
    index: usize,
) -> &'a pg_sys::FormData_pg_attribute {
    // SAFETY: as above.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        &*(*descriptor).attrs.as_ptr().add(index)
    }
    // SAFETY: as above; since 18 the full attributes follow the compact ones.
    #[cfg(feature = "pg18")]
    unsafe {
        let natts = usize::try_from((*descriptor).natts).unwrap_or(0);
        let attributes = (*descriptor).compact_attrs.as_ptr().add(natts);
        &*attributes.cast::<pg_sys::FormData_pg_attribute>().add(index)
    }
}

/// Looks at what a composite type is made of. `None`: it has no fixed form.
///
/// # Safety
/// A composite type, in a transaction, with a snapshot (a historic one will do).
pub(crate) unsafe fn with_row_type<R>(
    type_id: pg_sys::Oid,
    look: impl FnOnce(pg_sys::TupleDesc) -> R,
) -> Option<R> {
    // SAFETY: as above. After an error the end of the transaction lets go of it.
    unsafe {
        if pg_sys::get_typ_typrelid(type_id) == pg_sys::InvalidOid {
            return None;
        }
        let descriptor = pg_sys::lookup_rowtype_tupdesc(type_id, -1);
        let seen = look(descriptor);
        if (*descriptor).tdrefcount >= 0 {
            pg_sys::DecrTupleDescRefCount(descriptor);
        }
        Some(seen)
    }
}

/// Whether the column is computed when read, so that no row in the WAL has it (18 and later).
pub(crate) fn is_virtual(attribute: &pg_sys::FormData_pg_attribute) -> bool {
    attribute.attgenerated as u8 == b'v'
}

/// The primary key's index, or the invalid oid.
///
/// # Safety
/// An open relation, under a snapshot.
pub(crate) unsafe fn primary_key_index(relation: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: as above.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        pg_sys::RelationGetPrimaryKeyIndex(relation)
    }
    // SAFETY: as above. A deferrable key is no key for those who tell rows apart by it.
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::RelationGetPrimaryKeyIndex(relation, false)
    }
}

/// Sets this process's handler of a signal.
///
/// # Safety
/// Main thread; the handler may only do what signal handlers may.
pub(crate) unsafe fn on_signal(signal: c_int, handler: unsafe extern "C-unwind" fn(c_int)) {
    // SAFETY: as above.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        pg_sys::pqsignal(signal, Some(handler));
    }
    // SAFETY: as above.
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::pqsignal_be(signal, Some(handler));
    }
}

/// An expression over a table's columns, with virtual generated columns as what they are generated
/// from: rows in the WAL do not have them.
///
/// # Safety
/// The table is open; the expression is one over its columns.
pub(crate) unsafe fn expand_generated_columns(
    expression: *mut pg_sys::Node,
    table: pg_sys::Relation,
) -> *mut pg_sys::Node {
    #[cfg(not(feature = "pg18"))]
    let _ = table;
    #[cfg(not(feature = "pg18"))]
    return expression;
    // SAFETY: as above. The columns of the only table there is are those of number 1.
    #[cfg(feature = "pg18")]
    return unsafe { pg_sys::expand_generated_columns_in_expr(expression, table, 1) };
}

/// A set of `events` things to wait for, that lives as long as the process.
///
/// # Safety
/// Main thread.
pub(crate) unsafe fn create_wait_event_set(events: c_int) -> *mut pg_sys::WaitEventSet {
    // SAFETY: as above.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    unsafe {
        pg_sys::CreateWaitEventSet(pg_sys::TopMemoryContext, events)
    }
    // SAFETY: as above. Owned by nobody.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    unsafe {
        pg_sys::CreateWaitEventSet(std::ptr::null_mut(), events)
    }
}

/// Writes a transactional message to the WAL.
///
/// # Safety
/// In a transaction that may write.
pub(crate) unsafe fn log_message(prefix: &CStr, content: &[u8]) {
    mod raw {
        use super::c_char;
        use crate::pg_sys;

        unsafe extern "C-unwind" {
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            pub(crate) fn LogLogicalMessage(
                prefix: *const c_char,
                message: *const c_char,
                size: pg_sys::Size,
                transactional: bool,
            ) -> pg_sys::XLogRecPtr;
            #[cfg(not(any(feature = "pg15", feature = "pg16")))]
            pub(crate) fn LogLogicalMessage(
                prefix: *const c_char,
                message: *const c_char,
                size: pg_sys::Size,
                transactional: bool,
                flush: bool,
            ) -> pg_sys::XLogRecPtr;
        }
    }

    let (prefix, message, size) = (prefix.as_ptr(), content.as_ptr().cast(), content.len());
    // SAFETY: as above; the closure owns nothing. Not flushed: the commit is.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            raw::LogLogicalMessage(prefix, message, size, true);
            #[cfg(not(any(feature = "pg15", feature = "pg16")))]
            raw::LogLogicalMessage(prefix, message, size, true, false);
        });
    }
}

/// Adds a stored row to the open indexes of its table.
///
/// # Safety
/// In a transaction; the table's indexes are open, and the row is in the slot.
pub(crate) unsafe fn insert_into_indexes(
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
) {
    use std::ptr::null_mut;

    // SAFETY: as above.
    unsafe {
        #[cfg(feature = "pg15")]
        pg_sys::ExecInsertIndexTuples(result, slot, estate, false, false, null_mut(), null_mut());
        #[cfg(not(feature = "pg15"))]
        pg_sys::ExecInsertIndexTuples(
            result,
            slot,
            estate,
            false,
            false,
            null_mut(),
            null_mut(),
            false,
        );
    }
}
