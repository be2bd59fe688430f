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
