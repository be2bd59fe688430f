//! What the tests stand on: clusters, databases, websocket clients, waiting.

pub mod ably;
pub mod client;
pub mod cluster;
pub mod database;
pub mod family;
pub mod firehose;
pub mod follower;
pub mod http;
pub mod json;
pub mod mutator;
pub mod proxy;
pub mod token;
pub mod wait;

pub use cluster::Cluster;
pub use database::Database;
pub use wait::{DEADLINE, wait_until};
