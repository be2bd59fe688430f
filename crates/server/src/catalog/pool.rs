//! Helpers of one kind, and the questions that wait for one of them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::value::RawValue;
use tide_feed::catalog::{Reply, Request, TOO_LARGE};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{CatalogError, frame};

/// Questions that may wait; one more is refused as `Unavailable`.
const QUEUE: usize = 1024;

struct Job {
    request: Request,
    answer: oneshot::Sender<Result<Box<RawValue>, CatalogError>>,
}

/// A queue of questions, served by however many helpers are connected.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    jobs: mpsc::Sender<Job>,
    waiting: Arc<Mutex<mpsc::Receiver<Job>>>,
    members: Arc<AtomicUsize>,
    /// What they are told whose helper goes away while it answers.
    lost: CatalogError,
    /// Bytes of a question.
    largest: usize,
}

impl Pool {
    /// `largest`: bytes of a question that they take.
    pub(super) fn new(lost: CatalogError, largest: usize) -> Pool {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        Pool { jobs, waiting, members: Arc::default(), lost, largest }
    }

    pub(super) fn members(&self) -> usize {
        self.members.load(Ordering::Relaxed)
    }

    pub(super) async fn ask(&self, request: Request) -> Result<Box<RawValue>, CatalogError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { request, answer };
        self.jobs.try_send(job).map_err(|_| CatalogError::Unavailable)?;
        answered.await.map_err(|_| CatalogError::Unavailable)?
    }

    /// Lets a connected helper work until its connection ends.
    pub(super) async fn serve(&self, mut helper: UnixStream) -> io::Result<()> {
        self.members.fetch_add(1, Ordering::Relaxed);
        let result = self.work(&mut helper).await;
        self.members.fetch_sub(1, Ordering::Relaxed);
        result
    }

    async fn work(&self, helper: &mut UnixStream) -> io::Result<()> {
        loop {
            let job = tokio::select! {
                job = async { self.waiting.lock().await.recv().await } => job,
                gone = gone(helper) => return gone,
            };
            let Some(job) = job else { return Ok(()) };
            if job.answer.is_closed() {
                continue;
            }
            let Ok(question) = frame::encode(&job.request, self.largest) else {
                let message = format!("the question is larger than {} MB", self.largest >> 20);
                let refused = CatalogError::Refused { sqlstate: TOO_LARGE.into(), message };
                let _ = job.answer.send(Err(refused));
                continue;
            };
            let reply = match converse(helper, &question).await {
                Ok(reply) => reply,
                Err(error) => {
                    let _ = job.answer.send(Err(self.lost.clone()));
                    return Err(error);
                }
            };
            let _ = job.answer.send(match reply {
                Reply::Ok(answer) => Ok(answer),
                Reply::Error { sqlstate, message } => {
                    Err(CatalogError::Refused { sqlstate, message })
                }
            });
        }
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
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_question_that_is_too_large_costs_itself_and_no_helper() {
        let pool = Pool::new(CatalogError::Ended, 100);
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let serving = pool.clone();
        tokio::spawn(async move { serving.serve(ours).await });

        let too_large = Request::Role { role: "x".repeat(100), streamed: 0 };
        let refused = pool.ask(too_large).await.expect_err("is refused");

        assert!(
            matches!(&refused, CatalogError::Refused { sqlstate, .. } if sqlstate == TOO_LARGE),
            "{refused:?}"
        );
        let helper = async {
            let asked: Request = frame::read(&mut theirs).await.expect("a question");
            frame::write(&mut theirs, &json!({ "ok": 7 })).await.expect("is read");
            asked
        };
        let (answer, asked) = tokio::join!(pool.ask(Request::Check), helper);
        assert_eq!(asked, Request::Check);
        assert_eq!(answer.expect("an answer").get(), "7");
    }
}
