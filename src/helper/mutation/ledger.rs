//! What has been done for clients: so that nothing is done twice, and each client's mutations are done in
//! the order of their numbers.
//!
//! A mutation is entered in the transaction that it is done in, so that there is one if and only if there is
//! the other. Whoever is about to do one of a client's keeps others from doing so until that transaction
//! ends.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use pgrx::datum::DatumWithOid;
use pgrx::{PgSqlErrorCode, Spi, pg_sys};
use serde::Deserialize;
use tide_feed::mutation::{Mutation, Outcome, Status};

use crate::helper::answer::{self, encode, parse};
use crate::helper::plan::Plan;
use crate::helper::transaction::{Refusal, committed};
use crate::server_text::ServerText;

/// The newest number of the client's.
const NEWEST: &str = "
    select coalesce((
        select m.n
        from tide.mutation as m
        where m.role = $1 and m.subject = $2 and m.client_id = $3
        order by m.n desc
        limit 1
    ), 0)::text";

/// What is remembered of one.
const LOOK_UP: &str = "
    select coalesce((
        select json_build_object('digest', encode(m.digest, 'hex'), 'outcome', m.outcome)
        from tide.mutation as m
        where m.role = $1 and m.subject = $2 and m.client_id = $3 and m.n = $4
    )::text, 'null')";

/// Whether the role may write anything at all, so that it is worth remembering what becomes of its attempts.
const MAY_WRITE: &str = "
    select (
        exists (select from pg_class as c
                where c.relkind in ('r', 'p') and c.oid >= 16384 and c.relnamespace <> 'tide'::regnamespace
                  and has_schema_privilege($1::name, c.relnamespace, 'USAGE')
                  and (has_any_column_privilege($1::name, c.oid, 'INSERT, UPDATE')
                       or has_table_privilege($1::name, c.oid, 'DELETE')))
        or exists (select from pg_proc as p
                   join tide.callables as f on f.function = tide_internal.function_identity(p.oid::regprocedure)
                   where has_function_privilege($1::name, p.oid, 'EXECUTE'))
    )::text";

const ENTER: &str = "
    select tide_internal.insert_row(
        'tide.mutation',
        row($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::json, pg_current_xact_id(), now())::tide.mutation
    )::text";

/// The newest of each client stays.
const FORGET: &str = "
    select count(tide_internal.delete_row('tide.mutation', o.ctid))::text
    from (
        select m.ctid, m.role, m.subject, m.client_id, m.n
        from tide.mutation as m
        where m.at < now() - $1 * interval '1 millisecond'
          and exists (select from tide.mutation as newer
                      where newer.role = m.role and newer.subject = m.subject
                        and newer.client_id = m.client_id and newer.n > m.n)
        order by m.at
        limit $2
    ) as o";

/// For one page of what is to be forgotten.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Advisory locks of SQL's have 1 or 2 here: nobody's are in the way of these.
const LOCK_CLASS: u16 = 7;

thread_local! {
    static NEWEST_FOUND: Plan = const { Plan::new(NEWEST) };
    static LOOKED_UP: Plan = const { Plan::new(LOOK_UP) };
    static ENTERED: Plan = const { Plan::new(ENTER) };
}

/// Whose mutations have numbers of their own.
pub(crate) struct Client<'a> {
    pub(crate) role: &'a str,
    /// The claim `sub`; empty: there is none.
    pub(crate) subject: String,
    pub(crate) client_id: &'a str,
}

/// Whose table this is: the extension's owner. In a transaction.
pub(crate) fn owner() -> Result<pg_sys::Oid, Refusal> {
    // SAFETY: catalogue look-ups in a transaction; the row is read before it is released.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"tide".as_ptr(), true);
        let table = pg_sys::get_relname_relid(c"mutation".as_ptr(), schema);
        let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
        let row = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(table));
        if row.is_null() {
            let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
            return Err(Refusal::new(
                code,
                "there is no tide.mutation: alter extension pg_tide update",
            ));
        }
        let owner = (*pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_class>(row)).relowner;
        pg_sys::ReleaseSysCache(row);
        Ok(owner)
    }
}

/// What is to be done about a mutation.
pub(crate) enum Claim {
    /// It is the client's next.
    Next,
    /// It has been done.
    Done(Outcome),
    OutOfOrder(u64),
    Expired,
    Reused,
}

#[derive(Deserialize)]
struct Known {
    digest: String,
    outcome: Outcome,
}

