//! What the database and `tide_authenticator` have set for their sessions. A session has what was in force
//! when it began: an executor whose session has become old is followed by another.

use std::hash::{DefaultHasher, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::{PgSqlErrorCode, pg_sys};

use crate::helper::transaction::{Refusal, rolled_back};
use crate::sys;

/// `pg_db_role_setting`, its index, and its columns: pgrx does not bind them.
const TABLE: u32 = 2964;
const BY_DATABASE_AND_ROLE: u32 = 2965;
const DATABASE: pg_sys::AttrNumber = 1;
const ROLE: pg_sys::AttrNumber = 2;

const LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;

/// What this session began with.
static BEGUN_WITH: OnceLock<u64> = OnceLock::new();
static IS_OLD: AtomicBool = AtomicBool::new(false);

/// To be called when the session has begun, outside a transaction.
pub(crate) fn remember() {
    let newest = rolled_back(std::time::Duration::from_secs(10), || {
        let newest = newest();
        // What has changed since the session began with them would be taken for what it began with.
        apply();
        Ok(newest)
    });
    let _ = BEGUN_WITH.set(newest.unwrap_or_default());
}

/// Applies them once more, in the order in which they count. Not taken back with the transaction.
fn apply() {
    use pg_sys::GucSource::{PGC_S_DATABASE, PGC_S_DATABASE_USER, PGC_S_GLOBAL, PGC_S_USER};
    let every = pg_sys::InvalidOid;
    // SAFETY: in a transaction; the session's user is `tide_authenticator`.
    unsafe {
        let (database, user) = (pg_sys::MyDatabaseId, pg_sys::GetSessionUserId());
        let relation = pg_sys::table_open(TABLE.into(), LOCK);
        sys::apply_settings(database, user, relation, PGC_S_DATABASE_USER);
        sys::apply_settings(every, user, relation, PGC_S_USER);
        sys::apply_settings(database, every, relation, PGC_S_DATABASE);
        sys::apply_settings(every, every, relation, PGC_S_GLOBAL);
        pg_sys::table_close(relation, LOCK);
    }
}

/// An error that has the question asked again if an ordinary session that begins now would have other
/// settings; [`is_old`] is true from then on. In a transaction.
pub(crate) fn refuse_if_old() -> Result<(), Refusal> {
    if BEGUN_WITH.get().is_some_and(|begun_with| *begun_with == newest()) {
        return Ok(());
    }
    IS_OLD.store(true, Ordering::Relaxed);
    let code = PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE;
    Err(Refusal::new(code, "the session's settings are not in force any more"))
}

/// Whether the process is to end, for another to take its place.
pub(crate) fn is_old() -> bool {
    IS_OLD.load(Ordering::Relaxed)
}

/// Stands for all that such a session begins with.
fn newest() -> u64 {
    let mut hasher = DefaultHasher::new();
    // SAFETY: in a transaction; the session's user is `tide_authenticator`.
    let (database, user) = unsafe { (pg_sys::MyDatabaseId, pg_sys::GetSessionUserId()) };
    let every = pg_sys::InvalidOid;
    for (database, role) in [(database, user), (every, user), (database, every), (every, every)] {
        add(database, role, &mut hasher);
    }
    hasher.finish()
}

/// Adds the row of `pg_db_role_setting`, if there is one.
fn add(database: pg_sys::Oid, role: pg_sys::Oid, hasher: &mut DefaultHasher) {
    with_row(database, role, |row| {
        hasher.write(row.unwrap_or_default());
        hasher.write_u8(u8::from(row.is_none()));
    });
}

/// Has the row looked at, without its header.
fn with_row<R>(
    database: pg_sys::Oid,
    role: pg_sys::Oid,
    look: impl FnOnce(Option<&[u8]>) -> R,
) -> R {
    let key = |column, value: pg_sys::Oid| {
        let mut key = pg_sys::ScanKeyData::default();
        // SAFETY: the key is filled in.
        unsafe {
            pg_sys::ScanKeyInit(
                &raw mut key,
                column,
                pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                pg_sys::F_OIDEQ.into(),
                pg_sys::Datum::from(value),
            );
        }
        key
    };
    let mut keys = [key(DATABASE, database), key(ROLE, role)];
    // SAFETY: in a transaction; a row is valid until the scan goes on. Without a snapshot it is today's.
    unsafe {
        let relation = pg_sys::table_open(TABLE.into(), LOCK);
        let (index, none) = (BY_DATABASE_AND_ROLE.into(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, index, true, none, 2, keys.as_mut_ptr());
        let row = pg_sys::systable_getnext(scan);
        let row = (!row.is_null()).then(|| {
            let length = usize::try_from((*row).t_len).unwrap_or(0);
            let start = usize::from((*(*row).t_data).t_hoff);
            let data = (*row).t_data.cast::<u8>().add(start);
            std::slice::from_raw_parts(data, length.saturating_sub(start))
        });
        let seen = look(row);
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, LOCK);
        seen
    }
}
