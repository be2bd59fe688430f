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

/// What each byte of an event's row adds to what may be done while the stream waits.
const PER_BYTE_AT_ONCE: Units = 4;

/// What may be done in one turn beside the stream.
const PER_TURN: Units = 512 << 10;

/// What it takes to look at a value at all.
const LOOK: Units = 8;

/// The filters need more work than they may make, or may make now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch;

/// Where filters are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// While the stream waits: what takes longer is put off until beside it.
    Stream,
    /// In turns with others.
    Turn,
}

/// What all filters of one client may still spend.
#[derive(Debug)]
pub struct Effort {
    left: Cell<Units>,
    /// More was asked for than there was.
    is_spent: Cell<bool>,
    /// Of the event that is being looked at, or of the turn.
    now: Cell<Units>,
    /// The stream waits: no filter may take longer than that.
    is_at_once: Cell<bool>,
    /// One would have.
    is_late: Cell<bool>,
    /// The number of the event that something was earned for last.
    event: Cell<Option<u64>>,
    /// Ever.
    total: Cell<u64>,
}

impl Default for Effort {
    fn default() -> Self {
        Effort {
            left: Cell::new(BURST),
            is_spent: Cell::new(false),
            now: Cell::new(PER_TURN),
            is_at_once: Cell::new(false),
            is_late: Cell::new(false),
            event: Cell::new(None),
            total: Cell::new(0),
        }
    }
}

impl Effort {
    /// Another event has come, with a row of so many bytes. Once for all filters.
    pub fn earn(&self, event: u64, row: usize, place: Place) {
        if self.event.replace(Some(event)) == Some(event) {
            return;
        }
        let earned = earned(row);
        // A row larger than that may be looked at as well.
        let most = BURST.max(earned);
        self.left.set(self.left.get().saturating_add(earned).min(most));
        self.is_at_once.set(place == Place::Stream);
        self.is_late.set(false);
        if place == Place::Stream {
            self.now.set(PER_EVENT.saturating_add(row.saturating_mul(PER_BYTE_AT_ONCE)));
        }
    }

    /// Another turn beside the stream begins.
    pub fn begin_turn(&self) {
        self.now.set(PER_TURN);
        self.is_at_once.set(false);
        self.is_late.set(false);
        // What comes next in the stream is another event, be it the same again.
        self.event.set(None);
    }

    /// Whether there is nothing left of this event's time, or this turn's.
    pub fn is_out_of_time(&self) -> bool {
        self.now.get() == 0
    }

    /// Whether a filter was not evaluated to its end, since the stream waits.
    pub fn is_late(&self) -> bool {
        self.is_late.get()
    }

    /// Whether more was asked for than there was.
    pub fn is_spent(&self) -> bool {
        self.is_spent.get()
    }

    /// Some of the filters have ended; the others may go on.
    pub fn forgive(&self, row: usize) {
        self.is_spent.set(false);
        self.left.set(self.left.get().max(earned(row)));
    }

    /// What may be spent at once.
    pub fn left(&self) -> usize {
        self.left.get()
    }

    /// Whether it has enough to spend on this event that nobody else has to be looked for.
    pub fn can_pay(&self, event: u64) -> bool {
        let has_time = self.event.get() != Some(event) || self.now.get() > 0;
        has_time && self.left.get() > BURST / 2
    }

    /// What has been spent ever.
    pub fn total(&self) -> u64 {
        self.total.get()
    }

    pub(super) fn spend(&self, units: Units) -> Result<(), TooMuch> {
        let left = self.left.get().checked_sub(units);
        self.left.set(left.unwrap_or(0));
        let now = self.now.get().checked_sub(units);
        self.now.set(now.unwrap_or(0));
        let is_late = self.is_at_once.get() && now.is_none();
        self.is_late.set(self.is_late.get() || is_late);
        self.total.set(self.total.get().wrapping_add(units as u64));
        self.is_spent.set(self.is_spent.get() || left.is_none());
        left.filter(|_| !is_late).map(drop).ok_or(TooMuch)
    }

    /// A value of so many bytes is looked at.
    pub(super) fn look(&self, bytes: usize) -> Result<(), TooMuch> {
        self.spend(LOOK.saturating_add(bytes))
    }
}

fn earned(row: usize) -> Units {
    PER_EVENT.saturating_add(row.saturating_mul(PER_BYTE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_pay_for_being_looked_at_and_quiet_times_for_a_burst() {
        let effort = Effort::default();
        for event in 0..1_000_000 {
            effort.earn(event, 200, Place::Turn);
            effort.spend(PER_EVENT + 200 * PER_BYTE).unwrap();
        }
        effort.earn(1_000_000, 200, Place::Turn);
        effort.spend(BURST).unwrap();

        assert!(!effort.is_spent());
        assert_eq!(effort.spend(1), Err(TooMuch));
        assert!(effort.is_spent());
        effort.earn(1_000_001, 100 << 20, Place::Turn);
        assert_eq!(effort.spend(10 * (100 << 20)), Ok(()));
    }

    #[test]
    fn an_event_is_earned_once_however_many_filters_look_at_it() {
        let effort = Effort::default();
        effort.spend(BURST).unwrap();

        (0..100).for_each(|_| effort.earn(7, 0, Place::Stream));

        assert_eq!(effort.left(), PER_EVENT);
        effort.spend(PER_EVENT + 1).unwrap_err();
        assert!(effort.is_spent() && !effort.can_pay(8));
        effort.forgive(0);
        assert!(!effort.is_spent());
    }

    #[test]
    fn what_takes_longer_than_the_stream_can_wait_is_for_a_turn() {
        let effort = Effort::default();
        effort.earn(1, 10, Place::Stream);
        effort.spend(PER_EVENT + 10 * PER_BYTE_AT_ONCE).unwrap();
        assert!(effort.is_out_of_time() && !effort.can_pay(1) && effort.can_pay(2));

        effort.begin_turn();

        effort.earn(1, 10, Place::Turn);
        assert!(!effort.is_out_of_time());
        effort.spend(PER_TURN).unwrap();
        effort.earn(2, 10, Place::Turn);
        assert!(effort.is_out_of_time());
        effort.earn(3, 10, Place::Stream);
        assert!(!effort.is_out_of_time());
    }
}
