//! File descriptors: how many this process may have, and how many of them clients may take up.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is needed besides the clients' sockets: helpers, callers of SQL functions, the runtime.
const OWN: usize = 200;

/// Sockets that are let in when all who may prepare a websocket are busy: for `/health`, `/metrics`
/// and an answer that says why not.
const SPARE: usize = 32;

/// How many may be busy with becoming a websocket at the same time, if there are descriptors.
const OPENING: std::ops::RangeInclusive<usize> = 256..=2048;

/// How many sockets of each kind there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// `tide.max_connections`, or as many as there are descriptors for.
    pub websockets: usize,
    /// Requests at work that may wait for the database, such as for a websocket.
    pub opening: usize,
    /// Sockets that are not a websocket: those, the ones that have asked for nothing yet, and a few.
    pub waiting: usize,
}

impl ConnectionLimits {
    /// `limit`: of the process.
    pub fn within(limit: usize, max_connections: usize) -> ConnectionLimits {
        let room = limit - OWN.min(limit / 2);
        let fitting = (room - room / 5).saturating_sub(SPARE).max(1);
        let websockets = max_connections.min(fitting);
        let opening = (websockets / 4).clamp(*OPENING.start(), *OPENING.end()).min(room / 5);
        ConnectionLimits { websockets, opening, waiting: opening + SPARE }
    }

    /// The same, where there is memory for so many sockets that are not a websocket.
    pub fn fitting(self, waiting: usize) -> ConnectionLimits {
        let waiting = self.waiting.min(waiting.max(2));
        ConnectionLimits {
            waiting,
            opening: self.opening.min(waiting - SPARE.min(waiting / 2)),
            ..self
        }
    }
}

/// Raises the limit of open files as far as the process may, and says how many there can be.
pub fn raise() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Refused only where the limit is that already, or more than the system can give.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_descriptors_abound_the_setting_decides() {
        let limits = ConnectionLimits::within(524_288, 10_000);

        assert_eq!(limits, ConnectionLimits { websockets: 10_000, opening: 2_048, waiting: 2_080 });
        assert_eq!(ConnectionLimits::within(usize::MAX, 2).websockets, 2);
    }

    #[test]
    fn clients_never_take_what_others_need() {
        for limit in [256, 1_024, 4_096, 20_000, 65_536] {
            for max_connections in [1, 100, 10_000, 1_000_000] {
                let limits = ConnectionLimits::within(limit, max_connections);

                let reserve = OWN.min(limit / 2);
                assert!(limits.websockets + limits.waiting + reserve <= limit, "{limits:?}");
                assert!(limits.websockets >= 1 && limits.opening >= 1);
            }
        }
        assert_eq!(ConnectionLimits::within(1_024, 10_000).websockets, 628);
    }

    #[test]
    fn where_memory_is_short_fewer_sockets_wait() {
        let limits = ConnectionLimits { websockets: 100, opening: 256, waiting: 288 };

        assert_eq!(limits.fitting(1000), limits);
        let few = limits.fitting(83);
        assert_eq!((few.websockets, few.opening, few.waiting), (100, 51, 83));
        let fewest = limits.fitting(0);
        assert_eq!((fewest.opening, fewest.waiting), (1, 2));
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        let raised = raise();

        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(limit.current.map_or(usize::MAX, |n| n as usize), raised);
    }
}
