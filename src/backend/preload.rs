//! Whether the server loaded pg_tide at its start, which everything depends on.

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

static PRELOADED: AtomicBool = AtomicBool::new(false);

pub(crate) fn preloaded() {
    PRELOADED.store(true, Ordering::Release);
}

/// Raises an error with the line that is missing in postgresql.conf.
#[pg_extern]
pub(crate) fn require_preload() {
    if PRELOADED.load(Ordering::Acquire) {
        return;
    }
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "pg_tide must be in shared_preload_libraries",
        function_name!(),
    )
    .set_hint(format!(
        "Set this line in postgresql.conf and restart the server: {}",
        missing_line(&current_libraries())
    ))
    .report(PgLogLevel::ERROR);
}

fn current_libraries() -> String {
    // SAFETY: the name is a constant; the value is copied at once.
    unsafe {
        let value = pg_sys::GetConfigOption(c"shared_preload_libraries".as_ptr(), true, false);
        if value.is_null() {
            return String::new();
        }
        CStr::from_ptr(value).to_string_lossy().into_owned()
    }
}

fn missing_line(libraries: &str) -> String {
    let libraries = libraries.trim();
    let before = if libraries.is_empty() { String::new() } else { format!("{libraries}, ") };
    format!("shared_preload_libraries = '{before}pg_tide'")
}
