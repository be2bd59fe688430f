//! A filter as the client wrote it, taken apart but not yet held against a table.

use std::fmt;

use tide_feed::catalog::{self, Operator};

/// Conditions that all have to hold; at least one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    pub conditions: Vec<Condition>,
}

/// `column=[not.]operator.value`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    pub column: String,
    pub negated: bool,
    pub test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Test {
    Compare(Comparison, String),
    In(Vec<String>),
    Pattern(PatternKind, String),
    Is(Truth),
    Distinct(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    Eq,
    Neq,
    Lt,
    Lte,
    Gt,
    Gte,
}

/// Operators whose right side is a pattern and not a value of the column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatternKind {
    Like,
    Ilike,
    Match,
    Imatch,
}

/// What `is` may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Truth {
    Null,
    True,
    False,
    Unknown,
}

impl Condition {
    /// As a reader has it put to the database.
    pub fn of_column(&self, column: i16) -> catalog::Condition {
        let operator = match &self.test {
            Test::Compare(Comparison::Eq, _) => Operator::Eq,
            Test::Compare(Comparison::Neq, _) => Operator::Neq,
            Test::Compare(Comparison::Lt, _) => Operator::Lt,
            Test::Compare(Comparison::Lte, _) => Operator::Lte,
            Test::Compare(Comparison::Gt, _) => Operator::Gt,
            Test::Compare(Comparison::Gte, _) => Operator::Gte,
            Test::In(_) => Operator::In,
            Test::Pattern(PatternKind::Like, _) => Operator::Like,
            Test::Pattern(PatternKind::Ilike, _) => Operator::Ilike,
            Test::Pattern(PatternKind::Match, _) => Operator::Match,
            Test::Pattern(PatternKind::Imatch, _) => Operator::Imatch,
            Test::Is(Truth::Null) => Operator::IsNull,
            Test::Is(Truth::True) => Operator::IsTrue,
            Test::Is(Truth::False) => Operator::IsFalse,
            Test::Is(Truth::Unknown) => Operator::IsUnknown,
            Test::Distinct(_) => Operator::Distinct,
        };
        let values = match &self.test {
            Test::Pattern(_, source) => vec![source.clone()],
            test => test.constants().to_vec(),
        };
        catalog::Condition { column, negated: self.negated, operator, values }
    }
}

impl Filter {
    /// How many values Postgres has to cast.
    pub fn constants(&self) -> usize {
        self.conditions.iter().map(|condition| condition.test.constants().len()).sum()
    }

    /// Bytes of the patterns.
    pub fn patterns(&self) -> usize {
        let sources = self.conditions.iter().map(|condition| match &condition.test {
            Test::Pattern(_, source) => source.len(),
            _ => 0,
        });
        sources.sum()
    }
}

impl Test {
    /// The operator's name in a filter's text.
    pub fn operator(&self) -> &'static str {
        match self {
            Test::Compare(Comparison::Eq, _) => "eq",
            Test::Compare(Comparison::Neq, _) => "neq",
            Test::Compare(Comparison::Lt, _) => "lt",
            Test::Compare(Comparison::Lte, _) => "lte",
            Test::Compare(Comparison::Gt, _) => "gt",
            Test::Compare(Comparison::Gte, _) => "gte",
            Test::In(_) => "in",
            Test::Pattern(kind, _) => kind.operator(),
            Test::Is(_) => "is",
            Test::Distinct(_) => "isdistinct",
        }
    }

    /// The values that Postgres has to cast to the column's type.
    pub fn constants(&self) -> &[String] {
        match self {
            Test::Compare(_, value) | Test::Distinct(value) => std::slice::from_ref(value),
            Test::In(values) => values,
            Test::Pattern(..) | Test::Is(_) => &[],
        }
    }
}

impl PatternKind {
    pub fn operator(self) -> &'static str {
        match self {
            PatternKind::Like => "like",
            PatternKind::Ilike => "ilike",
            PatternKind::Match => "match",
            PatternKind::Imatch => "imatch",
        }
    }
}

impl Truth {
    pub fn keyword(self) -> &'static str {
        match self {
            Truth::Null => "null",
            Truth::True => "true",
            Truth::False => "false",
            Truth::Unknown => "unknown",
        }
    }
}

/// The text that parses to this tree.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, condition) in self.conditions.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            condition.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.negated { "not." } else { "" };
        write!(f, "{}={not}{}.", Quoted(&self.column), self.test.operator())?;
        match &self.test {
            Test::Compare(_, value) | Test::Pattern(_, value) | Test::Distinct(value) => {
                Quoted(value).fmt(f)
            }
            Test::Is(truth) => f.write_str(truth.keyword()),
            Test::In(values) => {
                f.write_str("(")?;
                for (index, value) in values.iter().enumerate() {
                    if index > 0 {
                        f.write_str(",")?;
                    }
                    Quoted(value).fmt(f)?;
                }
                f.write_str(")")
            }
        }
    }
}

/// A column or value, in quotes where it could be taken for something else without.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0;
        let plain = !text.is_empty()
            && text.trim() == text
            && !text.contains([',', '(', ')', '"', '\\', '=']);
        if plain {
            return f.write_str(text);
        }
        f.write_str("\"")?;
        for c in text.chars() {
            if matches!(c, '"' | '\\') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        f.write_str("\"")
    }
}
