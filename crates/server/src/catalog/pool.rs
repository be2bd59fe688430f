//! Helpers of one kind, and the questions that wait for one of them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::value::RawValue;
use tide_feed::catalog::{Reply, Request};
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
}

impl Pool {
    pub(super) fn new(lost: CatalogError) -> Pool {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        Pool { jobs, waiting: Arc::new(Mutex::new(waiting)), members: Arc::default(), lost }
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
            let reply = match converse(helper, &job.request).await {
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

async fn converse(helper: &mut UnixStream, request: &Request) -> io::Result<Reply> {
    frame::write(helper, request).await?;
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
