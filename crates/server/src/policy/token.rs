//! SQL taken apart into words, literals and signs: enough for expressions as Postgres prints them,
//! and for the bodies of functions.

use std::ops::Range;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A keyword or a name without quotes, in lower case.
    Word(String),
    /// A name in double quotes.
    Quoted(String),
    /// The value of a string.
    Text(String),
    Number(String),
    /// `(`, `)`, `[`, `]`, `,`, `.`, `::`, `;`, `:=` or an operator.
    Sign(String),
}

/// The tokens of a text, each with its place; `None` if it is not SQL as far as it is known here.
pub(super) fn tokens(text: &str) -> Option<Vec<(Token, Range<usize>)>> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blanks()?;
        let start = lexer.at;
        let Some(first) = lexer.peek() else { return Some(tokens) };
        let token = lexer.token(first)?;
        tokens.push((token, start..lexer.at));
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

const OPERATORS: &str = "+-*/<>=~!@#%^&|`?";

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// Blanks and comments.
    fn skip_blanks(&mut self) -> Option<()> {
        loop {
            self.take_while(char::is_whitespace);
            if self.rest().starts_with("--") {
                self.take_while(|c| !matches!(c, '\n' | '\r'));
            } else if self.rest().starts_with("/*") {
                self.at += self.rest().find("*/")? + 2;
            } else {
                return Some(());
            }
        }
    }

    fn token(&mut self, first: char) -> Option<Token> {
        match first {
            '\'' => self.quoted('\'', false).map(Token::Text),
            '"' => self.quoted('"', false).map(Token::Quoted),
            '$' => self.dollars().map(Token::Text),
            '0'..='9' => {
                let number = self.take_while(|c| c.is_ascii_alphanumeric() || c == '.');
                Some(Token::Number(number.to_owned()))
            }
            '(' | ')' | '[' | ']' | ',' | '.' | ';' => {
                self.at += 1;
                Some(Token::Sign(first.to_string()))
            }
            ':' => {
                let sign = self.take_while(|c| matches!(c, ':' | '='));
                Some(Token::Sign(sign.to_owned()))
            }
            _ if OPERATORS.contains(first) => {
                let operator = self.take_while(|c| OPERATORS.contains(c));
                // Not where a comment begins in the midst of it.
                (!operator.contains("--") && !operator.contains("/*"))
                    .then(|| Token::Sign(operator.to_owned()))
            }
            _ if first.is_alphabetic() || first == '_' => {
                let word = self.take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '$'));
                if word.eq_ignore_ascii_case("u") && self.rest().starts_with('&') {
                    return None;
                }
                if self.peek() != Some('\'') {
                    return Some(Token::Word(word.to_lowercase()));
                }
                // A string with escapes; others (bits, Unicode escapes) are not known here.
                word.eq_ignore_ascii_case("e").then(|| self.quoted('\'', true))?.map(Token::Text)
            }
            _ => None,
        }
    }

    fn quoted(&mut self, quote: char, escapes: bool) -> Option<String> {
        let mut value = String::new();
        let mut chars = self.rest().char_indices().skip(1).peekable();
        while let Some((index, c)) = chars.next() {
            match c {
                '\\' if escapes => match chars.next()?.1 {
                    // Postgres prints no other ones.
                    next @ ('\\' | '\'') => value.push(next),
                    _ => return None,
                },
                _ if c != quote => value.push(c),
                _ if chars.peek().is_some_and(|(_, next)| *next == quote) => {
                    chars.next();
                    value.push(quote);
                }
                _ => {
                    self.at += index + 1;
                    return Some(value);
                }
            }
        }
        None
    }

    /// `$tag$ ... $tag$`
    fn dollars(&mut self) -> Option<String> {
        let rest = self.rest();
        let tag_end = rest.get(1..)?.find('$')? + 2;
        let tag = rest.get(..tag_end)?;
        let is_tag = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        if !tag.chars().all(is_tag) {
            return None;
        }
        let body = rest.get(tag_end..)?;
        let end = body.find(tag)?;
        self.at += tag_end + end + tag.len();
        body.get(..end).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sql_is_taken_apart() {
        let text =
            "(\"Own\"::text = E'it\\'s \\\\' -- why\n AND x->>'a''b' <> 12.5) /* so */ $q$ $ $q$";
        let tokens: Vec<Token> =
            tokens(text).unwrap().into_iter().map(|(token, _)| token).collect();

        let sign = |s: &str| Token::Sign(s.into());
        assert_eq!(
            tokens,
            [
                sign("("),
                Token::Quoted("Own".into()),
                sign("::"),
                Token::Word("text".into()),
                sign("="),
                Token::Text("it's \\".into()),
                Token::Word("and".into()),
                Token::Word("x".into()),
                sign("->>"),
                Token::Text("a'b".into()),
                sign("<>"),
                Token::Number("12.5".into()),
                sign(")"),
                Token::Text(" $ ".into()),
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for text in
            ["'open", "\"open", "$1", "$a$ open", "/* open", "U&'x'", "b'01'", "E'\\n'", "{"]
        {
            assert_eq!(tokens(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".*") {
            let _ = tokens(&text);
        }
    }
}
