//! Reading a filter's text from front to back.

use super::parse::ParseError;

/// What is left of the text.
pub(super) struct Cursor<'a> {
    pub(super) rest: &'a str,
}

impl<'a> Cursor<'a> {
    /// At the comma before the next condition, or at the end of the text.
    pub(super) fn at_end(&self) -> bool {
        self.rest.is_empty() || self.rest.starts_with(',')
    }

    pub(super) fn eat(&mut self, c: char) -> bool {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    pub(super) fn eat_text(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    pub(super) fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes `len` bytes, or everything if that is not a place between two characters.
    pub(super) fn skip(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    pub(super) fn until_any<const N: usize>(&mut self, stop: [char; N]) -> &'a str {
        self.skip(self.rest.find(stop).unwrap_or(self.rest.len()))
    }

    /// Takes what reaches to a comma outside of parentheses, or (in a list) to the parenthesis
    /// that closes it.
    pub(super) fn take_balanced(&mut self, in_list: bool) -> &'a str {
        let mut depth = 0_usize;
        let end = self.rest.char_indices().find_map(|(at, c)| match c {
            '(' => {
                depth += 1;
                None
            }
            ')' if depth == 0 => in_list.then_some(at),
            ')' => {
                depth -= 1;
                None
            }
            ',' if depth == 0 => Some(at),
            _ => None,
        });
        self.skip(end.unwrap_or(self.rest.len()))
    }

    /// A value without quotes; the blanks after it do not belong to it.
    pub(super) fn raw_value(&mut self) -> &'a str {
        self.take_balanced(false).trim_end()
    }

    pub(super) fn value(&mut self) -> Result<String, ParseError> {
        if !self.eat('"') {
            return Ok(self.raw_value().to_owned());
        }
        let value = self.quoted()?;
        self.skip_blanks();
        if self.at_end() { Ok(value) } else { Err(ParseError::Unquoted) }
    }

    /// The rest of a text in quotes, whose opening quote has been taken.
    pub(super) fn quoted(&mut self) -> Result<String, ParseError> {
        let mut text = String::new();
        let mut chars = self.rest.chars();
        loop {
            match chars.next() {
                Some('"') => break,
                Some('\\') => text.push(chars.next().ok_or(ParseError::Unquoted)?),
                Some(c) => text.push(c),
                None => return Err(ParseError::Unquoted),
            }
        }
        self.rest = chars.as_str();
        Ok(text)
    }
}
