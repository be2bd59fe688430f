//! Which roles clients may use.

use pgrx::pg_sys;
use tide_feed::catalog::RoleStatus;

use crate::encoding;
use crate::guc;
use crate::helper::transaction::Refusal;

/// The powerless role whose session the executors have; a role granted to it can be used.
pub(crate) const AUTHENTICATOR: &std::ffi::CStr = c"tide_authenticator";

/// What is to be said of `role`, and its oid if it can be used or is only too powerful. Needs a
/// transaction.
pub(crate) fn look_up(role: &str) -> (RoleStatus, pg_sys::Oid) {
    let refused = (RoleStatus::Refused, pg_sys::InvalidOid);
    if role.contains('\0') {
        return refused;
    }
    let name = encoding::server_string(role);
    // SAFETY: catalogue look-ups in a transaction, with strings that outlive them.
    unsafe {
        let authenticator = pg_sys::get_role_oid(AUTHENTICATOR.as_ptr(), true);
        let oid = pg_sys::get_role_oid(name.as_ptr(), true);
        if authenticator == pg_sys::InvalidOid
            || oid == pg_sys::InvalidOid
            || oid == authenticator
            || !pg_sys::is_member_of_role_nosuper(authenticator, oid)
        {
            return refused;
        }
        // has_bypassrls_privilege is also true of superusers.
        if pg_sys::has_bypassrls_privilege(oid) || is_replication(oid) {
            return (RoleStatus::Privileged, oid);
        }
        (RoleStatus::Usable, oid)
    }
}

/// The oid of a role that a client's question may be answered as.
pub(crate) fn usable(role: &str) -> Result<pg_sys::Oid, Refusal> {
    match look_up(role) {
        (RoleStatus::Usable, oid) => Ok(oid),
        (RoleStatus::Privileged, oid) if guc::allow_privileged_roles() => Ok(oid),
        _ => Err(Refusal::new(
            pgrx::PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "the role cannot be used",
        )),
    }
}

fn is_replication(oid: pg_sys::Oid) -> bool {
    // SAFETY: a catalogue look-up in a transaction. (It says yes for superusers, too.)
    unsafe { pg_sys::has_rolreplication(oid) }
}
