//! What a reader answers: the rows that are there, in chunks, as the client's role and with its claims.
//!
//! Each chunk is one statement in a transaction of its own. What it could see is said with it, so that the
//! stream can be joined to it: its snapshot is taken once everything that it reads is locked, since neither
//! TRUNCATE nor rewriting a table heeds an older one.

use std::ffi::CString;
use std::time::Duration;

use pgrx::{PgSqlErrorCode, Spi, pg_sys};
use serde_json::value::RawValue;
use tide_feed::bounded::{Bounded, Overflow};
use tide_feed::catalog::{Chunk, ChunkRequest, Condition, Operator, Rows, Snapshot};

use crate::encoding;
use crate::helper::answer::{encode, too_large};
use crate::helper::executor::as_role;
use crate::helper::expression;
use crate::helper::policy::with_claims;
use crate::helper::session;
use crate::helper::transaction::{Refusal, allow};
use crate::source::value::{Origins, Value};
use crate::{compat, guc};

/// For one chunk; longer ones hold back the removal of dead rows.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of rows in a chunk: no more are added once there are so many.
const ENOUGH: usize = 1 << 20;
/// And at most, with the last one of them.
const LARGEST: usize = 24 << 20;
/// Rows that are fetched at a time.
const FETCHED: std::ffi::c_long = 256;

/// Bytes of a page's header in the WAL, and of the first one's in a file.
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// The next rows of a table.
pub(crate) fn chunk(request: &ChunkRequest) -> Result<String, Refusal> {
    let chunk = as_role(&request.role, || {
        with_claims(&request.claims, || {
            allow(TIMEOUT);
            let table = Table::open(request.table)?;
            table.read(request)
        })
    })?;
    encode(&chunk)
}

/// Beyond how many of the borders each key lies.
pub(crate) fn places(
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
    crate::helper::transaction::rolled_back(guc::policy_timeout(), || {
        let table = Table::open(table)?;
        expression::text(&table.places(key, &keys, &borders)?)?
            .ok_or_else(|| Refusal::internal("no places"))
    })
}

/// A table that is locked against changes of its definition, until the end of the transaction.
struct Table(pg_sys::Relation);

/// A column, as SQL has to write it.
struct Column {
    /// Quoted.
    name: String,
    /// Without a modifier: with one, values that do not fit would be cut.
    type_sql: String,
    type_id: pg_sys::Oid,
    /// The collation that its values are ordered by, as SQL writes it; of types that have one.
    collation: Option<String>,
    /// A string of JSON.
    json_name: String,
}

/// The operators that a type is ordered by, as SQL has to write them.
struct Order {
    equal: String,
    greater: String,
    /// They are found by their names alone, as those of a row are.
    is_plain: bool,
}

