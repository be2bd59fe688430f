//! How a chunk of the rows that there are is joined to the stream: which changes are told until the stream
//! has come to where the chunk was taken.

use std::collections::HashMap;

use tide_feed::snapshot::Snapshot;

use super::history::Seq;

/// How a chunk is joined to the stream.
#[derive(Debug, Default)]
pub(super) struct Joining {
    pub(super) snapshot: Snapshot,
    /// The first event that is not before the chunk's address.
    pub(super) until: Seq,
    pub(super) places: HashMap<Seq, Places>,
    /// Rows that were read by themselves meanwhile.
    pub(super) fetched: Vec<Fetched>,
    pub(super) is_last: bool,
}

/// A row that was read by itself: what its read could see of it is not told again.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) snapshot: Snapshot,
    pub(super) until: Seq,
    /// Which sides of which events are of the row.
    pub(super) events: HashMap<Seq, Sides>,
}

/// Where the keys of a row before and after an event lie: 0, in chunks before; 1, in this; 2, beyond.
pub(super) type Places = (u8, u8);

/// An event's keys.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PlacedKeys {
    /// Beyond how many borders they lie; `None`: there is none.
    pub(super) beyond: (Option<u8>, Option<u8>),
    /// Whether they are that of the row which is read by itself.
    pub(super) fetched: Sides,
}

/// Which sides of an event are for the channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) before: bool,
    pub(super) after: bool,
}

impl Sides {
    pub(super) const BOTH: Sides = Sides { before: true, after: true };
}

impl Joining {
    /// Which sides of the event are for the channel. `is_whole`: the chunk is all of a table without a key.
    pub(super) fn sides(&mut self, seq: Seq, xid: u32, is_whole: bool) -> Sides {
        let mut sides = self.sides_by_chunk(seq, xid, is_whole);
        self.fetched.retain(|fetched| seq < fetched.until);
        for Fetched { snapshot, events, .. } in &self.fetched {
            if let Some(own) = events.get(&seq).filter(|_| snapshot.sees(xid)) {
                sides.before &= !own.before;
                sides.after &= !own.after;
            }
        }
        sides
    }

    fn sides_by_chunk(&self, seq: Seq, xid: u32, is_whole: bool) -> Sides {
        let (old, new) = match self.places.get(&seq) {
            Some(places) => *places,
            None if is_whole => (1, 1),
            None => return Sides::BOTH,
        };
        let is_for_it = |place: u8| place == 0 || place == 1 && !self.snapshot.sees(xid);
        Sides { before: is_for_it(old), after: is_for_it(new) }
    }
}
