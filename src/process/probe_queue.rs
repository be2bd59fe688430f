//! The launcher's questions to databases, asked one after the other by probes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use tide_feed::backoff::Backoff;

use crate::process::background::{Full, Handle};
use crate::process::shmem::{ProbeAnswer, Shared, WorkerState};
use crate::process::{databases, probe};

/// A probe that takes longer waits for a lock. It is ended, and tried again after the others.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct ProbeQueue {
    shared: &'static Shared,
    waiting: VecDeque<pg_sys::Oid>,
    running: Option<(pg_sys::Oid, Handle, Instant)>,
    backoff: Backoff,
    /// The log says that there is no room for a probe.
    is_logged: bool,
}

impl ProbeQueue {
    pub(crate) fn new(shared: &'static Shared) -> ProbeQueue {
        ProbeQueue {
            shared,
            waiting: VecDeque::new(),
            running: None,
            // Each failure is a line in the log that nobody can do anything about at once.
            backoff: Backoff::up_to(Duration::from_secs(60)),
            is_logged: false,
        }
    }

    /// Has the database probed. A probe that runs already may have looked too early.
    pub(crate) fn ask(&mut self, database: pg_sys::Oid) {
        if !self.waiting.contains(&database) {
            self.waiting.push_back(database);
        }
    }

    pub(crate) fn forget(&mut self, database: pg_sys::Oid) {
        self.waiting.retain(|waiting| *waiting != database);
    }

    /// The next answer, if there is one by now; keeps a probe running while there are questions.
    pub(crate) fn tend(&mut self) -> Option<(pg_sys::Oid, ProbeAnswer, u64)> {
        if let Some((database, handle, since)) = &self.running {
            let database = *database;
            if !handle.has_ended() {
                if since.elapsed() >= PATIENCE {
                    handle.terminate();
                }
                return None;
            }
            let answer = self.shared.probe_answer(database);
            self.running = None;
            if let Some((answer, config)) = answer {
                self.backoff.reset();
                return Some((database, answer, config));
            }
            // It could not connect.
            self.backoff.failed_after(Duration::ZERO);
            if !databases::find(database).is_some_and(|found| found.is_open()) {
                return Some((database, ProbeAnswer::Absent, 0));
            }
            self.ask(database);
        }
        if self.backoff.is_due() {
            self.start_next();
        }
        None
    }

    fn start_next(&mut self) {
        let Some(database) = self.waiting.pop_front() else { return };
        self.shared.ask_probe(database);
        match probe::start(database) {
            Ok(handle) => {
                self.running = Some((database, handle, Instant::now()));
                self.is_logged = false;
            }
            Err(Full) => {
                self.waiting.push_front(database);
                if let Some(entry) = self.shared.entry(database) {
                    entry.set_state(WorkerState::Waiting, &Full.reason());
                }
                self.backoff.failed_after(Duration::ZERO);
                if !std::mem::replace(&mut self.is_logged, true) {
                    Full.log("a probe");
                }
            }
        }
    }

    /// When to look again at the latest; `None`: when woken.
    pub(crate) fn wait(&self) -> Option<Duration> {
        match &self.running {
            Some((_, _, since)) => {
                let left = PATIENCE.saturating_sub(since.elapsed());
                Some(left.max(Duration::from_secs(1)))
            }
            None if !self.waiting.is_empty() => Some(self.backoff.wait()),
            None => None,
        }
    }
}
