//! Outboxes: the SQL functions that make a table one; what the decoder and the catalog worker do
//! with them is in the modules below.

use std::panic::AssertUnwindSafe;

use pgrx::prelude::*;
use pgrx::{PgXactCallbackEvent, pg_sys, register_xact_callback};

use crate::backend::{control, report};
use crate::helper::session;
use crate::own_function::own_function;

/// Has the decoder look at the table again, at this point of the WAL. Not for users.
#[pg_extern]
fn tide_invalidate(relation: pg_sys::Oid) {
    let query = "select 1 from pg_catalog.pg_class where oid operator(pg_catalog.=) $1";
    let is_there = Spi::get_one_with_args::<i32>(query, &[relation.into()]);
    // Dropped tables are remembered by nobody; asking about one would be an error.
    if is_there.ok().flatten().is_some() {
        // SAFETY: in a transaction; the relation is in the catalogue.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
    }
}

/// Makes the table an outbox, if it is the caller's.
#[pg_extern]
fn tide_adopt_outbox(table: pg_sys::Oid, private: bool) {
    assert_owner(table);
    let adopt = format!("select {}($1, $2)", own_function("adopt_outbox"));
    as_extension_owner(&adopt, &[table.into(), private.into()]);
    register_xact_callback(PgXactCallbackEvent::Commit, AssertUnwindSafe(control::nudge_outboxes));
}

/// Makes an outbox a table like others, if it is the caller's.
#[pg_extern]
fn tide_release_outbox(table: pg_sys::Oid) {
    assert_owner(table);
    let release = format!("select {}($1)", own_function("release_outbox"));
    as_extension_owner(&release, &[table.into()]);
    register_xact_callback(PgXactCallbackEvent::Commit, AssertUnwindSafe(control::nudge_outboxes));
}

/// These functions are written in C for the sake of this: in one that is SECURITY DEFINER nobody
/// can say who its caller is, and in any other the caller would need to write `tide.outboxes`.
fn assert_owner(table: pg_sys::Oid) {
    let query = "select relowner from pg_catalog.pg_class where oid operator(pg_catalog.=) $1";
    let owner = Spi::get_one_with_args::<pg_sys::Oid>(query, &[table.into()]).ok().flatten();
    let Some(owner) = owner else {
        let code = PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE;
        report::raise(code, format!("there is no table with oid {}", table.to_u32()), "")
    };
    // SAFETY: catalogue look-ups, in the transaction of the calling query.
    if !unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner) } {
        report::raise(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "only the owner of a table can make it an outbox, or no outbox any more",
            "Ask its owner, or a superuser.",
        )
    }
}

/// Runs one of pg_tide's own functions as the extension's owner.
fn as_extension_owner(query: &str, arguments: &[pgrx::datum::DatumWithOid<'_>]) {
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
