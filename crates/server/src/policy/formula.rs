//! A condition that the hub evaluates by itself, in SQL's logic of three values, on what it knows of
//! a row: only comparisons for which equal values are equal texts.

use std::borrow::Cow;

use serde_json::value::RawValue;
use tide_feed::event::{Datum, Kind};
use tide_feed::labels;

use super::sight::Seen;
use crate::filter::index_key;

/// The truth values that a condition may have, given what is known: true, false, null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Truths(u8);

impl Truths {
    const TRUE: Truths = Truths(1);
    const FALSE: Truths = Truths(2);
    const NULL: Truths = Truths(4);
    const ANY: Truths = Truths(7);

    fn of(value: Option<bool>) -> Truths {
        match value {
            Some(true) => Truths::TRUE,
            Some(false) => Truths::FALSE,
            None => Truths::NULL,
        }
    }

    fn may_be(self, other: Truths) -> bool {
        self.0 & other.0 != 0
    }

    fn when(self, condition: bool) -> Truths {
        if condition { self } else { Truths(0) }
    }

    fn or_else(self, other: Truths) -> Truths {
        Truths(self.0 | other.0)
    }

    fn not(self) -> Truths {
        Truths::TRUE
            .when(self.may_be(Truths::FALSE))
            .or_else(Truths::FALSE.when(self.may_be(Truths::TRUE)))
            .or_else(Truths::NULL.when(self.may_be(Truths::NULL)))
    }

    fn and(self, other: Truths) -> Truths {
        let may_be_unfalse = |t: Truths| t.may_be(Truths::TRUE) || t.may_be(Truths::NULL);
        let both_true = self.may_be(Truths::TRUE) && other.may_be(Truths::TRUE);
        let one_false = self.may_be(Truths::FALSE) || other.may_be(Truths::FALSE);
        let one_null = self.may_be(Truths::NULL) && may_be_unfalse(other)
            || other.may_be(Truths::NULL) && may_be_unfalse(self);
        Truths::TRUE
            .when(both_true)
            .or_else(Truths::FALSE.when(one_false))
            .or_else(Truths::NULL.when(one_null))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A column as it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) attnum: i16,
    pub(super) kind: Kind,
}

impl Column {
    /// Events are found by the texts of their values, which say nothing of labels.
    fn is_indexed(self) -> bool {
        self.kind != Kind::Enum
    }
}

/// What a column is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    /// The [`index_key`] of a constant; `None` is NULL.
    Constant(Option<Box<[u8]>>),
    /// The place of an expression over the claims.
    Claim(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Formula {
    Constant(Option<bool>),
    /// An expression over the claims that is true, false or null.
    Claim(usize),
    /// A column that is true, false or null.
    Flag(i16),
    IsNull(i16),
    /// Whether it is true, or false; never null.
    Is(Box<Formula>, bool),
    Compare(Column, Comparison, Operand),
    Any(Column, Vec<Operand>),
    Not(Box<Formula>),
    And(Vec<Formula>),
    Or(Vec<Formula>),
}

/// What an expression over the claims is worth to a client, ready to be compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    One(Box<[u8]>),
    Many { keys: Box<[Box<[u8]>]>, has_null: bool },
}

impl Value {
    /// Reads what `to_jsonb` printed; `None` if that is no value of the kind.
    pub(super) fn read(kind: Kind, is_array: bool, json: Option<&str>) -> Option<Value> {
        let key = |json: &str| Some(Box::from(index_key(kind, json.as_bytes())?.as_ref()));
        let Some(json) = json.filter(|json| *json != "null") else { return Some(Value::Null) };
        if !is_array {
            return key(json).map(Value::One);
        }
        let items: Vec<Option<&RawValue>> = serde_json::from_str(json).ok()?;
        let has_null = items.iter().any(Option::is_none);
        let keys = items.into_iter().flatten().map(|item| key(item.get()));
        Some(Value::Many { keys: keys.collect::<Option<_>>()?, has_null })
    }
}

