//! What pg_tide's processes know of each other: a small table in shared memory, one entry per
//! database that has, or may have, the extension.
//!
//! Entries are taken and given back under a lock; a process that commits reads and writes plain
//! atomics only (see [`crate::backend::xact_callback`]).

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

pub(crate) use crate::process::entry::{Entry, Wanted, WorkerState, WorkerStatus};
use crate::process::latch::Owner;

/// How many databases of a cluster can have the extension.
pub(crate) const DATABASES: usize = 64;

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(null_mut());
static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(null_mut());

/// The whole of it. All zero bytes but for the latches' owners.
#[repr(C)]
pub(crate) struct Shared {
    pub(crate) launcher: Owner,
    /// Counts the entries taken, so that a backend looks for its own only when there is news.
    generation: AtomicU32,
    /// Some prepared transaction created or dropped an extension, or did once.
    extensions_prepared: AtomicBool,
    /// The probe's question and answer: the database in the upper half, [`ProbeAnswer`] in the
    /// lower.
    probe: AtomicU64,
    /// The settings that the probe found, as [`Entry::config`].
    probe_config: AtomicU64,
    entries: [Entry; DATABASES],
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeAnswer {
    Pending = 0,
    Present = 1,
    Absent = 2,
}

/// Registers the hooks that allot and initialise the memory; in `_PG_init` only.
pub(crate) fn init() {
    // SAFETY: the postmaster is alone; the hooks that were there before are called by ours.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;
const TRANCHE: &std::ffi::CStr = c"pg_tide";

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called by the postmaster while it sizes the shared memory.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
        pg_sys::RequestAddinShmemSpace(size_of::<Shared>());
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called by the postmaster, at start and after each crash; the memory is as large as
    // a `Shared`, aligned to a cache line, and nobody else is there to see it half written.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        let mut found = false;
        let shared: *mut Shared =
            pg_sys::ShmemInitStruct(TRANCHE.as_ptr(), size_of::<Shared>(), &mut found).cast();
        if !found {
            shared.write_bytes(0, 1);
            (*shared).launcher.clear();
            for entry in &(*shared).entries {
                entry.worker.clear();
            }
        }
        LOCK.store(
            &raw mut (*pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr())).lock,
            Ordering::Release,
        );
        SHARED.store(shared, Ordering::Release);
    }
}

/// The table, if the library was preloaded.
pub(crate) fn shared() -> Option<&'static Shared> {
    // SAFETY: set once by `startup`, never unmapped, made of atomics and locked text.
    unsafe { SHARED.load(Ordering::Acquire).as_ref() }
}

/// Runs `f` under the lock. `f` must not call Postgres: an error would leave with the lock held.
pub(crate) fn locked<R>(f: impl FnOnce() -> R) -> R {
    let lock = LOCK.load(Ordering::Acquire);
    // SAFETY: the lock was allotted with the memory, and `f` returns before it is released.
    unsafe {
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let result = f();
        pg_sys::LWLockRelease(lock);
        result
    }
}

