//! A cache of encoded bodies: what the frames of one event have in common.

use std::rc::Rc;

use tide_feed::event::{Change, Operation};

use crate::wire::change::ColumnSet;

/// Bytes of bodies that are kept at a time: a large event is written again for each of many column sets
/// rather than kept for all.
const MOST: usize = 4 << 20;

/// Bytes of a body whose memory is worth keeping for the next.
const SPARE: usize = 64 << 10;

/// How a change is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Supabase,
    Table,
    Record,
}

/// The key of the cache: bodies of one change with the same shape are the same.
#[derive(PartialEq, Eq)]
struct Shape {
    columns: *const ColumnSet,
    form: Form,
    operation: Operation,
    has_old: bool,
}

/// Bodies of one event that several groups share: encoded once per column set and style.
#[derive(Default)]
pub(super) struct BodyCache {
    encoded: Vec<(Shape, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
}

impl BodyCache {
    /// Forgets the last event's bodies and keeps their memory.
    pub(super) fn clear(&mut self) {
        let bodies = self.encoded.drain(..).map(|(_, body)| body);
        self.spare.extend(bodies.filter(|body| body.capacity() <= SPARE).map(|mut body| {
            body.clear();
            body
        }));
        self.spare.truncate(8);
    }

    fn bytes(&self) -> usize {
        self.encoded.iter().map(|(_, body)| body.len()).sum()
    }

    pub(super) fn get(
        &mut self,
        columns: &Rc<ColumnSet>,
        form: Form,
        change: &Change,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> &[u8] {
        let (operation, has_old) = (change.operation, change.old.is_some());
        let shape = Shape { columns: Rc::as_ptr(columns), form, operation, has_old };
        let known = self.encoded.iter().position(|(known, _)| *known == shape);
        let index = known.unwrap_or_else(|| {
            if self.bytes() > MOST {
                self.encoded.clear();
            }
            let mut body = self.spare.pop().unwrap_or_default();
            encode(&mut body);
            self.encoded.push((shape, body));
            self.encoded.len() - 1
        });
        self.encoded.get(index).map_or(&[], |(_, body)| body)
    }
}
