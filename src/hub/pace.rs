//! Who is waited for, when what is kept for those who lag is full: nobody but fast readers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::handle::SessionId;
use super::roster::Roster;

/// How long the connections at the end of what is kept are watched before their pace is judged:
/// what those that have stalled can delay the others by, all together and once.
const WATCH: Duration = Duration::from_millis(250);

/// A connection that drains its queue at least this fast, in bytes per second, is worth waiting
/// for: the stream slows down to it. Few clients but those on the same machine or network reach it,
/// so only they set the pace, and only during a burst larger than what is kept.
const PACE: u64 = 8 << 20;

/// Judges connections by what they drain while they are watched.
#[derive(Default)]
pub(super) struct Judge {
    watch: Option<Watch>,
}

struct Watch {
    since: Instant,
    /// What each had been sent then.
    sent: HashMap<SessionId, u64>,
}

impl Judge {
    /// Nobody needs to be judged any more.
    pub(super) fn dismiss(&mut self) {
        self.watch = None;
    }

    /// Those of `needing` that read too slowly; `None`: they are being watched, ask again soon.
    pub(super) fn slow(
        &mut self,
        needing: &[SessionId],
        roster: &Roster,
        now: Instant,
    ) -> Option<Vec<SessionId>> {
        let sent = |session: SessionId| roster.sessions.get(&session).map(|s| s.queue.sent_bytes());
        let Some(watch) = self.watch.as_ref().filter(|w| now - w.since < 2 * WATCH) else {
            let sent = needing.iter().filter_map(|s| Some((*s, sent(*s)?))).collect();
            self.watch = Some(Watch { since: now, sent });
            return None;
        };
        let elapsed = now.saturating_duration_since(watch.since);
        if elapsed < WATCH {
            return None;
        }
        let due = PACE * u64::try_from(elapsed.as_millis()).unwrap_or(0) / 1000;
        // Who came to the end during the watch is judged after the next.
        let is_slow = |session: &&SessionId| {
            let drained = watch.sent.get(*session).map(|then| sent(**session).unwrap_or(0) - then);
            drained.is_some_and(|drained| drained < due)
        };
        let slow = needing.iter().filter(is_slow).copied().collect();
        self.watch = None;
        Some(slow)
    }
}
