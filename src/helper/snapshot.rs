//! What a reader answers: the rows that are there, in chunks, as the client's role and with its claims.
//!
//! Each chunk is one statement in a transaction of its own. What it could see is said with it, so that the
//! stream can be joined to it: its snapshot is taken once everything that it reads is locked, since neither
//! TRUNCATE nor rewriting a table heeds an older one.

use std::ffi::CString;
use std::time::Duration;

use pgrx::{PgSqlErrorCode, pg_sys};
use tide_feed::catalog::{Chunk, ChunkRequest, Condition, OUTDATED, Operator, Rows};

use crate::encoding;
use crate::helper::answer::encode;
use crate::helper::chunk_rows::{ChunkRows, raw};
use crate::helper::executor::as_role;
use crate::helper::expression;
use crate::helper::key_order::{beyond, same};
use crate::helper::policy::with_claims;
use crate::helper::publication;
use crate::helper::table::{Column, Table, quoted};
use crate::helper::transaction::{Refusal, allow};
use crate::source::snapshot::{flushed, seen_by};

/// For one chunk; longer ones hold back the removal of dead rows.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The next rows of a table.
pub(crate) fn chunk(request: &ChunkRequest) -> Result<String, Refusal> {
    let chunk = as_role(&request.role, || {
        with_claims(&request.claims, || {
            allow(TIMEOUT);
            read(&Table::open(request.table)?, request)
        })
    })?;
    encode(&chunk)
}

/// Beyond how many of the borders each key lies.
pub(crate) fn places(
    (role, claims): (&str, &str),
    table: u32,
    key: &[i16],
    keys: &Rows,
    borders: &Rows,
) -> Result<String, Refusal> {
    let texts = |rows: &Rows| -> Result<Vec<Vec<Option<Box<str>>>>, Refusal> {
        rows.each()
            .map(|row| row.map_err(|_| Refusal::internal("the keys cannot be read")))
            .collect()
    };
    let (keys, borders) = (texts(keys)?, texts(borders)?);
    // Reading a value may be somebody's code, as a domain's check is.
    as_role(role, || {
        with_claims(claims, || {
            allow(TIMEOUT);
            let table = Table::open(table)?;
            let own = table.key()?;
            if !own.iter().map(|(attnum, _)| attnum).eq(key) {
                return Err(another_key());
            }
            expression::text(&places_query(&table.key_columns(&own)?, &keys, &borders)?)?
                .ok_or_else(|| Refusal::internal("no places"))
        })
    })
}

/// Reads them, in a transaction with the client's role and claims.
fn read(table: &Table, request: &ChunkRequest) -> Result<Chunk, Refusal> {
    let own = table.key()?;
    let attnums: Vec<i16> = own.iter().map(|(attnum, _)| *attnum).collect();
    let (columns, key) = (table.columns(&request.columns)?, table.key_columns(&own)?);
    let query = encoding::server_string(&query(table, request, &columns, &key)?);
    // SAFETY: in a transaction with a snapshot, whose end closes the portal.
    let (portal, snapshot) = unsafe {
        let portal = expression::start_text(&query)?;
        let name = CString::new(portal.as_str()).unwrap_or_default();
        let found = pg_sys::GetPortalByName(name.as_ptr());
        let description = if found.is_null() { std::ptr::null_mut() } else { (*found).queryDesc };
        if description.is_null() || (*description).snapshot.is_null() {
            return Err(Refusal::internal("no snapshot"));
        }
        (portal, seen_by(&*(*description).snapshot))
    };
    let mut rows = ChunkRows::new(&columns, &key);
    let is_done = rows.fetch(&portal)?;
    if attnums.is_empty() && !is_done {
        let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
        let message =
            "the table has no key, and more rows than are read at once: give it a primary key";
        return Err(Refusal::new(code, message));
    }
    Ok(Chunk {
        done: is_done && (attnums.is_empty() || rows.count < u64::from(request.limit)),
        key: attnums,
        count: rows.count,
        rows: raw(rows.rows)?,
        keys: raw(rows.keys)?,
        last: rows.last,
        snapshot,
        lsn: flushed(),
    })
}

