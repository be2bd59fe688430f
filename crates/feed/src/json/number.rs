//! Numbers, as `numeric` prints them: never with an exponent.

/// More digits than `numeric` can hold; such a number (only a json column can have it) stays as
/// it was written.
const MAX_WHOLE_DIGITS: i64 = 131_072;
const MAX_SCALE: i64 = 16_383;

/// Bytes that [`number`] writes for this text at the most, known without writing them.
pub fn number_length(text: &[u8]) -> usize {
    // Two quotes, or the zero before a point and the point.
    let plain = text.len() + 2;
    let mut parts = text.splitn(2, |byte| matches!(byte, b'e' | b'E'));
    let mantissa = parts.next().unwrap_or_default().len() as i64;
    let exponent = parts.next().and_then(|text| std::str::from_utf8(text).ok());
    let Some(exponent) = exponent.and_then(|text| text.parse::<i64>().ok()) else { return plain };
    if exponent > MAX_WHOLE_DIGITS || exponent < -MAX_SCALE - mantissa {
        return plain;
    }
    plain + usize::try_from(exponent.unsigned_abs()).unwrap_or(usize::MAX)
}

/// Bytes that a `numeric` prints as, by what is stored after the header that all values of
/// variable length have: sign, scale, and the place and the digits of its first word.
pub fn numeric_length(stored: &[u8]) -> usize {
    const SHORT: u16 = 0x8000;
    const SPECIAL: u16 = 0xC000;
    const NEGATIVE: u16 = 0x4000;
    const DIGITS_PER_WORD: i64 = 4;
    let word = |at: usize| {
        let bytes = stored.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u16::from_ne_bytes)
    };
    let header = word(0);
    let (negative, weight, scale, first) = match header & SPECIAL {
        SPECIAL => return if header == SPECIAL { "NaN".len() } else { "-Infinity".len() } + 2,
        SHORT => {
            // Six bits and a sign that stands for all the bits above.
            let weight = i64::from(header & 0x3F) - i64::from(header & 0x40);
            (header & 0x2000 != 0, weight, i64::from((header >> 7) & 0x3F), word(2))
        }
        sign => {
            let weight = i64::from(word(2).cast_signed());
            (sign == NEGATIVE, weight, i64::from(header & 0x3FFF), word(4))
        }
    };
    let whole = if weight < 0 {
        1
    } else {
        weight * DIGITS_PER_WORD + 1 + i64::from(first.checked_ilog10().unwrap_or(0))
    };
    let length = i64::from(negative) + whole + i64::from(scale > 0) + scale;
    usize::try_from(length).unwrap_or(usize::MAX)
}

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
    use proptest::prelude::*;

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
            assert!(number_length(text.as_bytes()) >= expected.len(), "{text}");
        }
    }

    #[test]
    fn what_a_stored_numeric_prints_as_is_known_from_its_header() {
        let stored = |words: &[u16]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_ne_bytes()).collect()
        };
        for (words, printed) in [
            // 0, 0.00, 12345678, -0.0000000001
            (&[0x8000][..], 1),
            (&[0x8100], 4),
            (&[0x8001, 1234, 5678], 8),
            (&[0xA000 | 10 << 7 | 0x7D, 100], 13),
            // 1e131071, -1e-16383, 123456.5
            (&[0x0000, 32_767, 1000], 131_072),
            (&[0x4000 | 16_383, 0xF000, 1], 16_386),
            (&[0x0001, 1, 12, 3456, 5000], 8),
            // NaN, -Infinity, as strings
            (&[0xC000], 5),
            (&[0xF000], 11),
        ] {
            assert_eq!(numeric_length(&stored(words)), printed, "{words:x?}");
        }
        assert_eq!(numeric_length(&[]), 1);
    }

    proptest! {
        #[test]
        fn a_numbers_length_is_never_underestimated(
            text in "-?[0-9]{1,4}(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,6})?"
        ) {
            prop_assert!(number_length(text.as_bytes()) >= printed(&text).len());
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
