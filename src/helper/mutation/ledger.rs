//! What has been done for clients: so that nothing is done twice, and each client's mutations are done in
//! the order of their numbers.
//!
//! A mutation is entered in the transaction that it is done in, so that there is one if and only if there is
//! the other. Whoever is about to do one of a client's keeps others from doing so until that transaction
//! ends.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use pgrx::{IntoDatum, PgSqlErrorCode, Spi, pg_sys};
use serde::Deserialize;
use tide_feed::mutation::{LONGEST_NAME, Mutation, Outcome, Status, sha256};

use crate::backend::own_rows;
use crate::helper::answer::{self, encode, parse};
use crate::helper::mutation::writer::as_extension_owner;
use crate::helper::plan::Plan;
use crate::helper::transaction::{Refusal, committed};
use crate::server_text::ServerText;

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
        exists (select from pg_catalog.pg_class as c
                where c.relkind operator(pg_catalog.=) any ('{r,p}'::pg_catalog.\"char\"[])
                  and c.oid operator(pg_catalog.>=) 16384::pg_catalog.oid
                  and c.relnamespace operator(pg_catalog.<>) 'tide'::pg_catalog.regnamespace::pg_catalog.oid
                  and pg_catalog.has_schema_privilege($1::pg_catalog.name, c.relnamespace, 'USAGE')
                  and (pg_catalog.has_any_column_privilege($1::pg_catalog.name, c.oid, 'INSERT, UPDATE')
                       or pg_catalog.has_table_privilege($1::pg_catalog.name, c.oid, 'DELETE')))
        or exists (select from tide.callables as f
                   where pg_catalog.has_function_privilege(
                             $1::pg_catalog.name, pg_catalog.to_regprocedure(f.function)::pg_catalog.oid, 'EXECUTE'))
    )::pg_catalog.text";

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
    static LOOKED_UP: Plan = const { Plan::new(LOOK_UP) };
}

/// Whose mutations have numbers of their own.
pub(crate) struct Client<'a> {
    pub(crate) role: &'a str,
    /// The claim `sub`, or what stands for a long one; empty: there is none.
    pub(crate) subject: String,
    pub(crate) client_id: &'a str,
}

/// `tide.mutation`. In a transaction.
fn table() -> Result<pg_sys::Oid, Refusal> {
    // SAFETY: catalogue look-ups in a transaction.
    let table = unsafe {
        let schema = pg_sys::get_namespace_oid(c"tide".as_ptr(), true);
        pg_sys::get_relname_relid(c"mutation".as_ptr(), schema)
    };
    if table == pg_sys::InvalidOid {
        let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
        let message = "there is no tide.mutation: alter extension pg_tide update";
        return Err(Refusal::new(code, message));
    }
    Ok(table)
}

