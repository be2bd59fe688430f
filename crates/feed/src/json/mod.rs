//! JSON text written straight into a buffer, exactly as `to_jsonb` prints it: what the hot paths
//! need, and no more.

mod datetime;
mod normal;
mod number;

pub use datetime::{MICROS_1970_TO_2000, date, timestamp};
pub use normal::{Unprintable, normalise};
pub use number::{number, number_length, numeric_length};

use crate::bounded::{Bounded, Overflow};

/// Bytes that an escape sequence takes at the most.
const LONGEST_ESCAPE: usize = 6;

/// Appends `text` as a JSON string, quotes included.
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    write_utf8(out, text.as_bytes());
}

/// [`write_str`] for bytes that are known to be UTF-8, such as what an output function returned
/// in a UTF-8 database.
pub fn write_utf8(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    write_inside(out, text);
    out.push(b'"');
}

/// [`write_str`] into a buffer that has an end: how long the string will be is known before it is
/// written.
pub fn write_bounded(out: &mut Bounded<'_>, text: &str) -> Result<(), Overflow> {
    out.push(b'"')?;
    write_inside_bounded(out, text.as_bytes())?;
    out.push(b'"')
}

/// A part of such a string, without the quotes.
pub fn write_inside_bounded(out: &mut Bounded<'_>, text: &[u8]) -> Result<(), Overflow> {
    let fits = text.len().saturating_mul(LONGEST_ESCAPE) <= out.spare();
    let length = if fits { 0 } else { length_inside(text) };
    write_inside(out.room(length)?, text);
    Ok(())
}

/// Bytes that a part of a string takes with its escapes, without the quotes.
pub fn length_inside(text: &[u8]) -> usize {
    let (mut rest, mut length) = (text, text.len());
    while let Some(at) = find_special(rest) {
        let Some((special, tail)) = rest.get(at..).and_then(<[u8]>::split_first) else { break };
        length += if short_escape(*special).is_some() { 1 } else { LONGEST_ESCAPE - 1 };
        rest = tail;
    }
    length
}

/// A part of a string, without the quotes.
pub(crate) fn write_inside(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    while let Some(at) = find_special(rest) {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((&special, tail)) = tail.split_first() else { break };
        write_escape(out, special);
        rest = tail;
    }
    out.extend_from_slice(rest);
}

/// Appends `"name":`.
pub fn write_key(out: &mut Vec<u8>, name: &str) {
    write_str(out, name);
    out.push(b':');
}

/// Appends an unsigned number.
pub fn write_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends the low `digits` hexadecimal digits of `number`, at most 16.
pub fn write_hex(out: &mut Vec<u8>, number: u64, digits: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'0'; 16];
    let mut rest = number;
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(rest & 15) as usize];
        rest >>= 4;
    }
    out.extend_from_slice(text.get(16 - digits.min(16)..).unwrap_or_default());
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    match short_escape(byte) {
        Some(short) => out.extend_from_slice(&[b'\\', short]),
        None => {
            out.extend_from_slice(b"\\u");
            write_hex(out, u64::from(byte), 4);
        }
    }
}

/// The letter after the backslash, where the escape is not a number.
const fn short_escape(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        0x08 => b'b',
        0x09 => b't',
        0x0A => b'n',
        0x0C => b'f',
        0x0D => b'r',
        _ => return None,
    })
}

const fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Where the first byte stands that may not stand in a JSON string as it is.
fn find_special(text: &[u8]) -> Option<usize> {
    let (chunks, rest) = text.as_chunks::<8>();
    for (index, chunk) in chunks.iter().enumerate() {
        let hits = special_bytes(u64::from_le_bytes(*chunk));
        if hits != 0 {
            return Some(index * 8 + hits.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|&byte| is_special(byte)).map(|at| chunks.len() * 8 + at)
}

/// Eight bytes at a time: the top bit of each byte that is special. Bytes above the first hit may
/// be marked wrongly (a borrow ran into them); the lowest mark is always right.
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let zero_at = |difference: u64| difference.wrapping_sub(ONES) & !difference;
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = zero_at(word ^ (ONES * b'"' as u64));
    let backslash = zero_at(word ^ (ONES * b'\\' as u64));
    (control | quote | backslash) & TOPS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expected(text: &str) -> String {
        serde_json::to_string(text).expect("text can be written")
    }

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        write_str(&mut out, text);
        String::from_utf8(out).expect("UTF-8 in, UTF-8 out")
    }

    #[test]
    fn every_byte_at_every_place_is_written_as_serde_json_writes_it() {
        for length in 0..20 {
            for place in 0..length {
                for code in (0..0x180).chain([0x2028, 0xFFFD, 0x1_F600]) {
                    let special = char::from_u32(code).expect("no surrogate among these");
                    let mut text: String = "aÿ".repeat(length).chars().take(length).collect();
                    let at = text.char_indices().nth(place).map_or(0, |(at, _)| at);
                    text.insert(at, special);
                    assert_eq!(written(&text), expected(&text));
                }
            }
        }
    }

    #[test]
    fn hexadecimal_numbers_have_their_leading_zeros() {
        let mut out = Vec::new();
        write_hex(&mut out, 0xAB, 6);
        write_hex(&mut out, u64::MAX, 16);
        assert_eq!(out, b"0000abffffffffffffffff");
    }

    proptest! {
        #[test]
        fn any_text_is_written_as_serde_json_writes_it(text in any::<String>()) {
            prop_assert_eq!(written(&text), expected(&text));
        }

        #[test]
        fn text_full_of_specials_is_written_as_serde_json_writes_it(
            text in "[\\x00-\\x1f\"\\\\a\u{80}\u{ff}]{0,40}"
        ) {
            prop_assert_eq!(written(&text), expected(&text));
        }

        #[test]
        fn a_string_is_written_whole_or_not_at_all(
            text in "[\\x00-\\x1f\"\\\\a\u{80}\u{ff}]{0,40}", end in 0_usize..100
        ) {
            let (mut out, whole) = (Vec::new(), written(&text));

            let result = write_bounded(&mut Bounded::new(&mut out, end, end), &text);

            prop_assert_eq!(length_inside(text.as_bytes()) + 2, whole.len());
            prop_assert_eq!(result.is_ok(), whole.len() <= end);
            prop_assert!(out.len() <= end);
            prop_assert!(result.is_err() || out == whole.as_bytes());
        }
    }
}
