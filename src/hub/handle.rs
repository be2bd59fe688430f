//! The handle by which sessions talk to the hub.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::event::{Epoch, Lsn};
use crate::hub::queue::Queue;
use crate::hub::subscription::Subscription;

pub type SessionId = u64;

/// A connection as `tide.stat_connections` shows it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub user_agent: Option<Box<str>>,
    pub connected_at: SystemTime,
}

/// The stream as of its last opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    pub epoch: Epoch,
    pub from: Lsn,
}

/// Talks to the hub's thread. A cheap clone.
#[derive(Clone, Debug)]
pub struct Hub {}

impl Hub {
    /// Registers a connection; what is pushed to its queue is to be written to its socket.
    pub fn connect(&self, _peer: Peer) -> (SessionId, Arc<Queue>) {
        unimplemented!()
    }

    /// Adds a channel (or replaces the session's channel of that topic) and queues the greeting
    /// before its first event. Waits until the stream is live.
    pub async fn join(&self, _session: SessionId, _subscription: Subscription) {
        unimplemented!()
    }

    /// The channel's token was renewed with another role.
    pub fn set_role(&self, _session: SessionId, _topic: &str, _role: Arc<str>) {
        unimplemented!()
    }

    pub fn leave(&self, _session: SessionId, _topic: &str) {
        unimplemented!()
    }

    /// The session's queue has room again ([`super::queue::Taken::Frames`] said `drained`).
    pub fn drained(&self, _session: SessionId) {
        unimplemented!()
    }

    /// Forgets the connection and its channels.
    pub fn disconnect(&self, _session: SessionId) {
        unimplemented!()
    }

    /// The stream, if it is live at the moment.
    pub fn live(&self) -> Option<Live> {
        unimplemented!()
    }
}
