//! What today's catalogue says, asked of the executors and the steward over the worker's own
//! unix socket. The decoding process itself never looks at it.
#![forbid(unsafe_code)]

pub mod protocol;
