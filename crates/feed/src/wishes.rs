//! The notifier's reader of what a server wishes to hear: lists of channels, each of all that it
//! wants. It may say anything, and without end.

use serde::Deserialize;

use crate::few;
use crate::notification::{MOST_CHANNELS, MOST_WISHES};

/// What a server in its right mind does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    #[error("a list of channels of {0} bytes is too long")]
    TooLong(usize),
    #[error("a list of channels is none")]
    NoList,
}

/// Cuts lists out of what arrives.
#[derive(Debug, Default)]
pub struct WishReader {
    arrived: Vec<u8>,
}

impl WishReader {
    /// Takes in what has been read. Whoever reads does so only while there is no list to be had, so
    /// that no more than one, and the beginning of the next, wait here.
    pub fn take_in(&mut self, bytes: &[u8]) {
        self.arrived.extend_from_slice(bytes);
    }

    /// The next list, if all of it is there.
    ///
    /// # Errors
    /// The server does not speak as it should.
    pub fn cut(&mut self) -> Result<Option<Vec<String>>, WishError> {
        #[derive(Deserialize)]
        #[serde(transparent)]
        struct List(#[serde(deserialize_with = "few::at_most::<MOST_CHANNELS, _, _>")] Vec<String>);
        let Some((length, rest)) = self.arrived.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MOST_WISHES {
            return Err(WishError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let List(channels) = serde_json::from_slice(body).map_err(|_| WishError::NoList)?;
        self.arrived.drain(..4 + length);
        Ok(Some(channels))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
    }

    fn list(names: &[String]) -> Vec<u8> {
        frame(&serde_json::to_vec(names).unwrap())
    }

    #[test]
    fn two_large_lists_under_way_are_two_lists() {
        let names = vec!["x".repeat(3_800_000)];
        let both = [list(&names), list(&names)].concat();
        let (mut reader, mut lists) = (WishReader::default(), 0);

        for chunk in both.chunks(4096) {
            reader.take_in(chunk);
            while let Some(channels) = reader.cut().unwrap() {
                assert_eq!(channels, names);
                lists += 1;
            }
        }

        assert_eq!(lists, 2);
    }

    #[test]
    fn a_list_that_is_too_long_is_refused_when_it_is_announced() {
        let mut reader = WishReader::default();
        reader.take_in(&u32::MAX.to_be_bytes());

        assert_eq!(reader.cut(), Err(WishError::TooLong(u32::MAX as usize)));
    }

    #[test]
    fn few_bytes_are_not_made_many_channels() {
        let names = |count| vec![String::new(); count];
        let cut = |bytes: &[u8]| {
            let mut reader = WishReader::default();
            reader.take_in(bytes);
            reader.cut()
        };

        assert_eq!(cut(&list(&names(MOST_CHANNELS))), Ok(Some(names(MOST_CHANNELS))));
        assert_eq!(cut(&list(&names(MOST_CHANNELS + 1))), Err(WishError::NoList));
        assert_eq!(cut(&frame(b"{}")), Err(WishError::NoList));
    }

    proptest! {
        #[test]
        fn any_bytes_are_lists_or_an_error(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10)
        ) {
            let mut reader = WishReader::default();
            for piece in pieces {
                reader.take_in(&piece);
                if !matches!(reader.cut(), Ok(None)) {
                    break;
                }
            }
        }
    }
}
