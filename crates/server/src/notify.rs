//! The NOTIFY channels that somebody has joined: LISTEN lasts from the first of them to the last.
//!
//! Sessions take a [`Lease`] on a channel; the notifier is told what is wanted, and says what came
//! of it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tide_feed::notification::MOST_CHANNELS;
use tokio::sync::watch;

/// What is wanted. A cheap clone.
#[derive(Clone, Default)]
pub struct NotifyRegistry(Arc<Shared>);

#[derive(Default)]
struct Shared {
    wishes: Mutex<Wishes>,
    /// Counts how often the channels that are wanted became others.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Wishes {
    wanted: HashMap<Arc<str>, Wish>,
    /// What the notifier hears of what it was told last; it does not say that again.
    heard: HashSet<Arc<str>>,
}

struct Wish {
    leases: usize,
    /// Whether the channel is listened to; `None`: not tried yet.
    outcome: watch::Sender<Option<bool>>,
}

/// Somebody's wish to hear of a channel, for as long as it lives.
#[derive(Debug)]
pub struct Lease {
    registry: NotifyRegistry,
    channel: Arc<str>,
    outcome: watch::Receiver<Option<bool>>,
}

impl NotifyRegistry {
    /// `None`: too many channels are listened to already.
    pub fn lease(&self, channel: &str) -> Option<Lease> {
        let channel: Arc<str> = channel.into();
        let mut wishes = self.wishes();
        let wanted = &mut wishes.wanted;
        if wanted.len() >= MOST_CHANNELS && !wanted.contains_key(&channel) {
            return None;
        }
        let fresh = || Wish { leases: 0, outcome: watch::channel(None).0 };
        let wish = wanted.entry(Arc::clone(&channel)).or_insert_with(fresh);
        wish.leases += 1;
        let (is_first, outcome) = (wish.leases == 1, wish.outcome.subscribe());
        drop(wishes);
        if is_first {
            self.change();
        }
        Some(Lease { registry: self.clone(), channel, outcome })
    }

    /// All channels to listen to.
    pub fn wanted(&self) -> Vec<Arc<str>> {
        self.wishes().wanted.keys().cloned().collect()
    }

    /// There is another notifier: it has been told nothing yet.
    pub fn begin(&self) {
        self.wishes().heard.clear();
    }

    /// What the notifier is to be told now: all channels to listen to. Those that it hears already,
    /// since it was not told meanwhile that nobody wanted them, are heard by whoever wants them
    /// now.
    pub fn tell(&self) -> Vec<Arc<str>> {
        let mut wishes = self.wishes();
        let Wishes { wanted, heard } = &mut *wishes;
        heard.retain(|channel| wanted.contains_key(channel));
        for channel in &*heard {
            if let Some(wish) = wanted.get(channel) {
                wish.outcome.send_replace(Some(true));
            }
        }
        wanted.keys().cloned().collect()
    }

    /// Changes with what is [wanted](NotifyRegistry::wanted).
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// From the notifier: whether the channel is listened to now.
    pub fn settle(&self, channel: &str, listens: bool) {
        let mut wishes = self.wishes();
        let Wishes { wanted, heard } = &mut *wishes;
        let Some((channel, wish)) = wanted.get_key_value(channel) else { return };
        wish.outcome.send_replace(Some(listens));
        if listens {
            heard.insert(Arc::clone(channel));
        } else {
            heard.remove(channel);
        }
    }

    fn change(&self) {
        self.0.changes.send_modify(|count| *count += 1);
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.0.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for NotifyRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotifyRegistry").field("channels", &self.wishes().wanted.len()).finish()
    }
}

impl Lease {
    /// Waits until the channel is listened to: whatever is notified from then on arrives. False:
    /// Postgres refused.
    pub async fn is_heard(&mut self) -> bool {
        // The sender is where the wish is, and the wish lasts as long as this lease.
        let outcome = self.outcome.wait_for(Option::is_some).await;
        outcome.is_ok_and(|outcome| *outcome == Some(true))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut wishes = self.registry.wishes();
        let Some(wish) = wishes.wanted.get_mut(&self.channel) else { return };
        wish.leases -= 1;
        if wish.leases == 0 {
            wishes.wanted.remove(&self.channel);
            drop(wishes);
            self.registry.change();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn wanted(registry: &NotifyRegistry) -> (u64, Vec<String>) {
        let mut wanted: Vec<String> = registry.wanted().iter().map(ToString::to_string).collect();
        wanted.sort();
        (*registry.changes().borrow(), wanted)
    }

    #[test]
    fn a_channel_is_wanted_from_the_first_lease_to_the_last() {
        let registry = NotifyRegistry::default();
        assert_eq!(wanted(&registry), (0, vec![]));

        let first = registry.lease("jobs");
        assert_eq!(wanted(&registry), (1, vec!["jobs".into()]));
        let second = registry.lease("jobs");
        assert_eq!(wanted(&registry), (1, vec!["jobs".into()]));
        drop(first);
        assert_eq!(wanted(&registry), (1, vec!["jobs".into()]));
        drop(second);

        assert_eq!(wanted(&registry), (2, vec![]));
    }

    #[test]
    fn a_lease_is_heard_when_the_notifier_has_said_so() {
        let registry = NotifyRegistry::default();
        let mut first = registry.lease("jobs").unwrap();
        assert_eq!(first.is_heard().now_or_never(), None);

        registry.settle("jobs", true);

        assert_eq!(first.is_heard().now_or_never(), Some(true));
        // Who comes later need not wait.
        let second = registry.lease("jobs").unwrap().is_heard().now_or_never();
        assert_eq!(second, Some(true));
        // All have gone: who comes now starts afresh.
        drop(first);
        assert_eq!(registry.lease("jobs").unwrap().is_heard().now_or_never(), None);
    }

    #[test]
    fn a_refused_channel_is_told_to_those_who_wait() {
        let registry = NotifyRegistry::default();
        let mut lease = registry.lease("jobs").unwrap();

        registry.settle("jobs", false);

        assert_eq!(lease.is_heard().now_or_never(), Some(false));
    }

    #[test]
    fn what_the_notifier_hears_already_it_need_not_say_again() {
        let registry = NotifyRegistry::default();
        let first = registry.lease("jobs").unwrap();
        registry.tell();
        registry.settle("jobs", true);

        // Gone and back before the notifier is told of either.
        drop(first);
        let mut again = registry.lease("jobs").unwrap();
        registry.tell();
        assert_eq!(again.is_heard().now_or_never(), Some(true));

        // Told that nobody wants it, it has to say so anew.
        drop(again);
        registry.tell();
        let mut anew = registry.lease("jobs").unwrap();
        registry.tell();
        assert_eq!(anew.is_heard().now_or_never(), None);

        // And so does another one.
        registry.settle("jobs", true);
        drop(anew);
        let mut last = registry.lease("jobs").unwrap();
        registry.begin();
        registry.tell();
        assert_eq!(last.is_heard().now_or_never(), None);
    }

    #[test]
    fn the_number_of_channels_is_bounded() {
        let registry = NotifyRegistry::default();
        let leases: Vec<_> =
            (0..MOST_CHANNELS).map(|n| registry.lease(&n.to_string()).unwrap()).collect();

        assert!(registry.lease("one more").is_none());
        assert!(registry.lease("0").is_some());
        drop(leases);
        assert!(registry.lease("one more").is_some());
    }
}
