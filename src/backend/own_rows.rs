//! Rows of pg_tide's own tables, written past logical decoding: where somebody publishes all tables of a
//! database, secrets are in nobody's stream, and a subscriber is not told of tables that it does not have.
//! Nothing of the tables but NOT NULL, CHECK and indexes is about a row.

use pgrx::prelude::*;
use pgrx::{AnyElement, pg_sys};

use crate::compat;

const LOCK: pg_sys::LOCKMODE = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
const UNLOCK: pg_sys::LOCKMODE = pg_sys::NoLock as pg_sys::LOCKMODE;

/// Adds a row, which is one of the table's type. Not for users.
#[pg_extern]
fn tide_insert_row(table: pg_sys::Oid, row: AnyElement) {
    // SAFETY: in a transaction; the row is taken apart by the type that it is of, which is the table's.
    unsafe {
        let relation = pg_sys::table_open(table, LOCK);
        if row.oid() != (*(*relation).rd_rel).reltype {
            error!("the row is not one of the table's");
        }
        let header = pg_sys::pg_detoast_datum(row.datum().cast_mut_ptr())
            .cast::<pg_sys::HeapTupleHeaderData>();
        let given = pg_sys::HeapTupleData {
            t_len: pgrx::varsize_any(header.cast()).try_into().unwrap_or(0),
            t_tableOid: table,
            t_data: header,
            ..pg_sys::HeapTupleData::default()
        };
        let descriptor = (*relation).rd_att;
        let count = usize::try_from((*descriptor).natts).unwrap_or(0);
        let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); count], vec![true; count]);
        pg_sys::heap_deform_tuple(
            (&raw const given).cast_mut(),
            descriptor,
            values.as_mut_ptr(),
            nulls.as_mut_ptr(),
        );
        let stored = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::heap_insert(
            relation,
            stored,
            pg_sys::GetCurrentCommandId(true),
            pg_sys::HEAP_INSERT_NO_LOGICAL as i32,
            std::ptr::null_mut(),
        );
        index(relation, stored);
        pg_sys::CommandCounterIncrement();
        pg_sys::table_close(relation, UNLOCK);
    }
}

/// Adds a row that was stored to the indexes of its table; an error if there is one like it already.
///
/// # Safety
/// The table is open, and the row in it.
unsafe fn index(relation: pg_sys::Relation, stored: pg_sys::HeapTuple) {
    // SAFETY: as above. An error takes all of it back with the memory that it is in.
    unsafe {
        let estate = pg_sys::CreateExecutorState();
        let result = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast();
        pg_sys::InitResultRelInfo(result, relation, 0, std::ptr::null_mut(), 0);
        pg_sys::ExecOpenIndices(result, false);
        let slot = pg_sys::MakeSingleTupleTableSlot(
            (*relation).rd_att,
            &raw const pg_sys::TTSOpsHeapTuple,
        );
        pg_sys::ExecStoreHeapTuple(stored, slot, false);
        compat::insert_into_indexes(result, slot, estate);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::ExecCloseIndices(result);
        pg_sys::FreeExecutorState(estate);
    }
}

/// Deletes the row at that place, which nobody else is about to. Not for users.
#[pg_extern]
fn tide_delete_row(table: pg_sys::Oid, mut place: pg_sys::ItemPointerData) {
    // SAFETY: in a transaction; the place is one of a row that the caller sees. Without a replica
    // identity the WAL does not say which row it was.
    unsafe {
        let relation = pg_sys::table_open(table, LOCK);
        pg_sys::simple_heap_delete(relation, &raw mut place);
        pg_sys::CommandCounterIncrement();
        pg_sys::table_close(relation, UNLOCK);
    }
}
