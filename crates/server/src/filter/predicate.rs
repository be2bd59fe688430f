//! A filter ready to be evaluated: one call for each event and distinct filter.
//!
//! SQL's logic of three values holds: a comparison with NULL is neither true nor false, so that
//! its negation is not true either. What the image of a row does not have (an old row that is
//! only its key, a TOASTed value left unchanged), and what is no value of the column's kind, never
//! matches, negated or not.

use tide_feed::event::Datum;

use super::constant::{self, Constant};
use super::json;
use super::pattern::Pattern;
use super::tree::{Comparison, Truth};

/// Conditions that all have to be true.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Predicate {
    pub(super) conditions: Box<[Condition]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    pub(super) attnum: i16,
    pub(super) negated: bool,
    pub(super) check: Check,
    /// The index key, if the condition is `column = value` and the type can be indexed.
    pub(super) key: Option<Box<[u8]>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Check {
    Compare(Comparison, Constant),
    In(Box<[Constant]>),
    Pattern(Pattern),
    Is(Truth),
    Distinct(Constant),
}

impl Predicate {
    /// Whether the row whose columns `value` gives, by attribute number, satisfies the filter.
    pub fn matches<'v>(&self, value: impl Fn(i16) -> Datum<'v>) -> bool {
        self.conditions.iter().all(|condition| condition.holds(value(condition.attnum)))
    }

    /// A column and the [`index_key`](super::index_key) that its value must have for the filter
    /// to match, if there is such a condition.
    pub fn equality(&self) -> Option<(i16, &[u8])> {
        self.conditions
            .iter()
            .find_map(|condition| Some((condition.attnum, condition.key.as_deref()?)))
    }
}

impl Condition {
    fn holds(&self, datum: Datum<'_>) -> bool {
        let result = match datum {
            Datum::Json(json) => self.check.of_value(json),
            Datum::Null => self.check.of_null(),
            Datum::Unchanged | Datum::Absent => None,
        };
        result.is_some_and(|result| result != self.negated)
    }
}

impl Check {
    /// `None` is SQL's unknown.
    fn of_value(&self, json: &[u8]) -> Option<bool> {
        match self {
            Check::Compare(comparison, constant) => comparison.of(constant, json),
            Check::In(constants) => any_equals(constants, json),
            Check::Pattern(pattern) => Some(pattern.matches(&json::text(json)?)),
            Check::Is(Truth::Null) => Some(false),
            Check::Is(Truth::True) => constant::bool(json),
            Check::Is(Truth::False) => constant::bool(json).map(|value| !value),
            Check::Is(Truth::Unknown) => constant::bool(json).map(|_| false),
            Check::Distinct(constant) => constant.equals(json).map(|equal| !equal),
        }
    }

    fn of_null(&self) -> Option<bool> {
        match self {
            // As `= any ('{}')`: there is nothing that NULL would be compared with.
            Check::In(constants) => constants.is_empty().then_some(false),
            Check::Compare(..) | Check::Pattern(_) => None,
            Check::Is(truth) => Some(matches!(truth, Truth::Null | Truth::Unknown)),
            Check::Distinct(_) => Some(true),
        }
    }
}

impl Comparison {
    /// `json <comparison> constant`
    fn of(self, constant: &Constant, json: &[u8]) -> Option<bool> {
        match self {
            Comparison::Eq => constant.equals(json),
            Comparison::Neq => constant.equals(json).map(|equal| !equal),
            Comparison::Lt => constant.compare(json).map(|order| order.is_lt()),
            Comparison::Lte => constant.compare(json).map(|order| order.is_le()),
            Comparison::Gt => constant.compare(json).map(|order| order.is_gt()),
            Comparison::Gte => constant.compare(json).map(|order| order.is_ge()),
        }
    }
}

fn any_equals(constants: &[Constant], json: &[u8]) -> Option<bool> {
    for constant in constants {
        if constant.equals(json)? {
            return Some(true);
        }
    }
    Some(false)
}
