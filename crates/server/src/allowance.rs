//! Memory that many take shares of, in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What there is for all.
#[derive(Debug)]
pub struct Allowance {
    used: AtomicUsize,
    limit: usize,
    /// How often somebody wanted more than was left.
    refused: AtomicU64,
}

impl Allowance {
    pub fn new(limit: usize) -> Allowance {
        Allowance { used: AtomicUsize::new(0), limit, refused: AtomicU64::new(0) }
    }

    /// False: there is not as much left.
    #[must_use]
    pub fn take(&self, bytes: usize) -> bool {
        self.take_below(self.limit, bytes)
    }

    /// False: there is not as much left of what may be used up to `limit`, which is less than the whole.
    #[must_use]
    pub fn take_below(&self, limit: usize, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= limit);
        let is_taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if !is_taken {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        is_taken
    }

    /// What is larger than all there is up to `limit` cannot wait until that much is free: it is let
    /// through, one at a time, as soon as others hold no more than half. False: they hold more.
    #[must_use]
    pub fn take_oversize(&self, limit: usize, bytes: usize) -> bool {
        let fits = |used: usize| (used <= limit / 2).then(|| used.saturating_add(bytes));
        let is_taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if !is_taken {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        is_taken
    }

    pub fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
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

    /// Makes it as large as that; false: there is not as much left, and it stays as it is.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            return self.grow(bytes - self.bytes);
        }
        self.allowance.give_back(self.bytes - bytes);
        self.bytes = bytes;
        true
    }

    pub fn bytes(&self) -> usize {
        self.bytes
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
        assert!(other.resize(10) && other.resize(100) && !other.resize(101));
        assert_eq!((other.bytes(), allowance.refused()), (100, 3));
        drop(other);

        assert_eq!(allowance.used(), 0);
    }
}
