//! Texts of type `json`, brought into the form that `jsonb` would give them: spaces after colons
//! and commas, keys sorted by length and then by bytes, the last of equal keys, plain numbers.
//!
//! Where `jsonb` refuses a text (`\u0000`, a lone surrogate, a number beyond `numeric`), it stays
//! as it was written: an event is better than none.

use std::cmp::Ordering;
use std::ops::Range;

use super::number::{number, number_length};
use crate::bounded::{Bounded, Overflow, push};
use crate::json::write_inside_bounded;

/// Deeper nesting than Postgres lets in with its default `max_stack_depth`.
const MAX_DEPTH: usize = 10_000;

/// Why a text is not written.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unprintable {
    #[error("not a JSON text, or nested deeper than any that Postgres accepts")]
    NotJson,
    #[error(transparent)]
    Overflow(#[from] Overflow),
}

use Unprintable::NotJson;

/// Writes a `json` text as `to_jsonb` prints it.
///
/// Time and memory are in proportion to the text, however deep it is nested and whatever the order
/// of its keys: all is written in the order of the text first, and objects whose keys have to
/// change places are noted; if there are any, one pass brings everything to its place.
pub fn normalise(out: &mut Bounded<'_>, text: &[u8]) -> Result<(), Unprintable> {
    let start = out.written().len();
    let mut parser = Parser {
        text,
        rest: text,
        start,
        out,
        open: Vec::new(),
        members: Vec::new(),
        unsorted: Vec::new(),
        sorted: Vec::new(),
    };
    parser.document()?;
    let Parser { mut unsorted, sorted, .. } = parser;
    if !unsorted.is_empty() {
        unsorted.sort_unstable_by_key(|object| object.inside.start);
        arrange(out, start, &unsorted, &sorted)?;
    }
    Ok(())
}

struct Parser<'a, 'b, 'c> {
    text: &'a [u8],
    rest: &'a [u8],
    /// Where the output began; all places in it are counted from there.
    start: usize,
    out: &'b mut Bounded<'c>,
    /// The arrays and objects that have begun and not ended.
    open: Vec<Open>,
    /// Members of those objects so far.
    members: Vec<Member>,
    unsorted: Vec<Object>,
    /// Members of objects that were not sorted, in their order.
    sorted: Vec<Range<u32>>,
}

/// An array or object that has begun.
enum Open {
    Array,
    Object {
        /// Where its first member is in the output.
        start: u32,
        /// Where its first member is in the list of members.
        first: usize,
    },
}

/// One key with its value.
struct Member {
    /// The key in the text, without its quotes.
    key: Range<u32>,
    /// Both in the output.
    place: Range<u32>,
}

/// An object whose members have to change places.
struct Object {
    /// What is between its braces in the output.
    inside: Range<u32>,
    /// Where its members are in the list of those that were sorted.
    members: Range<usize>,
}

