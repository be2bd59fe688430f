//! Helpers of one kind, and the questions that wait for one of them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use tide_feed::catalog::{Reply, Request, TOO_LARGE};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};

use super::lanes::{Lane, Lanes, Traffic};
use super::{Asker, CatalogError, frame};

struct Job {
    request: Request,
    answer: oneshot::Sender<Result<Box<RawValue>, CatalogError>>,
}

/// Questions that wait, answered by however many helpers are connected.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    waiting: Arc<Waiting>,
    /// What they are told whose helper goes away while it answers.
    lost: CatalogError,
    /// Bytes of a question.
    largest: usize,
}

struct Waiting {
    lanes: Mutex<Lanes<Job>>,
    /// There may be something to begin with.
    changed: Notify,
}

impl Waiting {
    /// Does something to the lanes after which there may be something to begin with.
    fn change<R>(&self, change: impl FnOnce(&mut Lanes<Job>) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_waiters();
        result
    }

    /// Waits for a question. Loses none if it is given up.
    async fn begin(&self) -> (Job, UnderWay<'_>) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let begun = self.lock().begin();
            if let Some((lane, job)) = begun {
                return (job, UnderWay { waiting: self, lane });
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lanes<Job>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

/// A question that a helper has.
struct UnderWay<'a> {
    waiting: &'a Waiting,
    lane: Lane,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.waiting.change(|lanes| lanes.end(self.lane));
    }
}

/// A helper that is connected.
struct Helper<'a>(&'a Waiting);

impl<'a> Helper<'a> {
    fn comes(waiting: &'a Waiting) -> Helper<'a> {
        waiting.change(Lanes::helper_comes);
        Helper(waiting)
    }
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        self.0.change(Lanes::helper_goes);
    }
}

/// Somebody who waits for an answer. The question goes with them: nothing of it is kept, or asked.
struct Place<'a> {
    waiting: &'a Waiting,
    lane: Lane,
    asker: Option<Asker>,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(self.lane, &self.asker, self.ticket);
    }
}

impl Pool {
    /// `largest`: bytes of a question that they take.
    pub(super) fn new(traffic: Traffic, lost: CatalogError, largest: usize) -> Pool {
        let waiting = Waiting { lanes: Mutex::new(Lanes::new(traffic)), changed: Notify::new() };
        Pool { waiting: Arc::new(waiting), lost, largest }
    }

    pub(super) fn helpers(&self) -> usize {
        self.waiting.lock().helpers()
    }

    /// `asker`: the client whose question it is, if it is one's.
    pub(super) async fn ask(
        &self,
        lane: Lane,
        asker: Option<Asker>,
        request: Request,
    ) -> Result<Box<RawValue>, CatalogError> {
        let (answer, answered) = oneshot::channel();
        let (waiting, job) = (&*self.waiting, Job { request, answer });
        let ticket = waiting.change(|lanes| lanes.push(lane, asker.clone(), job));
        let ticket = ticket.ok_or(CatalogError::Unavailable)?;
        let _place = Place { waiting, lane, asker, ticket };
        answered.await.map_err(|_| CatalogError::Unavailable)?
    }

    /// Lets a connected helper work until its connection ends.
    pub(super) async fn serve(&self, mut helper: UnixStream) -> io::Result<()> {
        let _helper = Helper::comes(&self.waiting);
        loop {
            let (job, _under_way) = tokio::select! {
                begun = self.waiting.begin() => begun,
                gone = gone(&helper) => return gone,
            };
            self.put(job, &mut helper).await?;
        }
    }

    /// Puts a question to the helper, and passes on its answer.
    async fn put(&self, Job { request, answer }: Job, helper: &mut UnixStream) -> io::Result<()> {
        let Ok(question) = frame::encode(&request, self.largest) else {
            let message = format!("the question is larger than {} MB", self.largest >> 20);
            let _ = answer.send(Err(CatalogError::Refused { sqlstate: TOO_LARGE.into(), message }));
            return Ok(());
        };
        drop(request);
        let reply = match converse(helper, &question).await {
            Ok(reply) => reply,
            Err(error) => {
                let _ = answer.send(Err(self.lost.clone()));
                return Err(error);
            }
        };
        // Whoever has asked may have given up.
        let _ = answer.send(match reply {
            Reply::Ok(answer) => Ok(answer),
            Reply::Error { sqlstate, message } => Err(CatalogError::Refused { sqlstate, message }),
        });
        Ok(())
    }
}

