//! The boundary to Postgres: the only place with unsafe code.
#![allow(unsafe_code)]

#[allow(dead_code, reason = "the worker comes next")]
mod guc;

::pgrx::pg_module_magic!(name, version);

#[allow(dead_code, reason = "the worker comes next")]
mod stream;
