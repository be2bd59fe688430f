//! What pg_tide's worker and its server tell each other: events and their positions, questions
//! about the catalogue and their answers, settings. Plain data; no sockets, no Postgres.
#![forbid(unsafe_code)]

pub mod backoff;
pub mod bounded;
pub mod catalog;
pub mod changes;
pub mod channel;
pub mod config;
pub mod control;
pub mod event;
mod few;
pub mod json;
pub mod labels;
pub mod link;
pub mod mutation;
pub mod names;
pub mod notification;
pub mod payload;
pub mod snapshot;
pub mod token;
pub mod wal;
pub mod wishes;
