//! Rows: from the heap's form to a row in a batch.

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::event::{Batch, Row};

use crate::source::relation::Published;
use crate::source::value;

/// Bytes of a row, unpacked, that an event may have: memory that cannot be had would end the
/// whole server.
const LARGEST: usize = 128 << 20;

/// A row taken apart: its values are valid for as long as the row it was taken from.
#[derive(Debug, Default)]
pub(crate) struct Tuple {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

/// What a row of an event holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    Full,
    /// The columns of the replica identity; the WAL has NULL for the others.
    Key,
}

impl Tuple {
    /// Takes a row apart, in place of the one before.
    ///
    /// # Safety
    /// A row of the relation that the descriptor belongs to.
    pub(crate) unsafe fn read(&mut self, row: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) {
        // SAFETY: as above; there is room for as many values as the descriptor has columns.
        unsafe {
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            self.values.resize(count, pg_sys::Datum::null());
            self.nulls.resize(count, true);
            let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            pg_sys::heap_deform_tuple(row, descriptor, values, nulls);
        }
    }

    /// The value of a column; `None` is NULL.
    pub(crate) fn get(&self, index: usize) -> Option<pg_sys::Datum> {
        let value = self.values.get(index)?;
        (!*self.nulls.get(index)?).then_some(*value)
    }

    /// Takes from the old row what the WAL left out of the new one because it did not change.
    ///
    /// # Safety
    /// Both rows are of the relation that `published` describes.
    pub(crate) unsafe fn fill_unchanged(&mut self, old: &Tuple, published: &Published) {
        for column in &published.columns {
            let (Some(value), Some(known)) = (self.get(column.source), old.get(column.source))
            else {
                continue;
            };
            // SAFETY: as above.
            let is_missing = |value| unsafe { column.is_varlena && value::is_on_disk(value) };
            if is_missing(value)
                && !is_missing(known)
                && let Some(value) = self.values.get_mut(column.source)
            {
                *value = known;
            }
        }
    }
}

/// Appends the row to the batch.
///
/// # Safety
/// A row of the relation that `published` describes; under a historic snapshot. Takes memory from
/// the current context and does not give it back.
pub(crate) unsafe fn write(
    batch: &mut Batch,
    published: &mut Published,
    tuple: &Tuple,
    image: Image,
) -> Row {
    let start = batch.begin_row();
    let mut size = 0;
    for column in &mut published.columns {
        if image == Image::Key && !column.is_identity {
            batch.push_absent();
            continue;
        }
        let Some(datum) = tuple.get(column.source) else {
            batch.push_null();
            continue;
        };
        if column.is_varlena {
            // SAFETY: as above.
            unsafe {
                if value::is_on_disk(datum) {
                    batch.push_unchanged();
                    continue;
                }
                size += value::size(datum);
            }
            assert_size(size);
        }
        // SAFETY: as above; the value is of the column's type.
        batch.push_json(|out| unsafe { column.value.write(datum, out) });
    }
    batch.end_row(&start)
}

/// An error if an event cannot have so many bytes.
pub(crate) fn assert_size(size: usize) {
    if size > LARGEST {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            "the row is too large for an event"
        );
    }
}
