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
    /// Only while clients want to hear notifications.
    Notifier,
}

impl HelperKind {
    fn name(self) -> &'static str {
        match self {
            HelperKind::CatalogWorker => "catalog worker",
            HelperKind::Executor => "executor",
            HelperKind::Notifier => "notifier",
        }
    }
}

thread_local! {
    /// The worker's, on its main thread. Not in its loop, since the decoder has to tend them as
    /// well: it may be waiting for the hub, and the hub for a catalog worker that has ended.
    static HELPERS: RefCell<Option<Helpers>> = const { RefCell::new(None) };
}

/// From now on [`tend`] keeps a catalog worker and so many executors running.
pub(crate) fn employ(database: pg_sys::Oid, executors: usize) {
    HELPERS.set(Some(Helpers::new(database, executors)));
}

/// Keeps a notifier running, too, or no more.
pub(crate) fn employ_notifier(wanted: bool) {
    HELPERS.with_borrow_mut(|helpers| {
        if let Some(helpers) = helpers {
            helpers.employ_notifier(wanted);
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
    backoff: Backoff,
}

impl HelperSlot {
    fn new(kind: HelperKind) -> HelperSlot {
        HelperSlot { kind, process: None, backoff: Backoff::usual() }
    }
}

impl Helpers {
    fn new(database: pg_sys::Oid, executors: usize) -> Helpers {
        let mut slots = vec![HelperSlot::new(HelperKind::CatalogWorker)];
        slots.extend((0..executors).map(|_| HelperSlot::new(HelperKind::Executor)));
        Helpers { database, slots, is_logged: false }
    }

    fn employ_notifier(&mut self, wanted: bool) {
        let is_notifier = |slot: &HelperSlot| slot.kind == HelperKind::Notifier;
        match (wanted, self.slots.iter().any(is_notifier)) {
            (true, false) => self.slots.push(HelperSlot::new(HelperKind::Notifier)),
            (false, true) => {
                for slot in self.slots.extract_if(.., |slot| is_notifier(slot)) {
                    if let Some((handle, _)) = slot.process {
                        handle.terminate();
                    }
                }
            }
            _ => {}
        }
    }

    fn tend(&mut self) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        for slot in &mut self.slots {
            if let Some((_, since)) = slot.process.take_if(|(handle, _)| handle.has_ended()) {
                slot.backoff.failed_after(since.elapsed());
            }
            if slot.process.is_none() && slot.backoff.is_due() {
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
            if slot.process.is_none() {
                let wait = slot.backoff.wait();
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
