//! Outboxes as the decoder sees them: which tables were outboxes at a point of the WAL, and what
//! their rows say.

use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::Arc;

use pgrx::pg_sys;
use tide_feed::event::{Batch, Message, OutboxRow, Span};
use tide_feed::payload::write_payload;

use crate::encoding::Encoding;
use crate::source::value;
use crate::source::value::{Origins, Value};
use crate::tuple::Tuple;
use crate::{compat, tuple};

/// Columns of `tide.outboxes`.
const RELATION: usize = 0;
const PRIVATE: usize = 1;
const GENERATION: usize = 2;

/// `locked_by` of a row that has been published.
const PUBLISHED: &str = "published";

/// A table whose inserted rows are messages.
#[derive(Debug)]
pub(crate) struct Outbox {
    table: u32,
    /// Where there is no column to say so.
    private: bool,
    /// The slot that has taken it over.
    generation: Option<i64>,
    encoding: Encoding,
    sequence_id: Option<Column>,
    mutation_id: Option<Column>,
    channel: Option<Column>,
    name: Option<Column>,
    rejected: Option<Column>,
    data: Option<Column>,
    headers: Option<Column>,
    locked_by: Option<Column>,
    processed: Option<Column>,
    is_private: Option<Column>,
    /// The channel of the row before: rows of one channel come in runs.
    last_channel: Option<Arc<str>>,
}

#[derive(Debug)]
struct Column {
    /// In the table's rows.
    index: usize,
    is_varlena: bool,
    value: Value,
}

/// What `tide.outboxes` says of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registration {
    private: bool,
    generation: Option<i64>,
}

impl Registration {
    /// `None`: the table is no outbox.
    ///
    /// # Safety
    /// Under a historic snapshot.
    pub(crate) unsafe fn of(table: pg_sys::Oid) -> Option<Registration> {
        // SAFETY: as above. `tide.outboxes` is a catalogue table of a user's, so the historic
        // snapshot can read it. It is open for as long as it is looked at.
        unsafe {
            let schema = pg_sys::get_namespace_oid(c"tide".as_ptr(), true);
            if schema == pg_sys::InvalidOid {
                return None;
            }
            let list = pg_sys::get_relname_relid(c"outboxes".as_ptr(), schema);
            if list == pg_sys::InvalidOid {
                return None;
            }
            let list = pg_sys::RelationIdGetRelation(list);
            if list.is_null() {
                return None;
            }
            let found = Registration::search(list, table);
            pg_sys::RelationClose(list);
            found
        }
    }

    unsafe fn search(list: pg_sys::Relation, table: pg_sys::Oid) -> Option<Registration> {
        let mut found = None;
        let mut row = Tuple::default();
        // SAFETY: as for `of`; the rows are of that table, and looked at before the scan ends.
        unsafe {
            let scan = pg_sys::systable_beginscan(
                list,
                pg_sys::InvalidOid,
                false,
                null_mut(),
                0,
                null_mut(),
            );
            loop {
                let next = pg_sys::systable_getnext(scan);
                if next.is_null() {
                    break;
                }
                row.read(next, (*list).rd_att);
                let is_it =
                    row.get(RELATION).is_some_and(|oid| oid.value() as u32 == table.to_u32());
                if is_it {
                    found = Some(Registration {
                        private: row.get(PRIVATE).is_none_or(|flag| flag.value() as u8 != 0),
                        generation: row.get(GENERATION).map(|generation| generation.value() as i64),
                    });
                    break;
                }
            }
            pg_sys::systable_endscan(scan);
        }
        found
    }
}

impl Outbox {
    /// # Safety
    /// Under a historic snapshot, with a relation that it has opened. `memory` outlives the outbox.
    pub(crate) unsafe fn new(
        relation: pg_sys::Relation,
        registration: Registration,
        memory: pg_sys::MemoryContext,
    ) -> Outbox {
        let encoding = Encoding::of_database();
        // SAFETY: as above.
        let column = |name: &CStr| unsafe { Column::of(relation, name, memory) };
        Outbox {
            // SAFETY: as above.
            table: unsafe { (*relation).rd_id }.to_u32(),
            private: registration.private,
            generation: registration.generation,
            encoding,
            sequence_id: column(c"sequence_id"),
            mutation_id: column(c"mutation_id"),
            channel: column(c"channel"),
            name: column(c"name"),
            rejected: column(c"rejected"),
            data: column(c"data"),
            headers: column(c"headers"),
            locked_by: column(c"locked_by"),
            processed: column(c"processed"),
            is_private: column(c"private"),
            last_channel: None,
        }
    }

    /// Whether the table has the columns without which nothing can be published. They may have gone
    /// since it was adopted.
    pub(crate) fn is_whole(&self) -> bool {
        let required =
            [&self.sequence_id, &self.mutation_id, &self.channel, &self.name, &self.locked_by];
        required.iter().all(|column| column.is_some())
    }

