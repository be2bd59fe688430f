//! Tables as of the change that is being decoded: whether they are outboxes, or how they are
//! published, and how their rows become events. Found out once and kept until the catalogue says that something has changed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CStr;
use std::sync::Arc;

use pgrx::pg_sys;
use tide_feed::event::{Column, Kind, Relation};
use tide_feed::labels::Labels;

use crate::compat;
use crate::encoding::Encoding;
use crate::source::invalidation::Stale;
use crate::source::outbox::{Outbox, Registration};
use crate::source::publication::{Operations, Publishing};
use crate::source::row_filter::RowFilter;
use crate::source::value::{Origins, Text, Value};
use crate::source::{publication, row_filter};
use crate::type_form;

/// A table whose changes are published.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) relation: Arc<Relation>,
    pub(crate) operations: Operations,
    pub(crate) filter: Option<RowFilter>,
    /// One for each column of the relation.
    pub(crate) columns: Vec<PublishedColumn>,
    /// Published as another table, of which it is a partition.
    pub(crate) is_via_root: bool,
    /// The hub knows that there are events of it.
    is_announced: bool,
    origins: Origins,
    _memory: Memory,
}

#[derive(Debug)]
pub(crate) struct PublishedColumn {
    /// Index of the column in the table's own rows.
    pub(crate) source: usize,
    pub(crate) is_varlena: bool,
    pub(crate) is_identity: bool,
    pub(crate) value: Value,
    /// Of a lossy column of a table with row-level security: how its texts are made.
    pub(crate) text: Option<Text>,
}

/// Texts are made of arrays and composites that are no deeper within one another.
const DEEPEST_TEXT: usize = 4;

/// What is known of a table that has changed.
#[derive(Debug)]
enum Known {
    /// Its changes are nobody's business; or this entry is stale.
    Nothing,
    Published(Published),
    Outbox {
        outbox: Box<Outbox>,
        _memory: Memory,
    },
}

/// What is known of tables that have changed, published or not.
#[derive(Debug, Default)]
pub(crate) struct Relations {
    entries: Vec<Known>,
    index: HashMap<u32, usize>,
    /// The last one found: changes come in runs.
    last: Option<(u32, usize)>,
    /// Tables that events have ever been of.
    seen: HashSet<u32>,
}

impl Relations {
    /// Where the table is in this cache; see [`Relations::get`].
    ///
    /// # Safety
    /// Under a historic snapshot, with a relation that it has opened.
    pub(crate) unsafe fn find(&mut self, relation: pg_sys::Relation, publication: &CStr) -> usize {
        // SAFETY: as above.
        let id = unsafe { (*relation).rd_id }.to_u32();
        match self.last {
            Some((last, index)) if last == id => return index,
            _ => {}
        }
        let index = match self.index.get(&id) {
            Some(index) => *index,
            None => {
                // SAFETY: as above.
                let entry = unsafe { Known::of(relation, publication) };
                self.entries.push(entry);
                self.index.insert(id, self.entries.len() - 1);
                self.entries.len() - 1
            }
        };
        self.last = Some((id, index));
        index
    }

    /// The table at that place; `None`: not published.
    pub(crate) fn get(&mut self, index: usize) -> Option<&mut Published> {
        self.entries.get_mut(index)?.published()
    }

    /// The outbox at that place; `None`: the table is none.
    pub(crate) fn outbox(&mut self, index: usize) -> Option<&mut Outbox> {
        match self.entries.get_mut(index)? {
            Known::Outbox { outbox, .. } => Some(outbox),
            _ => None,
        }
    }

    /// The table that will have an event now, if it is its first in this process's life.
    pub(crate) fn first_event(&mut self, index: usize) -> Option<u32> {
        let published = self.entries.get_mut(index)?.published()?;
        if published.is_announced {
            return None;
        }
        published.is_announced = true;
        let table = published.relation.oid;
        self.seen.insert(table).then_some(table)
    }

    /// There is an event about a table, which need not be published.
    pub(crate) fn see(&mut self, table: u32) {
        self.seen.insert(table);
    }

    /// Whether there has ever been an event of the table.
    pub(crate) fn has_seen(&self, table: u32) -> bool {
        self.seen.contains(&table)
    }

