//! What a table's own function makes of a row that a client writes.

use pgrx::Spi;
use serde_json::json;
use serde_json::value::RawValue;
use tide_feed::mutation::{Fields, Mutation, Verb};

use crate::encoding;
use crate::helper::answer::{self, parse};
use crate::helper::mutation::operation::{Done, RowOperation};
use crate::helper::transaction::Refusal;
use crate::server_text::ServerText;

/// How often a row is gone after that comes and goes all the time.
const TRIES: usize = 3;

/// A table's function, and whose write it is asked about.
pub(crate) struct OnMutate<'a> {
    pub(crate) function: &'a str,
    pub(crate) table: &'a str,
    pub(crate) mutation: &'a Mutation,
}

impl OnMutate<'_> {
    /// Does what the function makes of the operation. As the client. What it is asked about is what is written:
    /// a row that is there is locked before, one that is to be deleted is looked at once it is.
    pub(crate) fn run(&self, mut operation: RowOperation<'_>) -> Result<Done, Refusal> {
        match operation.op.op {
            Verb::Insert => {
                let Some(stored) = self.asked(&operation, None)? else {
                    return Ok(Done::default());
                };
                operation.values = stored;
                operation.run()
            }
            Verb::Delete => {
                let (old, done) = operation.delete_seen()?;
                if let Some(old) = old {
                    self.asked(&operation, Some(&old))?;
                }
                Ok(done)
            }
            Verb::Set => {
                let old = operation.current(true)?;
                self.change(operation, old.as_deref())
            }
            Verb::Upsert | Verb::Call => self.insert_or_change(operation),
        }
    }

    fn insert_or_change(&self, mut operation: RowOperation<'_>) -> Result<Done, Refusal> {
        let given = operation.values.clone();
        for _ in 0..TRIES {
            operation.values = given.clone();
            if let Some(old) = operation.current(true)? {
                return self.change(operation, Some(&old));
            }
            if operation.op.if_version.is_some() {
                break;
            }
            let Some(stored) = self.asked(&operation, None)? else { return Ok(Done::default()) };
            operation.values = stored;
            if let Some(done) = operation.insert_if_missing()? {
                return Ok(done);
            }
        }
        // It is there, but not for the client to see, or of no version.
        operation.run()
    }

    /// Changes a row that is locked; `None`: there is none.
    fn change(
        &self,
        mut operation: RowOperation<'_>,
        old: Option<&RawValue>,
    ) -> Result<Done, Refusal> {
        let Some(old) = old else { return operation.set() };
        operation.check_version()?;
        match self.asked(&operation, Some(old))? {
            Some(stored) if !stored.is_empty() => {
                operation.values = stored;
                operation.set()
            }
            // There is nothing to be stored, or nothing that is not there already.
            _ => Ok(Done::default()),
        }
    }

    /// What is to be stored, in the place of what the client gave; `None`: nothing is.
    fn asked(
        &self,
        operation: &RowOperation<'_>,
        old: Option<&RawValue>,
    ) -> Result<Option<Fields>, Refusal> {
        let (verb, mutation) = (operation.op.op, self.mutation);
        let mut given = operation.values.clone();
        given.extend(operation.key.clone());
        let new = (verb != Verb::Delete).then(|| serde_json::to_string(&given).unwrap_or_default());
        let context = json!({
            "op": verb.name(),
            "table": self.table,
            "mutation_id": mutation.mutation_id,
            "client_id": mutation.client_id,
            "n": mutation.n,
        });
        let stored = run(self.function, old, new, &context.to_string())?;
        stored.map(|json| parse(&json)).transpose()
    }
}

/// What of it differs from the row that is there.
fn run(
    function: &str,
    old: Option<&RawValue>,
    new: Option<String>,
    context: &str,
) -> Result<Option<String>, Refusal> {
    let sql = format!(
        "select case when s.stored is not null then (
             select coalesce(pg_catalog.jsonb_object_agg(r.key, r.value), '{{}}'::pg_catalog.jsonb)::pg_catalog.text
             from pg_catalog.jsonb_each(s.stored) as r
             where s.old is null
                or (r.value operator(pg_catalog.=) (s.old operator(pg_catalog.->) r.key)) is not true
         ) end
         from (
             select a.old, {function}(a.old, coalesce(a.old operator(pg_catalog.||) a.new, a.new), a.context) as stored
             from (select $1::pg_catalog.jsonb as old, $2::pg_catalog.jsonb as new,
                          $3::pg_catalog.jsonb as context) as a
             offset 0
         ) as s"
    );
    let sql = encoding::server_string(&sql);
    let arguments = [
        old.map(|old| ServerText(old.get())).into(),
        new.map(ServerText).into(),
        ServerText(context).into(),
    ];
    let failed = |_: pgrx::spi::Error| Refusal::internal("the table's function cannot be called");
    Spi::connect_mut(|client| {
        answer::text(client.update(sql.as_c_str(), None, &arguments).map_err(failed)?)
    })
}
