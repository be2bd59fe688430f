//! How much work a client's filters may make, counted and not measured, so that the same events
//! always come to the same end.

use std::cell::Cell;

/// One unit is about what looking at a byte of text takes: two nanoseconds.
type Units = usize;

/// What may be spent at once, after a while in which little was.
const BURST: Units = 16 << 20;

/// What each event adds to it, and what each byte of its row does: a row may be looked at several
/// times, but a stream of them takes no more than its size explains.
const PER_EVENT: Units = 64 << 10;
const PER_BYTE: Units = 16;

/// What it takes to look at a value at all.
const LOOK: Units = 8;

/// The filters need more work than they may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch;

/// What those filters may still spend that are evaluated together.
#[derive(Debug)]
pub struct Effort {
    left: Cell<Units>,
    is_spent: Cell<bool>,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { left: Cell::new(BURST), is_spent: Cell::new(false) }
    }
}

impl Effort {
    /// Another event has come, with a row of so many bytes.
    pub fn earn(&self, row: usize) {
        let earned = PER_EVENT.saturating_add(row.saturating_mul(PER_BYTE));
        // A row larger than that may be looked at as well.
        let most = BURST.max(earned);
        self.left.set(self.left.get().saturating_add(earned).min(most));
    }

    /// Whether more was asked for than there was.
    pub fn is_spent(&self) -> bool {
        self.is_spent.get()
    }

    pub(super) fn spend(&self, units: Units) -> Result<(), TooMuch> {
        let left = self.left.get().checked_sub(units);
        self.left.set(left.unwrap_or(0));
        self.is_spent.set(self.is_spent.get() || left.is_none());
        left.map(drop).ok_or(TooMuch)
    }

    /// A value of so many bytes is looked at.
    pub(super) fn look(&self, bytes: usize) -> Result<(), TooMuch> {
        self.spend(LOOK.saturating_add(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_pay_for_being_looked_at_and_quiet_times_for_a_burst() {
        let effort = Effort::default();
        for _ in 0..1_000_000 {
            effort.earn(200);
            effort.spend(PER_EVENT + 200 * PER_BYTE).unwrap();
        }
        effort.earn(200);
        effort.spend(BURST).unwrap();

        assert!(!effort.is_spent());
        assert_eq!(effort.spend(1), Err(TooMuch));
        assert!(effort.is_spent());
        effort.earn(100 << 20);
        assert_eq!(effort.spend(10 * (100 << 20)), Ok(()));
    }
}