impl Table {
    fn open(table: u32) -> Result<Table, Refusal> {
        let oid = pg_sys::Oid::from(table);
        // SAFETY: in a transaction, whose end closes and unlocks the table.
        unsafe {
            pg_sys::LockRelationOid(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            let relation = pg_sys::RelationIdGetRelation(oid);
            if relation.is_null() {
                let code = PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE;
                return Err(Refusal::new(code, "the table is gone"));
            }
            let kind = (*(*relation).rd_rel).relkind as u8;
            if ![pg_sys::RELKIND_RELATION, pg_sys::RELKIND_PARTITIONED_TABLE].contains(&kind) {
                return Err(Refusal::internal("only tables have rows to begin with"));
            }
            Ok(Table(relation))
        }
    }

    /// As SQL names it. Of tables that inherit from it nothing is streamed by its name.
    fn name(&self) -> String {
        // SAFETY: the table is open; the texts are copied.
        unsafe {
            let class = &*(*self.0).rd_rel;
            let schema = pg_sys::get_namespace_name(class.relnamespace);
            let name = pg_sys::quote_qualified_identifier(schema, class.relname.data.as_ptr());
            let name = encoding::Encoding::of_database().owned(name);
            let is_leaf = class.relkind as u8 == pg_sys::RELKIND_RELATION;
            format!("{}{name}", if is_leaf { "only " } else { "" })
        }
    }

    /// The columns that rows are told apart by in the WAL: of the replica identity, or, where that is all
    /// columns, of the primary key.
    fn key(&self) -> Result<Vec<i16>, Refusal> {
        let none = || {
            let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
            Refusal::new(code, "the table has no key: give it a primary key")
        };
        // SAFETY: the table is open; the index is, too, while it is looked at.
        unsafe {
            let identity = (*(*self.0).rd_rel).relreplident as u8;
            pg_sys::list_free(pg_sys::RelationGetIndexList(self.0));
            let index = match identity {
                b'f' => (*self.0).rd_pkindex,
                _ => (*self.0).rd_replidindex,
            };
            if index == pg_sys::InvalidOid {
                return Err(none());
            }
            let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let index = pg_sys::index_open(index, lock);
            let form = &*(*index).rd_index;
            let count = usize::try_from(form.indnkeyatts).unwrap_or(0);
            let key = form.indkey.values.as_slice(count).to_vec();
            pg_sys::index_close(index, lock);
            Ok(key)
        }
    }

    fn column(&self, attnum: i16) -> Result<Column, Refusal> {
        let gone = || {
            let code = PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN;
            Refusal::new(code, "the table has other columns by now")
        };
        let index = usize::try_from(attnum).ok().and_then(|n| n.checked_sub(1)).ok_or_else(gone)?;
        // SAFETY: the table is open; the texts are copied.
        unsafe {
            let descriptor = (*self.0).rd_att;
            if index >= usize::try_from((*descriptor).natts).unwrap_or(0) {
                return Err(gone());
            }
            let attribute = compat::attribute(descriptor, index);
            if attribute.attisdropped {
                return Err(gone());
            }
            let encoding = encoding::Encoding::of_database();
            let name = encoding.owned(pg_sys::quote_identifier(attribute.attname.data.as_ptr()));
            let plain = encoding.owned(attribute.attname.data.as_ptr());
            let flags = pg_sys::FORMAT_TYPE_FORCE_QUALIFY as u16;
            let collation = attribute.attcollation;
            let type_sql = pg_sys::format_type_extended(attribute.atttypid, -1, flags);
            Ok(Column {
                name: format!("t.{name}"),
                type_sql: encoding.owned(type_sql).into(),
                type_id: attribute.atttypid,
                collation: (collation != pg_sys::InvalidOid).then(|| collation_sql(collation)),
                json_name: encode(&plain)?,
            })
        }
    }

    fn columns(&self, attnums: &[i16]) -> Result<Vec<Column>, Refusal> {
        attnums.iter().map(|attnum| self.column(*attnum)).collect()
    }

    fn read(&self, request: &ChunkRequest) -> Result<Chunk, Refusal> {
        let attnums = self.key()?;
        let (columns, key) = (self.columns(&request.columns)?, self.columns(&attnums)?);
        let query = encoding::server_string(&self.query(request, &columns, &key)?);
        let none = std::ptr::null_mut();
        // SAFETY: in a transaction with a snapshot, whose end closes the portal.
        let (portal, snapshot) = unsafe {
            let portal = expression::start(&query, none, |statement, text| {
                pg_sys::pg_analyze_and_rewrite_fixedparams(
                    statement,
                    text,
                    std::ptr::null(),
                    0,
                    none,
                )
            })?;
            let name = CString::new(portal.as_str()).unwrap_or_default();
            let found = pg_sys::GetPortalByName(name.as_ptr());
            let description =
                if found.is_null() { std::ptr::null_mut() } else { (*found).queryDesc };
            if description.is_null() || (*description).snapshot.is_null() {
                return Err(Refusal::internal("no snapshot"));
            }
            (portal, seen_by(&*(*description).snapshot))
        };
        let mut rows = Written::new(&columns, &key);
        let is_done = rows.fetch(&portal)?;
        Ok(Chunk {
            key: attnums,
            count: rows.count,
            done: is_done && rows.count < u64::from(request.limit),
            rows: raw(rows.rows)?,
            keys: raw(rows.keys)?,
            last: rows.last,
            snapshot,
            lsn: flushed(),
        })
    }

    fn query(
        &self,
        request: &ChunkRequest,
        columns: &[Column],
        key: &[Column],
    ) -> Result<String, Refusal> {
        let names = |columns: &[Column]| {
            columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>().join(", ")
        };
        let mut list: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        list.extend(key.iter().map(|column| column.name.clone()));
        let mut conditions = Vec::new();
        for condition in &request.conditions {
            conditions.push(sql(condition, &self.column(condition.column)?)?);
        }
        if let Some(after) = &request.after {
            if after.len() != key.len() {
                return Err(Refusal::internal("another key"));
            }
            let keys: Vec<String> = key.iter().map(|column| column.name.clone()).collect();
            let values = after.iter().zip(key).map(|(text, column)| literal(text, column));
            conditions.push(beyond(&keys, &values.collect::<Vec<_>>(), key)?);
        }
        let conditions = match conditions.is_empty() {
            true => String::new(),
            false => format!(" where {}", conditions.join(" and ")),
        };
        let (list, table, key, limit) = (list.join(", "), self.name(), names(key), request.limit);
        Ok(format!("select {list} from {table} as t{conditions} order by {key} limit {limit}"))
    }

    /// The query for the places of keys.
    fn places(
        &self,
        key: &[i16],
        keys: &[Vec<Option<Box<str>>>],
        borders: &[Vec<Option<Box<str>>>],
    ) -> Result<String, Refusal> {
        let columns = self.columns(key)?;
        let values = |row: &[Option<Box<str>>]| -> Result<Vec<String>, Refusal> {
            if row.len() != columns.len() {
                return Err(Refusal::internal("another key"));
            }
            let value = |(text, column): (&Option<Box<str>>, &Column)| {
                let collation = column.collation.iter().map(|name| format!(" collate {name}"));
                let text = text.as_deref().unwrap_or_default();
                format!("({}{})", literal(text, column), collation.collect::<String>())
            };
            Ok(row.iter().zip(&columns).map(value).collect())
        };
        let names: Vec<String> = (0..columns.len()).map(|n| format!("v.c{n}")).collect();
        let mut places = Vec::new();
        for border in borders {
            places.push(format!(
                "({})::pg_catalog.int4",
                beyond(&names, &values(border)?, &columns)?
            ));
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
}

impl Order {
    fn of(type_id: pg_sys::Oid) -> Result<Order, Refusal> {
        let wanted = pg_sys::TYPECACHE_EQ_OPR | pg_sys::TYPECACHE_GT_OPR;
        // SAFETY: a catalogue look-up in a transaction.
        let (equal, greater) = unsafe {
            let entry = pg_sys::lookup_type_cache(type_id, wanted as i32);
            ((*entry).eq_opr, (*entry).gt_opr)
        };
        if equal == pg_sys::InvalidOid || greater == pg_sys::InvalidOid {
            let code = PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION;
            return Err(Refusal::new(code, "the key is of a type that has no order"));
        }
        let plain = |name: &str| format!("operator(pg_catalog.{name})");
        let (equal, greater) = (operator_sql(equal)?, operator_sql(greater)?);
        let is_plain = equal == plain("=") && greater == plain(">");
        Ok(Order { equal, greater, is_plain })
    }
}

/// The condition that a row's key is greater than another.
fn beyond(keys: &[String], values: &[String], columns: &[Column]) -> Result<String, Refusal> {
    let orders = columns.iter().map(|column| Order::of(column.type_id));
    let orders = orders.collect::<Result<Vec<Order>, Refusal>>()?;
    if orders.iter().all(|order| order.is_plain) {
        let (keys, values) = (keys.join(", "), values.join(", "));
        return Ok(format!("({keys}) operator(pg_catalog.>) ({values})"));
    }
    let mut condition = String::from("false");
    for ((key, value), order) in keys.iter().zip(values).zip(&orders).rev() {
        let Order { equal, greater, .. } = order;
        condition = format!("({key} {greater} {value} or {key} {equal} {value} and {condition})");
    }
    Ok(condition)
}

fn operator_sql(operator: pg_sys::Oid) -> Result<String, Refusal> {
    // SAFETY: a catalogue look-up in a transaction; the texts are copied.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::OPEROID as i32;
        let row = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(operator));
        if row.is_null() {
            return Err(Refusal::internal("the operator is gone"));
        }
        let form = &*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_operator>(row);
        let schema = pg_sys::quote_identifier(pg_sys::get_namespace_name(form.oprnamespace));
        let encoding = encoding::Encoding::of_database();
        let (schema, name) = (encoding.owned(schema), encoding.owned(form.oprname.data.as_ptr()));
        pg_sys::ReleaseSysCache(row);
        Ok(format!("operator({schema}.{name})"))
    }
}

fn collation_sql(collation: pg_sys::Oid) -> String {
    // SAFETY: a catalogue look-up in a transaction; the texts are copied.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::COLLOID as i32;
        let row = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(collation));
        if row.is_null() {
            return "pg_catalog.\"default\"".into();
        }
        let form = &*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_collation>(row);
        let schema = pg_sys::get_namespace_name(form.collnamespace);
        let name = pg_sys::quote_qualified_identifier(schema, form.collname.data.as_ptr());
        let name = encoding::Encoding::of_database().owned(name);
        pg_sys::ReleaseSysCache(row);
        name.into()
    }
}

