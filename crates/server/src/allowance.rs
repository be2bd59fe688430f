//! Memory that many take shares of, in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What there is for all.
#[derive(Debug)]
pub struct Allowance {
    used: AtomicUsize,
    limit: usize,
}

impl Allowance {
    pub fn new(limit: usize) -> Allowance {
        Allowance { used: AtomicUsize::new(0), limit }
    }

    /// False: there is not as much left.
    pub fn take(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    pub fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A part of an allowance, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    allowance: Arc<Allowance>,
    bytes: usize,
}

impl Share {
    /// A share of nothing.
    pub fn of(allowance: &Arc<Allowance>) -> Share {
        Share { allowance: Arc::clone(allowance), bytes: 0 }
    }

    /// Makes it so much larger; false: there is not as much left.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let grows = self.allowance.take(bytes);
        if grows {
            self.bytes += bytes;
        }
        grows
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.allowance.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_given_back_with_their_owners() {
        let allowance = Arc::new(Allowance::new(100));
        let (mut one, mut other) = (Share::of(&allowance), Share::of(&allowance));

        assert!(one.grow(60));
        assert!(!other.grow(60));
        assert!(other.grow(40));
        assert!(!one.grow(1));
        drop(one);
        assert!(other.grow(60));
        drop(other);

        assert_eq!(allowance.used(), 0);
    }
}
