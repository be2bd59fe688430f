//! The boundary to Postgres: the only place with unsafe code.
//!
//! What the library registers with Postgres, and what it exports, is listed here and nowhere
//! else: [`_PG_init`] for the hooks; `tide_launcher_main`, `tide_probe_main`, `tide_worker_main`
//! and `tide_helper_main` for the background workers; `_PG_output_plugin_init` for the decoder.
#![allow(unsafe_code)]

mod background;
mod channel;
mod compat;
mod complaint;
mod control;
mod databases;
mod decoder;
mod drops;
mod encoding;
mod entry;
mod executor;
mod expression;
mod failure;
mod guc;
mod helper;
mod helper_process;
mod hooks;
mod inbox;
mod invalidation;
mod judge;
mod labels;
mod latch;
mod launcher;
mod log;
mod message_key;
mod nap;
mod notes;
mod notify;
mod obstacle;
mod orphans;
mod outbox;
mod outlet;
mod plugin;
mod preload;
mod probe;
mod publication;
mod records;
mod relation;
mod replay;
mod report;
mod role;
mod row_filter;
mod schema_change;
mod scout;
mod sender;
mod session;
mod shmem;
mod signals;
mod slot;
mod socket;
mod sql_api;
mod starting;
mod steward;
mod stream;
mod sys;
mod threads;
mod transaction;
mod tuple;
mod value;
mod wait;
mod wake;
mod worker;

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
    // pg_upgrade wants its servers quiet.
    if upgrading || !preloading {
        return;
    }
    preload::preloaded();
    guc::init();
    shmem::init();
    wake::init();
    hooks::init();
    launcher::register();
}
