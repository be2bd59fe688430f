//! What a writer answers: what clients ask to be written, each mutation in a transaction of its own.
//!
//! The work is done in a subtransaction, as the client. What fails in it for a reason of its own is undone and
//! remembered as rejected; what fails for another, a deadlock, say, ends the whole, and is tried again.

mod attempt;
mod call;
mod given;
pub(crate) mod ledger;
pub(crate) mod leftovers;
mod links;
mod on_mutate;
mod operation;
mod statements;
mod target;
mod writer;

use std::cell::Cell;
use std::time::Duration;

use pgrx::{PgSqlErrorCode, pg_sys};
use tide_feed::catalog::OUTDATED;
use tide_feed::mutation::{Mutated, Mutation, Outcome, Rejection, Settled, Status};
use tide_feed::wal::WalMessage;

use crate::backend::send;
use crate::guc;
use crate::helper::answer::encode;
use crate::helper::transaction::{Refusal, committed_after, limit_locks};
use crate::helper::{role_settings, session};
use crate::source::snapshot::flushed;
use attempt::Attempt;
use ledger::{Claim, Client};

/// How long a mutation waits for a lock: then it is tried again, and others have their turn meanwhile.
const LOCK_WAIT: Duration = Duration::from_millis(200);

/// The SQLSTATE of a lock that was not free.
const LOCKED: &str = "55P03";
/// Of what tide-server tries again.
const TRY_AGAIN: &str = "40001";

/// Bytes of a reason: it may quote what it is about.
const LONGEST_REASON: usize = 2_000;

/// Does a mutation, unless it has been done.
pub(crate) fn mutate(role: &str, claims: &str, text: &str) -> Result<String, Refusal> {
    let mutation = Mutation::read(text).map_err(|error| {
        Refusal::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, error.to_string())
    })?;
    let client = Client::of(role, claims, &mutation);
    let is_done = Cell::new(false);
    let attempted = in_transaction(&client, || {
        settle(&client, &mutation, |owner| perform(role, claims, &mutation, owner, &is_done))
    });
    let settled = match attempted {
        // What came at its very end is an answer, too.
        Err(refusal) if is_done.get() && !is_passing(&refusal.sqlstate) => {
            let outcome = |_owner| Ok(rejected(None, refusal, None));
            in_transaction(&client, || settle(&client, &mutation, outcome))
        }
        other => other,
    };
    let settled = settled.map_err(|refusal| match refusal.sqlstate.as_str() {
        // What was looked up is not so any more.
        OUTDATED => Refusal { sqlstate: TRY_AGAIN.into(), ..refusal },
        _ => refusal,
    });
    encode(&match settled? {
        Entered::Now(outcome) => Mutated::Settled(Settled { lsn: committed_at(), outcome }),
        Entered::Before(outcome) => Mutated::Settled(Settled { lsn: flushed(), outcome }),
        Entered::Not(why) => why,
    })
}

/// One that is as an ordinary session's would be, and that nobody else does anything for the client in.
fn in_transaction<R>(
    client: &Client<'_>,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    let prepare = || {
        // Another writer will do it.
        role_settings::refuse_if_old().map_err(|refusal| {
            Refusal::new(PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW, refusal.message)
        })?;
        // SAFETY: in a transaction that has no snapshot yet; variables of this process.
        unsafe {
            if pg_sys::DefaultXactReadOnly {
                let code = PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION;
                return Err(Refusal::new(code, "transactions of this database are read only"));
            }
            pg_sys::XactReadOnly = false;
            pg_sys::XactIsoLevel = session::ordinary_isolation();
        }
        limit_locks(LOCK_WAIT);
        client.lock();
        Ok(())
    };
    committed_after(guc::write_timeout(), prepare, work)
}

enum Entered {
    Now(Outcome),
    Before(Outcome),
    Not(Mutated),
}

/// Enters what the work comes to, if it is to be done; `work` is told who the extension's owner is. In a
/// transaction.
fn settle(
    client: &Client<'_>,
    mutation: &Mutation,
    work: impl FnOnce(pg_sys::Oid) -> Result<Outcome, Refusal>,
) -> Result<Entered, Refusal> {
    let owner = ledger::owner()?;
    match client.claim(mutation, owner)? {
        Claim::Next => {}
        Claim::Done(outcome) => return Ok(Entered::Before(outcome)),
        Claim::OutOfOrder(expected) => return Ok(Entered::Not(Mutated::OutOfOrder(expected))),
        Claim::Expired => return Ok(Entered::Not(Mutated::Expired)),
        Claim::Reused => return Ok(Entered::Not(Mutated::Reused)),
    }
    let outcome = work(owner)?;
    client.enter(mutation, &outcome)?;
    Ok(Entered::Now(outcome))
}

/// Does it, or finds out why not. In a transaction that has written nothing yet.
fn perform(
    role: &str,
    claims: &str,
    mutation: &Mutation,
    owner: pg_sys::Oid,
    is_done: &Cell<bool>,
) -> Result<Outcome, Refusal> {
    // Before anything else is written, so that all events have it.
    send::write(&WalMessage::MutationId(&mutation.mutation_id));
    writer::as_client(role, claims, || {
        let attempt = Attempt::new(role, owner, mutation);
        let outcome = match attempt.run() {
            Ok(returning) => {
                Outcome { status: Status::Confirmed, returning: Some(returning), rejection: None }
            }
            Err(refusal) if is_passing(&refusal.sqlstate) => return Err(refusal),
            Err(refusal) => {
                let current = attempt.current()?;
                rejected(attempt.failed_at(), refusal, current)
            }
        };
        is_done.set(true);
        // What was put off once more by what had been put off, or by a policy of the row that is told.
        // SAFETY: in a transaction, outside of any query.
        unsafe { pg_sys::AfterTriggerFireDeferred() };
        leftovers::forgo();
        Ok(outcome)
    })
}

fn rejected(
    op: Option<usize>,
    refusal: Refusal,
    current: Option<Box<serde_json::value::RawValue>>,
) -> Outcome {
    let Refusal { sqlstate, message: mut reason } = refusal;
    reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
    let rejection = Rejection { op, sqlstate, reason, current };
    Outcome { status: Status::Rejected, returning: None, rejection: Some(rejection) }
}

/// Whether an error says nothing about what was asked: the same may well succeed in a moment.
pub(crate) fn is_passing(sqlstate: &str) -> bool {
    [OUTDATED, LOCKED].contains(&sqlstate)
        || ["08", "40", "53", "57", "58"].iter().any(|class| sqlstate.starts_with(class))
}

/// Where the last transaction of this process ended, which is on disk.
fn committed_at() -> u64 {
    // SAFETY: a variable of this process; flushes what was inserted.
    unsafe {
        let end = pg_sys::XactLastCommitEnd;
        pg_sys::XLogFlush(end);
        end
    }
}
