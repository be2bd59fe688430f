//! The right side of a condition: a value that Postgres has cast to the column's type, read once,
//! and compared with the values of events as the type compares.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use tide_feed::catalog::ColumnAccess;
use tide_feed::event::Kind;

use super::decimal::Numeric;
use super::{json, moment};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Constant {
    Bool(bool),
    Int(i64),
    /// The bits, so that equal numbers are equal here: one zero, one NaN.
    Float(u64),
    /// As its own key, whose digits are compared as they stand.
    Numeric(Box<[u8]>),
    /// Ordered by bytes, which is `COLLATE "C"`, whatever the column's collation.
    Text(Box<[u8]>),
    /// `bpchar`: blanks at the end count for nothing.
    Padded(Box<[u8]>),
    Date(i64),
    Timestamp(i64),
    Label {
        rank: Option<usize>,
        label: Box<[u8]>,
        labels: Arc<[Box<str>]>,
    },
    /// Anything that is only equal or not, by its canonical text.
    Opaque(Box<[u8]>),
}

impl Constant {
    /// Reads what Postgres answered; `None` if that is no value of the column's kind.
    pub(super) fn read(column: &ColumnAccess, json: &[u8]) -> Option<Constant> {
        Some(match column.kind {
            Kind::Bool => Constant::Bool(bool(json)?),
            Kind::Int => Constant::Int(int(json)?),
            Kind::Float => Constant::Float(float(json)?.to_bits()),
            Kind::Numeric => Constant::Numeric(Numeric::parse(json)?.key(json).into()),
            Kind::Text if is_padded(column) => {
                Constant::Padded(unpadded(&json::text(json)?).into())
            }
            Kind::Text | Kind::Uuid => Constant::Text(json::text(json)?.into()),
            Kind::Date => Constant::Date(moment::date(&json::text(json)?)?),
            Kind::Timestamp | Kind::Timestamptz => {
                Constant::Timestamp(moment::timestamp(&json::text(json)?)?)
            }
            Kind::Enum => {
                let label = json::text(json)?;
                let labels: Arc<[Box<str>]> =
                    column.labels.iter().map(|(_, label)| label.as_str().into()).collect();
                Constant::Label { rank: rank(&labels, &label), label: label.into(), labels }
            }
            Kind::Json | Kind::Other => Constant::Opaque(json::compact(json)?.into()),
        })
    }

    /// Bytes besides the constant itself, those included that it may share with others.
    pub(super) fn memory(&self) -> usize {
        let shared = match self {
            Constant::Label { labels, .. } => {
                labels.iter().map(|label| size_of::<Box<str>>() + label.len()).sum()
            }
            _ => 0,
        };
        self.own_memory() + shared
    }

    /// Memory of the constant alone, without what it shares with others.
    pub(super) fn own_memory(&self) -> usize {
        size_of::<Constant>()
            + match self {
                Constant::Numeric(bytes)
                | Constant::Text(bytes)
                | Constant::Padded(bytes)
                | Constant::Opaque(bytes)
                | Constant::Label { label: bytes, .. } => bytes.len(),
                _ => 0,
            }
    }

    /// Uses the labels that another constant of the same column has.
    pub(super) fn share_labels(&mut self, other: &Constant) {
        if let (Constant::Label { labels, .. }, Constant::Label { labels: known, .. }) =
            (self, other)
        {
            *labels = Arc::clone(known);
        }
    }

    /// How an event's value compares with this one; `None` if it is no value of the kind, or the
    /// kind has no order.
    pub(super) fn compare(&self, json: &[u8]) -> Option<Ordering> {
        Some(match self {
            Constant::Bool(constant) => bool(json)?.cmp(constant),
            Constant::Int(constant) => int(json)?.cmp(constant),
            Constant::Float(bits) => compare_floats(float(json)?, f64::from_bits(*bits)),
            Constant::Numeric(constant) => {
                Numeric::parse(json)?.compare(&Numeric::parse(constant)?)
            }
            Constant::Text(constant) => json::text(json)?.as_ref().cmp(constant),
            Constant::Padded(constant) => unpadded(&json::text(json)?).cmp(constant),
            Constant::Date(constant) => moment::date(&json::text(json)?)?.cmp(constant),
            Constant::Timestamp(constant) => moment::timestamp(&json::text(json)?)?.cmp(constant),
            Constant::Label { rank: constant, labels, .. } => {
                rank(labels, &json::text(json)?)?.cmp(&(*constant)?)
            }
            Constant::Opaque(_) => return None,
        })
    }

