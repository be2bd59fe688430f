//! What runs in any session: hooks, callbacks, the functions that SQL calls.

pub(crate) mod control;
pub(crate) mod drops;
pub(crate) mod hooks;
pub(crate) mod jsonb;
pub(crate) mod outbox;
pub(crate) mod own_rows;
pub(crate) mod owner;
pub(crate) mod preload;
pub(crate) mod records;
pub(crate) mod report;
pub(crate) mod schema_change;
pub(crate) mod send;
pub(crate) mod skip;
pub(crate) mod status;
pub(crate) mod write_rules;
pub(crate) mod xact_callback;
pub(crate) mod xact_notes;
