//! Routing: events in, each subscriber's frames out. The hub owns who has joined what and who may
//! see what; it knows neither sockets nor Postgres.

mod alteration;
mod bodies;
mod catch_up;
mod entitlement;
mod failure;
mod group;
pub mod handle;
mod history;
mod notices;
mod plan;
mod policy_check;
pub mod queue;
pub mod receipts;
mod recent;
mod registry;
mod route;
mod shipment;
mod slow_consumer;
mod stream;
pub mod subscription;
#[cfg(test)]
mod tests;

pub use handle::Hub;
pub use stream::{Parts, Stream, new};