    pub(super) fn equals(&self, json: &[u8]) -> Option<bool> {
        match self {
            // Labels that are newer than what is known of the type have no rank, but are equal to
            // themselves.
            Constant::Label { label, .. } => Some(json::text(json)?.as_ref() == label.as_ref()),
            Constant::Opaque(constant) => Some(json::compact(json)?.as_ref() == constant.as_ref()),
            _ => self.compare(json).map(Ordering::is_eq),
        }
    }
}

/// The key under which conditions `column = value` are found for an event: values have the same
/// key exactly if they are equal in the kind. `None` if the fragment is no value of the kind.
///
/// `bpchar`, of which the kind does not tell, is never indexed:
/// [`Predicate::equality`](super::Predicate::equality) leaves it out.
pub fn index_key(kind: Kind, json: &[u8]) -> Option<Cow<'_, [u8]>> {
    let number = |number: [u8; 8]| Cow::Owned(number.to_vec());
    Some(match kind {
        Kind::Bool => {
            bool(json)?;
            Cow::Borrowed(json)
        }
        Kind::Int => {
            let mut buffer = itoa::Buffer::new();
            let usual = buffer.format(int(json)?).as_bytes();
            let digits = unquoted(json);
            if usual == digits { Cow::Borrowed(digits) } else { Cow::Owned(usual.to_vec()) }
        }
        Kind::Float => number(float(json)?.to_bits().to_be_bytes()),
        Kind::Numeric => Numeric::parse(json)?.key(json),
        Kind::Text | Kind::Uuid | Kind::Enum => json::text(json)?,
        Kind::Date => number(moment::date(&json::text(json)?)?.to_be_bytes()),
        Kind::Timestamp | Kind::Timestamptz => {
            number(moment::timestamp(&json::text(json)?)?.to_be_bytes())
        }
        Kind::Json | Kind::Other => json::compact(json)?,
    })
}

/// The column's type ignores blanks at the end of its values.
pub(super) fn is_padded(column: &ColumnAccess) -> bool {
    column.type_name == "bpchar"
}

pub(super) fn bool(json: &[u8]) -> Option<bool> {
    match json {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    }
}

/// `oid` is a number in rows, and a string when `to_jsonb` prints it.
fn int(json: &[u8]) -> Option<i64> {
    std::str::from_utf8(unquoted(json)).ok()?.parse().ok()
}

fn unquoted(json: &[u8]) -> &[u8] {
    json.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(json)
}

/// One zero and one NaN, so that the bits are equal where the numbers are.
fn float(json: &[u8]) -> Option<f64> {
    match json {
        b"\"NaN\"" => return Some(f64::NAN),
        b"\"Infinity\"" => return Some(f64::INFINITY),
        b"\"-Infinity\"" => return Some(f64::NEG_INFINITY),
        _ => {}
    }
    // Rust would read "inf" and "nan" as well.
    if !json.iter().all(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')) {
        return None;
    }
    let value: f64 = std::str::from_utf8(json).ok()?.parse().ok()?;
    Some(if value == 0.0 { 0.0 } else { value })
}

/// NaN is equal to itself and greater than all else, as in Postgres.
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

fn unpadded(text: &[u8]) -> &[u8] {
    let blanks = text.iter().rev().take_while(|b| **b == b' ').count();
    text.get(..text.len() - blanks).unwrap_or_default()
}

/// A label's place in the order of its type.
fn rank(labels: &[Box<str>], label: &[u8]) -> Option<usize> {
    labels.iter().position(|known| known.as_bytes() == label)
}
