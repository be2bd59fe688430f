//! The one process that is always there: it finds the databases that have the extension and
//! keeps a worker running for each.
//!
//! What it must not forget is in shared memory, so that it can be ended and started again at any
//! time without disturbing the workers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::backoff::Backoff;

use crate::guc;
use crate::helper::session;
use crate::process::background::{Background, Full, Handle};
use crate::process::probe_queue::ProbeQueue;
use crate::process::shmem::{Entry, ProbeAnswer, Shared, Wanted, WorkerState};
use crate::process::{databases, shmem, signals, worker};
use crate::source::slot;

/// The longest it sleeps; everything it waits for wakes it.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How often slots of databases without a worker are looked at, while there are any.
const LOOK: Duration = Duration::from_secs(5);
/// For how long they may have none before their slots are held to the limit.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a worker may take to end by itself.
const GRACE: Duration = Duration::from_secs(1);
/// Seconds until the postmaster starts the launcher again.
const RESTART: i32 = 1;

/// In `_PG_init` only.
pub(crate) fn register() {
    Background {
        name: "pg_tide launcher",
        kind: "pg_tide launcher",
        function: "tide_launcher_main",
        database: pg_sys::InvalidOid,
        extra: "",
    }
    .keep(RESTART);
}

#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn tide_launcher_main(_database: pg_sys::Datum) {
    signals::install();
    signals::ignore_cancel();
    let Some(shared) = shmem::shared() else { return };
    // SAFETY: a function of this library.
    unsafe { pg_sys::on_shmem_exit(Some(leave), pg_sys::Datum::from(0)) };
    session::connect_to_no_database();
    shared.launcher.become_me();
    Launcher::new(shared).run();
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, _arg: pg_sys::Datum) {
    if let Some(shared) = shmem::shared() {
        shared.launcher.clear();
    }
}

struct Launcher {
    shared: &'static Shared,
    probes: ProbeQueue,
    watches: Vec<Watch>,
    /// The log says that there is no room for a worker.
    is_logged: bool,
    /// Databases that have slots, but no worker, and since when.
    unserved: HashMap<pg_sys::Oid, Instant>,
    /// How much WAL their slots may hold back, as their workers have said. A database whose worker has not
    /// run since the server started is held to what the configuration says.
    limits: HashMap<pg_sys::Oid, u64>,
    looked: Option<Instant>,
}

/// A worker as the launcher sees it.
struct Watch {
    database: pg_sys::Oid,
    started: Option<(Handle, Instant)>,
    /// When it was asked to end.
    stopping: Option<Instant>,
    /// When its helpers were seen without a worker.
    deserted: Option<Instant>,
    backoff: Backoff,
}

impl Watch {
    fn new(database: pg_sys::Oid) -> Watch {
        Watch { database, started: None, stopping: None, deserted: None, backoff: Backoff::usual() }
    }
}

impl Launcher {
    fn new(shared: &'static Shared) -> Launcher {
        Launcher {
            shared,
            probes: ProbeQueue::new(shared),
            watches: Vec::new(),
            is_logged: false,
            unserved: HashMap::new(),
            limits: HashMap::new(),
            looked: None,
        }
    }

    fn run(&mut self) -> ! {
        for database in databases::list() {
            self.look_at(database.oid, Some(&database));
        }
        loop {
            // SAFETY: this process's own latch.
            unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
            check_for_interrupts!();
            if signals::reload() {
                // Settings of single databases are known to their own processes only.
                self.shared.entries().for_each(|entry| self.probes.ask(entry.database()));
            }
            for entry in self.shared.entries() {
                if entry.take_recheck() {
                    let database = entry.database();
                    self.look_at(database, databases::find(database).as_ref());
                }
            }
            while let Some((database, answer, config)) = self.probes.tend() {
                self.learn(database, answer, config);
            }
            let mut next = self.probes.wait().unwrap_or(LONGEST_SLEEP);
            for entry in self.shared.entries() {
                next = next.min(self.tend(entry));
            }
            self.watches.retain(|watch| self.shared.entry(watch.database).is_some());
            pause(next.min(self.keep_to_limit()));
        }
    }

    /// Nobody else would end what the slots of databases without a worker have the server keep: those that
    /// nobody may connect to, or for which there is no place. Says when to look again.
    fn keep_to_limit(&mut self) -> Duration {
        let entries = self.shared.entries();
        let said = entries.filter_map(|entry| Some((entry.database(), entry.wal_limit()?)));
        self.limits.extend(said);
        if self.looked.is_none_or(|last| last.elapsed() >= LOOK) {
            self.looked = Some(Instant::now());
            let is_served = |oid| self.shared.entry(oid).is_some_and(|entry| entry.pid() != 0);
            let oids = databases::list().into_iter().map(|database| database.oid);
            let unserved = oids.filter(|oid| !is_served(*oid) && slot::has_any(*oid));
            let since = |oid| self.unserved.get(&oid).copied().unwrap_or_else(Instant::now);
            self.unserved = unserved.map(|oid| (oid, since(oid))).collect();
            // Workers come and go.
            for (oid, _) in self.unserved.iter().filter(|(_, since)| since.elapsed() >= PATIENCE) {
                let limit = self.limits.get(oid).copied();
                slot::drop_beyond(*oid, limit.unwrap_or_else(guc::max_slot_wal_keep_size));
            }
        }
        if self.unserved.is_empty() { LONGEST_SLEEP } else { LOOK }
    }

