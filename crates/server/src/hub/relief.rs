//! Who has to go when there is no memory for frames: of those who do not read the ones that hold most.

use std::time::{Duration, Instant};

use super::handle::SessionId;
use super::registry::Registry;
use super::slow_consumer::{Pace, SlowConsumers};

/// Whoever reads less than this is slow enough to be cut off for the sake of others.
const PACE: Pace = Pace { watch: Duration::from_millis(250), least: 1 << 20 };

/// Connections that are watched at a time.
const WATCHED: usize = 64;

/// Finds who is to be cut off.
pub(super) struct Relief {
    slow: SlowConsumers,
    /// Those who are being watched, the largest first.
    watched: Vec<SessionId>,
}

impl Default for Relief {
    fn default() -> Self {
        Relief { slow: SlowConsumers::new(PACE), watched: Vec::new() }
    }
}

impl Relief {
    /// The connections that are to be cut off now. `is_short`: there was no memory for somebody who
    /// holds next to nothing. To be called often.
    pub(super) fn find(
        &mut self,
        is_short: bool,
        registry: &Registry,
        now: Instant,
    ) -> Vec<SessionId> {
        if self.watched.is_empty() {
            if !is_short {
                return Vec::new();
            }
            self.watched = largest(registry);
        }
        let Some(slow) = self.slow.among(&self.watched, registry, now) else { return Vec::new() };
        let held = |session: &SessionId| {
            registry.sessions.get(session).map_or(0, |entry| entry.queue.held_bytes())
        };
        self.watched.clear();
        // What they hold may be the same, and is free when the last of them has gone.
        let most = slow.iter().map(held).max().unwrap_or(0);
        slow.into_iter().filter(|session| held(session) > most / 2).collect()
    }
}

/// The connections that hold most.
fn largest(registry: &Registry) -> Vec<SessionId> {
    let held = registry.sessions.iter().map(|(id, entry)| (entry.queue.held_bytes(), *id));
    let mut held: Vec<_> = held.filter(|(bytes, _)| *bytes > 0).collect();
    held.sort_unstable_by(|one, other| other.cmp(one));
    held.into_iter().take(WATCHED).map(|(_, id)| id).collect()
}
