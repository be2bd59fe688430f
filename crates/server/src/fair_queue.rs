//! A queue in which whoever wants much waits behind themselves, not everybody else behind them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;

/// What waits, by owner. Each owner's is taken in its order, one for each turn, and the owners have
/// their turns one after the other.
#[derive(Debug)]
pub(crate) struct FairQueue<K, T> {
    /// Nobody's is empty.
    lines: HashMap<K, BTreeMap<u64, T>>,
    /// Everybody who has a line, once.
    turns: VecDeque<K>,
    tickets: u64,
}

impl<K: Clone + Eq + Hash, T> FairQueue<K, T> {
    pub(crate) fn new() -> FairQueue<K, T> {
        FairQueue { lines: HashMap::new(), turns: VecDeque::new(), tickets: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How much of the owner's waits.
    pub(crate) fn waiting(&self, owner: &K) -> usize {
        self.lines.get(owner).map_or(0, BTreeMap::len)
    }

    /// Gives a ticket, by which it can be [removed](FairQueue::remove).
    pub(crate) fn push(&mut self, owner: K, item: T) -> u64 {
        self.tickets += 1;
        let line = self.lines.entry(owner.clone()).or_default();
        if line.is_empty() {
            self.turns.push_back(owner);
        }
        line.insert(self.tickets, item);
        self.tickets
    }

    pub(crate) fn pop(&mut self) -> Option<(K, T)> {
        self.pop_if(|_| true)
    }

    /// What is next, and whose, if it is wanted; else it stays.
    pub(crate) fn pop_if(&mut self, is_wanted: impl FnOnce(&T) -> bool) -> Option<(K, T)> {
        let line = self.lines.get_mut(self.turns.front()?)?;
        let next = line.first_entry().filter(|next| is_wanted(next.get()))?.remove();
        let is_last = line.is_empty();
        let owner = self.turns.pop_front()?;
        if is_last {
            self.lines.remove(&owner);
        } else {
            self.turns.push_back(owner.clone());
        }
        Some((owner, next))
    }

    /// It is not wanted any more; it may have been taken.
    pub(crate) fn remove(&mut self, owner: &K, ticket: u64) {
        let Some(line) = self.lines.get_mut(owner) else { return };
        line.remove(&ticket);
        if line.is_empty() {
            self.lines.remove(owner);
            self.turns.retain(|other| other != owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(queue: &mut FairQueue<char, u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect()
    }

    #[test]
    fn whoever_wants_much_waits_behind_themselves() {
        let mut queue = FairQueue::new();
        for n in 0..4 {
            queue.push('a', n);
        }
        queue.push('b', 10);
        queue.push('c', 20);
        queue.push('c', 21);

        assert_eq!(drain(&mut queue), [0, 10, 20, 1, 21, 2, 3]);
        assert!(queue.is_empty() && queue.turns.is_empty());
    }

    #[test]
    fn what_is_not_wanted_any_more_leaves_nothing_behind() {
        let mut queue = FairQueue::new();
        let tickets = [queue.push('a', 0), queue.push('a', 1), queue.push('b', 2)];

        queue.remove(&'a', tickets[0]);
        queue.remove(&'b', tickets[2]);
        assert_eq!((queue.waiting(&'a'), queue.waiting(&'b')), (1, 0));
        assert_eq!(drain(&mut queue), [1]);
        queue.remove(&'a', tickets[1]);

        assert!(queue.is_empty() && queue.turns.is_empty());
    }

    #[test]
    fn what_is_next_stays_until_it_is_wanted() {
        let mut queue = FairQueue::new();
        queue.push('a', 0);
        queue.push('b', 1);

        assert_eq!(queue.pop_if(|next| *next == 1), None);

        assert_eq!(drain(&mut queue), [0, 1]);
    }

    proptest! {
        #[test]
        fn nobody_waits_for_more_than_one_of_each_other(
            owners in prop::collection::vec(0..4_u8, 1..40),
        ) {
            let mut queue = FairQueue::new();
            for owner in &owners {
                queue.push(*owner, *owner);
            }
            let mut taken = Vec::new();
            while let Some((owner, _)) = queue.pop() {
                taken.push(owner);
            }
            for owner in 0..4 {
                let places: Vec<usize> =
                    (0..taken.len()).filter(|place| taken[*place] == owner).collect();
                let between = places.windows(2).map(|pair| &taken[pair[0] + 1..pair[1]]);
                for others in between {
                    let each_once = (0..4).all(|o| others.iter().filter(|other| **other == o).count() <= 1);
                    prop_assert!(each_once, "{taken:?}");
                }
            }
        }
    }
}
