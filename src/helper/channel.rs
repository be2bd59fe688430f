//! What the policies of `tide.channel` say: evaluated by Postgres itself, on rows that are never
//! stored, as the client's role and with its claims.

use pgrx::pg_sys;
use tide_feed::catalog::{Grant, Rows, is_transient};

use crate::encoding;
use crate::helper::answer::encode;
use crate::helper::asked_rows::AskedRows;
use crate::helper::executor::as_role;
use crate::helper::log;
use crate::helper::policy::with_claims;
use crate::helper::row_security::{self, Command};
use crate::helper::session::set;
use crate::helper::transaction::Refusal;

/// The numbers of `topic` and `extension` in `tide.channel`, and their type.
const COLUMNS: [i16; 2] = [1, 2];
const FORM: u64 = pg_sys::TEXTOID.to_u32() as u64;

/// What the role may do with each of the extensions of the topic. A policy that fails grants nothing;
/// why is for the log, since it may say more than the client is to know. What says nothing about the
/// policies is no answer.
pub(crate) fn grants(
    role: &str,
    claims: &str,
    topic: &str,
    extensions: &[String],
) -> Result<String, Refusal> {
    let mut grants = vec![Grant::default(); extensions.len()];
    let asked = as_role(role, || {
        let table = table()?;
        let lines = extensions.iter().map(|extension| encode(&[topic, extension]));
        let texts = lines.collect::<Result<String, Refusal>>()?;
        let rows = AskedRows::read(
            table,
            &Rows { columns: COLUMNS.into(), forms: [FORM; 2].into(), texts },
        )?;
        with_claims(claims, || {
            set(c"request.topic", &encoding::server_string(topic));
            for (grant, admitted) in grants.iter_mut().zip(admits(&rows, Command::Select)?) {
                grant.read = admitted;
            }
            for (grant, admitted) in grants.iter_mut().zip(admits(&rows, Command::Insert)?) {
                grant.write = admitted;
            }
            Ok(())
        })
    });
    if let Err(refusal) = asked {
        if is_transient(&refusal.sqlstate) {
            return Err(refusal);
        }
        log::say(&format!(
            "a policy of tide.channel failed for role \"{role}\": {}",
            refusal.for_log()
        ));
    }
    encode(&grants)
}

/// The oid of `tide.channel`.
fn table() -> Result<u32, Refusal> {
    // SAFETY: catalogue look-ups in a transaction.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(c"tide".as_ptr(), true);
        pg_sys::get_relname_relid(c"channel".as_ptr(), schema)
    };
    match oid {
        pg_sys::InvalidOid => Err(Refusal::internal("there is no tide.channel")),
        oid => Ok(oid.to_u32()),
    }
}

/// Which of the rows that `tide.channel` might have the current role might select from it, or insert.
fn admits(rows: &AskedRows, command: Command) -> Result<Vec<bool>, Refusal> {
    let privilege = match command {
        Command::Select => pg_sys::ACL_SELECT,
        Command::Insert => pg_sys::ACL_INSERT,
    };
    // SAFETY: a catalogue look-up in a transaction.
    let has_privilege = unsafe {
        let (table, user) = ((*rows.table).rd_id, pg_sys::GetUserId());
        pg_sys::pg_class_aclcheck(table, user, privilege as pg_sys::AclMode)
            == pg_sys::AclResult::ACLCHECK_OK
    };
    if has_privilege {
        return row_security::admitted(rows, command);
    }
    Ok(vec![false; rows.count])
}
