//! pg_tide makes a Postgres database its own realtime server. This is the half that runs inside
//! Postgres, and the only place with unsafe code.
//!
//! What the library registers with Postgres, and what it exports, is listed here and nowhere
//! else: [`_PG_init`] for the hooks; `tide_launcher_main`, `tide_probe_main`, `tide_worker_main`
//! and `tide_helper_main` for the background workers; `_PG_output_plugin_init` for the decoder.
#![allow(unsafe_code)]

mod backend;
mod compat;
mod encoding;
mod failure;
mod guc;
mod helper;
mod own_function;
mod process;
mod server_text;
mod socket;
mod source;
mod sys;
mod tuple;
mod type_form;
mod wait;

use pgrx::pg_sys;
use pgrx::prelude::*;

::pgrx::pg_module_magic!(name, version);

/// Called when the library is loaded: by the postmaster if it is preloaded, else by the backend
/// that runs one of its functions. Then nothing is registered; CREATE EXTENSION says what is
/// missing.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: plain variables of this process.
    let (upgrading, preloading) =
        unsafe { (pg_sys::IsBinaryUpgrade, pg_sys::process_shared_preload_libraries_in_progress) };
    backend::report::without_backtraces();
    // pg_upgrade wants its servers quiet.
    if upgrading || !preloading {
        return;
    }
    backend::preload::preloaded();
    guc::init();
    process::shmem::init();
    backend::xact_callback::init();
    backend::hooks::init();
    process::launcher::register();
}
