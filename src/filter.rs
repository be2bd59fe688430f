//! Row filters of `postgres_changes`.
#![forbid(unsafe_code)]

/// A filter ready to be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Predicate {}
