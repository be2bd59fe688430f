//! The Supabase Realtime protocol: bytes to typed frames and back, no sockets.

pub mod broadcast;
pub mod change;
pub mod decode;
pub mod encode;
pub mod envelope;
pub mod frame_buf;
#[cfg(test)]
mod golden;
pub mod join;
mod members;
pub mod mutation;
pub mod record;
pub mod rest;
pub mod schema;
mod timestamp;

/// The protocol's version, chosen by the client's `vsn` parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Vsn {
    /// Objects; what a client gets that says nothing.
    #[default]
    V1,
    /// Arrays, and binary frames for broadcasts.
    V2,
}
