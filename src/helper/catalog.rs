//! What the catalog worker answers: pg_tide's own questions to the catalogue, asked as the
//! extension's owner. Nothing here runs a user's code.

use std::time::Duration;

use pgrx::datum::DatumWithOid;
use pgrx::{Spi, pg_sys};
use serde::Deserialize;
use tide_feed::catalog::{
    Changes, ColumnAccess, Object, RoleStatus, RowSecurity, Secrets, TableAccess, Tables,
    Visibility, Which,
};
use tide_feed::event::Kind;

use crate::guc;
use crate::helper::answer::{self, encode, parse};
use crate::helper::changes::{self, forget_catalogue};
use crate::helper::plan::Plan;
use crate::helper::role;
use crate::helper::row_security;
use crate::helper::transaction::{Refusal, rolled_back};
use crate::server_text::ServerText;
use crate::source::in_flight;

/// Catalogue look-ups take milliseconds; past this something else is wrong.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is said of tables takes as long as their owners have made it, and others wait meanwhile.
const TABLES_TIMEOUT: Duration = Duration::from_secs(3);

const SECRETS: &str = include_str!("../../sql/catalog/secrets.sql");
const TABLES: &str = include_str!("../../sql/catalog/tables.sql");
const VISIBILITY: &str = include_str!("../../sql/catalog/visibility.sql");
const CHECK: &str = include_str!("../../sql/catalog/check.sql");

pub(crate) fn secrets() -> Result<String, Refusal> {
    let jwt_secrets = rolled_back(TIMEOUT, || parse(&text(SECRETS, &[])?))?;
    encode(&Secrets { jwt_secrets })
}

pub(crate) fn role(role: &str, streamed: u64) -> Result<String, Refusal> {
    forget_catalogue(streamed);
    let status: RoleStatus = rolled_back(TIMEOUT, || Ok(role::look_up(role).0))?;
    encode(&status)
}

/// The WAL address comes first, then who was running: whatever commits after it, or could not be
/// seen yet, has been decoded after the question.
pub(crate) fn tables(
    role: &str,
    publication: &str,
    which: &Which,
    streamed: u64,
) -> Result<String, Refusal> {
    thread_local! { static PLAN: Plan = const { Plan::new(TABLES) }; }
    let (lsn, running) = now();
    forget_catalogue(streamed);
    let (mut schemas, mut names, mut oids) = (Vec::new(), Vec::new(), Vec::new());
    match which {
        Which::Named(tables) => {
            schemas.extend(tables.iter().map(|name| ServerText(&name.schema)));
            names.extend(tables.iter().map(|name| ServerText(&name.table)));
        }
        Which::Oids(asked) => oids.extend(asked.iter().map(|&oid| pg_sys::Oid::from(oid))),
    }
    let (found, change): (Vec<FoundTable>, u64) = rolled_back(TABLES_TIMEOUT, || {
        let change = changes::newest();
        let arguments = [
            ServerText(role).into(),
            ServerText(publication).into(),
            schemas.into(),
            names.into(),
            oids.into(),
            row_security::has_hooks().into(),
            guc::allow_privileged_roles().into(),
        ];
        Ok((parse(&PLAN.with(|plan| plan.text(&arguments))?)?, change))
    })?;
    let tables = found.into_iter().map(TableAccess::from).collect();
    encode(&Tables { lsn, running, change, tables })
}

/// The moment, and what has changed in the catalogue by then.
pub(crate) fn changes(since: u64) -> Result<String, Refusal> {
    let (lsn, running) = now();
    let change = rolled_back(TIMEOUT, || Ok(changes::newest()))?;
    encode(&Changes { lsn, running, change, tables: changes::since(since) })
}

/// The end of the WAL, and the transactions that were running right after.
fn now() -> (u64, Vec<u32>) {
    // SAFETY: reads a number from shared memory.
    let lsn = unsafe { pg_sys::GetXLogInsertRecPtr() };
    let running = in_flight::running().into_iter().map(pg_sys::TransactionId::into_inner);
    (lsn, running.collect())
}

/// What is missing, or forbidden, is not visible.
pub(crate) fn visibility(role: &str, object: Object, streamed: u64) -> Result<String, Refusal> {
    forget_catalogue(streamed);
    let (table, schema) = match object {
        Object::Table(oid) => (Some(pg_sys::Oid::from(oid)), None),
        Object::Schema(oid) => (None, Some(pg_sys::Oid::from(oid))),
    };
    let visibility = rolled_back(TIMEOUT, || {
        let answer = Spi::get_one_with_args::<ServerText<String>>(
            VISIBILITY,
            &[ServerText(role).into(), table.into(), schema.into()],
        );
        answer.ok().flatten().map(|ServerText(visibility)| parse(&visibility)).transpose()
    })?;
    encode(&visibility.unwrap_or(Visibility::default()))
}

pub(crate) fn check() -> Result<String, Refusal> {
    rolled_back(TIMEOUT, || text(CHECK, &[]))
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
