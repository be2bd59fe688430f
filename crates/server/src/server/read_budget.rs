//! Memory for what is still arriving.
//!
//! A client may take its time over a message of `tide.max_message_size`, or over the head of its
//! first request, and ten thousand clients may do so at once. What they have announced of messages
//! that have not been dealt with is counted over all connections, before room is made for it; past
//! the limit those lose their connections that want more.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::allowance::Share;

/// Bytes that are not counted: every connection may have that much.
const FREE: usize = 1 << 10;

/// The same while it speaks HTTP, whose buffers begin with as much.
const FREE_HTTP: usize = 8 << 10;

/// A socket whose unfinished messages are counted.
#[derive(Debug)]
pub(super) struct Metered<S> {
    stream: S,
    share: Share,
    speaks: Speaks,
}

/// What the other end sends.
#[derive(Debug)]
enum Speaks {
    /// HTTP, of which no more than `most` is kept at a time: bodies are counted by who reads them.
    Http {
        arrived: usize,
        most: usize,
    },
    Websocket(Announced),
}

impl<S> Metered<S> {
    /// A socket that speaks HTTP, of which no more than `most` bytes are kept at a time.
    pub(super) fn new(stream: S, share: Share, most: usize) -> Metered<S> {
        Metered { stream, share, speaks: Speaks::Http { arrived: 0, most } }
    }

    /// From here on it is a websocket, of which this much has been read already.
    ///
    /// # Errors
    /// What it has announced by now is too much.
    pub(super) fn upgrade(&mut self, read_ahead: &[u8], max_message: usize) -> io::Result<()> {
        self.speaks = Speaks::Websocket(Announced::new(max_message));
        self.count(read_ahead)
    }

    /// A message has been dealt with.
    pub(super) fn message_complete(&mut self) {
        if let Speaks::Websocket(announced) = &mut self.speaks {
            announced.complete();
            // Less than before, so there is room for it.
            let _ = self.share.resize(announced.bytes.saturating_sub(FREE));
        }
    }

