//! The memory that all connections' queues share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use super::queue::SMALL;
use crate::allowance::Allowance;

/// Deals out the part of the memory that frames may take which wait for clients.
///
/// The last fifth is for those who have next to nothing: clients that do not read must not be in the
/// way of those who do.
#[derive(Debug)]
pub struct Budget {
    part: Arc<Allowance>,
    /// What there is for all.
    common: usize,
    queues: AtomicUsize,
    is_short: AtomicBool,
}

impl Budget {
    pub fn new(part: Arc<Allowance>) -> Budget {
        let common = part.limit() / 5 * 4;
        Budget { part, common, queues: AtomicUsize::new(0), is_short: AtomicBool::new(false) }
    }

    /// The same frame, counted here once for all queues that it goes to, until the last of them has
    /// let go of it: see [`push_shared`](super::queue::Queue::push_shared). `None`: there is no room.
    #[must_use]
    pub fn count(self: &Arc<Self>, frame: Bytes) -> Option<Bytes> {
        if !self.part.take(frame.len()) {
            self.fall_short();
            return None;
        }
        let is_small = frame.len() < SMALL;
        let frame = if is_small { Bytes::copy_from_slice(&frame) } else { frame };
        Some(Bytes::from_owner(Counted { frame, budget: Arc::clone(self) }))
    }

    pub fn used(&self) -> usize {
        self.part.used()
    }

    /// Whether somebody has been refused since the last call who holds next to nothing.
    pub(super) fn take_shortage(&self) -> bool {
        // It is hardly ever so, and a look costs less than an exchange.
        self.is_short.load(Ordering::Relaxed) && self.is_short.swap(false, Ordering::Relaxed)
    }

    pub(super) fn fall_short(&self) {
        self.is_short.store(true, Ordering::Relaxed);
    }

    /// Whether only those may have more who have next to nothing.
    pub(super) fn is_spent(&self) -> bool {
        self.used() >= self.common
    }

    /// What a queue may hold even if all others have used up what there is for all.
    pub(super) fn least(&self) -> usize {
        (self.part.limit() - self.common) / self.queues.load(Ordering::Relaxed).max(1)
    }

    /// Takes so much for a queue that will hold `then` of its own.
    pub(super) fn take(&self, bytes: usize, then: usize) -> bool {
        let is_plenty = self.used().saturating_add(bytes) <= self.common;
        let limit = if is_plenty || then > self.least() { self.common } else { self.part.limit() };
        if bytes > limit {
            return self.part.take_oversize(limit, bytes);
        }
        self.part.take_below(limit, bytes)
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.part.give_back(bytes);
    }

    pub(super) fn queue_begins(&self) {
        self.queues.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn queue_ends(&self) {
        self.queues.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A frame that is shared by several queues.
struct Counted {
    frame: Bytes,
    budget: Arc<Budget>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.budget.give_back(self.frame.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_larger_than_all_there_is_does_not_wait_for_ever() {
        let budget = Budget::new(Arc::new(Allowance::new(1000)));
        budget.queue_begins();
        assert!(budget.take(500, 500));

        assert!(!budget.take(5000, 5000), "others hold more than half");
        budget.give_back(200);
        assert!(budget.take(5000, 5000));
        assert!(!budget.take(5000, 5000), "one at a time");

        budget.give_back(5300);
        assert_eq!(budget.used(), 0);
    }
}
