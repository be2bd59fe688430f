//! The listener: HTTP and websockets on one port. It knows no Postgres; whom it talks for comes in
//! as handles of the hub and the catalogue.
#![forbid(unsafe_code)]

mod connection;
mod context;
mod handshake;
mod http;
mod identity;
mod limit;
mod listen;
mod page;
mod role;
mod route;
mod session;
pub mod tls;

pub use context::ServerContext;
pub use listen::run;
