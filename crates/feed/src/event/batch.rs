//! Rows of events: bytes in one arena, and where in it they are.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Datum, Event};
use crate::bounded::{Bounded, Overflow};

/// A value's place in its batch's arena, or why it has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    start: u32,
    len: u32,
}

impl Field {
    const NULL: u32 = u32::MAX;
    const UNCHANGED: u32 = u32::MAX - 1;
    const ABSENT: u32 = u32::MAX - 2;

    const fn none(why: u32) -> Field {
        Field { start: 0, len: why }
    }

    pub(super) fn to_bytes(self) -> [u8; FIELD] {
        (u64::from(self.start) | u64::from(self.len) << 32).to_le_bytes()
    }

    fn from_bytes(bytes: [u8; FIELD]) -> Field {
        let both = u64::from_le_bytes(bytes);
        Field { start: both as u32, len: (both >> 32) as u32 }
    }
}

/// Bytes of a field on the link.
pub(super) const FIELD: usize = 8;

/// Bytes of a batch's arena at the most: every place in it fits 32 bits, and no length is one of
/// those that say why there is no value.
pub(super) const MOST_BYTES: usize = (u32::MAX - 3) as usize;

/// A row in a batch: as many fields as the relation has columns, and texts of some: see
/// [`super::Relation::text_index`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Row {
    first: u32,
    len: u32,
}

impl Row {
    pub(super) fn to_numbers(self) -> [u32; 2] {
        [self.first, self.len]
    }

    pub(super) fn from_numbers([first, len]: [u32; 2]) -> Row {
        Row { first, len }
    }
}

/// A row together with the batch that holds its bytes.
#[derive(Clone, Copy)]
pub struct RowRef<'a> {
    arena: &'a [u8],
    /// [`FIELD`] bytes each.
    fields: &'a [u8],
}

impl<'a> RowRef<'a> {
    /// The value of the column at `index` in [`super::Relation::columns`]; `Absent` past the end.
    pub fn get(&self, index: usize) -> Datum<'a> {
        let (fields, _) = self.fields.as_chunks::<FIELD>();
        let Some(field) = fields.get(index) else { return Datum::Absent };
        let field = Field::from_bytes(*field);
        match field.len {
            Field::NULL => Datum::Null,
            Field::UNCHANGED => Datum::Unchanged,
            Field::ABSENT => Datum::Absent,
            len => {
                let start = field.start as usize;
                self.arena.get(start..start + len as usize).map_or(Datum::Absent, Datum::Json)
            }
        }
    }

    pub fn len(&self) -> usize {
        self.fields.len() / FIELD
    }

    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }
}

/// A piece of a batch's arena: see [`Batch::bytes`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    /// The part of this one that begins `from` bytes after its beginning and ends `before` its end.
    #[must_use]
    pub fn inner(self, from: u32, before: u32) -> Span {
        Span {
            start: self.start.saturating_add(from),
            len: self.len.saturating_sub(from).saturating_sub(before),
        }
    }
}

/// Events with the bytes of their rows, as they came over the link: rows are read where they lie.
/// Shared, and never changed.
pub struct Batch {
    arena: Bytes,
    /// [`FIELD`] bytes each.
    fields: Bytes,
    pub events: Vec<Event>,
}

impl Batch {
    pub(super) fn new(arena: Bytes, fields: Bytes, events: Vec<Event>) -> Batch {
        Batch { arena, fields, events }
    }

    pub fn row(&self, row: Row) -> RowRef<'_> {
        let first = (row.first as usize).saturating_mul(FIELD);
        let end = first.saturating_add((row.len as usize).saturating_mul(FIELD));
        RowRef { arena: &self.arena, fields: self.fields.get(first..end).unwrap_or_default() }
    }

    pub fn bytes(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        self.arena.get(start..start.saturating_add(span.len as usize)).unwrap_or_default()
    }

    /// Bytes that this batch keeps in memory.
    pub fn size(&self) -> usize {
        self.arena.len() + self.fields.len() + self.events.capacity() * size_of::<Event>()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("events", &self.events.len()).finish_non_exhaustive()
    }
}

/// A batch that the decoder adds events to.
#[derive(Debug)]
pub struct BatchBuilder {
    arena: Vec<u8>,
    fields: Vec<Field>,
    pub events: Vec<Event>,
    /// Where the newest event's bytes begin, and how many it may have.
    begun: usize,
    limit: usize,
}

impl Default for BatchBuilder {
    fn default() -> BatchBuilder {
        let (arena, fields, events) = (Vec::new(), Vec::new(), Vec::new());
        BatchBuilder { arena, fields, events, begun: 0, limit: MOST_BYTES }
    }
}

impl BatchBuilder {
    /// Empties it. Memory beyond what a batch usually needs is given back.
    pub fn clear(&mut self, usual_bytes: usize) {
        self.arena.clear();
        self.fields.clear();
        self.events.clear();
        self.arena.shrink_to(usual_bytes);
        self.fields.shrink_to(usual_bytes / size_of::<Field>());
        self.begun = 0;
    }