impl Parser<'_, '_, '_> {
    fn document(&mut self) -> Result<(), Unprintable> {
        loop {
            if self.value()? {
                continue;
            }
            // A value has ended, and with it all that it is the last of.
            loop {
                self.space();
                let Some(open) = self.open.last() else {
                    return if self.rest.is_empty() { Ok(()) } else { Err(NotJson) };
                };
                let is_object = matches!(open, Open::Object { .. });
                let next = self.rest.first().copied();
                if is_object && matches!(next, Some(b',' | b'}')) {
                    self.end_member()?;
                }
                match (next, is_object) {
                    (Some(b','), _) => {
                        self.take(b',')?;
                        self.out.extend_from_slice(b", ")?;
                        if is_object {
                            self.key()?;
                        }
                        break;
                    }
                    (Some(b']'), false) => self.end_array()?,
                    (Some(b'}'), true) => self.end_object()?,
                    _ => return Err(NotJson),
                }
            }
        }
    }

    /// Writes a scalar, or an empty array or object; true: another one has begun, and its first
    /// value comes next.
    fn value(&mut self) -> Result<bool, Unprintable> {
        self.space();
        match self.rest.first() {
            Some(b'{') => {
                self.begin(b'{')?;
                let (start, first) = (self.place()?, self.members.len());
                push(&mut self.open, Open::Object { start, first })?;
                if self.rest.first() == Some(&b'}') {
                    self.end_object()?;
                    return Ok(false);
                }
                self.key()?;
                Ok(true)
            }
            Some(b'[') => {
                self.begin(b'[')?;
                push(&mut self.open, Open::Array)?;
                if self.rest.first() == Some(&b']') {
                    self.end_array()?;
                    return Ok(false);
                }
                Ok(true)
            }
            _ => self.scalar().map(|()| false),
        }
    }

    fn scalar(&mut self) -> Result<(), Unprintable> {
        match self.rest.first() {
            Some(b'"') => self.string().map(drop),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(b'-' | b'0'..=b'9') => {
                let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let len = self.rest.iter().take_while(|b| is_part(b)).count();
                let (token, rest) = self.rest.split_at(len);
                number(self.out.room(number_length(token))?, token);
                self.rest = rest;
                Ok(())
            }
            _ => Err(NotJson),
        }
    }

    fn begin(&mut self, bracket: u8) -> Result<(), Unprintable> {
        if self.open.len() > MAX_DEPTH {
            return Err(NotJson);
        }
        self.take(bracket)?;
        self.out.push(bracket)?;
        self.space();
        Ok(())
    }

    fn end_array(&mut self) -> Result<(), Unprintable> {
        self.take(b']')?;
        self.out.push(b']')?;
        self.open.pop();
        Ok(())
    }

    fn end_object(&mut self) -> Result<(), Unprintable> {
        self.take(b'}')?;
        let Some(Open::Object { start, first }) = self.open.pop() else { return Err(NotJson) };
        let (text, inside) = (self.text, start..self.place()?);
        let order = |a: &Member, b: &Member| compare(key(text, a), key(text, b));
        let members = self.members.get_mut(first..).unwrap_or_default();
        if !members.is_sorted_by(|a, b| order(a, b).is_lt()) {
            // Of equal keys the last written is the one that counts.
            members.sort_unstable_by(|a, b| order(a, b).then(a.place.start.cmp(&b.place.start)));
            let from = self.sorted.len();
            let mut members = members.iter().peekable();
            while let Some(member) = members.next() {
                let is_last = members.peek().is_none_or(|next| order(member, next).is_lt());
                if is_last {
                    push(&mut self.sorted, member.place.clone())?;
                }
            }
            let members = from..self.sorted.len();
            push(&mut self.unsorted, Object { inside, members })?;
        }
        self.members.truncate(first);
        self.out.push(b'}')?;
        Ok(())
    }

    /// A member's key and its colon.
    fn key(&mut self) -> Result<(), Unprintable> {
        self.space();
        let start = self.place()?;
        let key = self.string()?;
        push(&mut self.members, Member { key, place: start..start })?;
        self.space();
        self.take(b':')?;
        self.out.extend_from_slice(b": ")?;
        Ok(())
    }

    /// The value of the newest member has ended.
    fn end_member(&mut self) -> Result<(), Unprintable> {
        let end = self.place()?;
        if let Some(member) = self.members.last_mut() {
            member.place.end = end;
        }
        Ok(())
    }

    /// A string; where it is in the text, without its quotes.
    fn string(&mut self) -> Result<Range<u32>, Unprintable> {
        self.take(b'"')?;
        let start = self.read()?;
        self.out.push(b'"')?;
        loop {
            let at = self.rest.iter().position(|b| matches!(b, b'"' | b'\\')).ok_or(NotJson)?;
            let (chunk, rest) = self.rest.split_at(at);
            self.rest = rest;
            write_inside_bounded(self.out, chunk)?;
            if self.rest.first() == Some(&b'"') {
                break;
            }
            let (length, character) = escape_sequence(self.rest)?;
            let (sequence, rest) = self.rest.split_at_checked(length).ok_or(NotJson)?;
            self.rest = rest;
            match character {
                Some(character) => {
                    let mut utf8 = [0; 4];
                    write_inside_bounded(self.out, character.encode_utf8(&mut utf8).as_bytes())?;
                }
                None => self.out.extend_from_slice(sequence)?,
            }
        }
        let end = self.read()?;
        self.take(b'"')?;
        self.out.push(b'"')?;
        Ok(start..end)
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Unprintable> {
        self.rest = self.rest.strip_prefix(word).ok_or(NotJson)?;
        self.out.extend_from_slice(word)?;
        Ok(())
    }

    fn take(&mut self, byte: u8) -> Result<(), Unprintable> {
        self.rest = self.rest.strip_prefix(&[byte]).ok_or(NotJson)?;
        Ok(())
    }

    fn space(&mut self) {
        let len =
            self.rest.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.rest = self.rest.get(len..).unwrap_or_default();
    }

    /// Where the output is now.
    fn place(&self) -> Result<u32, Overflow> {
        u32::try_from(self.out.written().len() - self.start).map_err(|_| Overflow::Limit)
    }

    /// How far the text has been read.
    fn read(&self) -> Result<u32, Overflow> {
        u32::try_from(self.text.len() - self.rest.len()).map_err(|_| Overflow::Limit)
    }
}

