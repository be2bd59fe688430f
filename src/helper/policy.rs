//! What an executor says about rows and claims: policies, and what they compare with, evaluated by
//! Postgres itself as the client's role and with its claims.

use std::cell::Cell;
use std::ffi::CString;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use tide_feed::catalog::{ClaimsOutcome, ClaimsOutcomes, PolicyOutcome, PolicyOutcomes, Rows};

use crate::encoding;
use crate::guc;
use crate::helper::answer::{LARGEST, encode, too_large};
use crate::helper::asked_rows::AskedRows;
use crate::helper::executor::as_role;
use crate::helper::row_security::{self, Command};
use crate::helper::session::set;
use crate::helper::transaction::{Refusal, allow};
use crate::helper::{answer, expression, labels};

/// How long an executor goes on with further clients of one question: others wait for it.
const BUDGET: Duration = Duration::from_millis(50);
/// And how many bytes the answers may have by then; the rest is asked about in another question.
const PAGE: usize = LARGEST / 4;

/// Which of the rows the table's policies admit, for each client.
pub(crate) fn evaluate_policy(
    role: &str,
    table: u32,
    rows: &Rows,
    labels: &[(u32, String)],
    claims: &[String],
) -> Result<String, Refusal> {
    let outcomes = for_each(
        role,
        claims,
        || {
            labels::check(labels)?;
            AskedRows::read(table, rows)
        },
        |rows| {
            let visible = row_security::admitted(rows, Command::Select)?;
            // What was renamed meanwhile may have been read as another label.
            labels::check(labels)?;
            let size = visible.len() * "false,".len();
            Ok((PolicyOutcome::Visible(visible), size))
        },
        PolicyOutcome::Failed,
    )?;
    encode(&PolicyOutcomes { outcomes })
}

/// What the expressions are worth, for each client.
pub(crate) fn evaluate_claims(
    role: &str,
    expressions: &[String],
    claims: &[String],
) -> Result<String, Refusal> {
    let list: Vec<String> = expressions
        .iter()
        .map(|expression| format!("pg_catalog.to_jsonb(({expression}))::pg_catalog.text"))
        .collect();
    let list = list.join(", ");
    let query =
        format!("select pg_catalog.to_json(array[{list}]::pg_catalog.text[])::pg_catalog.text");
    let outcomes = for_each(
        role,
        claims,
        || Ok(()),
        |()| {
            let values = expression::text(&query)?;
            let values = values.ok_or_else(|| Refusal::internal("no values"))?;
            let values: Vec<Option<String>> = answer::parse(&values)?;
            let size = values.iter().flatten().map(String::len).sum();
            Ok((ClaimsOutcome::Values(values), size))
        },
        ClaimsOutcome::Failed,
    )?;
    encode(&ClaimsOutcomes { outcomes })
}

/// Prepares once, then does the work for one client after the other, which says how large the answer
/// is. The first failure ends the transaction, and so is the last answer.
fn for_each<P, A>(
    role: &str,
    claims: &[String],
    prepare: impl FnOnce() -> Result<P, Refusal>,
    work: impl Fn(&P) -> Result<(A, usize), Refusal>,
    failed: impl FnOnce(String) -> A,
) -> Result<Vec<A>, Refusal> {
    let mut answers = Vec::new();
    let is_prepared = Cell::new(false);
    let outcome = as_role(role, || {
        let prepared = prepare()?;
        is_prepared.set(true);
        let (begun, mut written) = (Instant::now(), 0);
        for claims in claims {
            if !answers.is_empty() && (begun.elapsed() > BUDGET || written > PAGE) {
                break;
            }
            let (answer, size) = with_claims(claims, || work(&prepared))?;
            if size > LARGEST / 2 {
                return Err(too_large());
            }
            written += size;
            answers.push(answer);
        }
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(refusal) if is_prepared.get() => answers.push(failed(refusal.sqlstate)),
        Err(refusal) => return Err(refusal),
    }
    Ok(answers)
}

/// Has the session be one of a client's with these claims, to the end of the GUC nest level.
pub(crate) fn set_claims(claims: &str) {
    set(c"request.jwt.claims", &encoding::server_string(claims));
    set(c"request.headers", c"{}");
    set_each(claims);
}

/// Claims that are settings of their own: as many are looked at.
const MOST_CLAIMS: usize = 64;

/// As older versions of PostgREST do, has each claim in a setting of its own as well: policies that were
/// written for them ask for `request.jwt.claim.sub`.
fn set_each(claims: &str) {
    let Ok(claims) = serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(claims) else {
        return;
    };
    let is_name = |name: &str| {
        let has_head = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let is_part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$');
        has_head && name.len() < 64 && name.bytes().all(is_part)
    };
    for (name, value) in claims.into_iter().filter(|(name, _)| is_name(name)).take(MOST_CLAIMS) {
        let text = match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        if !text.contains('\0')
            && let Ok(name) = CString::new(format!("request.jwt.claim.{name}"))
        {
            set(&name, &encoding::server_string(&text));
        }
    }
}

/// Does the work as a client with these claims would see it, within the time that one question
/// may take.
pub(crate) fn with_claims<R>(
    claims: &str,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    allow(guc::policy_timeout());
    // SAFETY: in a transaction, whose end takes all of it back if the work fails.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    set_claims(claims);
    let result = work()?;
    // SAFETY: the level begun above.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    Ok(result)
}
