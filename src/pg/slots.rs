//! Replication slots that no worker is there to drop any more.

use std::ffi::CStr;

use pgrx::pg_sys;

/// Drops pg_tide's slots of a database that nobody uses. A slot left behind would hold back WAL
/// for ever.
pub(super) fn drop_unused(database: pg_sys::Oid) {
    for name in unused(database) {
        pgrx::log!("pg_tide: dropping replication slot \"{}\"", name.to_string_lossy());
        // SAFETY: this process has no slot of its own; a slot that somebody else has come to use
        // or drop since is an error, after which the launcher is started again.
        unsafe { pg_sys::ReplicationSlotDrop(name.as_ptr(), true) };
    }
}

fn unused(database: pg_sys::Oid) -> Vec<std::ffi::CString> {
    // SAFETY: the array in shared memory has `max_replication_slots` elements and is never moved.
    // The fields are read without their locks: they were written before `in_use`, names end in
    // zero, and whatever is stale is found out when the slot is acquired by name.
    unsafe {
        let count = usize::try_from(pg_sys::max_replication_slots).unwrap_or(0);
        let first = (&raw mut (*pg_sys::ReplicationSlotCtl).replication_slots)
            .cast::<pg_sys::ReplicationSlot>();
        (0..count)
            .map(|n| first.add(n))
            .filter(|slot| (&raw const (**slot).in_use).read_volatile())
            .filter(|slot| (**slot).data.database == database && (**slot).active_pid == 0)
            .filter(|slot| {
                CStr::from_ptr((&raw const (**slot).data.plugin.data).cast()) == c"pg_tide"
            })
            .map(|slot| CStr::from_ptr((&raw const (*slot).data.name.data).cast()).to_owned())
            .collect()
    }
}
