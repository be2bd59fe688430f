//! Rows and their keys as JSON, as the stream prints them.

use pgrx::{PgSqlErrorCode, Spi, pg_sys};
use serde_json::value::RawValue;
use tide_feed::bounded::{Bounded, Overflow};

use crate::encoding;
use crate::helper::answer::too_large;
use crate::helper::session;
use crate::helper::table::Column;
use crate::helper::transaction::Refusal;
use crate::source::value::{Origins, Value};

/// Bytes of rows in a chunk: no more are added once there are so many.
const ENOUGH: usize = 256 << 10;
/// The same where there can be no other chunk, since no key says what it would begin with.
const ENOUGH_OF_ALL: usize = 3 << 20;
/// And at most, with the last one of them.
const LARGEST: usize = 24 << 20;
/// `pg_enc`'s PG_SQL_ASCII.
const SQL_ASCII: std::ffi::c_int = 0;
/// Rows that are fetched at a time.
const FETCHED: std::ffi::c_long = 256;

/// Rows as they are fetched.
pub(crate) struct ChunkRows<'a> {
    columns: Vec<(&'a Column, Cell)>,
    key: Vec<(&'a Column, Cell)>,
    pub(crate) rows: Vec<u8>,
    pub(crate) keys: Vec<u8>,
    pub(crate) last: Option<Vec<String>>,
    pub(crate) count: u64,
}

/// What a statement has returned.
#[derive(Default)]
pub(crate) struct Returned {
    /// Of its first row, if columns of it are to be told.
    pub(crate) row: Option<Box<RawValue>>,
    pub(crate) key: Vec<Box<RawValue>>,
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

impl<'a> ChunkRows<'a> {
    pub(crate) fn new(columns: &'a [Column], key: &'a [Column]) -> ChunkRows<'a> {
        ChunkRows::of(columns.iter(), key.iter())
    }

    pub(crate) fn of(
        columns: impl Iterator<Item = &'a Column>,
        key: impl Iterator<Item = &'a Column>,
    ) -> ChunkRows<'a> {
        ChunkRows {
            columns: columns.map(|column| (column, Cell::of(column))).collect(),
            key: key.map(|column| (column, Cell::of(column))).collect(),
            rows: vec![b'['],
            keys: vec![b'['],
            last: None,
            count: 0,
        }
    }

    /// The row that a statement of SPI's has returned, if there is one, and its key.
    pub(crate) fn returned(mut self) -> Result<Returned, Refusal> {
        // SAFETY: a variable of SPI's, of the statement that has just been run.
        let is_there = unsafe { pg_sys::SPI_processed > 0 };
        if !is_there || self.columns.is_empty() && self.key.is_empty() {
            return Ok(Returned::default());
        }
        let has_columns = !self.columns.is_empty();
        session::pinned(|| self.add_fetched(1))?;
        self.keys.push(b']');
        let keys: Vec<Vec<Box<RawValue>>> =
            serde_json::from_slice(&self.keys).map_err(|_| Refusal::internal("not JSON"))?;
        let row = has_columns.then(|| raw(self.rows.split_off(1))).transpose()?;
        Ok(Returned { row, key: keys.into_iter().next().unwrap_or_default() })
    }

    /// Writes rows until there are enough; true: until there are no more.
    pub(crate) fn fetch(&mut self, portal: &str) -> Result<bool, Refusal> {
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
            if self.is_enough() {
                break;
            }
        }
        if let Some(data) = last.as_ref().filter(|_| !self.key.is_empty()) {
            self.last = Some(self.texts(data)?);
        }
        Ok(self.is_enough())
    }

    fn is_enough(&self) -> bool {
        let enough = if self.key.is_empty() { ENOUGH_OF_ALL } else { ENOUGH };
        self.rows.len() >= enough
    }

    fn add(&mut self, data: &[Option<pg_sys::Datum>]) -> Result<(), Refusal> {
        pgrx::check_for_interrupts!();
        let (own, key) = data.split_at(self.columns.len().min(data.len()));
        let is_first = self.count == 0;
        write_row(&mut self.columns, own, &mut self.rows, is_first, true)
            .and_then(|()| write_row(&mut self.key, key, &mut self.keys, is_first, false))
            .map_err(|_| too_large())?;
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
                let text: String = encoding::Encoding::of_database().owned(text).into();
                // Where to go on could not be said: bytes that are text of no encoding are lost.
                if text.contains('\u{FFFD}') && pg_sys::GetDatabaseEncoding() == SQL_ASCII {
                    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
                    return Err(Refusal::new(code, "a key is not text of any encoding"));
                }
                Ok(text)
            }
        };
        self.key.iter().zip(key).map(text).collect()
    }
}

/// Appends a row to a list: an object if its columns are to be named, else an array.
fn write_row(
    cells: &mut [(&Column, Cell)],
    data: &[Option<pg_sys::Datum>],
    out: &mut Vec<u8>,
    is_first: bool,
    is_named: bool,
) -> Result<(), Overflow> {
    let mut out = Bounded::new(out, LARGEST, LARGEST);
    if !is_first {
        out.push(b',')?;
    }
    let (opens, closes) = if is_named { (b'{', b'}') } else { (b'[', b']') };
    out.push(opens)?;
    for (index, ((column, cell), datum)) in cells.iter_mut().zip(data).enumerate() {
        if index > 0 {
            out.push(b',')?;
        }
        if is_named {
            out.extend_from_slice(column.json_name.as_bytes())?;
            out.push(b':')?;
        }
        cell.write(*datum, &mut out)?;
    }
    out.push(closes)
}

pub(crate) fn raw(json: Vec<u8>) -> Result<Box<RawValue>, Refusal> {
    let json = String::from_utf8(json).map_err(|_| Refusal::internal("not UTF-8"))?;
    RawValue::from_string(json).map_err(|_| Refusal::internal("not JSON"))
}
