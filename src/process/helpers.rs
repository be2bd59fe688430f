//! The worker's helpers: one catalog worker and some executors, each a process of its own. They
//! connect to the worker's socket by themselves, and end when it closes.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::backoff::Backoff;

use crate::process::background::{Background, Full, Handle};
use crate::process::shmem;

/// What a helper is for; `bgw_extra`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HelperKind {
    CatalogWorker,
    Executor,
    /// While clients want to hear notifications, and a little longer.
    Notifier,
    Reader,
    /// While clients write, and a little longer.
    Writer,
}

impl HelperKind {
    fn name(self) -> &'static str {
        match self {
            HelperKind::CatalogWorker => "catalog worker",
            HelperKind::Executor => "executor",
            HelperKind::Notifier => "notifier",
            HelperKind::Reader => "reader",
            HelperKind::Writer => "writer",
        }
    }
}

/// How long a notifier, a reader or a writer is kept that nobody wants: the next who wants one may be near, and a process
/// that comes and goes is more work for the postmaster than one that waits.
const LINGER: Duration = Duration::from_secs(30);

thread_local! {
    /// The worker's, on its main thread. Not in its loop, since the decoder has to tend them as
    /// well: it may be waiting for the hub, and the hub for a catalog worker that has ended.
    static HELPERS: RefCell<Option<Helpers>> = const { RefCell::new(None) };
}

/// From now on [`tend`] keeps a catalog worker and so many executors running.
pub(crate) fn employ(database: pg_sys::Oid, executors: usize) {
    HELPERS.set(Some(Helpers::new(database, executors)));
}

/// Keeps so many processes of this kind running, too.
pub(crate) fn employ_also(kind: HelperKind, count: usize) {
    HELPERS.with_borrow_mut(|helpers| {
        if let Some(helpers) = helpers {
            helpers.employ_also(kind, count);
        }
    });
}

/// Starts those that are missing; says when to look again at the latest. Main thread; also inside
/// a callback of the decoder.
pub(crate) fn tend() -> Option<Duration> {
    HELPERS.with_borrow_mut(|helpers| helpers.as_mut()?.tend())
}

/// The helpers of one worker, which are started again when they end.
#[derive(Debug)]
struct Helpers {
    database: pg_sys::Oid,
    slots: Vec<HelperSlot>,
    /// The log says that there is no room for one of them.
    is_logged: bool,
}

#[derive(Debug)]
struct HelperSlot {
    kind: HelperKind,
    process: Option<(Handle, Instant)>,
    /// Kept through its comings and goings.
    backoff: Backoff,
    /// `None`: it is wanted. Else since when it is not.
    unwanted: Option<Instant>,
}

impl HelperSlot {
    fn new(kind: HelperKind) -> HelperSlot {
        HelperSlot { kind, process: None, backoff: Backoff::usual(), unwanted: None }
    }

    /// Whether a process is to be started; ends one that nobody has wanted for long enough.
    fn is_missing(&mut self) -> bool {
        if let Some((_, since)) = self.process.take_if(|(handle, _)| handle.has_ended()) {
            self.backoff.failed_after(since.elapsed());
        }
        let is_over = self.unwanted.is_some_and(|since| since.elapsed() >= LINGER);
        if is_over && let Some((handle, since)) = self.process.take() {
            handle.terminate();
            self.backoff.failed_after(since.elapsed());
        }
        self.process.is_none() && self.unwanted.is_none()
    }

    /// How long until there is something to do about it.
    fn wait(&self) -> Option<Duration> {
        match (&self.process, self.unwanted) {
            (Some(_), None) | (None, Some(_)) => None,
            (None, None) => Some(self.backoff.wait()),
            (Some(_), Some(since)) => Some(LINGER.saturating_sub(since.elapsed())),
        }
    }
}

impl Helpers {
    fn new(database: pg_sys::Oid, executors: usize) -> Helpers {
        let mut slots = vec![HelperSlot::new(HelperKind::CatalogWorker)];
        slots.extend((0..executors).map(|_| HelperSlot::new(HelperKind::Executor)));
        Helpers { database, slots, is_logged: false }
    }

    fn employ_also(&mut self, kind: HelperKind, count: usize) {
        let mut known = 0;
        for slot in self.slots.iter_mut().filter(|slot| slot.kind == kind) {
            known += 1;
            if known <= count {
                slot.unwanted = None;
            } else {
                slot.unwanted.get_or_insert_with(Instant::now);
            }
        }
        self.slots.extend((known..count).map(|_| HelperSlot::new(kind)));
    }

    fn tend(&mut self) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        for slot in &mut self.slots {
            if slot.is_missing() && slot.backoff.is_due() {
                match start(self.database, slot.kind) {
                    Ok(handle) => {
                        slot.process = Some((handle, Instant::now()));
                        self.is_logged = false;
                    }
                    Err(Full) => {
                        slot.backoff.failed_after(Duration::ZERO);
                        if !std::mem::replace(&mut self.is_logged, true) {
                            Full.log(&format!("the {}", slot.kind.name()));
                        }
                    }
                }
            }
            if let Some(wait) = slot.wait() {
                next = Some(next.map_or(wait, |next| next.min(wait)));
            }
        }
        next
    }
}

fn start(database: pg_sys::Oid, kind: HelperKind) -> Result<Handle, Full> {
    let name = format!("pg_tide {} for database {}", kind.name(), database.to_u32());
    Background {
        name: &name,
        kind: &format!("pg_tide {}", kind.name()),
        function: "tide_helper_main",
        database,
        extra: kind.name(),
    }
    .start()
}

/// For a helper, before it connects to its database: enters it in the table, so that the database
/// can be dropped or renamed. False: it is not to connect.
#[must_use]
pub(crate) fn attach(database: pg_sys::Oid) -> bool {
    let Some(shared) = shmem::shared() else { return false };
    let Some(entry) = shared.entry(database) else { return false };
    // SAFETY: registers a function of this library, and reads this process's own id.
    let entered = unsafe {
        pg_sys::on_shmem_exit(Some(detach), pg_sys::Datum::from(database));
        entry.add_helper(pg_sys::MyProcPid)
    };
    // In this order: who keeps processes away looks at the table after saying so.
    entered && entry.should_run()
}

/// The worker of the database, as long as it is to run.
pub(crate) fn worker(database: pg_sys::Oid) -> Option<i32> {
    let entry = shmem::shared()?.entry(database)?;
    Some(entry.pid()).filter(|pid| *pid != 0 && entry.should_run())
}

#[pg_guard]
unsafe extern "C-unwind" fn detach(_code: i32, database: pg_sys::Datum) {
    let database = pg_sys::Oid::from(database.value() as u32);
    if let Some(entry) = shmem::shared().and_then(|shared| shared.entry(database)) {
        // SAFETY: this process's own id.
        entry.remove_helper(unsafe { pg_sys::MyProcPid });
    }
}
