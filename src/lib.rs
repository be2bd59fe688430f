//! pg_tide makes a Postgres database its own realtime server.
//!
//! The pure half (everything but `pg`) knows nothing of Postgres and has no unsafe code;
//! `pg` is the boundary: background workers, decoding, SQL functions.

pub mod auth;
pub mod backoff;
pub mod bounded;
pub mod bridge;
pub mod catalog;
pub mod config;
pub mod control;
pub mod event;
pub mod filter;
pub mod fragment;
pub mod hub;
pub mod json;
pub mod listener;
pub mod listening;
pub mod outbox;
#[cfg(feature = "pg")]
mod pg;
pub mod policy;
pub mod presence;
pub mod server;
pub mod service;
pub mod stats;
pub mod topic;
pub mod wal;
pub mod wire;
