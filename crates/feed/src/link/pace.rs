//! How fast a server reads while it is waited for.

use std::time::{Duration, Instant};

/// Bytes that a server takes in the time that it has to answer, or it is as good as gone: one byte
/// now and then is not reading.
const LEAST: usize = 64 << 10;

/// Counts what it takes, from when it was first waited for.
#[derive(Debug, Default)]
pub struct Pace {
    since: Option<Instant>,
    taken: usize,
}

impl Pace {
    /// It has taken so much.
    pub fn took(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes);
    }

    /// Whether it has been waited for since [`Pace::reset`].
    pub fn is_measured(&self) -> bool {
        self.since.is_some()
    }

    /// It has read everything: whatever comes now, it has not been waited for.
    pub fn reset(&mut self) {
        self.since = None;
    }

    /// It is waited for, and has so much time to read on. Not each time anew: it may have taken just
    /// what it was waited for with.
    pub fn is_too_slow(&mut self, now: Instant, patience: Duration) -> bool {
        let Some(since) = self.since else {
            (self.since, self.taken) = (Some(now), 0);
            return false;
        };
        if now.saturating_duration_since(since) <= patience {
            return false;
        }
        let is_too_slow = self.taken < LEAST;
        (self.since, self.taken) = (Some(now), 0);
        is_too_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Whether a server is waited for in vain that takes so much every 29 seconds.
    fn is_given_up(bytes: usize) -> bool {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        (0..10).any(|_| {
            now += Duration::from_secs(29);
            pace.took(bytes);
            pace.is_too_slow(now, PATIENCE)
        })
    }

    #[test]
    fn a_byte_now_and_then_is_not_reading() {
        assert!(is_given_up(0));
        assert!(is_given_up(1));
        assert!(is_given_up(1_000));
        assert!(!is_given_up(LEAST));
    }

    #[test]
    fn who_has_read_everything_has_all_the_time_again() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        assert!(!pace.is_too_slow(begun, PATIENCE));
        assert!(pace.is_measured());

        pace.reset();

        assert!(!pace.is_measured());
        assert!(!pace.is_too_slow(begun + 2 * PATIENCE, PATIENCE));
        assert!(!pace.is_too_slow(begun + 3 * PATIENCE, PATIENCE));
        assert!(pace.is_too_slow(begun + 4 * PATIENCE, PATIENCE));
    }
}
