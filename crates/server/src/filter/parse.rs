//! The text of a filter, `col=op.value[,col=op.value...]`, to its tree: Supabase Realtime's
//! operators in PostgREST's quoting.
//!
//! A column or value may be in double quotes, with `\` before a quote or a backslash; otherwise it
//! reaches to the next comma that is not inside parentheses.

use std::fmt;

use super::cursor::Cursor;
use super::tree::{Comparison, Condition, Filter, PatternKind, Test, Truth};

/// Longest text; a hundred long values fit.
pub const MAX_LENGTH: usize = 64 << 10;
/// Most conditions in one filter.
pub const MAX_CONDITIONS: usize = 64;
/// Most values of `in`, as at Supabase.
pub const MAX_VALUES: usize = 100;

/// A filter's text is not one. Says back only what the client sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("Error parsing `filter` params: longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error("Error parsing `filter` params: more than {MAX_CONDITIONS} conditions")]
    TooManyConditions,
    #[error("Error parsing `filter` params: the character U+0000 cannot be part of a value")]
    Nul,
    #[error(
        "Error parsing `filter` params: filter must not contain empty segments (check for extra commas)"
    )]
    EmptySegment,
    /// The parts in which the text was understood.
    #[error("Error parsing `filter` params: {0}")]
    Unparsable(Parts),
    #[error("Error parsing `filter` params: `in` filter value must be wrapped by parentheses")]
    Unwrapped,
    #[error("Error parsing `filter` params: too many values for `in` filter. Maximum {MAX_VALUES}")]
    TooManyValues,
    #[error(
        "Error parsing `filter` params: empty value in `in` filter, write \"\" for the empty text"
    )]
    EmptyValue,
    #[error(
        "Error parsing `filter` params: invalid value for is filter: must be null, true, false, or unknown"
    )]
    InvalidIs,
    #[error("Error parsing `filter` params: a double quote is not closed, or more follows it")]
    Unquoted,
}

/// Pieces of the client's text as a list of quoted strings, cut where they are long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts(Vec<String>);