impl Formula {
    /// Whether the row whose columns `value` gives is visible to a client with these claims.
    pub(super) fn seen<'v>(&self, values: &[Value], value: &dyn Fn(i16) -> Datum<'v>) -> Seen {
        let truths = self.truths(values, value);
        if truths == Truths::TRUE {
            Seen::Yes
        } else if truths.may_be(Truths::TRUE) {
            Seen::Unknown
        } else {
            Seen::No
        }
    }

    fn truths<'v>(&self, values: &[Value], value: &dyn Fn(i16) -> Datum<'v>) -> Truths {
        let of = |formula: &Formula| formula.truths(values, value);
        match self {
            Formula::Constant(value) => Truths::of(*value),
            Formula::Claim(place) => match values.get(*place) {
                Some(Value::One(key)) => Truths::of(Some(**key == *b"true")),
                Some(Value::Null) => Truths::NULL,
                _ => Truths::FALSE,
            },
            Formula::Flag(attnum) => match value(*attnum) {
                Datum::Json(json) => Truths::of(Some(json == b"true")),
                Datum::Null => Truths::NULL,
                Datum::Unchanged | Datum::Absent => Truths::ANY,
            },
            Formula::IsNull(attnum) => match value(*attnum) {
                Datum::Json(_) => Truths::FALSE,
                Datum::Null => Truths::TRUE,
                Datum::Unchanged | Datum::Absent => Truths::TRUE.or_else(Truths::FALSE),
            },
            Formula::Is(formula, wanted) => {
                let (truths, wanted) = (of(formula), Truths::of(Some(*wanted)));
                Truths::TRUE
                    .when(truths.may_be(wanted))
                    .or_else(Truths::FALSE.when(truths != wanted))
            }
            Formula::Compare(column, comparison, operand) => {
                compare(*column, *comparison, operand.key(values), value(column.attnum))
            }
            Formula::Any(column, operands) => any(*column, operands, values, value(column.attnum)),
            Formula::Not(formula) => of(formula).not(),
            Formula::And(all) => all.iter().map(of).fold(Truths::TRUE, Truths::and),
            Formula::Or(all) => {
                all.iter().map(|f| of(f).not()).fold(Truths::TRUE, Truths::and).not()
            }
        }
    }

    /// The columns that it looks at.
    pub(super) fn columns(&self, out: &mut Vec<i16>) {
        match self {
            Formula::Constant(_) | Formula::Claim(_) => {}
            Formula::Flag(attnum) | Formula::IsNull(attnum) => out.push(*attnum),
            Formula::Compare(column, ..) | Formula::Any(column, _) => out.push(column.attnum),
            Formula::Is(formula, _) | Formula::Not(formula) => formula.columns(out),
            Formula::And(all) | Formula::Or(all) => all.iter().for_each(|f| f.columns(out)),
        }
    }

    /// Whether there may be [anchors](Formula::anchors).
    pub(super) fn is_indexed(&self) -> bool {
        match self {
            Formula::Compare(column, Comparison::Eq, _) | Formula::Any(column, _) => {
                column.is_indexed()
            }
            Formula::And(all) => all.iter().any(Formula::is_indexed),
            Formula::Or(all) => {
                all.iter().all(|f| f.is_indexed() || matches!(f, Formula::Claim(_)))
            }
            Formula::Is(formula, true) => formula.is_indexed(),
            _ => false,
        }
    }

    /// Values of columns one of which a row must have to be visible to a client with these claims:
    /// columns with their keys. `None`: there is no such list.
    pub(super) fn anchors(&self, values: &[Value]) -> Option<Vec<(i16, Box<[u8]>)>> {
        let never = || Some(Vec::new());
        match self {
            Formula::Constant(Some(true)) => None,
            Formula::Constant(_) => never(),
            Formula::Claim(place) => match values.get(*place) {
                Some(Value::One(key)) if **key == *b"true" => None,
                _ => never(),
            },
            Formula::Compare(column, Comparison::Eq, operand) if column.is_indexed() => {
                match operand.key(values) {
                    Some(key) => Some(vec![(column.attnum, key.into())]),
                    None => never(),
                }
            }
            Formula::Any(column, operands) if column.is_indexed() => {
                let keys = operands.iter().flat_map(|operand| operand.keys(values).0);
                Some(keys.map(|key| (column.attnum, key.into())).collect())
            }
            Formula::And(all) => all.iter().filter_map(|f| f.anchors(values)).min_by_key(Vec::len),
            Formula::Or(all) => {
                let each = all.iter().map(|f| f.anchors(values));
                each.collect::<Option<Vec<_>>>().map(|lists| lists.concat())
            }
            Formula::Is(formula, true) => formula.anchors(values),
            _ => None,
        }
    }
}

