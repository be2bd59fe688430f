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
        let values = values.into_iter().zip(nulls);
        insert(relation, &values.map(|(value, null)| (!null).then_some(value)).collect::<Vec<_>>());
        pg_sys::table_close(relation, UNLOCK);
    }
}

/// Opens one of pg_tide's own tables, as for a statement that writes it.
///
/// # Safety
/// In a transaction.
pub(crate) unsafe fn open(table: pg_sys::Oid) -> pg_sys::Relation {
    // SAFETY: as above.
    unsafe { pg_sys::table_open(table, LOCK) }
}

/// Adds a row to one of pg_tide's own tables.
///
/// # Safety
/// In a transaction that has it open; the values are of the types of all its columns, in their order.
pub(crate) unsafe fn insert(relation: pg_sys::Relation, row: &[Option<pg_sys::Datum>]) {
    let mut values: Vec<pg_sys::Datum> =
        row.iter().map(|value| value.unwrap_or(pg_sys::Datum::null())).collect();
    let mut nulls: Vec<bool> = row.iter().map(Option::is_none).collect();
    // SAFETY: as above.
    unsafe {
        let descriptor = (*relation).rd_att;
        if usize::try_from((*descriptor).natts) != Ok(row.len()) {
            error!("the table has other columns");
        }
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