impl Shared {
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Entries of databases, free ones left out.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.database() != pg_sys::InvalidOid)
    }

    pub(crate) fn entry(&self, database: pg_sys::Oid) -> Option<&Entry> {
        self.entries().find(|entry| entry.database() == database)
    }

    /// Does something to the database's entry, taking one if it has none; `None`: all are taken.
    /// Under the lock, so that the entry is not given back meanwhile.
    pub(crate) fn claim<R>(
        &self,
        database: pg_sys::Oid,
        f: impl FnOnce(&'static Entry) -> R,
    ) -> Option<R> {
        let this = shared()?;
        locked(|| {
            let entry = this.entry(database).or_else(|| {
                let free = this.entries.iter().find(|e| e.database() == pg_sys::InvalidOid)?;
                free.reset();
                free.set_database(database);
                this.generation.fetch_add(1, Ordering::AcqRel);
                Some(free)
            })?;
            Some(f(entry))
        })
    }

    /// Does something to the database's entry if it has one, under the lock.
    pub(crate) fn with<R>(
        &self,
        database: pg_sys::Oid,
        f: impl FnOnce(&'static Entry) -> R,
    ) -> Option<R> {
        let this = shared()?;
        locked(|| this.entry(database).map(f))
    }

    /// Asks the launcher to look whether the database has the extension.
    pub(crate) fn recheck(&self, database: pg_sys::Oid) -> bool {
        let asked = self.claim(database, Entry::ask_recheck);
        self.launcher.set_latch();
        asked.is_some()
    }

    pub(crate) fn prepare_extensions(&self) {
        self.extensions_prepared.store(true, Ordering::Release);
    }

    /// Whether COMMIT PREPARED may be about an extension. (What was prepared before a restart of
    /// the server is not known here; such a database is found at the launcher's next start.)
    pub(crate) fn extensions_prepared(&self) -> bool {
        self.extensions_prepared.load(Ordering::Acquire)
    }

    /// Gives an entry back unless somebody has come to need it.
    pub(crate) fn release(&self, entry: &Entry) -> bool {
        locked(|| {
            let idle = entry.is_idle();
            if idle {
                entry.set_database(pg_sys::InvalidOid);
            }
            idle
        })
    }

    pub(crate) fn ask_probe(&self, database: pg_sys::Oid) {
        self.probe.store(question(database, ProbeAnswer::Pending), Ordering::Release);
    }

    /// The probe of an earlier launcher must not answer for another database.
    pub(crate) fn answer_probe(&self, database: pg_sys::Oid, answer: ProbeAnswer, config: u64) {
        self.probe_config.store(config, Ordering::Release);
        let _ = self.probe.compare_exchange(
            question(database, ProbeAnswer::Pending),
            question(database, answer),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        self.launcher.set_latch();
    }

    pub(crate) fn probe_answer(&self, database: pg_sys::Oid) -> Option<(ProbeAnswer, u64)> {
        let now = self.probe.load(Ordering::Acquire);
        let config = self.probe_config.load(Ordering::Acquire);
        let is = |answer| now == question(database, answer);
        [ProbeAnswer::Present, ProbeAnswer::Absent]
            .into_iter()
            .find(|a| is(*a))
            .map(|a| (a, config))
    }
}

fn question(database: pg_sys::Oid, answer: ProbeAnswer) -> u64 {
    u64::from(database.to_u32()) << 32 | answer as u64
}

/// The launcher is to look at everything again.
pub(crate) fn wake_launcher() {
    if let Some(shared) = shared() {
        shared.launcher.set_latch();
    }
}

/// The worker of a database; `None`: it has no entry, or pg_tide was not preloaded.
pub(crate) fn status(database: pg_sys::Oid) -> Option<WorkerStatus> {
    let texts = |entry: &'static Entry| (entry, entry.reason(), entry.server_failure());
    let (entry, reason, server_failure) = shared()?.with(database, texts)?;
    Some(entry.status(reason, server_failure))
}

/// Whether the worker of a database decodes the slot of this generation.
pub(crate) fn decodes(database: pg_sys::Oid, generation: u32) -> bool {
    let entry = shared().and_then(|shared| shared.entry(database));
    entry.is_some_and(|entry| entry.decodes(generation))
}

/// The worker of a database has opened the slot of this generation.
pub(crate) fn set_generation(database: pg_sys::Oid, generation: u32) {
    if let Some(entry) = shared().and_then(|shared| shared.entry(database)) {
        entry.set_generation(generation);
    }
}

/// Where the newest commit of a database ends that could be seen by then; 0: none is known.
pub(crate) fn newest_commit(database: pg_sys::Oid) -> pg_sys::XLogRecPtr {
    shared().and_then(|shared| shared.entry(database)).map_or(0, Entry::newest_commit)
}

/// The worker of a database, if there is one, is to look what there is to do.
pub(crate) fn wake_worker(database: pg_sys::Oid) {
    if let Some(shared) = shared() {
        shared.with(database, |entry| entry.worker.set_latch());
    }
}

/// Replaces the worker of a database: it reads its settings again. False: there is none to be.
pub(crate) fn request_restart(database: pg_sys::Oid) -> bool {
    let Some(shared) = shared() else { return false };
    shared
        .with(database, |entry| (entry.wanted() == Wanted::Yes).then(|| entry.ask_restart()))
        .flatten()
        .is_some()
}
