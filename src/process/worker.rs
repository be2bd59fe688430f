//! The worker of one database: decodes its WAL, and looks after its server and its helpers.
//!
//! One thread, and no socket to any client. The loop never waits for anything but its wait set,
//! and never looks at today's catalogue: this process keeps a historic one (see
//! [`crate::source::stream`]).

use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::config::{Config, Credentials};
use tide_feed::link::{LineBudget, PROTOCOL, Report, Word};

use crate::guc;
use crate::process::background::{Background, Full, Handle};
use crate::process::helpers::HelperKind;
use crate::process::server::Condition;
use crate::process::shmem::{Entry, Wanted, WorkerState};
use crate::process::{helpers, probe, server, shmem, signals};
use crate::source::crash_page;
use crate::source::stream::{self, Stream};
use crate::wait::WaitSet;

/// The longest it sleeps: the slot has to move over what other databases write.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// How often the server is looked at that says nothing, and files that could not be read.
const LOOK: Duration = Duration::from_secs(1);
/// Between two flushes on behalf of asynchronous commits, which did not want to wait for one.
const FLUSH_AGAIN: Duration = Duration::from_millis(10);
/// Commits that follow each other this fast are decoded several at a time: each wake-up costs the
/// committing backend and two processes of ours more than the decoding does.
const CROWDED: Duration = Duration::from_millis(1);
/// How long they may gather, in microseconds.
const GATHER_MICROS: i64 = 250;

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
    signals::survive_blame();
    signals::survive_bus_errors();
    if !entry.should_run() {
        return;
    }
    let (name, extension) = probe::connect(database);
    // SAFETY: as above. The server is ended first of all: the postmaster is to have no child that
    // it does not know.
    unsafe { pg_sys::before_shmem_exit(Some(stop_server), pg_sys::Datum::from(0)) };

    let config = guc::config(&name, database);
    let fingerprint = probe::fingerprint(&config, extension);
    stream::pin_output_settings();
    crash_page::open(database);
    let mut worker = Worker::new(entry, config);
    if probe::is_made_anew(entry.config(), fingerprint) {
        // What the slot holds was written with tables and keys that are gone.
        worker.stream.drop_slot();
    }
    entry.set_config(fingerprint);
    entry.set_wal_limit(guc::max_slot_wal_keep_size());
    if let Some(settings) = probe::settings(&worker.config) {
        entry.begin_with_settings(&settings);
    }
    worker.run();
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, database: pg_sys::Datum) {
    let database = pg_sys::Oid::from(database.value() as u32);
    if let Some(entry) = shmem::shared().and_then(|shared| shared.entry(database)) {
        entry.end_work();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn stop_server(_code: i32, _arg: pg_sys::Datum) {
    // It may have been in the middle of a record.
    crash_page::idle();
    server::stop();
}

struct Worker {
    entry: &'static Entry,
    config: Config,
    credentials: Credentials,
    /// When the credentials were last read.
    read: Instant,
    waits: WaitSet,
    stream: Stream,
    flushed: Option<Instant>,
    lines: LineBudget,
}

impl Worker {
    fn new(entry: &'static Entry, config: Config) -> Worker {
        let prefix = guc::slot_name().unwrap_or_default();
        let (publication, largest) = (config.publication.clone(), guc::max_event_size());
        let stream = Stream::new(prefix, publication, largest, config.max_slot_wal_keep_size);
        helpers::employ(entry.database(), guc::executors());
        Worker {
            entry,
            config,
            credentials: guc::credentials(),
            read: Instant::now(),
            waits: WaitSet::new(None),
            stream,
            flushed: None,
            lines: LineBudget::new(Instant::now()),
        }
    }

    fn run(&mut self) {
        pgrx::log!("pg_tide: worker for database \"{}\" started", self.config.database);
        while self.is_wanted() {
            let reloaded = signals::reload();
            if reloaded {
                self.stream.retry_now();
            }
            let mut next = self.serve();
            self.refresh_settings();
            self.refresh_credentials(reloaded);
            self.listen();
            if server::fd().is_some() {
                next = next.min(helpers::tend().unwrap_or(LONGEST_SLEEP));
                next = next.min(self.flush().unwrap_or(LONGEST_SLEEP));
                next = next.min(self.stream.round().wait.unwrap_or(LONGEST_SLEEP));
            }
            self.rest(next);
            check_for_interrupts!();
        }
        self.entry.set_state(WorkerState::Stopping, "");
        pgrx::log!("pg_tide: worker for database \"{}\" stops", self.config.database);
        self.stream.close();
        if self.entry.wanted() == Wanted::No {
            self.stream.drop_slot();
        }
    }

    fn rest(&mut self, time: Duration) {
        if self.waits.link() != server::fd() {
            self.waits = WaitSet::new(server::fd());
        }
        let began = Instant::now();
        self.waits.wait(time);
        if began.elapsed() < CROWDED {
            // SAFETY: sleeps; the latch stays set meanwhile, so that commits need not wake us.
            unsafe { pg_sys::pg_usleep(GATHER_MICROS) };
        }
        // SAFETY: this process's own latch. It is reset before anything is looked at.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
    }

    fn is_wanted(&self) -> bool {
        self.entry.should_run() && !self.entry.restart_asked()
    }

    /// Looks after the server; says when to look again at the latest.
    fn serve(&mut self) -> Duration {
        let (config, credentials) = (&self.config, &self.credentials);
        let start = || Word::Start {
            protocol: PROTOCOL,
            config: Box::new(config.clone()),
            credentials: Box::new(credentials.clone()),
        };
        match server::tend(guc::server_timeout(), start) {
            Condition::Running => LOOK,
            Condition::Started => {
                self.stream.begin_again();
                helpers::employ_also(HelperKind::Notifier, 0);
                helpers::employ_also(HelperKind::Reader, 0);
                helpers::employ_also(HelperKind::Writer, 0);
                LOOK
            }
            Condition::Failed(how) => {
                pgrx::log!(
                    "pg_tide: the server of database \"{}\" is to be started again: {how}",
                    self.config.database
                );
                self.entry.set_server_failure(&how);
                self.entry.set_state(WorkerState::Stalled, &format!("tide-server failed: {how}"));
                self.stream.server_failed();
                Duration::ZERO
            }
            Condition::Absent(wait) => wait,
        }
    }

    /// Takes in what the server says.
    fn listen(&mut self) {
        for report in server::hear() {
            match report {
                Report::Ready => self.entry.set_state(WorkerState::Running, ""),
                Report::Alive(number) => self.stream.proven(number),
                Report::WantsNotifier(wants) => {
                    helpers::employ_also(HelperKind::Notifier, wants.into())
                }
                Report::WantsReader(wants) => {
                    let count = if wants { guc::snapshot_workers() } else { 0 };
                    helpers::employ_also(HelperKind::Reader, count);
                }
                Report::WantsWriters(wants) => {
                    let count = if wants { guc::writers() } else { 0 };
                    helpers::employ_also(HelperKind::Writer, count);
                }
                Report::Log { warning, text } => self.log(warning, &text),
            }
        }
        if let Some(count) = self.lines.take_dropped(Instant::now()) {
            pgrx::warning!("pg_tide: {count} lines that the server had for the log were dropped");
        }
    }

    /// A line of the server's, who may say anything, and as often as it likes.
    fn log(&mut self, warning: bool, text: &str) {
        match (self.lines.admits(Instant::now()), warning) {
            (true, true) => pgrx::warning!("pg_tide: {text}"),
            (true, false) => pgrx::log!("pg_tide: {text}"),
            (false, _) => {}
        }
    }

    /// Passes on settings that a running server can change.
    fn refresh_settings(&mut self) {
        let Some(settings) = self.entry.take_new_settings() else { return };
        let Ok(config) = serde_json::from_str(&settings) else { return };
        if self.config != config {
            self.config = config;
            self.inform(&Word::Settings(Box::new(self.config.clone())));
        }
    }

    /// Tells a server that runs; the next one is told at its start.
    fn inform(&self, word: &Word) {
        if server::fd().is_some() {
            server::tell_if_there(word);
        }
    }

    /// Reads secrets, keys and certificates again: when asked to, and as long as a file that is
    /// named is not there.
    fn refresh_credentials(&mut self, reloaded: bool) {
        if !(reloaded || self.credentials.is_incomplete() && self.read.elapsed() >= LOOK) {
            return;
        }
        self.read = Instant::now();
        let credentials = guc::credentials();
        if credentials != self.credentials {
            self.credentials = credentials;
            self.inform(&Word::Credentials(Box::new(self.credentials.clone())));
        }
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
