//! From the WAL to the feed: the slot, decoding, rows and values, messages.

pub(crate) mod crash_page;
pub(crate) mod decoder;
pub(crate) mod feed_writer;
pub(crate) mod in_flight;
pub(crate) mod invalidation;
pub(crate) mod log_limit;
pub(crate) mod logical_message;
pub(crate) mod message_key;
pub(crate) mod outbox;
pub(crate) mod plugin;
pub(crate) mod publication;
pub(crate) mod relation;
pub(crate) mod replay;
pub(crate) mod row_filter;
pub(crate) mod running_xacts;
pub(crate) mod slot;
pub(crate) mod snapshot;
pub(crate) mod stall;
pub(crate) mod stream;
pub(crate) mod trust;
pub(crate) mod value;