    /// Whether the row that was inserted is to be published: not if it came as one that has been;
    /// nor, until the outbox is taken over by the slot `generation`, if it is another's than the
    /// steward's, who puts all rows that wait in line.
    ///
    /// # Safety
    /// A row of this table.
    pub(crate) unsafe fn publishes(&self, row: &Tuple, generation: u32) -> bool {
        // SAFETY: as above.
        let locked_by = unsafe { self.text(row, self.locked_by.as_ref()) };
        if &*locked_by == PUBLISHED || flag(row, self.processed.as_ref()) == Some(true) {
            return false;
        }
        self.generation == Some(i64::from(generation)) || *locked_by == *mark(generation)
    }

    /// The message in a row.
    ///
    /// # Safety
    /// A row of this table, under a historic snapshot. Takes memory from the current context and
    /// does not give it back.
    pub(crate) unsafe fn message(&mut self, row: &Tuple, batch: &mut Batch) -> Message {
        // SAFETY: as above, throughout.
        unsafe {
            let channel = self.text(row, self.channel.as_ref());
            let channel = match self.last_channel.take() {
                Some(last) if *last == *channel => last,
                _ => Arc::from(&*channel),
            };
            self.last_channel = Some(Arc::clone(&channel));
            let (payload, wrapped) = self.payload(row, batch);
            let headers = self
                .headers
                .as_mut()
                .and_then(|column| json(column, row, batch))
                .map(|(span, _)| span);
            Message {
                channel,
                name: self.text(row, self.name.as_ref()),
                private: flag(row, self.is_private.as_ref()).unwrap_or(self.private),
                payload,
                wrapped,
                row: Some(OutboxRow {
                    table: self.table,
                    sequence_id: self.sequence_id(row),
                    mutation_id: self.text(row, self.mutation_id.as_ref()),
                    rejected: flag(row, self.rejected.as_ref()).unwrap_or(false),
                    headers,
                }),
            }
        }
    }

    /// The data as an object; whether it had to be made one.
    unsafe fn payload(&mut self, row: &Tuple, batch: &mut Batch) -> (Span, bool) {
        // SAFETY: as for `message`.
        let data = self.data.as_mut().and_then(|column| unsafe { json(column, row, batch) });
        let value = match data {
            Some((span, true)) => return (span, false),
            Some((span, false)) => batch.bytes(span).to_owned(),
            None => b"null".to_vec(),
        };
        batch.push_span(|out| write_payload(out, &value))
    }

    fn sequence_id(&self, row: &Tuple) -> i64 {
        let Some(column) = &self.sequence_id else { return 0 };
        let Some(datum) = row.get(column.index) else { return 0 };
        match column.value {
            Value::Int4 => i64::from(datum.value() as i32),
            _ => datum.value() as i64,
        }
    }

    /// A column's text; empty if it is NULL or missing.
    unsafe fn text(&self, row: &Tuple, column: Option<&Column>) -> Box<str> {
        let Some(column) = column.filter(|column| matches!(column.value, Value::Text(_))) else {
            return Box::default();
        };
        // SAFETY: a value of text or varchar.
        row.get(column.index)
            .map(|datum| unsafe { value::text(datum, self.encoding) }.into())
            .unwrap_or_default()
    }
}

impl Column {
    /// # Safety
    /// As for [`Outbox::new`].
    unsafe fn of(
        relation: pg_sys::Relation,
        name: &CStr,
        memory: pg_sys::MemoryContext,
    ) -> Option<Column> {
        // SAFETY: as above. The types are Postgres's own, so that nothing makes them stale.
        unsafe {
            let descriptor = (*relation).rd_att;
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            let index = (0..count).find(|index| {
                let attribute = compat::attribute(descriptor, *index);
                !attribute.attisdropped && CStr::from_ptr(attribute.attname.data.as_ptr()) == name
            })?;
            let attribute = compat::attribute(descriptor, index);
            Some(Column {
                index,
                is_varlena: attribute.attlen == -1,
                value: Value::of(attribute.atttypid, memory, &mut Origins::default(), 0),
            })
        }
    }
}

/// `locked_by` of a row that the steward has put in line for the slot of this generation.
pub(crate) fn mark(generation: u32) -> String {
    format!("tide {generation}")
}

fn flag(row: &Tuple, column: Option<&Column>) -> Option<bool> {
    let column = column.filter(|column| matches!(column.value, Value::Bool))?;
    row.get(column.index).map(|datum| datum.value() as u8 != 0)
}

/// A column's JSON, and whether it is an object; `None` if it is NULL.
unsafe fn json(column: &mut Column, row: &Tuple, batch: &mut Batch) -> Option<(Span, bool)> {
    let datum = row.get(column.index)?;
    if !column.is_varlena {
        return None;
    }
    // SAFETY: a value of the column's type; what the WAL has of an inserted row is never on disk.
    let (span, ()) = unsafe {
        if value::is_on_disk(datum) {
            return None;
        }
        tuple::assert_size(value::size(datum));
        batch.push_span(|out| column.value.write(datum, out))
    };
    Some((span, batch.bytes(span).first() == Some(&b'{')))
}
