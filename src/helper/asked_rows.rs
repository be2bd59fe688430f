//! Rows that an executor is asked about, as Postgres has them. Each value is read from its own type's
//! text, so that nothing of it is lost; what a domain demands was seen to when it was stored, and is not
//! looked at again.

use pgrx::{PgSqlErrorCode, pg_sys};
use tide_feed::catalog::Rows;

use crate::compat;
use crate::encoding;
use crate::helper::transaction::Refusal;

/// Rows of a table that is locked against changes, until the end of the transaction.
pub(crate) struct AskedRows {
    pub(crate) table: pg_sys::Relation,
    store: *mut pg_sys::Tuplestorestate,
    pub(crate) count: usize,
}

impl AskedRows {
    /// To be called in a transaction.
    pub(crate) fn read(table: u32, rows: &Rows) -> Result<AskedRows, Refusal> {
        let oid = pg_sys::Oid::from(table);
        // SAFETY: in a transaction, whose end closes and unlocks the table and frees the rows.
        unsafe {
            pg_sys::LockRelationOid(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            let table = pg_sys::RelationIdGetRelation(oid);
            if table.is_null() {
                let code = PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE;
                return Err(Refusal::new(code, "the table is gone"));
            }
            let store = pg_sys::tuplestore_begin_heap(false, false, pg_sys::work_mem);
            let mut asked = AskedRows { table, store, count: 0 };
            let mut columns = asked.columns(&rows.columns);
            for row in rows.each() {
                let texts = row.map_err(|_| Refusal::internal("the rows cannot be read"))?;
                asked.add(&mut columns, &texts);
            }
            Ok(asked)
        }
    }

    /// `None`: of a column that the table does not have any more, which no policy can look at.
    unsafe fn columns(&self, attnums: &[i16]) -> Vec<Option<Column>> {
        // SAFETY: the table is open.
        unsafe {
            let descriptor = (*self.table).rd_att;
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            let column = |attnum: &i16| {
                let index = usize::try_from(*attnum).ok()?.checked_sub(1)?;
                let attribute = (index < count).then(|| compat::attribute(descriptor, index))?;
                (!attribute.attisdropped).then(|| Column::of(index, attribute.atttypid))
            };
            attnums.iter().map(column).collect()
        }
    }

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
            pg_sys::heap_freetuple(row);
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
            (*found).md.reliddesc = (*self.table).rd_id;
            (*found).md.enrtype = pg_sys::EphemeralNameRelationType::ENR_NAMED_TUPLESTORE;
            (*found).md.enrtuples = self.count as f64;
            (*found).reldata = self.store.cast();
            let environment = pg_sys::create_queryEnv();
            pg_sys::register_ENR(environment, found);
            environment
        }
    }
}

/// How the texts of a column's values are read.
struct Column {
    /// In the table's rows.
    index: usize,
    input: Box<pg_sys::FmgrInfo>,
    parameter: pg_sys::Oid,
    /// Of an array of a domain, which is read as one of the domain's base type.
    element: Option<pg_sys::Oid>,
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
            Column { index, input, parameter, element }
        }
    }

    /// The value, in the current memory context.
    unsafe fn read(&mut self, text: &str) -> pg_sys::Datum {
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
