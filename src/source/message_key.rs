//! The keys that pg_tide's own messages in the WAL are sealed with: `tide.message_key`.
//!
//! It is a *user catalogue table*, so that the decoder can read it as it was when the message was
//! written. The same WAL, decoded again after any number of rotations, thereby gives the same
//! messages: a key that has been deleted since is still there in the past that the slot keeps.
//! (Keys given by the catalog worker would be today's, and what was delivered once would be missing
//! from the history that is built after a restart.)

use std::ffi::CStr;

use pgrx::{FromDatum, pg_sys};
use tide_feed::wal::Key;

use crate::tuple::Tuple;

const SCHEMA: &CStr = c"tide";
const TABLE: &CStr = c"message_key";
const LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;

/// The oid of the table; `None`: the extension is not there.
///
/// # Safety
/// In a transaction.
pub(crate) unsafe fn table() -> Option<pg_sys::Oid> {
    // SAFETY: as above, with constant strings. An unknown schema has no tables.
    let table = unsafe {
        let schema = pg_sys::get_namespace_oid(SCHEMA.as_ptr(), true);
        pg_sys::get_relname_relid(TABLE.as_ptr(), schema)
    };
    (table != pg_sys::InvalidOid).then_some(table)
}

/// The keys as of the historic snapshot in the decoder, and as of now elsewhere. Nobody's
/// privileges are asked: what the keys are used for is the caller's affair.
///
/// # Safety
/// In a transaction, with the oid of the table. Takes memory from the current context.
pub(crate) unsafe fn read(table: pg_sys::Oid) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut tuple = Tuple::default();
    // SAFETY: as above. A scan by `systable_` functions is what a historic snapshot allows; the
    // row is valid until the next one is asked for.
    unsafe {
        let relation = pg_sys::table_open(table, LOCK);
        let no_index = pg_sys::InvalidOid;
        let (snapshot, scan_key) = (std::ptr::null_mut(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, no_index, false, snapshot, 0, scan_key);
        loop {
            let row = pg_sys::systable_getnext(scan);
            if row.is_null() {
                break;
            }
            tuple.read(row, (*relation).rd_att);
            let id = tuple.get(0).and_then(|id| i64::from_datum(id, false));
            let key = tuple.get(1).and_then(|key| Vec::<u8>::from_datum(key, false));
            if let (Some(id), Some(key)) = (id, key) {
                keys.push(Key::new(id, &key));
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, LOCK);
    }
    keys
}