/// The query for a chunk.
fn query(
    table: &Table,
    request: &ChunkRequest,
    columns: &[Column],
    key: &[Column],
) -> Result<String, Refusal> {
    let mut list: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    list.extend(key.iter().map(|column| column.name.clone()));
    let mut conditions = Vec::new();
    if let Some(filter) = publication::row_filter(request.table)? {
        conditions.push(format!("({filter})"));
    }
    for condition in &request.conditions {
        conditions.push(sql(condition, &table.column(condition.column)?)?);
    }
    let (after, only) = (&request.after, &request.only);
    let keys: Vec<String> = key.iter().map(Column::ordered).collect();
    for texts in [after, only].into_iter().flatten() {
        if texts.len() != key.len() || key.is_empty() {
            return Err(another_key());
        }
    }
    let literals = |texts: &Vec<String>| -> Vec<String> {
        texts.iter().zip(key).map(|(text, column)| column.literal(text)).collect()
    };
    if let Some(after) = after {
        conditions.push(beyond(&keys, &literals(after), key)?);
    }
    if let Some(only) = only {
        let columns: Vec<&Column> = key.iter().collect();
        conditions.push(same(&keys, &literals(only), &columns)?);
    }
    let conditions = match conditions.is_empty() {
        true => String::new(),
        false => format!(" where {}", conditions.join(" and ")),
    };
    let (list, table) = (list.join(", "), table.name());
    let order = match key.is_empty() {
        true => String::new(),
        false => format!(" order by {} limit {}", keys.join(", "), request.limit),
    };
    Ok(format!("select {list} from {table} as t{conditions}{order}"))
}

/// The query for the places of keys.
fn places_query(
    columns: &[Column],
    keys: &[Vec<Option<Box<str>>>],
    borders: &[Vec<Option<Box<str>>>],
) -> Result<String, Refusal> {
    let values = |row: &[Option<Box<str>>]| -> Result<Vec<String>, Refusal> {
        if row.len() != columns.len() {
            return Err(another_key());
        }
        let value = |(text, column): (&Option<Box<str>>, &Column)| {
            let text = text.as_deref().unwrap_or_default();
            format!("({}{})", column.literal(text), column.collate())
        };
        Ok(row.iter().zip(columns).map(value).collect())
    };
    let names: Vec<String> = (0..columns.len()).map(|n| format!("v.c{n}")).collect();
    let mut places = Vec::new();
    for border in borders {
        places.push(format!("({})::pg_catalog.int4", beyond(&names, &values(border)?, columns)?));
    }
    let mut rows = Vec::new();
    for (index, key) in keys.iter().enumerate() {
        rows.push(format!("({index}, {})", values(key)?.join(", ")));
    }
    let place = if places.is_empty() { "0".into() } else { places.join(" + ") };
    let names: String = (0..columns.len()).map(|n| format!(", c{n}")).collect();
    let rows = rows.join(", ");
    Ok(format!(
        "select pg_catalog.json_agg({place} order by v.i)::pg_catalog.text from (values {rows}) as v (i{names})"
    ))
}

/// What was asked knows of another key than the table has by now.
fn another_key() -> Refusal {
    Refusal { sqlstate: OUTDATED.into(), message: "the table has another key by now".into() }
}

/// A condition of a filter, as the stream would judge a row.
fn sql(condition: &Condition, column: &Column) -> Result<String, Refusal> {
    let Condition { negated, operator, values, .. } = condition;
    // Texts are compared by their bytes, as the stream's are.
    let collation = if column.collation.is_some() { " collate pg_catalog.\"C\"" } else { "" };
    let name = &format!("{}{collation}", column.name);
    let first = || values.first().ok_or_else(|| Refusal::internal("a condition without a value"));
    let compared = |sign: &str| -> Result<String, Refusal> {
        Ok(format!("{name} operator(pg_catalog.{sign}) {}", column.literal(first()?)))
    };
    let pattern = |sign: &str| -> Result<String, Refusal> {
        let text = format!("{}::pg_catalog.text", column.name);
        Ok(format!("{text} operator(pg_catalog.{sign}) {}::pg_catalog.text", quoted(first()?)))
    };
    let sql = match operator {
        Operator::Eq => compared("=")?,
        Operator::Neq => compared("<>")?,
        Operator::Lt => compared("<")?,
        Operator::Lte => compared("<=")?,
        Operator::Gt => compared(">")?,
        Operator::Gte => compared(">=")?,
        Operator::In => {
            let values: Vec<String> = values.iter().map(|text| column.literal(text)).collect();
            match values.is_empty() {
                true => "false".into(),
                false => format!("{name} in ({})", values.join(", ")),
            }
        }
        Operator::Like => pattern("~~")?,
        Operator::Ilike => pattern("~~*")?,
        Operator::Match => pattern("~")?,
        Operator::Imatch => pattern("~*")?,
        Operator::IsNull => format!("{name} is null"),
        Operator::IsTrue => format!("{name} is true"),
        Operator::IsFalse => format!("{name} is false"),
        Operator::IsUnknown => format!("{name} is unknown"),
        Operator::Distinct => format!("{name} is distinct from {}", column.literal(first()?)),
    };
    Ok(if *negated { format!("not ({sql})") } else { format!("({sql})") })
}