impl Parts {
    fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Parts {
        Parts(parts.into_iter().map(shown).collect())
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// As much of the client's text as an error says back.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Parses a filter; `None` if the text is blank, which asks for everything.
pub fn parse(text: &str) -> Result<Option<Filter>, ParseError> {
    if text.len() > MAX_LENGTH {
        return Err(ParseError::TooLong);
    }
    if text.contains('\0') {
        return Err(ParseError::Nul);
    }
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let mut conditions = Vec::new();
    let mut cursor = Cursor { rest: text };
    loop {
        if conditions.len() == MAX_CONDITIONS {
            return Err(ParseError::TooManyConditions);
        }
        conditions.push(condition(&mut cursor)?);
        if !cursor.eat(',') {
            break;
        }
    }
    Ok(Some(Filter { conditions }))
}

/// One condition. Stops at the comma after it or at the end.
fn condition(cursor: &mut Cursor<'_>) -> Result<Condition, ParseError> {
    cursor.skip_blanks();
    if cursor.rest.is_empty() || cursor.rest.starts_with(',') {
        return Err(ParseError::EmptySegment);
    }
    let column = column(cursor)?;
    let negated = cursor.eat_text("not.");
    let after = cursor.rest;
    let operator = cursor.until_any(['.', ',']);
    if !cursor.eat('.') {
        return Err(unparsable(after, None));
    }
    let Some(operator) = Operator::named(operator) else {
        let value = cursor.raw_value();
        return Err(unparsable(operator, Some(value)));
    };
    let test = operator.test(cursor)?;
    Ok(Condition { column, negated, test })
}

/// The column's name and the `=` after it.
fn column(cursor: &mut Cursor<'_>) -> Result<String, ParseError> {
    if cursor.eat('"') {
        let name = cursor.quoted()?;
        return if cursor.eat('=') { Ok(name) } else { Err(ParseError::Unquoted) };
    }
    let segment = Cursor { rest: cursor.rest }.raw_value();
    let Some((name, _)) = segment.split_once('=') else {
        return Err(unparsable(segment, None));
    };
    cursor.skip(name.len());
    cursor.eat('=');
    Ok(name.to_owned())
}

fn unparsable(first: &str, second: Option<&str>) -> ParseError {
    let first = match second {
        Some(_) => first,
        None => Cursor { rest: first }.raw_value(),
    };
    ParseError::Unparsable(Parts::of([first].into_iter().chain(second)))
}

#[derive(Clone, Copy)]
enum Operator {
    Compare(Comparison),
    In,
    Pattern(PatternKind),
    Is,
    Distinct,
}

impl Operator {
    fn named(name: &str) -> Option<Operator> {
        Some(match name {
            "eq" => Operator::Compare(Comparison::Eq),
            "neq" => Operator::Compare(Comparison::Neq),
            "lt" => Operator::Compare(Comparison::Lt),
            "lte" => Operator::Compare(Comparison::Lte),
            "gt" => Operator::Compare(Comparison::Gt),
            "gte" => Operator::Compare(Comparison::Gte),
            "in" => Operator::In,
            "like" => Operator::Pattern(PatternKind::Like),
            "ilike" => Operator::Pattern(PatternKind::Ilike),
            "match" => Operator::Pattern(PatternKind::Match),
            "imatch" => Operator::Pattern(PatternKind::Imatch),
            "is" => Operator::Is,
            "isdistinct" => Operator::Distinct,
            _ => return None,
        })
    }

    /// Reads what the operator takes.
    fn test(self, cursor: &mut Cursor<'_>) -> Result<Test, ParseError> {
        Ok(match self {
            Operator::Compare(comparison) => Test::Compare(comparison, cursor.value()?),
            Operator::In => Test::In(list(cursor)?),
            Operator::Pattern(kind) => Test::Pattern(kind, cursor.value()?),
            Operator::Is => Test::Is(truth(&cursor.value()?)?),
            Operator::Distinct => Test::Distinct(cursor.value()?),
        })
    }
}

fn truth(text: &str) -> Result<Truth, ParseError> {
    [Truth::Null, Truth::True, Truth::False, Truth::Unknown]
        .into_iter()
        .find(|truth| truth.keyword().eq_ignore_ascii_case(text))
        .ok_or(ParseError::InvalidIs)
}

/// `(a,"b",...)`, perhaps empty.
fn list(cursor: &mut Cursor<'_>) -> Result<Vec<String>, ParseError> {
    if !cursor.eat('(') {
        return Err(ParseError::Unwrapped);
    }
    let mut values = Vec::new();
    cursor.skip_blanks();
    let mut more = !cursor.eat(')');
    while more {
        if values.len() == MAX_VALUES {
            return Err(ParseError::TooManyValues);
        }
        values.push(item(cursor)?);
        more = cursor.eat(',');
        if !more && !cursor.eat(')') {
            return Err(ParseError::Unwrapped);
        }
    }
    cursor.skip_blanks();
    if !cursor.at_end() {
        return Err(ParseError::Unwrapped);
    }
    Ok(values)
}

/// One value of a list. Blanks around it do not belong to it.
fn item(cursor: &mut Cursor<'_>) -> Result<String, ParseError> {
    cursor.skip_blanks();
    if cursor.eat('"') {
        let value = cursor.quoted()?;
        cursor.skip_blanks();
        return match cursor.rest.chars().next() {
            Some(',' | ')') => Ok(value),
            _ => Err(ParseError::Unquoted),
        };
    }
    match cursor.take_balanced(true).trim() {
        "" => Err(ParseError::EmptyValue),
        value => Ok(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tree(text: &str) -> Filter {
        parse(text).expect(text).expect("not blank")
    }

    fn one(text: &str) -> Condition {
        let mut conditions = tree(text).conditions;
        assert_eq!(conditions.len(), 1, "{text}");
        conditions.remove(0)
    }

    fn condition(column: &str, negated: bool, test: Test) -> Condition {
        Condition { column: column.into(), negated, test }
    }

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_operator_is_understood_and_can_be_negated() {
        let value = || "5".to_owned();
        let table = [
            ("eq.5", Test::Compare(Comparison::Eq, value())),
            ("neq.5", Test::Compare(Comparison::Neq, value())),
            ("lt.5", Test::Compare(Comparison::Lt, value())),
            ("lte.5", Test::Compare(Comparison::Lte, value())),
            ("gt.5", Test::Compare(Comparison::Gt, value())),
            ("gte.5", Test::Compare(Comparison::Gte, value())),
            ("in.(5)", Test::In(vec![value()])),
            ("like.5", Test::Pattern(PatternKind::Like, value())),
            ("ilike.5", Test::Pattern(PatternKind::Ilike, value())),
            ("match.5", Test::Pattern(PatternKind::Match, value())),
            ("imatch.5", Test::Pattern(PatternKind::Imatch, value())),
            ("is.null", Test::Is(Truth::Null)),
            ("is.true", Test::Is(Truth::True)),
            ("is.FALSE", Test::Is(Truth::False)),
            ("is.unknown", Test::Is(Truth::Unknown)),
            ("isdistinct.5", Test::Distinct(value())),
        ];
        for (text, test) in table {
            assert_eq!(one(&format!("id={text}")), condition("id", false, test.clone()));
            assert_eq!(one(&format!("id=not.{text}")), condition("id", true, test));
        }
    }

    #[test]
    fn commas_join_conditions() {
        let filter = tree("amount=gt.100, status=in.(open,pending) ,name=not.like.a%");

        assert_eq!(
            filter.conditions,
            [
                condition("amount", false, Test::Compare(Comparison::Gt, "100".into())),
                condition("status", false, Test::In(texts(&["open", "pending"]))),
                condition("name", true, Test::Pattern(PatternKind::Like, "a%".into())),
            ]
        );
    }

    #[test]
    fn blank_text_is_no_filter() {
        for text in ["", " ", "\t\n  "] {
            assert_eq!(parse(text), Ok(None));
        }
    }

    #[test]
    fn values_are_taken_as_the_client_meant_them() {
        let table = [
            ("a=eq.", ""),
            ("a=eq. x ", " x"),
            ("a=eq.2025-01-01T10:00:00.5+00:00", "2025-01-01T10:00:00.5+00:00"),
            ("a=eq.b=c", "b=c"),
            ("a=eq.5\"", "5\""),
            ("a=eq.f(x,y)", "f(x,y)"),
            ("a=eq.:)", ":)"),
            ("a=eq.not.eq.1", "not.eq.1"),
            (r#"a=eq."""#, ""),
            (r#"a=eq."x,y""#, "x,y"),
            (r#"a=eq." x ""#, " x "),
            (r#"a=eq."(\"\\)" "#, r#"("\)"#),
            (r#"a=eq."\é""#, "é"),
            (r"a=eq.C:\dir", r"C:\dir"),
            ("a=eq.日本", "日本"),
        ];
        for (text, value) in table {
            assert_eq!(one(text).test, Test::Compare(Comparison::Eq, value.into()), "{text}");
        }
    }

    #[test]
    fn lists_are_taken_as_the_client_meant_them() {
        let table: [(&str, &[&str]); 8] = [
            ("a=in.()", &[]),
            ("a=in.( )", &[]),
            ("a=in.(1)", &["1"]),
            ("a=in.( 1 , 2 )", &["1", "2"]),
            (r#"a=in.("x,y","(",")", "" )"#, &["x,y", "(", ")", ""]),
            (r#"a=in.("\"\\")"#, &["\"\\"]),
            ("a=in.(f(x,y),z)", &["f(x,y)", "z"]),
            (r#"a=in.(5",x"y)"#, &["5\"", "x\"y"]),
        ];
        for (text, values) in table {
            assert_eq!(one(text).test, Test::In(texts(values)), "{text}");
        }
    }

    #[test]
    fn columns_may_have_any_name() {
        let table = [
            ("my col=eq.1", "my col"),
            ("a.b=eq.1", "a.b"),
            ("f(x,y)=eq.1", "f(x,y)"),
            ("naïve=eq.1", "naïve"),
            (r#""a=b"=eq.1"#, "a=b"),
            (r#""a,b"=eq.1"#, "a,b"),
            (r#""say \"hi\"\\"=eq.1"#, r#"say "hi"\"#),
            (r#"in"ch=eq.1"#, "in\"ch"),
        ];
        for (text, column) in table {
            assert_eq!(one(text).column, column, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_parsed_is_said_back_as_supabase_does() {
        let table = [
            ("undefined", r#"["undefined"]"#),
            ("subject=foo.hey", r#"["foo", "hey"]"#),
            ("subject=not.foo.hey", r#"["foo", "hey"]"#),
            ("subject=hey", r#"["hey"]"#),
            ("subject=not.eq", r#"["eq"]"#),
            ("subject=", r#"[""]"#),
            ("subject=EQ.1", r#"["EQ", "1"]"#),
            ("id=eq.1,wrong,id=eq.2", r#"["wrong"]"#),
            ("id=foo.a(b,c).d,id=eq.2", r#"["foo", "a(b,c).d"]"#),
            ("a\"b\\", r#"["a\"b\\"]"#),
        ];
        for (text, parts) in table {
            let error = parse(text).expect_err(text).to_string();

            assert_eq!(error, format!("Error parsing `filter` params: {parts}"), "{text}");
        }
    }

    #[test]
    fn malformed_filters_are_refused() {
        let table = [
            (",", ParseError::EmptySegment),
            ("a=eq.1,", ParseError::EmptySegment),
            ("a=eq.1,,b=eq.2", ParseError::EmptySegment),
            (" , a=eq.1", ParseError::EmptySegment),
            ("a=in.1,2", ParseError::Unwrapped),
            ("a=in.{1,2}", ParseError::Unwrapped),
            ("a=in.(1,2", ParseError::Unwrapped),
            ("a=in.(", ParseError::EmptyValue),
            ("a=in.(1)2", ParseError::Unwrapped),
            ("a=in.(1,)", ParseError::EmptyValue),
            ("a=in.(,1)", ParseError::EmptyValue),
            (r#"a=in.("1" 2)"#, ParseError::Unquoted),
            (r#"a=in.("1"#, ParseError::Unquoted),
            (r#"a=eq."1"#, ParseError::Unquoted),
            (r#"a=eq."1\"#, ParseError::Unquoted),
            (r#"a=eq."1"2"#, ParseError::Unquoted),
            (r#""a"#, ParseError::Unquoted),
            (r#""a"b=eq.1"#, ParseError::Unquoted),
            ("a=is.maybe", ParseError::InvalidIs),
            ("a=is.", ParseError::InvalidIs),
            ("a=eq.\0", ParseError::Nul),
        ];
        for (text, error) in table {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let values = |count: usize| format!("a=in.({})", vec!["1"; count].join(","));
        let conditions = |count: usize| vec!["a=eq.1"; count].join(",");

        assert!(parse(&values(MAX_VALUES)).is_ok());
        assert_eq!(parse(&values(MAX_VALUES + 1)), Err(ParseError::TooManyValues));
        assert!(parse(&conditions(MAX_CONDITIONS)).is_ok());
        assert_eq!(parse(&conditions(MAX_CONDITIONS + 1)), Err(ParseError::TooManyConditions));
        assert_eq!(parse(&"x".repeat(MAX_LENGTH + 1)), Err(ParseError::TooLong));
        let long = parse(&"x".repeat(MAX_LENGTH)).expect_err("no operator").to_string();
        assert!(long.len() < 300, "{}", long.len());
    }

    fn any_test() -> impl Strategy<Value = Test> {
        use Comparison::{Eq, Gt, Gte, Lt, Lte, Neq};
        use PatternKind::{Ilike, Imatch, Like, Match};
        use Truth::{False, Null, True, Unknown};
        let value = || "[^\0]{0,8}|[ a,()\"\\\\=.]{0,6}";
        prop_oneof![
            (prop::sample::select(vec![Eq, Neq, Lt, Lte, Gt, Gte]), value())
                .prop_map(|(comparison, value)| Test::Compare(comparison, value)),
            prop::collection::vec(value(), 0..5).prop_map(Test::In),
            (prop::sample::select(vec![Like, Ilike, Match, Imatch]), value())
                .prop_map(|(kind, value)| Test::Pattern(kind, value)),
            prop::sample::select(vec![Null, True, False, Unknown]).prop_map(Test::Is),
            value().prop_map(Test::Distinct),
        ]
    }

    fn any_filter() -> impl Strategy<Value = Filter> {
        let column = "[a-z_]{1,8}|[^\0]{0,6}|[ a,()\"\\\\=.]{0,6}";
        let condition = (column, any::<bool>(), any_test())
            .prop_map(|(column, negated, test)| Condition { column, negated, test });
        prop::collection::vec(condition, 1..5).prop_map(|conditions| Filter { conditions })
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".*") {
            let _ = parse(&text);
        }

        #[test]
        fn any_text_of_the_grammar_s_own_characters_parses_or_is_refused(
            text in "([a=,.()\"\\\\ ]|not\\.|eq\\.|in\\.|in\\.\\(|is\\.){0,40}"
        ) {
            let _ = parse(&text);
        }

        #[test]
        fn a_printed_tree_parses_to_itself(filter in any_filter()) {
            let text = filter.to_string();

            prop_assert_eq!(parse(&text), Ok(Some(filter)), "{}", text);
        }
    }
}
