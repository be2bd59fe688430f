//! JSON fragments of single values, as rows hold them.

use std::borrow::Cow;

/// What a JSON string says; `None` if the fragment is not one. Allocates only for escapes.
pub(super) fn text(json: &[u8]) -> Option<Cow<'_, [u8]>> {
    let inner = json.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr::memchr2(b'\\', b'"', inner).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    unescape(inner).map(Cow::Owned)
}

fn unescape(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(rest.len());
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'"' => return None,
            b'\\' => {
                let (kind, tail) = rest.split_first()?;
                rest = tail;
                match kind {
                    b'"' | b'\\' | b'/' => out.push(*kind),
                    b'b' => out.push(8),
                    b'f' => out.push(12),
                    b'n' => out.push(b'\n'),
                    b'r' => out.push(b'\r'),
                    b't' => out.push(b'\t'),
                    b'u' => {
                        let c = unicode(&mut rest)?;
                        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    }
                    _ => return None,
                }
            }
            _ => out.push(*byte),
        }
    }
    Some(out)
}

/// The character of `\uXXXX`, or of two of them where it takes a pair.
fn unicode(rest: &mut &[u8]) -> Option<char> {
    let first = unit(rest)?;
    if !(0xD800..0xDC00).contains(&first) {
        return char::from_u32(first);
    }
    *rest = rest.strip_prefix(b"\\u")?;
    let second = unit(rest)?;
    if !(0xDC00..0xE000).contains(&second) {
        return None;
    }
    char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))
}

fn unit(rest: &mut &[u8]) -> Option<u32> {
    let (digits, tail) = rest.split_at_checked(4)?;
    *rest = tail;
    digits
        .iter()
        .try_fold(0, |value, digit| char::from(*digit).to_digit(16).map(|digit| value * 16 + digit))
}

/// The same bytes for the same JSON text, however it is spaced and, if it is a string, escaped.
/// Strings keep their opening quote, so that `"1"` and `1` stay apart.
pub(super) fn compact(json: &[u8]) -> Option<Cow<'_, [u8]>> {
    match json.split_first()? {
        (b'"', _) => Some(match text(json)? {
            Cow::Borrowed(inner) => Cow::Borrowed(json.get(..=inner.len())?),
            Cow::Owned(inner) => Cow::Owned([b"\"", inner.as_slice()].concat()),
        }),
        (b'{' | b'[', _) => Some(without_blanks(json)),
        _ => Some(Cow::Borrowed(json)),
    }
}

/// Leaves out the white space between tokens.
fn without_blanks(json: &[u8]) -> Cow<'_, [u8]> {
    let mut quoted = false;
    let mut escaped = false;
    let significant = |byte: &u8| {
        let keep = quoted || !matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            _ => {}
        }
        keep
    };
    let compact: Vec<u8> = json.iter().copied().filter(significant).collect();
    if compact.len() == json.len() { Cow::Borrowed(json) } else { Cow::Owned(compact) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strings_are_read_with_all_their_escapes() {
        let table: [(&str, &str); 7] = [
            (r#""""#, ""),
            (r#""plain""#, "plain"),
            (r#""a\"b\\c\/""#, "a\"b\\c/"),
            (r#""\b\f\n\r\t""#, "\u{8}\u{c}\n\r\t"),
            (r#""\u00e9\u0001""#, "é\u{1}"),
            (r#""\ud83d\ude00\uD83D\uDE00""#, "😀😀"),
            (r#""日本""#, "日本"),
        ];
        for (json, expected) in table {
            assert_eq!(text(json.as_bytes()).as_deref(), Some(expected.as_bytes()), "{json}");
        }
    }

    #[test]
    fn what_is_no_string_is_none() {
        for json in [
            "",
            "\"",
            "1",
            "null",
            "\"a",
            "a\"",
            r#""\""#,
            r#""\x""#,
            r#""\u12""#,
            r#""\ud83d""#,
            r#""\ud83d\u0041""#,
            r#""\ude00""#,
            r#""a"b""#,
        ] {
            assert_eq!(text(json.as_bytes()), None, "{json}");
        }
    }

    #[test]
    fn spacing_and_escapes_do_not_tell_json_apart() {
        let same = |a: &str, b: &str| compact(a.as_bytes()) == compact(b.as_bytes());

        assert!(same("[1, 2, 3]", "[1,2,3]"));
        assert!(same(r#"{"a b": "c \" d"}"#, r#"{"a b":"c \" d"}"#));
        assert!(same(r#""\u0041""#, r#""A""#));
        assert!(!same(r#"["a b"]"#, r#"["ab"]"#));
        assert!(!same(r#"["\\"," "]"#, r#"["\\",""]"#));
        assert!(!same("\"1\"", "1"));
    }

    proptest! {
        #[test]
        fn any_string_is_read_back(value in any::<String>()) {
            let json = serde_json::to_string(&value).expect("a string");
            let read = text(json.as_bytes());
            prop_assert_eq!(read.as_deref(), Some(value.as_bytes()));
        }

        #[test]
        fn any_bytes_are_a_string_or_not(bytes in any::<Vec<u8>>()) {
            let _ = text(&bytes);
            let _ = text(&[b"\"", bytes.as_slice(), b"\""].concat());
            let _ = compact(&bytes);
        }
    }
}
