//! What the catalog worker answers: pg_tide's own questions to the catalogue, asked as the
//! extension's owner. Nothing here runs a user's code.

use std::time::Duration;

use pgrx::datum::DatumWithOid;
use pgrx::{Spi, pg_sys};
use serde::Deserialize;
use tide_feed::catalog::{
    ColumnAccess, Object, RoleStatus, RowSecurity, Secrets, TableAccess, Tables, Visibility, Which,
};
use tide_feed::event::Kind;

use crate::helper::answer::{self, encode, parse};
use crate::helper::role;
use crate::helper::transaction::{Refusal, rolled_back};
use crate::source::in_flight;

/// Catalogue look-ups take milliseconds; past this something else is wrong.
const TIMEOUT: Duration = Duration::from_secs(10);

const SECRETS: &str = include_str!("../../sql/catalog/secrets.sql");
const TABLES: &str = include_str!("../../sql/catalog/tables.sql");
const VISIBILITY: &str = include_str!("../../sql/catalog/visibility.sql");
const CHECK: &str = include_str!("../../sql/catalog/check.sql");

pub(crate) fn secrets() -> Result<String, Refusal> {
    let jwt_secrets = rolled_back(TIMEOUT, || parse(&text(SECRETS, &[])?))?;
    encode(&Secrets { jwt_secrets })
}

pub(crate) fn role(role: &str) -> Result<String, Refusal> {
    forget_catalogue();
    let status: RoleStatus = rolled_back(TIMEOUT, || Ok(role::look_up(role).0))?;
    encode(&status)
}

/// The WAL address comes first, then who was running: whatever commits after it, or could not be
/// seen yet, has been decoded after the question.
pub(crate) fn tables(role: &str, publication: &str, which: &Which) -> Result<String, Refusal> {
    // SAFETY: reads a number from shared memory.
    let lsn = unsafe { pg_sys::GetXLogInsertRecPtr() };
    let running = in_flight::running().into_iter().map(pg_sys::TransactionId::into_inner).collect();
    forget_catalogue();
    let (mut schemas, mut names, mut oids) = (Vec::new(), Vec::new(), Vec::new());
    match which {
        Which::Named(tables) => {
            schemas.extend(tables.iter().map(|name| name.schema.clone()));
            names.extend(tables.iter().map(|name| name.table.clone()));
        }
        Which::Oids(asked) => oids.extend(asked.iter().map(|&oid| pg_sys::Oid::from(oid))),
    }
    let found: Vec<FoundTable> = rolled_back(TIMEOUT, || {
        let arguments =
            [role.into(), publication.into(), schemas.into(), names.into(), oids.into()];
        parse(&text(TABLES, &arguments)?)
    })?;
    encode(&Tables { lsn, running, tables: found.into_iter().map(TableAccess::from).collect() })
}

/// What is missing, or forbidden, is not visible.
pub(crate) fn visibility(role: &str, object: Object) -> Result<String, Refusal> {
    forget_catalogue();
    let (table, schema) = match object {
        Object::Table(oid) => (Some(pg_sys::Oid::from(oid)), None),
        Object::Schema(oid) => (None, Some(pg_sys::Oid::from(oid))),
    };
    let visibility = rolled_back(TIMEOUT, || {
        let answer = Spi::get_one_with_args::<String>(
            VISIBILITY,
            &[role.into(), table.into(), schema.into()],
        );
        answer.ok().flatten().map(|visibility| parse(&visibility)).transpose()
    })?;
    encode(&visibility.unwrap_or(Visibility::default()))
}

pub(crate) fn check() -> Result<String, Refusal> {
    rolled_back(TIMEOUT, || text(CHECK, &[]))
}

/// Has the next look-up read the catalogue itself. A transaction tells other processes to drop what
/// they remember only after it has become visible: without this, a REVOKE that clients are already
/// asked about could be missed.
fn forget_catalogue() {
    // SAFETY: outside a transaction, where nothing of the caches is in use.
    unsafe { pg_sys::InvalidateSystemCaches() };
}

/// The one text that a query answers with.
fn text(query: &str, arguments: &[DatumWithOid]) -> Result<String, Refusal> {
    let failed = |_: pgrx::spi::Error| Refusal::internal("the look-up cannot be made");
    let answer = Spi::connect(|client| {
        answer::text(client.select(query, Some(1), arguments).map_err(failed)?)
    })?;
    answer.ok_or_else(|| Refusal::internal("the look-up gave no answer"))
}

/// A table as `tables.sql` describes it.
#[derive(Deserialize)]
struct FoundTable {
    oid: u32,
    schema: String,
    table: String,
    row_security: Option<RowSecurity>,
    columns: Vec<FoundColumn>,
}

#[derive(Deserialize)]
struct FoundColumn {
    attnum: i16,
    name: String,
    type_name: String,
    type_sql: String,
    base_type: u32,
    is_enum: bool,
    readable: bool,
    primary_key: bool,
    labels: Vec<(u32, String)>,
}

impl From<FoundTable> for TableAccess {
    fn from(table: FoundTable) -> TableAccess {
        TableAccess {
            oid: table.oid,
            schema: table.schema,
            table: table.table,
            row_security: table.row_security,
            columns: table.columns.into_iter().map(ColumnAccess::from).collect(),
        }
    }
}

impl From<FoundColumn> for ColumnAccess {
    fn from(column: FoundColumn) -> ColumnAccess {
        ColumnAccess {
            attnum: column.attnum,
            name: column.name,
            type_name: column.type_name,
            type_sql: column.type_sql,
            kind: Kind::of(column.base_type, column.is_enum),
            readable: column.readable,
            primary_key: column.primary_key,
            labels: column.labels,
        }
    }
}
