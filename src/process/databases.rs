//! The databases of the cluster, as the launcher sees them: from the shared catalogue.

use std::ffi::CStr;

use pgrx::pg_sys;

/// `DATCONNLIMIT_INVALID_DB`.
const BROKEN: i32 = -2;

/// A row of `pg_database`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Database {
    pub(crate) oid: pg_sys::Oid,
    pub(crate) name: String,
    is_template: bool,
    allows_connections: bool,
    /// DROP DATABASE was interrupted; it can only be dropped again.
    is_broken: bool,
}

impl Database {
    /// Whether pg_tide may serve it. Templates are there to be copied, not to be listened to; a
    /// worker would be in the way of every CREATE DATABASE.
    pub(crate) fn is_open(&self) -> bool {
        self.allows_connections && !self.is_template && !self.is_broken
    }

    /// Whether nobody may connect to it for now.
    pub(crate) fn is_shut(&self) -> bool {
        !self.allows_connections && !self.is_template && !self.is_broken
    }
}

pub(crate) fn find(oid: pg_sys::Oid) -> Option<Database> {
    list().into_iter().find(|database| database.oid == oid)
}

/// All of them. Outside a transaction only.
pub(crate) fn list() -> Vec<Database> {
    let mut databases = Vec::new();
    // SAFETY: one transaction, as the launchers of Postgres's own do it; the tuples are copied
    // before it ends.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::GetTransactionSnapshot();
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, lock);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            databases.push(read(tuple));
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(relation, lock);
        pg_sys::CommitTransactionCommand();
    }
    databases
}

/// # Safety
/// `tuple` must be one of `pg_database`.
unsafe fn read(tuple: pg_sys::HeapTuple) -> Database {
    // SAFETY: as above; the fixed part of a row begins at t_hoff.
    unsafe {
        let header = (*tuple).t_data;
        let row = header
            .cast::<u8>()
            .add(usize::from((*header).t_hoff))
            .cast::<pg_sys::FormData_pg_database>();
        Database {
            oid: (*row).oid,
            name: CStr::from_ptr((&raw const (*row).datname.data).cast())
                .to_string_lossy()
                .into_owned(),
            is_template: (*row).datistemplate,
            allows_connections: (*row).datallowconn,
            is_broken: (*row).datconnlimit == BROKEN,
        }
    }
}
