//! A JSON scanner that looks at every byte and keeps only where the values of a row are.
//!
//! As lean as can be, so that at the rates measured it is not the client that is measured.
//! Trusts that the text is JSON as its server writes it; anything else ends the run.

use super::reader::Row;

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    #[inline]
    fn byte(&self) -> u8 {
        self.text[self.at]
    }

    #[inline]
    fn expect(&mut self, byte: u8) {
        if self.byte() != byte {
            self.fail();
        }
        self.at += 1;
    }

    #[cold]
    fn fail(&self) -> ! {
        panic!("not as expected at {}: {}", self.at, String::from_utf8_lossy(self.text));
    }

    /// A string's content, escapes left as they are.
    #[inline]
    fn string(&mut self) -> &'a [u8] {
        self.expect(b'"');
        let start = self.at;
        loop {
            self.at += quote_or_escape(&self.text[self.at..]);
            match self.text.get(self.at) {
                Some(b'"') => break,
                Some(_) => self.at += 2,
                None => self.fail(),
            }
        }
        self.at += 1;
        &self.text[start..self.at - 1]
    }

    /// Any value as text; a string without its quotes.
    fn value(&mut self) -> &'a [u8] {
        match self.byte() {
            b'"' => self.string(),
            b'{' | b'[' => self.nested(),
            _ => {
                let start = self.at;
                while !matches!(self.byte(), b',' | b'}' | b']') {
                    self.at += 1;
                }
                &self.text[start..self.at]
            }
        }
    }

    fn nested(&mut self) -> &'a [u8] {
        let start = self.at;
        let mut depth = 0;
        loop {
            match self.byte() {
                b'"' => {
                    self.string();
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return &self.text[start..self.at];
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Calls `member` for each key, with the scanner before its value.
    fn object(&mut self, mut member: impl FnMut(&mut Self, &'a [u8])) {
        self.list(b'{', b'}', |scanner| {
            let key = scanner.string();
            scanner.expect(b':');
            member(scanner, key);
        });
    }

    /// Calls `item` for each item, with the scanner before it.
    fn list(&mut self, open: u8, close: u8, mut item: impl FnMut(&mut Self)) {
        self.expect(open);
        if self.byte() == close {
            self.at += 1;
            return;
        }
        loop {
            item(self);
            if self.byte() == close {
                self.at += 1;
                return;
            }
            self.expect(b',');
        }
    }
}

/// How many bytes come before the first quote or backslash; eight are looked at in one step, as
/// most strings are short.
#[inline]
fn quote_or_escape(text: &[u8]) -> usize {
    let (words, rest) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = equal(word, b'"') | equal(word, b'\\');
        if found != 0 {
            return index * 8 + (found.trailing_zeros() / 8) as usize;
        }
    }
    let ends = |byte: &u8| matches!(byte, b'"' | b'\\');
    words.len() * 8 + rest.iter().position(ends).unwrap_or(rest.len())
}

/// The highest bit of the first byte that is equal, and perhaps of ones after it.
#[inline]
fn equal(word: u64, byte: u8) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let differences = word ^ (ONES * u64::from(byte));
    differences.wrapping_sub(ONES) & !differences & (ONES << 7)
}

/// The row in a frame of pg_tide's, protocol version 2: `postgres_changes`, or the broadcast of a
/// `tide:table:` topic. `None` for every other frame.
pub fn frame(text: &[u8]) -> Option<Row<'_>> {
    let mut scanner = Scanner { text, at: 0 };
    let mut row = None;
    let mut index = 0;
    scanner.list(b'[', b']', |scanner| {
        match (index, scanner.byte()) {
            (4, b'{') => payload(scanner, &mut row),
            _ => drop(scanner.value()),
        }
        index += 1;
    });
    row
}

fn payload<'a>(scanner: &mut Scanner<'a>, row: &mut Option<Row<'a>>) {
    scanner.object(|scanner, key| match (key, scanner.byte()) {
        (b"data" | b"payload", b'{') => payload(scanner, row),
        (b"record", b'{') => {
            let mut record = Row::default();
            scanner.object(|scanner, _| record.push(scanner.value()));
            *row = Some(record);
        }
        _ => drop(scanner.value()),
    });
}

/// The row in a line of wal2json's, format version 2. `None` for begin, commit and the like.
pub fn wal2json(line: &[u8]) -> Option<Row<'_>> {
    let mut scanner = Scanner { text: line, at: 0 };
    let mut row = None;
    scanner.object(|scanner, key| {
        if key != b"columns" {
            scanner.value();
            return;
        }
        let mut record = Row::default();
        scanner.list(b'[', b']', |scanner| {
            scanner.object(|scanner, key| {
                let value = scanner.value();
                if key == b"value" {
                    record.push(value);
                }
            });
        });
        row = Some(record);
    });
    row
}
