//! What pg_tide itself writes to the WAL, as logical messages: their content, and the seal that
//! tells them from what others write there.

mod message;
mod seal;

use std::ffi::CStr;

pub use message::WalMessage;
pub use seal::{Key, MessageOrigin, Sealed, seal};

/// The prefix of our logical messages.
pub const PREFIX: &CStr = c"pg_tide";
