//! From the parameters of a subscription to a binding that the hub can route by: tables, columns
//! and filters held against what the role may read.

use std::sync::Arc;

use tide_feed::catalog::TableAccess;

use super::context::ServerContext;
use super::identity;
use crate::catalog::CatalogError;
use crate::filter::{self, FilterError, Predicate};
use crate::hub::subscription::{Binding, Operations, Target};
use crate::wire::join::{ChangeParams, Requested, binding_id};

/// Why parameters are no binding.
#[derive(Debug)]
pub(super) enum BindingError {
    /// What the client wrote is not a filter; says why.
    Filter(filter::ParseError),
    /// A filter that does not suit its table; says why.
    Unsuitable(String),
    /// Missing, forbidden, or not to be had like this: one answer for all, so that nobody learns
    /// what there is from what is refused.
    Refused,
    Unavailable,
}

impl From<filter::ParseError> for BindingError {
    fn from(error: filter::ParseError) -> BindingError {
        BindingError::Filter(error)
    }
}

impl From<FilterError> for BindingError {
    fn from(error: FilterError) -> BindingError {
        match error {
            FilterError::Parse(error) => BindingError::Filter(error),
            FilterError::Column { .. } => BindingError::Refused,
            other => BindingError::Unsuitable(other.to_string()),
        }
    }
}

/// Makes the bindings of one join.
pub(super) struct Bindings<'a> {
    context: &'a ServerContext,
    role: &'a str,
    /// Those that the join names and the role may read.
    tables: &'a [TableAccess],
}

impl<'a> Bindings<'a> {
    pub(super) fn new(
        context: &'a ServerContext,
        role: &'a str,
        tables: &'a [TableAccess],
    ) -> Bindings<'a> {
        Bindings { context, role, tables }
    }

    pub(super) async fn binding(&self, params: &ChangeParams) -> Result<Binding, BindingError> {
        if params.malformed.is_some() {
            return Err(BindingError::Refused);
        }
        let operations = operations(&params.event).ok_or(BindingError::Refused)?;
        let (schema, table) = params.target().ok_or(BindingError::Refused)?;
        let mut binding = Binding {
            id: binding_id(params),
            operations,
            target: Target::All,
            filter: None,
            select: None,
        };
        if schema == "*" || table == "*" {
            // Columns are those of a table.
            let parsed = params.filter.as_deref().map(filter::parse).transpose()?.flatten();
            if parsed.is_some() || params.select.is_some() || (schema == "*" && table != "*") {
                return Err(BindingError::Refused);
            }
            if schema != "*" {
                binding.target = Target::Schema(schema.into());
            }
            return Ok(binding);
        }
        if let Some(text) = params.filter.as_deref() {
            // Before the look-up: what is wrong with it is the client's own.
            filter::parse(text)?;
        }
        let access = self
            .tables
            .iter()
            .find(|access| access.schema == schema && access.table == table)
            .ok_or(BindingError::Refused)?;
        binding.target = Target::Table(access.oid);
        if let Some(text) = params.filter.as_deref() {
            binding.filter = self.filter(text, access).await?;
        }
        if let Some(names) = params.select.as_deref() {
            // As at Supabase, both have to be written for a selection of columns.
            if params.schema.is_none() || params.table.is_none() {
                return Err(BindingError::Refused);
            }
            binding.select = Some(self.select(names, access)?);
        }
        Ok(binding)
    }

    pub(super) async fn filter(
        &self,
        text: &str,
        access: &TableAccess,
    ) -> Result<Option<Arc<Predicate>>, BindingError> {
        let Some(parsed) = filter::parse(text)? else { return Ok(None) };
        let mut answers = Vec::new();
        for (type_sql, values) in filter::casts(&parsed, access)? {
            answers.push(self.cast(&type_sql, values).await?);
        }
        Ok(Some(Arc::new(filter::compile(&parsed, access, &answers)?)))
    }

    async fn cast(&self, type_sql: &str, values: Vec<String>) -> Result<Vec<String>, BindingError> {
        let ask = || self.context.catalog.cast(self.role, type_sql, values.clone());
        match identity::patiently(self.context.config.handshake_timeout, ask).await {
            Ok(values) => Ok(values),
            // Class 22: the texts are not values of the type.
            Err(CatalogError::Refused { sqlstate, message }) if sqlstate.starts_with("22") => {
                Err(BindingError::Unsuitable(message))
            }
            Err(error @ CatalogError::Refused { .. }) if !error.is_transient() => {
                Err(BindingError::Refused)
            }
            Err(_) => Err(BindingError::Unavailable),
        }
    }

    /// Columns that the role may read, in the client's order, each once.
    pub(super) fn select(
        &self,
        names: &[String],
        access: &TableAccess,
    ) -> Result<Arc<[Box<str>]>, BindingError> {
        let mut chosen: Vec<Box<str>> = Vec::new();
        for name in names {
            let readable =
                access.columns.iter().any(|column| column.readable && column.name == *name);
            if !readable {
                return Err(BindingError::Refused);
            }
            if !chosen.iter().any(|other| **other == **name) {
                chosen.push(name.as_str().into());
            }
        }
        Ok(chosen.into())
    }
}

fn operations(event: &Requested) -> Option<Operations> {
    match event {
        Requested::All => Some(Operations::ROWS),
        Requested::One(operation) => Some(Operations::of([*operation])),
        Requested::Unknown(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use tide_feed::event::Operation;

    use super::*;

    #[test]
    fn everything_means_rows_and_truncation_has_to_be_named() {
        let all = operations(&Requested::All).unwrap();

        assert!(all.contains(Operation::Delete));
        assert!(!all.contains(Operation::Truncate));
        let named = operations(&Requested::One(Operation::Truncate)).unwrap();
        assert!(named.contains(Operation::Truncate));
        assert!(operations(&Requested::Unknown("MERGE".into())).is_none());
    }
}