impl Operand {
    /// `None` is NULL.
    fn key<'a>(&'a self, values: &'a [Value]) -> Option<&'a [u8]> {
        match self {
            Operand::Constant(key) => key.as_deref(),
            Operand::Claim(place) => match values.get(*place)? {
                Value::One(key) => Some(key),
                Value::Null | Value::Many { .. } => None,
            },
        }
    }

    /// The members of an array, or the one value; and whether NULL is among them, or is all.
    fn keys<'a>(&'a self, values: &'a [Value]) -> (Vec<&'a [u8]>, bool) {
        match self {
            Operand::Claim(place) => match values.get(*place) {
                Some(Value::Many { keys, has_null }) => {
                    (keys.iter().map(|key| &**key).collect(), *has_null)
                }
                Some(Value::One(key)) => (vec![key], false),
                Some(Value::Null) | None => (Vec::new(), true),
            },
            Operand::Constant(key) => (key.as_deref().into_iter().collect(), key.is_none()),
        }
    }
}

fn compare(
    column: Column,
    comparison: Comparison,
    operand: Option<&[u8]>,
    datum: Datum<'_>,
) -> Truths {
    let Some(operand) = operand else { return Truths::NULL };
    let json = match datum {
        Datum::Json(json) => json,
        Datum::Null => return Truths::NULL,
        Datum::Unchanged | Datum::Absent => return Truths::ANY,
    };
    let Some(key) = key(column, json) else { return Truths::ANY };
    let ordering = match comparison {
        Comparison::Eq => return Truths::of(Some(*key == *operand)),
        Comparison::Ne => return Truths::of(Some(*key != *operand)),
        _ => match (number(column.kind, &key), number(column.kind, operand)) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => return Truths::ANY,
        },
    };
    Truths::of(Some(match comparison {
        Comparison::Lt => ordering.is_lt(),
        Comparison::Le => ordering.is_le(),
        Comparison::Gt => ordering.is_gt(),
        _ => ordering.is_ge(),
    }))
}

/// A value of an event, ready to be compared. Labels are compared as what stands for them, and with
/// nothing else: since the event, the column may have become an enum, or ceased to be one.
fn key(column: Column, json: &[u8]) -> Option<Cow<'_, [u8]>> {
    index_key(column.kind, json).filter(|key| match column.kind {
        Kind::Enum => labels::is_key(key),
        Kind::Text | Kind::Uuid => !labels::is_key(key),
        _ => true,
    })
}

fn any(column: Column, operands: &[Operand], values: &[Value], datum: Datum<'_>) -> Truths {
    let mut members: Vec<&[u8]> = Vec::new();
    let mut has_null = false;
    for operand in operands {
        let (keys, null) = operand.keys(values);
        members.extend(keys);
        has_null |= null;
    }
    if members.is_empty() {
        return if has_null { Truths::NULL } else { Truths::FALSE };
    }
    let json = match datum {
        Datum::Json(json) => json,
        Datum::Null => return Truths::NULL,
        Datum::Unchanged | Datum::Absent => return Truths::ANY,
    };
    let Some(key) = key(column, json) else { return Truths::ANY };
    match members.iter().any(|member| **member == *key) {
        true => Truths::TRUE,
        false if has_null => Truths::NULL,
        false => Truths::FALSE,
    }
}

