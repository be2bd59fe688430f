//! Row changes as JSON: the part of a frame that subscribers share. The hottest code there is:
//! fragments are copied, nothing is parsed and nothing allocated but the buffer's growth.

use crate::event::{Batch, Change, Event, Relation};

/// The columns of a table that one kind of subscriber may see, with everything that can be
/// written ahead. Made once per relation and shape, not per event.
#[derive(Debug)]
pub struct ColumnSet {}

impl ColumnSet {
    /// `indexes` into [`Relation::columns`]; those past its end are ignored.
    pub fn new(_relation: &Relation, _indexes: impl IntoIterator<Item = usize>) -> ColumnSet {
        ColumnSet {}
    }

    pub fn all(relation: &Relation) -> ColumnSet {
        ColumnSet::new(relation, 0..relation.columns.len())
    }
}

/// Appends the `data` object of `postgres_changes`, exactly Supabase's.
pub fn change_data(
    _out: &mut Vec<u8>,
    _batch: &Batch,
    _event: &Event,
    _change: &Change,
    _columns: &ColumnSet,
) {
}

/// Appends the payload of a `tide:table:` event:
/// `{"schema","table","operation","record","old_record"}`, `null` for the image there is none of.
pub fn table_payload(_out: &mut Vec<u8>, _batch: &Batch, _change: &Change, _columns: &ColumnSet) {}

/// Appends the JSON list of columns whose values the WAL does not have, because the statement did
/// not change them; appends nothing if there are none.
pub fn unchanged_list(_out: &mut Vec<u8>, _batch: &Batch, _change: &Change, _columns: &ColumnSet) {}

/// Appends the `data` object for a change that could not be turned into an event, Supabase's
/// `errors` form with the time of the commit.
pub fn failed_data(_out: &mut Vec<u8>, _event: &Event, _relation: &Relation, _sqlstate: &str) {}
