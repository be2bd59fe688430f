//! Where decoding is, in a page of memory that outlives the process: a crash of the worker is one of
//! the whole cluster, and what is decoded after it is the same WAL again. So that no record can be a
//! loop of crashes, a place where two have happened is not decoded a third time.
//!
//! The page is a file in the data directory, mapped. While a record is decoded the page says so,
//! and not while the worker is idle, waits, has met an error or is told to quit because another
//! process crashed: found set by the next worker, it means that this one crashed right there.
//! A loss of power or of all processes in the middle of decoding looks the same, and counts as one
//! crash; it does not happen twice in a row at the same change of the same record.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::event::Lsn;

use crate::guc;

/// Bytes of the file.
const SIZE: usize = 4096;
/// Its first bytes, with the layout's number.
const MARK: u64 = u64::from_be_bytes(*b"tidecr\0\x01");
/// Which release of this library crashed: another may do better.
const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// Crashes at the same place after which it is not tried again.
const CRASHES: u32 = 2;
/// The same within one record, wherever: memory that runs out does not do so at the same change.
const CRASHES_OF_RECORD: u32 = 8;
/// Places that are remembered; more than a record can have before it is given up.
const PLACES: usize = 16;

/// What the file looks like. All zero: nothing is known.
#[derive(Debug)]
#[repr(C)]
struct Page {
    mark: AtomicU64,
    /// What the rest is about: the release of this library, the cluster, the slot.
    release: AtomicU64,
    system: AtomicU64,
    generation: AtomicU32,
    /// Not 0: the change at `here` is being decoded.
    busy: AtomicU32,
    here: Place,
    /// How many of `crashed` are in use.
    noted: AtomicU32,
    /// Not 0: a superuser wants everything up to here, at least, to be given up.
    skip: AtomicU64,
    crashed: [Place; PLACES],
}

/// A record, or a change of the transaction that it commits.
#[derive(Debug)]
#[repr(C)]
struct Place {
    /// Where the record begins and ends.
    lsn: AtomicU64,
    end: AtomicU64,
    /// The count of the transaction's changes up to this one; 0: before the first.
    change: AtomicU32,
    crashes: AtomicU32,
}

const _: () = assert!(size_of::<Page>() <= SIZE);

/// For a worker whose file cannot be had, and for processes that decode nothing.
static NOWHERE: Page = Page::new();
/// The page of this process. Where signal handlers find it.
static PAGE: AtomicPtr<Page> = AtomicPtr::new((&raw const NOWHERE).cast_mut());

fn page() -> &'static Page {
    // SAFETY: a static, or mapped for as long as the process lives; all of it is atomic.
    unsafe { &*PAGE.load(Ordering::Relaxed) }
}

/// The page's file, relative to the data directory.
fn path(database: pg_sys::Oid) -> PathBuf {
    guc::own_file(database, "crash")
}

/// From now on this process says in the database's page where it is. Once, before it decodes.
pub(crate) fn open(database: pg_sys::Oid) {
    // The server's umask makes of it what its other files have.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path(database));
    match file.and_then(|file| map(&file)) {
        Ok(page) => PAGE.store(page, Ordering::Relaxed),
        Err(error) => {
            let path = path(database);
            warning!(
                "pg_tide: could not open \"{}\", so that crashes are not counted: {error}",
                path.display()
            );
        }
    }
}

/// Removes the database's page: its worker is gone for good.
pub(crate) fn remove(database: pg_sys::Oid) {
    let _ = std::fs::remove_file(path(database));
}

/// A record is about to be decoded.
pub(crate) fn enter(lsn: Lsn, end: Lsn) {
    let Page { here, busy, .. } = page();
    here.lsn.store(lsn.0, Ordering::Relaxed);
    here.end.store(end.0, Ordering::Relaxed);
    here.change.store(0, Ordering::Relaxed);
    busy.store(1, Ordering::Release);
}

/// This many changes of the transaction have begun to be decoded.
pub(crate) fn at_change(change: u32) {
    page().here.change.store(change, Ordering::Release);
}

/// The record has been decoded: crashes that happened up to it are overcome.
pub(crate) fn leave(lsn: Lsn) {
    let page = page();
    page.busy.store(0, Ordering::Release);
    if page.noted.load(Ordering::Relaxed) > 0 {
        page.overcome(lsn);
    }
}

/// Nothing is being decoded (any more). For signal handlers, too.
pub(crate) fn idle() {
    page().busy.store(0, Ordering::Release);
}

/// Nothing is being decoded until [`resume`], which is to be given what this says.
pub(crate) fn pause() -> bool {
    let busy = &page().busy;
    let was_busy = busy.load(Ordering::Relaxed) != 0;
    if was_busy {
        busy.store(0, Ordering::Release);
    }
    was_busy
}

