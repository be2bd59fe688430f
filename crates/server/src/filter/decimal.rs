//! Decimal numbers of any length, compared digit by digit without being converted.

use std::borrow::Cow;
use std::cmp::Ordering;

/// Numbers whose first digit stands further from the decimal point than this are none that
/// Postgres can hold (131,072 digits before the point, 16,383 after); only an exponent gets there.
const MAX_MAGNITUDE: i64 = 200_000;

/// Zeros between the digits and the decimal point that are written out in a key. Where there are
/// more the key has an exponent: 1e131071 takes a few bytes, not 131,072.
const MAX_ZEROS: i64 = 32;

/// `numeric` as `to_jsonb` prints it. Ordered as in Postgres: NaN is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numeric<'a> {
    NegativeInfinity,
    Finite(Decimal<'a>),
    Infinity,
    NaN,
}

/// `0.d1d2d3... * 10^magnitude`, where the digits are those of `whole` and then of `fraction`, and
/// neither the first nor the last of them is 0. Zero has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decimal<'a> {
    negative: bool,
    magnitude: i64,
    whole: &'a [u8],
    fraction: &'a [u8],
}

impl<'a> Numeric<'a> {
    /// Reads a JSON number, or one of the three strings that stand for the values JSON lacks.
    pub(super) fn parse(json: &'a [u8]) -> Option<Numeric<'a>> {
        match json {
            b"\"NaN\"" => Some(Numeric::NaN),
            b"\"Infinity\"" => Some(Numeric::Infinity),
            b"\"-Infinity\"" => Some(Numeric::NegativeInfinity),
            _ => Decimal::parse(json).map(Numeric::Finite),
        }
    }

    pub(super) fn compare(&self, other: &Numeric<'_>) -> Ordering {
        match (self, other) {
            (Numeric::Finite(a), Numeric::Finite(b)) => a.compare(b),
            _ => self.class().cmp(&other.class()),
        }
    }

    /// The same bytes for equal numbers; a part of `json`, which this was read from, if possible.
    pub(super) fn key(&self, json: &'a [u8]) -> Cow<'a, [u8]> {
        match self {
            Numeric::Finite(decimal) => decimal.key(json),
            _ => Cow::Borrowed(json),
        }
    }

    fn class(&self) -> u8 {
        match self {
            Numeric::NegativeInfinity => 0,
            Numeric::Finite(_) => 1,
            Numeric::Infinity => 2,
            Numeric::NaN => 3,
        }
    }
}

impl<'a> Decimal<'a> {
    fn parse(json: &'a [u8]) -> Option<Decimal<'a>> {
        let (negative, unsigned) = match json.split_first() {
            Some((b'-', rest)) => (true, rest),
            _ => (false, json),
        };
        let (mantissa, exponent) = match unsigned.iter().position(|b| matches!(b, b'e' | b'E')) {
            Some(at) => (unsigned.get(..at)?, exponent(unsigned.get(at + 1..)?)?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = match mantissa.iter().position(|b| *b == b'.') {
            Some(at) => (mantissa.get(..at)?, mantissa.get(at + 1..)?),
            None => (mantissa, &b"0"[..]),
        };
        let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
        if !digits(whole) || !digits(fraction) {
            return None;
        }
        Decimal::of(negative, whole, fraction, exponent)
    }

    /// Cuts off the zeros that say nothing.
    fn of(negative: bool, whole: &'a [u8], fraction: &'a [u8], exponent: i64) -> Option<Self> {
        let whole = without_leading_zeros(whole);
        let fraction = without_trailing_zeros(fraction);
        let decimal = if !whole.is_empty() {
            let magnitude = i64::try_from(whole.len()).ok()? + exponent;
            let whole = if fraction.is_empty() { without_trailing_zeros(whole) } else { whole };
            Decimal { negative, magnitude, whole, fraction }
        } else {
            let significant = without_leading_zeros(fraction);
            if significant.is_empty() {
                return Some(Decimal {
                    negative: false,
                    magnitude: 0,
                    whole,
                    fraction: significant,
                });
            }
            let zeros = i64::try_from(fraction.len() - significant.len()).ok()?;
            Decimal { negative, magnitude: exponent - zeros, whole, fraction: significant }
        };
        (decimal.magnitude.abs() <= MAX_MAGNITUDE).then_some(decimal)
    }

    fn is_zero(&self) -> bool {
        self.whole.is_empty() && self.fraction.is_empty()
    }

    fn digits(&self) -> impl Iterator<Item = u8> + '_ {
        self.whole.iter().chain(self.fraction).copied()
    }

    fn signum(&self) -> i8 {
        match (self.is_zero(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }

    fn compare(&self, other: &Decimal<'_>) -> Ordering {
        let sign = self.signum();
        sign.cmp(&other.signum()).then_with(|| {
            let absolute = self
                .magnitude
                .cmp(&other.magnitude)
                .then_with(|| self.digits().cmp(other.digits()));
            if sign < 0 { absolute.reverse() } else { absolute }
        })
    }

    fn key(&self, json: &'a [u8]) -> Cow<'a, [u8]> {
        if self.is_zero() {
            return Cow::Borrowed(b"0");
        }
        self.shortest_prefix(json).map_or_else(|| Cow::Owned(self.written_out()), Cow::Borrowed)
    }

    fn count_digits(&self) -> i64 {
        i64::try_from(self.whole.len() + self.fraction.len()).unwrap_or(i64::MAX)
    }

    /// Whether too many zeros stand between the digits and the decimal point to be written out.
    fn is_remote(&self) -> bool {
        self.magnitude - self.count_digits() > MAX_ZEROS || self.magnitude < -MAX_ZEROS
    }

    /// The number without the fraction's closing zeros, as a part of the text it was read from.
    /// Not for texts with an exponent or superfluous zeros in front, nor for those that get one.
    fn shortest_prefix(&self, json: &'a [u8]) -> Option<&'a [u8]> {
        if self.is_remote() {
            return None;
        }
        let unsigned = json.strip_prefix(b"-").unwrap_or(json);
        let superfluous = matches!(unsigned, [b'0', second, ..] if *second != b'.');
        if superfluous || json.iter().any(|b| matches!(b, b'e' | b'E')) {
            return None;
        }
        if !json.contains(&b'.') {
            return Some(json);
        }
        let short = without_trailing_zeros(json);
        Some(short.strip_suffix(b".").unwrap_or(short))
    }

    fn written_out(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.negative {
            out.push(b'-');
        }
        if self.is_remote() {
            out.extend_from_slice(b"0.");
            out.extend(self.digits());
            out.push(b'e');
            out.extend_from_slice(itoa::Buffer::new().format(self.magnitude).as_bytes());
            return out;
        }
        let whole = usize::try_from(self.magnitude).unwrap_or(0);
        if whole == 0 {
            out.push(b'0');
        }
        let mut digits = self.digits();
        out.extend((0..whole).map(|_| digits.next().unwrap_or(b'0')));
        let zeros = usize::try_from(-self.magnitude).unwrap_or(0);
        let mut digits = digits.peekable();
        if digits.peek().is_some() {
            out.push(b'.');
            out.extend(std::iter::repeat_n(b'0', zeros));
            out.extend(digits);
        }
        out
    }
}

impl PartialEq for Decimal<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.compare(other) == Ordering::Equal
    }
}

impl Eq for Decimal<'_> {}

/// The digits after `e`. One that is too large for a number is cut down, not wrapped.
fn exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0_i64, |value, digit| {
        (value * 10 + i64::from(digit - b'0')).min(MAX_MAGNITUDE * 1_000_000)
    });
    Some(if negative { -value } else { value })
}

fn without_leading_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|b| **b == b'0').count();
    digits.get(zeros..).unwrap_or_default()
}

fn without_trailing_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().rev().take_while(|b| **b == b'0').count();
    digits.get(..digits.len() - zeros).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Numeric<'_> {
        Numeric::parse(text.as_bytes()).expect(text)
    }

