//! One database's entry in the shared table.

use std::cell::UnsafeCell;
use std::ptr::slice_from_raw_parts;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::process::latch::Owner;
use crate::process::shmem;

/// Helper processes per database: the catalog worker, the notifier, executors, readers, writers, and room
/// for ones that overlap while they are replaced.
const HELPERS: usize = 116;
const TEXT: usize = 480;
/// Room for the settings of a worker; with longer ones it has to be started anew.
const SETTINGS: usize = 4 << 10;

/// No slot is of this one.
const NO_GENERATION: i64 = -1;

/// What is known of one database.
#[repr(C, align(64))]
pub(crate) struct Entry {
    /// Its oid; 0: the entry is free.
    database: AtomicU32,
    /// The worker's latch.
    pub(crate) worker: Owner,
    /// Where the newest commit ends that may still have to be flushed.
    commit: AtomicU64,
    wanted: AtomicU32,
    /// How many backends keep the worker away for now.
    holds: AtomicU32,
    /// Somebody created, dropped or changed something: look again.
    recheck: AtomicBool,
    /// The worker is to be replaced.
    restart: AtomicBool,
    /// The WAL so far can no longer be decoded.
    forget: AtomicBool,
    state: AtomicU32,
    pid: AtomicI32,
    starts: AtomicU32,
    started_at: AtomicI64,
    /// Of the slot that the worker decodes; [`NO_GENERATION`]: it has not opened one yet.
    generation: AtomicI64,
    /// Fingerprint of the settings that the worker started with; 0: none.
    config: AtomicU64,
    /// Bytes of WAL that its slots may hold back, as its worker knows it; 0: there has been none.
    wal_limit: AtomicU64,
    helpers: [AtomicI32; HELPERS],
    reason: Text<TEXT>,
    /// How the newest server that ended did so.
    server_failure: Text<TEXT>,
    /// The newest settings, as JSON; nothing while the worker connects.
    settings: Text<SETTINGS>,
    /// The worker has not looked at them yet.
    has_new_settings: AtomicBool,
}

/// Whether a database is to have a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The probe has not said yet.
    Unknown = 0,
    Yes = 1,
    No = 2,
    /// Nobody may connect to it for now: it keeps its slot.
    NotNow = 3,
}

/// What a worker is doing, for `tide.status()` and `tide.check()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// There is none; the launcher will start one if the database is to have one.
    Absent = 0,
    Starting = 1,
    Running = 2,
    /// It is there, but stalled; the reason says why.
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
    /// How the newest server that ended did so.
    pub(crate) server_failure: Option<String>,
    /// How many times it was started again.
    pub(crate) restarts: u32,
    /// When the worker that runs now was started.
    pub(crate) started_at: Option<TimestampWithTimeZone>,
}

/// Written and read under the lock.
#[repr(C)]
struct Text<const SIZE: usize>(UnsafeCell<[u8; SIZE]>);

// SAFETY: every access to the bytes is under the lock in shared memory.
unsafe impl<const SIZE: usize> Sync for Text<SIZE> {}

impl Entry {
    /// As a free entry's next owner finds it, but for the database. Under the lock only.
    pub(crate) fn reset(&self) {
        self.worker.clear();
        self.commit.store(0, Ordering::Relaxed);
        self.wanted.store(Wanted::Unknown as u32, Ordering::Relaxed);
        self.holds.store(0, Ordering::Relaxed);
        self.recheck.store(false, Ordering::Relaxed);
        self.restart.store(false, Ordering::Relaxed);
        self.forget.store(false, Ordering::Relaxed);
        self.state.store(WorkerState::Absent as u32, Ordering::Relaxed);
        self.pid.store(0, Ordering::Relaxed);
        self.starts.store(0, Ordering::Relaxed);
        self.started_at.store(0, Ordering::Relaxed);
        self.generation.store(NO_GENERATION, Ordering::Relaxed);
        self.config.store(0, Ordering::Relaxed);
        self.wal_limit.store(0, Ordering::Relaxed);
        self.helpers.iter().for_each(|pid| pid.store(0, Ordering::Relaxed));
        self.reason.set("");
        self.server_failure.set("");
        self.settings.set("");
        self.has_new_settings.store(false, Ordering::Relaxed);
    }

