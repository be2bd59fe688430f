//! The boundary to Postgres: the only place with unsafe code.
#![allow(unsafe_code)]

mod compat;
mod executor;
#[allow(dead_code, reason = "the worker comes next")]
mod guc;
mod helper;
mod role;
mod session;
mod socket;
mod steward;
mod transaction;

::pgrx::pg_module_magic!(name, version);

#[allow(dead_code, reason = "the worker comes next")]
mod stream;
