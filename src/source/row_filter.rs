//! A publication's row filter: which rows are published, and what an UPDATE becomes that moves a
//! row in or out of what is.

use std::ffi::CStr;

use pgrx::pg_sys;
use tide_feed::event::Operation;

use crate::tuple::Tuple;
use crate::{compat, sys};

/// The expression, ready to be evaluated. Everything it needs is in the memory it was made in;
/// the functions in it are built in and immutable, which Postgres has checked.
#[derive(Debug)]
pub(crate) struct RowFilter {
    state: *mut pg_sys::ExprState,
    context: *mut pg_sys::ExprContext,
    slot: *mut pg_sys::TupleTableSlot,
    /// For each column of the published table, where a partition's row has it.
    sources: Vec<Option<usize>>,
}

impl RowFilter {
    /// # Safety
    /// Under a historic snapshot. `memory` outlives the filter; `sources` has an entry for each
    /// column of the table, which is open.
    pub(crate) unsafe fn new(
        tree: &CStr,
        table: pg_sys::Relation,
        sources: Vec<Option<usize>>,
        memory: pg_sys::MemoryContext,
    ) -> RowFilter {
        // SAFETY: as above.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(memory);
            let tree = pg_sys::stringToNode(tree.as_ptr());
            let tree = compat::expand_generated_columns(tree.cast(), table);
            let estate = pg_sys::CreateExecutorState();
            let state = pg_sys::ExecPrepareExpr(tree.cast(), estate);
            let context = pg_sys::MakePerTupleExprContext(estate);
            let descriptor = pg_sys::CreateTupleDescCopy((*table).rd_att);
            let slot =
                pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsVirtual);
            pg_sys::MemoryContextSwitchTo(before);
            RowFilter { state, context, slot, sources }
        }
    }

    /// What the change is to those who see only the rows that the filter admits; `None`: nothing.
    ///
    /// # Safety
    /// Rows of the table that this was made for; unchanged values of the new row that the old one
    /// has are filled in.
    pub(crate) unsafe fn apply(
        &mut self,
        operation: Operation,
        old: Option<&Tuple>,
        new: Option<&Tuple>,
    ) -> Option<Operation> {
        // SAFETY: as above.
        let mut admits = |row: &Tuple| unsafe { self.admits(row) };
        match (operation, old, new) {
            (Operation::Update, Some(old), Some(new)) => match (admits(old), admits(new)) {
                (true, true) => Some(Operation::Update),
                (false, true) => Some(Operation::Insert),
                (true, false) => Some(Operation::Delete),
                (false, false) => None,
            },
            (_, _, Some(row)) | (_, Some(row), None) => admits(row).then_some(operation),
            (_, None, None) => None,
        }
    }

    unsafe fn admits(&mut self, row: &Tuple) -> bool {
        // SAFETY: the slot has room for each of its descriptor's columns, and as many sources.
        unsafe {
            pg_sys::MemoryContextReset((*self.context).ecxt_per_tuple_memory);
            let operations = (*self.slot).tts_ops;
            if let Some(clear) = operations.as_ref().and_then(|operations| operations.clear) {
                clear(self.slot);
            }
            for (index, source) in self.sources.iter().enumerate() {
                let value = source.and_then(|source| row.get(source));
                *(*self.slot).tts_isnull.add(index) = value.is_none();
                *(*self.slot).tts_values.add(index) = value.unwrap_or(pg_sys::Datum::null());
            }
            pg_sys::ExecStoreVirtualTuple(self.slot);
            (*self.context).ecxt_scantuple = self.slot;
            sys::evaluate(self.state, self.context).is_some_and(|value| value.value() as u8 != 0)
        }
    }
}

/// For each column of `to`, the index of the live column of the same name in `from`.
///
/// # Safety
/// Live descriptors.
pub(crate) unsafe fn sources(from: pg_sys::TupleDesc, to: pg_sys::TupleDesc) -> Vec<Option<usize>> {
    // SAFETY: as above.
    unsafe {
        let count =
            |descriptor: pg_sys::TupleDesc| usize::try_from((*descriptor).natts).unwrap_or(0);
        let is_same = |index: usize, wanted: &pg_sys::FormData_pg_attribute| {
            let attribute = compat::attribute(from, index);
            !attribute.attisdropped && attribute.attname.data == wanted.attname.data
        };
        (0..count(to))
            .map(|index| {
                let wanted = compat::attribute(to, index);
                if wanted.attisdropped {
                    return None;
                }
                // Mostly it is at the same place.
                if index < count(from) && is_same(index, wanted) {
                    return Some(index);
                }
                (0..count(from)).find(|index| is_same(*index, wanted))
            })
            .collect()
    }
}
