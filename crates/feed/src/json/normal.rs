//! Texts of type `json`, brought into the form that `jsonb` would give them: spaces after colons
//! and commas, keys sorted by length and then by bytes, the last of equal keys, plain numbers.
//!
//! Where `jsonb` refuses a text (`\u0000`, a lone surrogate, a number beyond `numeric`), it stays
//! as it was written: an event is better than none.

use super::number::number;
use crate::json::write_inside;

/// Deeper nesting than Postgres lets in with its default `max_stack_depth`.
const MAX_DEPTH: usize = 10_000;

/// The text is not JSON (or nested deeper than any that Postgres accepts).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a JSON text")]
pub struct NotJson;

/// Writes a `json` text as `to_jsonb` prints it.
pub fn normalise(out: &mut Vec<u8>, text: &[u8]) -> Result<(), NotJson> {
    let mut parser = Parser { rest: text, out };
    parser.value(0)?;
    parser.space();
    if parser.rest.is_empty() { Ok(()) } else { Err(NotJson) }
}

struct Parser<'a> {
    rest: &'a [u8],
    out: &'a mut Vec<u8>,
}

/// One key with its value, as written at `start..end` of the output.
struct Member {
    key: Vec<u8>,
    start: usize,
    end: usize,
}

impl Parser<'_> {
    fn value(&mut self, depth: usize) -> Result<(), NotJson> {
        if depth > MAX_DEPTH {
            return Err(NotJson);
        }
        self.space();
        match self.rest.first() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.text(None),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(b'-' | b'0'..=b'9') => {
                let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let len = self.rest.iter().take_while(|b| is_part(b)).count();
                let (token, rest) = self.rest.split_at(len);
                number(self.out, token);
                self.rest = rest;
                Ok(())
            }
            _ => Err(NotJson),
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), NotJson> {
        self.take(b'{')?;
        self.out.push(b'{');
        let start = self.out.len();
        let mut members: Vec<Member> = Vec::new();
        self.space();
        while self.rest.first() != Some(&b'}') {
            if !members.is_empty() {
                self.take(b',')?;
                self.out.extend_from_slice(b", ");
                self.space();
            }
            let start = self.out.len();
            let mut key = Vec::new();
            self.text(Some(&mut key))?;
            self.space();
            self.take(b':')?;
            self.out.extend_from_slice(b": ");
            self.value(depth + 1)?;
            members.push(Member { key, start, end: self.out.len() });
            self.space();
        }
        self.take(b'}')?;
        if !members.is_sorted_by(|a, b| order(a) < order(b)) {
            self.sort(start, members);
        }
        self.out.push(b'}');
        Ok(())
    }

    /// Writes the members, which begin at `start`, again in order.
    fn sort(&mut self, start: usize, mut members: Vec<Member>) {
        let written = self.out.split_off(start);
        // Stable: of equal keys the last written comes last, and it is the one that counts.
        members.sort_by(|a, b| order(a).cmp(&order(b)));
        let mut members = members.into_iter().peekable();
        while let Some(member) = members.next() {
            if members.peek().is_some_and(|next| next.key == member.key) {
                continue;
            }
            let range = member.start.saturating_sub(start)..member.end.saturating_sub(start);
            self.out.extend_from_slice(written.get(range).unwrap_or_default());
            if members.peek().is_some() {
                self.out.extend_from_slice(b", ");
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), NotJson> {
        self.take(b'[')?;
        self.out.push(b'[');
        self.space();
        let mut first = true;
        while self.rest.first() != Some(&b']') {
            if !first {
                self.take(b',')?;
                self.out.extend_from_slice(b", ");
            }
            first = false;
            self.value(depth + 1)?;
            self.space();
        }
        self.take(b']')?;
        self.out.push(b']');
        Ok(())
    }

    /// A string; `plain` gets it without its escapes.
    fn text(&mut self, mut plain: Option<&mut Vec<u8>>) -> Result<(), NotJson> {
        self.take(b'"')?;
        self.out.push(b'"');
        loop {
            let at = self.rest.iter().position(|b| matches!(b, b'"' | b'\\')).ok_or(NotJson)?;
            let (chunk, rest) = self.rest.split_at(at);
            self.rest = rest;
            write_inside(self.out, chunk);
            if let Some(plain) = plain.as_deref_mut() {
                plain.extend_from_slice(chunk);
            }
            if self.rest.first() == Some(&b'"') {
                break;
            }
            let (length, character) = escape_sequence(self.rest)?;
            let (sequence, rest) = self.rest.split_at(length);
            self.rest = rest;
            let mut utf8 = [0; 4];
            let character = character.map(|c| c.encode_utf8(&mut utf8).as_bytes());
            match character {
                Some(character) => write_inside(self.out, character),
                None => self.out.extend_from_slice(sequence),
            }
            if let Some(plain) = plain.as_deref_mut() {
                plain.extend_from_slice(character.unwrap_or(sequence));
            }
        }
        self.take(b'"')?;
        self.out.push(b'"');
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Result<(), NotJson> {
        self.rest = self.rest.strip_prefix(word).ok_or(NotJson)?;
        self.out.extend_from_slice(word);
        Ok(())
    }

    fn take(&mut self, byte: u8) -> Result<(), NotJson> {
        self.rest = self.rest.strip_prefix(&[byte]).ok_or(NotJson)?;
        Ok(())
    }

    fn space(&mut self) {
        let len =
            self.rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.rest = self.rest.get(len..).unwrap_or_default();
    }
}

fn order(member: &Member) -> (usize, &[u8]) {
    (member.key.len(), &member.key)
}

/// Reads the escape sequence that `text` begins with: its length and what it stands for, `None`
/// where that cannot be part of a Postgres text.
fn escape_sequence(text: &[u8]) -> Result<(usize, Option<char>), NotJson> {
    let character = match text.get(1).ok_or(NotJson)? {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let high = hex4(text.get(2..6)).ok_or(NotJson)?;
            let low = if text.get(6..8) == Some(b"\\u") { hex4(text.get(8..12)) } else { None };
            return Ok(match (high, low) {
                (0, _) => (6, None),
                (0xD800..=0xDBFF, Some(low @ 0xDC00..=0xDFFF)) => {
                    (12, char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)))
                }
                _ => (6, char::from_u32(high)),
            });
        }
        other => char::from(*other),
    };
    Ok((2, Some(character)))
}