/// Rows as they are fetched.
struct Written<'a> {
    columns: Vec<(&'a Column, Cell)>,
    key: Vec<(&'a Column, Cell)>,
    rows: Vec<u8>,
    keys: Vec<u8>,
    last: Option<Vec<String>>,
    count: u64,
}

/// How to write a column's values.
struct Cell {
    value: Value,
    is_varlena: bool,
}

impl Cell {
    fn of(column: &Column) -> Cell {
        // SAFETY: in a transaction; what it points to lives as long as that.
        unsafe {
            let memory = pg_sys::CurrentMemoryContext;
            let value = Value::of(column.type_id, memory, &mut Origins::default(), 0);
            Cell { value, is_varlena: pg_sys::get_typlen(column.type_id) == -1 }
        }
    }

    /// `None`: NULL.
    fn write(
        &mut self,
        datum: Option<pg_sys::Datum>,
        out: &mut Bounded<'_>,
    ) -> Result<(), Overflow> {
        let Some(datum) = datum else { return out.extend_from_slice(b"null") };
        // SAFETY: a value of the column's type, taken out of the table's storage first.
        unsafe {
            let datum = if self.is_varlena {
                out.room(pg_sys::toast_raw_datum_size(datum))?;
                pg_sys::Datum::from(pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr()))
            } else {
                datum
            };
            self.value.write(datum, out)
        }
    }
}

