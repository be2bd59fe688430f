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

use pgrx::{PgSqlErrorCode, pg_sys};
use tide_feed::mutation::{Mutated, Mutation, Outcome, Rejection, Settled, Status};
use tide_feed::wal::WalMessage;

use crate::backend::send;
use crate::guc;
use crate::helper::answer::encode;
use crate::helper::transaction::{Refusal, committed};
use crate::source::snapshot::flushed;
use attempt::Attempt;
use ledger::{Claim, Client};
use writer::as_extension_owner;

/// Bytes of a reason: it may quote what it is about.
const LONGEST_REASON: usize = 2_000;

/// Does a mutation, unless it has been done.
pub(crate) fn mutate(role: &str, claims: &str, text: &str) -> Result<String, Refusal> {
    let mutation = Mutation::read(text).map_err(|error| {
        Refusal::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, error.to_string())
    })?;
    let client = Client::of(role, claims, &mutation);
    let is_done = Cell::new(false);
    let attempted = committed(guc::write_timeout(), || {
        settle(&client, &mutation, |owner| perform(role, claims, &mutation, owner, &is_done))
    });
    let settled = match attempted {
        // What came at its very end is an answer, too.
        Err(refusal) if is_done.get() && !is_passing(&refusal.sqlstate) => {
            let outcome = |_owner| Ok(rejected(None, refusal, None));
            committed(guc::write_timeout(), || settle(&client, &mutation, outcome))
        }
        other => other,
    };
    encode(&match settled? {
        Entered::Now(outcome) => Mutated::Settled(Settled { lsn: committed_at(), outcome }),
        Entered::Before(outcome) => Mutated::Settled(Settled { lsn: flushed(), outcome }),
        Entered::Not(why) => why,
    })
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
    match as_extension_owner(owner, || client.claim(mutation))? {
        Claim::Next => {}
        Claim::Done(outcome) => return Ok(Entered::Before(outcome)),
        Claim::OutOfOrder(expected) => return Ok(Entered::Not(Mutated::OutOfOrder(expected))),
        Claim::Expired => return Ok(Entered::Not(Mutated::Expired)),
        Claim::Reused => return Ok(Entered::Not(Mutated::Reused)),
    }
    let outcome = work(owner)?;
    leftovers::stop_listening();
    as_extension_owner(owner, || client.enter(mutation, &outcome))?;
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
        match attempt.run() {
            Ok(returning) => {
                is_done.set(true);
                // What was put off once more by what had been put off.
                // SAFETY: in a transaction, outside of any query.
                unsafe { pg_sys::AfterTriggerFireDeferred() };
                Ok(Outcome {
                    status: Status::Confirmed,
                    returning: Some(returning),
                    rejection: None,
                })
            }
            Err(refusal) if is_passing(&refusal.sqlstate) => Err(refusal),
            Err(refusal) => {
                let current = attempt.current()?;
                Ok(rejected(attempt.failed_at(), refusal, current))
            }
        }
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
    ["08", "40", "53", "57", "58"].iter().any(|class| sqlstate.starts_with(class))
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
