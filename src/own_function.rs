//! How pg_tide's SQL calls its own functions: by what they are called in this database, whose extension may
//! still be the release before this library's.

use pgrx::pg_sys;

/// `tide_internal.adopt_outbox` for `adopt_outbox`; 0.1.0 has no such schema. In a transaction.
pub(crate) fn own_function(name: &str) -> String {
    // SAFETY: a catalogue look-up in a transaction.
    let schema = unsafe { pg_sys::get_namespace_oid(c"tide_internal".as_ptr(), true) };
    if schema == pg_sys::InvalidOid {
        format!("tide._{name}")
    } else {
        format!("tide_internal.{name}")
    }
}
