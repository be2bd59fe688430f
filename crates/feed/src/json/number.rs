//! Numbers, as `numeric` prints them: never with an exponent.

/// More digits than `numeric` can hold; such a number (only a json column can have it) stays as
/// it was written.
const MAX_WHOLE_DIGITS: i64 = 131_072;
const MAX_SCALE: i64 = 16_383;

/// Writes a decimal number (`-1.5e-07`, `NaN`, `Infinity`) as `to_jsonb` does: plain digits with
/// the scale that was written; what is no number becomes a string.
pub fn number(out: &mut Vec<u8>, text: &[u8]) {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if !digits.first().is_some_and(u8::is_ascii_digit) {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
        return;
    }
    let has_exponent = text.iter().any(|byte| matches!(byte, b'e' | b'E'));
    let is_zero =
        !digits.iter().take_while(|b| !matches!(b, b'e' | b'E')).any(|b| matches!(b, b'1'..=b'9'));
    if !has_exponent {
        // numeric has no negative zero.
        out.extend_from_slice(if is_zero { digits } else { text });
        return;
    }
    if !shifted(out, digits, text.len() > digits.len() && !is_zero) {
        out.extend_from_slice(text);
    }
}

/// Writes digits with an exponent without it; `false` if that would be more than `numeric` holds.
fn shifted(out: &mut Vec<u8>, digits: &[u8], negative: bool) -> bool {
    let mut parts = digits.splitn(2, |byte| matches!(byte, b'e' | b'E'));
    let mantissa = parts.next().unwrap_or_default();
    let exponent = parts.next().and_then(|text| std::str::from_utf8(text).ok());
    let Some(exponent) = exponent.and_then(|text| text.parse::<i64>().ok()) else { return false };
    let mut parts = mantissa.splitn(2, |byte| *byte == b'.');
    let whole = parts.next().unwrap_or_default();
    let fraction = parts.next().unwrap_or_default();

    let Some(point) = exponent.checked_add(whole.len() as i64) else { return false };
    let scale = (fraction.len() as i64).saturating_sub(exponent).max(0);
    if point > MAX_WHOLE_DIGITS || scale > MAX_SCALE {
        return false;
    }
    let all = [whole, fraction].concat();
    let digit = |index: i64| {
        let index = usize::try_from(index).ok();
        index.and_then(|index| all.get(index).copied()).unwrap_or(b'0')
    };
    if negative {
        out.push(b'-');
    }
    let first = (0..point).find(|index| digit(*index) != b'0');
    match first {
        Some(first) => out.extend((first..point).map(digit)),
        None => out.push(b'0'),
    }
    if scale > 0 {
        out.push(b'.');
        out.extend((point..point + scale).map(digit));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(text: &str) -> String {
        let mut out = Vec::new();
        number(&mut out, text.as_bytes());
        String::from_utf8(out).expect("digits")
    }

    #[test]
    fn numbers_print_as_numeric_prints_them() {
        for (text, expected) in [
            ("0", "0"),
            ("-0", "0"),
            ("-0.0", "0.0"),
            ("-0.5", "-0.5"),
            ("1.50", "1.50"),
            ("1e2", "100"),
            ("1.0e1", "10"),
            ("1.50e1", "15.0"),
            ("0e5", "0"),
            ("0e-5", "0.00000"),
            ("-0e1", "0"),
            ("1e-07", "0.0000001"),
            ("1.5E-07", "0.00000015"),
            ("-1.5e+20", "-150000000000000000000"),
            ("0.001e2", "0.1"),
            ("1.7976931348623157e+308", &format!("17976931348623157{}", "0".repeat(292))),
            ("9223372036854775807", "9223372036854775807"),
        ] {
            assert_eq!(printed(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_number_becomes_a_string() {
        for text in ["NaN", "Infinity", "-Infinity"] {
            assert_eq!(printed(text), format!("\"{text}\""));
        }
    }

    #[test]
    fn a_number_beyond_numeric_stays_as_written() {
        for text in ["1e200000", "1e-20000", "1e99999999999999999999", "1e9223372036854775807"] {
            assert_eq!(printed(text), text);
        }
    }
}
