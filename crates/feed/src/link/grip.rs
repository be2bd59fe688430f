//! How much of the past a server keeps the slot from leaving behind. WAL that is held back fills the
//! disk, which ends more than a server.

use std::time::{Duration, Instant};

use crate::event::Lsn;

/// Bytes of WAL that a server may hold besides: what it has been told of, and not looked at yet.
const MARGIN: u64 = 256 << 20;

/// Watches what one worker's servers hold.
#[derive(Debug)]
pub struct Grip {
    allowed: u64,
    /// Since when the server holds more.
    since: Option<Instant>,
    /// What a server before it did not let go of.
    clung: Option<Lsn>,
}

/// The server has not let go for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clings {
    /// And neither has the one before, of the same.
    pub again: bool,
}

impl Grip {
    /// `allowed`: bytes of WAL that may be held back for the history.
    pub fn new(allowed: u64) -> Grip {
        Grip { allowed: allowed.saturating_add(MARGIN), since: None, clung: None }
    }

    /// There is another server.
    pub fn begin(&mut self) {
        self.since = None;
    }

    /// The server has been told of everything up to `told`, and has let go of what is before
    /// `confirmed`. It may hold too much for so long.
    pub fn look(
        &mut self,
        told: Lsn,
        confirmed: Lsn,
        now: Instant,
        patience: Duration,
    ) -> Option<Clings> {
        if told.0.saturating_sub(confirmed.0) <= self.allowed {
            self.since = None;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) <= patience {
            return None;
        }
        self.since = None;
        let again = self.clung.replace(confirmed) == Some(confirmed);
        Some(Clings { again })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const ALLOWED: u64 = 1 << 30;

    #[test]
    fn a_server_that_confirms_nothing_is_noticed() {
        let (mut grip, now) = (Grip::new(ALLOWED), Instant::now());
        let told = Lsn(ALLOWED + MARGIN + 1);

        assert_eq!(grip.look(told, Lsn(0), now, PATIENCE), None);
        assert_eq!(grip.look(told, Lsn(0), now + PATIENCE, PATIENCE), None);
        let late = now + PATIENCE + Duration::from_secs(1);
        assert_eq!(grip.look(told, Lsn(0), late, PATIENCE), Some(Clings { again: false }));
    }

    #[test]
    fn a_history_within_the_setting_is_held_for_as_long_as_it_likes() {
        let (mut grip, now) = (Grip::new(ALLOWED), Instant::now());
        let held = Lsn(ALLOWED + MARGIN);
        for minutes in 0..100 {
            let now = now + Duration::from_secs(60 * minutes);
            assert_eq!(grip.look(held, Lsn(0), now, PATIENCE), None);
        }

        let mut grip = Grip::new(u64::MAX);
        for minutes in 0..100 {
            let now = now + Duration::from_secs(60 * minutes);
            assert_eq!(grip.look(Lsn(u64::MAX), Lsn(0), now, PATIENCE), None);
        }
    }

    #[test]
    fn who_lets_go_in_time_is_let_be() {
        let (mut grip, now) = (Grip::new(ALLOWED), Instant::now());
        let too_much = ALLOWED + MARGIN + 1;
        for round in 0..10 {
            let now = now + PATIENCE * 2 * round;
            let confirmed = u64::from(round) * 100;
            let told = Lsn(confirmed + too_much);
            assert_eq!(grip.look(told, Lsn(confirmed), now, PATIENCE), None);
            assert_eq!(grip.look(told, Lsn(confirmed + 100), now + PATIENCE, PATIENCE), None);
        }
    }

    #[test]
    fn the_next_server_has_its_own_time_and_its_fault_is_told_from_the_first_ones() {
        let (mut grip, mut now) = (Grip::new(ALLOWED), Instant::now());
        let mut clings = |confirmed: u64| {
            let told = Lsn(confirmed + ALLOWED + MARGIN + 1);
            grip.begin();
            assert_eq!(grip.look(told, Lsn(confirmed), now, PATIENCE), None);
            now += PATIENCE * 2;
            grip.look(told, Lsn(confirmed), now, PATIENCE)
        };

        assert_eq!(clings(7), Some(Clings { again: false }));
        assert_eq!(clings(8), Some(Clings { again: false }));
        assert_eq!(clings(8), Some(Clings { again: true }));
    }
}
