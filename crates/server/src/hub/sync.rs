//! Channels that begin with the rows that there are.
//!
//! The table is read in chunks, in the order of its key, each by one statement whose snapshot is known.
//! While a chunk is read the channel stands still at its place in the history. Once the stream has come to
//! the address that the chunk was taken before, its rows are told, and the channel reads on to there: of
//! keys in chunks before it is told everything; of keys in this chunk what the chunk could not see; of keys
//! beyond it nothing, since a later chunk has them. So one chunk's time has to be in the history, nothing
//! comes twice, and no transaction is torn.
//!
//! What is beyond a chunk, the next one sees: it is asked for once all before the address is in the history,
//! and nothing is fed before others can see it.
//!
//! A row that comes into sight by a change of which the WAL does not have all is read like a chunk of one
//! row, with the channel standing before the change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tide_feed::catalog::{Chunk, ChunkRequest, Condition};
use tide_feed::event::{Cursor, Operation};
use tokio::task::AbortHandle;

use super::history::Seq;
use super::joining::{Fetched, Joining, PlacedKeys, Places, Sides};
use super::snapshot_place::SnapshotPlace;
use super::subscription::Identity;
use super::told::Told;
use crate::allowance::{Allowance, Share};
use crate::catalog::Asker;
use crate::policy::{Rule, Way};

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
    /// How many rows it may be.
    pub most_rows: u64,
    /// Where to go on, as the client says.
    pub place: Option<Box<str>>,
    /// All columns that the table has.
    pub known: Vec<i16>,
}

impl SnapshotPlan {
    /// Bytes that it takes up.
    pub fn memory(&self) -> usize {
        let values = self.conditions.iter().flat_map(|condition| &condition.values);
        let values = values.map(|value| size_of::<String>() + 16 + value.len()).sum::<usize>();
        let columns = 2 * (self.columns.len() + self.known.len());
        let conditions = size_of_val(&*self.conditions) + values;
        size_of::<SnapshotPlan>()
            + columns
            + conditions
            + self.place.as_ref().map_or(0, |p| p.len())
    }
}

/// A channel that is kept equal to what its client would select.
#[derive(Debug)]
pub(super) struct Sync {
    pub(super) plan: Arc<SnapshotPlan>,
    pub(super) asker: Asker,
    pub(super) phase: Phase,
    /// The policies when it joined.
    rules: Vec<(u32, Arc<Rule>)>,
    /// The question that is out; given up with it.
    pub(super) question: Option<Question>,
    /// How many of them have failed, one after another.
    pub(super) failures: u32,
    /// What the chunk at hand takes up.
    pub(super) held: Share,
    /// The key, once a chunk has named it; empty: the table has none.
    pub(super) key: Vec<i16>,
    /// That of the last row of the chunks so far, as texts, and of those before the newest.
    border: Option<Vec<String>>,
    before: Option<Vec<String>>,
    pub(super) rows: u64,
    /// `None`: of everything that there is, which is what its client may see.
    pub(super) told: Option<Told>,
    /// A row that is read by itself.
    fetch: Option<Fetch>,
    /// The chunk at hand was told to the client before it went away.
    is_resumed: bool,
    /// The client has been told that it has everything.
    pub(super) is_up_to_date: bool,
}

/// A row of which the WAL does not have all.
#[derive(Debug)]
struct Fetch {
    /// Its key, as texts.
    key: Vec<String>,
    /// The same as an object of JSON.
    named: String,
    /// The hash of it, and whether it has been told of.
    told: Option<(u64, bool)>,
    /// How the chunk before is being joined; `None`: all are.
    joining: Option<Joining>,
}

/// A question that somebody asks on its behalf.
#[derive(Debug)]
pub(super) struct Question(pub(super) AbortHandle);

impl Drop for Question {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What there is to be said of a row that was read by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadRow {
    Is(Operation),
    Nothing,
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

impl Sync {
    /// `told`: unless every row of the table is for the channel. `memory`: for what it holds.
    pub(super) fn new(
        plan: Arc<SnapshotPlan>,
        asker: Asker,
        rules: Vec<(u32, Arc<Rule>)>,
        memory: &Arc<Allowance>,
        told: Option<Told>,
    ) -> Sync {
        Sync {
            plan,
            asker,
            phase: Phase::Idle,
            rules,
            question: None,
            failures: 0,
            held: Share::of(memory),
            key: Vec::new(),
            border: None,
            before: None,
            rows: 0,
            told,
            fetch: None,
            is_resumed: false,
            is_up_to_date: false,
        }
    }

