//! The lives of the background workers: who starts whom, when they end, what they share.

pub(crate) mod awaited;
pub(crate) mod background;
pub(crate) mod databases;
pub(crate) mod entry;
pub(crate) mod helpers;
pub(crate) mod last_words;
pub(crate) mod latch;
pub(crate) mod launcher;
pub(crate) mod link;
pub(crate) mod probe;
pub(crate) mod probe_queue;
pub(crate) mod server;
pub(crate) mod shmem;
pub(crate) mod signals;
pub(crate) mod worker;