pub(crate) fn resume(was_busy: bool) {
    if was_busy {
        page().busy.store(1, Ordering::Release);
    }
}

/// Before the slot of this generation is decoded: takes down the crash of the process before, if it
/// was one. An error says why decoding is not to be tried, and how to go on.
pub(crate) fn admit(generation: u32) -> Result<(), String> {
    let page = page();
    if !page.is_about(generation) {
        page.begin(generation);
        page.flush();
    } else if page.busy.swap(0, Ordering::AcqRel) != 0 {
        page.note();
        page.flush();
        warning!("pg_tide: the server crashed while the WAL was decoded {}", page.here.describe());
    }
    page.verdict()
}

/// Whether a superuser wants the past to be given up.
pub(crate) fn is_skip_wanted() -> bool {
    page().skip.load(Ordering::Acquire) != 0
}

/// The past has been given up: nothing in it matters any more.
pub(crate) fn skipped() {
    let page = page();
    page.forget();
    page.flush();
}

/// What `tide.skip_to` was asked for cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SkipError {
    #[error("there is nothing to skip: decoding has not crashed the server")]
    NoCrash,
    #[error("{wanted} is not after the record at {lsn}, which decoding crashed the server over")]
    TooEarly { wanted: Lsn, lsn: Lsn, end: Lsn },
    #[error("could not use the file that says where decoding crashed: {0}")]
    Io(#[from] io::Error),
}

