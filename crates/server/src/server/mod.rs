//! The listener: HTTP and websockets on one port. It knows no Postgres; whom it talks for comes in
//! as handles of the hub and the catalogue.

mod access;
pub mod bind;
mod binding;
mod broadcast;
mod channel;
mod connection;
mod connection_slots;
mod context;
mod conversation;
mod credentials;
mod findings;
mod grant;
mod greeting;
mod handshake;
mod http;
mod identity;
mod join;
mod legacy;
mod limit;
mod listen;
mod mutate_request;
mod mutation;
mod mutations;
mod page;
mod pending;
mod post;
mod presence;
mod read_budget;
mod refusals;
mod rest;
mod role;
mod route;
mod session;
mod shutdown;
mod since;
mod single_flight;
mod snapshot_options;
mod table_questions;
mod tables;
#[cfg(test)]
mod tests;
pub mod tls;
mod tracking;
mod writer;

pub use context::ServerContext;
pub(crate) use listen::pause_after;
pub use listen::run;
