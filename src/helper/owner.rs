//! Work on a table in its owner's name.
//!
//! The table may have triggers, rules, checks and indexes with functions in them. pg_tide's own statements
//! run with triggers and rules off (`session_replication_role`), so that nothing of the owner's runs that
//! need not. What runs all the same has no more power than the owner has in a session of his own: it is
//! security-restricted, and for it, whatever it does to whichever table, triggers and foreign keys are on.

use std::cell::RefCell;
use std::ffi::{CStr, c_int};
use std::sync::Once;

use pgrx::pg_sys;

/// Runs `work` as the owner of a table that pg_tide works on. In a transaction.
pub(crate) fn as_owner<R>(owner: u32, work: impl FnOnce() -> R) -> R {
    watch_functions();
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: in a transaction; its end takes everything back where an error keeps this from it.
    let nest = unsafe {
        let nest = pg_sys::NewGUCNestLevel();
        set_local(c"session_replication_role", c"replica");
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let restricted =
            pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE;
        pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(owner), context | restricted as i32);
        nest
    };
    let result = work();
    // SAFETY: as above.
    unsafe {
        pg_sys::SetUserIdAndSecContext(user, context);
        pg_sys::AtEOXact_GUC(false, nest);
    }
    result
}

/// As SET LOCAL does, whatever the current user may.
pub(crate) fn set_local(name: &CStr, value: &CStr) {
    // SAFETY: in a transaction, with strings that outlive the call.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

thread_local! {
    /// The replication role outside of each function that is being called.
    static OUTSIDE: RefCell<Vec<c_int>> = const { RefCell::new(Vec::new()) };
}

/// From now on, in this process, Postgres tells of each call of a function that is not its own.
fn watch_functions() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: main thread of a helper. The hooks that were there before are called by ours.
        unsafe {
            PREVIOUS_NEEDS = pg_sys::needs_fmgr_hook;
            PREVIOUS = pg_sys::fmgr_hook;
            pg_sys::needs_fmgr_hook = Some(is_somebodys);
            pg_sys::fmgr_hook = Some(called);
        }
    });
}

static mut PREVIOUS_NEEDS: pg_sys::needs_fmgr_hook_type = None;
static mut PREVIOUS: pg_sys::fmgr_hook_type = None;

// The two hooks are plain frames: errors pass through them.

unsafe extern "C-unwind" fn is_somebodys(function: pg_sys::Oid) -> bool {
    // SAFETY: main thread; the hook that was there before, called with what we were called with.
    let others = unsafe { PREVIOUS_NEEDS.is_some_and(|needs| needs(function)) };
    function.to_u32() >= pg_sys::FirstNormalObjectId || others
}

unsafe extern "C-unwind" fn called(
    event: pg_sys::FmgrHookEventType::Type,
    function: *mut pg_sys::FmgrInfo,
    argument: *mut pg_sys::Datum,
) {
    // SAFETY: a variable of this process. The setting itself is not touched, which takes the variable back
    // where an error ends the transaction. The hook that was there before is called with the same.
    unsafe {
        if let Some(previous) = PREVIOUS {
            previous(event, function, argument);
        }
        if event == pg_sys::FmgrHookEventType::FHET_START {
            OUTSIDE.with_borrow_mut(|outside| outside.push(pg_sys::SessionReplicationRole));
            pg_sys::SessionReplicationRole = pg_sys::SESSION_REPLICATION_ROLE_ORIGIN as c_int;
        } else if let Some(role) = OUTSIDE.with_borrow_mut(Vec::pop) {
            pg_sys::SessionReplicationRole = role;
        }
    }
}