/// The page could not be read or written (SIGBUS): the file was cut off, or a file system that
/// writes to a new place each time has none. From now on the page is memory of this process alone,
/// and its crashes are not counted. False: `address` is not in the page. For a signal handler.
pub(crate) fn bear(address: *const c_void) -> bool {
    let page = PAGE.load(Ordering::Relaxed);
    let offset = (address as usize).wrapping_sub(page as usize);
    if std::ptr::eq(page, &raw const NOWHERE) || offset >= SIZE {
        return false;
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: takes the place of the mapping that was made for the page, whose content is all zero
    // then, as it is when nothing is known.
    let mapped = unsafe { libc::mmap(page.cast(), SIZE, protection, flags, -1, 0) };
    mapped != libc::MAP_FAILED
}

/// Has the worker of this database, or the next one, give up everything that the slot holds, if that
/// is over the crashes before `wanted`. By way of the file, which outlives the crashes.
pub(crate) fn ask_skip(database: pg_sys::Oid, wanted: Lsn) -> Result<(), SkipError> {
    let file = match OpenOptions::new().read(true).write(true).open(path(database)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(SkipError::NoCrash),
        file => file?,
    };
    let mapped = map(&file)?;
    // SAFETY: mapped until the end of this function; all of it is atomic.
    let page = unsafe { &*mapped };
    let outcome = page.ask_skip(wanted);
    // SAFETY: `page` is not used any more.
    unsafe { libc::munmap(mapped.cast(), SIZE) };
    outcome
}

fn map(file: &File) -> io::Result<*mut Page> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of an open file that has room on the disk for all of it: that writing
    // to it fails nevertheless is for `bear` to see to. Page-aligned, and any bytes are a valid page.
    unsafe {
        match libc::posix_fallocate(file.as_raw_fd(), 0, SIZE as libc::off_t) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        let mapped =
            libc::mmap(null_mut(), SIZE, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(mapped.cast())
    }
}

/// The release as a number: its first eight bytes.
fn release() -> u64 {
    let bytes = RELEASE.bytes().take(8);
    bytes.fold(0, |number, byte| number << 8 | u64::from(byte))
}

fn system() -> u64 {
    // SAFETY: reads shared memory, set when the server started.
    unsafe { pg_sys::GetSystemIdentifier() }
}

impl Page {
    const fn new() -> Page {
        Page {
            mark: AtomicU64::new(0),
            release: AtomicU64::new(0),
            system: AtomicU64::new(0),
            generation: AtomicU32::new(0),
            busy: AtomicU32::new(0),
            here: Place::new(),
            noted: AtomicU32::new(0),
            skip: AtomicU64::new(0),
            crashed: [const { Place::new() }; PLACES],
        }
    }

    /// A base backup, an upgrade or a new slot has other WAL.
    fn is_about(&self, generation: u32) -> bool {
        self.is_ours() && self.generation.load(Ordering::Relaxed) == generation
    }

    fn is_ours(&self) -> bool {
        self.mark.load(Ordering::Relaxed) == MARK
            && self.release.load(Ordering::Relaxed) == release()
            && self.system.load(Ordering::Relaxed) == system()
    }

    fn begin(&self, generation: u32) {
        self.forget();
        self.mark.store(MARK, Ordering::Relaxed);
        self.release.store(release(), Ordering::Relaxed);
        self.system.store(system(), Ordering::Relaxed);
        self.generation.store(generation, Ordering::Relaxed);
    }

    fn forget(&self) {
        self.busy.store(0, Ordering::Relaxed);
        self.noted.store(0, Ordering::Relaxed);
        self.skip.store(0, Ordering::Relaxed);
    }

    /// Onto the disk, as far as it can be: a page from before would blame a place that is long past.
    fn flush(&self) {
        if !std::ptr::eq(self, &raw const NOWHERE) {
            // SAFETY: mapped by `map`.
            unsafe { libc::msync((&raw const *self).cast_mut().cast(), SIZE, libc::MS_SYNC) };
        }
    }

    fn noted(&self) -> &[Place] {
        let noted = (self.noted.load(Ordering::Acquire) as usize).min(PLACES);
        self.crashed.get(..noted).unwrap_or_default()
    }

    /// A crash has happened here.
    fn note(&self) {
        if let Some(place) = self.noted().iter().find(|place| place.is_at(&self.here)) {
            place.crashes.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // The last one is given up if there are too many, which takes many crashes of few records.
        let index = self.noted().len().min(PLACES - 1);
        if let Some(place) = self.crashed.get(index) {
            place.copy(&self.here);
            place.crashes.store(1, Ordering::Relaxed);
            self.noted.store(index as u32 + 1, Ordering::Release);
        }
    }

    /// Everything up to this record has been decoded.
    #[cold]
    fn overcome(&self, lsn: Lsn) {
        let mut left = 0;
        for place in self.noted() {
            if place.lsn.load(Ordering::Relaxed) > lsn.0
                && let Some(target) = self.crashed.get(left)
            {
                let crashes = place.crashes.load(Ordering::Relaxed);
                target.copy(place);
                target.crashes.store(crashes, Ordering::Relaxed);
                left += 1;
            }
        }
        self.noted.store(left as u32, Ordering::Release);
    }

    fn verdict(&self) -> Result<(), String> {
        for place in self.noted() {
            let lsn = place.lsn.load(Ordering::Relaxed);
            let here = place.crashes.load(Ordering::Relaxed);
            let same = self.noted().iter().filter(|p| p.lsn.load(Ordering::Relaxed) == lsn);
            let in_record: u32 = same.map(|p| p.crashes.load(Ordering::Relaxed)).sum();
            if here >= CRASHES || in_record >= CRASHES_OF_RECORD {
                let times =
                    if here == 2 { "twice".to_owned() } else { format!("{in_record} times") };
                let end = Lsn(place.end.load(Ordering::Relaxed));
                return Err(format!(
                    "decoding crashed the server {times} {}. To give up everything that has not been \
                     decoded and go on from now: select tide.skip_to('{end}')",
                    place.describe()
                ));
            }
        }
        Ok(())
    }

    fn ask_skip(&self, wanted: Lsn) -> Result<(), SkipError> {
        let places = if self.is_ours() { self.noted() } else { &[] };
        let last = places.iter().max_by_key(|place| place.lsn.load(Ordering::Relaxed));
        let last = last.ok_or(SkipError::NoCrash)?;
        let lsn = Lsn(last.lsn.load(Ordering::Relaxed));
        if wanted <= lsn {
            let end = Lsn(last.end.load(Ordering::Relaxed));
            return Err(SkipError::TooEarly { wanted, lsn, end });
        }
        self.skip.store(wanted.0, Ordering::Release);
        self.flush();
        Ok(())
    }
}

impl Place {
    const fn new() -> Place {
        Place {
            lsn: AtomicU64::new(0),
            end: AtomicU64::new(0),
            change: AtomicU32::new(0),
            crashes: AtomicU32::new(0),
        }
    }

    fn is_at(&self, other: &Place) -> bool {
        self.lsn.load(Ordering::Relaxed) == other.lsn.load(Ordering::Relaxed)
            && self.change.load(Ordering::Relaxed) == other.change.load(Ordering::Relaxed)
    }

    fn copy(&self, other: &Place) {
        self.lsn.store(other.lsn.load(Ordering::Relaxed), Ordering::Relaxed);
        self.end.store(other.end.load(Ordering::Relaxed), Ordering::Relaxed);
        self.change.store(other.change.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn describe(&self) -> String {
        let lsn = Lsn(self.lsn.load(Ordering::Relaxed));
        match self.change.load(Ordering::Relaxed) {
            0 => format!("at {lsn}"),
            change => format!("at {lsn}, change {change} of the transaction that commits there"),
        }
    }
}