    pub(crate) fn database(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.database.load(Ordering::Acquire))
    }

    /// Gives the entry to a database, or to nobody. Under the lock only.
    pub(crate) fn set_database(&self, database: pg_sys::Oid) {
        self.database.store(database.to_u32(), Ordering::Release);
    }

    /// Whether nobody needs the entry. Under the lock only.
    pub(crate) fn is_idle(&self) -> bool {
        self.wanted() != Wanted::Yes
            && !self.is_held()
            && !self.recheck.load(Ordering::Acquire)
            && self.is_deserted()
    }

    /// What there is to say of it; the texts are read under the lock by the caller.
    pub(crate) fn status(&self, reason: String, server_failure: String) -> WorkerStatus {
        let pid = self.pid();
        let started_at = self.started_at.load(Ordering::Acquire);
        WorkerStatus {
            state: self.state(),
            pid: (pid != 0).then_some(pid),
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            server_failure: Some(server_failure).filter(|failure| !failure.is_empty()),
            restarts: self.starts.load(Ordering::Acquire).saturating_sub(1),
            started_at: (pid != 0).then(|| started_at.try_into().ok()).flatten(),
        }
    }

    /// Under the lock only.
    pub(crate) fn reason(&self) -> String {
        self.reason.get()
    }

    /// Under the lock only.
    pub(crate) fn server_failure(&self) -> String {
        self.server_failure.get()
    }

    pub(crate) fn set_server_failure(&self, how: &str) {
        shmem::locked(|| self.server_failure.set(how));
    }

    pub(crate) fn ask_recheck(&self) {
        self.recheck.store(true, Ordering::Release);
    }

    pub(crate) fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::Acquire) {
            1 => Wanted::Yes,
            2 => Wanted::No,
            3 => Wanted::NotNow,
            _ => Wanted::Unknown,
        }
    }

    pub(crate) fn set_wanted(&self, wanted: Wanted) {
        self.wanted.store(wanted as u32, Ordering::Release);
    }

    /// Whether a worker is to run at this moment.
    pub(crate) fn should_run(&self) -> bool {
        self.wanted() == Wanted::Yes && !self.is_held()
    }

    /// Keeps the worker away until [`Entry::unhold`].
    pub(crate) fn hold(&self) {
        self.holds.fetch_add(1, Ordering::AcqRel);
        self.nudge();
    }

    pub(crate) fn unhold(&self) {
        self.holds.fetch_sub(1, Ordering::AcqRel);
        self.nudge();
    }

    pub(crate) fn is_held(&self) -> bool {
        self.holds.load(Ordering::Acquire) > 0
    }

    pub(crate) fn take_recheck(&self) -> bool {
        self.recheck.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn ask_restart(&self) {
        self.restart.store(true, Ordering::Release);
        self.nudge();
    }

    pub(crate) fn restart_asked(&self) -> bool {
        self.restart.load(Ordering::Acquire)
    }

    pub(crate) fn take_restart(&self) -> bool {
        self.restart.swap(false, Ordering::AcqRel)
    }

    /// The database was moved to another tablespace: records from before name files that its
    /// catalogue no longer knows, so the next worker needs a new slot.
    pub(crate) fn forget_history(&self) {
        self.forget.store(true, Ordering::Release);
    }

    pub(crate) fn take_forget_history(&self) -> bool {
        self.forget.swap(false, Ordering::AcqRel)
    }

    /// Launcher and worker are to look at this entry.
    fn nudge(&self) {
        self.worker.set_latch();
        shmem::wake_launcher();
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.load(Ordering::Acquire)
    }

    /// This process becomes the database's worker; false: there is one already.
    pub(crate) fn begin_work(&self) -> bool {
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
            self.generation.store(NO_GENERATION, Ordering::Release);
            self.set_state(WorkerState::Starting, "");
            // Whoever comes while this one connects knows newer ones.
            shmem::locked(|| self.settings.set(""));
            self.has_new_settings.store(false, Ordering::Release);
        }
        free
    }

    /// The worker is gone from its database.
    pub(crate) fn end_work(&self) {
        self.worker.clear();
        self.set_state(WorkerState::Waiting, "the worker ended and will be started again");
        self.pid.store(0, Ordering::Release);
        shmem::wake_launcher();
    }

    pub(crate) fn config(&self) -> u64 {
        self.config.load(Ordering::Acquire)
    }

    pub(crate) fn wal_limit(&self) -> Option<u64> {
        Some(self.wal_limit.load(Ordering::Relaxed)).filter(|limit| *limit != 0)
    }

    pub(crate) fn set_wal_limit(&self, limit: u64) {
        self.wal_limit.store(limit, Ordering::Relaxed);
    }

    pub(crate) fn set_config(&self, fingerprint: u64) {
        self.config.store(fingerprint, Ordering::Release);
    }

    /// The slot that is decoded from now on.
    pub(crate) fn set_generation(&self, generation: u32) {
        self.generation.store(generation.into(), Ordering::Release);
    }

    /// Whether the worker decodes the slot of this generation.
    pub(crate) fn decodes(&self, generation: u32) -> bool {
        self.generation.load(Ordering::Acquire) == i64::from(generation)
    }

    /// Whether settings, as JSON, find room here.
    pub(crate) fn can_hold(settings: &str) -> bool {
        settings.len() < SETTINGS
    }

    /// What the worker has read while it connected.
    pub(crate) fn begin_with_settings(&self, settings: &str) {
        shmem::locked(|| {
            if self.settings.get().is_empty() {
                self.settings.set(settings);
            }
        });
    }

    /// What a process has read that connected to the database later.
    pub(crate) fn offer_settings(&self, settings: &str) {
        let is_new = shmem::locked(|| {
            let is_new = self.settings.get() != settings;
            self.settings.set(settings);
            is_new
        });
        if is_new {
            self.has_new_settings.store(true, Ordering::Release);
            self.worker.set_latch();
        }
    }

    /// Settings that the worker has not seen yet.
    pub(crate) fn take_new_settings(&self) -> Option<String> {
        let is_new = self.has_new_settings.swap(false, Ordering::AcqRel);
        is_new.then(|| shmem::locked(|| self.settings.get()))
    }

    pub(crate) fn state(&self) -> WorkerState {
        match self.state.load(Ordering::Acquire) {
            1 => WorkerState::Starting,
            2 => WorkerState::Running,
            3 => WorkerState::Stalled,
            4 => WorkerState::Stopping,
            5 => WorkerState::Waiting,
            _ => WorkerState::Absent,
        }
    }

    pub(crate) fn set_state(&self, state: WorkerState, reason: &str) {
        shmem::locked(|| self.reason.set(reason));
        self.state.store(state as u32, Ordering::Release);
    }

    /// A transaction of this database committed up to here.
    pub(crate) fn committed(&self, end: pg_sys::XLogRecPtr) {
        self.commit.fetch_max(end, Ordering::AcqRel);
        self.worker.set_latch();
    }

    pub(crate) fn newest_commit(&self) -> pg_sys::XLogRecPtr {
        self.commit.load(Ordering::Acquire)
    }

    /// Adds this process to the database's helpers; false: no place left.
    pub(crate) fn add_helper(&self, pid: i32) -> bool {
        self.helpers
            .iter()
            .any(|p| p.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire).is_ok())
    }

    pub(crate) fn remove_helper(&self, pid: i32) {
        for place in &self.helpers {
            let _ = place.compare_exchange(pid, 0, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Worker and helpers that are connected to the database.
    pub(crate) fn pids(&self) -> impl Iterator<Item = i32> {
        let all = std::iter::once(&self.pid).chain(&self.helpers);
        all.map(|pid| pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// Sends SIGTERM to worker and helpers.
    pub(crate) fn terminate(&self) {
        for pid in self.pids().filter(|pid| *pid > 1) {
            // SAFETY: a signal to a process of this server; it took its place in the table and
            // leaves it before it ends.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }

    pub(crate) fn is_deserted(&self) -> bool {
        self.pids().next().is_none()
    }
}

impl<const SIZE: usize> Text<SIZE> {
    /// Under the lock only. What does not fit is cut off.
    fn set(&self, text: &str) {
        let end = text.floor_char_boundary(SIZE - 1);
        let source = text.get(..end).unwrap_or_default().as_bytes();
        let target = self.0.get().cast::<u8>();
        // SAFETY: the caller has the lock; at most SIZE - 1 bytes and a zero are written.
        unsafe {
            target.copy_from_nonoverlapping(source.as_ptr(), source.len());
            target.add(source.len()).write(0);
        }
    }

    /// Under the lock only.
    fn get(&self) -> String {
        // SAFETY: the caller has the lock; the bytes are always initialised.
        let bytes = unsafe { &*slice_from_raw_parts(self.0.get().cast::<u8>(), SIZE) };
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}
