//! What a session remembers of the channels that it has joined.

use std::collections::HashMap;
use std::sync::Arc;

use super::credentials::Credentials;
use super::grant::Access;
use super::presence::ChannelPresence;
use crate::allowance::Share;
use crate::notify::Lease;
use crate::stats::Stats;

/// One joined channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) join_ref: Option<Box<str>>,
    pub(super) credentials: Credentials,
    /// Joined as a private channel: policies decide.
    pub(super) private: bool,
    pub(super) access: Access,
    /// Broadcasts are to be answered.
    pub(super) ack: bool,
    /// Has the database listen for as long as the channel is joined.
    pub(super) _lease: Option<Lease>,
    /// The client hears its own broadcasts.
    pub(super) echo: bool,
    /// Of events of ours, the payload has `meta` as well.
    pub(super) meta_in_payload: bool,
    /// The client asked to be told who is present.
    pub(super) watches_presence: bool,
    /// Of the connection's memory for filters.
    pub(super) _filters: Option<Share>,
    /// What it takes up.
    pub(super) memory: Share,
    /// None on topics of ours.
    pub(super) presence: Option<Box<ChannelPresence>>,
}

impl Channel {
    /// Whether a frame with this join ref is of an earlier join of the topic.
    pub(super) fn is_stale(&self, join_ref: Option<&str>) -> bool {
        matches!((join_ref, &self.join_ref), (Some(one), Some(other)) if *one != **other)
    }
}

/// The channels of one connection, by topic. Counted in the statistics for as long as they are
/// here.
#[derive(Debug)]
pub(super) struct Channels {
    joined: HashMap<Arc<str>, Channel>,
    stats: Arc<Stats>,
}

impl Channels {
    pub(super) fn new(stats: Arc<Stats>) -> Channels {
        Channels { joined: HashMap::new(), stats }
    }

    pub(super) fn len(&self) -> usize {
        self.joined.len()
    }

    pub(super) fn get(&self, topic: &str) -> Option<&Channel> {
        self.joined.get(topic)
    }

    pub(super) fn get_mut(&mut self, topic: &str) -> Option<&mut Channel> {
        self.joined.get_mut(topic)
    }

    pub(super) fn insert(&mut self, topic: Arc<str>, channel: Channel) {
        if self.joined.insert(topic, channel).is_none() {
            self.stats.channels.inc();
        }
    }

    pub(super) fn remove(&mut self, topic: &str) -> Option<Channel> {
        let removed = self.joined.remove(topic)?;
        self.stats.channels.dec();
        Some(removed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Channel> {
        self.joined.values()
    }

    /// When the first of the tokens expires, in seconds since the Unix epoch.
    pub(super) fn next_expiry(&self) -> Option<i64> {
        self.joined.values().filter_map(|channel| channel.credentials.expires).min()
    }

    /// The topics whose tokens have expired.
    pub(super) fn expired(&self, now: i64) -> Vec<Arc<str>> {
        let expired = |channel: &Channel| channel.credentials.has_expired(now);
        self.joined
            .iter()
            .filter(|(_, channel)| expired(channel))
            .map(|(topic, _)| Arc::clone(topic))
            .collect()
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.stats.channels.sub(self.joined.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowance::Allowance;

    fn channel(expires: Option<i64>) -> Channel {
        let mut credentials = Credentials::anonymous("web");
        credentials.expires = expires;
        Channel {
            join_ref: Some("1".into()),
            credentials,
            private: false,
            access: Access::default(),
            ack: false,
            _lease: None,
            _filters: None,
            memory: Share::of(&Arc::new(Allowance::new(0))),
            echo: false,
            meta_in_payload: false,
            watches_presence: false,
            presence: None,
        }
    }

    #[test]
    fn channels_are_counted_until_they_or_their_connection_go() {
        let stats = Arc::new(Stats::default());
        let mut channels = Channels::new(Arc::clone(&stats));

        channels.insert("a".into(), channel(None));
        channels.insert("a".into(), channel(None));
        channels.insert("b".into(), channel(None));
        assert_eq!(stats.channels.get(), 2);
        channels.remove("b");
        channels.remove("b");
        assert_eq!(stats.channels.get(), 1);
        drop(channels);

        assert_eq!(stats.channels.get(), 0);
    }

    #[test]
    fn the_first_expiry_is_the_one_to_wait_for() {
        let mut channels = Channels::new(Arc::default());
        channels.insert("never".into(), channel(None));
        channels.insert("late".into(), channel(Some(200)));
        channels.insert("soon".into(), channel(Some(100)));

        assert_eq!(channels.next_expiry(), Some(100));
        assert!(channels.expired(99).is_empty());
        assert_eq!(channels.expired(100), ["soon".into()]);
        assert_eq!(channels.expired(300).len(), 2);
    }

    #[test]
    fn only_a_different_join_ref_is_stale() {
        let channel = channel(None);

        assert!(!channel.is_stale(None));
        assert!(!channel.is_stale(Some("1")));
        assert!(channel.is_stale(Some("2")));
    }
}
