//! The newest events, bounded in bytes, age and WAL held back, for those who resume and those who lag.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tide_feed::event::{Batch, Event, Lsn, Position};
use tide_feed::snapshot::Snapshot;

use crate::allowance::{Allowance, Share};

/// Counts every event the hub has taken in since the worker started.
pub(super) type Seq = u64;

struct Entry {
    batch: Arc<Batch>,
    first: Seq,
    size: usize,
    arrived: Instant,
}

/// A ring of batches. Evicts from the oldest end; what it holds is without gaps.
pub(super) struct History {
    entries: VecDeque<Entry>,
    bytes: usize,
    part: Arc<Allowance>,
    share: Share,
    capacity: usize,
    retention: Duration,
    /// Bytes of WAL that the oldest event may lie back.
    reach: u64,
    /// Address up to which everything has been decoded.
    decoded: Lsn,
    next: Seq,
    /// Whoever has seen this position has missed nothing that is not here.
    floor: Position,
    /// Nor has whoever could see this transaction, and all before it.
    newest_dropped: u32,
}

impl History {
    /// `part`: the memory for it, of which it takes up to `capacity`.
    pub(super) fn new(
        part: &Arc<Allowance>,
        capacity: usize,
        retention: Duration,
        reach: u64,
    ) -> History {
        History {
            entries: VecDeque::new(),
            bytes: 0,
            part: Arc::clone(part),
            share: Share::of(part),
            capacity,
            retention,
            reach,
            decoded: Lsn(0),
            next: 0,
            floor: Position::default(),
            newest_dropped: 0,
        }
    }

    pub(super) fn set_reach(&mut self, reach: u64) {
        self.reach = reach;
    }

    /// Begins a new history: the stream was opened at `from`, and no transaction has the number `next_xid`
    /// yet.
    pub(super) fn restart(&mut self, from: Lsn, next_xid: u32) {
        self.entries.clear();
        self.bytes = 0;
        self.count_bytes();
        self.decoded = from;
        self.floor = Position::before(from);
        self.newest_dropped = next_xid.wrapping_sub(1);
    }

    pub(super) fn push(&mut self, batch: Arc<Batch>, now: Instant) -> Seq {
        let first = self.next;
        let size = batch.size();
        self.next += batch.events.len() as Seq;
        self.bytes += size;
        self.count_bytes();
        self.entries.push_back(Entry { batch, first, size, arrived: now });
        first
    }

    /// Everything that committed before `lsn` has been decoded.
    pub(super) fn decoded_to(&mut self, lsn: Lsn) {
        self.decoded = lsn;
    }

    pub(super) fn decoded(&self) -> Lsn {
        self.decoded
    }

    /// The sequence number that the next event will get.
    pub(super) fn head(&self) -> Seq {
        self.next
    }

    /// The sequence number of the oldest event that is kept; the head if there is none.
    pub(super) fn start(&self) -> Seq {
        self.entries.front().map_or(self.next, |oldest| oldest.first)
    }

    /// What lies before the first transaction that is kept whole, as far as it has been fed.
    pub(super) fn first_whole(&self) -> Position {
        match self.oldest_commit() {
            Some(commit) if commit == self.floor.commit => Position::end_of(commit),
            _ => self.floor,
        }
    }

    /// What lies before the newest transaction, if more of that may come and it is kept whole.
    pub(super) fn unfinished(&self) -> Option<Position> {
        let newest = self.entries.back()?.batch.events.last()?;
        let is_cut = newest.position.commit == self.floor.commit;
        (!newest.last_in_tx && !is_cut).then(|| Position::before(newest.position.commit))
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// An event may be larger than all that there is for the history: then it is alone in it.
    fn count_bytes(&mut self) {
        let _ = self.share.resize(self.bytes.min(self.part.limit()));
    }

    /// How many events are kept.
    pub(super) fn count(&self) -> u64 {
        self.entries.front().map_or(0, |oldest| self.next - oldest.first)
    }

    /// Whether everything that a snapshot could not see is kept.
    pub(super) fn has_unseen(&self, snapshot: &Snapshot) -> bool {
        snapshot.sees_all_to(self.newest_dropped)
    }

    pub(super) fn floor(&self) -> Position {
        self.floor
    }

    /// Position of the newest event, if any is kept.
    pub(super) fn newest(&self) -> Option<Position> {
        self.entries.back().and_then(|entry| entry.batch.events.last()).map(|e| e.position)
    }

    /// Everything up to here has been fed, and whatever commits at it or before could be seen.
    pub(super) fn reached(&self) -> Position {
        let fed = self.newest().unwrap_or(self.floor).max(self.floor);
        fed.max(Position::before(self.decoded))
    }

    /// Where a reader stands who is to be given the event `seq` next.
    pub(super) fn before(&self, seq: Seq) -> Position {
        let previous = seq.checked_sub(1).and_then(|seq| self.at(seq));
        let event = previous.and_then(|(batch, index)| batch.events.get(index));
        event.map_or(self.floor, |event| event.position)
    }

    /// Whether it may be a position of this history: either there is an event, or none can be
    /// expected there. (The WAL that a copy of the data directory writes has the same addresses.)
    pub(super) fn may_have(&self, position: Position) -> bool {
        let is_between = position.ordinal == u32::MAX || position <= self.floor;
        let is_there = || self.before(self.after(position)) == position;
        is_between || position > self.reached() || is_there()
    }

    /// Where decoding would have to begin to get back everything that is kept.
    pub(super) fn oldest_commit(&self) -> Option<Lsn> {
        self.entries.front().and_then(|entry| entry.batch.events.first()).map(|e| e.position.commit)
    }

    /// The first event that is not kept any more after the next [`History::evict`], if one is due
    /// for so much more to come.
    pub(super) fn due(&self, coming: usize, now: Instant) -> Option<Seq> {
        let oldest = self.entries.front()?;
        let too_much = self.is_full(coming);
        let too_old = now.saturating_duration_since(oldest.arrived) >= self.retention;
        let commit = oldest.batch.events.first().map_or(self.decoded, |e| e.position.commit);
        let too_far = !self.reaches(commit);
        (too_much || too_old || too_far).then(|| oldest.first + oldest.batch.events.len() as Seq)
    }

    /// Whether so much WAL may be held back.
    pub(super) fn reaches(&self, lsn: Lsn) -> bool {
        self.decoded.0.saturating_sub(lsn.0) <= self.reach
    }

    /// Whether there is no room for so much more.
    pub(super) fn is_full(&self, coming: usize) -> bool {
        self.bytes + coming > self.capacity
    }

    /// Drops the oldest batch.
    pub(super) fn evict(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.size;
            self.count_bytes();
            for Event { position, xid, .. } in &entry.batch.events {
                self.floor = *position;
                if xid.wrapping_sub(self.newest_dropped) < 1 << 31 {
                    self.newest_dropped = *xid;
                }
            }
        }
    }

