//! Which changes are published, as Postgres's own logical replication decides it: membership of
//! the table, its schema or a table it is a partition of; `publish_via_partition_root`;
//! operations; column list; row filter. All as of the change.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::ptr::null_mut;

use pgrx::pg_sys;
use pgrx::pg_sys::SysCacheIdentifier as Cache;
use tide_feed::event::Operation;

use crate::sys;

/// Columns of `pg_publication_rel`.
const FILTER: i16 = 4;
const COLUMNS: i16 = 5;

/// The operations that a publication publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operations {
    insert: bool,
    update: bool,
    delete: bool,
    truncate: bool,
}

impl Operations {
    pub(crate) fn include(self, operation: Operation) -> bool {
        match operation {
            Operation::Insert => self.insert,
            Operation::Update => self.update,
            Operation::Delete => self.delete,
            Operation::Truncate => self.truncate,
        }
    }
}

/// How the publication publishes a table.
#[derive(Debug)]
pub(crate) struct Publishing {
    /// The table itself or, by `publish_via_partition_root`, one above it.
    pub(crate) publish_as: pg_sys::Oid,
    pub(crate) operations: Operations,
    /// Column numbers of `publish_as`; all if there is no list.
    pub(crate) columns: Option<BTreeSet<i16>>,
    /// The row filter's expression tree as the catalogue has it.
    pub(crate) filter: Option<CString>,
}

/// `None`: changes of this table are not published, or there is no such publication.
///
/// # Safety
/// Under a historic snapshot, with a relation that it has opened.
pub(crate) unsafe fn of(relation: pg_sys::Relation, name: &CStr) -> Option<Publishing> {
    // SAFETY: as above. What the catalogue returns stays in the current memory context.
    unsafe {
        if !pg_sys::is_publishable_relation(relation) || is_own(relation) {
            return None;
        }
        let publication = pg_sys::GetPublicationByName(name.as_ptr(), true).as_ref()?;
        let publish_as = published_as(relation, publication)?;
        let kind = (*(*relation).rd_rel).relkind as u8;
        if kind == pg_sys::RELKIND_PARTITIONED_TABLE && !publication.pubviaroot {
            return None;
        }
        let actions = publication.pubactions;
        let operations = Operations {
            insert: actions.pubinsert,
            update: actions.pubupdate,
            delete: actions.pubdelete,
            truncate: actions.pubtruncate,
        };
        let (columns, filter) = membership(publication, publish_as);
        Some(Publishing { publish_as, operations, columns, filter })
    }
}

/// Whether it is one of pg_tide's own tables: a publication for all tables would stream its secrets.
unsafe fn is_own(relation: pg_sys::Relation) -> bool {
    // SAFETY: as for `of`.
    unsafe {
        let schema = pg_sys::get_namespace_name((*(*relation).rd_rel).relnamespace);
        !schema.is_null() && CStr::from_ptr(schema) == c"tide"
    }
}

/// Under which table's name the relation is published, if it is.
unsafe fn published_as(
    relation: pg_sys::Relation,
    publication: &pg_sys::Publication,
) -> Option<pg_sys::Oid> {
    // SAFETY: as for `of`.
    unsafe {
        let id = (*relation).rd_id;
        let ancestors = if (*(*relation).rd_rel).relispartition {
            sys::partition_ancestors(id)
        } else {
            null_mut()
        };
        let mut ancestor = pg_sys::InvalidOid;
        if publication.alltables {
            if !ancestors.is_null() {
                ancestor = last(ancestors);
            }
        } else {
            if !ancestors.is_null() {
                let mut level = 0;
                ancestor = pg_sys::GetTopMostAncestorInPublication(
                    publication.oid,
                    ancestors,
                    &raw mut level,
                );
            }
            let schema = (*(*relation).rd_rel).relnamespace;
            let is_member = ancestor != pg_sys::InvalidOid
                || pg_sys::list_member_oid(pg_sys::GetRelationPublications(id), publication.oid)
                || pg_sys::list_member_oid(pg_sys::GetSchemaPublications(schema), publication.oid);
            if !is_member {
                return None;
            }
        }
        let via_root = publication.pubviaroot && ancestor != pg_sys::InvalidOid;
        Some(if via_root { ancestor } else { id })
    }
}

/// The last of a list of oids that is not empty.
unsafe fn last(list: *mut pg_sys::List) -> pg_sys::Oid {
    // SAFETY: the list has as many elements as it says.
    unsafe {
        let index = usize::try_from((*list).length - 1).unwrap_or(0);
        (*(*list).elements.add(index)).oid_value
    }
}

fn oid(publication: &pg_sys::Publication) -> pg_sys::Datum {
    pg_sys::Datum::from(publication.oid)
}

/// The column list and the row filter. Publishing all tables or a whole schema overrides both.
unsafe fn membership(
    publication: &pg_sys::Publication,
    table: pg_sys::Oid,
) -> (Option<BTreeSet<i16>>, Option<CString>) {
    // SAFETY: as for `of`.
    unsafe {
        let schema = pg_sys::Datum::from(pg_sys::get_rel_namespace(table));
        let none = pg_sys::Datum::null();
        let by_schema = Cache::PUBLICATIONNAMESPACEMAP as i32;
        if publication.alltables
            || pg_sys::SearchSysCacheExists(by_schema, schema, oid(publication), none, none)
        {
            return (None, None);
        }
        let by_table = Cache::PUBLICATIONRELMAP as i32;
        let table = pg_sys::Datum::from(table);
        let row = pg_sys::SearchSysCache2(by_table, table, oid(publication));
        if row.is_null() {
            return (None, None);
        }
        let columns = attribute(row, COLUMNS).map(|columns| column_numbers(columns));
        let filter = attribute(row, FILTER).map(|tree| {
            let text: *mut c_char = pg_sys::text_to_cstring(tree.cast_mut_ptr());
            CStr::from_ptr(text).to_owned()
        });
        pg_sys::ReleaseSysCache(row);
        (columns, filter)
    }
}

unsafe fn attribute(row: pg_sys::HeapTuple, number: i16) -> Option<pg_sys::Datum> {
    let mut is_null = true;
    let cache = Cache::PUBLICATIONRELMAP as i32;
    // SAFETY: a row of that cache.
    let value = unsafe { pg_sys::SysCacheGetAttr(cache, row, number, &raw mut is_null) };
    (!is_null).then_some(value)
}

unsafe fn column_numbers(list: pg_sys::Datum) -> BTreeSet<i16> {
    let mut numbers = BTreeSet::new();
    // SAFETY: an int2vector; the set is made in the current memory context.
    unsafe {
        let memory = pg_sys::CurrentMemoryContext;
        let set = pg_sys::pub_collist_to_bitmapset(null_mut(), list, memory);
        let mut number = pg_sys::bms_next_member(set, -1);
        while number >= 0 {
            numbers.extend(i16::try_from(number));
            number = pg_sys::bms_next_member(set, number);
        }
    }
    numbers
}
