//! What the catalog worker does to outboxes: puts rows that wait in line, deletes those that have
//! been published.

use std::ffi::CString;
use std::time::Duration;

use pgrx::datum::DatumWithOid;
use pgrx::spi::Query;
use pgrx::{PgSqlErrorCode, Spi, pg_sys};
use serde::Deserialize;
use tide_feed::catalog::{MOST_ROWS, Outbox, Retired, TakenOver, Unpublished};

use crate::encoding;
use crate::helper::answer::{self, encode, parse};
use crate::helper::owner::{as_owner, set_local};
use crate::helper::transaction::{Refusal, committed, rolled_back};
use crate::own_function::own_function;
use crate::process::shmem;
use crate::server_text::ServerText;
use crate::source::outbox::mark;

/// A page of rows takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever locks rows of an outbox, or the outbox, is not waited for any longer: the catalog worker
/// has other work to do, and the outbox cleaner tries again. While this waits for a lock on the
/// table, writers wait behind it.
const LOCK_TIMEOUT: &std::ffi::CStr = c"250ms";

const LIST: &str = include_str!("../../sql/catalog/outbox/list.sql");
const DESCRIBE: &str = include_str!("../../sql/catalog/outbox/describe.sql");
const LINE_UP: &str = include_str!("../../sql/catalog/outbox/line_up.sql");
const RETIRE: &str = include_str!("../../sql/catalog/outbox/retire.sql");
const FLAG: &str = include_str!("../../sql/catalog/outbox/flag.sql");
const SET_ASIDE: &str = include_str!("../../sql/catalog/outbox/set_aside.sql");
const FAILED: &str = include_str!("../../sql/catalog/outbox/failed.sql");
const KEPT: &str = include_str!("../../sql/catalog/outbox/kept.sql");
const UNFLAGGED: &str = include_str!("../../sql/catalog/outbox/unflagged.sql");
const EXPIRE: &str = include_str!("../../sql/catalog/outbox/expire.sql");

/// An outbox as `describe.sql` has it.
#[derive(Deserialize)]
struct Description {
    owner: u32,
    /// Quoted, with its schema.
    name: String,
    generation: Option<i64>,
    is_whole: bool,
    has_processed: bool,
    has_time_zone: bool,
    columns: String,
    values: String,
}

impl Description {
    /// `None`: it is no outbox, or not any more. One that has lost columns, so that nothing in it
    /// can be published, is nobody's until it has them again, and will then be taken over.
    fn of(table: u32, mark: &str) -> Result<Option<Description>, Refusal> {
        let found = text(DESCRIBE, &[pg_sys::Oid::from(table).into(), mark.into()])?;
        let Some(json) = found else { return Ok(None) };
        let outbox: Description = parse(&json)?;
        if !outbox.is_whole {
            belongs_to(table, None)?;
            return Ok(None);
        }
        Ok(Some(outbox))
    }

    /// In the encoding of the database.
    fn statement(&self, template: &str) -> CString {
        let now = if self.has_time_zone {
            "pg_catalog.now()"
        } else {
            "pg_catalog.timezone('UTC', pg_catalog.now())"
        };
        let (processed, unprocessed) = if self.has_processed {
            (", processed = true", "o.processed is not true")
        } else {
            ("", "true")
        };
        let statement = template
            .replace("{now}", now)
            .replace("{processed}", processed)
            .replace("{unprocessed}", unprocessed)
            .replace("{columns}", &self.columns)
            .replace("{values}", &self.values)
            // Last: a table may be called anything.
            .replace("{outbox}", &self.name);
        encoding::server_string(&statement)
    }