/// Whose it is: the extension's owner. In a transaction.
pub(crate) fn owner() -> Result<pg_sys::Oid, Refusal> {
    let table = pg_sys::Datum::from(table()?);
    // SAFETY: catalogue look-ups in a transaction; the row is read before it is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
        let row = pg_sys::SearchSysCache1(cache, table);
        if row.is_null() {
            return Err(Refusal::internal("tide.mutation is gone"));
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
        let is_long = subject.len() > LONGEST_NAME;
        let subject = if is_long { format!("sha256:{}", hex(&sha256(&subject))) } else { subject };
        Client { role, subject, client_id: &mutation.client_id }
    }

    /// Says what is to be done. In a transaction, once the client is [locked](Client::lock).
    pub(crate) fn claim(&self, mutation: &Mutation, owner: pg_sys::Oid) -> Result<Claim, Refusal> {
        let newest = self.newest(table()?)?;
        let next = newest.saturating_add(1);
        if newest == 0 {
            as_extension_owner(owner, || self.require_a_right())?;
        }
        if mutation.n >= next {
            let is_next = mutation.n == next;
            return Ok(if is_next { Claim::Next } else { Claim::OutOfOrder(next) });
        }
        let one = [
            ServerText(self.role).into(),
            ServerText(&self.subject).into(),
            ServerText(self.client_id).into(),
            i64::try_from(mutation.n).unwrap_or(i64::MAX).into(),
        ];
        let known = as_extension_owner(owner, || LOOKED_UP.with(|plan| plan.text(&one)))?;
        let known: Option<Known> = parse(&known)?;
        Ok(match known {
            Some(known) if known.digest == hex(&mutation.digest()) => Claim::Done(known.outcome),
            Some(_) => Claim::Reused,
            None => Claim::Expired,
        })
    }

    /// The newest number of the client's; 0: it has written nothing. As a query would find it, without one: it
    /// is asked for with each mutation.
    fn newest(&self, table: pg_sys::Oid) -> Result<u64, Refusal> {
        let client = [self.role, &*self.subject, self.client_id];
        let mut keys = [pg_sys::ScanKeyData::default(); 3];
        // SAFETY: in a transaction; all that is opened is closed, and a row is read before the scan ends. The
        // index is the primary key's: (role, subject, client_id, n).
        unsafe {
            for (column, (key, text)) in (1..).zip(keys.iter_mut().zip(client)) {
                pg_sys::ScanKeyEntryInitialize(
                    key,
                    0,
                    column,
                    pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
                    pg_sys::InvalidOid,
                    pg_sys::C_COLLATION_OID,
                    pg_sys::F_TEXTEQ.into(),
                    ServerText(text).into_datum().unwrap_or(pg_sys::Datum::null()),
                );
            }
            let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let relation = pg_sys::table_open(table, lock);
            pg_sys::list_free(pg_sys::RelationGetIndexList(relation));
            let index = pg_sys::index_open((*relation).rd_pkindex, lock);
            let snapshot = pg_sys::GetActiveSnapshot();
            let scan =
                pg_sys::systable_beginscan_ordered(relation, index, snapshot, 3, keys.as_mut_ptr());
            let backward = pg_sys::ScanDirection::BackwardScanDirection;
            let row = pg_sys::systable_getnext_ordered(scan, backward);
            let newest = (!row.is_null()).then(|| number(row, (*relation).rd_att));
            pg_sys::systable_endscan_ordered(scan);
            pg_sys::index_close(index, lock);
            pg_sys::table_close(relation, lock);
            newest.unwrap_or(Ok(0))
        }
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

    /// Keeps others from doing anything for the client. In a transaction, before it has a snapshot.
    pub(crate) fn lock(&self) {
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

    /// Enters how the mutation has ended. In the transaction of [`Client::claim`].
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
        let text = |text: &str| ServerText(text).into_datum();
        // SAFETY: in a transaction, whose number and time these are; the values are of the types of all columns.
        unsafe {
            let relation = own_rows::open(table()?);
            let row = [
                text(self.role),
                text(&self.subject),
                text(self.client_id),
                i64::try_from(mutation.n).unwrap_or(i64::MAX).into_datum(),
                text(&mutation.mutation_id),
                mutation.digest().into_datum(),
                ops.into_datum(),
                text(status),
                sqlstate.and_then(text),
                text(&encode(outcome)?),
                Some(pg_sys::Datum::from(pg_sys::GetTopFullTransactionId().value)),
                Some(pg_sys::Datum::from(pg_sys::GetCurrentTransactionStartTimestamp())),
            ];
            own_rows::insert(relation, &row);
            pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
        Ok(())
    }
}

/// The `n` of a row of `tide.mutation`.
///
/// # Safety
/// The row is one of the table's.
unsafe fn number(row: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) -> Result<u64, Refusal> {
    const N: usize = 3;
    // SAFETY: as above.
    let count = unsafe { usize::try_from((*descriptor).natts).unwrap_or(0) };
    let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); count], vec![true; count]);
    // SAFETY: room for all columns.
    unsafe {
        pg_sys::heap_deform_tuple(row, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
    }
    let n = values.get(N).map(|value| value.value() as u64);
    n.ok_or_else(|| Refusal::internal("tide.mutation has other columns"))
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
