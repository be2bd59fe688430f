//! What the worker of this process's database is to decode soon. Cannot fail: no allocation, no error, no lock.

use std::cell::Cell;

use pgrx::pg_sys;

use crate::process::shmem::{self, Entry, Shared};

/// The entry of this backend's database, as of a generation of the table.
#[derive(Clone, Copy)]
struct Found {
    generation: u32,
    entry: Option<&'static Entry>,
}

thread_local! {
    static FOUND: Cell<Option<Found>> = const { Cell::new(None) };
}

/// Somebody waits for the stream to come here: the worker is to look now, and not only at a commit or when
/// it looks by itself.
pub(crate) fn wake_worker(end: pg_sys::XLogRecPtr) {
    let Some(shared) = shmem::shared() else { return };
    // SAFETY: a plain variable of this process.
    let database = unsafe { pg_sys::MyDatabaseId };
    if database == pg_sys::InvalidOid {
        return;
    }
    if let Some(entry) = my_entry(shared, database) {
        entry.committed(end);
    }
}

fn my_entry(shared: &'static Shared, database: pg_sys::Oid) -> Option<&'static Entry> {
    let generation = shared.generation();
    let found = FOUND.get().filter(|found| found.generation == generation).unwrap_or_else(|| {
        let found = Found { generation, entry: shared.entry(database) };
        FOUND.set(Some(found));
        found
    });
    // An entry that was given back belongs to nobody, or to another database.
    found.entry.filter(|entry| entry.database() == database)
}
