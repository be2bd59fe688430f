//! Questions to the catalogue, shared by those who ask the same at the same time: a thousand
//! clients that come back at once ask the catalog worker a few times, not a thousand.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The callers that wait for the answer to one question.
#[derive(Debug)]
struct Flight<A> {
    /// How many callers have come so far; each has the number as of then.
    arrivals: AtomicU64,
    /// The newest answer, and the number of the last caller that it is good for. Locked by the one
    /// who asks for all.
    last: tokio::sync::Mutex<Option<(u64, A)>>,
}

/// Questions `Q` that are being asked, with answers `A`.
#[derive(Debug)]
pub(super) struct SingleFlight<Q, A> {
    /// Each with the number of its callers.
    flights: Mutex<Flights<Q, A>>,
}

type Flights<Q, A> = HashMap<Q, (usize, Arc<Flight<A>>)>;

impl<Q: Clone + Eq + Hash, A: Clone> SingleFlight<Q, A> {
    pub(super) fn new() -> SingleFlight<Q, A> {
        SingleFlight { flights: Mutex::default() }
    }

    /// An answer that was asked for after this call began: by `ask`, or for another caller.
    pub(super) async fn answer<F>(&self, question: Q, ask: impl FnOnce() -> F) -> A
    where
        F: Future<Output = A>,
    {
        let (_caller, flight) = self.join(question);
        let arrival = flight.arrivals.fetch_add(1, Ordering::Relaxed) + 1;
        let mut last = flight.last.lock().await;
        if let Some((covered, answer)) = &*last
            && *covered >= arrival
        {
            return answer.clone();
        }
        // Everybody who has a number by now came before the question.
        let covered = flight.arrivals.load(Ordering::Relaxed);
        let answer = ask().await;
        *last = Some((covered, answer.clone()));
        answer
    }

    fn join(&self, question: Q) -> (Caller<'_, Q, A>, Arc<Flight<A>>) {
        let mut flights = self.lock();
        let fresh = || {
            let (arrivals, last) = (AtomicU64::new(0), tokio::sync::Mutex::new(None));
            (0, Arc::new(Flight { arrivals, last }))
        };
        let (callers, flight) = flights.entry(question.clone()).or_insert_with(fresh);
        *callers += 1;
        (Caller { single_flight: self, question }, Arc::clone(flight))
    }
}

impl<Q, A> SingleFlight<Q, A> {
    fn lock(&self) -> MutexGuard<'_, Flights<Q, A>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits for a flight. The last one to leave removes it, also if it was cancelled.
struct Caller<'a, Q: Eq + Hash, A> {
    single_flight: &'a SingleFlight<Q, A>,
    question: Q,
}

impl<Q: Eq + Hash, A> Drop for Caller<'_, Q, A> {
    fn drop(&mut self) {
        let mut flights = self.single_flight.lock();
        if let Some((callers, _)) = flights.get_mut(&self.question) {
            *callers -= 1;
            if *callers == 0 {
                flights.remove(&self.question);
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
        let single_flight = SingleFlight::new();
        let (asked, gate) = (Cell::new(0), Notify::new());
        let ask = async || {
            asked.set(asked.get() + 1);
            gate.notified().await;
            asked.get()
        };

        let all = join_all((0..100).map(|_| single_flight.answer("question", &ask)));
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
        assert!(single_flight.lock().is_empty());
    }

    #[tokio::test]
    async fn an_answer_is_never_older_than_its_question() {
        let single_flight = SingleFlight::new();
        let count = Cell::new(0);
        let ask = async || {
            count.set(count.get() + 1);
            count.get()
        };

        let first = single_flight.answer("question", &ask).await;
        let second = single_flight.answer("question", &ask).await;

        assert_eq!((first, second), (1, 2));
    }

    #[tokio::test]
    async fn one_who_gives_up_leaves_the_question_to_the_next() {
        let single_flight = SingleFlight::new();
        let never = single_flight.answer("question", std::future::pending);
        assert!(never.now_or_never().is_none());

        let answer = single_flight.answer("question", async || 7).await;

        assert_eq!(answer, 7);
        assert!(single_flight.lock().is_empty());
    }
}
