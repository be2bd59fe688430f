//! Row filters of `postgres_changes`: parsed, held against a table, evaluated on each event.
#![forbid(unsafe_code)]

mod parse;
mod tree;

pub use parse::{MAX_CONDITIONS, MAX_LENGTH, MAX_VALUES, ParseError, parse};
pub use tree::{Comparison, Condition, Filter, PatternKind, Test, Truth};

/// A filter ready to be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Predicate {}
