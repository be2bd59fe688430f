//! The replication slot: its name, finding it, creating it, dropping it.
//!
//! `<prefix>_<generation>`: the generation is random, so that a slot that was made again is told
//! from the one before; it is the first half of the [`Epoch`](tide_feed::event::Epoch).

use std::ffi::{CStr, CString};
use std::ptr::null_mut;

use pgrx::pg_sys;
use tide_feed::event::Lsn;

use crate::compat;
use crate::source::{crash_page, decoder};

/// The output plugin's name: this library's.
pub(crate) const PLUGIN: &CStr = c"pg_tide";

/// Bytes of a slot's name.
const LONGEST: usize = pg_sys::NAMEDATALEN as usize - 1;
/// `_` and eight digits.
const SUFFIX: usize = 9;

/// `tide.slot_name` cannot be the beginning of a slot's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "tide.slot_name \"{0}\" cannot begin the name of a slot: it may have up to 54 letters a-z, digits and underscores"
)]
pub(crate) struct BadPrefix(String);

/// The part of the name that all generations share.
#[derive(Clone, Debug)]
pub(crate) struct Prefix(String);

/// A slot of this database and this prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) name: CString,
    pub(crate) generation: u32,
    /// Its WAL is gone: it can only be dropped.
    pub(crate) lost: bool,
    /// Everything before has been told.
    confirmed: Lsn,
}

impl Slot {
    /// Bytes of WAL that have not been told.
    pub(crate) fn untold(&self) -> u64 {
        // SAFETY: reads a number from shared memory.
        let end = unsafe { pg_sys::GetXLogInsertRecPtr() };
        if self.confirmed == Lsn(0) { 0 } else { end.saturating_sub(self.confirmed.0) }
    }
}

impl Prefix {
    /// The configured one, or `tide_<oid>` of this database.
    pub(crate) fn new(configured: &str) -> Result<Prefix, BadPrefix> {
        if configured.is_empty() {
            // SAFETY: a plain variable of this process.
            let database = unsafe { pg_sys::MyDatabaseId };
            return Ok(Prefix(format!("tide_{}", database.to_u32())));
        }
        let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if configured.len() + SUFFIX > LONGEST || !configured.bytes().all(legal) {
            return Err(BadPrefix(configured.to_owned()));
        }
        Ok(Prefix(configured.to_owned()))
    }

    /// The generation of the slot of this name, if it is one of this prefix.
    fn generation(&self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(self.0.as_str())?.strip_prefix('_')?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != SUFFIX - 1 || !digits.bytes().all(is_hex) {
            return None;
        }
        u32::from_str_radix(digits, 16).ok()
    }

    /// A slot of a new, random generation; nothing exists yet.
    fn next(&self) -> Option<Slot> {
        let mut generation = [0_u8; 4];
        // SAFETY: the buffer is as long as said.
        let is_random = unsafe { pg_sys::pg_strong_random(generation.as_mut_ptr().cast(), 4) };
        let generation = u32::from_ne_bytes(generation);
        let name = CString::new(format!("{}_{generation:08x}", self.0)).ok()?;
        is_random.then_some(Slot { name, generation, lost: false, confirmed: Lsn(0) })
    }
}

/// All persistent slots of this database and prefix that are ours, the usable ones first.
pub(crate) fn find(prefix: &Prefix) -> Vec<Slot> {
    // SAFETY: a plain variable of this process.
    let mut slots = scan(unsafe { pg_sys::MyDatabaseId }, |slot| {
        let data = &slot.data;
        if data.persistency != pg_sys::ReplicationSlotPersistency::RS_PERSISTENT {
            return None;
        }
        let name = name(&data.name);
        let generation = prefix.generation(name.to_str().ok()?)?;
        let (lost, confirmed) = (compat::is_invalidated(data), Lsn(data.confirmed_flush));
        Some(Slot { name: name.to_owned(), generation, lost, confirmed })
    });
    slots.sort_by_key(|slot| slot.lost);
    slots
}

/// Those slots of this database that are ours and nobody uses, but of another prefix: `tide.slot_name` was
/// another once.
pub(crate) fn of_other_names(prefix: &Prefix) -> Vec<CString> {
    // SAFETY: a plain variable of this process.
    scan(unsafe { pg_sys::MyDatabaseId }, |slot| {
        let name = name(&slot.data.name);
        let is_other = name.to_str().is_ok_and(|name| prefix.generation(name).is_none());
        (is_other && slot.active_pid == 0).then(|| name.to_owned())
    })
}

