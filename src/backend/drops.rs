//! Who could see what this transaction drops: found out while it is still there, for the event
//! trigger that tells clients of it when it is gone.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::{Spi, pg_sys};

use crate::failure;
use crate::failure::Failure;
use crate::server_text::ServerText;

/// More than this are dropped without a word to clients: a transaction's memory is bounded.
const MOST: usize = 100_000;

/// No operators: whoever drops something has a search_path of their own.
const READERS: &str = "
    select pg_catalog.json_agg(r.rolname)::pg_catalog.text
    from pg_catalog.pg_roles as r
    where pg_catalog.pg_has_role('tide_authenticator', r.oid, 'MEMBER')
      and pg_catalog.has_schema_privilege(r.oid, $1, 'USAGE')
      and ($2 is null or pg_catalog.has_any_column_privilege(r.oid, $2, 'SELECT'))";

type Readers = HashMap<(u32, u32), Vec<String>>;

thread_local! {
    /// By catalogue and oid. Those of a subtransaction that was rolled back are never asked for.
    static READERS_OF: RefCell<Readers> = RefCell::default();
}

/// Something is about to be dropped. What it is about pg_tide's clients fails alone.
pub(crate) fn note(class: pg_sys::Oid, object: pg_sys::Oid) {
    // SAFETY: the object is there; in a transaction.
    let Some((schema, table)) = (unsafe { of_interest(class, object) }) else { return };
    match failure::attempt_in_subtransaction(|| readers(schema, table)) {
        Ok(readers) => READERS_OF.with_borrow_mut(|all| {
            if all.len() < MOST {
                all.insert((class.to_u32(), object.to_u32()), readers);
            }
        }),
        Err(error) if failure::is_interruption(&error) => error.rethrow(),
        Err(error) => {
            let condition = Failure::from(&*error).condition;
            warning!("pg_tide could not find out whom to tell of what is dropped: {condition}");
        }
    }
}

/// The clients' roles that could see the object, which this transaction has dropped.
pub(crate) fn take(class: u32, object: u32) -> Vec<String> {
    READERS_OF.with_borrow_mut(|all| all.remove(&(class, object))).unwrap_or_default()
}

/// The transaction has ended.
pub(crate) fn forget() {
    READERS_OF.with_borrow_mut(|all| {
        if !all.is_empty() {
            *all = HashMap::new();
        }
    });
}

/// The schema, and the table if it is one, of what clients may be told of.
///
/// # Safety
/// In a transaction; the object is there.
unsafe fn of_interest(
    class: pg_sys::Oid,
    object: pg_sys::Oid,
) -> Option<(pg_sys::Oid, Option<pg_sys::Oid>)> {
    // SAFETY: as above.
    unsafe {
        let (schema, table) = if class == pg_sys::NamespaceRelationId {
            (object, None)
        } else {
            let kind = pg_sys::get_rel_relkind(object) as u8;
            if !matches!(kind, pg_sys::RELKIND_RELATION | pg_sys::RELKIND_PARTITIONED_TABLE) {
                return None;
            }
            (pg_sys::get_rel_namespace(object), Some(object))
        };
        if pg_sys::isAnyTempNamespace(schema) || pg_sys::IsToastNamespace(schema) {
            return None;
        }
        let extension = pg_sys::get_extension_oid(c"pg_tide".as_ptr(), true);
        (extension != pg_sys::InvalidOid).then_some((schema, table))
    }
}

fn readers(schema: pg_sys::Oid, table: Option<pg_sys::Oid>) -> Vec<String> {
    // SAFETY: in a transaction. Not every command that drops something has a snapshot.
    let pushed = unsafe {
        let missing = !pg_sys::ActiveSnapshotSet();
        if missing {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        missing
    };
    let arguments: [DatumWithOid; 2] = [schema.into(), table.into()];
    let found = Spi::get_one_with_args::<ServerText<String>>(READERS, &arguments);
    if pushed {
        // SAFETY: the one that was pushed.
        unsafe { pg_sys::PopActiveSnapshot() };
    }
    let readers = found.ok().flatten();
    readers.and_then(|ServerText(json)| serde_json::from_str(&json).ok()).unwrap_or_default()
}