    /// One that has seen the rows before.
    pub(super) fn live(self) -> Sync {
        Sync { phase: Phase::Live, is_up_to_date: true, ..self }
    }

    /// One that has seen the rows up to there.
    pub(super) fn resumed(self, place: &SnapshotPlace) -> Sync {
        Sync {
            rows: place.rows,
            key: place.key.clone(),
            border: place.before.clone(),
            phase: Phase::Read(Box::new(place.chunk())),
            is_resumed: true,
            ..self
        }
    }

    /// Whether these are the policies by which it has been told.
    pub(super) fn has_rule(&self, table: u32, rule: &Arc<Rule>) -> bool {
        let known = self.rules.iter().find(|(known, _)| *known == table);
        known.is_none_or(|(_, known)| Arc::ptr_eq(known, rule) || known == rule)
    }

    /// Whether these are the policies, as far as they are known, by which it has been told.
    pub(super) fn sees_by(&mut self, rules: Vec<(u32, Arc<Rule>)>) -> bool {
        let sees_all = rules.iter().all(|(_, rule)| rule.way == Way::Constant(true));
        let are_same = rules.iter().all(|(table, rule)| self.has_rule(*table, rule));
        if self.rules.is_empty() {
            self.rules = rules;
        }
        are_same && (sees_all || self.told.is_some())
    }

    /// Whether the policies, as far as they are known, are the same for every row and client.
    fn is_sight_constant(&self) -> bool {
        self.rules.iter().all(|(_, rule)| matches!(rule.way, Way::Constant(_)))
    }

    /// Whether no client could say what it has to be told of a table without a key: what its policies said
    /// of a row before.
    pub(super) fn is_past_telling(&self, chunk: &Chunk) -> bool {
        chunk.key.is_empty() && self.told.is_some() && !self.is_sight_constant()
    }

    /// Goes on in the name of somebody else, if that sees the same rows.
    #[must_use]
    pub(super) fn renew(&mut self, identity: &Identity) -> bool {
        let Identity { role, claims } = identity;
        let sees_the_same = *role == self.asker.role
            && (self.is_sight_constant() && !self.rules.is_empty() || *claims == self.asker.claims);
        if sees_the_same {
            self.asker.claims = Arc::clone(claims);
        }
        sees_the_same
    }

    /// The question that is out is not answered: it is to be asked again.
    pub(super) fn rest(&mut self) {
        self.question = None;
        self.phase = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Asked => Phase::Idle,
            Phase::Placing(chunk) => Phase::Read(chunk),
            other => other,
        };
    }

    /// It stands somewhere else in the history, and has been told nothing yet.
    pub(super) fn begin_anew(&mut self) -> bool {
        let is_untouched = self.is_fresh() && !self.is_up_to_date && self.fetch.is_none();
        let is_untouched = is_untouched && !matches!(self.phase, Phase::Joining(_) | Phase::Live);
        if is_untouched {
            self.rest();
            self.phase = Phase::Idle;
        }
        is_untouched
    }

    /// Whether there is memory for the keys of a chunk.
    pub(super) fn has_room(&mut self, chunk: &Chunk) -> bool {
        let more = usize::try_from(chunk.count).unwrap_or(usize::MAX);
        self.told.as_mut().is_none_or(|told| told.reserve(more))
    }

    /// Whether the table has no key.
    pub(super) fn is_keyless(&self) -> bool {
        self.key.is_empty()
    }

    /// Whether the table has another key than it had at the chunks before.
    pub(super) fn has_another_key(&self, chunk: &Chunk) -> bool {
        (self.border.is_some() || self.is_up_to_date) && self.key != chunk.key
    }

    /// Whether with the chunk there are more rows than may be.
    pub(super) fn is_too_much(&self, chunk: &Chunk) -> bool {
        self.fetch.is_none() && self.rows.saturating_add(chunk.count) > self.plan.most_rows
    }

