//! What a client asks to be written over its websocket: one after the other, in the order that it came.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use super::channel::Channel;
use super::context::ServerContext;
use super::limit::TokenBucket;
use super::mutation::{self, Task};
use crate::hub::answers::Reply;
use crate::hub::handle::SessionId;
use crate::memory::Kind;
use crate::wire::decode::Payload;
use crate::wire::mutation::{Answer, Code, Failure, Name, Recipient};

/// Mutations of one connection that were refused, and whose answers the hub may hold.
const REFUSED: usize = 100;

/// How many of the largest mutations of one connection may wait: others have theirs in the same memory.
const LARGEST: usize = 4;

/// The mutations of one connection.
pub(super) struct Mutations {
    context: Arc<ServerContext>,
    session: SessionId,
    pace: TokenBucket,
    waiting: VecDeque<(Recipient, Task)>,
    under_way: Option<UnderWay>,
    /// Answers that the hub may hold before the next mutation is begun.
    places: Arc<Semaphore>,
    refusals: Refusals,
}

/// The one that is being done, and what is to be said of it.
struct UnderWay {
    topic: Arc<str>,
    work: Pin<Box<dyn Future<Output = Reply> + Send>>,
}

/// Places for the answers to mutations that were refused. A cheap clone.
#[derive(Clone)]
pub(super) struct Refusals(Arc<Semaphore>);

impl Refusals {
    /// Waits until there is one: to be called before something is read that may have to be refused.
    /// Cancel safe.
    pub(super) async fn ready(&self) {
        // Never closed.
        let _ = self.0.acquire().await;
    }
}

impl Mutations {
    pub(super) fn new(context: Arc<ServerContext>, session: SessionId) -> Mutations {
        let config = context.config();
        let places = config.max_pending_mutations.saturating_add(1).min(Semaphore::MAX_PERMITS);
        Mutations {
            pace: TokenBucket::full(config.mutation_rate, Instant::now()),
            context,
            session,
            waiting: VecDeque::new(),
            under_way: None,
            places: Arc::new(Semaphore::new(places)),
            refusals: Refusals(Arc::new(Semaphore::new(REFUSED))),
        }
    }

    pub(super) fn refusals(&self) -> Refusals {
        self.refusals.clone()
    }

    /// The client asks for a mutation, in the name of the channel.
    pub(super) fn ask(&mut self, channel: &Channel, to: Recipient, payload: Payload) {
        let task = match payload {
            Payload::Json(json) => self.task(channel, json),
            Payload::Binary(_) => {
                let failure = Failure::new(Code::Malformed, "a mutation is JSON: send it as such");
                Err(Box::new(Answer::failed(Name::default(), failure)))
            }
        };
        match task {
            Ok(task) => self.waiting.push_back((to, task)),
            Err(answer) => self.refuse(to, *answer),
        }
    }

    fn task(&mut self, channel: &Channel, json: Box<RawValue>) -> Result<Task, Box<Answer>> {
        let (context, config) = (&self.context, self.context.config());
        let has_pace = self.pace.take(config.mutation_rate, Instant::now());
        let waiting: usize = self.waiting.iter().map(|(_, task)| task.size()).sum();
        let is_full = self.waiting.len() >= config.max_pending_mutations
            || waiting >= LARGEST.saturating_mul(config.max_mutation_size);
        if has_pace && is_full {
            let reason = "as many mutations of this connection wait as may \
                          (tide.max_pending_mutations, and less if they are large): \
                          send it again once some are answered";
            let failure = Failure::new(Code::Queue, reason);
            return Err(Box::new(Answer::failed(Name::read(json.get()), failure)));
        }
        let memory = context.share(Kind::Inbound);
        Task::new(context, &channel.credentials, json, memory, has_pace)
    }

    fn refuse(&self, to: Recipient, answer: Answer) {
        let place = Arc::clone(&self.refusals.0).try_acquire_owned().ok();
        let due = Instant::now();
        mutation::count(&self.context, &answer);
        self.context.hub.answer(self.session, Reply { answer, to, due, place });
    }

    /// The channel is left: what waits is given up. What a writer has begun it ends, and remembers.
    pub(super) fn forget(&mut self, topic: &str) {
        self.waiting.retain(|(to, _)| *to.topic != *topic);
        self.under_way.take_if(|under_way| *under_way.topic == *topic);
    }

    /// Has them done, for as long as this is polled. Cancel safe.
    pub(super) async fn run(&mut self) -> Infallible {
        loop {
            if self.under_way.is_none() {
                self.under_way = self.begin();
            }
            let Some(UnderWay { work, .. }) = &mut self.under_way else {
                return std::future::pending().await;
            };
            let reply = work.await;
            self.under_way = None;
            mutation::count(&self.context, &reply.answer);
            self.context.hub.answer(self.session, reply);
        }
    }

    fn begin(&mut self) -> Option<UnderWay> {
        let Some((to, task)) = self.waiting.pop_front() else {
            // A connection that writes no more keeps no memory for it.
            self.waiting = VecDeque::new();
            return None;
        };
        let (context, places) = (Arc::clone(&self.context), Arc::clone(&self.places));
        let topic = Arc::clone(&to.topic);
        let work = Box::pin(async move {
            // Never closed.
            let place = places.acquire_owned().await.ok();
            let verdict = task.settle(&context.catalog).await;
            let answer = Answer { name: task.name, verdict };
            let due = Instant::now() + context.config().echo_timeout;
            Reply { answer, to, due, place }
        });
        Some(UnderWay { topic, work })
    }
}