    /// What was added as a span.
    pub fn bytes(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        self.arena.get(start..start.saturating_add(span.len as usize)).unwrap_or_default()
    }

    pub(super) fn arena(&self) -> &[u8] {
        &self.arena
    }

    pub(super) fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Bytes of row data so far.
    pub fn len(&self) -> usize {
        self.arena.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// From now on bytes are another event's, which may have no more than `limit` of them.
    pub fn begin_event(&mut self, limit: usize) {
        self.begun = self.arena.len();
        self.limit = limit;
    }

    /// Begins a row; values are added by the `push_` methods, one per column, in order.
    pub fn begin_row(&mut self) -> RowStart {
        RowStart { field: self.fields.len(), byte: self.arena.len() }
    }

    /// Ends the row begun at `start`.
    pub fn end_row(&mut self, start: &RowStart) -> Result<Row, Overflow> {
        let len = self.fields.len().saturating_sub(start.field);
        Ok(Row { first: place(start.field)?, len: place(len)? })
    }

    /// Forgets everything since `start`: a row whose conversion failed half way.
    pub fn abandon_row(&mut self, start: &RowStart) {
        self.fields.truncate(start.field);
        self.arena.truncate(start.byte);
    }

    pub fn push_null(&mut self) {
        self.fields.push(Field::none(Field::NULL));
    }

    pub fn push_unchanged(&mut self) {
        self.fields.push(Field::none(Field::UNCHANGED));
    }

    pub fn push_absent(&mut self) {
        self.fields.push(Field::none(Field::ABSENT));
    }

    /// Adds a value: `write` appends its JSON to the arena. Adds nothing if that fails.
    pub fn push_json<R, E: From<Overflow>>(
        &mut self,
        write: impl FnOnce(&mut Bounded<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        let (Span { start, len }, result) = self.push_span(write)?;
        self.fields.push(Field { start, len });
        Ok(result)
    }

    /// Puts a value where the row, which has been ended, has none, as [`BatchBuilder::push_json`] adds
    /// one.
    pub fn fill<E: From<Overflow>>(
        &mut self,
        row: Row,
        index: usize,
        write: impl FnOnce(&mut Bounded<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (Span { start, len }, ()) = self.push_span(write)?;
        if let Some(field) = self.fields.get_mut(row.first as usize + index) {
            *field = Field { start, len };
        }
        Ok(())
    }

    /// Bytes of a value in a row; 0: it has none.
    pub fn size_of(&self, row: Row, index: usize) -> usize {
        let field = self.fields.get(row.first as usize + index);
        field.filter(|field| field.len < Field::ABSENT).map_or(0, |field| field.len as usize)
    }

    /// Adds bytes that belong to no row: `write` appends them to the arena. Adds nothing if that
    /// fails.
    pub fn push_span<R, E: From<Overflow>>(
        &mut self,
        write: impl FnOnce(&mut Bounded<'_>) -> Result<R, E>,
    ) -> Result<(Span, R), E> {
        let start = self.arena.len();
        let end = self.begun.saturating_add(self.limit).min(MOST_BYTES);
        let result = write(&mut Bounded::new(&mut self.arena, end, self.limit));
        let span = result.and_then(|result| {
            let len = place(self.arena.len().saturating_sub(start))?;
            Ok((Span { start: place(start)?, len }, result))
        });
        if span.is_err() {
            self.arena.truncate(start);
        }
        span
    }
}

#[cfg(any(test, feature = "test-support"))]
impl BatchBuilder {
    /// The batch as it comes out at the other end of a link.
    ///
    /// # Panics
    /// It does not.
    pub fn finish(&self) -> Batch {
        let bytes = super::bytes::BatchWriter::default().write(self).concat();
        super::bytes::Relations::default().read(bytes.into()).expect("what was written can be read")
    }

    /// A row of these values: JSON, `unchanged`, or absent.
    pub fn row_of(&mut self, values: &[Option<&str>]) -> Row {
        let start = self.begin_row();
        for value in values {
            match value {
                Some("unchanged") => self.push_unchanged(),
                Some(json) => self.push_text(json),
                None => self.push_absent(),
            }
        }
        self.end_row(&start).expect("a small row")
    }

    /// [`BatchBuilder::push_json`] of what is JSON already.
    pub fn push_text(&mut self, json: &str) {
        let written: Result<(), Overflow> =
            self.push_json(|out| out.extend_from_slice(json.as_bytes()));
        written.expect("a small value");
    }

    /// [`BatchBuilder::push_span`] of a text.
    pub fn span_of(&mut self, text: &str) -> Span {
        let written: Result<(Span, ()), Overflow> =
            self.push_span(|out| out.extend_from_slice(text.as_bytes()));
        written.expect("a small text").0
    }
}

/// A place in a batch, which must fit 32 bits.
pub(super) fn place(at: usize) -> Result<u32, Overflow> {
    u32::try_from(at).ok().filter(|place| *place as usize <= MOST_BYTES).ok_or(Overflow::Limit)
}

/// Where a row began in its batch.
#[derive(Debug)]
pub struct RowStart {
    field: usize,
    byte: usize,
}
