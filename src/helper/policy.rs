//! What an executor says about rows and claims: policies, and what they compare with, evaluated by
//! Postgres itself as the client's role and with its claims.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pgrx::datum::DatumWithOid;
use pgrx::{PgSqlErrorCode, Spi, pg_sys};
use tide_feed::catalog::{ClaimsOutcome, ClaimsOutcomes, PolicyOutcome, PolicyOutcomes};

use crate::encoding;
use crate::guc;
use crate::helper::answer::{LARGEST, encode, too_large};
use crate::helper::executor::as_role;
use crate::helper::session::set;
use crate::helper::transaction::{Refusal, allow};
use crate::helper::{expression, labels};
use crate::server_text::ServerText;

/// How long an executor goes on with further clients of one question: others wait for it.
const BUDGET: Duration = Duration::from_millis(50);
/// And how many bytes the answers may have by then; the rest is asked about in another question.
const PAGE: usize = LARGEST / 4;

/// Which of the rows the condition admits, for each client.
pub(crate) fn evaluate_policy(
    role: &str,
    table: u32,
    condition: &str,
    rows: &str,
    labels: &[(u32, String)],
    claims: &[String],
) -> Result<String, Refusal> {
    let outcomes = for_each(
        role,
        claims,
        || {
            labels::check(labels)?;
            AskedRows::of(table, rows)
        },
        |rows| {
            let visible = rows.admitted(condition)?;
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
    let query = format!("select array[{}]::pg_catalog.text[]", list.join(", "));
    let outcomes = for_each(
        role,
        claims,
        || Ok(()),
        |()| {
            let values = expression::array::<Vec<Option<String>>>(&query, &[])?;
            let values = values.ok_or_else(|| Refusal::internal("no values"))?;
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

/// Does the work as a client with these claims would see it, within the time that one question
/// may take.
pub(crate) fn with_claims<R>(
    claims: &str,
    work: impl FnOnce() -> Result<R, Refusal>,
) -> Result<R, Refusal> {
    let claims = encoding::server_string(claims);
    allow(guc::policy_timeout());
    // SAFETY: in a transaction, whose end takes all of it back if the work fails.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    set(c"request.jwt.claims", &claims);
    let result = work()?;
    // SAFETY: the level begun above.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    Ok(result)
}

/// Rows of a table as Postgres's own values.
struct AskedRows {
    /// The table's name, as the condition knows it.
    name: String,
    rows: pg_sys::Datum,
    rows_type: pg_sys::Oid,
}

impl AskedRows {
    fn of(table: u32, rows: &str) -> Result<AskedRows, Refusal> {
        let query = "select pg_catalog.quote_ident(relname), oid::pg_catalog.regclass::text \
                     from pg_catalog.pg_class where oid = $1";
        let table = pg_sys::Oid::from(table);
        let names = Spi::get_two_with_args::<String, String>(query, &[table.into()]);
        let Ok((Some(name), Some(qualified))) = names else {
            let code = PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE;
            return Err(Refusal::new(code, "the table is gone"));
        };
        let query = format!(
            "select array(select r from pg_catalog.jsonb_populate_recordset(null::{qualified}, $1::jsonb) as r)"
        );
        let (rows, rows_type) = value(&query, &[ServerText(rows).into()])
            .ok_or_else(|| Refusal::internal("the rows cannot be read"))?;
        Ok(AskedRows { name, rows, rows_type })
    }

    fn admitted(&self, condition: &str) -> Result<Vec<bool>, Refusal> {
        // In the list of results, so that nothing is reordered or left out.
        let query = format!(
            "select array(select coalesce(({condition}), false) from pg_catalog.unnest($1) as {})",
            self.name
        );
        // SAFETY: the value and its type come from the same query.
        let rows = unsafe { DatumWithOid::new(self.rows, self.rows_type) };
        let admitted = expression::array::<Vec<bool>>(&query, &[rows])?;
        admitted.ok_or_else(|| Refusal::internal("the policy gave no answer"))
    }
}

/// The one value, an array, that a query answers with, and its type.
fn value(query: &str, arguments: &[DatumWithOid]) -> Option<(pg_sys::Datum, pg_sys::Oid)> {
    Spi::connect(|client| {
        let answer = client.select(query, Some(1), arguments).ok()?.first();
        let value = answer.get_datum_by_ordinal(1).ok()??;
        let value_type = answer.column_type_oid(1).ok()?.value();
        // SAFETY: arrays are of variable length; the copy lives as long as the transaction.
        let value = unsafe { pg_sys::SPI_datumTransfer(value, false, -1) };
        Some((value, value_type))
    })
}
