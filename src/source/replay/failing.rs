//! What cannot be made an event: it is told as one that failed, and the rest goes on.

use std::sync::Arc;

use pgrx::pg_sys;
use tide_feed::event::{EventKind, Failed, Position, Row, Unsaid};

use crate::failure::Failure;
use crate::source::replay::Replay;
use crate::tuple::TooLarge;
use crate::{failure, tuple};

/// Bytes of the key of a row that failed.
const KEY_BYTES: usize = 64 << 10;

impl Replay {
    /// Does the work on one change in a subtransaction.
    pub(crate) fn carefully(
        &mut self,
        relation: Option<pg_sys::Relation>,
        position: Position,
        work: impl FnOnce(&mut Replay),
    ) {
        let Err(error) = failure::attempt_in_subtransaction(|| work(self)) else { return };
        if failure::is_interruption(&error) {
            error.rethrow();
        }
        let failure = Failure::from(&*error);
        // SAFETY: the relation is open; what is known of it is from before the error, or it is
        // found out again, in a subtransaction as well.
        let index = failure::attempt_in_subtransaction(|| unsafe {
            Some(self.relations.find(relation?, &self.publication))
        });
        let index = index.ok().flatten();
        // SAFETY: the rows are there until the callback ends.
        unsafe { self.failed(position, index, &failure.sqlstate, &failure.condition) };
    }

    /// A row is more than an event may be.
    ///
    /// # Safety
    /// As for [`Replay::change`].
    pub(crate) unsafe fn too_large(&mut self, position: Position, index: usize, why: TooLarge) {
        self.column = why.column;
        let condition = why.overflow.to_string();
        // SAFETY: as above.
        unsafe { self.failed(position, Some(index), why.overflow.sqlstate(), &condition) };
    }

    /// The row of an outbox is no message.
    ///
    /// # Safety
    /// As for [`Replay::change`].
    pub(crate) unsafe fn row_unsaid(&mut self, position: Position, index: usize, sqlstate: &str) {
        self.forget_rows();
        let Some(outbox) = self.relations.outbox(index) else { return };
        let new = &self.new;
        // SAFETY: as above; to read the channel's name may fail as well.
        let unsaid = failure::attempt_in_subtransaction(|| unsafe { outbox.unsaid(new) });
        // SAFETY: as above; a number is there as it is.
        let unsaid = unsaid.unwrap_or_else(|_| unsafe { outbox.unsaid_without_a_name(new) });
        self.unsaid(position, unsaid, sqlstate);
    }

    /// A message could not be made an event.
    pub(crate) fn unsaid(&mut self, position: Position, unsaid: Unsaid, sqlstate: &str) {
        let message = match &unsaid.row {
            Some(row) => format!("could not decode a row of the outbox {}::regclass", row.table),
            None => "could not decode a message".to_owned(),
        };
        self.log.write(&format!("{message} (SQLSTATE {sqlstate})"));
        self.feed.make_room();
        let failed = Failed {
            unsaid: Some(Box::new(unsaid)),
            sqlstate: sqlstate.into(),
            message: message.into(),
            ..Failed::default()
        };
        self.add(position, EventKind::Failed(failed));
    }

    /// One event says that the change could not be one.
    unsafe fn failed(
        &mut self,
        position: Position,
        index: Option<usize>,
        sqlstate: &str,
        condition: &str,
    ) {
        self.forget_rows();
        if let Some(index) = index
            && self.relations.outbox(index).is_some()
        {
            if self.reading.is_some() {
                // SAFETY: as for `change`.
                return unsafe { self.row_unsaid(position, index, sqlstate) };
            }
            // Whether it is to be published could not even be told.
            let text = format!("could not decode a change of an outbox: {condition}");
            return self.log.write(&format!("{text} (SQLSTATE {sqlstate})"));
        }
        let published = index.and_then(|index| self.relations.get(index));
        let relation = published.map(|published| Arc::clone(&published.relation));
        let table = match &relation {
            Some(relation) => format!("{}.{}", relation.schema, relation.name),
            None => "a table".to_owned(),
        };
        let column = self.column;
        let name = relation.as_ref().zip(column).and_then(|(r, index)| r.columns.get(index));
        let place = name.map_or(String::new(), |column| format!(", column {}", column.name));
        let message = format!("could not decode a change of {table}{place}: {condition}");
        self.log.write(&format!("{message} (SQLSTATE {sqlstate})"));
        self.feed.make_room();
        // SAFETY: as above.
        let key = index.and_then(|index| unsafe { self.key(index) });
        let (sqlstate, message) = (sqlstate.into(), message.into());
        let failed = Failed { relation, key, column, unsaid: None, sqlstate, message };
        self.add(position, EventKind::Failed(failed));
    }

    /// The key of the row that is being read.
    unsafe fn key(&mut self, index: usize) -> Option<Row> {
        let change = self.reading?;
        let Replay { relations, feed, old, new, .. } = self;
        let published = relations.get(index)?;
        let tuple = if change.new.is_null() { old } else { new };
        let batch = feed.batch();
        batch.begin_event(KEY_BYTES);
        let start = batch.begin_row();
        // SAFETY: as for `change`: the row is of that relation. A value of the key may be what
        // fails.
        let key = failure::attempt_in_subtransaction(|| unsafe {
            tuple::write_key(batch, published, tuple)
        });
        let key = key.ok().flatten();
        if key.is_none() {
            self.feed.batch().abandon_row(&start);
        }
        key
    }

    fn forget_rows(&mut self) {
        if let Some(mark) = self.mark.take() {
            self.feed.batch().abandon_row(&mark);
        }
    }
}
