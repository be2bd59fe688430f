//! Questions to the catalogue, shared by those who ask the same at the same time: a thousand
//! clients that come back at once ask the catalog worker a few times, not a thousand.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Those who wait for the answer to one question.
#[derive(Debug)]
struct Round<A> {
    tickets: AtomicU64,
    /// The newest answer, and the last ticket it is good for. Held by the one who asks for all.
    last: tokio::sync::Mutex<Option<(u64, A)>>,
}

/// Questions `Q` that are being asked, with answers `A`.
#[derive(Debug)]
pub(super) struct Lookups<Q, A> {
    /// Each with the number of its callers.
    rounds: Mutex<Rounds<Q, A>>,
}

type Rounds<Q, A> = HashMap<Q, (usize, Arc<Round<A>>)>;

impl<Q: Clone + Eq + Hash, A: Clone> Lookups<Q, A> {
    pub(super) fn new() -> Lookups<Q, A> {
        Lookups { rounds: Mutex::default() }
    }

    /// An answer that was asked for after this call began: by `ask`, or for another caller.
    pub(super) async fn answer<F>(&self, question: Q, ask: impl FnOnce() -> F) -> A
    where
        F: Future<Output = A>,
    {
        let (_seat, round) = self.sit(question);
        let ticket = round.tickets.fetch_add(1, Ordering::Relaxed) + 1;
        let mut last = round.last.lock().await;
        if let Some((covered, answer)) = &*last
            && *covered >= ticket
        {
            return answer.clone();
        }
        // Everybody who has a ticket by now came before the question.
        let covered = round.tickets.load(Ordering::Relaxed);
        let answer = ask().await;
        *last = Some((covered, answer.clone()));
        answer
    }

    fn sit(&self, question: Q) -> (Seat<'_, Q, A>, Arc<Round<A>>) {
        let mut rounds = self.lock();
        let fresh = || {
            let (tickets, last) = (AtomicU64::new(0), tokio::sync::Mutex::new(None));
            (0, Arc::new(Round { tickets, last }))
        };
        let (callers, round) = rounds.entry(question.clone()).or_insert_with(fresh);
        *callers += 1;
        (Seat { lookups: self, question }, Arc::clone(round))
    }
}

impl<Q, A> Lookups<Q, A> {
    fn lock(&self) -> MutexGuard<'_, Rounds<Q, A>> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a round. The last to leave takes the round away, also if it was cancelled.
struct Seat<'a, Q: Eq + Hash, A> {
    lookups: &'a Lookups<Q, A>,
    question: Q,
}

impl<Q: Eq + Hash, A> Drop for Seat<'_, Q, A> {
    fn drop(&mut self) {
        let mut rounds = self.lookups.lock();
        if let Some((callers, _)) = rounds.get_mut(&self.question) {
            *callers -= 1;
            if *callers == 0 {
                rounds.remove(&self.question);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_come_while_one_waits_share_the_next_answer() {
        let lookups = Lookups::new();
        let (asked, gate) = (Cell::new(0), Notify::new());
        let ask = async || {
            asked.set(asked.get() + 1);
            gate.notified().await;
            asked.get()
        };

        let all = join_all((0..100).map(|_| lookups.answer("question", &ask)));
        let open = async {
            // As many as will ever be needed.
            for _ in 0..100 {
                gate.notify_one();
                tokio::task::yield_now().await;
            }
        };
        let (answers, ()) = tokio::join!(all, open);

        assert_eq!(answers.len(), 100);
        // The first asked alone; all others came before the second question.
        assert!(asked.get() <= 2, "{}", asked.get());
        assert!(lookups.lock().is_empty());
    }

    #[tokio::test]
    async fn an_answer_is_never_older_than_its_question() {
        let lookups = Lookups::new();
        let count = Cell::new(0);
        let ask = async || {
            count.set(count.get() + 1);
            count.get()
        };

        let first = lookups.answer("question", &ask).await;
        let second = lookups.answer("question", &ask).await;

        assert_eq!((first, second), (1, 2));
    }

    #[tokio::test]
    async fn one_who_gives_up_leaves_the_question_to_the_next() {
        let lookups = Lookups::new();
        let never = lookups.answer("question", std::future::pending);
        assert!(never.now_or_never().is_none());

        let answer = lookups.answer("question", async || 7).await;

        assert_eq!(answer, 7);
        assert!(lookups.lock().is_empty());
    }
}