async fn converse(helper: &mut UnixStream, question: &[u8]) -> io::Result<Reply> {
    helper.write_all(question).await?;
    frame::read(helper).await
}

/// Waits for the end of the connection: a helper speaks only when it was asked.
async fn gone(helper: &UnixStream) -> io::Result<()> {
    loop {
        helper.readable().await?;
        match helper.try_read(&mut [0]) {
            Ok(0) => return Ok(()),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "spoke unasked")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::json;
    use tide_feed::catalog::MAX_FRAME;

    use super::*;

    const TRAFFIC: Traffic = Traffic { in_a_row: 1, keeps_one_free: true };

    /// A helper of the test's own.
    fn helper(pool: &Pool) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let serving = pool.clone();
        tokio::spawn(async move { serving.serve(ours).await });
        theirs
    }

    async fn asked(helper: &mut UnixStream) -> Request {
        frame::read(helper).await.expect("a question")
    }

    async fn answer(helper: &mut UnixStream, number: u32) {
        frame::write(helper, &json!({ "ok": number })).await.expect("is read");
    }

    fn role(name: &str) -> Request {
        Request::Role { role: name.into(), streamed: 0 }
    }

    #[tokio::test]
    async fn a_question_that_is_too_large_costs_itself_and_no_helper() {
        let pool = Pool::new(TRAFFIC, CatalogError::Ended, 100);
        let mut theirs = helper(&pool);

        let refused = pool.ask(Lane::Express, None, role(&"x".repeat(100)));
        let refused = refused.await.expect_err("is refused");

        assert!(
            matches!(&refused, CatalogError::Refused { sqlstate, .. } if sqlstate == TOO_LARGE),
            "{refused:?}"
        );
        let helper = async {
            assert_eq!(asked(&mut theirs).await, Request::Check);
            answer(&mut theirs, 7).await;
        };
        let (answer, ()) = tokio::join!(pool.ask(Lane::Express, None, Request::Check), helper);
        assert_eq!(answer.expect("an answer").get(), "7");
    }

    #[tokio::test]
    async fn slow_questions_leave_a_helper_for_the_others() {
        let pool = Pool::new(TRAFFIC, CatalogError::Ended, MAX_FRAME);
        let (mut one, mut other) = (helper(&pool), helper(&pool));
        let slow = |name| pool.ask(Lane::Slow, None, role(name));
        let (mut first, mut second) = (Box::pin(slow("first")), Box::pin(slow("second")));
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());

        let question = pool.ask(Lane::Express, None, Request::Check);
        let helpers = async {
            // Which of them is asked what is for chance to say.
            let both = tokio::join!(asked(&mut one), asked(&mut other));
            let (slow, free) = match both {
                (Request::Check, slow) => (slow, &mut one),
                (slow, Request::Check) => (slow, &mut other),
                both => panic!("{both:?}"),
            };
            assert_eq!(slow, role("first"));
            answer(free, 7).await;
        };
        let (answer, ()) = tokio::join!(question, helpers);

        assert_eq!(answer.expect("an answer").get(), "7");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_neither_kept_nor_asked() {
        let pool = Pool::new(TRAFFIC, CatalogError::Ended, MAX_FRAME);
        for lane in [Lane::Express, Lane::Slow] {
            assert!(pool.ask(lane, None, role("gone")).now_or_never().is_none());
        }
        assert!(pool.waiting.lock().begin().is_none());
        let mut theirs = helper(&pool);

        let helper = async {
            assert_eq!(asked(&mut theirs).await, Request::Check);
            answer(&mut theirs, 7).await;
        };
        let (answer, ()) = tokio::join!(pool.ask(Lane::Express, None, Request::Check), helper);

        assert!(answer.is_ok());
    }
}
