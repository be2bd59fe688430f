//! What a client's code may leave in a writer's session: the next client is to find nothing of it.
//!
//! Settings, roles and locks go with the transaction, as does what it listens to. What may outlast one is what
//! `DISCARD ALL` is about.

use std::time::Duration;

use pgrx::pg_sys;

use crate::helper::transaction::committed;
use crate::helper::{log, session};
use crate::sys;

const TIMEOUT: Duration = Duration::from_secs(10);

/// What would be done at the transaction's end, in nobody's name and without a limit: cursors that are to
/// outlive it would be run, and what is to be listened to would be. As the client, once all else is done.
pub(crate) fn forgo() {
    // SAFETY: in a transaction of a session in which nobody else has cursors, or has asked to listen.
    unsafe {
        pg_sys::PortalHashTableDeleteAll();
        sys::unlisten_all();
    }
}

/// Discards what a transaction has left; where that cannot be done the process ends.
pub(crate) fn discard() {
    // SAFETY: outside a transaction, in a session that nobody else has anything in.
    let has_temporary_tables = unsafe {
        pg_sys::DropAllPreparedStatements();
        sys::forget_sequences();
        sys::temporary_schema() != pg_sys::InvalidOid
    };
    if !session::is_itself() {
        end("its settings, or its user, are not its own any more");
    }
    if !has_temporary_tables {
        return;
    }
    let discarded = committed(TIMEOUT, || {
        // SAFETY: in a transaction.
        unsafe { pg_sys::ResetTempTableNamespace() };
        Ok(())
    });
    if let Err(refusal) = discarded {
        end(&refusal.for_log());
    }
}

/// Another process takes its place.
fn end(why: &str) -> ! {
    log::say(&format!("a writer ends, since it cannot be cleared: {why}"));
    // SAFETY: ends this process as any error that is FATAL does.
    unsafe { pg_sys::proc_exit(1) }
}
