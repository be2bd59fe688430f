//! What a client's code may leave in a writer's session: the next client is to find nothing of it.
//!
//! Settings, roles and locks go with the transaction, as does what it listens to. What may outlast one is what
//! `DISCARD ALL` is about.

use std::time::Duration;

use pgrx::pg_sys;

use crate::helper::log;
use crate::helper::transaction::committed;
use crate::sys;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Has nothing listened to, from the end of the transaction on.
pub(crate) fn stop_listening() {
    // SAFETY: in a transaction of a session in which nobody else has asked to listen.
    unsafe { sys::unlisten_all() };
}

/// Discards what a transaction has left; where that cannot be done the process ends.
pub(crate) fn discard() {
    // SAFETY: outside a transaction, in a session that nobody else has anything in.
    let has_temporary_tables = unsafe {
        pg_sys::PortalHashTableDeleteAll();
        pg_sys::DropAllPreparedStatements();
        sys::forget_sequences();
        sys::temporary_schema() != pg_sys::InvalidOid
    };
    if !has_temporary_tables {
        return;
    }
    let discarded = committed(TIMEOUT, || {
        // SAFETY: in a transaction.
        unsafe { pg_sys::ResetTempTableNamespace() };
        Ok(())
    });
    if let Err(refusal) = discarded {
        log::say(&format!("a writer ends, since it cannot be cleared: {}", refusal.for_log()));
        // SAFETY: ends this process as any error that is FATAL does; another takes its place.
        unsafe { pg_sys::proc_exit(1) };
    }
}