fn hex4(digits: Option<&[u8]>) -> Option<u32> {
    let digits = std::str::from_utf8(digits?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn printed(text: &str) -> Result<String, NotJson> {
        let mut out = Vec::new();
        normalise(&mut out, text.as_bytes())?;
        Ok(String::from_utf8(out).expect("JSON stays UTF-8"))
    }

    #[test]
    fn texts_take_the_form_of_jsonb() {
        for (text, expected) in [
            (" 1 ", "1"),
            ("[]", "[]"),
            ("{}", "{}"),
            ("[1,2 , [ ]]", "[1, 2, []]"),
            (r#"{"b":1,"a":2}"#, r#"{"a": 2, "b": 1}"#),
            (r#"{"aa":1,"b":2}"#, r#"{"b": 2, "aa": 1}"#),
            (r#"{"a":1,"a":{"c":[1,{}],"b":null}}"#, r#"{"a": {"b": null, "c": [1, {}]}}"#),
            (r#"{"a":1,"\u0061":2,"b":3}"#, r#"{"a": 2, "b": 3}"#),
            (r#""\u00e9\/\ud83d\ude00\n\u001f""#, "\"é/😀\\n\\u001f\""),
            (r#"[1.50, 1e3, -0, true]"#, "[1.50, 1000, 0, true]"),
        ] {
            assert_eq!(printed(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_jsonb_refuses_stays_as_written() {
        for text in [r#""\u0000""#, r#""\ud800x""#, r#"{"\u0000": 1}"#, "1e999999"] {
            assert_eq!(printed(text).as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in
            ["", "{", "[1", "\"", "\"\\", "\"\\u12\"", "{1:2}", "tru", "1 2", "[1 2]", "{\"a\" 1}"]
        {
            assert_eq!(printed(text), Err(NotJson), "{text}");
        }
        assert_eq!(printed(&"[".repeat(100_000)), Err(NotJson));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(text in ".*") {
            let _ = printed(&text);
        }

        #[test]
        fn the_form_is_stable(keys in proptest::collection::vec("[a-c\"\\\\é]{0,3}", 0..6)) {
            let members: Vec<String> = keys.iter().enumerate()
                .map(|(i, key)| format!("{}:{i}", serde_json::to_string(key).expect("a string")))
                .collect();
            let once = printed(&format!("{{{}}}", members.join(","))).expect("JSON");
            prop_assert_eq!(printed(&once).expect("JSON"), once);
        }
    }
}
