//! What a message says.

/// A message's meaning, borrowed from where it is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalMessage<'a> {
    /// `tide.send`: to those who have joined the channel.
    Channel {
        channel: &'a str,
        name: &'a str,
        private: bool,
        /// Any JSON.
        data: &'a str,
    },
    /// `tide.set_mutation_id`: stamps the events of the transaction.
    MutationId(&'a str),
    /// A table or schema was made, altered or dropped: an [`crate::event::SchemaChange`] in JSON.
    Schema(&'a str),
}

const CHANNEL: u8 = 1;
const MUTATION_ID: u8 = 2;
const SCHEMA: u8 = 3;

impl<'a> WalMessage<'a> {
    /// Appends the message. Channel and name have at most 65,535 bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            WalMessage::Channel { channel, name, private, data } => {
                out.reserve(6 + channel.len() + name.len() + data.len());
                out.extend_from_slice(&[CHANNEL, u8::from(*private)]);
                for text in [channel, name] {
                    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(text.as_bytes());
                }
                out.extend_from_slice(data.as_bytes());
            }
            WalMessage::MutationId(id) => {
                out.push(MUTATION_ID);
                out.extend_from_slice(id.as_bytes());
            }
            WalMessage::Schema(change) => {
                out.push(SCHEMA);
                out.extend_from_slice(change.as_bytes());
            }
        }
    }

    /// `None`: of a kind that this version does not know.
    pub fn read(body: &'a [u8]) -> Option<WalMessage<'a>> {
        let (kind, rest) = body.split_first()?;
        match *kind {
            CHANNEL => {
                let (private, rest) = rest.split_first()?;
                let (channel, rest) = short_text(rest)?;
                let (name, rest) = short_text(rest)?;
                let data = std::str::from_utf8(rest).ok()?;
                Some(WalMessage::Channel { channel, name, private: *private != 0, data })
            }
            MUTATION_ID => Some(WalMessage::MutationId(std::str::from_utf8(rest).ok()?)),
            SCHEMA => Some(WalMessage::Schema(std::str::from_utf8(rest).ok()?)),
            _ => None,
        }
    }
}

/// A text with its length before it, and what follows it.
fn short_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(
            channel: String, name: String, private: bool, data: String, id: String
        ) {
            let channel = WalMessage::Channel { channel: &channel, name: &name, private, data: &data };
            for message in [channel, WalMessage::MutationId(&id), WalMessage::Schema(&data)] {
                let mut body = Vec::new();
                message.write(&mut body);
                prop_assert_eq!(WalMessage::read(&body), Some(message));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(body: Vec<u8>) {
            let _ = WalMessage::read(&body);
        }
    }
}
