//! What a channel is told in place of events that it may miss: once for as long as it is so, whenever
//! the channel has joined.

use bytes::Bytes;

use super::history::Seq;

/// Of what a channel remembers that it has been told; of more it is told again.
const REMEMBERED: usize = 16;

#[derive(Debug)]
pub(super) struct Warning {
    pub(super) cause: Cause,
    pub(super) frame: Bytes,
}

/// Why events may be missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The table's policies fail since that event.
    Policy { table: u32, outage: Seq },
    /// The table has, or had, a shape that filters of the channel cannot be held against.
    Filter { table: u32 },
}

/// What a channel has been told.
#[derive(Debug, Default)]
pub(super) struct Warned(Vec<Cause>);

impl Warned {
    pub(super) fn has(&self, cause: Cause) -> bool {
        self.0.contains(&cause)
    }

    pub(super) fn remember(&mut self, cause: Cause) {
        if self.0.len() >= REMEMBERED {
            self.0.remove(0);
        }
        self.0.push(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_does_not_grow_without_bound() {
        let mut warned = Warned::default();
        let causes = (0..).map(|table| Cause::Filter { table });

        causes.clone().take(3 * REMEMBERED).for_each(|cause| warned.remember(cause));

        assert_eq!(warned.0.len(), REMEMBERED);
        assert!(!warned.has(Cause::Filter { table: 0 }));
        assert!(causes.skip(2 * REMEMBERED).take(REMEMBERED).all(|cause| warned.has(cause)));
    }
}
