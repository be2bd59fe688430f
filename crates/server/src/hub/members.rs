//! The channels of a group, found by their connections.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

use super::group::Member;
use super::handle::SessionId;

/// So many are looked through rather than indexed.
const FEW: usize = 16;

/// The members of a group, in no order; one per connection.
#[derive(Default)]
pub(super) struct Members {
    all: Vec<Member>,
    /// Where each is, while there are more than a few.
    places: HashMap<SessionId, usize>,
}

impl Members {
    pub(super) fn of_one() -> Members {
        Members { all: Vec::with_capacity(1), places: HashMap::new() }
    }

    pub(super) fn push(&mut self, member: Member) {
        let place = self.all.len();
        if place > FEW && self.places.is_empty() {
            let sessions = self.all.iter().map(|member| member.session);
            self.places = sessions.zip(0..).collect();
        }
        if place > FEW {
            self.places.insert(member.session, place);
        }
        self.all.push(member);
    }

    pub(super) fn remove(&mut self, session: SessionId) -> Option<Member> {
        let place = self.place(session)?;
        let member = self.all.swap_remove(place);
        self.places.remove(&session);
        if self.all.len() <= FEW {
            self.places = HashMap::new();
        } else if let Some(moved) = self.all.get(place) {
            self.places.insert(moved.session, place);
        }
        Some(member)
    }

    pub(super) fn of(&self, session: SessionId) -> Option<&Member> {
        self.all.get(self.place(session)?)
    }

    pub(super) fn of_mut(&mut self, session: SessionId) -> Option<&mut Member> {
        let place = self.place(session)?;
        self.all.get_mut(place)
    }

    fn place(&self, session: SessionId) -> Option<usize> {
        if self.places.is_empty() {
            self.all.iter().position(|member| member.session == session)
        } else {
            self.places.get(&session).copied()
        }
    }
}

impl Deref for Members {
    type Target = [Member];

    fn deref(&self) -> &[Member] {
        &self.all
    }
}

impl DerefMut for Members {
    fn deref_mut(&mut self) -> &mut [Member] {
        &mut self.all
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::budget::Budget;
    use super::super::group::Floor;
    use super::super::queue::Queue;
    use super::*;
    use crate::allowance::Allowance;

    fn member(session: SessionId) -> Member {
        let budget = Budget::new(Arc::new(Allowance::new(usize::MAX)));
        Member {
            session,
            queue: Arc::new(Queue::new(1 << 10, Arc::new(budget))),
            effort: Rc::default(),
            floor: Floor::default(),
            made: Default::default(),
            lag: None,
            previous: None,
            replays: false,
            has_gap: false,
            skipped: Default::default(),
            latest: None,
            warned: Default::default(),
            sync: None,
        }
    }

    proptest! {
        #[test]
        fn each_is_found_whoever_comes_and_goes(
            steps in prop::collection::vec((any::<bool>(), 0..60_u64), 0..300),
        ) {
            let mut members = Members::default();
            let mut expected = std::collections::BTreeSet::new();
            for (comes, session) in steps {
                if comes && expected.insert(session) {
                    members.push(member(session));
                } else if !comes {
                    prop_assert_eq!(members.remove(session).is_some(), expected.remove(&session));
                }
                prop_assert_eq!(members.len(), expected.len());
                for session in 0..60 {
                    let found = members.of(session).map(|member| member.session);
                    prop_assert_eq!(found, expected.get(&session).copied());
                }
            }
        }
    }
}
