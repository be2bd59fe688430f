//! Multiranges: the ranges' texts between braces, as the type's own output function has them. That
//! one makes a text of all before anybody can ask how long it is, and a few bytes of a number may
//! print as 130 kB.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::slice;

use pgrx::pg_sys;
use tide_feed::bounded::{Bounded, Overflow};
use tide_feed::json;

use super::{Origins, Output, Value, varlena};
use crate::encoding::Encoding;

#[derive(Debug)]
pub(crate) struct Multirange {
    range_type: pg_sys::Oid,
    range: Output,
    bound: Value,
    encoding: Encoding,
}

impl Multirange {
    /// # Safety
    /// As for [`Value::of`].
    pub(super) unsafe fn of(
        range_type: pg_sys::Oid,
        memory: pg_sys::MemoryContext,
        origins: &mut Origins,
        depth: usize,
    ) -> Multirange {
        // SAFETY: as above.
        unsafe {
            let bound = pg_sys::get_range_subtype(range_type);
            Multirange {
                range_type,
                range: Output::of(range_type, memory),
                bound: Value::of(bound, memory, origins, depth),
                encoding: Encoding::of_database(),
            }
        }
    }

    pub(super) fn bound(&self) -> &Value {
        &self.bound
    }

    /// # Safety
    /// As for [`Value::write`].
    pub(super) unsafe fn write(
        &mut self,
        datum: pg_sys::Datum,
        out: &mut Bounded<'_>,
    ) -> Result<(), Overflow> {
        out.extend_from_slice(b"\"{")?;
        // SAFETY: as above.
        let ranges = unsafe { ranges(self.range_type, datum) };
        for (index, range) in ranges.iter().enumerate() {
            if index > 0 {
                out.push(b',')?;
            }
            // SAFETY: a value of the range's type.
            let text = unsafe { self.range.text(pg_sys::Datum::from(*range)) };
            let text = self.encoding.utf8(text.to_bytes());
            json::write_inside_bounded(out, text.as_bytes())?;
        }
        out.extend_from_slice(b"}\"")
    }
}

/// The ranges within, in the current memory context.
///
/// # Safety
/// A multirange of such ranges, not NULL, and none that is TOASTed on disk.
unsafe fn ranges<'a>(
    range_type: pg_sys::Oid,
    datum: pg_sys::Datum,
) -> &'a [*mut pg_sys::RangeType] {
    let (mut count, mut ranges) = (0, null_mut());
    // SAFETY: as above; the value is unpacked and aligned first.
    unsafe {
        let flags = pg_sys::TYPECACHE_RANGE_INFO as c_int;
        let range_type = pg_sys::lookup_type_cache(range_type, flags);
        let unpacked = varlena::aligned(datum);
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            multirange_deserialize(range_type, unpacked.cast(), &raw mut count, &raw mut ranges);
        });
        match usize::try_from(count) {
            // There is no list of none.
            Ok(0) | Err(_) => &[],
            Ok(count) => slice::from_raw_parts(ranges, count),
        }
    }
}

// From `utils/multirangetypes.h`, which pgrx has no bindings of.
unsafe extern "C-unwind" {
    fn multirange_deserialize(
        range_type: *mut pg_sys::TypeCacheEntry,
        multirange: *const c_void,
        count: *mut i32,
        ranges: *mut *mut *mut pg_sys::RangeType,
    );
}
