//! The worker's server: a program of its own, which talks to the clients. The worker starts it,
//! feeds it, watches it, and ends it.
//!
//! It has no part in Postgres: not its memory, not its files, not its locks. Whatever happens to it
//! costs its connections and nothing else.

use std::cell::RefCell;
use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::backoff::Backoff;
use tide_feed::event::Lsn;
use tide_feed::link::{self, Pace, Report, Word};

use crate::process::last_words::LastWords;
use crate::process::link::{Link, LinkError};
use crate::wait;

/// Time for the clients to be told that the server stops.
const FAREWELL: Duration = Duration::from_millis(500);
/// Time for a server to begin to read, if its settings are long.
const START: Duration = Duration::from_secs(5);
/// Until the settings say.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether a server was stopped, or hangs.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait at a time for room in the socket, if nothing else wakes us.
const NAP_MS: i64 = 100;

const STOPPED: &str = "it was stopped by a signal";

thread_local! {
    /// The worker's, on its only thread. Not in its loop: the decoder's callbacks write to it, and
    /// FATAL ends the process without unwinding.
    static SERVER: RefCell<Server> = RefCell::new(Server::default());
}

#[derive(Debug, Default)]
struct Server {
    running: Option<Running>,
    backoff: Option<Backoff>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    link: Link,
    last_words: LastWords,
    since: Instant,
    looked: Instant,
    /// When it was asked whether it is there, if it has not answered yet; and when it last did.
    pinged: Option<Instant>,
    answered: Instant,
    /// How long it may take to answer, or to read on.
    patience: Duration,
    pace: Pace,
    /// Why it is to be ended, for what it does.
    condemned: Option<&'static str>,
}

/// What the worker has to know of its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It runs.
    Running,
    /// It has just been started: it knows nothing yet.
    Started,
    /// It ended, or was ended, in this way.
    Failed(String),
    /// There is none; to be tried again after this long.
    Absent(Duration),
}

/// Looks after the server: starts it if there is none and `start` says what it is to be told
/// first, and notices its end. `patience` is how long it may take to answer.
pub(crate) fn tend(patience: Duration, start: impl FnOnce() -> Word) -> Condition {
    SERVER.with_borrow_mut(|server| {
        if server.running.is_some() {
            if let Some(running) = &mut server.running {
                running.patience = patience;
            }
            return match server.check(patience) {
                Ok(()) => Condition::Running,
                Err(how) => server.failed(how),
            };
        }
        let backoff = server.backoff.get_or_insert_with(Backoff::usual);
        if !backoff.is_due() {
            return Condition::Absent(backoff.wait());
        }
        match Running::start(&start()) {
            Ok(running) => {
                server.running = Some(running);
                Condition::Started
            }
            Err(error) => server.failed(format!("it could not be started: {error}")),
        }
    })
}

/// The descriptor that has something to be read when the server says something, or ends.
pub(crate) fn fd() -> Option<RawFd> {
    SERVER.with_borrow(|server| Some(server.running.as_ref()?.link.fd()))
}

/// What the server has said since the last call. The end of the link is for [`tend`] to find.
pub(crate) fn hear() -> Vec<Report> {
    SERVER.with_borrow_mut(|server| {
        let Some(running) = &mut server.running else { return Vec::new() };
        let reports: Vec<Report> = std::iter::from_fn(|| running.link.next()).collect();
        if reports.iter().any(|report| matches!(report, Report::Alive(_))) {
            running.pinged = None;
            running.answered = Instant::now();
        }
        reports
    })
}

/// How far the slot may move, by what the server keeps; 0 until it has said so.
pub(crate) fn confirmed() -> Lsn {
    SERVER
        .with_borrow(|server| server.running.as_ref().map(|r| r.link.confirmed()))
        .unwrap_or_default()
}

/// The server is about to be told everything up to here: it may confirm no more than that.
pub(crate) fn set_fed(lsn: Lsn) {
    SERVER.with_borrow_mut(|server| {
        if let Some(running) = &mut server.running {
            running.link.set_fed(lsn);
        }
    });
}

/// Has the server ended, and another one started, for what it does; false: it is about to be.
pub(crate) fn condemn(why: &'static str) -> bool {
    SERVER.with_borrow_mut(|server| {
        server.running.as_mut().is_some_and(|running| running.condemned.replace(why).is_none())
    })
}

/// Whether the server has nothing to do.
pub(crate) fn is_idle() -> bool {
    SERVER.with_borrow(|server| server.running.as_ref().is_some_and(|r| r.link.is_idle()))
}

/// Whether there is none, or none that can be talked to any more.
pub(crate) fn is_gone() -> bool {
    SERVER.with_borrow(|server| server.running.as_ref().is_none_or(|r| r.link.is_torn()))
}

