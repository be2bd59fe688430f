//! Patterns: LIKE by way of a regular expression, and regular expressions themselves.
//!
//! The expressions are those of the `regex` crate, which run in linear time: back references and
//! look-around, which Postgres has, are refused when the filter is compiled.

use std::hash::{Hash, Hasher};

use regex::bytes::{Regex, RegexBuilder};

use super::tree::PatternKind;

/// Bytes that one compiled expression may take; room for a few dozen `\w`.
const COMPILED_SIZE: usize = 512 << 10;

#[derive(Clone, Debug)]
pub(super) struct Pattern {
    kind: PatternKind,
    source: Box<str>,
    regex: Regex,
}

/// A pattern that is not one, or too large when compiled. Nothing is said of the place: the
/// client knows its pattern.
#[derive(Debug)]
pub(super) struct Invalid;

impl Pattern {
    pub(super) fn new(kind: PatternKind, source: &str) -> Result<Pattern, Invalid> {
        let expression = match kind {
            PatternKind::Like | PatternKind::Ilike => from_like(source).ok_or(Invalid)?,
            PatternKind::Match | PatternKind::Imatch => source.to_owned(),
        };
        let regex = RegexBuilder::new(&expression)
            .case_insensitive(matches!(kind, PatternKind::Ilike | PatternKind::Imatch))
            // As in Postgres, a line feed is a character like any other.
            .dot_matches_new_line(true)
            .size_limit(COMPILED_SIZE)
            .dfa_size_limit(COMPILED_SIZE)
            .build()
            .map_err(|_| Invalid)?;
        Ok(Pattern { kind, source: source.into(), regex })
    }

    pub(super) fn matches(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }
}

/// The expression is made of kind and source, so these tell patterns apart.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.source == other.source
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
        self.source.hash(state);
    }
}

/// `%` any text, `_` any character, `\` takes the meaning of what follows; `None` if nothing
/// follows.
fn from_like(pattern: &str) -> Option<String> {
    let mut expression = String::with_capacity(pattern.len() + 8);
    expression.push_str(r"\A");
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            // One is as good as several, and cheaper.
            '%' if expression.ends_with(".*") => {}
            '%' => expression.push_str(".*"),
            '_' => expression.push('.'),
            c => {
                let literal = if c == '\\' { chars.next()? } else { c };
                expression.push_str(&regex::escape(literal.encode_utf8(&mut [0; 4])));
            }
        }
    }
    expression.push_str(r"\z");
    Some(expression)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(kind: PatternKind, pattern: &str, text: &str) -> bool {
        Pattern::new(kind, pattern).expect(pattern).matches(text.as_bytes())
    }

    #[test]
    fn like_has_the_wild_cards_of_sql() {
        let table = [
            ("", "", true),
            ("", "a", false),
            ("%", "", true),
            ("%%%", "any\nthing", true),
            ("a%", "abc", true),
            ("a%", "ba", false),
            ("%b%", "abc", true),
            ("_", "é", true),
            ("_", "", false),
            ("_%_", "a", false),
            ("_%_", "ab", true),
            ("a.c", "abc", false),
            ("a.%", "a.b", true),
            ("a.%", "ab", false),
            ("a.*", "a.b", false),
            (r"100\%", "100%", true),
            (r"100\%", "1000", false),
            (r"\_\\\a", r"_\a", true),
            (r"a\.%", "a.b", true),
            ("_%", "x", true),
            ("%_", "", false),
            ("(", "(", true),
            ("A", "a", false),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(matches(PatternKind::Like, pattern, text), expected, "{pattern} {text}");
        }
        assert!(matches(PatternKind::Ilike, "É%", "écran"));
    }

    #[test]
    fn expressions_match_anywhere_and_a_line_feed_is_nothing_special() {
        let table = [
            ("b", "abc", true),
            ("^b", "abc", false),
            ("^b", "a\nb", false),
            ("a$", "a\nb", false),
            ("a.b", "a\nb", true),
            (r"^\w+@\w+\.org$", "who@example.org", true),
            ("B", "abc", false),
            ("(?i)B", "abc", true),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(matches(PatternKind::Match, pattern, text), expected, "{pattern} {text}");
        }
        assert!(matches(PatternKind::Imatch, "B", "abc"));
    }

    #[test]
    fn what_cannot_be_compiled_is_refused() {
        for pattern in ["(", "[a", "a{2", r"(a)\1", "(?=a)", r"\w{1000}", "***=a"] {
            assert!(Pattern::new(PatternKind::Match, pattern).is_err(), "{pattern}");
        }
        assert!(Pattern::new(PatternKind::Like, r"a\").is_err());
        assert!(Pattern::new(PatternKind::Match, &"(".repeat(10_000)).is_err());
    }
}
