//! Labels of enums in a question: rows and conditions are texts, and labels can be renamed.

use pgrx::pg_sys;
use tide_feed::catalog::OUTDATED;

use crate::encoding;
use crate::helper::transaction::Refusal;

/// Whether each label is still the one of this oid, to those who read its name.
pub(crate) fn check(labels: &[(u32, String)]) -> Result<(), Refusal> {
    if labels.is_empty() {
        return Ok(());
    }
    // SAFETY: in a transaction, between two queries.
    unsafe { pg_sys::AcceptInvalidationMessages() };
    let is_same =
        |(oid, label): &(u32, String)| is_read_as(&encoding::server_string(label), (*oid).into());
    if labels.iter().all(is_same) {
        return Ok(());
    }
    let message = "a label of an enum has been renamed".into();
    Err(Refusal { sqlstate: OUTDATED.into(), message })
}

/// Whether `enum_in` takes the text for the label, by the same cache that it looks into.
fn is_read_as(label: &std::ffi::CStr, oid: pg_sys::Oid) -> bool {
    use pg_sys::SysCacheIdentifier::{ENUMOID, ENUMTYPOIDNAME};
    let none = pg_sys::Datum::null();
    // SAFETY: catalogue look-ups in a transaction; the row is read before it is released. A label
    // is no longer than a name, which is what the cache is asked by.
    unsafe {
        let row = pg_sys::SearchSysCache1(ENUMOID as i32, pg_sys::Datum::from(oid));
        if row.is_null() {
            return false;
        }
        let data = (*row).t_data.cast::<u8>().add(usize::from((*(*row).t_data).t_hoff));
        let type_id = (*data.cast::<pg_sys::FormData_pg_enum>()).enumtypid;
        pg_sys::ReleaseSysCache(row);
        let found = pg_sys::GetSysCacheOid(
            ENUMTYPOIDNAME as i32,
            pg_sys::Anum_pg_enum_oid as pg_sys::AttrNumber,
            pg_sys::Datum::from(type_id),
            pg_sys::Datum::from(label.as_ptr()),
            none,
            none,
        );
        found == oid
    }
}
