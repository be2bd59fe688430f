//! Look-ups of tables, shared by those who ask the same at the same time: a thousand clients that
//! come back at once ask the steward a few times, not a thousand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::catalog::CatalogError;
use crate::catalog::protocol::{TableAccess, TableName};
use crate::event::Lsn;

/// The tables as the role may see them, and the address as of which.
pub(super) type Answer = Result<(Arc<[TableAccess]>, Lsn), CatalogError>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    role: Arc<str>,
    tables: Vec<TableName>,
}

/// Those who wait for the answer to one question.
#[derive(Debug, Default)]
struct Round {
    asked: AtomicU64,
    /// Held by the one who asks for all.
    last: tokio::sync::Mutex<Option<(u64, Answer)>>,
}

#[derive(Debug, Default)]
pub(super) struct Lookups {
    /// Each with the number of its callers.
    rounds: Mutex<HashMap<Question, (usize, Arc<Round>)>>,
}

impl Lookups {
    /// An answer that was asked for after this call began: by `ask`, or for another caller.
    pub(super) async fn tables<F>(
        &self,
        role: &Arc<str>,
        tables: Vec<TableName>,
        ask: impl FnOnce() -> F,
    ) -> Answer
    where
        F: Future<Output = Result<(Vec<TableAccess>, Lsn), CatalogError>>,
    {
        let question = Question { role: Arc::clone(role), tables };
        let (_seat, round) = self.sit(question);
        let ticket = round.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let mut last = round.last.lock().await;
        if let Some((covered, answer)) = &*last
            && *covered >= ticket
        {
            return answer.clone();
        }
        // Everybody who has a ticket by now came before the question.
        let covered = round.asked.load(Ordering::Relaxed);
        let answer: Answer = ask().await.map(|(tables, asked)| (tables.into(), asked));
        *last = Some((covered, answer.clone()));
        answer
    }

    fn sit(&self, question: Question) -> (Seat<'_>, Arc<Round>) {
        let mut rounds = self.lock();
        let (callers, round) = rounds.entry(question.clone()).or_default();
        *callers += 1;
        (Seat { lookups: self, question }, Arc::clone(round))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Question, (usize, Arc<Round>)>> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in a round. The last to leave takes the round away, also if it was cancelled.
struct Seat<'a> {
    lookups: &'a Lookups,
    question: Question,
}

impl Drop for Seat<'_> {
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
    use super::*;

    use std::cell::Cell;

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn those_who_come_while_one_waits_share_the_next_answer() {
        let lookups = Lookups::default();
        let role: Arc<str> = "web".into();
        let (asked, gate) = (Cell::new(0), Notify::new());
        let ask = async || {
            asked.set(asked.get() + 1);
            gate.notified().await;
            Ok((Vec::new(), Lsn(asked.get())))
        };

        let all = join_all((0..100).map(|_| lookups.tables(&role, Vec::new(), &ask)));
        let open = async {
            // As many as will ever be needed.
            for _ in 0..100 {
                gate.notify_one();
                tokio::task::yield_now().await;
            }
        };
        let (answers, ()) = tokio::join!(all, open);

        assert!(answers.iter().all(Result::is_ok));
        // The first asked alone; all others came before the second question.
        assert!(asked.get() <= 2, "{}", asked.get());
        assert!(lookups.lock().is_empty());
    }

    #[tokio::test]
    async fn an_answer_is_never_older_than_its_question() {
        let lookups = Lookups::default();
        let role: Arc<str> = "web".into();
        let count = Cell::new(0);
        let ask = async || {
            count.set(count.get() + 1);
            Ok((Vec::new(), Lsn(count.get())))
        };

        let first = lookups.tables(&role, Vec::new(), &ask).await.unwrap();
        let second = lookups.tables(&role, Vec::new(), &ask).await.unwrap();

        assert_eq!((first.1, second.1), (Lsn(1), Lsn(2)));
    }

    #[tokio::test]
    async fn one_who_gives_up_leaves_the_question_to_the_next() {
        let lookups = Lookups::default();
        let role: Arc<str> = "web".into();
        let never = lookups.tables(&role, Vec::new(), std::future::pending);
        assert!(futures_util::FutureExt::now_or_never(never).is_none());

        let answer = lookups.tables(&role, Vec::new(), async || Ok((Vec::new(), Lsn(7)))).await;

        assert_eq!(answer.unwrap().1, Lsn(7));
        assert!(lookups.lock().is_empty());
    }
}
