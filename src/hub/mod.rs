//! Routing: events in, each subscriber's frames out. The hub owns who has joined what and who may
//! see what; it knows neither sockets nor Postgres.
#![forbid(unsafe_code)]

pub mod handle;
pub mod queue;
pub mod subscription;

pub use handle::Hub;
