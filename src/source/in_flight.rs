//! Commits under way: a transaction whose commit record is in the WAL cannot be seen by others
//! until the record is flushed and the synchronous standbys have it, which may take for ever.

use std::ffi::{c_int, c_void};

use pgrx::pg_sys;

use crate::compat;

/// Held up by those who write their commit record, until their commit is in `pg_xact`.
const WRITING: c_int = pg_sys::DELAY_CHKPT_START as c_int;

/// The transactions that run now or are prepared, without their subtransactions. Of all that has
/// committed before an address that was read before this call, only these cannot be seen yet.
pub(crate) fn running() -> Vec<pg_sys::TransactionId> {
    // SAFETY: the ids are copied under the two locks that the call leaves held.
    unsafe {
        let running = pg_sys::GetRunningTransactionData();
        let count = usize::try_from((*running).xcnt).unwrap_or(0);
        let ids = (0..count).map(|n| *(*running).xids.add(n)).collect();
        compat::release_running_transactions();
        ids
    }
}

/// The commits that are in the WAL at some moment, but cannot be seen yet.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// Processes that may have been writing a commit record at that moment.
    writing: Vec<pg_sys::VirtualTransactionId>,
    /// Once those are through: the transactions that have committed and still count as running.
    hidden: Option<Vec<pg_sys::TransactionId>>,
}

impl InFlight {
    pub(crate) fn now() -> InFlight {
        let mut count: c_int = 0;
        // SAFETY: reads shared memory; what is given is copied, then freed.
        let writing = unsafe {
            let found = pg_sys::GetVirtualXIDsDelayingChkpt(&raw mut count, WRITING);
            let count = usize::try_from(count).unwrap_or(0);
            let writing = (0..count).map(|n| *found.add(n)).collect();
            pg_sys::pfree(found.cast::<c_void>());
            writing
        };
        InFlight { writing, hidden: None }
    }

    /// Whether all of them can be seen by now.
    pub(crate) fn are_visible(&mut self) -> bool {
        if self.hidden.is_none() {
            let count = c_int::try_from(self.writing.len()).unwrap_or(0);
            // SAFETY: reads shared memory; the array is as long as said.
            let write = unsafe {
                pg_sys::HaveVirtualXIDsDelayingChkpt(self.writing.as_mut_ptr(), count, WRITING)
            };
            if write {
                return false;
            }
        }
        let hidden = self.hidden.get_or_insert_with(|| {
            let mut running = running();
            // SAFETY: asks `pg_xact` about a transaction that is not old.
            running.retain(|xid| unsafe { pg_sys::TransactionIdDidCommit(*xid) });
            running
        });
        // SAFETY: reads shared memory.
        hidden.retain(|xid| unsafe { pg_sys::TransactionIdIsInProgress(*xid) });
        hidden.is_empty()
    }
}
