//! Channels that begin with the rows that there are.
//!
//! The table is read in chunks, in the order of its key, each by one statement whose snapshot is known.
//! While a chunk is read the channel stands still at its place in the history. Once the stream has come to
//! the address that the chunk was taken before, its rows are told, and the channel reads on to there: of
//! keys in chunks before it is told everything; of keys in this chunk what the chunk could not see; of keys
//! beyond it nothing, since a later chunk has them. So one chunk's time has to be in the history, nothing
//! comes twice, and no transaction is torn.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use serde_json::value::RawValue;
use tide_feed::catalog::{Chunk, ChunkRequest, Condition, Snapshot};
use tide_feed::event::Datum;

use super::history::Seq;
use crate::allowance::{Allowance, Share};
use crate::catalog::Asker;
use crate::policy::{Images, Seen, Sight};

/// Bytes that a key takes up which a channel has been told of, with what the set of them has to spare.
const KEY: usize = 24;

/// Rows of a chunk, at most.
const ROWS: u32 = 10_000;

/// What a channel begins with.
#[derive(Debug)]
pub struct SnapshotPlan {
    pub table: u32,
    pub name: (Box<str>, Box<str>),
    /// Those to be told of, by their numbers.
    pub columns: Vec<i16>,
    pub conditions: Vec<Condition>,
}

/// A channel that is kept equal to what its client would select.
#[derive(Debug)]
pub(super) struct Sync {
    pub(super) plan: Arc<SnapshotPlan>,
    pub(super) asker: Asker,
    pub(super) phase: Phase,
    /// The key, once a chunk has named it.
    pub(super) key: Vec<i16>,
    /// That of the last row of the chunks so far, as texts.
    border: Option<Vec<String>>,
    pub(super) rows: u64,
    /// Transactions of which something was left to the next chunk, which has to see them.
    unseen: Vec<u32>,
    /// `None`: of everything that there is, which is what its client may see.
    pub(super) told: Option<Told>,
}

/// What a channel waits for.
#[derive(Debug)]
pub(super) enum Phase {
    /// A chunk is to be asked for.
    Idle,
    Asked,
    /// The stream has to come to where the chunk was taken.
    Read(Box<Chunk>),
    /// It is being asked where the keys of events lie.
    Placing(Box<Chunk>),
    /// The chunk is to be told.
    Placed(Box<Chunk>, Joining),
    Joining(Joining),
    /// Everything that was there has been told.
    Live,
}

/// How a chunk is joined to the stream.
#[derive(Debug)]
pub(super) struct Joining {
    snapshot: Snapshot,
    /// The first event that is not before the chunk's address.
    pub(super) until: Seq,
    places: HashMap<Seq, Places>,
    pub(super) is_last: bool,
}

/// Where the keys of a row before and after an event lie: 0, in chunks before; 1, in this; 2, beyond.
type Places = (u8, u8);

/// Which sides of an event are for the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) before: bool,
    pub(super) after: bool,
}

impl Sides {
    pub(super) const BOTH: Sides = Sides { before: true, after: true };
}

impl Sync {
    /// `told`: unless every row of the table is for the channel.
    pub(super) fn new(plan: Arc<SnapshotPlan>, asker: Asker, told: Option<Told>) -> Sync {
        Sync {
            plan,
            asker,
            phase: Phase::Idle,
            key: Vec::new(),
            border: None,
            rows: 0,
            unseen: Vec::new(),
            told,
        }
    }

    /// One that has seen the rows before.
    pub(super) fn resumed(self) -> Sync {
        Sync { phase: Phase::Live, ..self }
    }

    /// Whether there is memory for the keys of a chunk.
    pub(super) fn has_room(&mut self, chunk: &Chunk) -> bool {
        let more = usize::try_from(chunk.count).unwrap_or(usize::MAX);
        self.told.as_mut().is_none_or(|told| told.reserve(more))
    }

    /// Whether the channel is not to be given the event `seq` yet.
    pub(super) fn stands_at(&self, seq: Seq) -> bool {
        match &self.phase {
            Phase::Live => false,
            Phase::Joining(joining) => seq >= joining.until,
            _ => true,
        }
    }

    pub(super) fn request(&self) -> ChunkRequest {
        let SnapshotPlan { table, columns, conditions, .. } = &*self.plan;
        ChunkRequest {
            role: self.asker.role.as_ref().into(),
            claims: self.asker.claims.as_ref().into(),
            table: *table,
            columns: columns.clone(),
            conditions: conditions.clone(),
            after: self.border.clone(),
            limit: ROWS,
        }
    }

    /// Whether the chunk sees everything that was left to it.
    pub(super) fn is_seen(&self, chunk: &Chunk) -> bool {
        self.unseen.iter().all(|xid| chunk.snapshot.sees(*xid))
    }

