//! A client's session, as a writer has it.
//!
//! Clients' code runs in it, and what it does lasts: so it is not security-restricted, as questions are, but
//! has what any session of the role has. The session's user is a member of every role of clients; what is
//! set by `SetUserIdAndSecContext` keeps code from setting another, or resetting this one.

use pgrx::pg_sys;

use crate::encoding;
use crate::helper::policy::set_claims;
use crate::helper::transaction::{Refusal, with_news};
use crate::helper::{role, session};

/// Does the work as the role, with its claims and an ordinary session's settings. What becomes of settings
/// meanwhile is forgotten. In a transaction.
pub(crate) fn as_client<R>(
    role: &str,
    claims: &str,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    let oid = role::usable(role)?;
    let name = encoding::server_string(role);
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: in a transaction, whose end takes everything back where an error keeps this from it.
    let level = unsafe {
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        session::set(c"role", &name);
        let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE;
        pg_sys::SetUserIdAndSecContext(oid, context | local as i32);
        level
    };
    set_claims(claims);
    session::be_ordinary();
    let result = work();
    // SAFETY: as above. The user first: a role cannot be set back in the name of another.
    unsafe {
        pg_sys::SetUserIdAndSecContext(user, context);
        pg_sys::AtEOXact_GUC(false, level);
        pg_sys::SetUserIdAndSecContext(user, context);
    }
    result
}

/// Does work of pg_tide's own, on its own tables, in the name of the extension's owner, under the settings
/// that its queries are written for, and with what has been committed by now. In a transaction.
pub(crate) fn as_extension_owner<R>(
    owner: pg_sys::Oid,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: in a transaction, whose end takes it back where an error keeps this from it.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        let restricted =
            pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE;
        pg_sys::SetUserIdAndSecContext(owner, context | restricted as i32);
    }
    let result = session::pinned(|| with_news(work));
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) };
    result
}
