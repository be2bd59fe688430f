//! The checking client: reads a byte stream in one of several formats and hands on the rows in it.
//! The same loop, the same buffer and the same checks for pg_tide and for its peers.

use std::io::{self, Read};

/// A row as text, column by column, whatever the format it came in.
#[derive(Debug, Default)]
pub struct Row<'a> {
    columns: [&'a [u8]; Row::MOST],
    count: usize,
}

impl<'a> Row<'a> {
    const MOST: usize = 8;

    /// Columns past the eighth are left out.
    pub fn push(&mut self, column: &'a [u8]) {
        if let Some(place) = self.columns.get_mut(self.count) {
            *place = column;
            self.count += 1;
        }
    }

    pub fn columns(&self) -> &[&'a [u8]] {
        &self.columns[..self.count]
    }

    /// A column that holds an integer.
    pub fn number(&self, index: usize) -> i64 {
        number(self.columns()[index])
    }
}

pub fn number(text: &[u8]) -> i64 {
    std::str::from_utf8(text).unwrap().trim_end().parse().unwrap()
}

/// Where messages end, and what is in them.
pub trait Format: Send {
    /// Takes whole messages from the front of the bytes, hands on the rows in them, and returns
    /// how many bytes those messages were. What is left is offered again, with more behind it.
    fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&Row<'_>)) -> usize;
}

pub struct Reader {
    source: Box<dyn Read + Send>,
    format: Box<dyn Format>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Reader {
    pub fn new(source: impl Read + Send + 'static, format: impl Format + 'static) -> Reader {
        Reader {
            source: Box::new(source),
            format: Box::new(format),
            buffer: vec![0; 256 << 10],
            start: 0,
            end: 0,
        }
    }

    /// Reads once and hands on what is complete. An error when the stream has ended.
    pub fn read(&mut self, mut each: impl FnMut(&Row<'_>)) -> io::Result<()> {
        self.make_room();
        let read = self.source.read(&mut self.buffer[self.end..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end += read;
        self.start += self.format.take(&self.buffer[self.start..self.end], &mut each);
        Ok(())
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < self.buffer.len() / 4 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end > self.buffer.len() / 2 {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
        }
    }
}

/// A hash over everything that was received, in its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    pub fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last) ^ (bytes.len() as u64) << 56);
    }

    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}