    #[test]
    fn numbers_are_ordered_by_value() {
        let groups: &[&[&str]] = &[
            &["\"-Infinity\""],
            &["-1e1000"],
            &["-100000000000000000000.5"],
            &["-2", "-2.000", "-0.2e1"],
            &["-1.5", "-1.50"],
            &["-0.001", "-1e-3"],
            &["0", "-0", "0.00", "-0.0", "0e5", "0e999999999999999999999"],
            &["0.0000001", "1e-7"],
            &["0.1", "0.10"],
            &["0.11"],
            &["0.9"],
            &["1", "1.0", "1.00", "10e-1"],
            &["9"],
            &["10", "10.0", "1e1", "1E+1", "0010"],
            &["9007199254740993"],
            &["9007199254740993.000000000000000000001"],
            &["1e1000"],
            &["\"Infinity\""],
            &["\"NaN\""],
        ];
        for (i, left) in groups.iter().enumerate() {
            for (j, right) in groups.iter().enumerate() {
                for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
                    assert_eq!(number(a).compare(&number(b)), i.cmp(&j), "{a} {b}");
                    let equal = number(a).key(a.as_bytes()) == number(b).key(b.as_bytes());
                    assert_eq!(equal, i == j, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn a_key_is_no_longer_than_the_digits_that_count() {
        let zeros = "0".repeat(131_071);
        let large = format!("1{zeros}");
        let small = format!("-0.{}25", "0".repeat(16_381));
        for (written, short) in [(&*large, "1e131071"), (&small, "-2.5e-16382")] {
            let key = number(written).key(written.as_bytes());

            assert!(key.len() < 20, "{}", key.len());
            assert_eq!(key, number(short).key(short.as_bytes()));
            assert_eq!(Numeric::parse(&key), Some(number(written)));
        }
    }

    /// Where keys begin to have an exponent, equal numbers have equal keys all the same.
    #[test]
    fn keys_of_numbers_far_from_the_point_are_of_one_form() {
        for zeros in 28..40_usize {
            for (written, short) in [
                (format!("12{}", "0".repeat(zeros)), format!("1.2e{}", zeros + 1)),
                (format!("12{}.50", "0".repeat(zeros)), format!("12{}.5", "0".repeat(zeros))),
                (format!("0.{}120", "0".repeat(zeros)), format!("12e-{}", zeros + 2)),
            ] {
                let key = number(&written).key(written.as_bytes());
                assert_eq!(key, number(&short).key(short.as_bytes()), "{written}");
                assert_eq!(Numeric::parse(&key), Some(number(&written)), "{written}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_is_none() {
        for text in [
            "", "-", ".", "1.", ".5", "+1", "1e", "1e+", "--1", "1.2.3", "0x1", "1 ", "1e999999",
            "\"1\"",
        ] {
            assert!(Numeric::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn usual_numbers_need_no_allocation_for_their_key() {
        for text in ["0", "42", "-17.50", "100", "0.001", "3.000"] {
            assert!(matches!(number(text).key(text.as_bytes()), Cow::Borrowed(_)), "{text}");
        }
    }

    fn scaled(value: i64, scale: u32, zeros: usize) -> String {
        let (whole, fraction) = (value.abs() / 10_i64.pow(scale), value.abs() % 10_i64.pow(scale));
        let sign = if value < 0 { "-" } else { "" };
        match scale {
            0 => format!("{sign}{whole}"),
            _ => format!(
                "{sign}{whole}.{fraction:0width$}{}",
                "0".repeat(zeros),
                width = scale as usize
            ),
        }
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_integers_behind(
            a in -100_000_i64..100_000, b in -100_000_i64..100_000,
            scale_a in 0_u32..6, scale_b in 0_u32..6, zeros in 0_usize..4,
        ) {
            let (left, right) = (scaled(a, scale_a, zeros), scaled(b, scale_b, 0));
            let expected = (a * 10_i64.pow(scale_b)).cmp(&(b * 10_i64.pow(scale_a)));

            prop_assert_eq!(number(&left).compare(&number(&right)), expected, "{} {}", left, right);
            prop_assert_eq!(
                number(&left).key(left.as_bytes()) == number(&right).key(right.as_bytes()),
                expected == Ordering::Equal
            );
        }

        #[test]
        fn any_bytes_are_a_number_or_not(bytes in "[-+0-9.eE]{0,12}") {
            if let Some(numeric) = Numeric::parse(bytes.as_bytes()) {
                let key = numeric.key(bytes.as_bytes()).into_owned();
                prop_assert_eq!(Numeric::parse(&key), Some(numeric));
            }
        }
    }
}
