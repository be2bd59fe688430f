//! A short-lived process that connects to a database and looks whether pg_tide is to serve it.

use std::hash::{DefaultHasher, Hash, Hasher};

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::config::Config;

use crate::guc;
use crate::helper::session;
use crate::process::background::{Background, Full, Handle};
use crate::process::shmem::{Entry, ProbeAnswer};
use crate::process::{shmem, signals};

/// Starts one for the database; it leaves its answer in shared memory.
pub(crate) fn start(database: pg_sys::Oid) -> Result<Handle, Full> {
    Background {
        name: &format!("pg_tide probe of database {}", database.to_u32()),
        kind: "pg_tide probe",
        function: "tide_probe_main",
        database,
        extra: "",
    }
    .start()
}

#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn tide_probe_main(database: pg_sys::Datum) {
    let database = pg_sys::Oid::from(database.value() as u32);
    signals::install();
    signals::ignore_cancel();
    let Some(shared) = shmem::shared() else { return };
    let worker = shared.entry(database).map_or(0, Entry::pid);
    let (name, extension) = connect(database);
    let installed = extension != pg_sys::InvalidOid;
    let answer = if installed { ProbeAnswer::Present } else { ProbeAnswer::Absent };
    let config = guc::config(&name, database);
    let fingerprint = fingerprint(&config, extension);
    if let Some(entry) = shared.entry(database)
        // Another one has connected later than this process, and knows what is so.
        && entry.pid() == worker
        && entry.config() == fingerprint
        && let Some(settings) = settings(&config)
    {
        entry.offer_settings(&settings);
    }
    shared.answer_probe(database, answer, fingerprint);
}

/// Connects this background worker to its database; says the database's name and the oid of the
/// extension in it, which is invalid if there is none.
pub(crate) fn connect(database: pg_sys::Oid) -> (String, pg_sys::Oid) {
    session::connect_as_superuser(database);
    // SAFETY: connected; one transaction.
    unsafe {
        pg_sys::StartTransactionCommand();
        let extension = pg_sys::get_extension_oid(c"pg_tide".as_ptr(), true);
        let name = database_name(database);
        pg_sys::CommitTransactionCommand();
        (name, extension)
    }
}

/// The settings as a worker that runs can be given them; `None`: they are too long for that.
pub(crate) fn settings(config: &Config) -> Option<String> {
    serde_json::to_string(config).ok().filter(|settings| Entry::can_hold(settings))
}

/// What a worker is started with and cannot change, in a number: another number, another worker is
/// needed. Half of it is the extension's oid: one that was dropped and made again has other secrets
/// and keys. Never 0.
pub(crate) fn fingerprint(config: &Config, extension: pg_sys::Oid) -> u64 {
    let mut hasher = DefaultHasher::new();
    let kept = if settings(config).is_some() { &config.fixed() } else { config };
    format!("{kept:?}").hash(&mut hasher);
    guc::named_credentials().hash(&mut hasher);
    guc::executors().hash(&mut hasher);
    [guc::policy_timeout(), guc::server_timeout()].hash(&mut hasher);
    guc::max_event_size().hash(&mut hasher);
    guc::slot_name().hash(&mut hasher);
    (hasher.finish() << 32 | u64::from(extension.to_u32())).max(1)
}

/// Whether the extension is another than that of the worker before, if there was one.
pub(crate) fn is_made_anew(before: u64, now: u64) -> bool {
    before != 0 && before as u32 != now as u32
}

/// In a transaction only.
fn database_name(database: pg_sys::Oid) -> String {
    // SAFETY: the caller is in a transaction; the name is copied at once.
    unsafe {
        let name = pg_sys::get_database_name(database);
        if name.is_null() {
            return String::new();
        }
        std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}
