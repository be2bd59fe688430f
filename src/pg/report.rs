//! Errors of the SQL functions.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, function_name};

/// Raises an error with a hint.
pub(super) fn raise(code: PgSqlErrorCode, message: &str, hint: &str) -> ! {
    ErrorReport::new(code, message, function_name!()).set_hint(hint).report(PgLogLevel::ERROR);
    unreachable!("an error has been raised")
}
