//! What schemas and records need beyond SQL. The functions that users call are in
//! `sql/extension/`.

use std::ffi::CString;
use std::ptr::null_mut;

use pgrx::pg_sys::panic::ErrorReportable;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::backend::report;
use crate::compat;
use crate::encoding;
use crate::guc;
use crate::server_text::ServerText;

/// What publishes the schema.
const PUBLISH: &str = "
    select pg_catalog.format('alter publication %I add tables in schema %I', $2, n.nspname)
    from pg_catalog.pg_namespace as n
    where n.oid operator(pg_catalog.=) $1";

/// Adds a schema to the publication. Postgres leaves that to superusers, since such a publication
/// takes in other people's tables; here the schema's owner may, too. What clients see of the tables
/// is still for the tables' owners to say.
#[pg_extern]
fn tide_publish_schema(schema: pg_sys::Oid) {
    // SAFETY: a catalogue look-up in the calling query's transaction.
    if !unsafe { compat::owns_schema(schema, pg_sys::GetUserId()) } {
        report::raise(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "must be owner of the schema to publish it",
            "Its owner, or a superuser, does so with tide.create_schema().",
        )
    }
    let statement = Spi::get_one_with_args::<ServerText<String>>(
        PUBLISH,
        &[schema.into(), ServerText(guc::publication()).into()],
    );
    if let Ok(Some(ServerText(statement))) = statement {
        let statement = encoding::server_string(&statement);
        let run = || Spi::connect_mut(|client| client.update(&statement, None, &[]).map(drop));
        as_superuser(run).unwrap_or_report();
    }
}

/// Runs `work` with a superuser's rights. After an error it is the end of the transaction, or of
/// the subtransaction, that takes them back.
fn as_superuser<R>(work: impl FnOnce() -> R) -> R {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: the flag keeps what runs from setting another role.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let restricted = context | pg_sys::SECURITY_LOCAL_USERID_CHANGE.cast_signed();
        pg_sys::SetUserIdAndSecContext(pg_sys::BOOTSTRAP_SUPERUSERID.into(), restricted);
    }
    let result = work();
    // SAFETY: as they were.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) };
    result
}

/// Whether the caller may make the publication, or change it.
const MAY_PUBLISH: &str = "
    select pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
           or exists (select from pg_catalog.pg_publication as p
                      where p.pubname operator(pg_catalog.=) $1::pg_catalog.name
                        and pg_catalog.pg_has_role(p.pubowner, 'USAGE'))";

/// Waits until no other transaction is making or changing the publication, and sees what they did. The
/// index that keeps names unique does not suffice: a session that it has waited in can look the new
/// publication up too soon. Those who can do neither have nothing to wait for, and keep nobody waiting.
#[pg_extern]
fn tide_lock_publications() {
    if !Spi::get_one_with_args::<bool>(MAY_PUBLISH, &[ServerText(guc::publication()).into()])
        .ok()
        .flatten()
        .unwrap_or(false)
    {
        return;
    }
    let every = pg_sys::InvalidOid;
    let lock = pg_sys::ExclusiveLock.cast_signed();
    // SAFETY: a lock until the end of the calling query's transaction.
    unsafe { pg_sys::LockDatabaseObject(pg_sys::PublicationRelationId, every, 0, lock) };
}

/// Whether there is such a table. If so it stays until this transaction ends; unless the caller
/// may not use it, when the statement that comes next is refused in any case.
#[pg_extern]
fn tide_lock_records(schema: &str, table: &str, writing: bool) -> bool {
    let (Ok(schema), Ok(table)) = (CString::new(schema), CString::new(table)) else { return false };
    // SAFETY: look-ups in the calling query's transaction, by names that outlive them.
    let look_up = |lock: u32| unsafe {
        let name = pg_sys::makeRangeVar(schema.as_ptr().cast_mut(), table.as_ptr().cast_mut(), -1);
        let missing_ok = pg_sys::RVROption::RVR_MISSING_OK;
        pg_sys::RangeVarGetRelidExtended(name, lock.cast_signed(), missing_ok, None, null_mut())
    };
    let (privileges, lock) = if writing {
        let privileges = pg_sys::ACL_INSERT | pg_sys::ACL_UPDATE | pg_sys::ACL_DELETE;
        (privileges, pg_sys::RowExclusiveLock)
    } else {
        (pg_sys::ACL_SELECT, pg_sys::AccessShareLock)
    };
    let found = look_up(pg_sys::NoLock);
    if found == pg_sys::InvalidOid {
        return false;
    }
    match has_any(found, privileges as pg_sys::AclMode) {
        // Whatever is done next says so.
        Some(false) => true,
        Some(true) => look_up(lock) != pg_sys::InvalidOid,
        None => false,
    }
}

/// Whether the caller has one of these privileges on the table, or on a column of it; `None`: it has
/// been dropped since.
fn has_any(table: pg_sys::Oid, privileges: pg_sys::AclMode) -> Option<bool> {
    let (allowed, any) = (pg_sys::AclResult::ACLCHECK_OK, pg_sys::AclMaskHow::ACLMASK_ANY);
    let mut is_missing = false;
    // SAFETY: catalogue look-ups in the calling query's transaction.
    unsafe {
        let user = pg_sys::GetUserId();
        let of_table = pg_sys::pg_class_aclcheck_ext(table, user, privileges, &raw mut is_missing);
        if is_missing {
            return None;
        }
        let of_columns = || pg_sys::pg_attribute_aclcheck_all(table, user, privileges, any);
        Some(of_table == allowed || of_columns() == allowed)
    }
}