/// Tells the server something; waits for room, interruptibly. Raises an error if it has ended.
pub(crate) fn tell(word: &Word) {
    send(&[&link::json(word)]);
}

/// Tells the server something; waits for room, interruptibly. If it has ended, the next one is told
/// at its start whatever it has to know.
pub(crate) fn tell_if_there(word: &Word) {
    let _ = try_send(&[&link::json(word)]);
}

/// Tells the server something if there is room for it right now.
pub(crate) fn offer(frame: &[u8]) -> bool {
    SERVER.with_borrow_mut(|server| {
        let Some(running) = &mut server.running else { return false };
        let mut slice = [IoSlice::new(frame)];
        let mut parts = &mut slice[..];
        match running.link.write(&mut parts) {
            Ok(true) => true,
            // A few bytes of it are in: the rest has to follow.
            Ok(false) if running.link.is_torn() => {
                finish(running, &mut parts, FAREWELL);
                true
            }
            _ => false,
        }
    })
}

/// Sends a frame that is in parts; waits for room, interruptibly. Raises an error if the server has
/// ended.
pub(crate) fn send(parts: &[&[u8]]) {
    if let Err(error) = try_send(parts) {
        gone(&error);
    }
}

/// While this waits to write it reads, so that the two ends never wait for each other.
fn try_send(parts: &[&[u8]]) -> Result<(), LinkError> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = &mut slices[..];
    let mut go_on = || {
        SERVER.with_borrow_mut(|server| match &mut server.running {
            Some(running) => running.write(&mut left),
            None => Err(LinkError::Closed),
        })
    };
    if go_on()? {
        return Ok(());
    }
    let mut outcome = Ok(());
    wait::until_writable(fd, NAP_MS, || {
        go_on().unwrap_or_else(|error| {
            outcome = Err(error);
            true
        })
    });
    outcome
}

/// Ends the server: it takes leave of its clients first. For the end of the worker: waits for no
/// longer than a moment, and calls nothing of Postgres's.
pub(crate) fn stop() {
    let running = SERVER.try_with(|server| server.try_borrow_mut().ok()?.running.take());
    if let Ok(Some(running)) = running {
        running.stop();
    }
}

impl Server {
    /// Looks whether it is well; how it ended if it has, or had to be ended.
    fn check(&mut self, patience: Duration) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        if let Some(why) = running.condemned {
            running.end();
            return Err(why.to_owned());
        }
        match running.link.read() {
            Ok(()) => {}
            Err(LinkError::Closed) => return Err(running.ended()),
            Err(error) => {
                let how = error.to_string();
                running.end();
                return Err(how);
            }
        }
        if running.link.is_torn() {
            let how =
                if running.is_stopped() { STOPPED } else { "it did not take what it was told" };
            running.end();
            return Err(how.to_owned());
        }
        if running.looked.elapsed() < LOOK {
            return Ok(());
        }
        running.looked = Instant::now();
        running.last_words.listen();
        running.ping(patience);
        if running.is_stopped() {
            running.end();
            return Err(STOPPED.to_owned());
        }
        match running.pinged {
            Some(when) if when.elapsed() > patience => {
                running.end();
                Err(format!("it did not answer for {} s", patience.as_secs()))
            }
            _ => Ok(()),
        }
    }

    fn failed(&mut self, mut how: String) -> Condition {
        let backoff = self.backoff.get_or_insert_with(Backoff::usual);
        let mut running = self.running.take();
        if let Some(words) = running.as_mut().and_then(|running| running.last_words.text()) {
            how = format!("{how}: {words}");
        }
        backoff.failed_after(running.map_or(Duration::ZERO, |running| running.since.elapsed()));
        Condition::Failed(how)
    }
}

