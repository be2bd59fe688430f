//! Waiting for conditions.

use std::time::{Duration, Instant};

/// How long anything may take. Generous: it only ever passes when a test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` gives a value and returns it.
#[track_caller]
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "gave up waiting until {what}");
        std::thread::park_timeout(PAUSE);
    }
}