    /// Forgets what has become stale; returns those of it whose types have changed, not they themselves.
    pub(crate) fn forget(&mut self, stale: &Stale) -> Vec<u32> {
        self.last = None;
        let mut retyped = Vec::new();
        if stale.all_relations {
            self.clear();
            return retyped;
        }
        let entries = &mut self.entries;
        self.index.retain(|id, index| {
            let Some(entry) = entries.get_mut(*index) else { return false };
            let is_stale = stale.relations.contains(id)
                || entry.published().is_some_and(|published| published.is_stale(stale));
            if is_stale {
                // A partition goes by its root's name.
                let published = entry.published().map(|published| published.relation.oid);
                retyped.extend(published.filter(|oid| !stale.relations.contains(oid)));
                *entry = Known::Nothing;
            }
            !is_stale
        });
        // The places of the forgotten are not used again one by one.
        if self.index.is_empty() {
            self.entries.clear();
        } else if self.entries.len() > 2 * self.index.len() + 64 {
            self.clear();
        }
        retyped
    }

    pub(crate) fn clear(&mut self) {
        self.last = None;
        self.index.clear();
        self.entries.clear();
    }
}

impl Known {
    unsafe fn of(relation: pg_sys::Relation, publication: &CStr) -> Known {
        // SAFETY: as for `Relations::find`. An outbox is none of the publication's business, even
        // if that is for all tables.
        unsafe {
            if let Some(registration) = Registration::of((*relation).rd_id) {
                let memory = Memory::new();
                let outbox = Box::new(Outbox::new(relation, registration, memory.0));
                return Known::Outbox { outbox, _memory: memory };
            }
            match Published::new(relation, publication) {
                Some(published) => Known::Published(published),
                None => Known::Nothing,
            }
        }
    }

    fn published(&mut self) -> Option<&mut Published> {
        match self {
            Known::Published(published) => Some(published),
            _ => None,
        }
    }
}

impl Published {
    unsafe fn new(relation: pg_sys::Relation, publication: &CStr) -> Option<Published> {
        // SAFETY: as for `Relations::find`. The table that it is published as is open for as long
        // as it is looked at.
        unsafe {
            let publishing = publication::of(relation, publication)?;
            if publishing.publish_as == (*relation).rd_id {
                return Some(Published::described(relation, relation, publishing));
            }
            let root = pg_sys::RelationIdGetRelation(publishing.publish_as);
            if root.is_null() {
                return None;
            }
            let published = Published::described(relation, root, publishing);
            pg_sys::RelationClose(root);
            Some(published)
        }
    }

    /// `table` has the rows, `target` is what they are published as.
    unsafe fn described(
        table: pg_sys::Relation,
        target: pg_sys::Relation,
        publishing: Publishing,
    ) -> Published {
        let memory = Memory::new();
        let mut origins = Origins::default();
        let encoding = Encoding::of_database();
        // SAFETY: as for `Relations::find`; what is kept is made in `memory`.
        unsafe {
            let descriptor = (*target).rd_att;
            let sources = row_filter::sources((*table).rd_att, descriptor);
            let identity = Identity::of(table);
            let mut columns = Vec::new();
            let mut published = Vec::new();
            for (index, source) in sources.iter().enumerate() {
                let attribute = compat::attribute(descriptor, index);
                let is_listed = |columns: &BTreeSet<i16>| columns.contains(&attribute.attnum);
                let Some(source) = *source else { continue };
                if compat::is_virtual(attribute)
                    || !publishing.columns.as_ref().is_none_or(is_listed)
                {
                    continue;
                }
                // The rows are the table's own: so are the types and the identity.
                let own = compat::attribute((*table).rd_att, source);
                let is_identity = identity.has(own.attnum);
                let value = Value::of(own.atttypid, memory.0, &mut origins, 0);
                let form = type_form::of(own.atttypid);
                let lossy = value.is_lossy();
                let has_text = lossy
                    && form.is_some()
                    && value.depth() <= DEEPEST_TEXT
                    && ((*(*target).rd_rel).relrowsecurity || identity.is_key(own.attnum));
                let text = has_text.then(|| Text::of(own.atttypid, memory.0));
                let labels = value.labels();
                columns.push(Column {
                    lossy,
                    form: form.unwrap_or(0),
                    ..column(attribute, is_identity, labels, encoding)
                });
                let is_varlena = own.attlen == -1;
                published.push(PublishedColumn { source, is_varlena, is_identity, value, text });
            }
            origins.relations.insert((*target).rd_id.to_u32());
            let filter =
                publishing.filter.map(|tree| RowFilter::new(&tree, target, sources, memory.0));
            let schema = (*(*target).rd_rel).relnamespace;
            let relation = Relation {
                oid: (*target).rd_id.to_u32(),
                schema: schema_name(schema, encoding),
                name: encoding.owned((*(*target).rd_rel).relname.data.as_ptr()),
                columns: columns.into(),
                identity_full: identity.is_full,
            };
            Published {
                relation: Arc::new(relation),
                operations: publishing.operations,
                filter,
                columns: published,
                is_via_root: (*target).rd_id != (*table).rd_id,
                is_announced: false,
                origins,
                _memory: memory,
            }
        }
    }

