//! What an executor answers: what clients ask of the database, asked as the clients' own roles.

use pgrx::datum::DatumWithOid;
use pgrx::{PgSqlErrorCode, Spi, pg_sys};
use tide_feed::catalog::Cast;

use crate::encoding;
use crate::guc;
use crate::helper::answer::{self, encode};
use crate::helper::transaction::{Refusal, rolled_back};
use crate::helper::{role, role_settings, session};
use crate::server_text::ServerText;

/// Under whatever `search_path`.
const TO_JSONB: &str = "select pg_catalog.to_jsonb($1)::pg_catalog.text";

/// Bytes that the values of one question may take when they are written out: a hundred of the
/// longest numbers.
const MAX_VALUES: usize = 16 << 20;

/// Parses each text as a value of the type, as a literal in a query would be, and answers what
/// `to_jsonb` makes of it.
pub(crate) fn cast(role: &str, type_sql: &str, values: &[String]) -> Result<String, Refusal> {
    let values = as_role(role, || {
        let input = Input::of(type_sql)?;
        // Dates and such are read as an ordinary session reads them.
        session::be_ordinary();
        let mut room = MAX_VALUES;
        let cast = |value: &String| {
            let json = input.to_jsonb(value)?;
            let left = room.checked_sub(json.len());
            room = left.ok_or_else(|| {
                let code = PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;
                Refusal::new(code, "the filter's values are too large when they are written out")
            })?;
            Ok(json)
        };
        values.iter().map(cast).collect()
    })?;
    encode(&Cast { values })
}

/// Runs `work` as the role, for one transaction that leaves nothing behind: code that belongs to
/// others (a domain's check, say) may run in it, so it is read only, security-restricted (no way
/// back to another role, nothing that outlives the transaction) and limited in time.
///
/// The role is set as SET ROLE does it, as policies may look at `current_setting('role')`. By itself
/// that would let them SET another: the session's user is a member of every role of clients. What is
/// set by `SetUserIdAndSecContext` forbids that, and RESET too.
pub(crate) fn as_role<R>(
    role: &str,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    rolled_back(guc::policy_timeout(), || {
        role_settings::refuse_if_old()?;
        let oid = role::usable(role)?;
        let name = encoding::server_string(role);
        let context = pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE;
        // SAFETY: in a transaction, whose end takes both back.
        unsafe {
            pg_sys::NewGUCNestLevel();
            session::set(c"role", &name);
            pg_sys::SetUserIdAndSecContext(oid, context as i32);
        }
        work()
    })
}

/// The input function of a type.
struct Input {
    type_oid: pg_sys::Oid,
    function: pg_sys::Oid,
    parameter: pg_sys::Oid,
    /// Of `character(n)`: values are stored, and sent, padded to this length.
    padding: Option<usize>,
}

impl Input {
    fn of(type_sql: &str) -> Result<Input, Refusal> {
        let query = "select $1::pg_catalog.regtype::pg_catalog.oid";
        let type_oid = Spi::get_one_with_args::<pg_sys::Oid>(query, &[ServerText(type_sql).into()]);
        let type_oid = type_oid.ok().flatten().ok_or_else(|| Refusal::internal("no such type"))?;
        let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        // SAFETY: a catalogue look-up in a transaction.
        unsafe { pg_sys::getTypeInputInfo(type_oid, &mut function, &mut parameter) };
        let padding = (type_oid == pg_sys::BPCHAROID).then(|| length(type_sql)).flatten();
        Ok(Input { type_oid, function, parameter, padding })
    }

    fn to_jsonb(&self, value: &str) -> Result<String, Refusal> {
        let padded = self.padding.map(|width| format!("{value:<width$}"));
        let text = encoding::server_text(padded.as_deref().unwrap_or(value));
        // SAFETY: the function takes a C string, the parameter and a modifier, and makes a value
        // of `type_oid`, which is what the query is told.
        let datum = unsafe {
            let datum = pg_sys::OidInputFunctionCall(self.function, text, self.parameter, -1);
            DatumWithOid::new(datum, self.type_oid)
        };
        let failed = |_: pgrx::spi::Error| Refusal::internal("the value cannot be written");
        let json = Spi::connect(|client| {
            answer::text(client.select(TO_JSONB, Some(1), &[datum]).map_err(failed)?)
        })?;
        json.ok_or_else(|| Refusal::internal("the value has no JSON form"))
    }
}

/// The 5 of `character(5)`.
fn length(type_sql: &str) -> Option<usize> {
    let (_, rest) = type_sql.split_once('(')?;
    rest.split(')').next()?.parse().ok()
}
