//! Who is waited for, when what is kept for those who lag is full: nobody but fast readers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::handle::SessionId;
use super::registry::Registry;

/// Who may be waited for.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// How long connections are watched before they are compared: what those that have stalled can
    /// delay the others by, all together and once.
    pub(super) watch: Duration,
    /// Bytes per second. Who reads at least this fast sets the pace for all, but only during a
    /// burst larger than what is kept.
    pub(super) least: u64,
}

/// Finds connections that drain too little while they are watched.
pub(super) struct SlowConsumers {
    pace: Pace,
    watch: Option<Watch>,
}

struct Watch {
    since: Instant,
    /// What each had been sent then.
    sent: HashMap<SessionId, u64>,
}

impl SlowConsumers {
    pub(super) fn new(pace: Pace) -> SlowConsumers {
        SlowConsumers { pace, watch: None }
    }

    /// Nobody has to be watched any more.
    pub(super) fn reset(&mut self) {
        self.watch = None;
    }

    /// Those of `needing` that read too slowly; `None`: they are being watched, ask again soon.
    pub(super) fn among(
        &mut self,
        needing: &[SessionId],
        registry: &Registry,
        now: Instant,
    ) -> Option<Vec<SessionId>> {
        let sent =
            |session: SessionId| registry.sessions.get(&session).map(|s| s.queue.sent_bytes());
        let Some(watch) = self.watch.as_ref().filter(|w| now - w.since < 2 * self.pace.watch)
        else {
            let sent = needing.iter().filter_map(|s| Some((*s, sent(*s)?))).collect();
            self.watch = Some(Watch { since: now, sent });
            return None;
        };
        let elapsed = now.saturating_duration_since(watch.since);
        if elapsed < self.pace.watch {
            return None;
        }
        let due = self.pace.least * u64::try_from(elapsed.as_millis()).unwrap_or(0) / 1000;
        // Who came to the end during the watch is looked at after the next.
        let is_slow = |session: &&SessionId| {
            let (then, now) = (watch.sent.get(*session), sent(**session));
            then.zip(now).is_some_and(|(then, now)| now.saturating_sub(*then) < due)
        };
        let slow = needing.iter().filter(is_slow).copied().collect();
        self.watch = None;
        Some(slow)
    }
}