    /// The borders that keys are held against: that of the chunks before, and this one's.
    pub(super) fn borders(&self, chunk: &Chunk) -> Vec<Vec<String>> {
        let this = chunk.last.clone().filter(|_| !chunk.done);
        self.border.clone().into_iter().chain(this).collect()
    }

    /// The chunk is about to be told; `beyond`: for each event's keys, beyond how many borders they lie.
    pub(super) fn joining(
        &self,
        chunk: &Chunk,
        until: Seq,
        beyond: impl Iterator<Item = (Seq, (Option<u8>, Option<u8>))>,
    ) -> Joining {
        // With no chunk before, all that is not beyond this one is in it.
        let first = u8::from(self.border.is_none());
        let place = |beyond: Option<u8>| beyond.map_or(2, |beyond| beyond + first);
        let places = beyond.map(|(seq, (old, new))| (seq, (place(old), place(new)))).collect();
        Joining { snapshot: chunk.snapshot.clone(), until, places, is_last: chunk.done }
    }

    /// The chunk has been told.
    pub(super) fn tell(&mut self, chunk: Chunk, joining: Joining) {
        self.rows += chunk.count;
        if let Some(told) = &mut self.told {
            told.add_all(&chunk.keys);
        }
        self.key = chunk.key;
        if chunk.last.is_some() {
            self.border = chunk.last;
        }
        self.unseen.retain(|xid| !joining.snapshot.sees(*xid));
        self.phase = Phase::Joining(joining);
    }

    /// Which sides of the event are for the channel at this point.
    pub(super) fn sides(&mut self, seq: Seq, xid: u32) -> Sides {
        let Phase::Joining(joining) = &self.phase else { return Sides::BOTH };
        let Some((old, new)) = joining.places.get(&seq).copied() else { return Sides::BOTH };
        let is_seen = joining.snapshot.sees(xid);
        let is_for_it = |place: u8| place == 0 || place == 1 && !is_seen;
        if (old == 2 || new == 2) && !is_seen && self.unseen.last() != Some(&xid) {
            self.unseen.push(xid);
        }
        Sides { before: is_for_it(old), after: is_for_it(new) }
    }
}

/// The keys that a channel has been told of, as hashes with a key of their own.
#[derive(Debug)]
pub(super) struct Told {
    keys: HashSet<u64>,
    memory: Share,
    hasher: RandomState,
    /// What the event at hand makes of them, once its frames are queued.
    staged: Vec<(u64, bool)>,
}

impl Told {
    /// `memory`: the part that they are counted in.
    pub(super) fn new(memory: &Arc<Allowance>) -> Told {
        let (keys, hasher, staged) = (HashSet::new(), RandomState::new(), Vec::new());
        Told { keys, memory: Share::of(memory), hasher, staged }
    }

    /// Makes room for so many more; false: there is none.
    fn reserve(&mut self, more: usize) -> bool {
        let wanted = (self.keys.len() + more) * KEY;
        wanted <= self.memory.bytes() || self.memory.resize(wanted.max(2 * self.memory.bytes()))
    }

    /// Adds the keys of a chunk, an array of arrays.
    fn add_all(&mut self, keys: &RawValue) {
        let keys: Vec<Vec<&RawValue>> = serde_json::from_str(keys.get()).unwrap_or_default();
        for key in &keys {
            let key = self.hash(key.iter().map(|value| value.get().as_bytes()));
            self.keys.insert(key);
        }
    }

