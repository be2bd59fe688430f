//! Outboxes as the decoder sees them: which tables were outboxes at a point of the WAL, and what
//! their rows say.

use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::Arc;

use pgrx::pg_sys;
use tide_feed::bounded::Overflow;
use tide_feed::channel;
use tide_feed::event::{BatchBuilder, Message, OutboxRow, Span, Unsaid};

use crate::compat;
use crate::encoding::Encoding;
use crate::source::value;
use crate::source::value::{Origins, Value};
use crate::tuple::Tuple;

/// Columns of `tide.outboxes`.
const RELATION: usize = 0;
const PRIVATE: usize = 1;
const GENERATION: usize = 2;

/// `locked_by` of a row that has been published.
const PUBLISHED: &str = "published";
/// What `locked_by` of a row that could not be published begins with.
pub(crate) const FAILED: &str = "failed: ";
/// Bytes of `locked_by`, unpacked, that mean something.
const LONGEST_MARK: usize = 64;
/// Bytes of a channel's name, unpacked, that can be one: each character in other encodings than
/// UTF-8 has fewer.
const LONGEST_CHANNEL: usize = channel::MAX_TOPIC;
/// SQLSTATE of a longer one.
const NAME_TOO_LONG: &str = "42622";
/// What is around data that are no object.
const WRAPPING: [&[u8]; 2] = [b"{\"data\":", b"}"];

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

    /// Whether the row that was inserted is to be published: not if it came as one that has been,
    /// or cannot be; nor, until the outbox is taken over by the slot `generation`, if it is
    /// another's than the catalog worker's, who puts all rows that wait in line.
    ///
    /// # Safety
    /// A row of this table.
    pub(crate) unsafe fn publishes(&self, row: &Tuple, generation: u32) -> bool {
        // SAFETY: as above. What is longer is none of ours.
        let locked_by = unsafe { self.text(row, self.locked_by.as_ref(), LONGEST_MARK) };
        let locked_by = locked_by.unwrap_or_default();
        if &*locked_by == PUBLISHED
            || locked_by.starts_with(FAILED)
            || flag(row, self.processed.as_ref()) == Some(true)
        {
            return false;
        }
        self.generation == Some(i64::from(generation)) || *locked_by == *mark(generation)
    }

    /// The message in a row, or the SQLSTATE that says why it is none. None of its values may be
    /// larger than `limit`.
    ///
    /// # Safety
    /// A row of this table, under a historic snapshot. Takes memory from the current context and
    /// does not give it back.
    pub(crate) unsafe fn message(
        &mut self,
        row: &Tuple,
        batch: &mut BatchBuilder,
        limit: usize,
    ) -> Result<Message, &'static str> {
        // SAFETY: as above, throughout.
        unsafe {
            let channel = self.text(row, self.channel.as_ref(), LONGEST_CHANNEL);
            let channel = channel.map_err(|_| NAME_TOO_LONG)?;
            let channel = match self.last_channel.take() {
                Some(last) if *last == *channel => last,
                _ => Arc::from(channel),
            };
            self.last_channel = Some(Arc::clone(&channel));
            let (payload, wrapped) = self.payload(row, batch).map_err(Overflow::sqlstate)?;
            let headers = match &mut self.headers {
                Some(column) => json(column, row, batch).map_err(Overflow::sqlstate)?,
                None => None,
            };
            let text = |column: &Option<Column>| {
                self.text(row, column.as_ref(), limit).map_err(Overflow::sqlstate)
            };
            Ok(Message {
                channel,
                name: text(&self.name)?,
                private: flag(row, self.is_private.as_ref()).unwrap_or(self.private),
                payload,
                wrapped,
                row: Some(OutboxRow {
                    table: self.table,
                    sequence_id: self.sequence_id(row),
                    mutation_id: text(&self.mutation_id)?,
                    rejected: flag(row, self.rejected.as_ref()).unwrap_or(false),
                    headers,
                }),
            })
        }
    }

    /// What can be said of a row that is no message.
    ///
    /// # Safety
    /// As for [`Outbox::message`].
    pub(crate) unsafe fn unsaid(&self, row: &Tuple) -> Unsaid {
        // SAFETY: as above.
        unsafe {
            let text = |column: &Option<Column>| {
                self.text(row, column.as_ref(), LONGEST_CHANNEL).unwrap_or_default()
            };
            let unsaid = self.unsaid_without_a_name(row);
            let mutation_id = text(&self.mutation_id);
            let row = unsaid.row.map(|row| OutboxRow { mutation_id, ..row });
            Unsaid { channel: text(&self.channel).into(), row, ..unsaid }
        }
    }

    /// [`Outbox::unsaid`] without what is not in the row as it is.
    ///
    /// # Safety
    /// As for [`Outbox::message`].
    pub(crate) unsafe fn unsaid_without_a_name(&self, row: &Tuple) -> Unsaid {
        let private = flag(row, self.is_private.as_ref()).unwrap_or(self.private);
        let row = OutboxRow {
            table: self.table,
            sequence_id: self.sequence_id(row),
            mutation_id: Box::default(),
            rejected: false,
            headers: None,
        };
        Unsaid { channel: "".into(), private, row: Some(row) }
    }

    /// The data as an object; whether it had to be made one.
    unsafe fn payload(
        &mut self,
        row: &Tuple,
        batch: &mut BatchBuilder,
    ) -> Result<(Span, bool), Overflow> {
        let [before, after] = WRAPPING;
        let data = &mut self.data;
        let (span, ()) = batch.push_span(|out| {
            out.extend_from_slice(before)?;
            // SAFETY: as for `message`.
            match data.as_mut().and_then(|column| Some((unsafe { there(column, row) }?, column))) {
                // SAFETY: as for `message`.
                Some((datum, column)) => unsafe { column.value.write(datum, out)? },
                None => out.extend_from_slice(b"null")?,
            }
            out.extend_from_slice(after)
        })?;
        if batch.bytes(span).get(before.len()) == Some(&b'{') {
            return Ok((span.inner(before.len() as u32, after.len() as u32), false));
        }
        Ok((span, true))
    }

    fn sequence_id(&self, row: &Tuple) -> i64 {
        let Some(column) = &self.sequence_id else { return 0 };
        let Some(datum) = row.get(column.index) else { return 0 };
        match column.value {
            Value::Int4 => i64::from(datum.value() as i32),
            _ => datum.value() as i64,
        }
    }

    /// A column's text, of up to `longest` bytes; empty if it is NULL or missing.
    unsafe fn text(
        &self,
        row: &Tuple,
        column: Option<&Column>,
        longest: usize,
    ) -> Result<Box<str>, Overflow> {
        let column = column.filter(|column| matches!(column.value, Value::Text(_)));
        let Some(datum) = column.and_then(|column| row.get(column.index)) else {
            return Ok(Box::default());
        };
        // SAFETY: a value of text or varchar; what the WAL has of an inserted row is never on disk.
        unsafe {
            if value::is_on_disk(datum) || value::size(datum) > longest {
                return Err(Overflow::Limit);
            }
            let text = value::text(datum, self.encoding);
            let mut owned = String::new();
            owned.try_reserve_exact(text.len()).map_err(|_| Overflow::Memory)?;
            owned.push_str(&text);
            Ok(owned.into())
        }
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

/// `locked_by` of a row that the catalog worker has put in line for the slot of this generation.
pub(crate) fn mark(generation: u32) -> String {
    format!("tide {generation}")
}

fn flag(row: &Tuple, column: Option<&Column>) -> Option<bool> {
    let column = column.filter(|column| matches!(column.value, Value::Bool))?;
    row.get(column.index).map(|datum| datum.value() as u8 != 0)
}

/// A column's JSON; `None` if it is NULL.
unsafe fn json(
    column: &mut Column,
    row: &Tuple,
    batch: &mut BatchBuilder,
) -> Result<Option<Span>, Overflow> {
    // SAFETY: a value of the column's type.
    unsafe {
        let Some(datum) = there(column, row) else { return Ok(None) };
        let (span, ()) = batch.push_span(|out| column.value.write(datum, out))?;
        Ok(Some(span))
    }
}

/// A value of variable length, if it is there.
unsafe fn there(column: &Column, row: &Tuple) -> Option<pg_sys::Datum> {
    let datum = row.get(column.index).filter(|_| column.is_varlena)?;
    // SAFETY: a value of the column's type; what the WAL has of an inserted row is never on disk.
    (!unsafe { value::is_on_disk(datum) }).then_some(datum)
}
