//! Strings.

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes `text`, which is UTF-8, as a JSON string. Only what JSON forbids is escaped.
pub fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    escaped(out, text);
    out.push(b'"');
}

/// The inside of a string.
pub(super) fn escaped(out: &mut Vec<u8>, mut text: &[u8]) {
    while let Some(at) = first_special(text) {
        let (plain, rest) = text.split_at(at);
        out.extend_from_slice(plain);
        let Some((&byte, rest)) = rest.split_first() else { return };
        escape(out, byte);
        text = rest;
    }
    out.extend_from_slice(text);
}

/// One byte that may not stand in a string as it is.
fn escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        0x08 => b'b',
        0x0c => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            let digit = |nibble: u8| HEX.get(usize::from(nibble & 15)).copied().unwrap_or(b'0');
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[digit(byte >> 4), digit(byte)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Where the first byte to escape is. Eight bytes at a time: most texts have none.
fn first_special(text: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let (words, _) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let below_space = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let quote = zero_bytes(word ^ (ONES * u64::from(b'"')));
        let backslash = zero_bytes(word ^ (ONES * u64::from(b'\\')));
        if below_space | quote | backslash != 0 {
            // Borrows can mark bytes behind a real one, never one in front of it; look again.
            let at = index * 8;
            let tail = text.get(at..)?;
            return tail.iter().position(|byte| is_special(*byte)).map(|offset| at + offset);
        }
    }
    let at = words.len() * 8;
    text.get(at..)?.iter().position(|byte| is_special(*byte)).map(|offset| at + offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn printed(text: &str) -> String {
        let mut out = Vec::new();
        string(&mut out, text.as_bytes());
        String::from_utf8(out).expect("strings stay UTF-8")
    }

    #[test]
    fn only_what_json_forbids_is_escaped() {
        assert_eq!(printed("a\"b\\c/d"), r#""a\"b\\c/d""#);
        assert_eq!(printed("\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}é😀"), "\"\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}é😀\"");
        assert_eq!(printed("eight chars and more \n"), "\"eight chars and more \\n\"");
    }

    proptest! {
        #[test]
        fn any_string_survives(text in ".*") {
            let back: String = serde_json::from_str(&printed(&text)).expect("valid JSON");
            prop_assert_eq!(back, text);
        }
    }
}
