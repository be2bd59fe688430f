//! The tables that joins name, as their role may see them.

use std::ops::Deref;
use std::sync::Arc;

use tide_feed::catalog::{TableAccess, TableName};

use super::identity::{self, Refusal};
use super::join::{Joiner, Refused};
use crate::allowance::Share;
use crate::catalog::{self, Moment};
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
        let (context, asker) = (&self.context, self.credentials.asker());
        let ask = || context.tables.ask(&context.catalog, &asker, &names);
        match identity::patiently(context.config().handshake_timeout, ask).await {
            Ok((tables, asked)) => {
                let mut share = context.share(Kind::Channels);
                // What is known of a table is the same for all who ask at a time.
                let bytes =
                    tables.iter().map(|table| catalog::memory(table) / Arc::strong_count(table));
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