    /// Whether a chunk is on its way to it, or held: more than a row.
    pub(super) fn has_chunk(&self) -> bool {
        if self.fetch.is_some() || self.is_resumed {
            return false;
        }
        match &self.phase {
            Phase::Asked | Phase::Read(_) | Phase::Placing(_) | Phase::Placed(..) => true,
            Phase::Idle | Phase::Joining(_) | Phase::Live => false,
        }
    }

    /// The chunk at hand was held for too long: it is to be read again.
    pub(super) fn give_up(&mut self) {
        self.phase = Phase::Idle;
        // Giving back cannot fail.
        let _ = self.held.resize(0);
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
        let only = self.fetch.as_ref().map(|fetch| fetch.key.clone());
        ChunkRequest {
            role: self.asker.role.as_ref().into(),
            claims: self.asker.claims.as_ref().into(),
            table: *table,
            columns: columns.clone(),
            conditions: conditions.clone(),
            after: self.border.clone().filter(|_| only.is_none()),
            only,
            limit: ROWS,
        }
    }

    /// The change at hand brings a row into sight of which it does not have all, or does not say whether it
    /// is in sight: it is read, by its key. `named`: the same as an object of JSON; `told`: its hash, and
    /// whether it has been told of.
    pub(super) fn fetch(&mut self, key: Vec<String>, named: String, told: Option<(u64, bool)>) {
        let joining = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Joining(joining) => Some(joining),
            _ => None,
        };
        self.fetch = Some(Fetch { key, named, told, joining });
    }

    /// The key of the row that is being read by itself.
    pub(super) fn fetched(&self) -> Option<&[String]> {
        self.fetch.as_ref().map(|fetch| &*fetch.key)
    }

    /// What there is to be said of that row, if it is there, or not; and its key.
    pub(super) fn read_row(&self, is_there: bool) -> (ReadRow, &str) {
        let Some(Fetch { named, told, .. }) = &self.fetch else { return (ReadRow::Nothing, "") };
        let was_told = told.is_some_and(|(_, was_told)| was_told);
        let said = match (was_told, is_there) {
            (false, true) => ReadRow::Is(Operation::Insert),
            (true, true) => ReadRow::Is(Operation::Update),
            (true, false) => ReadRow::Is(Operation::Delete),
            (false, false) => ReadRow::Nothing,
        };
        (said, named)
    }

    /// Whether it has to be known where the keys of events lie.
    pub(super) fn has_borders(&self) -> bool {
        self.fetch.as_ref().is_none_or(|fetch| fetch.joining.is_some())
    }

    /// The borders that keys are held against: that of the chunks before, and this one's.
    pub(super) fn borders(&self, chunk: &Chunk) -> Vec<Vec<String>> {
        let (before, this, is_last) = match &self.fetch {
            None => (&self.border, &chunk.last, chunk.done),
            Some(Fetch { joining: Some(joining), .. }) => {
                (&self.before, &self.border, joining.is_last)
            }
            Some(Fetch { joining: None, .. }) => return Vec::new(),
        };
        before.clone().into_iter().chain(this.clone().filter(|_| !is_last)).collect()
    }

    /// The chunk is about to be told; `keys`: of the events up to `until`.
    pub(super) fn joining(
        &mut self,
        chunk: &Chunk,
        until: Seq,
        keys: &BTreeMap<Seq, PlacedKeys>,
    ) -> Joining {
        let before = if self.fetch.is_none() { &self.border } else { &self.before };
        // With no chunk before, all that is not beyond this one is in it.
        let first = u8::from(before.is_none());
        let place = |beyond: Option<u8>| beyond.map_or(2, |beyond| beyond + first);
        let places = keys.iter().filter(|_| self.has_borders()).map(|(seq, keys)| {
            let (old, new) = keys.beyond;
            (*seq, (place(old), place(new)))
        });
        let places: HashMap<Seq, Places> = places.collect();
        let Some(fetch) = &mut self.fetch else {
            let (snapshot, is_last) = (chunk.snapshot.clone(), chunk.done);
            return Joining { snapshot, until, places, fetched: Vec::new(), is_last };
        };
        let all_told = || Joining { is_last: true, ..Joining::default() };
        let mut joining = fetch.joining.take().unwrap_or_else(all_told);
        joining.places.extend(places);
        joining.until = joining.until.max(until);
        let events = keys.iter().filter(|(_, keys)| keys.fetched != Sides::default());
        let events = events.map(|(seq, keys)| (*seq, keys.fetched)).collect();
        joining.fetched.push(Fetched { snapshot: chunk.snapshot.clone(), until, events });
        joining
    }

