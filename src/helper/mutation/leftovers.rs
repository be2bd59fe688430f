//! What a client's code may leave in a writer's session: the next client is to find nothing of it.
//!
//! Settings, roles and locks go with the transaction. What may outlast one is what `DISCARD ALL` is about.

use std::time::Duration;

use pgrx::pg_sys;

use crate::helper::log;
use crate::helper::transaction::committed;
use crate::sys;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Discards all of it; where that cannot be done the process ends.
pub(crate) fn discard() {
    let discarded = committed(TIMEOUT, || {
        // SAFETY: in a transaction of a session that nobody else has anything in.
        unsafe {
            pg_sys::PortalHashTableDeleteAll();
            pg_sys::DropAllPreparedStatements();
            sys::unlisten_all();
            sys::forget_sequences();
            pg_sys::ResetTempTableNamespace();
        }
        Ok(())
    });
    if let Err(refusal) = discarded {
        log::say(&format!("a writer ends, since it cannot be cleared: {}", refusal.for_log()));
        // SAFETY: ends this process as any error that is FATAL does; another takes its place.
        unsafe { pg_sys::proc_exit(1) };
    }
}
