//! What types are made of: a text of a value is read as the same value only by a type that is made as
//! the one was that wrote it.

use std::hash::{DefaultHasher, Hash, Hasher};

use pgrx::pg_sys;

use crate::compat;

/// Types in one, at most.
const MOST_PARTS: u32 = 4096;
/// And within one another.
const DEEPEST: u32 = 32;
/// What has parts is told from base types, whose forms are their oids.
const HAS_PARTS: u64 = 1 << 63;

/// The form of a type, as [`tide_feed::event::Column::form`] has it. `None`: texts of its values say
/// what others are called, and names can be given to others.
///
/// # Safety
/// In a transaction, with a snapshot (a historic one will do).
pub(crate) unsafe fn of(type_id: pg_sys::Oid) -> Option<u64> {
    // SAFETY: as above.
    unsafe {
        let base = pg_sys::getBaseType(type_id);
        if is_named(base) {
            return Some(base.to_u32().into());
        }
        let mut form = Form { hasher: DefaultHasher::new(), left: MOST_PARTS };
        form.add(base, 0)?;
        let has_parts = form.left < MOST_PARTS - 1;
        Some(if has_parts { form.hasher.finish() | HAS_PARTS } else { base.to_u32().into() })
    }
}

/// Whether a base type is made of others.
///
/// # Safety
/// As for [`of`].
pub(crate) unsafe fn has_parts(base: pg_sys::Oid) -> bool {
    // SAFETY: as above.
    unsafe { of(base) }.is_none_or(|form| base_type(form).is_none())
}

/// The base type that a form is of; `None`: it has parts.
pub(crate) fn base_type(form: u64) -> Option<pg_sys::Oid> {
    u32::try_from(form).ok().map(pg_sys::Oid::from)
}

/// Whether values are oids that are printed as the names of what has them.
pub(crate) fn is_named(type_id: pg_sys::Oid) -> bool {
    matches!(
        type_id,
        pg_sys::REGCLASSOID
            | pg_sys::REGCOLLATIONOID
            | pg_sys::REGCONFIGOID
            | pg_sys::REGDICTIONARYOID
            | pg_sys::REGNAMESPACEOID
            | pg_sys::REGOPEROID
            | pg_sys::REGOPERATOROID
            | pg_sys::REGPROCOID
            | pg_sys::REGPROCEDUREOID
            | pg_sys::REGROLEOID
            | pg_sys::REGTYPEOID
    )
}

struct Form {
    hasher: DefaultHasher,
    left: u32,
}

impl Form {
    /// # Safety
    /// As for [`of`].
    unsafe fn add(&mut self, type_id: pg_sys::Oid, depth: u32) -> Option<()> {
        self.left = self.left.checked_sub(1)?;
        if depth > DEEPEST {
            return None;
        }
        // SAFETY: as above.
        unsafe {
            let base = pg_sys::getBaseType(type_id);
            if is_named(base) || base == pg_sys::ACLITEMOID {
                return None;
            }
            base.to_u32().hash(&mut self.hasher);
            let element = pg_sys::get_element_type(base);
            if element != pg_sys::InvalidOid {
                return self.add(element, depth + 1);
            }
            if pg_sys::type_is_multirange(base) {
                let range = pg_sys::get_multirange_range(base);
                return self.add(pg_sys::get_range_subtype(range), depth + 1);
            }
            if pg_sys::type_is_range(base) {
                return self.add(pg_sys::get_range_subtype(base), depth + 1);
            }
            if pg_sys::type_is_rowtype(base) {
                return compat::with_row_type(base, |row| self.add_fields(row, depth + 1))?;
            }
        }
        Some(())
    }

    unsafe fn add_fields(&mut self, descriptor: pg_sys::TupleDesc, depth: u32) -> Option<()> {
        // SAFETY: a live descriptor.
        unsafe {
            for index in 0..usize::try_from((*descriptor).natts).unwrap_or(0) {
                let attribute = compat::attribute(descriptor, index);
                attribute.attisdropped.hash(&mut self.hasher);
                if !attribute.attisdropped {
                    attribute.atttypmod.hash(&mut self.hasher);
                    self.add(attribute.atttypid, depth)?;
                }
            }
        }
        // Where it ends: what follows is not a field.
        u8::MAX.hash(&mut self.hasher);
        Some(())
    }
}
