//! Outboxes: the SQL functions that make a table one; what the decoder and the catalog worker do
//! with them is in the modules below.

use std::panic::AssertUnwindSafe;

use pgrx::prelude::*;
use pgrx::{PgXactCallbackEvent, pg_sys, register_xact_callback};

use crate::backend::control;
use crate::backend::owner::{as_extension_owner, assert_table_owner};
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
    assert_table_owner(table);
    let adopt = format!("select {}($1, $2)", own_function("adopt_outbox"));
    as_extension_owner(&adopt, &[table.into(), private.into()]);
    register_xact_callback(PgXactCallbackEvent::Commit, AssertUnwindSafe(control::nudge_outboxes));
}

/// Makes an outbox a table like others, if it is the caller's.
#[pg_extern]
fn tide_release_outbox(table: pg_sys::Oid) {
    assert_table_owner(table);
    let release = format!("select {}($1)", own_function("release_outbox"));
    as_extension_owner(&release, &[table.into()]);
    register_xact_callback(PgXactCallbackEvent::Commit, AssertUnwindSafe(control::nudge_outboxes));
}
