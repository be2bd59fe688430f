//! Everything between the WAL and the feed.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::bridge::Bridge;
use crate::event::Feed;

/// When [`Stream::round`] wants to be called again at the latest; `None`: when something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) wait: Option<Duration>,
}

/// The decoder of one database; lives as long as its worker and belongs to its main thread.
#[derive(Debug)]
pub(crate) struct Stream {
    slot_prefix: String,
    publication: String,
    feed: Sender<Feed>,
    bridge: Arc<Bridge>,
}

impl Stream {
    /// `slot_prefix`: `tide.slot_name`, or empty for `tide_<oid of the database>`.
    pub(crate) fn new(
        slot_prefix: String,
        publication: String,
        feed: Sender<Feed>,
        bridge: Arc<Bridge>,
    ) -> Stream {
        Stream { slot_prefix, publication, feed, bridge }
    }

    /// Decodes all WAL that has been flushed, opening the stream (and creating the slot) first if
    /// need be, and moves the slot to [`Bridge::confirmed`]. Outside a transaction only. Errors
    /// are handled inside; only what ends the process (SIGTERM's FATAL) does not return.
    pub(crate) fn round(&mut self) -> Next {
        Next { wait: Some(Duration::from_secs(5)) }
    }

    /// The settings were reloaded: a stream that waits out an obstacle looks again at once.
    pub(crate) fn retry_now(&mut self) {}

    /// Closes the context and releases the slot; the next round opens it again.
    pub(crate) fn close(&mut self) {}

    /// Drops the slot: the extension or the database goes away.
    pub(crate) fn drop_slot(&mut self) {}
}

/// Fixes the settings that values are printed by, so that decoding the same WAL again gives the
/// same events. To be called once, after the worker has connected to its database.
pub(crate) fn pin_output_settings() {}
