//! The boundary to Postgres: the only place with unsafe code.
#![allow(unsafe_code)]

mod guc;

::pgrx::pg_module_magic!(name, version);
