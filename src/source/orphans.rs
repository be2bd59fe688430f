//! What no worker is there to remove any more: replication slots, and the page about crashes.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

use crate::compat;
use crate::source::crash_page;
use crate::source::slot::PLUGIN;

/// Drops pg_tide's slots of a database that nobody uses. A slot left behind would hold back WAL
/// for ever. What is known of crashes over what they hold goes with them.
pub(crate) fn drop_slots(database: pg_sys::Oid) {
    for name in unused(database) {
        pgrx::log!("pg_tide: dropping replication slot \"{}\"", name.to_string_lossy());
        // SAFETY: this process has no slot of its own; a slot that somebody else has come to use
        // or drop since is an error, after which the launcher is started again.
        unsafe { pg_sys::ReplicationSlotDrop(name.as_ptr(), true) };
    }
    crash_page::remove(database);
}

fn unused(database: pg_sys::Oid) -> Vec<CString> {
    // SAFETY: the lock keeps slots from coming and going; the array has `max_replication_slots`
    // elements; names end in zero. Nothing below can fail while the lock is held.
    unsafe {
        let lock = compat::replication_slot_control_lock();
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        let count = usize::try_from(pg_sys::max_replication_slots).unwrap_or(0);
        let first = (*pg_sys::ReplicationSlotCtl).replication_slots.as_ptr();
        let names = (0..count)
            .map(|n| first.add(n))
            .filter(|slot| (**slot).in_use && (**slot).active_pid == 0)
            .map(|slot| &raw const (*slot).data)
            .filter(|data| (**data).database == database)
            .filter(|data| CStr::from_ptr((&raw const (**data).plugin.data).cast()) == PLUGIN)
            .map(|data| CStr::from_ptr((&raw const (*data).name.data).cast()).to_owned())
            .collect();
        pg_sys::LWLockRelease(lock);
        names
    }
}