fn key<'a>(text: &'a [u8], member: &Member) -> &'a [u8] {
    text.get(member.key.start as usize..member.key.end as usize).unwrap_or_default()
}

/// The order of keys: by length, then by bytes, without escapes.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    if !a.contains(&b'\\') && !b.contains(&b'\\') {
        return a.len().cmp(&b.len()).then_with(|| a.cmp(b));
    }
    let length = |key| plain(key).count();
    length(a).cmp(&length(b)).then_with(|| plain(a).cmp(plain(b)))
}

/// A key's bytes without their escapes.
fn plain(key: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let (mut rest, mut pending) = (key, [0; 12].into_iter().take(0));
    std::iter::from_fn(move || {
        if let Some(byte) = pending.next() {
            return Some(byte);
        }
        let (first, tail) = rest.split_first()?;
        if *first != b'\\' {
            rest = tail;
            return Some(*first);
        }
        let (length, character) = escape_sequence(rest).ok()?;
        let (sequence, tail) = rest.split_at_checked(length)?;
        rest = tail;
        let (mut bytes, mut utf8) = ([0; 12], [0; 4]);
        let kept = match character {
            Some(character) => character.encode_utf8(&mut utf8).as_bytes(),
            None => sequence,
        };
        bytes.iter_mut().zip(kept).for_each(|(to, from)| *to = *from);
        pending = bytes.into_iter().take(kept.len());
        pending.next()
    })
}

/// A part of what was written, to be written at its place.
struct Piece {
    part: Range<u32>,
    /// It is a member, and not its object's first.
    follows: bool,
}

/// Writes what is in the output from `start` on again, with the members of the objects in order.
fn arrange(
    out: &mut Bounded<'_>,
    start: usize,
    objects: &[Object],
    sorted: &[Range<u32>],
) -> Result<(), Overflow> {
    let mut written = Vec::new();
    let all = out.written().get(start..).unwrap_or_default();
    written.try_reserve_exact(all.len()).map_err(|_| Overflow::Memory)?;
    written.extend_from_slice(all);
    out.truncate(start);
    let end = u32::try_from(written.len()).map_err(|_| Overflow::Limit)?;
    let bytes =
        |part: Range<u32>| written.get(part.start as usize..part.end as usize).unwrap_or_default();
    let mut pieces = Vec::new();
    push(&mut pieces, Piece { part: 0..end, follows: false })?;
    while let Some(Piece { part, follows }) = pieces.pop() {
        if follows {
            out.extend_from_slice(b", ")?;
        }
        // The braces count: an object is not in its own first member.
        let next = objects.partition_point(|object| object.inside.start <= part.start);
        let Some(object) = objects.get(next).filter(|object| object.inside.start < part.end) else {
            out.extend_from_slice(bytes(part))?;
            continue;
        };
        out.extend_from_slice(bytes(part.start..object.inside.start))?;
        push(&mut pieces, Piece { part: object.inside.end..part.end, follows: false })?;
        let members = sorted.get(object.members.clone()).unwrap_or_default();
        for (index, member) in members.iter().enumerate().rev() {
            push(&mut pieces, Piece { part: member.clone(), follows: index > 0 })?;
        }
    }
    Ok(())
}

/// Reads the escape sequence that `text` begins with: its length and what it stands for, `None`
/// where that cannot be part of a Postgres text.
fn escape_sequence(text: &[u8]) -> Result<(usize, Option<char>), Unprintable> {
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
mod tests;