/// What is to be known of the slots of a database that have our plugin.
fn scan<T>(database: pg_sys::Oid, pick: impl Fn(&pg_sys::ReplicationSlot) -> Option<T>) -> Vec<T> {
    // SAFETY: the control lock keeps slots from coming and going; there are as many places, if there are
    // any. What is read of a slot in use does not change, but for the invalidation and who uses it, which
    // are one word each. Nothing below can fail while the lock is held (an allocation failure ends the
    // process).
    unsafe {
        let lock = compat::replication_slot_control_lock();
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
        let count = usize::try_from(pg_sys::max_replication_slots).unwrap_or(0);
        let picked = (0..count)
            .map(|index| &*(*pg_sys::ReplicationSlotCtl).replication_slots.as_ptr().add(index))
            .filter(|slot| slot.in_use && slot.data.database == database)
            .filter(|slot| name(&slot.data.plugin) == PLUGIN)
            .filter_map(pick)
            .collect();
        pg_sys::LWLockRelease(lock);
        picked
    }
}

fn name(name: &pg_sys::NameData) -> &CStr {
    // SAFETY: a name always ends with a zero byte.
    unsafe { CStr::from_ptr(name.data.as_ptr()) }
}

/// Creates the slot of a new generation. Waits for the transactions that are running, however
/// long they run: interruptible. If the process dies meanwhile, the slot goes with it.
pub(crate) fn create(prefix: &Prefix) -> Option<Slot> {
    let slot = prefix.next()?;
    // SAFETY: a transaction of our own, no slot held; an error aborts it, and the caller releases
    // the slot, which drops it as long as it is not persistent.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::CheckLogicalDecodingRequirements();
        compat::create_slot(&slot.name);
        let mut routine = decoder::waiting_routine();
        let context = pg_sys::CreateInitDecodingContext(
            PLUGIN.as_ptr(),
            null_mut(),
            false,
            0,
            &raw mut routine,
            None,
            None,
            None,
        );
        pg_sys::DecodingContextFindStartpoint(context);
        pg_sys::FreeDecodingContext(context);
        pg_sys::ReplicationSlotPersist();
        pg_sys::ReplicationSlotRelease();
        pg_sys::CommitTransactionCommand();
    }
    Some(slot)
}

/// Drops a slot that no process holds.
pub(crate) fn drop(name: &CStr) {
    // SAFETY: holding no slot.
    unsafe { pg_sys::ReplicationSlotDrop(name.as_ptr(), true) }
}

/// Drops pg_tide's slots of a database that nobody uses, for when no worker is there to do it any
/// more. A slot left behind would hold back WAL for ever. What is known of crashes over what they
/// hold goes with them.
pub(crate) fn drop_orphaned(database: pg_sys::Oid) {
    drop_unused(database, |_| true);
    crash_page::remove(database);
}

/// Drops those of them that hold back more than this many bytes of WAL, which nobody else would do.
pub(crate) fn drop_beyond(database: pg_sys::Oid, limit: u64) {
    // SAFETY: reads a number from shared memory.
    let end = unsafe { pg_sys::GetXLogInsertRecPtr() };
    drop_unused(database, |slot| {
        let confirmed = slot.data.confirmed_flush;
        confirmed != 0 && end.saturating_sub(confirmed) > limit
    });
}

/// Whether the database has slots of pg_tide's.
pub(crate) fn has_any(database: pg_sys::Oid) -> bool {
    !scan(database, |_| Some(())).is_empty()
}

fn drop_unused(database: pg_sys::Oid, is_meant: impl Fn(&pg_sys::ReplicationSlot) -> bool) {
    let is_meant = |slot: &pg_sys::ReplicationSlot| slot.active_pid == 0 && is_meant(slot);
    for name in scan(database, |slot| is_meant(slot).then(|| name(&slot.data.name).to_owned())) {
        pgrx::log!("pg_tide: dropping replication slot \"{}\"", name.to_string_lossy());
        // SAFETY: this process has no slot of its own; a slot that somebody else has come to use
        // or drop since is an error, after which the launcher is started again.
        unsafe { pg_sys::ReplicationSlotDrop(name.as_ptr(), true) };
    }
}
