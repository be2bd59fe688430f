//! Where the versions of Postgres differ.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Connects a background worker to a database by its oid, as a role by its name. (Postgres's own
/// functions want two oids or two names; only the name of the role is fixed, and only the oid of
/// the database survives its renaming.)
pub(super) fn connect(database: pg_sys::Oid, role: &CStr) {
    use std::ptr::{null, null_mut};

    // SAFETY: does what BackgroundWorkerInitializeConnection does, for a worker that has not
    // connected yet.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        pg_sys::InitPostgres(
            null(),
            database,
            role.as_ptr(),
            pg_sys::InvalidOid,
            false,
            false,
            null_mut(),
        );
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        pg_sys::InitPostgres(null(), database, role.as_ptr(), pg_sys::InvalidOid, 0, null_mut());
        pg_sys::Mode = pg_sys::ProcessingMode::NormalProcessing;
    }
}

/// Whether the role owns the database, or has an owner's rights.
///
/// # Safety
/// In a transaction only.
pub(super) unsafe fn owns_database(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: as above.
    #[cfg(feature = "pg15")]
    unsafe {
        pg_sys::pg_database_ownercheck(database, role)
    }
    // SAFETY: as above.
    #[cfg(not(feature = "pg15"))]
    unsafe {
        pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role)
    }
}
