//! The listener: HTTP and websockets on one port. It knows no Postgres; whom it talks for comes in
//! as handles of the hub and the catalogue.
#![forbid(unsafe_code)]

mod access;
mod attendance;
mod binding;
mod channel;
mod connection;
mod context;
mod conversation;
mod handshake;
mod http;
mod identity;
mod inbound;
mod join;
mod limit;
mod listen;
mod lookup;
mod page;
mod pending;
mod rest;
mod role;
mod route;
mod seats;
mod session;
mod speech;
#[cfg(test)]
mod tests;
pub mod tls;
mod writer;

pub use context::ServerContext;
pub(crate) use listen::pause_after;
pub use listen::run;
