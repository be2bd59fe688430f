//! A buffer that has an end: nothing is written past it, and memory that cannot be had is an error
//! instead of the end of the process.

/// Why something could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    #[error("larger than an event may be")]
    Limit,
    #[error("out of memory")]
    Memory,
}

impl Overflow {
    pub fn sqlstate(self) -> &'static str {
        match self {
            Overflow::Limit => "54000",
            Overflow::Memory => "53200",
        }
    }
}

/// Appends to a buffer, up to an end.
#[derive(Debug)]
pub struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    end: usize,
    /// What may be written in all, from where the event began.
    limit: usize,
}

impl<'a> Bounded<'a> {
    /// `end` is the length that the buffer may grow to, and `limit` the size that one value may
    /// have.
    pub fn new(out: &'a mut Vec<u8>, end: usize, limit: usize) -> Bounded<'a> {
        Bounded { out, end, limit }
    }

    /// The buffer, with room for that many bytes more.
    pub fn room(&mut self, bytes: usize) -> Result<&mut Vec<u8>, Overflow> {
        if bytes > self.left() {
            return Err(Overflow::Limit);
        }
        self.out.try_reserve(bytes).map_err(|_| Overflow::Memory)?;
        Ok(self.out)
    }

    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> Result<(), Overflow> {
        self.room(bytes.len())?.extend_from_slice(bytes);
        Ok(())
    }

    pub fn push(&mut self, byte: u8) -> Result<(), Overflow> {
        self.room(1)?.push(byte);
        Ok(())
    }

    /// What has been written, with whatever was in the buffer before.
    pub fn written(&self) -> &[u8] {
        self.out
    }

    /// Takes back all but the first `len` bytes of the buffer.
    pub fn truncate(&mut self, len: usize) {
        self.out.truncate(len);
    }

    /// Bytes that can be written yet.
    pub fn left(&self) -> usize {
        self.end.saturating_sub(self.out.len())
    }

    /// An error if something of that size is too large to be unpacked for being written.
    pub fn admit(&self, size: usize) -> Result<(), Overflow> {
        if size > self.limit { Err(Overflow::Limit) } else { Ok(()) }
    }

    /// Bytes that can be written without more memory.
    pub(crate) fn spare(&self) -> usize {
        (self.out.capacity() - self.out.len()).min(self.left())
    }
}

/// Appends an item, if there is memory for it.
pub(crate) fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), Overflow> {
    list.try_reserve(1).map_err(|_| Overflow::Memory)?;
    list.push(item);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_be_too_much_leaves_the_buffer_as_it_was() {
        let mut out = b"before".to_vec();
        let mut bounded = Bounded::new(&mut out, 9, 9);

        assert_eq!(bounded.extend_from_slice(b"abcd"), Err(Overflow::Limit));
        assert_eq!(bounded.extend_from_slice(b"abc"), Ok(()));
        assert_eq!(bounded.push(b'd'), Err(Overflow::Limit));
        assert_eq!(bounded.room(usize::MAX), Err(Overflow::Limit));

        assert_eq!(out, b"beforeabc");
    }

    #[test]
    fn memory_that_cannot_be_had_is_an_error() {
        let mut out = Vec::new();
        let mut bounded = Bounded::new(&mut out, usize::MAX, usize::MAX);

        assert_eq!(bounded.room(usize::MAX), Err(Overflow::Memory));
    }

    proptest! {
        #[test]
        fn nothing_is_written_past_the_end(
            end in 0_usize..64,
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..10)
        ) {
            let (mut out, mut expected) = (Vec::new(), Vec::new());
            for piece in &pieces {
                let fits = expected.len() + piece.len() <= end;
                let written = Bounded::new(&mut out, end, end).extend_from_slice(piece);
                prop_assert_eq!(written.is_ok(), fits);
                if fits {
                    expected.extend_from_slice(piece);
                }
            }
            prop_assert_eq!(out, expected);
        }
    }
}
