//! How a background process of pg_tide gets its session.
//!
//! Whoever owns a database, or a role, says what sessions in it begin with (`ALTER DATABASE ...
//! SET`), and most of these sessions have more rights than their owner. So what decides what SQL
//! means, or how transactions behave, is set before the session is connected, and stays: settings
//! of the database and of its roles then only say what an ordinary session would have. There is no
//! moment in which a name could be resolved otherwise. (Libraries that users may have sessions load
//! are not loaded: background workers have to ask for that.)

use std::ffi::{CStr, CString};
use std::ptr::null;

use pgrx::pg_sys;

use crate::helper::role::AUTHENTICATOR;

/// What expressions mean, once they are printed and read again, depends on these. The catalog
/// worker prints, the executors read.
const MEANING: [(&CStr, &CStr); 10] = [
    // No objects but Postgres's own are found without their schema.
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"datestyle", c"ISO, YMD"),
    (c"intervalstyle", c"postgres"),
    (c"extra_float_digits", c"1"),
    (c"lc_monetary", c"C"),
    (c"standard_conforming_strings", c"on"),
    (c"quote_all_identifiers", c"off"),
    (c"transform_null_equals", c"off"),
    (c"array_nulls", c"on"),
    (c"xmloption", c"content"),
];

/// And what else the stream's values are printed under.
const PRINTING: [(&CStr, &CStr); 2] = [(c"timezone", c"UTC"), (c"bytea_output", c"hex")];

/// How pg_tide's own transactions behave is nobody else's affair. What is planned for a few rows takes less
/// time than compiling it would.
const CONDUCT: [(&CStr, &CStr); 7] = [
    (c"role", c"none"),
    (c"jit", c"off"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_deferrable", c"off"),
    (c"lock_timeout", c"0"),
    (c"exit_on_error", c"off"),
    // What is said to the client of such a session, notifications, say, stays in the database's encoding.
    (c"client_encoding", c"SQL_ASCII"),
];

/// Time-outs that apply in background workers too, where Postgres has them: what the time of a
/// transaction runs out in ends, over and over. (Those of statements and of idle sessions are armed
/// for clients' queries only.)
const TIMEOUTS: [&CStr; 1] = [c"transaction_timeout"];

/// Where Postgres finds libraries is for the configuration to say: the stream's own is looked for there
/// once more when a slot is opened.
const CONFIGURED: [&CStr; 1] = [c"dynamic_library_path"];

/// Connects as the bootstrap superuser, in whose session the worker decodes and the probes look.
pub(crate) fn connect_as_superuser(database: pg_sys::Oid) {
    pin();
    // SAFETY: a background worker that has not connected yet. The database's settings may have made
    // another of the session's user, which cannot be pinned.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database, pg_sys::InvalidOid, 0);
        pg_sys::SetSessionAuthorization(pg_sys::BOOTSTRAP_SUPERUSERID.into(), true);
    }
}

/// Connects to the shared catalogues only, as the bootstrap superuser.
pub(crate) fn connect_to_no_database() {
    pin();
    // SAFETY: a background worker that has not connected yet.
    unsafe { pg_sys::BackgroundWorkerInitializeConnection(null(), null(), 0) };
}

/// Connects as `tide_authenticator`, really: a session that began as another role could be turned
/// back into it by `RESET SESSION AUTHORIZATION` in a client's trigger or policy.
pub(crate) fn connect_as_authenticator(database: pg_sys::Oid) {
    set(OWN_PLANS.0, OWN_PLANS.1);
    pin();
    crate::compat::connect(database, AUTHENTICATOR);
}

/// pg_tide's own queries are planned once for all arguments.
const OWN_PLANS: (&CStr, &CStr) = (c"plan_cache_mode", c"force_generic_plan");

/// Those of the catalog worker by what the planner usually goes by: with a database's own settings they can
/// take longer than they may.
const PLANNING: [(&CStr, &CStr); 21] = [
    OWN_PLANS,
    (c"enable_bitmapscan", c"on"),
    (c"enable_hashagg", c"on"),
    (c"enable_hashjoin", c"on"),
    (c"enable_indexonlyscan", c"on"),
    (c"enable_indexscan", c"on"),
    (c"enable_material", c"on"),
    (c"enable_memoize", c"on"),
    (c"enable_mergejoin", c"on"),
    (c"enable_nestloop", c"on"),
    (c"enable_seqscan", c"on"),
    (c"enable_sort", c"on"),
    (c"seq_page_cost", c"1"),
    (c"random_page_cost", c"4"),
    (c"cpu_tuple_cost", c"0.01"),
    (c"cpu_index_tuple_cost", c"0.005"),
    (c"cpu_operator_cost", c"0.0025"),
    (c"from_collapse_limit", c"8"),
    (c"join_collapse_limit", c"8"),
    (c"geqo", c"off"),
    (c"max_parallel_workers_per_gather", c"0"),
];

