//! How clients' writes are looked at: the SQL functions by which owners of tables and functions say so.

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::owner::{as_extension_owner, assert_owner, assert_table_owner};
use crate::backend::report;
use crate::encoding::Encoding;
use crate::server_text::ServerText;

/// Names the column that says which version of a row there is; NULL: none.
#[pg_extern]
fn tide_version_column(table: Option<pg_sys::Oid>, column: Option<&[u8]>) {
    let table = given(table, "table");
    assert_table_owner(table);
    let column = column.map(|name| ServerText(Encoding::of_database().utf8(name)));
    let set = "select tide_internal.set_version_column($1, $2)";
    as_extension_owner(set, &[table.into(), column.into()]);
}

/// Names the function that says what is stored; NULL: none.
#[pg_extern]
fn tide_on_mutate(table: Option<pg_sys::Oid>, function: Option<pg_sys::Oid>) {
    let table = given(table, "table");
    assert_table_owner(table);
    let set = "select tide_internal.set_on_mutate($1, $2)";
    as_extension_owner(set, &[table.into(), function.into()]);
}

/// Lets clients call a function, or no longer.
#[pg_extern]
fn tide_allow_call(function: pg_sys::Oid, allowed: bool) {
    let owner = "select proowner from pg_catalog.pg_proc where oid operator(pg_catalog.=) $1";
    assert_owner(owner, function, "function");
    let set = "select tide_internal.set_callable($1, $2)";
    as_extension_owner(set, &[function.into(), allowed.into()]);
}

fn given<T>(argument: Option<T>, what: &str) -> T {
    argument.unwrap_or_else(|| {
        let code = PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED;
        report::raise(code, format!("no {what} given"), "")
    })
}
