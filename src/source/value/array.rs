//! Arrays: nested JSON arrays; lower bounds do not show.

use std::ptr::null_mut;
use std::slice;

use pgrx::pg_sys;
use tide_feed::bounded::{Bounded, Overflow};

use super::{Origins, Value, varlena};

/// Bytes of the shortest element that is not the last: one digit, and what stands between two.
const SHORTEST: usize = 3;

#[derive(Debug)]
pub(crate) struct Array {
    element: Value,
    element_type: pg_sys::Oid,
    length: i16,
    by_value: bool,
    align: std::ffi::c_char,
}

impl Array {
    /// # Safety
    /// As for [`Value::of`].
    pub(super) unsafe fn of(
        element_type: pg_sys::Oid,
        memory: pg_sys::MemoryContext,
        origins: &mut Origins,
        depth: usize,
    ) -> Array {
        let (mut length, mut by_value, mut align) = (0, false, 0);
        // SAFETY: as above.
        unsafe {
            pg_sys::get_typlenbyvalalign(
                element_type,
                &raw mut length,
                &raw mut by_value,
                &raw mut align,
            );
            let element = Value::of(element_type, memory, origins, depth);
            Array { element, element_type, length, by_value, align }
        }
    }

    pub(super) fn element(&self) -> &Value {
        &self.element
    }

    /// # Safety
    /// As for [`Value::write`].
    pub(super) unsafe fn write(
        &mut self,
        datum: pg_sys::Datum,
        out: &mut Bounded<'_>,
    ) -> Result<(), Overflow> {
        let (mut values, mut nulls, mut count) = (null_mut(), null_mut(), 0);
        // SAFETY: as above. The array is unpacked into the current memory context; its header is
        // followed by one size per dimension.
        let (sizes, values, nulls) = unsafe {
            let array = varlena::aligned(datum).cast::<pg_sys::ArrayType>();
            // NULLs take a bit each, and a place in memory once they are unpacked.
            let dimensions = array.add(1).cast::<i32>();
            let items = pg_sys::ArrayGetNItems((*array).ndim, dimensions);
            let shortest = usize::try_from(items).unwrap_or(0).saturating_sub(1) * SHORTEST;
            if shortest > out.left() {
                return Err(Overflow::Limit);
            }
            pg_sys::deconstruct_array(
                array,
                self.element_type,
                i32::from(self.length),
                self.by_value,
                self.align,
                &raw mut values,
                &raw mut nulls,
                &raw mut count,
            );
            let dimensions = usize::try_from((*array).ndim).unwrap_or(0);
            let count = usize::try_from(count).unwrap_or(0);
            let dimensions = if count == 0 { 0 } else { dimensions };
            (
                slice(array.add(1).cast::<i32>(), dimensions),
                slice(values, count),
                slice(nulls, count),
            )
        };
        let mut elements = values.iter().copied().zip(nulls.iter().copied());
        // SAFETY: as above.
        unsafe { self.dimension(sizes, &mut elements, out) }
    }

    unsafe fn dimension(
        &mut self,
        sizes: &[i32],
        elements: &mut impl Iterator<Item = (pg_sys::Datum, bool)>,
        out: &mut Bounded<'_>,
    ) -> Result<(), Overflow> {
        out.push(b'[')?;
        let (size, inner) = sizes.split_first().unwrap_or((&0, &[]));
        for index in 0..*size {
            if index > 0 {
                out.extend_from_slice(b", ")?;
            }
            if inner.is_empty() {
                match elements.next() {
                    // SAFETY: as for `write`.
                    Some((value, false)) => unsafe { self.element.write(value, out)? },
                    _ => out.extend_from_slice(b"null")?,
                }
            } else {
                // SAFETY: as for `write`.
                unsafe { self.dimension(inner, elements, out)? }
            }
        }
        out.push(b']')
    }
}

/// A slice that may be empty and then point nowhere.
unsafe fn slice<'a, T>(start: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the caller knows that there are as many.
    unsafe { slice::from_raw_parts(start, len) }
}
