//! Rows: from the heap's form to a row in a batch.

use pgrx::pg_sys;
use tide_feed::bounded::Overflow;
use tide_feed::event::{BatchBuilder, Row};

use crate::source::relation::Published;
use crate::source::value;

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

/// What keeps a row from being written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TooLarge {
    /// The column that there was no room for, by its place in the relation.
    pub(crate) column: Option<usize>,
    pub(crate) overflow: Overflow,
}

impl From<Overflow> for TooLarge {
    fn from(overflow: Overflow) -> TooLarge {
        TooLarge { column: None, overflow }
    }
}

/// Appends the row to the batch. `column` is the one that is being written, also after an error.
///
/// # Safety
/// A row of the relation that `published` describes; under a historic snapshot. Takes memory from
/// the current context and does not give it back.
pub(crate) unsafe fn write(
    batch: &mut BatchBuilder,
    published: &mut Published,
    tuple: &Tuple,
    image: Image,
    at: &mut Option<usize>,
) -> Result<Row, TooLarge> {
    let start = batch.begin_row();
    // What has been unpacked stays in memory until the row is done.
    let mut size = 0;
    for (index, column) in published.columns.iter_mut().enumerate() {
        if image == Image::Key && !column.is_identity {
            batch.push_absent();
            continue;
        }
        let Some(datum) = tuple.get(column.source) else {
            batch.push_null();
            continue;
        };
        // SAFETY: as above.
        if column.is_varlena && unsafe { value::is_on_disk(datum) } {
            batch.push_unchanged();
            continue;
        }
        *at = Some(index);
        let written = batch.push_json(|out| {
            if column.is_varlena {
                // SAFETY: as above.
                size += unsafe { value::size(datum) };
                out.admit(size)?;
            }
            // SAFETY: as above; the value is of the column's type.
            unsafe { column.value.write(datum, out) }
        });
        written.map_err(|overflow: Overflow| TooLarge { column: *at, overflow })?;
    }
    *at = None;
    if published.has_texts() {
        published.columns.iter().filter(|c| c.value.is_lossy()).for_each(|_| batch.push_absent());
    }
    Ok(batch.end_row(&start)?)
}

/// Adds to a row what JSON does not say all of once more, as text, where a policy may want to know it.
/// To be called when everything else of the event is written: what there is no room for is not known to
/// policies.
///
/// # Safety
/// As for [`write`], with what that has made of the tuple.
pub(crate) unsafe fn write_texts(
    batch: &mut BatchBuilder,
    published: &mut Published,
    tuple: &Tuple,
    row: Row,
) {
    if !published.has_texts() {
        return;
    }
    let mut place = published.columns.len();
    for (index, column) in published.columns.iter_mut().enumerate() {
        if !column.value.is_lossy() {
            continue;
        }
        let json = batch.size_of(row, index);
        let value = tuple.get(column.source).filter(|_| json > 0);
        if let (Some(value), Some(text)) = (value, &mut column.text) {
            // Those that fail have no text.
            let _: Result<(), Overflow> = batch.fill(row, place, |out| {
                // SAFETY: as above; the value is of the column's type, and was written before. Each
                // level of arrays and composites quotes what is within.
                let size = if column.is_varlena { unsafe { value::size(value) } } else { 0 };
                if json.max(size) << column.value.depth() > out.left() {
                    return Err(Overflow::Limit);
                }
                // SAFETY: as above.
                unsafe { text.write(value, out) }
            });
        }
        place += 1;
    }
}

/// Appends what of the row's key can be written, if anything.
///
/// # Safety
/// As for [`write`].
pub(crate) unsafe fn write_key(
    batch: &mut BatchBuilder,
    published: &mut Published,
    tuple: &Tuple,
) -> Option<Row> {
    let start = batch.begin_row();
    let mut has_any = false;
    for column in &mut published.columns {
        let datum = tuple.get(column.source).filter(|_| column.is_identity);
        // SAFETY: as above; the value is of the column's type.
        let written = datum.is_some_and(|datum| unsafe {
            let is_there = !(column.is_varlena && value::is_on_disk(datum));
            is_there && batch.push_json(|out| column.value.write(datum, out)).is_ok()
        });
        has_any |= written;
        if !written {
            batch.push_absent();
        }
    }
    batch.end_row(&start).ok().filter(|_| has_any)
}
