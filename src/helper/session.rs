//! How a helper process gets its session.

use pgrx::pg_sys;

use crate::helper::role::AUTHENTICATOR;

/// Connects as `tide_authenticator`, really: a session that began as another role could be turned
/// back into it by `RESET SESSION AUTHORIZATION` in a client's trigger or policy.
pub(crate) fn connect_as_authenticator(database: pg_sys::Oid) {
    crate::compat::connect(database, AUTHENTICATOR);
    pin_search_path();
}

/// Connects and becomes the extension's owner, whoever that is now. The worker cannot say who it
/// is (it never reads today's catalogue), so the session starts as the bootstrap superuser and
/// steps down; the steward runs nobody's code but pg_tide's, so nobody can step up again.
pub(crate) fn connect_as_owner(database: pg_sys::Oid) {
    // SAFETY: a background worker that has not connected yet, then one short transaction.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let owner = extension_owner();
        pg_sys::PopActiveSnapshot();
        if let Some(owner) = owner {
            pg_sys::SetSessionAuthorization(owner, pg_sys::superuser_arg(owner));
        }
        pg_sys::CommitTransactionCommand();
        if owner.is_none() {
            // Dropped meanwhile; the worker is about to hear of it as well.
            pg_sys::proc_exit(0);
        }
    }
    pin_search_path();
}

/// Names mean the same to the steward, who writes types as text, and to the executors, who read
/// them; and nobody's objects are taken for Postgres's.
fn pin_search_path() {
    // SAFETY: outside a transaction, with constants; lasts as long as the session.
    unsafe {
        pg_sys::SetConfigOption(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

/// Needs a transaction.
pub(crate) fn extension_owner() -> Option<pg_sys::Oid> {
    let query = "select extowner from pg_catalog.pg_extension where extname = 'pg_tide'";
    pgrx::Spi::get_one(query).ok().flatten()
}