    /// Finds out whether the database is to be served.
    fn look_at(&mut self, database: pg_sys::Oid, found: Option<&databases::Database>) {
        if found.is_some_and(databases::Database::is_open) {
            return self.probes.ask(database);
        }
        self.probes.forget(database);
        let is_shut = found.is_some_and(databases::Database::is_shut);
        self.want(database, if is_shut { Wanted::NotNow } else { Wanted::No }, 0);
    }

    fn learn(&mut self, database: pg_sys::Oid, answer: ProbeAnswer, config: u64) {
        // It may have been shut since it was asked about, or because of that not have been found.
        let found = databases::find(database);
        if !found.as_ref().is_some_and(databases::Database::is_open) {
            return self.look_at(database, found.as_ref());
        }
        let is_present = answer == ProbeAnswer::Present;
        self.want(database, if is_present { Wanted::Yes } else { Wanted::No }, config);
    }

    fn want(&mut self, database: pg_sys::Oid, wanted: Wanted, config: u64) {
        let is_wanted = wanted == Wanted::Yes;
        if !is_wanted && self.shared.entry(database).is_none() {
            // Nobody to serve it; what an earlier server left behind goes.
            if wanted == Wanted::No {
                slot::drop_orphaned(database);
            }
            return;
        }
        let taken = self.shared.claim(database, |entry| {
            entry.set_wanted(wanted);
            if is_wanted && entry.pid() != 0 && ![0, config].contains(&entry.config()) {
                entry.ask_restart();
            }
        });
        if taken.is_none() {
            pgrx::log!(
                "pg_tide: serving {} databases already; the one with oid {} gets no worker",
                shmem::DATABASES,
                database.to_u32()
            );
        }
    }

    fn watch(&mut self, database: pg_sys::Oid) -> &mut Watch {
        let known = self.watches.iter().position(|watch| watch.database == database);
        let index = known.unwrap_or_else(|| {
            self.watches.push(Watch::new(database));
            self.watches.len() - 1
        });
        &mut self.watches[index]
    }

    /// Sees to one database; says when to look again at the latest.
    fn tend(&mut self, entry: &'static Entry) -> Duration {
        let watch = self.watch(entry.database());
        if entry.pid() != 0 {
            watch.deserted = None;
            return if entry.should_run() && !entry.restart_asked() {
                watch.stopping = None;
                LONGEST_SLEEP
            } else {
                stop(entry, watch)
            };
        }
        if let Some((_, since)) = watch.started.take_if(|(handle, _)| handle.has_ended()) {
            if watch.stopping.take().is_some() {
                watch.backoff.reset();
            } else {
                watch.backoff.failed_after(since.elapsed());
            }
        }
        if watch.started.is_some() {
            // On its way. It looks for itself whether it is still wanted.
            return LONGEST_SLEEP;
        }
        watch.stopping = None;
        if entry.take_restart() {
            watch.backoff.reset();
        }
        if entry.should_run() {
            return self.start(entry);
        }
        if !entry.is_deserted() {
            return see_off(entry, watch);
        }
        if matches!(entry.wanted(), Wanted::No | Wanted::NotNow) {
            self.give_up(entry);
        }
        LONGEST_SLEEP
    }

    /// Starts a worker if the time has come.
    fn start(&mut self, entry: &'static Entry) -> Duration {
        let database = entry.database();
        let watch = self.watch(database);
        if !watch.backoff.is_due() {
            return watch.backoff.wait();
        }
        let Some(found) = databases::find(database) else {
            entry.set_wanted(Wanted::No);
            return Duration::ZERO;
        };
        if entry.take_forget_history() {
            slot::drop_orphaned(database);
        }
        match worker::start(database, &found.name) {
            Ok(handle) => {
                watch.started = Some((handle, Instant::now()));
                self.is_logged = false;
                LONGEST_SLEEP
            }
            Err(Full) => {
                watch.backoff.failed_after(Duration::ZERO);
                let wait = watch.backoff.wait();
                entry.set_state(WorkerState::Waiting, &Full.reason());
                if !std::mem::replace(&mut self.is_logged, true) {
                    Full.log(&format!("the worker of database \"{}\"", found.name));
                }
                wait
            }
        }
    }

    /// The database is not served any more.
    fn give_up(&mut self, entry: &'static Entry) {
        let database = entry.database();
        if entry.take_forget_history() || entry.wanted() == Wanted::No {
            slot::drop_orphaned(database);
        }
        // A worker that was killed could not take its socket away.
        let _ = std::fs::remove_file(guc::control_socket(database));
        if self.shared.release(entry) {
            self.watches.retain(|watch| watch.database != database);
        }
    }
}

/// Asks a worker to end, then makes it end.
fn stop(entry: &Entry, watch: &mut Watch) -> Duration {
    match watch.stopping {
        None => {
            watch.stopping = Some(Instant::now());
            entry.worker.set_latch();
        }
        Some(since) if since.elapsed() >= GRACE => {
            watch.stopping = Some(Instant::now());
            entry.terminate();
        }
        Some(_) => {}
    }
    GRACE
}

/// Helpers end when their worker does. One that is busy is not waited for.
fn see_off(entry: &Entry, watch: &mut Watch) -> Duration {
    let since = *watch.deserted.get_or_insert_with(Instant::now);
    if since.elapsed() >= GRACE {
        watch.deserted = None;
        entry.terminate();
    }
    GRACE
}

fn pause(time: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // Rounded up: waking a moment early would only be to wait again.
    let milliseconds = i64::try_from(time.as_millis()).unwrap_or(i64::MAX).saturating_add(1);
    // SAFETY: waits on this process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, pg_sys::PG_WAIT_EXTENSION);
    }
}
