//! Rows that an executor is asked about, as Postgres has them. Each value is read from its own type's
//! text, so that nothing of it is lost; what a domain demands was seen to when it was stored, and is not
//! looked at again.

use pgrx::{PgSqlErrorCode, ereport, pg_sys};
use tide_feed::catalog::{ANOTHER_TYPE, Rows};

use crate::encoding::{self, Encoding};
use crate::helper::table;
use crate::helper::transaction::Refusal;
use crate::{compat, type_form};

/// Rows of one question, at most: the server asks about half as many.
const MOST_ROWS: usize = 4096;

/// Rows of a table that is locked against changes, until the end of the transaction.
pub(crate) struct AskedRows {
    pub(crate) table: pg_sys::Relation,
    /// The columns that they have; all others are NULL.
    pub(crate) attnums: Vec<i16>,
    store: *mut pg_sys::Tuplestorestate,
    pub(crate) count: usize,
}

impl AskedRows {
    /// To be called in a transaction.
    pub(crate) fn read(table: u32, rows: &Rows) -> Result<AskedRows, Refusal> {
        let table = table::open(table)?;
        // SAFETY: in a transaction, whose end closes and unlocks the table and frees the rows.
        unsafe {
            let store = pg_sys::tuplestore_begin_heap(false, false, pg_sys::work_mem);
            let attnums = rows.columns.clone();
            let mut asked = AskedRows { table, attnums, store, count: 0 };
            let mut columns = asked.columns(&rows.forms)?;
            let memory = pg_sys::AllocSetContextCreateExtended(
                pg_sys::CurrentMemoryContext,
                c"pg_tide row".as_ptr(),
                0,
                8 << 10,
                8 << 20,
            );
            for row in rows.each() {
                let texts = row.map_err(|_| Refusal::internal("the rows cannot be read"))?;
                if asked.count == MOST_ROWS {
                    return Err(Refusal::internal("too many rows"));
                }
                pgrx::check_for_interrupts!();
                let before = pg_sys::MemoryContextSwitchTo(memory);
                asked.add(&mut columns, &texts);
                pg_sys::MemoryContextSwitchTo(before);
                pg_sys::MemoryContextReset(memory);
            }
            // Types are not locked: one may have become another while texts were read as of it.
            pg_sys::AcceptInvalidationMessages();
            asked.columns(&rows.forms)?;
            Ok(asked)
        }
    }

    /// How each column's texts are read. `None`: it is of no column that the table still has, and that
    /// a policy could look at.
    unsafe fn columns(&self, forms: &[u64]) -> Result<Vec<Option<Column>>, Refusal> {
        // SAFETY: the table is open.
        unsafe {
            let descriptor = (*self.table).rd_att;
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            let forms = forms.iter().copied().chain(std::iter::repeat(0));
            let column = |(attnum, form): (&i16, u64)| {
                let index = usize::try_from(*attnum).ok().and_then(|n| n.checked_sub(1));
                let Some(index) = index.filter(|index| *index < count) else { return Ok(None) };
                let attribute = compat::attribute(descriptor, index);
                if attribute.attisdropped {
                    return Ok(None);
                }
                if !reads(attribute.atttypid, form) {
                    let message = "a column is of another type than it was".into();
                    return Err(Refusal { sqlstate: ANOTHER_TYPE.into(), message });
                }
                Ok(Some(Column::of(index, attribute.atttypid)))
            };
            self.attnums.iter().zip(forms).map(column).collect()
        }
    }

    /// In memory that is given back afterwards.
    unsafe fn add(&mut self, columns: &mut [Option<Column>], texts: &[Option<Box<str>>]) {
        // SAFETY: the table is open; there is room for each of its columns.
        unsafe {
            let descriptor = (*self.table).rd_att;
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); count], vec![true; count]);
            for (column, text) in columns.iter_mut().zip(texts) {
                if let (Some(column), Some(text)) = (column, text)
                    && let Some(value) = values.get_mut(column.index)
                    && let Some(is_null) = nulls.get_mut(column.index)
                {
                    (*value, *is_null) = (column.read(text), false);
                }
            }
            let row = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::tuplestore_puttuple(self.store, row);
        }
        self.count += 1;
    }

    /// What has them found by queries, by the name of `asked_rows`.
    ///
    /// # Safety
    /// In the transaction that they were made in.
    pub(crate) unsafe fn environment(&self) -> *mut pg_sys::QueryEnvironment {
        // SAFETY: as above.
        unsafe {
            let found = pg_sys::palloc0(size_of::<pg_sys::EphemeralNamedRelationData>())
                .cast::<pg_sys::EphemeralNamedRelationData>();
            (*found).md.name = c"asked_rows".as_ptr().cast_mut();
            // Without what the table says of its columns: those that are not asked about are NULL here,
            // also where the table forbids that, and whoever takes rows apart relies on it.
            (*found).md.tupdesc = pg_sys::CreateTupleDescCopy((*self.table).rd_att);
            (*found).md.enrtype = pg_sys::EphemeralNameRelationType::ENR_NAMED_TUPLESTORE;
            (*found).md.enrtuples = self.count as f64;
            (*found).reldata = self.store.cast();
            let environment = pg_sys::create_queryEnv();
            pg_sys::register_ENR(environment, found);
            environment
        }
    }
}

