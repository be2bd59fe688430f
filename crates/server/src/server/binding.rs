//! From the parameters of a subscription to a binding that the hub can route by: tables, columns
//! and filters held against what the role may read.

use std::sync::Arc;

use tide_feed::catalog::{TableAccess, TableName};
use tokio::task::spawn_blocking;

use super::context::ServerContext;
use super::credentials::Credentials;
use super::identity;
use crate::allowance::{Allowance, Share};
use crate::catalog::{Asker, CatalogError};
use crate::filter::{self, Filter, FilterError, Predicate};
use crate::hub::basis::Basis;
use crate::hub::subscription::{Binding, Operations, Target};
use crate::memory::Kind;
use crate::wire::join::{ChangeParams, Requested, binding_id};

/// Most values in all filters of one join.
const MAX_CONSTANTS: usize = 10_000;

/// Bytes of all patterns of one join: some take a millisecond to compile for every five bytes.
const MAX_PATTERNS: usize = 4_000;

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
    /// More than there is room for; says of what.
    TooMuch(&'static str),
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
    asker: Asker,
    /// Those that the join names and the role may read.
    tables: &'a [Arc<TableAccess>],
    constants: usize,
    patterns: usize,
    /// Of what the connection's filters may take up.
    share: Share,
}

impl<'a> Bindings<'a> {
    pub(super) fn new(
        context: &'a ServerContext,
        credentials: &Credentials,
        tables: &'a [Arc<TableAccess>],
        own: &Arc<Allowance>,
    ) -> Bindings<'a> {
        let (asker, share) = (credentials.asker(), Share::of(own));
        Bindings { context, asker, tables, constants: 0, patterns: 0, share }
    }

    /// What the filters take up of the connection's memory, to be held for as long as they are.
    pub(super) fn share(self) -> Share {
        self.share
    }

    pub(super) async fn binding(&mut self, params: &ChangeParams) -> Result<Binding, BindingError> {
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
        binding.target = target(access, params.filter.as_deref(), binding.select.as_deref())?;
        Ok(binding)
    }

    pub(super) async fn filter(
        &mut self,
        text: &str,
        access: &TableAccess,
    ) -> Result<Option<Arc<Predicate>>, BindingError> {
        let Some(parsed) = filter::parse(text)? else { return Ok(None) };
        self.constants += parsed.constants();
        self.patterns += parsed.patterns();
        if self.constants > MAX_CONSTANTS {
            return Err(BindingError::TooMuch("The filters of one join have at most 10000 values"));
        }
        if self.patterns > MAX_PATTERNS {
            let most = "The patterns in the filters of one join have at most 4000 bytes";
            return Err(BindingError::TooMuch(most));
        }
        let answers = self.cast_all(&parsed, access).await?;
        let predicate = if parsed.patterns() > 0 {
            // Others are served meanwhile.
            let access = with_columns_of(access, &parsed);
            let compiling = spawn_blocking(move || filter::compile(&parsed, &access, &answers));
            compiling.await.map_err(|_| BindingError::Unavailable)?
        } else {
            filter::compile(&parsed, access, &answers)
        };
        self.hold(predicate?).map(|predicate| Some(Arc::new(predicate)))
    }

    /// The values of each condition of a filter, as the types of their columns read them under any settings.
    pub(super) async fn casted(
        &self,
        text: &str,
        access: &TableAccess,
    ) -> Result<Vec<Vec<String>>, BindingError> {
        let Some(parsed) = filter::parse(text)? else { return Ok(Vec::new()) };
        let answers = self.cast_all(&parsed, access).await?;
        Ok(filter::exact_values(&parsed, access, &answers)?)
    }

    /// Counts what the filter takes up, on its connection and in all.
    fn hold(&mut self, predicate: Predicate) -> Result<Predicate, BindingError> {
        let memory = predicate.memory();
        if !self.share.grow(memory) {
            let most = "The filters of this connection would take too much memory";
            return Err(BindingError::TooMuch(most));
        }
        let mut share = self.context.share(Kind::Filters);
        if !share.grow(memory) {
            return Err(BindingError::TooMuch("There is no memory for more filters, try again"));
        }
        Ok(predicate.holding(share))
    }

    /// What Postgres makes of all values of a filter, as [`filter::compile`] wants it.
    async fn cast_all(
        &self,
        parsed: &Filter,
        access: &TableAccess,
    ) -> Result<Vec<Vec<String>>, BindingError> {
        let mut answers = Vec::new();
        for (type_sql, values) in filter::casts(parsed, access)? {
            answers.push(self.cast(&type_sql, values).await?);
        }
        Ok(answers)
    }

    async fn cast(&self, type_sql: &str, values: Vec<String>) -> Result<Vec<String>, BindingError> {
        let ask = || self.context.catalog.cast(&self.asker, type_sql, values.clone());
        match identity::patiently(self.context.config().handshake_timeout, ask).await {
            Ok(values) => Ok(values),
            Err(CatalogError::Refused { sqlstate, message }) if is_of_values(&sqlstate) => {
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

/// The table, with what a binding to it depends on.
pub(super) fn target(
    access: &TableAccess,
    filter: Option<&str>,
    select: Option<&[Box<str>]>,
) -> Result<Target, filter::ParseError> {
    let parsed = filter.map(filter::parse).transpose()?.flatten();
    let conditions = parsed.iter().flat_map(|filter| &filter.conditions);
    let compared: Vec<&str> = conditions.map(|condition| &*condition.column).collect();
    let basis = Basis::of(access, &compared, select.unwrap_or_default());
    Ok(Target::Table { oid: access.oid, basis })
}

/// The table with those of its columns only that the filter is about: it may have a great many.
fn with_columns_of(access: &TableAccess, filter: &Filter) -> TableAccess {
    let is_named = |name: &str| filter.conditions.iter().any(|condition| condition.column == name);
    let columns = access.columns.iter().filter(|column| is_named(&column.name)).cloned().collect();
    let (schema, table) = (access.schema.clone(), access.table.clone());
    TableAccess { oid: access.oid, schema, table, row_security: None, columns }
}

/// Class 22: the texts are not values of the type. Class 54: these are too large.
fn is_of_values(sqlstate: &str) -> bool {
    sqlstate.starts_with("22") || sqlstate.starts_with("54")
}

/// The tables that parameters name, each once.
pub(super) fn named_tables(params: &[ChangeParams]) -> Vec<TableName> {
    let mut names: Vec<TableName> = Vec::new();
    for (schema, table) in params.iter().filter_map(ChangeParams::target) {
        if schema == "*" || table == "*" {
            continue;
        }
        let name = TableName { schema: schema.to_owned(), table: table.to_owned() };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
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

    fn params(schema: Option<&str>, table: Option<&str>) -> ChangeParams {
        ChangeParams {
            raw: "".into(),
            event: Requested::All,
            schema: schema.map(str::to_owned),
            table: table.map(str::to_owned),
            filter: None,
            select: None,
            malformed: None,
        }
    }

    #[test]
    fn each_table_is_asked_for_once_and_wildcards_not_at_all() {
        let asked = named_tables(&[
            params(Some("public"), Some("a")),
            params(None, Some("a")),
            params(Some("other"), Some("a")),
            params(Some("*"), None),
            params(Some("public"), Some("*")),
            params(None, None),
        ]);

        let names: Vec<_> = asked.iter().map(|n| (&*n.schema, &*n.table)).collect();
        assert_eq!(names, [("public", "a"), ("other", "a")]);
    }
}
