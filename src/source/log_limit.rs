//! The log's share of changes that could not be decoded: each kind now and then, not each one.

use std::time::{Duration, Instant};

use pgrx::prelude::*;

/// A transaction of millions of such changes must not fill the log.
const SILENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct RateLimitedLog {
    last: Option<(String, Instant)>,
    unsaid: u64,
}

impl RateLimitedLog {
    /// Logs the text, unless it has just been logged.
    pub(crate) fn write(&mut self, text: &str) {
        let is_fresh = |(last, when): &(String, Instant)| last == text && when.elapsed() < SILENCE;
        if self.last.as_ref().is_some_and(is_fresh) {
            self.unsaid = self.unsaid.saturating_add(1);
            return;
        }
        log!("pg_tide: {text}");
        if self.unsaid > 0 {
            log!("pg_tide: {} more such changes since the one before", self.unsaid);
        }
        self.unsaid = 0;
        self.last = Some((text.to_owned(), Instant::now()));
    }
}
