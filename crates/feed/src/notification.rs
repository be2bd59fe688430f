//! What NOTIFY says.

use serde::{Deserialize, Serialize};

/// A notification as Postgres delivers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    pub channel: Box<str>,
    pub payload: Box<str>,
    /// Of the backend that sent it.
    pub pid: i32,
}

/// Channels that the server may want to hear at the same time: Postgres compares each notification of
/// the database with all of them.
pub const MOST_CHANNELS: usize = 10_000;

/// Bytes of a server's wish to the notifier, which is the list of all the channels that it wants to
/// hear.
pub const MOST_WISHES: usize = 4 << 20;

/// What the notifier says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notified {
    /// Whether a channel is listened to now, of those that the list before did not have, or that
    /// were not heard then.
    Listening { channel: String, heard: bool },
    /// In the order they came.
    Notifications(Vec<Notification>),
    /// So many were lost, since the server did not take what came before them.
    Dropped(u64),
}