/// Connects and becomes the extension's owner, whoever that is now. The worker cannot say who it
/// is (it never reads today's catalogue), so the session starts as the bootstrap superuser and
/// steps down; the catalog worker runs nobody's code but pg_tide's, so nobody can step up again.
pub(crate) fn connect_as_owner(database: pg_sys::Oid) {
    for (name, value) in PLANNING {
        set(name, value);
    }
    connect_as_superuser(database);
    // SAFETY: connected; one short transaction.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let owner = extension_owner();
        pg_sys::PopActiveSnapshot();
        if let Some(owner) = owner {
            pg_sys::SetSessionAuthorization(owner, pg_sys::superuser_arg(owner));
        }
        pg_sys::CommitTransactionCommand();
        if owner.is_none() {
            // Dropped meanwhile; the worker is about to hear of it as well.
            pg_sys::proc_exit(0);
        }
    }
}

/// To be called before the session is connected.
fn pin() {
    for (name, value) in MEANING.iter().chain(&CONDUCT) {
        set(name, value);
    }
    for name in CONFIGURED {
        // SAFETY: a string that outlives the call, and one that the setting owns, which is copied at once.
        let configured = unsafe {
            let value = pg_sys::GetConfigOption(name.as_ptr(), false, false);
            (!value.is_null()).then(|| CString::from(CStr::from_ptr(value)))
        };
        if let Some(value) = configured {
            set_in(pg_sys::GucContext::PGC_SUSET, name, &value);
        }
    }
    for name in TIMEOUTS {
        // SAFETY: a string that outlives the call; only whether there is such a setting is looked at.
        if !unsafe { pg_sys::GetConfigOption(name.as_ptr(), true, false) }.is_null() {
            set(name, c"0");
        }
    }
}

/// Gives what is planned and run from here on, to the end of the GUC nest level, the settings that
/// an ordinary session of this role would have.
pub(crate) fn be_ordinary() {
    for (name, _) in MEANING.iter().chain(&[OWN_PLANS]) {
        // SAFETY: strings that the setting owns, or static ones; what is kept is copied at once.
        let value = unsafe {
            let value = pg_sys::GetConfigOptionResetString(name.as_ptr());
            let now = pg_sys::GetConfigOption(name.as_ptr(), false, false);
            let is_another =
                !value.is_null() && !now.is_null() && CStr::from_ptr(value) != CStr::from_ptr(now);
            is_another.then(|| CString::from(CStr::from_ptr(value)))
        };
        if let Some(value) = value {
            set(name, &value);
        }
    }
}

/// Does the work under the settings that what is printed and read by pg_tide is printed and read under. It
/// runs nobody else's code.
pub(crate) fn pinned<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: in a transaction, whose end takes the level back where an error keeps this from it.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    for (name, value) in MEANING.iter().chain(&PRINTING) {
        set(name, value);
    }
    let result = work();
    // SAFETY: the level begun above.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    result
}

/// As SET does: for the session or, in a transaction, until it is rolled back or its GUC nest level
/// ends. What the configuration, the database or the role say counts for less.
pub(crate) fn set(name: &CStr, value: &CStr) {
    set_in(pg_sys::GucContext::PGC_USERSET, name, value);
}

/// Has values printed as the stream has them, so that decoding the same WAL again gives the same events.
pub(crate) fn pin_printing() {
    for (name, value) in PRINTING {
        set(name, value);
    }
}

fn set_in(context: pg_sys::GucContext::Type, name: &CStr, value: &CStr) {
    let source = pg_sys::GucSource::PGC_S_SESSION;
    // SAFETY: strings that outlive the call.
    unsafe { pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), context, source) };
}

/// Needs a transaction. Also for sessions that are not pg_tide's, whatever their `search_path`.
pub(crate) fn extension_owner() -> Option<pg_sys::Oid> {
    let query = "select e.extowner from pg_catalog.pg_extension as e
                 where e.extname operator(pg_catalog.=) 'pg_tide'";
    pgrx::Spi::get_one(query).ok().flatten()
}

/// What an ordinary session's transactions are isolated by, as Postgres numbers it.
pub(crate) fn ordinary_isolation() -> i32 {
    // SAFETY: a string that the setting owns.
    let name = unsafe {
        let name = pg_sys::GetConfigOptionResetString(c"default_transaction_isolation".as_ptr());
        if name.is_null() { c"" } else { CStr::from_ptr(name) }
    };
    (match name.to_bytes() {
        b"serializable" => pg_sys::XACT_SERIALIZABLE,
        b"repeatable read" => pg_sys::XACT_REPEATABLE_READ,
        _ => pg_sys::XACT_READ_COMMITTED,
    }) as i32
}

/// Whether, outside a transaction, what was pinned still is, and the session is in nobody else's name.
pub(crate) fn is_itself() -> bool {
    // SAFETY: variables of this process; strings that the settings own.
    unsafe {
        let is_pinned = |(name, value): &(&CStr, &CStr)| {
            let now = pg_sys::GetConfigOption(name.as_ptr(), false, false);
            !now.is_null() && CStr::from_ptr(now) == *value
        };
        let role = [(c"role", c"none")];
        pg_sys::GetUserId() == pg_sys::GetSessionUserId()
            && MEANING.iter().chain(&role).all(is_pinned)
    }
}
