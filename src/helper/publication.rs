//! What the publication says of a table whose rows are read.

use pgrx::datum::DatumWithOid;
use pgrx::{PgSqlErrorCode, Spi, pg_sys};

use crate::guc;
use crate::helper::answer;
use crate::helper::transaction::Refusal;
use crate::server_text::ServerText;

/// The condition, if any; or why the stream would not keep its rows as they are.
const QUERY: &str = "
    select case
               when p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate
               then coalesce('+' operator(pg_catalog.||) pg_catalog.pg_get_expr(r.prqual, r.prrelid), '')
               else '-'
           end
    from pg_catalog.pg_publication as p
    left join pg_catalog.pg_publication_rel as r
        on r.prpubid operator(pg_catalog.=) p.oid and r.prrelid operator(pg_catalog.=) $1
    where p.pubname operator(pg_catalog.=) $2::pg_catalog.name";

/// The condition that the publication has for rows of the table, as SQL; `None`: all are published.
pub(crate) fn row_filter(table: u32) -> Result<Option<String>, Refusal> {
    let name = guc::publication();
    let arguments: [DatumWithOid<'_>; 2] =
        [pg_sys::Oid::from(table).into(), ServerText(name.as_str()).into()];
    let failed = |_: pgrx::spi::Error| Refusal::internal("the publication cannot be looked up");
    let said = Spi::connect(|client| {
        answer::text(client.select(QUERY, Some(1), &arguments).map_err(failed)?)
    })?;
    match said.as_deref() {
        Some("-") => {
            let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
            Err(Refusal::new(code, "the publication leaves out some of the changes of its tables"))
        }
        said => Ok(said.and_then(|said| said.strip_prefix('+')).map(str::to_owned)),
    }
}
