//! The worker of one database: its main thread decodes, its other threads serve the clients.
//!
//! The loop never waits for anything but its wait set, and never looks at today's catalogue: this
//! process keeps a historic one (see [`crate::source::stream`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::config::Config;
use tide_feed::event::Feed;
use tide_server::bridge::Bridge;

use crate::guc;
use crate::process::background::{Background, Full, Handle};
use crate::process::shmem::{Entry, Wanted, WorkerState};
use crate::process::threads::Bell;
use crate::process::{helpers, log, probe, shmem, signals, threads};
use crate::source::notify::Ear;
use crate::source::stream;
use crate::source::stream::Stream;
use crate::wait::WaitSet;

/// The longest it sleeps: the slot has to move over what other databases write.
const NAP: Duration = Duration::from_secs(5);
/// Between two tries to start the network half. (That its port is taken is its own affair.)
const SERVE_AGAIN: Duration = Duration::from_secs(5);
/// Between two flushes on behalf of asynchronous commits, which did not want to wait for one.
const FLUSH_AGAIN: Duration = Duration::from_millis(10);
/// Commits that follow each other this fast are decoded several at a time: each wake-up costs the
/// committing backend and three threads of ours more than the decoding does.
const CROWDED: Duration = Duration::from_millis(1);
/// How long they may gather, in microseconds.
const GATHER_MICROS: i64 = 250;
/// Batches on their way to the hub; when they are that many, decoding waits.
const FEED: usize = 16;

/// Has the postmaster start the database's worker.
pub(crate) fn start(database: pg_sys::Oid, name: &str) -> Result<Handle, Full> {
    Background {
        name: &format!("pg_tide worker for database \"{name}\""),
        kind: "pg_tide worker",
        function: "tide_worker_main",
        database,
        extra: "",
    }
    .start()
}

