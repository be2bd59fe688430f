//! What only owners may do, done in the name of the extension's owner.
//!
//! Such functions are written in C for the sake of this: in one that is SECURITY DEFINER nobody can say who
//! its caller is, and in any other the caller would need to write pg_tide's own tables.

use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::backend::report;
use crate::helper::session;

/// An error if the table is not the caller's.
pub(crate) fn assert_table_owner(table: pg_sys::Oid) {
    let owner = "select relowner from pg_catalog.pg_class where oid operator(pg_catalog.=) $1";
    assert_owner(owner, table, "table");
}

/// An error if the object is not the caller's; `query` says whose it is.
pub(crate) fn assert_owner(query: &str, object: pg_sys::Oid, what: &str) {
    let owner = Spi::get_one_with_args::<pg_sys::Oid>(query, &[object.into()]).ok().flatten();
    let Some(owner) = owner else {
        let code = PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT;
        report::raise(code, format!("there is no {what} with oid {}", object.to_u32()), "")
    };
    // SAFETY: catalogue look-ups, in the transaction of the calling query.
    if !unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner) } {
        report::raise(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("only the owner of a {what} can do this"),
            "Ask its owner, or a superuser.",
        )
    }
}

/// Runs one of pg_tide's own functions as the extension's owner.
pub(crate) fn as_extension_owner(query: &str, arguments: &[pgrx::datum::DatumWithOid<'_>]) {
    let Some(owner) = session::extension_owner() else {
        let code = PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT;
        report::raise(code, "extension pg_tide is not installed", "create extension pg_tide;")
    };
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: as SECURITY DEFINER functions do it: an error gives both back with the transaction,
    // or the subtransaction, that it ends.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(owner, context | local);
    }
    let done = Spi::run_with_args(query, arguments);
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) };
    if let Err(error) = done {
        report::raise(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, error.to_string(), "")
    }
}