    /// The batch that holds the event `seq`, and the event's index in it.
    pub(super) fn at(&self, seq: Seq) -> Option<(&Arc<Batch>, usize)> {
        let index = self.entries.partition_point(|entry| entry.first <= seq).checked_sub(1)?;
        let entry = self.entries.get(index)?;
        let offset = usize::try_from(seq - entry.first).ok()?;
        (offset < entry.batch.events.len()).then_some((&entry.batch, offset))
    }

    /// The first event after `position`; the head if there is none.
    pub(super) fn after(&self, position: Position) -> Seq {
        let index = self.entries.partition_point(|entry| {
            entry.batch.events.last().is_some_and(|event| event.position <= position)
        });
        self.entries.get(index).map_or(self.next, |entry| {
            let offset = entry.batch.events.partition_point(|event| event.position <= position);
            entry.first + offset as Seq
        })
    }

    /// The newest events, newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = (Seq, &Arc<Batch>, &Event)> {
        self.entries.iter().rev().flat_map(|entry| {
            let numbered = entry.batch.events.iter().enumerate().rev();
            numbered.map(move |(i, event)| (entry.first + i as Seq, &entry.batch, event))
        })
    }
}

#[cfg(test)]
mod tests {
    use tide_feed::event::{BatchBuilder, EventKind, Failed};

    use super::*;

    fn history(capacity: usize, retention: Duration, reach: u64) -> History {
        History::new(&Arc::new(Allowance::new(usize::MAX)), capacity, retention, reach)
    }

    fn batch(commits: &[u64]) -> Arc<Batch> {
        let event = |commit: &u64| Event::alone(*commit, EventKind::Failed(Failed::default()));
        let events = commits.iter().map(event).collect();
        let mut batch = BatchBuilder::default();
        batch.events = events;
        Arc::new(batch.finish())
    }

    fn at(commit: u64) -> Position {
        Position { commit: Lsn(commit), ordinal: 0 }
    }

    #[test]
    fn events_are_found_by_position_and_by_number() {
        let mut history = history(usize::MAX, Duration::MAX, u64::MAX);
        history.push(batch(&[10, 20]), Instant::now());
        history.push(batch(&[30]), Instant::now());

        assert_eq!(history.after(at(5)), 0);
        assert_eq!(history.after(at(10)), 1);
        assert_eq!(history.after(at(20)), 2);
        assert_eq!(history.after(at(30)), history.head());
        assert_eq!(history.at(2).map(|(b, i)| b.events[i].position), Some(at(30)));
        assert!(history.at(3).is_none());
    }

    #[test]
    fn what_was_evicted_raises_the_floor() {
        let mut history = history(0, Duration::MAX, u64::MAX);
        history.restart(Lsn(8), 1);
        history.push(batch(&[10]), Instant::now());
        assert_eq!(history.due(0, Instant::now()), Some(1));

        history.evict();

        assert_eq!(history.floor(), at(10));
        assert_eq!(history.bytes(), 0);
        assert!(history.due(0, Instant::now()).is_none());
    }

    #[test]
    fn events_whose_wal_lies_too_far_back_are_not_kept() {
        let mut history = history(usize::MAX, Duration::MAX, 1000);
        history.push(batch(&[10]), Instant::now());

        history.decoded_to(Lsn(1010));
        assert!(history.due(0, Instant::now()).is_none());
        history.decoded_to(Lsn(1011));
        assert_eq!(history.due(0, Instant::now()), Some(1));
    }

    #[test]
    fn room_is_made_for_what_comes_and_an_event_too_large_for_all_is_alone() {
        let size = batch(&[10]).size();
        let part = Arc::new(Allowance::new(3 * size));
        let mut history = History::new(&part, 2 * size, Duration::MAX, u64::MAX);
        let now = Instant::now();
        history.push(batch(&[10]), now);

        assert!(history.due(size, now).is_none());
        history.push(batch(&[20]), now);
        assert_eq!(part.used(), 2 * size);
        for end in [1, 2] {
            assert_eq!(history.due(100 * size, now), Some(end));
            history.evict();
        }

        assert!(history.due(100 * size, now).is_none());
        assert_eq!(part.used(), 0);
    }

    #[test]
    fn events_grow_too_old_to_keep() {
        let mut history = history(usize::MAX, Duration::from_secs(10), u64::MAX);
        let start = Instant::now();
        history.push(batch(&[10]), start);

        assert!(history.due(0, start + Duration::from_secs(9)).is_none());
        assert_eq!(history.due(0, start + Duration::from_secs(10)), Some(1));
    }
}