impl Running {
    fn start(first: &Word) -> io::Result<Running> {
        close_on_exec()?;
        let (link, far) = Link::pair()?;
        // SAFETY: the worker's own process id.
        let worker = unsafe { pg_sys::MyProcPid };
        let mut child = Command::new(program()?)
            .arg(worker.to_string())
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(far)))
            .stdout(Stdio::from(death_watch()?))
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let now = Instant::now();
        let mut running = Running {
            last_words: LastWords::of(child.stderr.take()),
            child,
            link,
            since: now,
            looked: now,
            pinged: None,
            answered: now,
            patience: PATIENCE,
            pace: Pace::default(),
            condemned: None,
        };
        let frame = link::json(first);
        let mut slice = [IoSlice::new(&frame)];
        let mut parts = &mut slice[..];
        // Mostly the socket has room for all of them.
        finish(&mut running, &mut parts, START);
        if parts.is_empty() {
            return Ok(running);
        }
        running.end();
        Err(io::Error::other("it does not take its settings"))
    }

    /// The link's other end is closed: the process is ending or has ended.
    fn ended(&mut self) -> String {
        let deadline = Instant::now() + FAREWELL;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return describe(status),
                Ok(None) if Instant::now() < deadline => pause(),
                _ => {
                    self.end();
                    return "it closed its link".to_owned();
                }
            }
        }
    }

    /// Writes what the socket has room for, and takes it off the parts; true: they are written. An
    /// error, too, if the server is not going to read any more: it was stopped, or hangs.
    fn write(&mut self, parts: &mut &mut [IoSlice<'_>]) -> Result<bool, LinkError> {
        let length = |parts: &[IoSlice<'_>]| parts.iter().map(|part| part.len()).sum::<usize>();
        self.link.read()?;
        if self.pace.is_measured() && self.link.is_idle() {
            self.pace.reset();
        }
        let before = length(parts);
        let is_written = self.link.write(parts)?;
        self.pace.took(before - length(parts));
        if is_written {
            return Ok(true);
        }
        let now = Instant::now();
        let is_too_slow = self.pace.is_too_slow(now, self.patience);
        if is_too_slow || self.looked.elapsed() >= LOOK {
            self.looked = now;
            if is_too_slow || self.is_stopped() {
                self.link.tear();
                return Err(LinkError::Deaf);
            }
        }
        Ok(false)
    }

    /// Asks it now and then whether it is there. The answer to any ping will do.
    fn ping(&mut self, patience: Duration) {
        if self.pinged.is_some() || self.answered.elapsed() < patience / 4 || self.link.is_torn() {
            return;
        }
        let frame = link::json(&Word::Ping(0));
        let mut slice = [IoSlice::new(&frame)];
        let mut parts = &mut slice[..];
        match self.link.write(&mut parts) {
            Ok(true) => {}
            Ok(false) if self.link.is_torn() => finish(self, &mut parts, FAREWELL),
            // It has so much to read that it will not come to this soon: what counts is that it
            // reads.
            _ => return,
        }
        self.pinged = Some(Instant::now());
    }

    fn is_stopped(&self) -> bool {
        let Ok(pid) = libc::pid_t::try_from(self.child.id()) else { return false };
        let mut status = 0;
        // SAFETY: the process is a child of this one that nobody has waited for. The end of a
        // process is left to be found by `try_wait`.
        unsafe {
            let mut found = std::mem::zeroed::<libc::siginfo_t>();
            let options = libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT;
            if libc::waitid(libc::P_PID, pid as libc::id_t, &raw mut found, options) == 0 {
                status = found.si_pid();
            }
        }
        status == pid
    }

    /// Kills it and waits for its end, which a kill brings at once.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn stop(mut self) {
        let frame = link::json(&Word::Stop);
        let mut slice = [IoSlice::new(&frame)];
        let told = !self.link.is_torn() && matches!(self.link.write(&mut &mut slice[..]), Ok(true));
        let deadline = Instant::now() + FAREWELL;
        while told && Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(None) => pause(),
                _ => break,
            }
        }
        self.end();
    }
}

/// The rest of a small frame, whose beginning the socket has taken.
fn finish(running: &mut Running, parts: &mut &mut [IoSlice<'_>], time: Duration) {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        match running.link.write(parts) {
            Ok(false) => pause(),
            _ => return,
        }
    }
}

fn pause() {
    std::thread::sleep(Duration::from_millis(1));
}

/// The server has ended; the worker will notice, start another, and decode again.
fn gone(error: &LinkError) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
        format!("pg_tide's server is gone: {error}")
    );
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("it was ended by signal {signal}"),
        (_, Some(code)) => format!("it ended with status {code}"),
        _ => "it ended".to_owned(),
    }
}

/// The executable beside the library. Its name has the version, so that an upgrade of the package
/// never takes it from under a worker that runs.
fn program() -> io::Result<std::path::PathBuf> {
    // SAFETY: set when this process started, and ends with a zero byte.
    let folder = unsafe { CStr::from_ptr((&raw const pg_sys::pkglib_path).cast()) };
    let folder = folder.to_str().map_err(io::Error::other)?;
    let name = concat!("tide-server-", env!("CARGO_PKG_VERSION"));
    Ok(std::path::Path::new(folder).join(name))
}

/// A copy of the pipe that ends with the postmaster.
fn death_watch() -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open in every process of the server's; the copy is ours alone.
    unsafe {
        let watch = pg_sys::postmaster_alive_fds[pg_sys::POSTMASTER_FD_WATCH as usize];
        let copy = libc::fcntl(watch, libc::F_DUPFD_CLOEXEC, 0);
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(copy))
    }
}

/// Some of Postgres's own files are not closed when another program is started, before 16.
fn close_on_exec() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Ok(fd) = entry?.file_name().to_string_lossy().parse::<RawFd>() else { continue };
        if fd > 2 {
            // SAFETY: changes a flag of a descriptor of this process; one that is not open any
            // more is an error that does not matter.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}
