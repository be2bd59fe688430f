//! Where a client stands in the rows that there were, as a text that it may give back.
//!
//! Nothing is kept for it: it is sealed, so that what comes back is what was said.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tide_feed::catalog::Chunk;
use tide_feed::event::Cursor;
use tide_feed::snapshot::Snapshot;

use super::sync::SnapshotPlan;

/// Transactions that a place may name: where more are running, a client begins anew.
const MOST_RUNNING: usize = 1000;
/// Bytes of one, as text.
const LONGEST: usize = 32 << 10;
/// Bytes of the seal in front of it.
const TAG: usize = 32;

/// A place after a chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPlace {
    /// The channel stood before what comes after it: see [`SnapshotPlace::position`].
    at: String,
    table: u32,
    role: String,
    pub(super) key: Vec<i16>,
    /// The key of the last row of the chunks before.
    pub(super) before: Option<Vec<String>>,
    /// The same with this chunk.
    last: Option<Vec<String>>,
    done: bool,
    snapshot: Snapshot,
    lsn: u64,
    /// Which columns the rows had.
    columns: Vec<i16>,
    /// All rows that there were have been told: from here on the stream says all.
    pub(super) is_complete: bool,
    /// How many rows have been told, with this chunk's.
    pub(super) rows: u64,
}

impl SnapshotPlace {
    /// After a chunk that is about to be told; `before`, `rows`: of those told so far.
    pub(super) fn of(
        chunk: &Chunk,
        (plan, role): (&SnapshotPlan, &str),
        before: Option<&Vec<String>>,
        rows: u64,
        at: Cursor,
    ) -> SnapshotPlace {
        SnapshotPlace {
            key: chunk.key.clone(),
            before: before.cloned(),
            last: chunk.last.clone(),
            done: chunk.done,
            snapshot: chunk.snapshot.clone(),
            lsn: chunk.lsn,
            is_complete: false,
            ..SnapshotPlace::complete(plan, role, rows + chunk.count, at)
        }
    }

    /// After all rows that there were.
    pub(super) fn complete(
        plan: &SnapshotPlan,
        role: &str,
        rows: u64,
        at: Cursor,
    ) -> SnapshotPlace {
        SnapshotPlace {
            at: at.to_string(),
            table: plan.table,
            role: role.to_owned(),
            columns: plan.columns.clone(),
            is_complete: true,
            rows,
            ..SnapshotPlace::default()
        }
    }

    /// Everything up to there has been given.
    pub(super) fn position(&self) -> Option<Cursor> {
        self.at.parse().ok()
    }

    /// Whether it is in the rows of this table, as the role sees them.
    pub(super) fn is_of(&self, plan: &SnapshotPlan, role: &str) -> bool {
        self.table == plan.table && self.columns == plan.columns && self.role == role
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

/// Whether a text could be a place.
pub fn is_place(text: &str) -> bool {
    text.len() <= LONGEST && URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() > TAG)
}

/// With which places are sealed: what a client gives back decides which changes it is told of, and by keys
/// that it may not be able to read. New with each server.
#[derive(Debug)]
pub(super) struct Seal(hmac::Key);

impl Seal {
    pub(super) fn new() -> Option<Seal> {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok().map(Seal)
    }

    /// As clients get it; `None`: it would be too long.
    pub(super) fn seal(&self, place: &SnapshotPlace) -> Option<String> {
        if place.snapshot.xip.len() > MOST_RUNNING {
            return None;
        }
        let json = serde_json::to_vec(place).ok()?;
        let tag = hmac::sign(&self.0, &json);
        let text = URL_SAFE_NO_PAD.encode([tag.as_ref(), &json].concat());
        (text.len() <= LONGEST).then_some(text)
    }

    /// `None`: this server has not said that.
    pub(super) fn open(&self, text: &str) -> Option<SnapshotPlace> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (tag, json) = bytes.split_at_checked(TAG)?;
        hmac::verify(&self.0, json, tag).ok()?;
        serde_json::from_slice(json).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> SnapshotPlace {
        SnapshotPlace {
            at: "00000001000001.000000000000000a00000000".into(),
            table: 7,
            role: "web".into(),
            key: vec![1],
            before: None,
            last: Some(vec!["ü\"'".into()]),
            done: false,
            snapshot: Snapshot { xmin: 4, xmax: 9, xip: vec![5] },
            lsn: 10,
            columns: vec![1, 2],
            is_complete: false,
            rows: 3,
        }
    }

    fn plan(table: u32, columns: Vec<i16>) -> SnapshotPlan {
        let (name, known) = (("public".into(), "t".into()), columns.clone());
        let (conditions, most_rows, place) = (Vec::new(), u64::MAX, None);
        SnapshotPlan { table, name, columns, conditions, most_rows, place, known }
    }

    #[test]
    fn what_is_given_back_is_what_was_given() {
        let seal = Seal::new().unwrap();
        let text = seal.seal(&place()).unwrap();

        assert!(is_place(&text));
        assert_eq!(seal.open(&text), Some(place()));
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    }

    #[test]
    fn what_this_server_has_not_said_is_none() {
        let seal = Seal::new().unwrap();
        let json = serde_json::to_vec(&place()).unwrap();
        let bare = URL_SAFE_NO_PAD.encode([&[0; TAG][..], &json].concat());
        let others = Seal::new().unwrap().seal(&place()).unwrap();
        for text in ["", "e30", "*", "ü", &bare, &others, &seal.seal(&place()).unwrap()[1..]] {
            assert_eq!(seal.open(text), None, "{text}");
        }
    }

    #[test]
    fn a_long_one_is_not_given() {
        let seal = Seal::new().unwrap();
        let long = SnapshotPlace { last: Some(vec!["x".repeat(LONGEST)]), ..place() };
        let snapshot = Snapshot { xmin: 0, xmax: 0, xip: vec![0; MOST_RUNNING + 1] };
        let crowded = SnapshotPlace { snapshot, ..place() };

        assert_eq!((seal.seal(&long), seal.seal(&crowded)), (None, None));
        assert!(!is_place(&"A".repeat(LONGEST + 4)));
    }

    #[test]
    fn it_is_of_its_table_its_columns_and_its_role() {
        assert!(place().is_of(&plan(7, vec![1, 2]), "web"));
        assert!(!place().is_of(&plan(8, vec![1, 2]), "web"));
        assert!(!place().is_of(&plan(7, vec![1]), "web"));
        assert!(!place().is_of(&plan(7, vec![1, 2]), "app"));
    }
}
