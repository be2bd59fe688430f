//! How often something may happen.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::credentials::Credentials;

/// Tokens whose pace is remembered; past it all of them begin anew.
const TOKENS: usize = 10_000;

/// Allows `rate` per second on average, and as many at once after a quiet second.
#[derive(Debug)]
pub(super) struct TokenBucket {
    tokens: f32,
    filled: Instant,
}

impl TokenBucket {
    pub(super) fn full(rate: u32, now: Instant) -> TokenBucket {
        TokenBucket { tokens: rate as f32, filled: now }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, rate: u32, now: Instant) -> bool {
        self.take_many(1, rate, now)
    }

    /// Takes so many, if there are as many.
    pub(super) fn take_many(&mut self, count: usize, rate: u32, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f32();
        self.tokens = (self.tokens + elapsed * rate as f32).min(rate as f32);
        self.filled = now;
        let enough = self.tokens >= count as f32;
        if enough {
            self.tokens -= count as f32;
        }
        enough
    }
}

/// How much each token may still ask for over HTTP. Connections come and go with every request, so it
/// is not for them to count.
#[derive(Debug, Default)]
pub(super) struct Paces(Mutex<HashMap<[u8; 32], TokenBucket>>);

impl Paces {
    /// Takes so many of what the token may ask for, if there are as many.
    pub(super) fn take(&self, credentials: &Credentials, count: usize, rate: u32) -> bool {
        let now = Instant::now();
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= TOKENS {
            buckets.clear();
        }
        let bucket =
            buckets.entry(credentials.id()).or_insert_with(|| TokenBucket::full(rate, now));
        bucket.take_many(count, rate, now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_lets_a_burst_through_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(10, start);

        let burst = (0..20).filter(|_| bucket.take(10, start)).count();
        let after_half_a_second =
            (0..20).filter(|_| bucket.take(10, start + Duration::from_millis(500))).count();

        assert_eq!(burst, 10);
        assert_eq!(after_half_a_second, 5);
    }

    #[test]
    fn many_are_taken_together_or_not_at_all() {
        let now = Instant::now();
        let mut bucket = TokenBucket::full(10, now);

        assert!(!bucket.take_many(11, 10, now));
        assert!(bucket.take_many(8, 10, now));
        assert!(!bucket.take_many(3, 10, now));
        assert!(bucket.take_many(2, 10, now));
    }

    #[test]
    fn a_quiet_hour_saves_up_no_more_than_a_second() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(10, start);

        let later = start + Duration::from_secs(3600);

        assert_eq!((0..50).filter(|_| bucket.take(10, later)).count(), 10);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(5);
        let mut bucket = TokenBucket::full(1, start);

        assert!(bucket.take(1, start));
        assert!(!bucket.take(1, start - Duration::from_secs(5)));
    }
}