    /// Whether rows have texts of lossy columns.
    pub(crate) fn has_texts(&self) -> bool {
        self.columns.iter().any(|column| column.text.is_some())
    }

    fn is_stale(&self, stale: &Stale) -> bool {
        stale.relations.iter().any(|id| self.origins.relations.contains(id))
            || stale.types.iter().any(|hash| self.origins.types.contains(hash))
    }
}

unsafe fn column(
    attribute: &pg_sys::FormData_pg_attribute,
    identity: bool,
    labels: Vec<Arc<Labels>>,
    encoding: Encoding,
) -> Column {
    // SAFETY: as for `Relations::find`.
    unsafe {
        let base = pg_sys::getBaseType(attribute.atttypid);
        Column {
            attnum: attribute.attnum,
            name: encoding.owned(attribute.attname.data.as_ptr()),
            type_name: type_name(attribute.atttypid, encoding),
            kind: Kind::of(base.to_u32(), pg_sys::type_is_enum(base)),
            identity,
            labels: labels.into(),
            lossy: false,
            form: 0,
        }
    }
}

unsafe fn schema_name(schema: pg_sys::Oid, encoding: Encoding) -> Box<str> {
    // SAFETY: as for `Relations::find`.
    unsafe {
        let name = pg_sys::get_namespace_name(schema);
        if name.is_null() { Box::default() } else { encoding.owned(name) }
    }
}

/// `pg_type.typname`.
unsafe fn type_name(type_id: pg_sys::Oid, encoding: Encoding) -> Box<str> {
    // SAFETY: as for `Relations::find`; the row is read before it is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::TYPEOID as i32;
        let row = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(type_id));
        if row.is_null() {
            return Box::default();
        }
        let data = (*row).t_data.cast::<u8>().add(usize::from((*(*row).t_data).t_hoff));
        let form = data.cast::<pg_sys::FormData_pg_type>();
        let name = encoding.owned((*form).typname.data.as_ptr());
        pg_sys::ReleaseSysCache(row);
        name
    }
}

/// The columns by which a row is known.
#[derive(Debug)]
struct Identity {
    columns: BTreeSet<i16>,
    is_full: bool,
}

impl Identity {
    /// Whether the column is one of those that rows are told apart by.
    fn is_key(&self, attnum: i16) -> bool {
        self.columns.contains(&attnum)
    }

    /// With REPLICA IDENTITY FULL the old row has every column; the key is the primary one.
    unsafe fn of(table: pg_sys::Relation) -> Identity {
        // SAFETY: as for `Relations::find`; the index is open for as long as it is looked at.
        unsafe {
            let is_full = (*(*table).rd_rel).relreplident as u8 == pg_sys::REPLICA_IDENTITY_FULL;
            let index = if is_full {
                compat::primary_key_index(table)
            } else {
                pg_sys::RelationGetReplicaIndex(table)
            };
            let mut columns = BTreeSet::new();
            let index = if index == pg_sys::InvalidOid {
                std::ptr::null_mut()
            } else {
                pg_sys::RelationIdGetRelation(index)
            };
            if !index.is_null() {
                let form = (*index).rd_index;
                let count = usize::try_from((*form).indnkeyatts).unwrap_or(0);
                let numbers = (*form).indkey.values.as_ptr();
                columns.extend((0..count).map(|position| *numbers.add(position)));
                pg_sys::RelationClose(index);
            }
            Identity { columns, is_full }
        }
    }

    fn has(&self, attnum: i16) -> bool {
        self.columns.contains(&attnum)
    }
}

/// Memory of Postgres's that goes with its owner.
#[derive(Debug)]
struct Memory(pg_sys::MemoryContext);

impl Memory {
    fn new() -> Memory {
        // SAFETY: main thread; the name is a constant.
        Memory(unsafe {
            pg_sys::AllocSetContextCreateExtended(
                pg_sys::TopMemoryContext,
                c"pg_tide table".as_ptr(),
                0,
                1024,
                8192,
            )
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nothing of it is used any more. Deleting memory does not fail.
        unsafe { pg_sys::MemoryContextDelete(self.0) }
    }
}
