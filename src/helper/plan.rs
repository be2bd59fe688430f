//! Queries that are analysed and planned once in a process's life: for the longer ones that takes
//! several times as long as their answers.

use std::cell::Cell;

use pgrx::datum::DatumWithOid;
use pgrx::spi::OwnedPreparedStatement;
use pgrx::{PgOid, Spi};

use crate::helper::answer;
use crate::helper::transaction::Refusal;

/// A query, and its plan once it has been asked. Postgres itself sees to it that a plan is made
/// anew after what it depends on has changed.
pub(crate) struct Plan {
    query: &'static str,
    /// Never freed: when the process ends there may be no session any more to free it in.
    kept: Cell<Option<&'static OwnedPreparedStatement>>,
}

impl Plan {
    pub(crate) const fn new(query: &'static str) -> Plan {
        Plan { query, kept: Cell::new(None) }
    }

    /// The one text that the query answers with. In a transaction with a snapshot; the arguments
    /// are of the same types every time.
    pub(crate) fn text(&self, arguments: &[DatumWithOid<'_>]) -> Result<String, Refusal> {
        let failed = |_: pgrx::spi::Error| Refusal::internal("the look-up cannot be made");
        let answer = Spi::connect(|client| {
            let statement = match self.kept.get() {
                Some(statement) => statement,
                None => {
                    let types: Vec<PgOid> =
                        arguments.iter().map(|argument| PgOid::from(argument.oid())).collect();
                    let statement = client.prepare(self.query, &types).map_err(failed)?.keep();
                    let statement: &'static OwnedPreparedStatement = Box::leak(Box::new(statement));
                    self.kept.set(Some(statement));
                    statement
                }
            };
            answer::text(client.select(statement, Some(1), arguments).map_err(failed)?)
        })?;
        answer.ok_or_else(|| Refusal::internal("the look-up gave no answer"))
    }
}
