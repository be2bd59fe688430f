//! The form in which batches cross the link: one piece of bytes, whose rows are read where they
//! lie.
//!
//! ```text
//! counts      6 × u32: events, bytes of texts, bytes of definitions, fields, 1 if ids begin anew, 0
//! events      EVENT bytes each
//! definitions JSON: the tables that have not been told before, with their ids
//! texts       JSON of events that are no row changes; mutation ids
//! fields      FIELD bytes each
//! arena       the rest
//! ```
//!
//! All numbers are little-endian. Offsets of rows count fields, those of values bytes of the arena.
//! Reading is total: what points outside of its piece is absent, or makes the batch unreadable.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::batch::{FIELD, Row};
use super::{
    Batch, BatchBuilder, Change, Event, EventKind, Failed, Lsn, Message, Operation, Position,
    Relation, SchemaChange,
};

const COUNTS: usize = 24;
/// Bytes of an event: see [`BatchWriter::write`].
const EVENT: usize = 64;
/// No row, no text.
const NONE: u32 = u32::MAX;
/// Tables that are remembered; past that ids begin anew.
const MOST_RELATIONS: usize = 4096;

/// The kind of an event that is no row change, as text.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    Message(Message),
    Schema(SchemaChange),
    Failed(ToldFailure),
}

/// A failure, with its table by id.
#[derive(Serialize, Deserialize)]
struct ToldFailure {
    relation: Option<u32>,
    failed: Failed,
}

/// Writes batches. Remembers which tables the reader has been told of.
#[derive(Debug, Default)]
pub struct BatchWriter {
    /// By address, which is nobody else's for as long as the table is held here.
    ids: HashMap<usize, (u32, Arc<Relation>)>,
    /// Everything but the arena.
    head: Vec<u8>,
    events: Vec<u8>,
    texts: Vec<u8>,
    definitions: Vec<(u32, Arc<Relation>)>,
    begins_anew: bool,
    /// The mutation id that was written last, by address, and where. One for each transaction.
    mutation: Option<(usize, (u32, u32))>,
}

impl BatchWriter {
    /// The two parts of a batch's bytes.
    pub fn write<'a>(&'a mut self, batch: &'a BatchBuilder) -> [&'a [u8]; 2] {
        self.begin();
        for event in &batch.events {
            self.event(event);
        }
        let definitions = if self.definitions.is_empty() {
            Vec::new()
        } else {
            // Plain data: cannot fail, and an empty text would be refused.
            serde_json::to_vec(&self.definitions).unwrap_or_default()
        };
        let counts = [
            batch.events.len(),
            self.texts.len(),
            definitions.len(),
            batch.fields().len(),
            usize::from(self.begins_anew),
            0,
        ];
        for count in counts {
            self.head.extend_from_slice(&number(count).to_le_bytes());
        }
        self.head.extend_from_slice(&self.events);
        self.head.extend_from_slice(&definitions);
        self.head.extend_from_slice(&self.texts);
        self.head.reserve(batch.fields().len() * FIELD);
        for field in batch.fields() {
            self.head.extend_from_slice(&field.to_bytes());
        }
        [&self.head, batch.arena()]
    }

    fn begin(&mut self) {
        for buffer in [&mut self.head, &mut self.events, &mut self.texts] {
            buffer.clear();
        }
        self.definitions.clear();
        self.mutation = None;
        self.begins_anew = self.ids.len() >= MOST_RELATIONS;
        if self.begins_anew {
            self.ids.clear();
        }
    }

    fn id(&mut self, relation: &Arc<Relation>) -> u32 {
        let address = Arc::as_ptr(relation) as usize;
        if let Some((id, _)) = self.ids.get(&address) {
            return *id;
        }
        let id = number(self.ids.len());
        self.ids.insert(address, (id, Arc::clone(relation)));
        self.definitions.push((id, Arc::clone(relation)));
        id
    }

    fn event(&mut self, event: &Event) {
        let Event { position, end, xid, commit_time, last_in_tx, mutation_id, kind } = event;
        let (mutation, mutation_len) = match mutation_id {
            Some(id) => self.mutation(id),
            None => (NONE, 0),
        };
        let rows = |row: &Option<Row>| row.map_or([NONE, 0], Row::to_numbers);
        let (operation, numbers) = match kind {
            EventKind::Change(change) => {
                let ([old, old_len], [new, new_len]) = (rows(&change.old), rows(&change.new));
                let relation = self.id(&change.relation);
                (code(change.operation), [relation, old, old_len, new, new_len])
            }
            EventKind::Message(message) => self.told(&Told::Message(message.clone())),
            EventKind::Schema(change) => self.told(&Told::Schema(change.clone())),
            EventKind::Failed(failed) => {
                let relation = failed.relation.as_ref().map(|relation| self.id(relation));
                self.told(&Told::Failed(ToldFailure { relation, failed: failed.clone() }))
            }
        };
        let out = &mut self.events;
        out.extend_from_slice(&position.commit.0.to_le_bytes());
        out.extend_from_slice(&end.0.to_le_bytes());
        out.extend_from_slice(&commit_time.to_le_bytes());
        out.extend_from_slice(&position.ordinal.to_le_bytes());
        out.extend_from_slice(&xid.to_le_bytes());
        out.extend_from_slice(&mutation.to_le_bytes());
        out.extend_from_slice(&mutation_len.to_le_bytes());
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&[operation, u8::from(*last_in_tx), 0, 0]);
    }

    fn mutation(&mut self, id: &Arc<str>) -> (u32, u32) {
        let address = Arc::as_ptr(id).cast::<u8>() as usize;
        match self.mutation {
            Some((written, place)) if written == address => place,
            _ => {
                let place = self.text(|texts| texts.extend_from_slice(id.as_bytes()));
                self.mutation = Some((address, place));
                place
            }
        }
    }

    fn told(&mut self, told: &Told) -> (u8, [u32; 5]) {
        let (start, len) = self.text(|texts| {
            // Plain data: cannot fail.
            let _ = serde_json::to_writer(texts, told);
        });
        (TOLD, [start, len, 0, 0, 0])
    }

    fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> (u32, u32) {
        let start = self.texts.len();
        write(&mut self.texts);
        (number(start), number(self.texts.len() - start))
    }
}

