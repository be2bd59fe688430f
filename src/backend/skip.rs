//! The way on where decoding crashes the server.

use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};
use tide_feed::event::Lsn;

use crate::backend::report;
use crate::process::shmem;
use crate::source::crash_page::{self, SkipError};

/// Has the worker of this database give up what it has not decoded. `lsn`: a `pg_lsn`, whose bits
/// are those of a bigint. Not strict about the worker: it may be about to be started again.
#[pg_extern]
fn tide_skip_to(lsn: i64) {
    let wanted = Lsn(lsn.cast_unsigned());
    // SAFETY: reads shared memory.
    let written = Lsn(unsafe { pg_sys::GetXLogInsertRecPtr() });
    if wanted > written {
        let message = format!("{wanted} has not been written yet: the WAL ends at {written}");
        report::raise(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message, "");
    }
    // SAFETY: set when this backend connected to its database.
    let database = unsafe { pg_sys::MyDatabaseId };
    match crash_page::ask_skip(database, wanted) {
        Ok(()) => shmem::wake_worker(database),
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &SkipError) -> ! {
    let (code, hint) = match error {
        SkipError::NoCrash => {
            (PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, String::new())
        }
        SkipError::TooEarly { end, .. } => (
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("The record ends at {end}: select tide.skip_to('{end}')."),
        ),
        SkipError::Io(_) => (PgSqlErrorCode::ERRCODE_IO_ERROR, String::new()),
    };
    report::raise(code, error.to_string(), &hint)
}
