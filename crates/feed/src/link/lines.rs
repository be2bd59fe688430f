//! How many of a server's lines Postgres's log has room for: it is on a disk that has an end, and is
//! there for others as well.

use std::time::{Duration, Instant};

/// Lines at once.
const AT_ONCE: u32 = 100;
/// One more each time this has passed.
const EVERY: Duration = Duration::from_millis(100);

/// Says which lines are written, and counts the others.
#[derive(Debug)]
pub struct LineBudget {
    left: u32,
    /// Up to when the passing of time has been counted.
    counted: Instant,
    dropped: u64,
}

impl LineBudget {
    pub fn new(now: Instant) -> LineBudget {
        LineBudget { left: AT_ONCE, counted: now, dropped: 0 }
    }

    /// Whether the next line is to be written.
    pub fn admits(&mut self, now: Instant) -> bool {
        let is_admitted = self.take(now);
        if !is_admitted {
            self.dropped = self.dropped.saturating_add(1);
        }
        is_admitted
    }

    /// How many lines were not written, once there is room to say so; they are forgotten then.
    pub fn take_dropped(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.dropped > 0 && self.take(now);
        is_due.then(|| std::mem::take(&mut self.dropped))
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted).as_millis() / EVERY.as_millis();
        let more = u32::try_from(passed).unwrap_or(u32::MAX).min(AT_ONCE - self.left);
        self.left += more;
        self.counted = if self.left == AT_ONCE { now } else { self.counted + EVERY * more };
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(budget: &mut LineBudget, now: Instant, lines: u32) -> usize {
        (0..lines).filter(|_| budget.admits(now)).count()
    }

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let begun = Instant::now();
        let mut budget = LineBudget::new(begun);

        assert_eq!(admitted(&mut budget, begun, 1024), 100);
        assert_eq!(budget.take_dropped(begun), None);
        let later = begun + Duration::from_secs(1);
        assert_eq!(budget.take_dropped(later), Some(924));
        assert_eq!(admitted(&mut budget, later, 1024), 9);
        assert_eq!(budget.take_dropped(later + EVERY), Some(1015));
        assert_eq!(budget.take_dropped(later + 2 * EVERY), None);
    }

    #[test]
    fn who_says_little_is_heard_whatever_he_said_before() {
        let begun = Instant::now();
        let mut budget = LineBudget::new(begun);
        admitted(&mut budget, begun, 1024);

        for tenths in 1..1000 {
            assert!(budget.admits(begun + EVERY * tenths));
        }
        assert_eq!(admitted(&mut budget, begun + Duration::from_secs(3600), 1024), 100);
    }
}
