//! Where a client stands in the rows that there were, as a text that it may give back.
//!
//! It holds nothing that the client could not know, and says nothing that it could not ask for: whatever
//! is made of it is read as the client's role.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tide_feed::catalog::Chunk;
use tide_feed::event::Cursor;
use tide_feed::snapshot::Snapshot;

use super::sync::SnapshotPlan;

/// Transactions that a place may name: where more are running, a client begins anew.
const MOST_RUNNING: usize = 1000;
/// Bytes of the keys in one.
const LONGEST: usize = 8 << 10;

/// A place after a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPlace {
    /// The channel stood before what comes after it: see [`SnapshotPlace::position`].
    at: String,
    table: u32,
    pub(super) key: Vec<i16>,
    /// The key of the last row of the chunks before.
    pub(super) before: Option<Vec<String>>,
    /// The same with this chunk.
    last: Option<Vec<String>>,
    done: bool,
    snapshot: Snapshot,
    lsn: u64,
    /// How many rows have been told, with this chunk's.
    pub(super) rows: u64,
}

impl SnapshotPlace {
    /// After a chunk that is about to be told; `before`, `rows`: of those told so far.
    pub(super) fn of(
        chunk: &Chunk,
        plan: &SnapshotPlan,
        before: Option<&Vec<String>>,
        rows: u64,
        at: Cursor,
    ) -> SnapshotPlace {
        SnapshotPlace {
            at: at.to_string(),
            table: plan.table,
            key: chunk.key.clone(),
            before: before.cloned(),
            last: chunk.last.clone(),
            done: chunk.done,
            snapshot: chunk.snapshot.clone(),
            lsn: chunk.lsn,
            rows: rows + chunk.count,
        }
    }

    /// As clients get it; `None`: it would be too long.
    pub(super) fn to_text(&self) -> Option<String> {
        let keys = self.before.iter().chain(&self.last).flatten().map(String::len).sum::<usize>();
        let is_short = keys <= LONGEST && self.snapshot.xip.len() <= MOST_RUNNING;
        let json = serde_json::to_vec(self).ok().filter(|_| is_short)?;
        Some(URL_SAFE_NO_PAD.encode(json))
    }

    /// `None`: pg_tide has not said that.
    pub fn parse(text: &str) -> Option<SnapshotPlace> {
        let json = URL_SAFE_NO_PAD.decode(text).ok()?;
        let place: SnapshotPlace = serde_json::from_slice(&json).ok()?;
        place.at.parse::<Cursor>().ok().map(|_| place)
    }

    /// Bytes that it takes up, about.
    pub fn memory(&self) -> usize {
        let keys = self.before.iter().chain(&self.last).flatten();
        let keys = keys.map(|key| size_of::<String>() + 16 + key.len()).sum::<usize>();
        size_of::<SnapshotPlace>() + keys + 8 * self.snapshot.xip.len() + 2 * self.key.len()
    }

    /// Everything up to there has been given.
    pub(super) fn position(&self) -> Option<Cursor> {
        self.at.parse().ok()
    }

    /// Whether it is in the rows of this table, and of what the stream has come to.
    pub(super) fn is_of(&self, table: u32, end: u64) -> bool {
        self.table == table && self.lsn <= end && !self.key.is_empty()
    }

    /// The chunk after which it is, without its rows.
    pub(super) fn chunk(&self) -> Chunk {
        Chunk {
            key: self.key.clone(),
            count: 0,
            rows: Box::<RawValue>::default(),
            keys: Box::<RawValue>::default(),
            last: self.last.clone(),
            done: self.done,
            snapshot: self.snapshot.clone(),
            lsn: self.lsn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> SnapshotPlace {
        SnapshotPlace {
            at: "00000001000001.000000000000000a00000000".into(),
            table: 7,
            key: vec![1],
            before: None,
            last: Some(vec!["ü\"'".into()]),
            done: false,
            snapshot: Snapshot { xmin: 4, xmax: 9, xip: vec![5] },
            lsn: 10,
            rows: 3,
        }
    }

    #[test]
    fn what_is_given_back_is_what_was_given() {
        let text = place().to_text().unwrap();

        assert_eq!(SnapshotPlace::parse(&text), Some(place()));
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    }

    #[test]
    fn whatever_else_is_none() {
        let odd = SnapshotPlace { at: "yesterday".into(), ..place() };
        let odd = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&odd).unwrap());
        for text in ["", "e30", "bnVsbA", "*", "ü", &odd, &place().to_text().unwrap()[1..]] {
            assert_eq!(SnapshotPlace::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_long_one_is_not_given() {
        let long = SnapshotPlace { last: Some(vec!["x".repeat(LONGEST + 1)]), ..place() };
        let snapshot = Snapshot { xmin: 0, xmax: 0, xip: vec![0; MOST_RUNNING + 1] };
        let crowded = SnapshotPlace { snapshot, ..place() };

        assert_eq!((long.to_text(), crowded.to_text()), (None, None));
    }

    #[test]
    fn it_is_of_its_table_and_of_what_has_been() {
        assert!(place().is_of(7, 10) && !place().is_of(8, 10) && !place().is_of(7, 9));
    }
}