/// The code of an event that is no row change.
const TOLD: u8 = 4;

fn code(operation: Operation) -> u8 {
    match operation {
        Operation::Insert => 0,
        Operation::Update => 1,
        Operation::Delete => 2,
        Operation::Truncate => 3,
    }
}

fn operation(code: u8) -> Option<Operation> {
    Some(match code {
        0 => Operation::Insert,
        1 => Operation::Update,
        2 => Operation::Delete,
        3 => Operation::Truncate,
        _ => return None,
    })
}

/// A number that a batch's bounds keep small.
fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// The tables that a reader has been told of, by id.
#[derive(Debug, Default)]
pub struct Relations(Vec<Arc<Relation>>);

impl Relations {
    /// A batch from its bytes; `None`: they are none.
    pub fn read(&mut self, bytes: Bytes) -> Option<Batch> {
        let mut pieces = Pieces { rest: &bytes };
        let [events, texts, definitions, fields, begins_anew, _] = {
            let mut counts = Numbers { rest: pieces.take(COUNTS)? };
            [(); 6].map(|()| counts.u32())
        };
        let events = pieces.take((events as usize).checked_mul(EVENT)?)?;
        let definitions = pieces.take(definitions as usize)?;
        let texts = pieces.take(texts as usize)?;
        let fields = pieces.take((fields as usize).checked_mul(FIELD)?)?;
        let arena = bytes.slice_ref(pieces.rest);
        let fields = bytes.slice_ref(fields);
        if begins_anew != 0 {
            self.0.clear();
        }
        if !definitions.is_empty() {
            self.learn(definitions)?;
        }
        let mut mutation = None;
        let events = events.chunks_exact(EVENT);
        let events = events.map(|event| self.event(event, texts, &mut mutation));
        Some(Batch::new(arena, fields, events.collect::<Option<_>>()?))
    }

    /// Ids are given in order, so that they need no map and leave no holes.
    fn learn(&mut self, definitions: &[u8]) -> Option<()> {
        let definitions: Vec<(u32, Relation)> = serde_json::from_slice(definitions).ok()?;
        for (id, relation) in definitions {
            if id as usize != self.0.len() || self.0.len() >= MOST_RELATIONS {
                return None;
            }
            self.0.push(Arc::new(relation));
        }
        Some(())
    }

    /// `mutation`: the mutation id of the event before, and where it is.
    fn event(
        &self,
        event: &[u8],
        texts: &[u8],
        mutation: &mut Option<(u32, Arc<str>)>,
    ) -> Option<Event> {
        let mut numbers = Numbers { rest: event };
        let (commit, end) = (Lsn(numbers.u64()), Lsn(numbers.u64()));
        let commit_time = numbers.u64().cast_signed();
        let (ordinal, xid) = (numbers.u32(), numbers.u32());
        let (mutation_start, mutation_len) = (numbers.u32(), numbers.u32());
        let about = [(); 5].map(|()| numbers.u32());
        let [code, last_in_tx] = [numbers.u8(), numbers.u8()];
        let mutation_id = match mutation {
            _ if mutation_start == NONE => None,
            Some((start, id)) if *start == mutation_start => Some(Arc::clone(id)),
            _ => {
                let id = std::str::from_utf8(text(texts, mutation_start, mutation_len)?).ok()?;
                let (_, id) = mutation.insert((mutation_start, id.into()));
                Some(Arc::clone(id))
            }
        };
        let kind = match operation(code) {
            Some(operation) => {
                let [relation, old, old_len, new, new_len] = about;
                let row = |first, len| (first != NONE).then(|| Row::from_numbers([first, len]));
                let relation = Arc::clone(self.0.get(relation as usize)?);
                let (old, new) = (row(old, old_len), row(new, new_len));
                EventKind::Change(Change { relation, operation, old, new })
            }
            None if code == TOLD => {
                let [start, len, ..] = about;
                match serde_json::from_slice(text(texts, start, len)?).ok()? {
                    Told::Message(message) => EventKind::Message(message),
                    Told::Schema(change) => EventKind::Schema(change),
                    Told::Failed(ToldFailure { relation, mut failed }) => {
                        failed.relation = match relation {
                            Some(id) => Some(Arc::clone(self.0.get(id as usize)?)),
                            None => None,
                        };
                        EventKind::Failed(failed)
                    }
                }
            }
            None => return None,
        };
        let (position, last_in_tx) = (Position { commit, ordinal }, last_in_tx != 0);
        Some(Event { position, end, xid, commit_time, last_in_tx, mutation_id, kind })
    }
}

fn text(texts: &[u8], start: u32, len: u32) -> Option<&[u8]> {
    texts.get(start as usize..)?.get(..len as usize)
}

/// Cuts pieces off the front.
struct Pieces<'a> {
    rest: &'a [u8],
}

impl<'a> Pieces<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (piece, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(piece)
    }
}

/// Reads numbers off a piece of known length; 0 past its end.
struct Numbers<'a> {
    rest: &'a [u8],
}

impl Numbers<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else { return [0; N] };
        self.rest = rest;
        *bytes
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.bytes())
    }
}
