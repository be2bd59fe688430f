//! A filter ready to be evaluated: one call for each event and distinct filter.
//!
//! SQL's logic of three values holds: a comparison with NULL is neither true nor false, so that
//! its negation is not true either. What the image of a row does not have (an old row that is
//! only its key, a TOASTed value left unchanged), and what is no value of the column's kind, never
//! matches, negated or not.

use std::hash::{Hash, Hasher};

use tide_feed::event::Datum;

use super::constant::{self, Constant};
use super::effort::{Effort, TooMuch};
use super::json;
use super::pattern::Pattern;
use super::tree::{Comparison, Truth};
use crate::allowance::Share;

/// Conditions that all have to be true.
#[derive(Debug)]
pub struct Predicate {
    conditions: Box<[Condition]>,
    /// What it takes of the memory that filters may have.
    _share: Option<Share>,
}

impl PartialEq for Predicate {
    fn eq(&self, other: &Self) -> bool {
        self.conditions == other.conditions
    }
}

impl Eq for Predicate {}

impl Hash for Predicate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.conditions.hash(state);
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    pub(super) attnum: i16,
    pub(super) negated: bool,
    pub(super) check: Check,
    /// The index key, if the condition is `column = value` and the type can be indexed.
    pub(super) key: Option<Box<[u8]>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Check {
    Compare(Comparison, Constant),
    In(Box<[Constant]>),
    Pattern(Box<Pattern>),
    Is(Truth),
    Distinct(Constant),
}

impl Predicate {
    pub(super) fn new(conditions: Box<[Condition]>) -> Predicate {
        Predicate { conditions, _share: None }
    }

    /// Whether the row whose columns `value` gives, by attribute number, satisfies the filter, if
    /// finding out is not too much work.
    pub fn matches<'v>(
        &self,
        value: impl Fn(i16) -> Datum<'v>,
        effort: &Effort,
    ) -> Result<bool, TooMuch> {
        for condition in &self.conditions {
            if !condition.holds(value(condition.attnum), effort)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes that it takes up at most.
    pub fn memory(&self) -> usize {
        self.conditions.iter().map(Condition::memory).sum()
    }

    /// Has it hold its share of the memory that filters may have, for as long as it lives.
    pub fn holding(self, share: Share) -> Predicate {
        Predicate { _share: Some(share), ..self }
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
    fn holds(&self, datum: Datum<'_>, effort: &Effort) -> Result<bool, TooMuch> {
        let result = match datum {
            Datum::Json(json) => self.check.of_value(json, effort)?,
            Datum::Null => self.check.of_null(),
            Datum::Unchanged | Datum::Absent => None,
        };
        Ok(result.is_some_and(|result| result != self.negated))
    }

    fn memory(&self) -> usize {
        let of_check = match &self.check {
            Check::Compare(_, constant) | Check::Distinct(constant) => constant.memory(),
            // Labels are shared by all that are of one condition.
            Check::In(constants) => {
                let own = constants.iter().map(Constant::own_memory).sum::<usize>();
                own + constants.first().map_or(0, Constant::memory)
            }
            Check::Pattern(pattern) => pattern.memory(),
            Check::Is(_) => 0,
        };
        size_of::<Condition>() + of_check + self.key.as_ref().map_or(0, |key| key.len())
    }
}

impl Check {
    /// `None` is SQL's unknown.
    fn of_value(&self, json: &[u8], effort: &Effort) -> Result<Option<bool>, TooMuch> {
        effort.look(json.len())?;
        Ok(match self {
            Check::Compare(comparison, constant) => comparison.of(constant, json),
            Check::In(constants) => return any_equals(constants, json, effort),
            Check::Pattern(pattern) => match json::text(json) {
                Some(text) => Some(pattern.matches(&text, effort)?),
                None => None,
            },
            Check::Is(Truth::Null) => Some(false),
            Check::Is(Truth::True) => constant::bool(json),
            Check::Is(Truth::False) => constant::bool(json).map(|value| !value),
            Check::Is(Truth::Unknown) => constant::bool(json).map(|_| false),
            Check::Distinct(constant) => constant.equals(json).map(|equal| !equal),
        })
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

fn any_equals(
    constants: &[Constant],
    json: &[u8],
    effort: &Effort,
) -> Result<Option<bool>, TooMuch> {
    for constant in constants {
        effort.look(json.len())?;
        match constant.equals(json) {
            Some(false) => {}
            other => return Ok(other),
        }
    }
    Ok(Some(false))
}
