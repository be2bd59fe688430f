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
        self.watched.retain(|session| registry.sessions.contains_key(session));
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::time::SystemTime;

    use bytes::Bytes;
    use futures_util::FutureExt;

    use super::*;
    use crate::allowance::Allowance;
    use crate::hub::budget::Budget;
    use crate::hub::handle::Peer;
    use crate::hub::queue::Queue;
    use crate::hub::registry::Session;

    /// Connections that hold so many bytes each.
    fn registry(held: &[usize]) -> Registry {
        let budget = Arc::new(Budget::new(Arc::new(Allowance::new(1 << 30))));
        let mut registry = Registry::default();
        for (session, bytes) in (1..).zip(held) {
            let queue = Arc::new(Queue::new(1 << 30, Arc::clone(&budget)));
            queue.push(&[Bytes::from(vec![b'x'; *bytes])]);
            let address = SocketAddr::from(([127, 0, 0, 1], 9));
            let peer = Peer { address, user_agent: None, connected_at: SystemTime::UNIX_EPOCH };
            registry.sessions.insert(session, Session::new(queue, peer));
        }
        registry
    }

    #[test]
    fn those_who_hold_most_and_do_not_read_have_to_go() {
        let mut registry = registry(&[0, 1_000_000, 900_000, 10_000, 1_100_000, 1_200_000]);
        let (mut relief, start) = (Relief::default(), Instant::now());
        assert!(relief.find(false, &registry, start).is_empty());
        assert!(relief.find(true, &registry, start).is_empty());

        // One reads all, and one is gone.
        let mut taken = Vec::new();
        let reading = &registry.sessions[&5].queue;
        assert!(reading.take(&mut taken, usize::MAX).now_or_never().is_some());
        reading.wrote(1_100_000);
        registry.sessions.remove(&6);
        assert!(relief.find(true, &registry, start + PACE.watch / 2).is_empty());
        let mut victims = relief.find(false, &registry, start + PACE.watch);

        victims.sort_unstable();
        assert_eq!(victims, [2, 3]);
        assert!(relief.find(false, &registry, start + 2 * PACE.watch).is_empty());
    }
}