#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn tide_worker_main(database: pg_sys::Datum) {
    let database = pg_sys::Oid::from(database.value() as u32);
    let Some(entry) = shmem::shared().and_then(|shared| shared.entry(database)) else { return };
    if !entry.begin_work() {
        return;
    }
    // Runs after Postgres has let go of the database and the slot, so that whoever waits for this
    // process to be gone waits long enough.
    // SAFETY: a function of this library.
    unsafe { pg_sys::on_shmem_exit(Some(leave), pg_sys::Datum::from(database)) };
    signals::install();
    signals::ignore_cancel();
    if !entry.should_run() {
        return;
    }
    let (name, extension) = probe::connect(database);
    // SAFETY: as above. The threads are stopped first of all.
    unsafe { pg_sys::before_shmem_exit(Some(stop_threads), pg_sys::Datum::from(0)) };

    let config = guc::config(&name, database);
    let fingerprint = probe::fingerprint(&config, extension);
    stream::pin_output_settings();
    match Bell::new() {
        Ok(bell) => {
            let mut worker = Worker::new(entry, config, bell);
            if probe::is_made_anew(entry.config(), fingerprint) {
                // What the slot holds was written with tables and keys that are gone.
                worker.stream.drop_slot();
            }
            entry.set_config(fingerprint);
            worker.run();
        }
        Err(error) => error!("pg_tide: could not make an eventfd: {error}"),
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, database: pg_sys::Datum) {
    let database = pg_sys::Oid::from(database.value() as u32);
    if let Some(entry) = shmem::shared().and_then(|shared| shared.entry(database)) {
        entry.end_work();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stop_threads(_code: i32, _arg: pg_sys::Datum) {
    threads::stop();
    log::drain();
}

struct Worker {
    entry: &'static Entry,
    config: Config,
    bell: Bell,
    bridge: Arc<Bridge>,
    stream: Stream,
    ear: Ear,
    /// The stream's other end, until the network half has it.
    feed: Receiver<Feed>,
    serving: bool,
    /// When the network half was last tried to start, and what came of it.
    tried: Option<(Instant, String)>,
    flushed: Option<Instant>,
}

impl Worker {
    fn new(entry: &'static Entry, config: Config, bell: Bell) -> Worker {
        let ring = bell.clone();
        log::install(move || ring.ring());
        let ring = bell.clone();
        let bridge = Arc::new(Bridge::new(move || ring.ring()));
        let (sender, feed): (Sender<Feed>, _) = bounded(FEED);
        let prefix = guc::slot_name().unwrap_or_default();
        let (publication, largest) = (config.publication.clone(), guc::max_event_size());
        let stream = Stream::new(prefix, publication, largest, sender, Arc::clone(&bridge));
        let ear = Ear::new(Arc::clone(&bridge));
        helpers::employ(entry.database(), guc::executors());
        Worker {
            entry,
            config,
            bell,
            bridge,
            stream,
            ear,
            feed,
            serving: false,
            tried: None,
            flushed: None,
        }
    }

    fn run(&mut self) {
        let waits = WaitSet::new(self.bell.fd());
        pgrx::log!("pg_tide: worker for database \"{}\" started", self.config.database);
        while self.is_wanted() {
            let mut next = NAP;
            if signals::reload() {
                self.stream.retry_now();
                self.tried = None;
            }
            log::drain();
            if self.serve() {
                let _ = self.bridge.take_helper_lost();
                next = next.min(helpers::tend().unwrap_or(NAP));
                next = next.min(self.flush().unwrap_or(NAP));
                self.ear.tend();
                next = next.min(self.stream.round().wait.unwrap_or(NAP));
            } else {
                next = next.min(SERVE_AGAIN);
            }
            let began = Instant::now();
            if waits.wait(next) {
                self.bell.silence();
            }
            if began.elapsed() < CROWDED {
                // SAFETY: sleeps; the latch stays set meanwhile, so that commits need not wake us.
                unsafe { pg_sys::pg_usleep(GATHER_MICROS) };
            }
            // SAFETY: this process's own latch. It is reset before anything is looked at.
            unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
            check_for_interrupts!();
        }
        self.entry.set_state(WorkerState::Stopping, "");
        pgrx::log!("pg_tide: worker for database \"{}\" stops", self.config.database);
        self.stream.close();
        if self.entry.wanted() == Wanted::No {
            self.stream.drop_slot();
        }
    }

    fn is_wanted(&self) -> bool {
        self.entry.should_run() && !self.entry.restart_asked()
    }

    /// Starts the network half if it does not run yet; true: it runs.
    fn serve(&mut self) -> bool {
        if self.serving {
            if !threads::are_alive() {
                error!("pg_tide: a network thread ended unexpectedly");
            }
            return true;
        }
        if self.tried.as_ref().is_some_and(|(when, _)| when.elapsed() < SERVE_AGAIN) {
            return false;
        }
        let before = self.tried.take().map(|(_, problem)| problem);
        match threads::start(self.config.clone(), self.feed.clone(), Arc::clone(&self.bridge)) {
            Ok(()) => {
                self.serving = true;
                self.entry.set_state(WorkerState::Running, "");
            }
            Err(error) => {
                let problem = error.to_string();
                if before.as_deref() != Some(&problem) {
                    self.complain(&problem);
                }
                self.tried = Some((Instant::now(), problem));
            }
        }
        self.serving
    }

    fn complain(&self, problem: &str) {
        let database = &self.config.database;
        self.entry.set_state(WorkerState::Stalled, &format!("cannot start to serve: {problem}"));
        pgrx::log!("pg_tide: cannot start to serve database \"{database}\": {problem}");
    }

    /// Flushes what asynchronous commits have left in the WAL buffers, though not for each of
    /// them; says when to come again if it is too early.
    fn flush(&mut self) -> Option<Duration> {
        let newest = self.entry.newest_commit();
        // SAFETY: reads shared memory.
        if newest <= unsafe { pg_sys::GetFlushRecPtr(std::ptr::null_mut()) } {
            return None;
        }
        let since = self.flushed.map_or(FLUSH_AGAIN, |when| when.elapsed());
        if since < FLUSH_AGAIN {
            return Some(FLUSH_AGAIN.saturating_sub(since));
        }
        self.flushed = Some(Instant::now());
        // SAFETY: the address is the end of a record that was inserted.
        unsafe { pg_sys::XLogFlush(newest) };
        None
    }
}
