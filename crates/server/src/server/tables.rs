//! The tables that joins name, as their role may see them.

use std::ops::Deref;
use std::sync::Arc;

use tide_feed::catalog::{ColumnAccess, RowSecurity, TableAccess, TableName};

use super::identity::{self, Refusal};
use super::join::{Joiner, Refused};
use crate::allowance::Share;
use crate::catalog::Moment;
use crate::memory::Kind;

/// What is known of the tables that one join names, for as long as it is under way.
#[derive(Debug)]
pub(super) struct Tables {
    tables: Arc<[Arc<TableAccess>]>,
    _memory: Share,
}

impl Deref for Tables {
    type Target = [Arc<TableAccess>];

    fn deref(&self) -> &[Arc<TableAccess>] {
        &self.tables
    }
}

impl Joiner {
    /// The tables as the role may see them, and the moment as of which.
    pub(super) async fn tables(
        &self,
        names: Vec<TableName>,
    ) -> Result<(Arc<Tables>, Moment), Refused> {
        let (context, role) = (&self.context, self.credentials.role());
        let ask = || context.tables.ask(&context.catalog, role, &names);
        match identity::patiently(context.config().handshake_timeout, ask).await {
            Ok((tables, asked)) => {
                let mut share = context.share(Kind::Channels);
                // What is known of a table is the same for all who ask at a time.
                let bytes = tables.iter().map(|table| memory(table) / Arc::strong_count(table));
                if !share.grow(bytes.sum()) {
                    return Err(Refused::memory());
                }
                Ok((Arc::new(Tables { tables, _memory: share }), asked))
            }
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