    /// What the statement says, which is one text; run as the table's owner.
    fn run(&self, template: &str, arguments: &[DatumWithOid<'_>]) -> Result<String, Refusal> {
        let statement = self.statement(template);
        as_owner(self.owner, || text(&statement, arguments))?
            .ok_or_else(|| Refusal::internal("the statement gave no answer"))
    }

    fn count(&self, template: &str, arguments: &[DatumWithOid<'_>]) -> Result<u64, Refusal> {
        let statement = self.statement(template);
        let count = as_owner(self.owner, || {
            Spi::connect_mut(|client| {
                client.update(&statement, Some(1), arguments)?.first().get_one()
            })
        });
        let count =
            count.ok().flatten().ok_or_else(|| Refusal::internal("the statement gave no count"))?;
        Ok(i64::unsigned_abs(count))
    }
}

pub(crate) fn list() -> Result<String, Refusal> {
    let outboxes: Vec<Outbox> = rolled_back(TIMEOUT, || match text(LIST, &[])? {
        Some(json) => parse(&json),
        None => Ok(Vec::new()),
    })?;
    encode(&outboxes)
}

/// Puts up to `limit` rows that wait, after `after`, in line for the slot of this generation; once
/// there are no more, the outbox is the slot's. Nobody inserts meanwhile: whatever is not in line
/// by then comes after it.
pub(crate) fn take_over(
    table: u32,
    generation: u32,
    after: i64,
    limit: u32,
) -> Result<String, Refusal> {
    #[derive(Deserialize)]
    struct Moved {
        moved: u32,
        last: Option<i64>,
    }
    // Rows that are in line for another slot than the worker's would never be published.
    // SAFETY: set when this process connected to its database.
    if !shmem::decodes(unsafe { pg_sys::MyDatabaseId }, generation) {
        let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
        return Err(Refusal::new(code, "it is not the slot that is decoded"));
    }
    let (mark, limit) = (mark(generation), limit.min(MOST_ROWS));
    let taken = maintain(|| {
        let Some(outbox) = Description::of(table, &mark)? else {
            return Err(Refusal::internal("it is no outbox any more, or has lost columns"));
        };
        if outbox.generation == Some(i64::from(generation)) {
            return Ok(TakenOver { after, done: true });
        }
        let lock = outbox.statement("lock table only {outbox} in share row exclusive mode");
        as_owner(outbox.owner, || {
            Spi::connect_mut(|client| client.update(&lock, None, &[]).map(drop))
        })
        .map_err(|error| Refusal::internal(&error.to_string()))?;
        let line_up = |after: i64| -> Result<Moved, Refusal> {
            let arguments = [after.into(), i64::from(limit).into(), mark.as_str().into()];
            parse(&outbox.run(LINE_UP, &arguments)?)
        };
        let page = line_up(after)?;
        if page.moved >= limit {
            return Ok(TakenOver { after: page.last.unwrap_or(after), done: false });
        }
        // Those that came meanwhile with a smaller number.
        if line_up(i64::MIN)?.moved >= limit {
            return Ok(TakenOver { after: i64::MIN, done: false });
        }
        belongs_to(table, Some(generation))?;
        Ok(TakenOver { after, done: true })
    })?;
    encode(&taken)
}

/// These rows have been published: deletes them, or flags those that stay.
pub(crate) fn retire(table: u32, ids: Vec<i64>, keep: bool) -> Result<String, Refusal> {
    let kept = maintain(|| {
        let Some(outbox) = Description::of(table, "")? else { return Ok(Vec::new()) };
        if !keep {
            outbox.count(RETIRE, &[ids.clone().into()])?;
        }
        outbox.count(FLAG, &[ids.clone().into()])?;
        if keep {
            return Ok(Vec::new());
        }
        parse(&outbox.run(KEPT, &[ids.into()])?)
    })?;
    encode(&Retired { kept })
}

/// These rows could not be published, each for an SQLSTATE: has them say so. This is on disk when
/// it is done, since the slot passes them then.
pub(crate) fn set_aside(table: u32, rows: Vec<(i64, Box<str>)>) -> Result<String, Refusal> {
    let (ids, states): (Vec<i64>, Vec<_>) =
        rows.into_iter().map(|(id, sqlstate)| (id, ServerText(sqlstate))).unzip();
    maintain(|| {
        let Some(outbox) = Description::of(table, "")? else { return Ok(()) };
        set_local(c"synchronous_commit", c"local");
        outbox.count(SET_ASIDE, &[ids.into(), states.into()])?;
        Ok(())
    })?;
    encode(&())
}

/// How many rows could not be published.
pub(crate) fn count_failed(table: u32) -> Result<String, Refusal> {
    let count = maintain(|| {
        let Some(outbox) = Description::of(table, "")? else { return Ok(0) };
        outbox.count(FAILED, &[])
    })?;
    encode(&count)
}

/// Rows that are not flagged, and an address of the WAL before which they have committed.
pub(crate) fn unpublished(table: u32, after: i64, limit: u32) -> Result<String, Refusal> {
    let ids = maintain(|| {
        let Some(outbox) = Description::of(table, "")? else { return Ok(Vec::new()) };
        let limit = i64::from(limit.min(MOST_ROWS));
        parse(&outbox.run(UNFLAGGED, &[after.into(), limit.into()])?)
    })?;
    // SAFETY: reads a number from shared memory. What could be seen has committed before.
    let lsn = unsafe { pg_sys::GetXLogInsertRecPtr() };
    encode(&Unpublished { ids, lsn })
}

/// Deletes rows that were flagged so long ago; looks at the `limit` oldest.
pub(crate) fn expire(table: u32, age: Duration, limit: u32) -> Result<String, Refusal> {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    let deleted = maintain(|| {
        let Some(outbox) = Description::of(table, "")? else { return Ok(0) };
        let limit = i64::from(limit.min(MOST_ROWS));
        outbox.count(EXPIRE, &[age.into(), limit.into()])
    })?;
    encode(&deleted)
}

/// Says which slot has taken an outbox over.
fn belongs_to(table: u32, generation: Option<u32>) -> Result<(), Refusal> {
    let query = format!(
        "select {}(o.relation, o.private, $2) from tide.outboxes as o
         where o.relation = $1 and o.generation is distinct from $2",
        own_function("set_outbox")
    );
    let arguments = [pg_sys::Oid::from(table).into(), generation.map(i64::from).into()];
    Spi::run_with_args(&query, &arguments).map_err(|error| Refusal::internal(&error.to_string()))
}

/// One transaction, which nobody waits for to be on disk: done again, it does no harm.
fn maintain<R>(work: impl FnOnce() -> Result<R, Refusal>) -> Result<R, Refusal> {
    committed(TIMEOUT, || {
        set_local(c"synchronous_commit", c"off");
        set_local(c"lock_timeout", LOCK_TIMEOUT);
        work()
    })
}

/// The one text that a statement answers with, if it gives a row.
fn text<'s, S>(statement: &'s S, arguments: &[DatumWithOid<'_>]) -> Result<Option<String>, Refusal>
where
    S: ?Sized,
    for<'conn> &'s S: Query<'conn>,
{
    let failed = |error: pgrx::spi::Error| Refusal::internal(&error.to_string());
    Spi::connect_mut(|client| {
        answer::text(client.update(statement, Some(1), arguments).map_err(failed)?)
    })
}
