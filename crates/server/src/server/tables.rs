//! The tables that joins name, as their role may see them.

use std::ops::Deref;
use std::sync::Arc;

use tide_feed::catalog::{ColumnAccess, RowSecurity, TableAccess, TableName, Which};

use super::identity::{self, Refusal};
use super::join::{Joiner, Refused};
use crate::allowance::Share;
use crate::catalog::{CatalogError, Moment};
use crate::memory::Kind;

/// An answer of the catalogue, for all who asked together.
#[derive(Debug)]
pub(super) struct KnownTables {
    tables: Vec<TableAccess>,
    /// As of which it is.
    moment: Moment,
    _memory: Share,
}

/// `None`: there is no memory for it.
pub(super) type TablesAnswer = Result<Option<Arc<KnownTables>>, CatalogError>;

impl Deref for KnownTables {
    type Target = [TableAccess];

    fn deref(&self) -> &[TableAccess] {
        &self.tables
    }
}

impl Joiner {
    /// The tables as the role may see them, and the moment as of which.
    pub(super) async fn tables(
        &self,
        names: Vec<TableName>,
    ) -> Result<(Arc<KnownTables>, Moment), Refused> {
        let (context, role) = (&self.context, self.credentials.role());
        let names = &names;
        let look_up = async || {
            let (tables, moment) =
                context.catalog.tables(role, Which::Named(names.clone())).await?;
            let mut share = context.share(Kind::Channels);
            let has_memory = share.grow(tables.iter().map(memory).sum());
            Ok(has_memory.then(|| Arc::new(KnownTables { tables, moment, _memory: share })))
        };
        let ask = || context.tables.answer((Arc::clone(role), names.clone()), look_up);
        match identity::patiently(context.config().handshake_timeout, ask).await {
            Ok(Some(known)) => {
                let moment = known.moment.clone();
                Ok((known, moment))
            }
            Ok(None) => Err(Refused::memory()),
            Err(error) => {
                log::warn!("could not look up the tables of a subscription: {error}");
                Err(Refusal::Unavailable.into())
            }
        }
    }
}

/// Bytes that it takes up, about.
fn memory(table: &TableAccess) -> usize {
    let columns = table.columns.iter().map(of_column).sum::<usize>();
    let names = table.schema.len() + table.table.len();
    size_of::<TableAccess>() + names + columns + table.row_security.as_ref().map_or(0, of_policies)
}

fn of_column(column: &ColumnAccess) -> usize {
    let names = column.name.len() + column.type_name.len() + column.type_sql.len();
    size_of::<ColumnAccess>() + names + of_labels(&column.labels)
}

fn of_policies(security: &RowSecurity) -> usize {
    let conditions =
        security.policies.iter().map(|policy| policy.name.len() + policy.condition.len());
    let sizes = size_of_val(&*security.policies) + size_of_val(&*security.functions);
    size_of::<RowSecurity>() + sizes + conditions.sum::<usize>() + of_labels(&security.labels)
}

fn of_labels(labels: &[(u32, String)]) -> usize {
    size_of_val(labels) + labels.iter().map(|(_, label)| label.len()).sum::<usize>()
}
