//! Holding a filter against a table: what the role may see of it, and what its types can do.

use tide_feed::catalog::{ColumnAccess, TableAccess};
use tide_feed::event::Kind;

use super::constant::{Constant, index_key, is_padded};
use super::parse::{ParseError, shown};
use super::pattern::{Pattern, Unusable};
use super::predicate::{Check, Condition, Predicate};
use super::tree::{self, Comparison, Filter, PatternKind, Test, Truth};

/// A filter that cannot be used with its table. Names only what the client sent, and the type of
/// a column that it may read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// Not there, or not to be read by the role: the client is not told which.
    #[error("invalid column for filter {column}")]
    Column { column: String },
    #[error("operator {operator} is not supported for column {column} of type {type_name}")]
    Operator { operator: &'static str, column: String, type_name: String },
    #[error("operator {operator} requires a text-compatible column type, got {type_name}")]
    NotText { operator: &'static str, type_name: String },
    #[error("is {keyword} filter requires a boolean column, got {type_name}")]
    NotBoolean { keyword: &'static str, type_name: String },
    #[error("invalid pattern for {operator} filter on column {column}")]
    Pattern { operator: &'static str, column: String },
    #[error("the pattern for {operator} filter on column {column} is too large")]
    TooLarge { operator: &'static str, column: String },
    /// The answers do not belong to the questions that [`casts`] asked.
    #[error("the values of the filter on column {column} could not be cast")]
    Uncast { column: String },
}

/// Checks the filter against the table, and says what has to be cast: types as SQL writes them,
/// each with its values. The answers, in the same order, go to [`compile`].
pub fn casts(
    filter: &Filter,
    table: &TableAccess,
) -> Result<Vec<(String, Vec<String>)>, FilterError> {
    let mut casts: Vec<(String, Vec<String>)> = Vec::new();
    for condition in &filter.conditions {
        let column = column(condition, table)?;
        let constants = condition.test.constants();
        if constants.is_empty() {
            continue;
        }
        match casts.iter_mut().find(|(type_sql, _)| *type_sql == column.type_sql) {
            Some((_, values)) => values.extend_from_slice(constants),
            None => casts.push((column.type_sql.clone(), constants.to_vec())),
        }
    }
    Ok(casts)
}

/// The values of each condition, as texts that the type of its column reads in the same way whatever is set;
/// patterns as they are. `answers`: as for [`compile`].
pub fn exact_values(
    filter: &Filter,
    table: &TableAccess,
    answers: &[Vec<String>],
) -> Result<Vec<Vec<String>>, FilterError> {
    let types = casts(filter, table)?.into_iter().map(|(type_sql, _)| type_sql);
    let mut answers: Vec<_> = types.zip(answers.iter().map(|values| values.iter())).collect();
    let mut all = Vec::new();
    for condition in &filter.conditions {
        let column = column(condition, table)?;
        let given = condition.of_column(column.attnum).values;
        let of_type = answers.iter_mut().find(|(type_sql, _)| *type_sql == column.type_sql);
        let count = condition.test.constants().len();
        let exact = of_type.into_iter().flat_map(|(_, answers)| answers.by_ref().take(count));
        let exact = exact.map(|json| plain(json)).zip(&given);
        let exact: Vec<String> =
            exact.map(|(exact, given)| exact.unwrap_or_else(|| given.clone())).collect();
        all.push(if count == 0 { given } else { exact });
    }
    Ok(all)
}

/// The text of a JSON string, number or boolean: not of what has parts, whose JSON is not its text.
fn plain(json: &str) -> Option<String> {
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str(json).ok(),
        b'[' | b'{' | b'n' => None,
        _ => Some(json.to_owned()),
    }
}

/// Makes the filter ready to be evaluated. `answers` holds for each entry of [`casts`] the text
/// of `to_jsonb` of each of its values.
pub fn compile(
    filter: &Filter,
    table: &TableAccess,
    answers: &[Vec<String>],
) -> Result<Predicate, FilterError> {
    let types = casts(filter, table)?.into_iter().map(|(type_sql, _)| type_sql);
    let mut answers: Vec<_> =
        types.zip(answers).map(|(type_sql, values)| (type_sql, values.iter())).collect();
    let conditions = filter
        .conditions
        .iter()
        .map(|condition| {
            let column = column(condition, table)?;
            let mut none = [].iter();
            let answers = answers
                .iter_mut()
                .find(|(type_sql, _)| *type_sql == column.type_sql)
                .map_or(&mut none, |(_, values)| values);
            compile_condition(condition, column, answers)
        })
        .collect::<Result<_, _>>()?;
    Ok(Predicate::new(conditions))
}

/// The column that a condition is about, if the condition can be put to it.
fn column<'t>(
    condition: &tree::Condition,
    table: &'t TableAccess,
) -> Result<&'t ColumnAccess, FilterError> {
    let column = table
        .columns
        .iter()
        .find(|column| column.readable && column.name == condition.column)
        .ok_or_else(|| FilterError::Column { column: shown(&condition.column) })?;
    let type_name = || column.type_name.clone();
    match &condition.test {
        Test::Pattern(kind, _) if column.kind != Kind::Text => {
            Err(FilterError::NotText { operator: kind.operator(), type_name: type_name() })
        }
        Test::Is(truth) if *truth != Truth::Null && column.kind != Kind::Bool => {
            Err(FilterError::NotBoolean { keyword: truth.keyword(), type_name: type_name() })
        }
        Test::Compare(comparison, _) if comparison.is_order() && !is_ordered(column) => {
            Err(FilterError::Operator {
                operator: condition.test.operator(),
                column: shown(&condition.column),
                type_name: type_name(),
            })
        }
        _ => Ok(column),
    }
}

fn is_ordered(column: &ColumnAccess) -> bool {
    match column.kind {
        Kind::Json | Kind::Other => false,
        // There are too many to be known.
        Kind::Enum => !column.labels.is_empty(),
        _ => true,
    }
}

impl Comparison {
    fn is_order(self) -> bool {
        !matches!(self, Comparison::Eq | Comparison::Neq)
    }
}

fn compile_condition<'a>(
    condition: &tree::Condition,
    column: &ColumnAccess,
    answers: &mut impl Iterator<Item = &'a String>,
) -> Result<Condition, FilterError> {
    let mut only = None;
    let mut constant = || {
        let json = answers.next()?.as_bytes();
        only = Some(json);
        Constant::read(column, json)
    };
    let uncast = || FilterError::Uncast { column: shown(&condition.column) };
    let check = match &condition.test {
        Test::Compare(comparison, _) => Check::Compare(*comparison, constant().ok_or_else(uncast)?),
        Test::In(values) => {
            let mut constants: Vec<Constant> = Vec::with_capacity(values.len());
            for _ in values {
                let mut one = constant().ok_or_else(uncast)?;
                if let Some(first) = constants.first() {
                    one.share_labels(first);
                }
                constants.push(one);
            }
            Check::In(constants.into())
        }
        Test::Distinct(_) => Check::Distinct(constant().ok_or_else(uncast)?),
        Test::Is(truth) => Check::Is(*truth),
        Test::Pattern(kind, source) => Check::Pattern(Box::new(pattern(*kind, source, condition)?)),
    };
    let is_equality = match &check {
        Check::Compare(Comparison::Eq, _) => true,
        Check::In(constants) => constants.len() == 1,
        _ => false,
    };
    let key = match only {
        Some(json) if is_equality && !condition.negated && !is_padded(column) => {
            index_key(column.kind, json).map(|key| key.into())
        }
        _ => None,
    };
    Ok(Condition { attnum: column.attnum, negated: condition.negated, check, key })
}

fn pattern(
    kind: PatternKind,
    source: &str,
    condition: &tree::Condition,
) -> Result<Pattern, FilterError> {
    let (operator, column) = (kind.operator(), || shown(&condition.column));
    Pattern::new(kind, source).map_err(|unusable| match unusable {
        Unusable::Invalid => FilterError::Pattern { operator, column: column() },
        Unusable::TooLarge => FilterError::TooLarge { operator, column: column() },
    })
}