    /// Where the client may go on that is told the chunk now, standing before this position. Only the
    /// stream can tell what else it has to know.
    pub(super) fn place(&self, chunk: &Chunk, at: Cursor) -> Option<SnapshotPlace> {
        if self.told.is_some() || self.fetch.is_some() || chunk.key.is_empty() {
            return None;
        }
        let whose = (&*self.plan, &*self.asker.role);
        Some(SnapshotPlace::of(chunk, whose, self.border.as_ref(), self.rows, at))
    }

    /// The same once all of it has been told.
    pub(super) fn complete_place(&self, at: Cursor) -> Option<SnapshotPlace> {
        let (plan, role) = (&self.plan, &self.asker.role);
        self.told.is_none().then(|| SnapshotPlace::complete(plan, role, self.rows, at))
    }

    /// Whether the chunk at hand is still to be told; otherwise the client had it before.
    pub(super) fn is_untold(&self) -> bool {
        !self.is_resumed
    }

    /// No chunk has been told before.
    pub(super) fn is_fresh(&self) -> bool {
        self.border.is_none()
    }

    /// The chunk has been told.
    pub(super) fn tell(&mut self, chunk: Chunk, joining: Joining) {
        if let Some(told) = &mut self.told {
            told.add_all(&chunk.keys);
        }
        self.phase = Phase::Joining(joining);
        // Giving back cannot fail.
        let _ = self.held.resize(0);
        if let Some(fetch) = self.fetch.take() {
            if let (Some(told), Some((key, true)), 0) = (&mut self.told, fetch.told, chunk.count) {
                told.remove(key);
            }
            return;
        }
        self.is_resumed = false;
        self.rows += chunk.count;
        self.key = chunk.key;
        self.before = self.border.take();
        self.border = chunk.last.or_else(|| self.before.clone());
    }

