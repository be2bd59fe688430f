//! Row filters of `postgres_changes`: parsed, held against a table, evaluated on each event.
//!
//! [`parse()`] makes a tree of the client's text, [`casts`] says which of its values Postgres has to
//! cast, [`compile()`] makes a [`Predicate`] of the tree and the answers.

mod compile;
mod constant;
mod cursor;
mod decimal;
mod effort;
mod json;
mod moment;
mod parse;
mod pattern;
mod predicate;
#[cfg(test)]
mod tests;
mod tree;

pub use compile::{FilterError, casts, compile, exact_values};
pub use constant::index_key;
pub use effort::{Effort, Place, TooMuch};
pub use parse::{MAX_CONDITIONS, MAX_LENGTH, MAX_VALUES, ParseError, parse};
pub use predicate::Predicate;
pub use tree::{Comparison, Condition, Filter, PatternKind, Test, Truth};