impl<'a> Written<'a> {
    fn new(columns: &'a [Column], key: &'a [Column]) -> Written<'a> {
        let cells = |columns: &'a [Column]| {
            columns.iter().map(|column| (column, Cell::of(column))).collect::<Vec<_>>()
        };
        Written {
            columns: cells(columns),
            key: cells(key),
            rows: vec![b'['],
            keys: vec![b'['],
            last: None,
            count: 0,
        }
    }

    /// Writes rows until there are enough; true: until there are no more.
    fn fetch(&mut self, portal: &str) -> Result<bool, Refusal> {
        let unexpected = |_: pgrx::spi::Error| Refusal::internal("the rows cannot be fetched");
        let is_done = loop {
            let (fetched, is_enough) = Spi::connect(|client| {
                let mut cursor = client.find_cursor(portal).map_err(unexpected)?;
                let fetched = cursor.fetch(FETCHED).map_err(unexpected)?.len();
                let enough = session::pinned(|| self.add_fetched(fetched));
                // Left open, where it is: what follows is fetched, or closed with the transaction.
                let _ = cursor.detach_into_name();
                enough.map(|is_enough| (fetched, is_enough))
            })?;
            match (is_enough, fetched < FETCHED as usize) {
                (true, _) => break false,
                (false, true) => break true,
                (false, false) => {}
            }
        };
        for out in [&mut self.rows, &mut self.keys] {
            out.push(b']');
        }
        Ok(is_done)
    }

    /// Writes the rows that SPI has fetched; true: with these there are enough.
    fn add_fetched(&mut self, fetched: usize) -> Result<bool, Refusal> {
        let width = self.columns.len() + self.key.len();
        let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); width], vec![true; width]);
        let mut last = None;
        for index in 0..fetched {
            // SAFETY: SPI has fetched so many rows, of so many columns.
            unsafe {
                let table = &*pg_sys::SPI_tuptable;
                let row = *table.vals.add(index);
                pg_sys::heap_deform_tuple(
                    row,
                    table.tupdesc,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                );
            }
            let data =
                values.iter().zip(&nulls).map(|(value, is_null)| (!is_null).then_some(*value));
            let data: Vec<Option<pg_sys::Datum>> = data.collect();
            self.add(&data)?;
            last = Some(data);
            if self.rows.len() >= ENOUGH {
                break;
            }
        }
        if let Some(data) = &last {
            self.last = Some(self.texts(data)?);
        }
        Ok(self.rows.len() >= ENOUGH)
    }

    fn add(&mut self, data: &[Option<pg_sys::Datum>]) -> Result<(), Refusal> {
        pgrx::check_for_interrupts!();
        let (own, key) = data.split_at(self.columns.len().min(data.len()));
        let mut row = || -> Result<(), Overflow> {
            let mut out = Bounded::new(&mut self.rows, LARGEST, LARGEST);
            if self.count > 0 {
                out.push(b',')?;
            }
            out.push(b'{')?;
            for (index, ((column, cell), datum)) in self.columns.iter_mut().zip(own).enumerate() {
                if index > 0 {
                    out.push(b',')?;
                }
                out.extend_from_slice(column.json_name.as_bytes())?;
                out.push(b':')?;
                cell.write(*datum, &mut out)?;
            }
            out.push(b'}')?;
            let mut out = Bounded::new(&mut self.keys, LARGEST, LARGEST);
            if self.count > 0 {
                out.push(b',')?;
            }
            out.push(b'[')?;
            for (index, ((_, cell), datum)) in self.key.iter_mut().zip(key).enumerate() {
                if index > 0 {
                    out.push(b',')?;
                }
                cell.write(*datum, &mut out)?;
            }
            out.push(b']')
        };
        row().map_err(|_| too_large())?;
        self.count += 1;
        Ok(())
    }

    /// The key as texts that its types read.
    fn texts(&self, data: &[Option<pg_sys::Datum>]) -> Result<Vec<String>, Refusal> {
        let key = data.get(self.columns.len()..).unwrap_or_default();
        let text = |((column, _), datum): (&(&Column, Cell), &Option<pg_sys::Datum>)| {
            let datum = datum.ok_or_else(|| Refusal::internal("a key without a value"))?;
            let (mut function, mut is_varlena) = (pg_sys::InvalidOid, false);
            // SAFETY: a value of the column's type; the text is copied.
            unsafe {
                pg_sys::getTypeOutputInfo(column.type_id, &mut function, &mut is_varlena);
                let text = pg_sys::OidOutputFunctionCall(function, datum);
                Ok(encoding::Encoding::of_database().owned(text).into())
            }
        };
        self.key.iter().zip(key).map(text).collect()
    }
}

