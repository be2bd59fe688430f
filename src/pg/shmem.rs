//! What pg_tide's processes know of each other: a small table in shared memory, one entry per
//! database that has, or may have, the extension.
//!
//! Entries are taken and given back under a lock; a process that commits reads and writes plain
//! atomics only (see [`super::wake`]).

use std::cell::UnsafeCell;
use std::ptr::{null_mut, slice_from_raw_parts};
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering,
};

use pgrx::pg_sys;
use pgrx::prelude::*;

/// How many databases of a cluster can have the extension.
pub(super) const DATABASES: usize = 64;
/// Helper processes per database: the steward, the executors, and room for ones that overlap
/// while they are replaced.
const HELPERS: usize = 66;
const TEXT: usize = 480;
const NOBODY: i32 = -1;

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(null_mut());
static LOCK: AtomicPtr<pg_sys::LWLock> = AtomicPtr::new(null_mut());

/// The whole of it. All zero bytes but for the latches' owners.
#[repr(C)]
pub(super) struct Shared {
    pub(super) launcher: Owner,
    /// Counts the entries taken, so that a backend looks for its own only when there is news.
    generation: AtomicU32,
    /// Some prepared transaction created or dropped an extension, or did once.
    extensions_prepared: AtomicBool,
    /// The probe's question and answer: the database in the upper half, [`Answer`] in the lower.
    probe: AtomicU64,
    /// The settings that the probe found, as [`Entry::config`].
    probe_config: AtomicU64,
    entries: [Entry; DATABASES],
}

/// What is known of one database.
#[repr(C, align(64))]
pub(super) struct Entry {
    /// Its oid; 0: the entry is free.
    database: AtomicU32,
    /// The worker's latch.
    pub(super) worker: Owner,
    /// Where the newest commit ends that may still have to be flushed.
    commit: AtomicU64,
    wanted: AtomicU32,
    /// How many backends keep the worker away for now.
    holds: AtomicU32,
    /// Somebody created, dropped or changed something: look again.
    recheck: AtomicBool,
    /// The worker is to be replaced.
    restart: AtomicBool,
    state: AtomicU32,
    pid: AtomicI32,
    starts: AtomicU32,
    started_at: AtomicI64,
    /// Fingerprint of the settings that the worker started with; 0: none.
    config: AtomicU64,
    helpers: [AtomicI32; HELPERS],
    reason: Text,
}

/// Whether a database is to have a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The probe has not said yet.
    Unknown = 0,
    Yes = 1,
    No = 2,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Pending = 0,
    Present = 1,
    Absent = 2,
}

/// What a worker is doing, for `tide.status()` and `tide.check()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// There is none; the launcher will start one if the database is to have one.
    Absent = 0,
    Starting = 1,
    Running = 2,
    /// It is there, but waits out an obstacle; the reason says which.
    Stalled = 3,
    Stopping = 4,
    /// It ended, or could not be started; the launcher tries again soon.
    Waiting = 5,
}

/// The worker of a database as others see it.
#[derive(Clone, Debug)]
pub(crate) struct WorkerStatus {
    pub(crate) state: WorkerState,
    /// Of the worker, while there is one.
    pub(crate) pid: Option<i32>,
    /// Why it is not running, or what is wrong.
    pub(crate) reason: Option<String>,
    /// How many times it was started again.
    pub(crate) restarts: u32,
    /// When the worker that runs now was started.
    pub(crate) started_at: Option<TimestampWithTimeZone>,
}

/// A process whose latch others set.
#[repr(C)]
pub(super) struct Owner(AtomicI32);

/// Written and read under the lock.
#[repr(C)]
struct Text(UnsafeCell<[u8; TEXT]>);

// SAFETY: every access to the bytes is under the lock in shared memory.
unsafe impl Sync for Text {}

/// Registers the hooks that allot and initialise the memory; in `_PG_init` only.
pub(super) fn init() {
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
pub(super) fn shared() -> Option<&'static Shared> {
    // SAFETY: set once by `startup`, never unmapped, made of atomics and locked text.
    unsafe { SHARED.load(Ordering::Acquire).as_ref() }
}

