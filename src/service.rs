//! The network half as one thing that the worker starts and stops: runtime, hub, listeners.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use crossbeam_channel::Receiver;

use crate::bridge::Bridge;
use crate::config::Config;
use crate::event::Feed;

/// Running threads. They must be started with all signals blocked.
#[derive(Debug)]
pub struct Service {}

impl Service {
    /// Binds the sockets and starts the threads.
    pub fn start(
        _config: Config,
        _feed: Receiver<Feed>,
        _bridge: Arc<Bridge>,
    ) -> io::Result<Service> {
        Ok(Service {})
    }

    /// Whether every thread is still there; if not, the worker must exit and be started again.
    pub fn is_alive(&self) -> bool {
        true
    }

    /// Says goodbye to the clients and ends the threads, within half a second.
    pub fn stop(self) {}
}
