//! The Supabase Realtime protocol: bytes to typed frames and back, no sockets.
#![forbid(unsafe_code)]

/// The protocol's version, chosen by the client's `vsn` parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Vsn {
    /// Objects; what a client gets that says nothing.
    #[default]
    V1,
    /// Arrays, and binary frames for broadcasts.
    V2,
}
