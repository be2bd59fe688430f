//! Routing: events in, each subscriber's frames out. The hub owns who has joined what and who may
//! see what; it knows neither sockets nor Postgres.
#![forbid(unsafe_code)]

mod entitlement;
mod failure;
mod group;
pub mod handle;
mod history;
mod inquiry;
mod notices;
mod pace;
mod plan;
pub mod queue;
pub mod receipts;
mod recent;
mod replay;
mod roster;
mod route;
mod stream;
pub mod subscription;
#[cfg(test)]
mod tests;

pub use handle::Hub;
pub use stream::{Parts, start};
