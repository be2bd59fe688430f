//! What the catalogue's invalidations made stale, collected until the decoder, or the catalog
//! worker, looks.
//!
//! The callbacks run in the midst of catalogue look-ups, so they only take notes. They hear of
//! the changes of decoded transactions, in order, and of those of other sessions as they commit.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys;
use pgrx::pg_sys::SysCacheIdentifier as Cache;
use pgrx::prelude::*;

/// More stale tables than this are all tables.
const MOST_RELATIONS: usize = 1024;

thread_local! {
    static STALE: RefCell<Stale> = RefCell::default();
    static ANY: Cell<bool> = const { Cell::new(false) };
}

/// Notes since the last [`take`].
#[derive(Debug, Default)]
pub(crate) struct Stale {
    pub(crate) relations: Vec<u32>,
    /// Hashes of stale rows of `pg_type`.
    pub(crate) types: Vec<u32>,
    /// Every table, or a publication, or a schema, so that any table may be meant.
    pub(crate) all_relations: bool,
    /// Roles, memberships, schemas or functions: what a role may see has to be asked again.
    pub(crate) entitlements: bool,
}

/// Registers the callbacks; once per process.
pub(crate) fn listen() {
    thread_local! { static LISTENING: Cell<bool> = const { Cell::new(false) }; }
    if LISTENING.replace(true) {
        return;
    }
    let none = pg_sys::Datum::null();
    // SAFETY: the callbacks live as long as the process.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(on_relation), none);
        let register = |cache: Cache::Type, callback| {
            let cache = i32::try_from(cache).unwrap_or(0);
            pg_sys::CacheRegisterSyscacheCallback(cache, Some(callback), none);
        };
        register(Cache::TYPEOID, on_type);
        register(Cache::ENUMOID, on_label);
        register(Cache::PUBLICATIONOID, on_publication);
        register(Cache::PUBLICATIONRELMAP, on_publication);
        register(Cache::PUBLICATIONNAMESPACEMAP, on_publication);
        register(Cache::NAMESPACEOID, on_schema);
        register(Cache::AUTHOID, on_entitlement);
        register(Cache::AUTHMEMROLEMEM, on_entitlement);
        register(Cache::AUTHMEMMEMROLE, on_entitlement);
        register(Cache::PROCOID, on_entitlement);
    }
}

/// The notes since the last call; `None`, quickly, if there are none.
pub(crate) fn take() -> Option<Stale> {
    if !ANY.replace(false) {
        return None;
    }
    Some(STALE.with_borrow_mut(std::mem::take))
}

fn note(write: impl FnOnce(&mut Stale)) {
    ANY.set(true);
    STALE.with_borrow_mut(write);
}

#[pg_guard]
unsafe extern "C-unwind" fn on_relation(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    note(|stale| {
        let relation = relation.to_u32();
        if relation == 0 || stale.relations.len() >= MOST_RELATIONS {
            stale.all_relations = true;
            stale.relations.clear();
        } else if !stale.all_relations && !stale.relations.contains(&relation) {
            stale.relations.push(relation);
        }
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_type(_arg: pg_sys::Datum, _cache: i32, hash: u32) {
    note(|stale| {
        if hash == 0 || stale.types.len() >= MOST_RELATIONS {
            stale.all_relations = true;
            stale.types.clear();
        } else if !stale.all_relations && !stale.types.contains(&hash) {
            stale.types.push(hash);
        }
    });
}

/// A label was added or renamed; of which type is not said.
#[pg_guard]
unsafe extern "C-unwind" fn on_label(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    note(|stale| {
        stale.all_relations = true;
        stale.entitlements = true;
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_publication(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    note(|stale| stale.all_relations = true);
}

#[pg_guard]
unsafe extern "C-unwind" fn on_schema(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    note(|stale| {
        stale.all_relations = true;
        stale.entitlements = true;
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn on_entitlement(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    note(|stale| stale.entitlements = true);
}
