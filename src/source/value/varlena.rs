//! The bytes of values of variable length, wherever they are kept.

use std::marker::PhantomData;

use pgrx::pg_sys;

/// Tag of a pointer into a TOAST table.
const ON_DISK: u8 = 18;
/// Bytes of a full header.
const HEADER: usize = 4;

/// A value's bytes without its header: in the row itself, or unpacked in the current memory
/// context.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    start: *const u8,
    len: usize,
    row: PhantomData<&'a [u8]>,
}

impl<'a> Bytes<'a> {
    /// # Safety
    /// A value of variable length that is not TOASTed on disk; valid for as long as the row and
    /// the current memory context.
    pub(super) unsafe fn of(datum: pg_sys::Datum) -> Bytes<'a> {
        // SAFETY: as above.
        unsafe {
            let value = plain(datum);
            let start = pgrx::vardata_any(value).cast();
            Bytes { start, len: pgrx::varsize_any_exhdr(value), row: PhantomData }
        }
    }

    pub(super) fn get(self) -> &'a [u8] {
        // SAFETY: the header said so.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

/// The value with its header, neither compressed nor elsewhere; the header may be short.
unsafe fn plain(datum: pg_sys::Datum) -> *mut pg_sys::varlena {
    let value = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: as for `Bytes::of`.
    unsafe {
        if pgrx::varatt_is_1b_e(value) || pgrx::varatt_is_4b_c(value) {
            pg_sys::pg_detoast_datum_packed(value)
        } else {
            value
        }
    }
}

/// The value with a full header, aligned, as arrays and composites need it.
///
/// # Safety
/// As for [`Bytes::of`].
pub(super) unsafe fn aligned(datum: pg_sys::Datum) -> *mut pg_sys::varlena {
    // SAFETY: as above.
    unsafe { pg_sys::pg_detoast_datum(datum.cast_mut_ptr()) }
}

/// Whether the value is only a pointer into a TOAST table: the WAL does not have it.
///
/// # Safety
/// A value of variable length.
pub(crate) unsafe fn is_on_disk(datum: pg_sys::Datum) -> bool {
    let value = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: as above; the tag follows the first byte.
    unsafe { pgrx::varatt_is_1b_e(value) && *value.cast::<u8>().add(1) == ON_DISK }
}

/// Bytes of the value when it is unpacked, without its header.
///
/// # Safety
/// As for [`Bytes::of`].
pub(crate) unsafe fn size(datum: pg_sys::Datum) -> usize {
    let value = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: as above.
    unsafe {
        if pgrx::varatt_is_1b_e(value) || pgrx::varatt_is_4b_c(value) {
            pg_sys::toast_raw_datum_size(datum).saturating_sub(HEADER)
        } else {
            pgrx::varsize_any_exhdr(value)
        }
    }
}