fn raw(json: Vec<u8>) -> Result<Box<RawValue>, Refusal> {
    let json = String::from_utf8(json).map_err(|_| Refusal::internal("not UTF-8"))?;
    RawValue::from_string(json).map_err(|_| Refusal::internal("not JSON"))
}

/// What a snapshot sees, with whole numbers.
fn seen_by(snapshot: &pg_sys::SnapshotData) -> Snapshot {
    // SAFETY: reads a number from shared memory; the snapshot has as many transactions as it says.
    unsafe {
        let next = pg_sys::ReadNextFullTransactionId().value;
        // None of them is newer, and none 2^31 older.
        let whole = |xid: u32| next - u64::from((next as u32).wrapping_sub(xid));
        let count = snapshot.xcnt as usize;
        let running =
            if count == 0 { &[][..] } else { std::slice::from_raw_parts(snapshot.xip, count) };
        Snapshot {
            xmin: whole(snapshot.xmin.into_inner()),
            xmax: whole(snapshot.xmax.into_inner()),
            xip: running.iter().map(|xid| whole(xid.into_inner())).collect(),
        }
    }
}

/// Where the WAL ends, which is on disk up to there afterwards. Whatever could be seen before lies before
/// it.
fn flushed() -> u64 {
    // SAFETY: reads numbers from shared memory; flushes what has been inserted.
    unsafe {
        let mut end = pg_sys::GetXLogInsertRecPtr();
        // Where a page begins, the next record would come after its header; the last ended before it.
        let in_page = end % u64::from(pg_sys::XLOG_BLCKSZ);
        let header = if end % pg_sys::wal_segment_size as u64 == in_page {
            LONG_HEADER
        } else {
            SHORT_HEADER
        };
        if in_page == header {
            end -= header;
        }
        pg_sys::XLogFlush(end);
        end
    }
}

/// A value of the column's type.
fn literal(text: &str, column: &Column) -> String {
    format!("{}::{}", quoted(text), column.type_sql)
}

fn quoted(text: &str) -> String {
    // Whatever standard_conforming_strings is.
    if text.contains('\\') {
        return format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    }
    format!("'{}'", text.replace('\'', "''"))
}

/// A condition of a filter, as the stream would judge a row.
fn sql(condition: &Condition, column: &Column) -> Result<String, Refusal> {
    let Condition { negated, operator, values, .. } = condition;
    // Texts are compared by their bytes, as the stream's are.
    let collation = if column.collation.is_some() { " collate pg_catalog.\"C\"" } else { "" };
    let name = &format!("{}{collation}", column.name);
    let first = || values.first().ok_or_else(|| Refusal::internal("a condition without a value"));
    let compared = |sign: &str| -> Result<String, Refusal> {
        Ok(format!("{name} operator(pg_catalog.{sign}) {}", literal(first()?, column)))
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
            let values: Vec<String> = values.iter().map(|text| literal(text, column)).collect();
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
        Operator::Distinct => format!("{name} is distinct from {}", literal(first()?, column)),
    };
    Ok(if *negated { format!("not ({sql})") } else { format!("({sql})") })
}
