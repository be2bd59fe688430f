//! Formats of logical decoding's own plugins, as `pg_recvlogical` writes them to its output.

use memchr::memchr;

use super::reader::{Format, Row};
use super::scan;

/// Messages of pgoutput, protocol version 1, each followed by a line feed.
#[derive(Debug)]
pub struct Pgoutput;

impl Format for Pgoutput {
    fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&Row<'_>)) -> usize {
        let mut used = 0;
        while let Some((message, length)) = message(&bytes[used..]) {
            if bytes.get(used + length) != Some(&b'\n') {
                break;
            }
            if let Some(row) = message {
                each(&row);
            }
            used += length + 1;
        }
        used
    }
}

/// Lines of wal2json, format version 2.
#[derive(Debug)]
pub struct Wal2json;

impl Format for Wal2json {
    fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&Row<'_>)) -> usize {
        let mut used = 0;
        while let Some(length) = memchr(b'\n', &bytes[used..]) {
            if let Some(row) = scan::wal2json(&bytes[used..used + length]) {
                each(&row);
            }
            used += length + 1;
        }
        used
    }
}

/// The message at the front, with the new row if it has one, and its length; `None` if it is not
/// all there.
pub fn message(bytes: &[u8]) -> Option<(Option<Row<'_>>, usize)> {
    let mut cursor = Cursor { bytes, at: 0 };
    let row = match cursor.byte()? {
        b'B' => cursor.skip(20)?,
        b'C' => cursor.skip(25)?,
        b'O' => cursor.skip(8)?.and_text()?,
        b'R' => cursor.relation()?,
        b'Y' => cursor.skip(4)?.and_text()?.and_text()?,
        b'T' => {
            let count = cursor.int32()?;
            cursor.skip(1 + 4 * count)?
        }
        b'I' | b'U' | b'D' => {
            cursor.skip(4)?;
            return cursor.change();
        }
        other => panic!("pgoutput sent a message of type {:?}", other as char),
    };
    Some((None, row.at))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let slice = self.bytes.get(self.at..self.at + length)?;
        self.at += length;
        Some(slice)
    }

    fn int16(&mut self) -> Option<usize> {
        Some(usize::from(u16::from_be_bytes(self.slice(2)?.try_into().ok()?)))
    }

    fn int32(&mut self) -> Option<usize> {
        Some(u32::from_be_bytes(self.slice(4)?.try_into().ok()?) as usize)
    }

    fn skip(&mut self, length: usize) -> Option<&mut Self> {
        self.slice(length)?;
        Some(self)
    }

    fn and_text(&mut self) -> Option<&mut Self> {
        let length = memchr(0, self.bytes.get(self.at..)?)?;
        self.skip(length + 1)
    }

    fn relation(&mut self) -> Option<&mut Self> {
        self.skip(4)?.and_text()?.and_text()?.skip(1)?;
        for _ in 0..self.int16()? {
            self.skip(1)?.and_text()?.skip(8)?;
        }
        Some(self)
    }

    /// Old and new tuple of a change, as far as they are there; the last one counts.
    fn change(mut self) -> Option<(Option<Row<'a>>, usize)> {
        loop {
            let kind = self.byte()?;
            let row = self.tuple()?;
            let more = kind != b'N' && self.bytes.get(self.at).copied() == Some(b'N');
            if !more {
                return Some((Some(row), self.at));
            }
        }
    }

    fn tuple(&mut self) -> Option<Row<'a>> {
        let mut row = Row::default();
        for _ in 0..self.int16()? {
            match self.byte()? {
                b't' => {
                    let length = self.int32()?;
                    row.push(self.slice(length)?);
                }
                _ => row.push(b""),
            }
        }
        Some(row)
    }
}