impl<'a> Client<'a> {
    pub(crate) fn of(role: &'a str, claims: &str, mutation: &'a Mutation) -> Client<'a> {
        let claims = serde_json::from_str::<serde_json::Value>(claims).unwrap_or_default();
        let subject = match claims.get("sub") {
            None | Some(serde_json::Value::Null) => String::new(),
            Some(serde_json::Value::String(subject)) => subject.clone(),
            Some(other) => other.to_string(),
        };
        Client { role, subject, client_id: &mutation.client_id }
    }

    /// Keeps others from doing anything for the client, and says what is to be done. In a transaction, as the
    /// extension's owner, under pinned settings.
    pub(crate) fn claim(&self, mutation: &Mutation) -> Result<Claim, Refusal> {
        self.lock();
        let client = [
            ServerText(self.role).into(),
            ServerText(&self.subject).into(),
            ServerText(self.client_id).into(),
        ];
        let newest: u64 = parse(&NEWEST_FOUND.with(|plan| plan.text(&client))?)?;
        let next = newest.saturating_add(1);
        if newest == 0 {
            self.require_a_right()?;
        }
        if mutation.n >= next {
            let is_next = mutation.n == next;
            return Ok(if is_next { Claim::Next } else { Claim::OutOfOrder(next) });
        }
        let n = i64::try_from(mutation.n).unwrap_or(i64::MAX).into();
        let [role, subject, client_id] = client;
        let one = [role, subject, client_id, n];
        let known: Option<Known> = parse(&LOOKED_UP.with(|plan| plan.text(&one))?)?;
        Ok(match known {
            Some(known) if known.digest == hex(&mutation.digest()) => Claim::Done(known.outcome),
            Some(_) => Claim::Reused,
            None => Claim::Expired,
        })
    }

    /// What is remembered takes room, which nobody is given who can write nothing.
    fn require_a_right(&self) -> Result<(), Refusal> {
        let failed = |_: pgrx::spi::Error| Refusal::internal("the role cannot be looked up");
        let may = Spi::connect(|client| {
            let arguments = [ServerText(self.role).into()];
            answer::text(client.select(MAY_WRITE, Some(1), &arguments).map_err(failed)?)
        })?;
        if may.as_deref() == Some("true") {
            return Ok(());
        }
        let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
        Err(Refusal::new(code, format!("role \"{}\" may write nothing", self.role)))
    }

    fn lock(&self) {
        let mut hasher = DefaultHasher::new();
        (self.role, &self.subject, self.client_id).hash(&mut hasher);
        let hash = hasher.finish();
        // SAFETY: in a transaction, whose end gives the lock back.
        unsafe {
            let tag = pg_sys::LOCKTAG {
                locktag_field1: pg_sys::MyDatabaseId.to_u32(),
                locktag_field2: (hash >> 32) as u32,
                locktag_field3: hash as u32,
                locktag_field4: LOCK_CLASS,
                locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
                locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
            };
            pg_sys::LockAcquire(&raw const tag, pg_sys::ExclusiveLock as i32, false, false);
        }
    }

    /// Enters how the mutation has ended. As [`Client::claim`], in the same transaction.
    pub(crate) fn enter(&self, mutation: &Mutation, outcome: &Outcome) -> Result<(), Refusal> {
        let ops: Vec<Option<ServerText<String>>> = mutation
            .ops
            .iter()
            .map(|op| {
                let about = op.table.as_deref().or(op.function.as_deref()).unwrap_or_default();
                Some(ServerText(format!("{} {about}", op.op.name())))
            })
            .collect();
        let status = match outcome.status {
            Status::Confirmed => "confirmed",
            Status::Rejected => "rejected",
        };
        let sqlstate = outcome.rejection.as_ref().map(|rejection| rejection.sqlstate.as_str());
        let arguments: [DatumWithOid<'_>; 10] = [
            ServerText(self.role).into(),
            ServerText(&self.subject).into(),
            ServerText(self.client_id).into(),
            i64::try_from(mutation.n).unwrap_or(i64::MAX).into(),
            ServerText(&mutation.mutation_id).into(),
            mutation.digest().into(),
            ops.into(),
            ServerText(status).into(),
            sqlstate.map(ServerText).into(),
            ServerText(encode(outcome)?).into(),
        ];
        ENTERED.with(|plan| plan.text(&arguments)).map(drop)
    }
}

/// Forgets how mutations ended that were done so long ago, of the `limit` oldest.
pub(crate) fn forget(age: Duration, limit: u32) -> Result<String, Refusal> {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    let limit = i64::from(limit.min(tide_feed::catalog::MOST_ROWS));
    let forgotten = committed(TIMEOUT, || {
        let failed = |_: pgrx::spi::Error| Refusal::internal("nothing could be forgotten");
        Spi::connect_mut(|client| {
            let arguments = [age.into(), limit.into()];
            answer::text(client.update(FORGET, Some(1), &arguments).map_err(failed)?)
        })
    })?;
    Ok(forgotten.unwrap_or_else(|| "0".into()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