    fn hash<'a>(&self, values: impl Iterator<Item = &'a [u8]>) -> u64 {
        self.hasher.hash_one(values.collect::<Vec<_>>())
    }

    /// The key of a row before or after an event; `None`: the image does not have it.
    fn key_of<'a>(&self, key: &[i16], image: impl Fn(i16) -> Datum<'a>) -> Option<u64> {
        let values: Option<Vec<&[u8]>> = key
            .iter()
            .map(|attnum| match image(*attnum) {
                Datum::Json(json) => Some(json),
                _ => None,
            })
            .collect();
        values.map(|values| self.hash(values.into_iter()))
    }

    /// What a change is to the channel: what it is told, as the row's sight before and after it.
    /// `None`: it cannot be known.
    pub(super) fn sight(
        &mut self,
        key: &[i16],
        images: &Images<'_>,
        sides: Sides,
        is_visible: bool,
    ) -> Option<Sight> {
        self.staged.clear();
        let new = match images.has_after() {
            true => Some(self.key_of(key, |attnum| images.after(attnum))?),
            false => None,
        };
        let old = match images.has_before() {
            true => Some(self.key_of(key, |attnum| images.before(attnum))?),
            false => None,
        };
        let was_told = sides.before && old.is_some_and(|old| self.keys.contains(&old));
        let is_told = sides.after && is_visible;
        if let Some(old) = old.filter(|_| sides.before) {
            self.staged.push((old, false));
        }
        if let Some(new) = new.filter(|_| is_told) {
            // Without memory it begins anew, and says then that there is none.
            if !self.reserve(1) {
                return None;
            }
            self.staged.push((new, true));
        }
        Some(Sight { before: Seen::from(was_told), after: Seen::from(is_told) })
    }

    /// The frames of the event at hand are queued, or there are none.
    pub(super) fn settle(&mut self) {
        for (key, is_told) in std::mem::take(&mut self.staged) {
            if is_told {
                self.keys.insert(key);
            } else {
                self.keys.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("JSON")
    }

    fn sync() -> Sync {
        let plan = SnapshotPlan {
            table: 1,
            name: ("public".into(), "t".into()),
            columns: vec![1],
            conditions: Vec::new(),
        };
        let asker = Asker { role: "web".into(), claims: "{}".into() };
        let told = Told::new(&Arc::new(Allowance::new(usize::MAX)));
        Sync::new(Arc::new(plan), asker, Some(told))
    }

    /// Up to the key `last`; transactions from `xmax` on are not seen.
    fn chunk(last: Option<&str>, done: bool, xmax: u64) -> Chunk {
        Chunk {
            key: vec![1],
            count: 2,
            rows: raw("[]"),
            keys: raw("[[1],[2]]"),
            last: last.map(|last| vec![last.to_owned()]),
            done,
            snapshot: Snapshot { xmin: xmax, xmax, xip: Vec::new() },
            lsn: 100,
        }
    }

    /// A chunk is told, after which an event with keys at these places is looked at.
    fn told(sync: &mut Sync, chunk: Chunk, beyond: (u8, u8), xid: u32) -> Sides {
        let beyond = [(7, (Some(beyond.0), Some(beyond.1)))];
        let joining = sync.joining(&chunk, 9, beyond.into_iter());
        sync.tell(chunk, joining);
        sync.sides(7, xid)
    }

    #[test]
    fn what_a_chunk_saw_is_left_out_and_what_lies_beyond_it_is_for_the_next() {
        let sides = |before, after| Sides { before, after };
        for (beyond, xid, expected) in [
            // In the first chunk, or beyond it.
            ((0, 0), 49, sides(false, false)),
            ((0, 0), 50, sides(true, true)),
            ((0, 1), 50, sides(true, false)),
            ((1, 0), 50, sides(false, true)),
            ((1, 1), 50, sides(false, false)),
        ] {
            let found = told(&mut sync(), chunk(Some("2"), false, 50), beyond, xid);
            assert_eq!(found, expected, "{beyond:?} {xid}");
        }
        for (beyond, xid, expected) in [
            // Before the second chunk, in it, or beyond it.
            ((0, 0), 59, sides(true, true)),
            ((0, 1), 59, sides(true, false)),
            ((1, 1), 59, sides(false, false)),
            ((1, 1), 60, sides(true, true)),
            ((2, 0), 60, sides(false, true)),
            ((2, 2), 60, sides(false, false)),
        ] {
            let mut sync = sync();
            told(&mut sync, chunk(Some("2"), false, 50), (0, 0), 49);
            let found = told(&mut sync, chunk(Some("4"), false, 60), beyond, xid);
            assert_eq!(found, expected, "{beyond:?} {xid}");
        }
    }

    #[test]
    fn nothing_lies_beyond_the_last_chunk() {
        let mut sync = sync();
        told(&mut sync, chunk(Some("2"), false, 50), (0, 0), 49);

        assert_eq!(sync.borders(&chunk(None, true, 60)), [["2"]]);
        let found = told(&mut sync, chunk(None, true, 60), (1, 1), 60);
        assert_eq!(found, Sides::BOTH);
        assert_eq!(sync.rows, 4);
    }

    #[test]
    fn a_chunk_has_to_see_what_was_left_to_it() {
        let mut sync = sync();
        told(&mut sync, chunk(Some("2"), false, 50), (1, 1), 55);

        assert!(!sync.is_seen(&chunk(None, true, 55)), "it was committing");
        assert!(sync.is_seen(&chunk(None, true, 56)));
    }

    #[test]
    fn numbers_of_transactions_are_compared_across_their_wrap() {
        let snapshot =
            Snapshot { xmin: (1 << 32) + 5, xmax: (1 << 32) + 9, xip: vec![(1 << 32) + 7] };

        assert!(snapshot.sees(u32::MAX) && snapshot.sees(4) && snapshot.sees(6));
        assert!(!snapshot.sees(7) && snapshot.sees(8) && !snapshot.sees(9) && !snapshot.sees(100));
    }
}
