//! Names of channels, as either half has to know them.

/// What every topic begins with on the wire.
pub const PREFIX: &str = "realtime:";

/// Bytes of a topic, prefix included: its length must fit a byte of a binary frame.
pub const MAX_TOPIC: usize = 255;

/// Bytes of a channel's name.
pub const MAX_NAME: usize = MAX_TOPIC - PREFIX.len();
