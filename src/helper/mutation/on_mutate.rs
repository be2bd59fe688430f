//! What a table's own function makes of a row that a client writes.

use pgrx::Spi;
use serde_json::json;
use serde_json::value::RawValue;
use tide_feed::mutation::{Fields, Mutation, Verb};

use crate::encoding;
use crate::helper::answer::{self, parse};
use crate::helper::mutation::operation::RowOperation;
use crate::helper::transaction::Refusal;
use crate::server_text::ServerText;

/// What is to be stored, in the place of what the client gave; `None`: nothing is. As the client.
pub(crate) fn asked(
    function: &str,
    table: &str,
    operation: &RowOperation<'_>,
    mutation: &Mutation,
) -> Result<Option<Fields>, Refusal> {
    let verb = operation.op.op;
    let old = match verb {
        Verb::Insert => None,
        // Who may delete need not be one who may change, and lock.
        _ => operation.current(verb != Verb::Delete)?,
    };
    let mut given = operation.values.clone();
    given.extend(operation.key.clone());
    let new = (verb != Verb::Delete).then(|| serde_json::to_string(&given).unwrap_or_default());
    let context = json!({
        "op": verb.name(),
        "table": table,
        "mutation_id": mutation.mutation_id,
        "client_id": mutation.client_id,
        "n": mutation.n,
    });
    let stored = run(function, old.as_deref(), new, &context.to_string())?;
    stored.map(|json| parse(&json)).transpose()
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
