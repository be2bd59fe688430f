//! Which transactions a query could see, and such a moment as clients give it back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::event::Cursor;

/// Which transactions could be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// All before it, those that were rolled back aside.
    pub xmin: u64,
    /// None from it on.
    pub xmax: u64,
    /// Of those between, these not: in order.
    #[serde(deserialize_with = "sorted")]
    pub xip: Vec<u64>,
}

fn sorted<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    let mut xip = Vec::deserialize(deserializer)?;
    xip.sort_unstable();
    Ok(xip)
}

impl Snapshot {
    /// Whether a transaction could be seen that has committed. Of its number the low half is known, and
    /// that it is no more than 2^31 from the snapshot's.
    pub fn sees(&self, xid: u32) -> bool {
        let full = self.whole(xid);
        full < self.xmin || full < self.xmax && self.xip.binary_search(&full).is_err()
    }

    /// As one that this transaction, which it is no more than 2^31 from, has not been seen by.
    pub fn add_unseen(&mut self, xid: u32) {
        let full = self.whole(xid);
        if full < self.xmax
            && let Err(place) = self.xip.binary_search(&full)
        {
            self.xip.insert(place, full);
            self.xmin = self.xmin.min(full);
        }
    }

    /// Whether a transaction of this number, and all before it that have committed, could be seen.
    pub fn sees_all_to(&self, xid: u32) -> bool {
        self.whole(xid) < self.xmin
    }

    fn whole(&self, xid: u32) -> u64 {
        let distance = xid.wrapping_sub(self.xmax as u32) as i32;
        self.xmax.saturating_add_signed(i64::from(distance))
    }
}

/// Transactions that a token may name: more than can run.
const MOST_RUNNING: usize = 10_000;

/// What a query could see, as `tide.snapshot_token()` says it and a `since` gives it back:
/// `<position>/<xmin>:<xmax>:<xip, with commas>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotToken {
    /// What has committed after it could not be seen.
    pub cursor: Cursor,
    /// What could be seen of what has committed before.
    pub snapshot: Snapshot,
}

impl fmt::Display for SnapshotToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Snapshot { xmin, xmax, xip } = &self.snapshot;
        write!(f, "{}/{xmin}:{xmax}:", self.cursor)?;
        for (index, xid) in xip.iter().enumerate() {
            write!(f, "{}{xid}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// The text is not one that `tide.snapshot_token()` has given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a position: expected what tide.snapshot_token() gives")]
pub struct SnapshotTokenError;

impl FromStr for SnapshotToken {
    type Err = SnapshotTokenError;

    fn from_str(text: &str) -> Result<SnapshotToken, SnapshotTokenError> {
        let (cursor, snapshot) = text.split_once('/').ok_or(SnapshotTokenError)?;
        let parts: Vec<&str> = snapshot.split(':').collect();
        let &[xmin, xmax, xip] = parts.as_slice() else { return Err(SnapshotTokenError) };
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u64>().map_err(|_| SnapshotTokenError),
            false => Err(SnapshotTokenError),
        };
        let xip = xip.split(',').filter(|_| !xip.is_empty()).map(number);
        let mut xip = xip.collect::<Result<Vec<u64>, _>>()?;
        xip.sort_unstable();
        let snapshot = Snapshot { xmin: number(xmin)?, xmax: number(xmax)?, xip };
        let is_between = |xid: &u64| (snapshot.xmin..snapshot.xmax).contains(xid);
        let Snapshot { xmin, xmax, xip } = &snapshot;
        if xmin > xmax || xip.len() > MOST_RUNNING || !xip.iter().all(is_between) {
            return Err(SnapshotTokenError);
        }
        Ok(SnapshotToken { cursor: cursor.parse().map_err(|_| SnapshotTokenError)?, snapshot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_transactions_are_compared_across_their_wrap() {
        let snapshot =
            Snapshot { xmin: (1 << 32) + 5, xmax: (1 << 32) + 9, xip: vec![(1 << 32) + 7] };

        assert!(snapshot.sees(u32::MAX) && snapshot.sees(4) && snapshot.sees(6));
        assert!(!snapshot.sees(7) && snapshot.sees(8) && !snapshot.sees(9) && !snapshot.sees(100));
        assert!(snapshot.sees_all_to(u32::MAX) && snapshot.sees_all_to(4));
        assert!(!snapshot.sees_all_to(5) && !snapshot.sees_all_to(9));
    }

    #[test]
    fn one_more_is_not_seen() {
        let mut snapshot = Snapshot { xmin: 5, xmax: 9, xip: vec![5, 7] };
        for xid in [7, 3, 8, 9, 100] {
            snapshot.add_unseen(xid);
        }

        assert_eq!(snapshot, Snapshot { xmin: 3, xmax: 9, xip: vec![3, 5, 7, 8] });
    }

    #[test]
    fn those_that_ran_are_in_order_however_they_come() {
        let read = serde_json::from_str::<Snapshot>(r#"{"xmin":1,"xmax":9,"xip":[7,3,5]}"#);
        let token = "00000001000001.000000000000000affffffff/1:9:7,3,5".parse::<SnapshotToken>();

        assert_eq!(read.unwrap().xip, [3, 5, 7]);
        assert_eq!(token.unwrap().snapshot.xip, [3, 5, 7]);
    }

    #[test]
    fn a_token_is_read_as_it_is_written() {
        let cursor = "00000001000001.000000000000000affffffff";
        for text in ["/4:9:5,7", "/4:4:", "/0:18446744073709551615:1"] {
            let text = format!("{cursor}{text}");
            assert_eq!(text.parse::<SnapshotToken>().map(|token| token.to_string()), Ok(text));
        }
    }

    #[test]
    fn whatever_else_is_none() {
        let cursor = "00000001000001.000000000000000affffffff";
        for snapshot in [
            "", "/", "/4:9", "/9:4:", "/4:9:5,", "/4:9:,", "/4:9:+5", "/-4:9:", "/4:9:5:6",
            "/4:9:ü",
        ] {
            let text = format!("{cursor}{snapshot}");
            assert_eq!(text.parse::<SnapshotToken>(), Err(SnapshotTokenError), "{text}");
        }
        assert!("yesterday/4:9:".parse::<SnapshotToken>().is_err());
        assert!("/4:9:".parse::<SnapshotToken>().is_err());
    }
}
