//! When to try again what has failed.

use std::time::{Duration, Instant};

/// Soon at first, then ever later, while it keeps failing quickly.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    delay: Duration,
    longest: Duration,
    due: Option<Instant>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(200);
    /// What has lasted this long has not failed quickly.
    const QUICK: Duration = Duration::from_secs(2);
    /// The longest pause after what has taken too long.
    const REST: Duration = Duration::from_secs(60);

    /// Waits ten seconds at most.
    pub const fn usual() -> Backoff {
        Backoff::up_to(Duration::from_secs(10))
    }

    pub const fn up_to(longest: Duration) -> Backoff {
        Backoff { delay: Backoff::FIRST, longest, due: None }
    }

    /// It failed, or ended, after this long.
    pub fn failed_after(&mut self, lasted: Duration) {
        if lasted >= Backoff::QUICK {
            self.delay = Backoff::FIRST;
        }
        self.due = Some(Instant::now() + self.delay);
        self.delay = (self.delay * 2).min(self.longest);
    }

    /// It took so long that it was given up, while others waited for it: pauses as long at least, and
    /// longer each time.
    pub fn timed_out_after(&mut self, lasted: Duration) {
        let pause = self.delay.max(lasted).min(Backoff::REST);
        self.due = Some(Instant::now() + pause);
        self.delay = (pause * 2).min(Backoff::REST);
    }

    /// Forgets the failures: at once.
    pub fn reset(&mut self) {
        *self = Backoff::up_to(self.longest);
    }

    pub fn is_due(&self) -> bool {
        self.wait().is_zero()
    }

    /// How long until it is due.
    pub fn wait(&self) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_taking_too_long_rests_ever_longer() {
        let (mut backoff, lasted) = (Backoff::usual(), Duration::from_secs(10));
        let mut pauses = Vec::new();

        for _ in 0..5 {
            backoff.timed_out_after(lasted);
            // To the second.
            pauses.push(backoff.wait().as_secs_f64().ceil());
        }
        assert_eq!(pauses, [10.0, 20.0, 40.0, 60.0, 60.0]);
        backoff.reset();
        assert!(backoff.is_due());
    }
}
