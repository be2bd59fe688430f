//! Patterns: LIKE by way of a regular expression, and regular expressions themselves.
//!
//! The expressions are those of the `regex` crate: back references and look-around, which Postgres
//! has, are refused when the filter is compiled. They are searched for by an automaton that is
//! built while it reads, since that needs little memory and says how much work it was; for what
//! takes too many of its states, by a slower machine, if that is not too much work either.

use std::hash::{Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::pikevm::PikeVM;
use regex_automata::nfa::thompson::{NFA, WhichCaptures};
use regex_automata::util::syntax;
use regex_automata::{Input, MatchErrorKind};

use super::effort::{Effort, TooMuch};
use super::tree::PatternKind;

/// Bytes that one compiled expression may take; room for half a dozen `\w`.
const COMPILED_SIZE: usize = 128 << 10;

/// Bytes of states that a search may have at a time.
const STATES_SIZE: usize = 128 << 10;

/// Bytes of them that are kept for the next search, so that usual patterns build them only once.
const KEPT_SIZE: usize = 8 << 10;

/// Bytes of an expression's text: a class such as `\p{L}` takes a millisecond to compile.
pub(super) const MAX_EXPRESSION: usize = 1_000;

/// Depth of an expression's parentheses.
const MAX_DEPTH: u32 = 50;

/// How often a search may throw its states away before it has to get on with what it has.
const FRESH_STARTS: usize = 2;

/// What building a byte of states takes, as bytes of text that could have been read meanwhile.
const STATE_COST: usize = 25;

/// What a step of the slower machine takes, for each byte of the text and each of its states, as
/// bytes of text that the faster one could have read meanwhile.
const STEP_COST: usize = 10;

#[derive(Debug)]
pub(super) struct Pattern {
    kind: PatternKind,
    source: Box<str>,
    dfa: DFA,
    /// States from earlier searches.
    cache: Mutex<Option<Cache>>,
    /// Bytes of an empty cache.
    fresh_size: usize,
}

/// Why a pattern cannot be used. Nothing is said of the place: the client knows its pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    Invalid,
    TooLarge,
}

impl Pattern {
    pub(super) fn new(kind: PatternKind, source: &str) -> Result<Pattern, Unusable> {
        let expression = match kind {
            PatternKind::Like | PatternKind::Ilike => from_like(source).ok_or(Unusable::Invalid)?,
            PatternKind::Match | PatternKind::Imatch if source.len() > MAX_EXPRESSION => {
                return Err(Unusable::TooLarge);
            }
            PatternKind::Match | PatternKind::Imatch => source.to_owned(),
        };
        let syntax = syntax::Config::new()
            .case_insensitive(matches!(kind, PatternKind::Ilike | PatternKind::Imatch))
            // As in Postgres, a line feed is a character like any other.
            .dot_matches_new_line(true)
            .utf8(false)
            .nest_limit(MAX_DEPTH);
        let compiled = NFA::config()
            .utf8(false)
            .which_captures(WhichCaptures::None)
            .nfa_size_limit(Some(COMPILED_SIZE));
        let nfa = NFA::compiler().syntax(syntax).configure(compiled).build(&expression);
        let nfa = nfa.map_err(|error| match error.size_limit() {
            Some(_) => Unusable::TooLarge,
            None => Unusable::Invalid,
        })?;
        let searching = DFA::config()
            .cache_capacity(STATES_SIZE)
            .unicode_word_boundary(true)
            .minimum_cache_clear_count(Some(FRESH_STARTS))
            .minimum_bytes_per_state(Some(nfa.states().len()));
        let dfa = DFA::builder().configure(searching).build_from_nfa(nfa);
        let dfa = dfa.map_err(|_| Unusable::TooLarge)?;
        let fresh_size = dfa.create_cache().memory_usage();
        Ok(Pattern { kind, source: source.into(), dfa, cache: Mutex::new(None), fresh_size })
    }

    /// Whether it is found in the text, if finding out is not too much.
    pub(super) fn matches(&self, text: &[u8], effort: &Effort) -> Result<bool, TooMuch> {
        effort.spend(text.len())?;
        let mut kept = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cache = kept.take().unwrap_or_else(|| self.dfa.create_cache());
        let (size, clears) = (cache.memory_usage(), cache.clear_count());
        let found = self.dfa.try_search_fwd(&mut cache, &Input::new(text).earliest(true));
        let built = (cache.clear_count() - clears) * STATES_SIZE + cache.memory_usage();
        effort.spend(built.saturating_sub(size) * STATE_COST)?;
        if cache.memory_usage() <= self.fresh_size + KEPT_SIZE {
            *kept = Some(cache);
        }
        drop(kept);
        match found {
            Ok(found) => Ok(found.is_some()),
            // A word boundary beside a letter that is not ASCII, or too many states.
            Err(error) => {
                debug_assert!(matches!(
                    error.kind(),
                    MatchErrorKind::Quit { .. } | MatchErrorKind::GaveUp { .. }
                ));
                self.step_through(text, effort)
            }
        }
    }

