//! What today's catalogue says, asked of the executors and the steward over the worker's own
//! unix socket. The decoding process itself never looks at it.
#![forbid(unsafe_code)]

pub mod protocol;

use protocol::{RoleStatus, Secrets, TableAccess, Which};

/// A question could not be answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CatalogError {
    /// The helper process is not there (yet), or went away.
    #[error("the database is not ready to answer")]
    Unavailable,
    /// Postgres said no.
    #[error("{message}")]
    Refused { sqlstate: String, message: String },
}

/// Asks the helper processes. A cheap clone.
#[derive(Clone, Debug)]
pub struct Catalog {}

impl Catalog {
    pub async fn secrets(&self) -> Result<Secrets, CatalogError> {
        unimplemented!()
    }

    pub async fn role(&self, _role: &str) -> Result<RoleStatus, CatalogError> {
        unimplemented!()
    }

    /// The tables as `role` may see them, and the WAL address as of which that was so: what
    /// commits after it is after the question was asked.
    pub async fn tables(
        &self,
        _role: &str,
        _which: Which,
    ) -> Result<(Vec<TableAccess>, crate::event::Lsn), CatalogError> {
        unimplemented!()
    }

    /// What `tide.check()` finds: a JSON array of `{"item","ok","problem","fix"}`, as text.
    pub async fn check(&self) -> Result<String, CatalogError> {
        unimplemented!()
    }

    /// The texts cast to the type by Postgres, as `role`; each as the JSON `to_jsonb` prints.
    pub async fn cast(
        &self,
        _role: &str,
        _type_sql: &str,
        _values: Vec<String>,
    ) -> Result<Vec<String>, CatalogError> {
        unimplemented!()
    }
}