    /// Which sides of the event are for the channel at this point.
    pub(super) fn sides(&mut self, seq: Seq, xid: u32) -> Sides {
        let is_keyless = self.is_keyless();
        match &mut self.phase {
            Phase::Joining(joining) => joining.sides(seq, xid, is_keyless),
            _ => Sides::BOTH,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use tide_feed::snapshot::Snapshot;

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
            most_rows: u64::MAX,
            place: None,
            known: vec![1],
        };
        let asker = Asker { role: "web".into(), claims: "{}".into() };
        let memory = Arc::new(Allowance::new(usize::MAX));
        let told = Told::new(&memory);
        Sync::new(Arc::new(plan), asker, Vec::new(), &memory, Some(told))
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

    const fn sides(before: bool, after: bool) -> Sides {
        Sides { before, after }
    }

    /// The number of the event that is looked at.
    const SEQ: Seq = 7;

    fn keys(beyond: (u8, u8), fetched: Sides) -> BTreeMap<Seq, PlacedKeys> {
        [(SEQ, PlacedKeys { beyond: (Some(beyond.0), Some(beyond.1)), fetched })].into()
    }

    /// A chunk is told, after which an event with keys at these places is looked at.
    fn told(sync: &mut Sync, chunk: Chunk, beyond: (u8, u8), xid: u32) -> Sides {
        let joining = sync.joining(&chunk, 9, &keys(beyond, Sides::default()));
        sync.tell(chunk, joining);
        sync.sides(SEQ, xid)
    }

    #[test]
    fn what_a_chunk_saw_is_left_out_and_what_lies_beyond_it_is_for_the_next() {
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
    fn of_a_table_without_a_key_only_what_its_chunk_did_not_see_is_told() {
        let mut sync = sync();
        let whole = Chunk { key: Vec::new(), ..chunk(None, true, 50) };
        let joining = sync.joining(&whole, 9, &BTreeMap::new());
        sync.tell(whole, joining);

        assert_eq!(sync.sides(SEQ, 49), Sides::default());
        assert_eq!(sync.sides(SEQ, 50), Sides::BOTH);
    }

    #[test]
    fn a_row_that_was_read_by_itself_is_not_told_again_as_far_as_it_was_seen() {
        let mut sync = sync();
        sync.phase = Phase::Live;
        sync.fetch(vec!["5".into()], "{\"id\":5}".into(), Some((5, false)));
        assert!(sync.stands_at(SEQ) && !sync.has_borders());
        assert_eq!(sync.request().only, Some(vec!["5".to_owned()]));

        let row = chunk(Some("5"), true, 60);
        let joining = sync.joining(&row, 9, &keys((0, 0), sides(false, true)));
        sync.tell(row, joining);

        assert_eq!(sync.sides(SEQ, 59), sides(true, false));
        assert_eq!(sync.sides(SEQ, 60), Sides::BOTH);
        assert_eq!(sync.sides(8, 59), Sides::BOTH, "of another row");
        assert!(sync.stands_at(9) && !sync.stands_at(8));
        assert_eq!(sync.rows, 0);
    }

    #[test]
    fn of_a_row_that_was_read_what_is_said_is_by_whether_it_was_told() {
        for (was_told, is_there, expected) in [
            (false, true, ReadRow::Is(Operation::Insert)),
            (true, true, ReadRow::Is(Operation::Update)),
            (true, false, ReadRow::Is(Operation::Delete)),
            (false, false, ReadRow::Nothing),
        ] {
            let mut sync = sync();
            sync.phase = Phase::Live;
            sync.fetch(vec!["5".into()], "{\"id\":5}".into(), Some((5, was_told)));
            assert_eq!(sync.read_row(is_there), (expected, "{\"id\":5}"));
        }
    }

    #[test]
    fn a_row_that_is_read_while_a_chunk_is_joined_leaves_the_chunks_border_where_it_was() {
        let mut sync = sync();
        told(&mut sync, chunk(Some("2"), false, 50), (0, 0), 49);
        told(&mut sync, chunk(Some("4"), false, 60), (1, 1), 59);
        sync.fetch(vec!["1".into()], "{\"id\":1}".into(), Some((1, false)));
        let row = chunk(Some("1"), true, 70);
        assert_eq!(sync.borders(&row), [["2"], ["4"]]);
        assert!(sync.has_borders());

        let beyond = [(SEQ + 1, (1, 2)), (SEQ + 2, (0, 2))].map(|(seq, (old, new))| {
            let beyond = (Some(old), Some(new));
            (seq, PlacedKeys { beyond, fetched: Sides::default() })
        });
        let joining = sync.joining(&row, 20, &beyond.into());
        sync.tell(row, joining);

        // In the second chunk, from before it was read, and after; what goes beyond it is not told.
        assert_eq!(sync.sides(SEQ, 59), Sides::default());
        assert_eq!(sync.sides(SEQ + 1, 65), sides(true, false));
        assert_eq!(sync.sides(SEQ + 2, 65), sides(true, false));
        assert_eq!(sync.request().after, Some(vec!["4".to_owned()]));
        assert!(!sync.stands_at(19) && sync.stands_at(20));
    }

    #[test]
    fn who_goes_on_is_told_what_it_did_not_know() {
        let first = Sync { told: None, ..sync() };
        let at = "00000001000001.000000000000000a00000000".parse().unwrap();
        let place = first.place(&chunk(Some("2"), false, 50), at).unwrap();

        let mut second = Sync { told: None, ..sync() }.resumed(&place);

        assert!(!second.is_untold() && second.stands_at(SEQ));
        let Phase::Read(chunk) = std::mem::replace(&mut second.phase, Phase::Idle) else {
            panic!("{:?}", second.phase)
        };
        assert_eq!(told(&mut second, *chunk, (0, 1), 50), sides(true, false));
        assert_eq!((second.rows, second.request().after), (2, Some(vec!["2".to_owned()])));
        assert!(second.is_untold());
    }
}