    fn count(&mut self, read: &[u8]) -> io::Result<()> {
        let wanted = match &mut self.speaks {
            Speaks::Http { arrived, most } => {
                *arrived += read.len();
                (*arrived).min(*most).saturating_sub(FREE_HTTP)
            }
            Speaks::Websocket(announced) => {
                announced.read(read);
                announced.bytes.saturating_sub(FREE)
            }
        };
        if self.share.resize(wanted) { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        Poll::Ready(self.count(buffer.filled().get(before..).unwrap_or_default()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Whether there was no memory for what was arriving.
pub(super) fn lacks_memory(error: &hyper::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    io.is_some_and(|error| error.kind() == io::ErrorKind::OutOfMemory)
}

/// Follows a client's frames by their headers: room for a payload is made as soon as its length has
/// been read.
#[derive(Debug)]
struct Announced {
    header: [u8; Announced::MAX_HEADER],
    /// Bytes of the header that have been read.
    read: usize,
    /// Bytes of the payload that have not.
    left: u64,
    /// What each message takes that has not been dealt with, in their order.
    messages: VecDeque<usize>,
    bytes: usize,
    max_message: usize,
}

impl Announced {
    const MAX_HEADER: usize = 14;

    fn new(max_message: usize) -> Announced {
        let (header, messages) = ([0; Announced::MAX_HEADER], VecDeque::new());
        Announced { header, read: 0, left: 0, messages, bytes: 0, max_message }
    }

    fn read(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= skipped as u64;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            if let Some(place) = self.header.get_mut(self.read) {
                *place = *first;
            }
            self.read += 1;
            bytes = rest;
            if self.read == self.header_size() {
                self.read = 0;
                self.begin();
            }
        }
    }

    /// As far as it is known.
    fn header_size(&self) -> usize {
        let [_, second, ..] = self.header;
        if self.read < 2 {
            return 2;
        }
        let of_length = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + of_length + if second & 0x80 == 0 { 0 } else { 4 }
    }

    /// The header of a frame has been read.
    fn begin(&mut self) {
        let [first, second, b2, b3, b4, b5, b6, b7, b8, b9, ..] = self.header;
        self.left = match second & 0x7f {
            126 => u16::from_be_bytes([b2, b3]).into(),
            127 => u64::from_be_bytes([b2, b3, b4, b5, b6, b7, b8, b9]),
            short => short.into(),
        };
        let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
        if opcode >= 8 {
            // A ping or the like, which has 125 bytes at most.
            return;
        }
        // What is too large is refused, and no room is made for it.
        let size = usize::try_from(self.left).ok().filter(|size| *size <= self.max_message);
        // Of what comes in pieces there is the piece, and what has been put together.
        let taken = size.unwrap_or(0) * if is_last && opcode != 0 { 1 } else { 2 };
        self.bytes += taken;
        match self.messages.back_mut() {
            Some(message) if opcode == 0 => *message += taken,
            _ => self.messages.push_back(taken),
        }
    }

    /// The first message has been dealt with.
    fn complete(&mut self) {
        self.bytes -= self.messages.pop_front().unwrap_or(0);
        if self.messages.is_empty() {
            self.messages.shrink_to(4);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::allowance::Allowance;

    const MAX: usize = 1 << 20;

    /// The header of a masked frame.
    fn header(first: u8, length: usize) -> Vec<u8> {
        let mut out = vec![first];
        match length {
            0..126 => out.push(0x80 | length as u8),
            126..65_536 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&[0; 4]);
        out
    }

    fn websocket<S>(stream: S, allowance: &Arc<Allowance>) -> Metered<S> {
        let mut socket = Metered::new(stream, Share::of(allowance), MAX);
        socket.upgrade(&[], MAX).unwrap();
        socket
    }

    #[tokio::test]
    async fn unfinished_messages_share_one_allowance_and_are_counted_when_they_are_announced() {
        let allowance = Arc::new(Allowance::new(1000));
        let arriving = |bytes: usize| {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let socket = websocket(near, &allowance);
            async move {
                far.write_all(&header(0x81, bytes)).await.unwrap();
                (socket, far)
            }
        };
        let (mut small, _far) = arriving(FREE).await;
        let (mut large, _other) = arriving(FREE + 900).await;
        let (mut late, _another) = arriving(FREE + 900).await;
        let mut bytes = [0; 8];

        small.read_exact(&mut bytes).await.unwrap();
        large.read_exact(&mut bytes).await.unwrap();
        let refused = late.read_exact(&mut bytes).await.unwrap_err();

        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(allowance.used(), 900);
        large.message_complete();
        assert_eq!(allowance.used(), 0);
        drop((small, large, late));
        assert_eq!(allowance.used(), 0);
    }

    #[tokio::test]
    async fn of_http_no_more_is_counted_than_is_kept() {
        let allowance = Arc::new(Allowance::new(100_000));
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut socket = Metered::new(near, Share::of(&allowance), FREE_HTTP + 70_000);

        far.write_all(&[b'x'; 500_000]).await.unwrap();
        socket.read_exact(&mut vec![0; 500_000]).await.unwrap();

        assert_eq!(allowance.used(), 70_000);
        socket.upgrade(&header(0x81, FREE + 5), MAX).unwrap();
        assert_eq!(allowance.used(), 5);
    }

    /// A frame: its first byte and the bytes of its payload.
    fn frame() -> impl Strategy<Value = (u8, usize)> {
        let size = prop_oneof![0..200_usize, 65_000..70_000_usize];
        let data = (prop_oneof![Just(0x81_u8), Just(0x82)], size);
        prop_oneof![3 => data, 1 => (Just(0x89_u8), 0..126_usize)]
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_cut_what_is_announced_is_counted(
            frames in prop::collection::vec(frame(), 1..8),
            cuts in prop::collection::vec(1..100_000_usize, 1..20),
        ) {
            let mut stream = Vec::new();
            for (first, size) in &frames {
                stream.extend_from_slice(&header(*first, *size));
                stream.extend(std::iter::repeat_n(0xff, *size));
            }
            let mut announced = Announced::new(MAX);
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                let (part, tail) = rest.split_at((*cut).min(rest.len()));
                announced.read(part);
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            let data: Vec<usize> = frames.iter().filter(|(first, _)| *first < 0x88).map(|f| f.1).collect();
            prop_assert_eq!(&announced.messages, &data);
            prop_assert_eq!(announced.bytes, data.iter().sum::<usize>());
            for _ in &data {
                announced.complete();
            }
            prop_assert_eq!(announced.bytes, 0);
        }

        #[test]
        fn any_bytes_are_borne(bytes: Vec<u8>) {
            let mut announced = Announced::new(MAX);
            announced.read(&bytes);
        }
    }

    #[test]
    fn pieces_count_twice_and_what_is_too_large_not_at_all() {
        let mut announced = Announced::new(1000);
        for (first, size) in [(0x01, 10), (0x89, 3), (0x00, 20), (0x80, 30)] {
            announced.read(&header(first, size));
            announced.read(&vec![0; size]);
        }
        assert_eq!(announced.messages, [120]);

        announced.read(&header(0x81, 1001));

        assert_eq!(announced.messages, [120, 0]);
    }
}
