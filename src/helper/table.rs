//! A table, and its columns, as SQL has to write them.

use pgrx::{PgSqlErrorCode, pg_sys};

use tide_feed::catalog::OUTDATED;

use crate::compat;
use crate::encoding;
use crate::helper::answer::encode;
use crate::helper::transaction::Refusal;

/// Opens a table, and locks it against changes of its definition. To be called in a transaction, whose end
/// closes and unlocks it.
pub(crate) fn open(table: u32) -> Result<pg_sys::Relation, Refusal> {
    let oid = pg_sys::Oid::from(table);
    // SAFETY: in a transaction, as above.
    unsafe {
        pg_sys::LockRelationOid(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let relation = pg_sys::RelationIdGetRelation(oid);
        if relation.is_null() {
            let code = PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE;
            return Err(Refusal::new(code, "the table is gone"));
        }
        let kind = (*(*relation).rd_rel).relkind as u8;
        if ![pg_sys::RELKIND_RELATION, pg_sys::RELKIND_PARTITIONED_TABLE].contains(&kind) {
            return Err(Refusal::internal("only tables have rows that can be asked about"));
        }
        Ok(relation)
    }
}

/// A table that is locked against changes of its definition, until the end of the transaction.
pub(crate) struct Table(pg_sys::Relation);

/// A column, as SQL has to write it.
pub(crate) struct Column {
    /// Quoted.
    pub(crate) name: String,
    /// Without a modifier: with one, values that do not fit would be cut.
    pub(crate) type_sql: String,
    pub(crate) type_id: pg_sys::Oid,
    /// It is a domain over that type.
    is_domain: bool,
    /// The collation that its values are ordered by, as SQL writes it; of types that have one.
    pub(crate) collation: Option<String>,
    /// A string of JSON.
    pub(crate) json_name: String,
}

impl Column {
    /// One of a query's that is a text.
    pub(crate) fn of_text(name: &str) -> Column {
        Column {
            name: name.to_owned(),
            type_sql: "pg_catalog.text".into(),
            type_id: pg_sys::TEXTOID,
            is_domain: false,
            collation: None,
            json_name: format!("\"{name}\""),
        }
    }

    /// As its values are ordered and told apart: by the operators of its type, whatever others there are
    /// for the domain.
    pub(crate) fn ordered(&self) -> String {
        let cast = if self.is_domain { format!("::{}", self.type_sql) } else { String::new() };
        format!("({}{cast}{})", self.name, self.collate())
    }

    /// Its name without that of the table before it.
    pub(crate) fn bare(&self) -> &str {
        self.name.strip_prefix("t.").unwrap_or(&self.name)
    }

    pub(crate) fn collate(&self) -> String {
        self.collation.iter().map(|name| format!(" collate {name}")).collect()
    }

    /// A value of its type.
    pub(crate) fn literal(&self, text: &str) -> String {
        format!("{}::{}", quoted(text), self.type_sql)
    }
}

impl Table {
    pub(crate) fn open(table: u32) -> Result<Table, Refusal> {
        open(table).map(Table)
    }

    /// Closes it, in a transaction that is to be committed; it stays locked. An error closes it as well.
    pub(crate) fn close(self) {
        // SAFETY: it is open, and nobody else has it.
        unsafe { pg_sys::RelationClose(self.0) };
    }

    /// As SQL names it.
    pub(crate) fn qualified(&self) -> String {
        // SAFETY: the table is open; the texts are copied.
        unsafe {
            let class = &*(*self.0).rd_rel;
            let schema = pg_sys::get_namespace_name(class.relnamespace);
            let name = pg_sys::quote_qualified_identifier(schema, class.relname.data.as_ptr());
            encoding::Encoding::of_database().owned(name).into()
        }
    }

    /// As SQL names its rows. Of tables that inherit from it nothing is streamed by its name.
    pub(crate) fn name(&self) -> String {
        // SAFETY: the table is open.
        let is_leaf = unsafe { (*(*self.0).rd_rel).relkind as u8 == pg_sys::RELKIND_RELATION };
        format!("{}{}", if is_leaf { "only " } else { "" }, self.qualified())
    }

    /// Whether row-level security is on, or there are rules.
    pub(crate) fn is_rewritten(&self) -> bool {
        // SAFETY: the table is open.
        unsafe {
            let class = &*(*self.0).rd_rel;
            class.relrowsecurity || class.relhasrules
        }
    }

    /// Whether code of its owner's may see to it that an UPDATE or DELETE of a row is something else.
    pub(crate) fn may_be_diverted(&self) -> bool {
        // SAFETY: the table is open.
        unsafe {
            let triggers = (*self.0).trigdesc.as_ref();
            let by_trigger = triggers.is_some_and(|triggers| {
                triggers.trig_update_before_row || triggers.trig_delete_before_row
            });
            by_trigger || (*(*self.0).rd_rel).relhasrules
        }
    }

    /// Whether a column's values are only ever made by Postgres.
    pub(crate) fn is_always_generated(&self, attnum: i16) -> bool {
        let index = usize::try_from(attnum).unwrap_or(0).saturating_sub(1);
        // SAFETY: the table is open, and has the column.
        unsafe { compat::attribute((*self.0).rd_att, index).attidentity as u8 == b'a' }
    }

    /// The columns that rows are told apart by in the WAL: of the replica identity, or, where that is all
    /// columns, of the primary key. None: it has no key, so that its rows are told apart by all of their
    /// values, or do not change. With the collations of the index behind it.
    pub(crate) fn key(&self) -> Result<Vec<(i16, pg_sys::Oid)>, Refusal> {
        // SAFETY: the table is open.
        unsafe {
            pg_sys::list_free(pg_sys::RelationGetIndexList(self.0));
            match (*(*self.0).rd_rel).relreplident as u8 {
                b'n' => {
                    let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
                    Err(Refusal::new(code, "the table has REPLICA IDENTITY NOTHING"))
                }
                b'f' => Ok(key_of((*self.0).rd_pkindex)),
                _ => Ok(key_of((*self.0).rd_replidindex)),
            }
        }
    }

    /// The columns that a client tells rows apart by: the primary key, or the replica identity's. None: it
    /// has neither.
    pub(crate) fn write_key(&self) -> Vec<(i16, pg_sys::Oid)> {
        // SAFETY: the table is open.
        unsafe {
            pg_sys::list_free(pg_sys::RelationGetIndexList(self.0));
            let primary = key_of((*self.0).rd_pkindex);
            if primary.is_empty() { key_of((*self.0).rd_replidindex) } else { primary }
        }
    }

    /// Whether a column besides these is of a domain that may not take NULL.
    pub(crate) fn has_constrained_domains_besides(&self, given: &[i16]) -> bool {
        // SAFETY: the table is open; catalogue look-ups.
        unsafe {
            let descriptor = (*self.0).rd_att;
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            (0..count).map(|index| compat::attribute(descriptor, index)).any(|attribute| {
                !attribute.attisdropped
                    && !given.contains(&attribute.attnum)
                    && pg_sys::get_typtype(attribute.atttypid) as u8 == pg_sys::TYPTYPE_DOMAIN
                    && pg_sys::DomainHasConstraints(attribute.atttypid)
            })
        }
    }

    pub(crate) fn column(&self, attnum: i16) -> Result<Column, Refusal> {
        let gone = || {
            let message = "the table has other columns by now";
            Refusal { sqlstate: OUTDATED.into(), message: message.into() }
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
            // "character" alone is one of one character, and "bit" of one bit.
            let flags = pg_sys::FORMAT_TYPE_TYPEMOD_GIVEN | pg_sys::FORMAT_TYPE_FORCE_QUALIFY;
            let flags = flags as u16;
            let collation = attribute.attcollation;
            let type_id = pg_sys::getBaseType(attribute.atttypid);
            let type_sql = pg_sys::format_type_extended(type_id, -1, flags);
            Ok(Column {
                name: format!("t.{name}"),
                type_sql: encoding.owned(type_sql).into(),
                type_id,
                is_domain: type_id != attribute.atttypid,
                collation: (collation != pg_sys::InvalidOid).then(|| collation_sql(collation)),
                json_name: encode(&plain)?,
            })
        }
    }

    /// The columns of a key, ordered as its index is.
    pub(crate) fn key_columns(&self, key: &[(i16, pg_sys::Oid)]) -> Result<Vec<Column>, Refusal> {
        let column = |(attnum, collation): &(i16, pg_sys::Oid)| {
            let column = self.column(*attnum)?;
            let has_one = *collation != pg_sys::InvalidOid;
            Ok(Column { collation: has_one.then(|| collation_sql(*collation)), ..column })
        };
        key.iter().map(column).collect()
    }

    pub(crate) fn columns(&self, attnums: &[i16]) -> Result<Vec<Column>, Refusal> {
        attnums.iter().map(|attnum| self.column(*attnum)).collect()
    }
}

/// The columns of an index that tells every two rows apart, with its collations; else none.
///
/// # Safety
/// In a transaction that has the index's table locked.
unsafe fn key_of(index: pg_sys::Oid) -> Vec<(i16, pg_sys::Oid)> {
    if index == pg_sys::InvalidOid {
        return Vec::new();
    }
    // SAFETY: as above; what is looked at is copied.
    unsafe {
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let index = pg_sys::index_open(index, lock);
        let form = &*(*index).rd_index;
        let count = usize::try_from(form.indnkeyatts).unwrap_or(0);
        let attnums = form.indkey.values.as_slice(count);
        let collations = std::slice::from_raw_parts((*index).rd_indcollation, count);
        let key = attnums.iter().copied().zip(collations.iter().copied()).collect();
        // Two rows may have the same key for a while, or for ever.
        let is_unique = form.indimmediate && form.indisvalid;
        pg_sys::index_close(index, lock);
        if is_unique { key } else { Vec::new() }
    }
}

/// A name, in quotes.
pub(crate) fn quoted_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name in a schema, in quotes.
pub(crate) fn quoted_names(schema: &str, name: &str) -> String {
    format!("{}.{}", quoted_name(schema), quoted_name(name))
}

/// A string, whatever it holds.
pub(crate) fn quoted(text: &str) -> String {
    // Whatever standard_conforming_strings is.
    if text.contains('\\') {
        return format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    }
    format!("'{}'", text.replace('\'', "''"))
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