    fn step_through(&self, text: &[u8], effort: &Effort) -> Result<bool, TooMuch> {
        let nfa = self.dfa.get_nfa();
        let steps = text.len().saturating_mul(nfa.states().len());
        effort.spend(steps.saturating_mul(STEP_COST))?;
        // It can always be made of what the automaton was made of.
        let Ok(machine) = PikeVM::new_from_nfa(nfa.clone()) else { return Err(TooMuch) };
        Ok(machine.is_match(&mut machine.create_cache(), text))
    }

    /// Bytes that it takes up at most between two searches.
    pub(super) fn memory(&self) -> usize {
        let nfa = self.dfa.get_nfa();
        let states = nfa.memory_usage() + self.fresh_size + KEPT_SIZE;
        size_of::<Pattern>() + self.source.len() + states
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
                // Letters and digits of all scripts stand for themselves.
                if literal.is_ascii_punctuation() {
                    expression.push('\\');
                }
                expression.push(literal);
            }
        }
    }
    expression.push_str(r"\z");
    Some(expression)
}

#[cfg(test)]
mod tests {
    use super::super::effort::Place;
    use super::*;

    fn matches(kind: PatternKind, pattern: &str, text: &str) -> bool {
        let pattern = Pattern::new(kind, pattern).expect(pattern);
        pattern.matches(text.as_bytes(), &Effort::default()).expect("little work")
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
        let refused = |kind, pattern: &str| Pattern::new(kind, pattern).expect_err(pattern);

        for pattern in ["(", "[a", "a{2", r"(a)\1", "(?=a)", "***=a"] {
            assert_eq!(refused(PatternKind::Match, pattern), Unusable::Invalid, "{pattern}");
        }
        assert_eq!(refused(PatternKind::Like, r"a\"), Unusable::Invalid);
        assert_eq!(refused(PatternKind::Match, &"(".repeat(900)), Unusable::Invalid);
    }

    #[test]
    fn what_would_take_much_memory_is_refused() {
        let refused = |kind, pattern: &str| Pattern::new(kind, pattern).expect_err(pattern);

        for pattern in [r"\w{8}x", r"\w{1000}", "((a{100}){100}){100}", "1[01]{4000}2"] {
            assert_eq!(refused(PatternKind::Match, pattern), Unusable::TooLarge, "{pattern}");
        }
        assert_eq!(refused(PatternKind::Imatch, &r"\p{L}".repeat(10_000)), Unusable::TooLarge);
        assert_eq!(refused(PatternKind::Like, &"x".repeat(60_000)), Unusable::TooLarge);
    }

    #[test]
    fn a_search_that_takes_too_much_is_given_up() {
        let digits: String = (0..1_000_000_u64)
            .map(|i| if ((i * 2_654_435_761) >> 13) & 1 == 1 { '1' } else { '0' })
            .collect();
        let hard = Pattern::new(PatternKind::Match, "1[01]{1500}2").expect("it is small");
        let effort = Effort::default();
        effort.earn(0, digits.len(), Place::Turn);

        assert_eq!(hard.matches(digits.as_bytes(), &effort), Err(TooMuch));
        // What is usual is not, and takes no more memory than it said.
        let usual = Pattern::new(PatternKind::Match, r"^\w+@\w+\.org$").expect("a pattern");
        for _ in 0..10 {
            let effort = Effort::default();
            assert_eq!(usual.matches(digits.as_bytes(), &effort), Ok(false));
            assert_eq!(usual.matches(b"who@example.org", &effort), Ok(true));
        }
        assert!(usual.cache.lock().unwrap().is_some());
        assert!(usual.memory() < 100 << 10, "{}", usual.memory());
    }

    #[test]
    fn a_search_that_takes_many_states_is_right_all_the_same() {
        let hard = Pattern::new(PatternKind::Match, "1[01]{300}2").expect("it is small");
        let text = "0110100110010110".repeat(40);

        let found = |text: &str| hard.matches(text.as_bytes(), &Effort::default());

        assert_eq!(found(&text), Ok(false));
        assert_eq!(found(&format!("{text}1{}2", &text[..300])), Ok(true));
        assert!(matches(PatternKind::Match, r"\bcran\b", "é cran é"));
        assert!(!matches(PatternKind::Match, r"\bcran\b", "écran"));
    }
}
