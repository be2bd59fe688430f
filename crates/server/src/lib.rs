//! pg_tide's server: takes what the worker decodes and streams it to websocket clients. It knows
//! nothing of Postgres but what the worker and its helpers tell it.
#![forbid(unsafe_code)]

pub mod allowance;
pub mod auth;
pub mod catalog;
pub mod confinement;
pub mod control;
pub mod descriptors;
mod fair_queue;
pub mod fault;
pub mod filter;
pub mod hub;
pub mod link;
pub mod logging;
pub mod memory;
pub mod mutation_cleaner;
pub mod notifier;
pub mod notify;
pub mod outbox_cleaner;
pub mod policy;
pub mod presence;
pub mod server;
pub mod service;
pub mod stats;
pub mod topic;
pub mod wire;
pub mod writer_demand;
