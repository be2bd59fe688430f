//! The seal on a message: a MAC over what it says and where it stands.
//!
//! Whoever may call `pg_logical_emit_message` can write any bytes under our prefix, and some can
//! read the WAL and write a copy of what they found. So the MAC covers where the message stands:
//!
//! - the transaction, by its 64-bit number: a copy in another transaction is no message;
//! - the subtransaction: what was rolled back to a savepoint cannot be brought back by a copy
//!   outside of it;
//! - its number among the transaction's messages, which only grows: nor can a copy repeat it.

use std::fmt;

use ring::hmac;

const VERSION: u8 = 1;
const MAC: usize = 32;

/// What seals are made with.
pub struct Key {
    id: i64,
    mac: hmac::Key,
}

impl Key {
    pub fn new(id: i64, secret: &[u8]) -> Key {
        Key { id, mac: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    pub fn id(&self) -> i64 {
        self.id
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Where a message stands in the WAL, as the MAC fixes it. It is for the reader to see that the
/// message was found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageOrigin {
    /// Number of the top-level transaction, never used again.
    pub transaction: u64,
    /// Of the subtransaction; the top-level transaction's own outside of any.
    pub subtransaction: u32,
    /// Greater than that of every message before it in the transaction.
    pub number: u32,
}

/// A sealed message: `write` appends what it says.
pub fn seal(key: &Key, origin: MessageOrigin, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut content = Vec::with_capacity(512);
    content.extend_from_slice(&[0; MAC]);
    content.push(VERSION);
    content.extend_from_slice(&key.id.to_be_bytes());
    content.extend_from_slice(&origin.transaction.to_be_bytes());
    content.extend_from_slice(&origin.subtransaction.to_be_bytes());
    content.extend_from_slice(&origin.number.to_be_bytes());
    write(&mut content);
    if let Some((mac, covered)) = content.split_at_mut_checked(MAC) {
        mac.copy_from_slice(hmac::sign(&key.mac, covered).as_ref());
    }
    content
}

/// A message whose seal has not been tried yet.
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'a> {
    /// Of the key that it says it was sealed with.
    pub key: i64,
    /// Where it says it stands.
    pub origin: MessageOrigin,
    mac: &'a [u8],
    /// All but the MAC.
    covered: &'a [u8],
    body: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// `None`: the bytes are none of ours.
    pub fn parse(content: &'a [u8]) -> Option<Sealed<'a>> {
        let (mac, covered) = content.split_at_checked(MAC)?;
        let (&[version], rest) = covered.split_first_chunk()?;
        let (key, rest) = rest.split_first_chunk()?;
        let (transaction, rest) = rest.split_first_chunk()?;
        let (subtransaction, rest) = rest.split_first_chunk()?;
        let (number, body) = rest.split_first_chunk()?;
        let origin = MessageOrigin {
            transaction: u64::from_be_bytes(*transaction),
            subtransaction: u32::from_be_bytes(*subtransaction),
            number: u32::from_be_bytes(*number),
        };
        let key = i64::from_be_bytes(*key);
        (version == VERSION).then_some(Sealed { key, origin, mac, covered, body })
    }

    /// What the message says; `None`: it was not sealed with the key.
    pub fn open(&self, key: &Key) -> Option<&'a [u8]> {
        hmac::verify(&key.mac, self.covered, self.mac).ok().map(|()| self.body)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORIGIN: MessageOrigin =
        MessageOrigin { transaction: 7 << 32 | 4711, subtransaction: 4712, number: 3 };

    fn key() -> Key {
        Key::new(1, b"not so secret")
    }

    fn sealed() -> Vec<u8> {
        seal(&key(), ORIGIN, |out| out.extend_from_slice(b"hello"))
    }

    #[test]
    fn what_was_sealed_opens_with_its_key_only() {
        let content = sealed();

        let sealed = Sealed::parse(&content).expect("sealed");

        assert_eq!((sealed.key, sealed.origin), (1, ORIGIN));
        assert_eq!(sealed.open(&key()), Some(b"hello".as_slice()));
        assert_eq!(sealed.open(&Key::new(1, b"another")), None);
    }

    #[test]
    fn no_byte_can_be_changed() {
        let content = sealed();
        for index in 0..content.len() {
            let mut changed = content.clone();
            changed[index] ^= 1;

            let opened = Sealed::parse(&changed).and_then(|sealed| sealed.open(&key()));

            assert_eq!(opened, None, "byte {index}");
        }
    }

    #[test]
    fn a_key_keeps_its_secret_to_itself() {
        assert!(!format!("{:?}", key()).contains("secret"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(content: Vec<u8>) {
            if let Some(sealed) = Sealed::parse(&content) {
                prop_assert_eq!(sealed.open(&key()), None);
            }
        }
    }
}
