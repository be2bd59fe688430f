//! Links to rows that the same mutation has made: `{"$new": 0}` stands for the key of the row that the first
//! operation wrote, `{"$new": 0, "column": "id"}` for one of several columns of it.

use std::collections::HashSet;

use pgrx::PgSqlErrorCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use tide_feed::mutation::{Fields, Mutation};

use crate::helper::mutation::operation::Done;
use crate::helper::transaction::Refusal;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    #[serde(rename = "$new")]
    index: usize,
    column: Option<String>,
}

impl Link {
    fn of(value: &RawValue) -> Option<Link> {
        value.get().starts_with('{').then(|| serde_json::from_str(value.get()).ok())?
    }

    fn target<'a>(&self, done: &'a [Done]) -> Result<&'a RawValue, Refusal> {
        let refused =
            |message: &str| Refusal::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
        let key = done.get(self.index).and_then(|done| done.key.as_ref()).ok_or_else(|| {
            refused("$new is the index of an operation before this one that wrote a row with a key")
        })?;
        let value = match &self.column {
            Some(column) => key.get(column),
            None if key.len() == 1 => key.values().next(),
            None => return Err(refused("the key has several columns: name one, as \"column\"")),
        };
        value.map(AsRef::as_ref).ok_or_else(|| refused("the key has no such column"))
    }
}

/// Which operations are linked to.
pub(crate) fn linked(mutation: &Mutation) -> HashSet<usize> {
    let fields = mutation.ops.iter().flat_map(|op| [&op.key, &op.values, &op.args]);
    let values = fields.flatten().flat_map(Fields::values);
    values.filter_map(|value| Link::of(value).map(|link| link.index)).collect()
}

/// The fields, with what links stand for.
pub(crate) fn resolved(fields: Option<&Fields>, done: &[Done]) -> Result<Fields, Refusal> {
    let mut resolved = Fields::new();
    for (name, value) in fields.into_iter().flatten() {
        let value = match Link::of(value) {
            Some(link) => link.target(done)?.to_owned(),
            None => value.clone(),
        };
        resolved.insert(name.clone(), value);
    }
    Ok(resolved)
}