/// The number that a key stands for, of kinds that are ordered as numbers.
pub(super) fn number(kind: Kind, key: &[u8]) -> Option<i64> {
    match kind {
        Kind::Int => std::str::from_utf8(key).ok()?.parse().ok(),
        Kind::Date => Some(i64::from_be_bytes(key.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: Column = Column { attnum: 1, kind: Kind::Int };

    fn constant(text: &str) -> Operand {
        Operand::Constant(Some(text.as_bytes().into()))
    }

    fn seen(formula: &Formula, values: &[Value], datum: Datum<'static>) -> Seen {
        formula.seen(values, &move |_| datum)
    }

    fn equals(text: &str) -> Formula {
        Formula::Compare(N, Comparison::Eq, constant(text))
    }

    #[test]
    fn null_is_neither_equal_nor_different() {
        for formula in [
            equals("1"),
            Formula::Not(Box::new(equals("1"))),
            Formula::Compare(N, Comparison::Ne, constant("1")),
        ] {
            assert_eq!(seen(&formula, &[], Datum::Null), Seen::No);
        }
        let null = Formula::Compare(N, Comparison::Eq, Operand::Constant(None));
        assert_eq!(seen(&null, &[], Datum::Json(b"1")), Seen::No);
        assert_eq!(seen(&Formula::Not(Box::new(null)), &[], Datum::Json(b"1")), Seen::No);
    }

    #[test]
    fn what_is_not_known_is_only_decided_by_the_rest() {
        let unknown = equals("1");
        let sees = |formula| seen(&formula, &[], Datum::Absent);

        assert_eq!(sees(unknown.clone()), Seen::Unknown);
        assert_eq!(
            sees(Formula::Or(vec![unknown.clone(), Formula::Constant(Some(true))])),
            Seen::Yes
        );
        assert_eq!(sees(Formula::And(vec![unknown.clone(), Formula::Constant(None)])), Seen::No);
        assert_eq!(
            sees(Formula::Or(vec![unknown.clone(), Formula::Constant(None)])),
            Seen::Unknown
        );
        assert_eq!(sees(Formula::Not(Box::new(unknown))), Seen::Unknown);
    }

    #[test]
    fn numbers_are_ordered_as_numbers() {
        let less = Formula::Compare(N, Comparison::Lt, constant("10"));

        assert_eq!(seen(&less, &[], Datum::Json(b"9")), Seen::Yes);
        assert_eq!(seen(&less, &[], Datum::Json(b"-90")), Seen::Yes);
        assert_eq!(seen(&less, &[], Datum::Json(b"10")), Seen::No);
    }

    #[test]
    fn a_column_that_became_an_enum_or_ceased_to_be_one_is_not_known() {
        let different = |kind, key: &str| {
            Formula::Compare(Column { attnum: 1, kind }, Comparison::Ne, constant(key))
        };
        let label = Datum::Json(b"\"\x007\"");

        assert_eq!(seen(&different(Kind::Enum, "\u{0}8"), &[], label), Seen::Yes);
        assert_eq!(seen(&different(Kind::Enum, "\u{0}7"), &[], label), Seen::No);
        assert_eq!(
            seen(&different(Kind::Enum, "\u{0}7"), &[], Datum::Json(b"\"a\"")),
            Seen::Unknown
        );
        assert_eq!(seen(&different(Kind::Text, "a"), &[], label), Seen::Unknown);
    }

    #[test]
    fn members_of_an_array_are_found() {
        let many = Value::read(Kind::Int, true, Some("[1, null, 3]")).unwrap();
        let formula = Formula::Any(N, vec![Operand::Claim(0)]);
        let sees = |value: &Value, datum| seen(&formula, std::slice::from_ref(value), datum);

        assert_eq!(sees(&many, Datum::Json(b"3")), Seen::Yes);
        assert_eq!(sees(&many, Datum::Json(b"2")), Seen::No);
        assert_eq!(sees(&Value::Null, Datum::Json(b"2")), Seen::No);
        let not = Formula::Not(Box::new(formula.clone()));
        assert_eq!(sees(&many, Datum::Null), Seen::No);
        let values = [many];
        assert_eq!(seen(&not, &values, Datum::Json(b"2")), Seen::No, "null is among them");
        assert_eq!(formula.anchors(&values).unwrap().len(), 2);
        assert_eq!(formula.anchors(&[Value::Null]).unwrap().len(), 0);
    }

    #[test]
    fn anchors_are_what_a_visible_row_must_have() {
        let flag = Formula::Flag(2);
        let and = Formula::And(vec![flag.clone(), equals("1")]);
        let or = Formula::Or(vec![equals("1"), equals("2")]);

        assert_eq!(and.anchors(&[]).unwrap(), [(1, b"1".as_slice().into())]);
        assert_eq!(or.anchors(&[]).unwrap().len(), 2);
        assert_eq!(Formula::Or(vec![flag, equals("1")]).anchors(&[]), None);
        assert_eq!(Formula::Not(Box::new(equals("1"))).anchors(&[]), None);
    }
}