/// Whether today's type reads a text as the value that it was when it was written, or as what ALTER TABLE
/// has made of it since.
unsafe fn reads(type_id: pg_sys::Oid, form: u64) -> bool {
    // SAFETY: catalogue look-ups in a transaction.
    let today = unsafe { type_form::of(type_id) };
    let base = |form: Option<u64>| form.and_then(type_form::base_type);
    today == Some(form)
        || base(Some(form)).zip(base(today)).is_some_and(|(then, now)| widens(then, now))
}

/// Types whose values, as texts, are the same values of the other type. (A cast being implicit does not say
/// so: that of `character(n)` to text cuts blanks off.)
fn widens(from: pg_sys::Oid, to: pg_sys::Oid) -> bool {
    use pg_sys::{
        DATEOID, FLOAT8OID, INT2OID, INT4OID, INT8OID, NAMEOID, NUMERICOID, TEXTOID, TIMESTAMPOID,
        VARCHAROID,
    };
    matches!(
        (from, to),
        (INT2OID, INT4OID | INT8OID | NUMERICOID | FLOAT8OID)
            | (INT4OID, INT8OID | NUMERICOID | FLOAT8OID)
            | (INT8OID, NUMERICOID)
            | (VARCHAROID | NAMEOID, TEXTOID)
            | (TEXTOID, VARCHAROID)
            | (DATEOID, TIMESTAMPOID)
    )
}

/// How the texts of a column's values are read.
struct Column {
    /// In the table's rows.
    index: usize,
    input: Box<pg_sys::FmgrInfo>,
    parameter: pg_sys::Oid,
    /// Of an array of a domain, which is read as one of the domain's base type.
    element: Option<pg_sys::Oid>,
    /// What is not valid UTF-8 has replacement characters in its place, as nothing else has.
    is_bytes: bool,
}

impl Column {
    unsafe fn of(index: usize, type_id: pg_sys::Oid) -> Column {
        let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        let mut input = Box::new(pg_sys::FmgrInfo::default());
        // SAFETY: catalogue look-ups in a transaction.
        unsafe {
            let base = pg_sys::getBaseType(type_id);
            let element = pg_sys::get_element_type(base);
            let (read_as, element) = match plain_array(element) {
                Some(plain) => (plain, Some(element)),
                None => (base, None),
            };
            pg_sys::getTypeInputInfo(read_as, &raw mut function, &raw mut parameter);
            pg_sys::fmgr_info(function, &raw mut *input);
            // Before 16 a "char" of any byte is printed as it is, also within other values.
            let may_hold_char = cfg!(feature = "pg15") && type_form::has_parts(base);
            let is_bytes = base == pg_sys::CHAROID
                || may_hold_char
                || Encoding::of_database() == Encoding::SqlAscii;
            Column { index, input, parameter, element, is_bytes }
        }
    }

    /// The value, in the current memory context.
    unsafe fn read(&mut self, text: &str) -> pg_sys::Datum {
        if self.is_bytes && text.contains(char::REPLACEMENT_CHARACTER) {
            let code = PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE;
            ereport!(ERROR, code, "a value is not valid UTF-8, as which it came");
        }
        // SAFETY: the type's own input function; it makes a value of the type.
        unsafe {
            let text = encoding::server_text(text);
            let value = pg_sys::InputFunctionCall(&raw mut *self.input, text, self.parameter, -1);
            pg_sys::pfree(text.cast());
            if let Some(element) = self.element {
                (*value.cast_mut_ptr::<pg_sys::ArrayType>()).elemtype = element;
            }
            value
        }
    }
}

/// The array type of the base type of a domain; `None`: it is no domain, or there is none.
unsafe fn plain_array(element: pg_sys::Oid) -> Option<pg_sys::Oid> {
    if element == pg_sys::InvalidOid {
        return None;
    }
    // SAFETY: catalogue look-ups in a transaction.
    let (base, array) = unsafe {
        let base = pg_sys::getBaseType(element);
        (base, pg_sys::get_array_type(base))
    };
    (base != element && array != pg_sys::InvalidOid).then_some(array)
}