/// Runs `f` under the lock. `f` must not call Postgres: an error would leave with the lock held.
fn locked<R>(f: impl FnOnce() -> R) -> R {
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
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Entries of databases, free ones left out.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.database() != pg_sys::InvalidOid)
    }

    pub(super) fn entry(&self, database: pg_sys::Oid) -> Option<&Entry> {
        self.entries().find(|entry| entry.database() == database)
    }

    /// Does something to the database's entry, taking one if it has none; `None`: all are taken.
    /// Under the lock, so that the entry is not given back meanwhile.
    pub(super) fn claim<R>(
        &self,
        database: pg_sys::Oid,
        f: impl FnOnce(&'static Entry) -> R,
    ) -> Option<R> {
        let this = shared()?;
        locked(|| {
            let entry = this.entry(database).or_else(|| {
                let free = this.entries.iter().find(|e| e.database() == pg_sys::InvalidOid)?;
                free.reset();
                free.database.store(database.to_u32(), Ordering::Release);
                this.generation.fetch_add(1, Ordering::AcqRel);
                Some(free)
            })?;
            Some(f(entry))
        })
    }

    /// Does something to the database's entry if it has one, under the lock.
    pub(super) fn with<R>(
        &self,
        database: pg_sys::Oid,
        f: impl FnOnce(&'static Entry) -> R,
    ) -> Option<R> {
        let this = shared()?;
        locked(|| this.entry(database).map(f))
    }

    /// Asks the launcher to look whether the database has the extension.
    pub(super) fn recheck(&self, database: pg_sys::Oid) -> bool {
        let asked = self.claim(database, |entry| entry.recheck.store(true, Ordering::Release));
        self.launcher.set_latch();
        asked.is_some()
    }

    pub(super) fn prepare_extensions(&self) {
        self.extensions_prepared.store(true, Ordering::Release);
    }

    /// Whether COMMIT PREPARED may be about an extension. (After a restart of the server every
    /// database is probed anyway, but a prepared transaction may still be waiting: true.)
    pub(super) fn extensions_prepared(&self) -> bool {
        self.extensions_prepared.load(Ordering::Acquire)
    }

    /// Gives an entry back unless somebody has come to need it.
    pub(super) fn release(&self, entry: &Entry) -> bool {
        locked(|| {
            let free = entry.wanted() != Wanted::Yes
                && entry.holds.load(Ordering::Acquire) == 0
                && !entry.recheck.load(Ordering::Acquire)
                && entry.is_deserted();
            if free {
                entry.database.store(0, Ordering::Release);
            }
            free
        })
    }

    pub(super) fn ask_probe(&self, database: pg_sys::Oid) {
        self.probe.store(question(database, Answer::Pending), Ordering::Release);
    }

    /// The probe of an earlier launcher must not answer for another database.
    pub(super) fn answer_probe(&self, database: pg_sys::Oid, answer: Answer, config: u64) {
        self.probe_config.store(config, Ordering::Release);
        let _ = self.probe.compare_exchange(
            question(database, Answer::Pending),
            question(database, answer),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        self.launcher.set_latch();
    }

    pub(super) fn probe_answer(&self, database: pg_sys::Oid) -> Option<(Answer, u64)> {
        let now = self.probe.load(Ordering::Acquire);
        let config = self.probe_config.load(Ordering::Acquire);
        let is = |answer| now == question(database, answer);
        [Answer::Present, Answer::Absent].into_iter().find(|a| is(*a)).map(|a| (a, config))
    }
}

fn question(database: pg_sys::Oid, answer: Answer) -> u64 {
    u64::from(database.to_u32()) << 32 | answer as u64
}

impl Entry {
    fn reset(&self) {
        self.worker.clear();
        self.commit.store(0, Ordering::Relaxed);
        self.wanted.store(Wanted::Unknown as u32, Ordering::Relaxed);
        self.holds.store(0, Ordering::Relaxed);
        self.recheck.store(false, Ordering::Relaxed);
        self.restart.store(false, Ordering::Relaxed);
        self.state.store(WorkerState::Absent as u32, Ordering::Relaxed);
        self.pid.store(0, Ordering::Relaxed);
        self.starts.store(0, Ordering::Relaxed);
        self.started_at.store(0, Ordering::Relaxed);
        self.config.store(0, Ordering::Relaxed);
        self.helpers.iter().for_each(|pid| pid.store(0, Ordering::Relaxed));
        self.reason.set("");
    }

    pub(super) fn database(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.database.load(Ordering::Acquire))
    }

    pub(super) fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::Acquire) {
            1 => Wanted::Yes,
            2 => Wanted::No,
            _ => Wanted::Unknown,
        }
    }

    pub(super) fn set_wanted(&self, wanted: Wanted) {
        self.wanted.store(wanted as u32, Ordering::Release);
    }

    /// Whether a worker is to run at this moment.
    pub(super) fn should_run(&self) -> bool {
        self.wanted() == Wanted::Yes && !self.is_held()
    }

    /// Keeps the worker away until [`Entry::unhold`].
    pub(super) fn hold(&self) {
        self.holds.fetch_add(1, Ordering::AcqRel);
        self.nudge();
    }

    pub(super) fn unhold(&self) {
        self.holds.fetch_sub(1, Ordering::AcqRel);
        self.nudge();
    }

    pub(super) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Acquire) > 0
    }

    pub(super) fn take_recheck(&self) -> bool {
        self.recheck.swap(false, Ordering::AcqRel)
    }

    pub(super) fn ask_restart(&self) {
        self.restart.store(true, Ordering::Release);
        self.nudge();
    }

    pub(super) fn restart_asked(&self) -> bool {
        self.restart.load(Ordering::Acquire)
    }

    pub(super) fn take_restart(&self) -> bool {
        self.restart.swap(false, Ordering::AcqRel)
    }

    /// Launcher and worker are to look at this entry.
    fn nudge(&self) {
        self.worker.set_latch();
        if let Some(shared) = shared() {
            shared.launcher.set_latch();
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.load(Ordering::Acquire)
    }

    /// This process becomes the database's worker; false: there is one already.
    pub(super) fn begin_work(&self) -> bool {
        // SAFETY: set at process start.
        let pid = unsafe { pg_sys::MyProcPid };
        let free = self.pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if free {
            self.worker.become_me();
            self.restart.store(false, Ordering::Release);
            // SAFETY: reads the clock.
            let now = unsafe { pg_sys::GetCurrentTimestamp() };
            self.started_at.store(now, Ordering::Release);
            self.starts.fetch_add(1, Ordering::AcqRel);
            self.set_state(WorkerState::Starting, "");
        }
        free
    }

    /// The worker is gone from its database.
    pub(super) fn end_work(&self) {
        self.worker.clear();
        self.set_state(WorkerState::Waiting, "the worker ended and will be started again");
        self.pid.store(0, Ordering::Release);
        if let Some(shared) = shared() {
            shared.launcher.set_latch();
        }
    }

    pub(super) fn config(&self) -> u64 {
        self.config.load(Ordering::Acquire)
    }

    pub(super) fn set_config(&self, fingerprint: u64) {
        self.config.store(fingerprint, Ordering::Release);
    }

    pub(super) fn state(&self) -> WorkerState {
        match self.state.load(Ordering::Acquire) {
            1 => WorkerState::Starting,
            2 => WorkerState::Running,
            3 => WorkerState::Stalled,
            4 => WorkerState::Stopping,
            5 => WorkerState::Waiting,
            _ => WorkerState::Absent,
        }
    }

    pub(super) fn set_state(&self, state: WorkerState, reason: &str) {
        locked(|| self.reason.set(reason));
        self.state.store(state as u32, Ordering::Release);
    }

    /// A transaction of this database committed up to here.
    pub(super) fn committed(&self, end: pg_sys::XLogRecPtr) {
        self.commit.fetch_max(end, Ordering::AcqRel);
        self.worker.set_latch();
    }

    pub(super) fn newest_commit(&self) -> pg_sys::XLogRecPtr {
        self.commit.load(Ordering::Acquire)
    }

    /// Adds this process to the database's helpers; false: no place left.
    pub(super) fn add_helper(&self, pid: i32) -> bool {
        self.helpers
            .iter()
            .any(|p| p.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire).is_ok())
    }

    pub(super) fn remove_helper(&self, pid: i32) {
        for place in &self.helpers {
            let _ = place.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Worker and helpers that are connected to the database.
    pub(super) fn pids(&self) -> impl Iterator<Item = i32> {
        let all = std::iter::once(&self.pid).chain(&self.helpers);
        all.map(|pid| pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// Sends SIGTERM to worker and helpers.
    pub(super) fn terminate(&self) {
        for pid in self.pids().filter(|pid| *pid > 1) {
            // SAFETY: a signal to a process of this server; it took its place in the table and
            // leaves it before it ends.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }

    pub(super) fn is_deserted(&self) -> bool {
        self.pids().next().is_none()
    }
}

impl Owner {
    /// Others set this process's latch from now on.
    pub(super) fn become_me(&self) {
        // SAFETY: this process has a PGPROC, which is an element of that array.
        let number = unsafe { pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs) };
        self.0.store(i32::try_from(number).unwrap_or(NOBODY), Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.0.store(NOBODY, Ordering::Release);
    }

    /// Wakes the process, if there is one. Cannot fail; at worst it wakes the next process that
    /// got the same place, which does not mind.
    pub(super) fn set_latch(&self) {
        let Ok(number) = usize::try_from(self.0.load(Ordering::Acquire)) else { return };
        // SAFETY: the number is an index into the fixed array of PGPROCs in shared memory, whose
        // latches live as long as the memory.
        unsafe {
            let process = (*pg_sys::ProcGlobal).allProcs.add(number);
            if process != pg_sys::MyProc {
                pg_sys::SetLatch(&raw mut (*process).procLatch);
            }
        }
    }
}

impl Text {
    /// Under the lock only. What does not fit is cut off.
    fn set(&self, text: &str) {
        let end = text.floor_char_boundary(TEXT - 1);
        let source = text.get(..end).unwrap_or_default().as_bytes();
        let target = self.0.get().cast::<u8>();
        // SAFETY: the caller has the lock; at most TEXT - 1 bytes and a zero are written.
        unsafe {
            target.copy_from_nonoverlapping(source.as_ptr(), source.len());
            target.add(source.len()).write(0);
        }
    }

    /// Under the lock only.
    fn get(&self) -> String {
        // SAFETY: the caller has the lock; the bytes are always initialised.
        let bytes = unsafe { &*slice_from_raw_parts(self.0.get().cast::<u8>(), TEXT) };
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

/// The worker of a database; `None`: it has no entry, or pg_tide was not preloaded.
pub(crate) fn status(database: pg_sys::Oid) -> Option<WorkerStatus> {
    let (entry, reason) = shared()?.with(database, |entry| (entry, entry.reason.get()))?;
    let pid = entry.pid();
    let started_at = entry.started_at.load(Ordering::Acquire);
    Some(WorkerStatus {
        state: entry.state(),
        pid: (pid != 0).then_some(pid),
        reason: (!reason.is_empty()).then_some(reason),
        restarts: entry.starts.load(Ordering::Acquire).saturating_sub(1),
        started_at: (pid != 0).then(|| started_at.try_into().ok()).flatten(),
    })
}

/// Replaces the worker of a database: it reads its settings again. False: there is none to be.
pub(crate) fn request_restart(database: pg_sys::Oid) -> bool {
    let Some(shared) = shared() else { return false };
    shared
        .with(database, |entry| (entry.wanted() == Wanted::Yes).then(|| entry.ask_restart()))
        .flatten()
        .is_some()
}
