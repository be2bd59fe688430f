//! The background workers with sessions of their own, which answer what the server asks of the
//! database: the catalog worker as the owner of the extension, executors, readers and writers as the clients'
//! roles.

pub(crate) mod answer;
pub(crate) mod asked_rows;
pub(crate) mod catalog;
pub(crate) mod changes;
pub(crate) mod channel;
mod chunk_rows;
pub(crate) mod executor;
pub(crate) mod expression;
pub(crate) mod key_order;
mod labels;
pub(crate) mod log;
pub(crate) mod mutation;
pub(crate) mod notifier;
pub(crate) mod notify_queue;
pub(crate) mod outbox;
mod owner;
pub(crate) mod plan;
pub(crate) mod policy;
mod publication;
pub(crate) mod role;
mod role_settings;
pub(crate) mod row_security;
pub(crate) mod serve;
pub(crate) mod session;
mod snapshot;
mod table;
pub(crate) mod transaction;
