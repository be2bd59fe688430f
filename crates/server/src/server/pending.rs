//! Work of a connection that waits for others, the catalogue or the hub, while frames go on being
//! read: joins and renewals of tokens.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

/// So many go on at once; the others wait for their turn. One client must not fill the helpers'
/// queue by itself.
const AT_ONCE: usize = 4;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What is under way, at most one per topic.
pub(super) struct Pending<T> {
    running: Vec<(Arc<str>, Work<T>)>,
    waiting: VecDeque<(Arc<str>, Work<T>)>,
}

impl<T> Pending<T> {
    pub(super) fn new() -> Pending<T> {
        Pending { running: Vec::new(), waiting: VecDeque::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Begins work for a topic, in the place of what was under way for it.
    pub(super) fn begin(&mut self, topic: Arc<str>, work: Work<T>) {
        self.cancel(&topic);
        self.waiting.push_back((topic, work));
        self.fill();
    }

    /// Drops what is under way for a topic; false if there is nothing.
    pub(super) fn cancel(&mut self, topic: &str) -> bool {
        let before = self.len();
        self.running.retain(|(other, _)| **other != *topic);
        self.waiting.retain(|(other, _)| **other != *topic);
        let cancelled = self.len() < before;
        self.fill();
        cancelled
    }

    /// The next result. Waits for ever while nothing is under way; cancel safe.
    pub(super) async fn next(&mut self) -> (Arc<str>, T) {
        std::future::poll_fn(|cx| {
            let finished = self.running.iter_mut().enumerate().find_map(|(index, (_, work))| {
                match work.as_mut().poll(cx) {
                    Poll::Ready(result) => Some((index, result)),
                    Poll::Pending => None,
                }
            });
            let Some((index, result)) = finished else { return Poll::Pending };
            let (topic, _) = self.running.swap_remove(index);
            self.fill();
            self.give_back();
            Poll::Ready((topic, result))
        })
        .await
    }

    fn fill(&mut self) {
        while self.running.len() < AT_ONCE {
            let Some(next) = self.waiting.pop_front() else { break };
            self.running.push(next);
        }
    }

    /// A connection joins at its beginning and then hardly ever: it keeps no memory for it.
    fn give_back(&mut self) {
        if self.running.is_empty() {
            self.running = Vec::new();
            self.waiting = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn work(pending: &mut Pending<u32>, topic: &str) -> oneshot::Sender<u32> {
        let (sender, receiver) = oneshot::channel();
        pending.begin(topic.into(), Box::pin(async { receiver.await.unwrap_or(0) }));
        sender
    }

    #[tokio::test]
    async fn a_slow_topic_does_not_hold_up_another() {
        let mut pending = Pending::new();
        let _slow = work(&mut pending, "slow");
        let quick = work(&mut pending, "quick");

        quick.send(2).unwrap();

        assert_eq!(pending.next().await, ("quick".into(), 2));
        assert!(pending.cancel("slow"));
    }

    #[tokio::test]
    async fn what_waits_is_begun_when_there_is_room() {
        let mut pending = Pending::new();
        let senders: Vec<_> =
            (0..AT_ONCE + 1).map(|n| work(&mut pending, &format!("topic{n}"))).collect();
        assert_eq!(pending.running.len(), AT_ONCE);

        for sender in senders {
            sender.send(1).unwrap();
            pending.next().await;
        }

        assert_eq!(pending.len(), 0);
    }

    #[tokio::test]
    async fn new_work_for_a_topic_replaces_the_old() {
        let mut pending = Pending::new();
        let old = work(&mut pending, "topic");
        let new = work(&mut pending, "topic");

        assert!(old.is_closed());
        new.send(9).unwrap();

        assert_eq!(pending.next().await, ("topic".into(), 9));
        assert!(!pending.cancel("topic"));
    }
}
