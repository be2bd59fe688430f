//! Writing frames to a websocket past the library's own write buffer.
//!
//! That buffer stays as large as the busiest moment of a connection made it. Here small frames are put
//! together in a buffer that all connections of a thread share, and large ones are written as they
//! are, so that a client that does not read costs no copy of what it is to be given. A server's
//! frames are not masked.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{WebSocketStream, tungstenite};

/// Longest header of an unmasked frame.
const MAX_HEADER: usize = 10;

/// Bytes that are put together for one write.
const CHUNK: usize = 64 << 10;

/// Bytes that TLS keeps, encrypted, of what the other end does not take.
pub(super) const TLS_BUFFER: usize = 16 << 10;

/// Hears how writing goes.
pub(super) trait Progress {
    /// So many bytes are written.
    fn wrote(&mut self, bytes: usize);

    /// The other end takes no more for now; false: then it is not to be waited for.
    fn stalls(&mut self) -> bool;
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes all frames. Unless it ran to its end, nothing more may be written to the socket.
pub(super) async fn write<S>(
    socket: &mut WebSocketStream<S>,
    frames: &[Bytes],
    progress: &mut (impl Progress + ?Sized),
) -> Result<u64, tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A pong that the library began to write has to end before anything else begins.
    socket.flush().await?;
    let stream = socket.get_mut();
    let mut rest = Rest { frames, written: 0 };
    let mut total = 0;
    while !rest.frames.is_empty() {
        let written = poll_fn(|cx| {
            let polled = SCRATCH.with_borrow_mut(|scratch| {
                Pin::new(&mut *stream).poll_write(cx, rest.chunk(scratch))
            });
            patient(polled, progress)
        });
        let bytes = written.await?;
        if bytes == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        rest.advance(bytes);
        total += bytes as u64;
        progress.wrote(bytes);
    }
    poll_fn(|cx| patient(Pin::new(&mut *stream).poll_flush(cx), progress)).await?;
    Ok(total)
}

/// The same, unless there is nothing to wait with.
fn patient<T>(
    polled: Poll<io::Result<T>>,
    progress: &mut (impl Progress + ?Sized),
) -> Poll<io::Result<T>> {
    match polled {
        Poll::Pending if !progress.stalls() => Poll::Ready(Err(io::ErrorKind::OutOfMemory.into())),
        polled => polled,
    }
}

/// What is still to be written.
struct Rest<'a> {
    frames: &'a [Bytes],
    /// Bytes of the first of them, with its header, that have been.
    written: usize,
}

impl Rest<'_> {
    /// What comes next: put together in `scratch`, or where it lies, if it is large.
    fn chunk<'b>(&'b self, scratch: &'b mut Vec<u8>) -> &'b [u8] {
        scratch.clear();
        let mut skipped = self.written;
        for frame in self.frames {
            let header = Header::of(frame);
            let of_payload = skipped.saturating_sub(header.length);
            let payload = frame.get(of_payload..).unwrap_or_default();
            if scratch.is_empty() && skipped >= header.length && payload.len() >= CHUNK {
                return payload;
            }
            scratch.extend_from_slice(header.bytes().get(skipped..).unwrap_or_default());
            let room = CHUNK.saturating_sub(scratch.len());
            scratch.extend_from_slice(payload.get(..room).unwrap_or(payload));
            if scratch.len() >= CHUNK {
                break;
            }
            skipped = 0;
        }
        scratch
    }

    fn advance(&mut self, bytes: usize) {
        self.written += bytes;
        while let Some((first, rest)) = self.frames.split_first() {
            let size = Header::of(first).length + first.len();
            if self.written < size {
                return;
            }
            self.written -= size;
            self.frames = rest;
        }
    }
}

/// The header of one whole message: text if it is JSON, binary otherwise (those frames begin with
/// a small number).
struct Header {
    bytes: [u8; MAX_HEADER],
    length: usize,
}

impl Header {
    fn of(payload: &[u8]) -> Header {
        const LAST_TEXT: u8 = 0x81;
        const LAST_BINARY: u8 = 0x82;
        let text = matches!(payload.first(), None | Some(b'[' | b'{'));
        let first = if text { LAST_TEXT } else { LAST_BINARY };
        let length = payload.len();
        if let Ok(short) = u8::try_from(length)
            && short <= 125
        {
            Header::new(&[first, short], &[])
        } else if let Ok(medium) = u16::try_from(length) {
            Header::new(&[first, 126], &medium.to_be_bytes())
        } else {
            Header::new(&[first, 127], &(length as u64).to_be_bytes())
        }
    }

    fn new(kind: &[u8; 2], length: &[u8]) -> Header {
        let mut bytes = [0; MAX_HEADER];
        for (to, from) in bytes.iter_mut().zip(kind.iter().chain(length)) {
            *to = *from;
        }
        Header { bytes, length: kind.len() + length.len() }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    struct Reported(usize);

    impl Progress for Reported {
        fn wrote(&mut self, bytes: usize) {
            self.0 += bytes;
        }

        fn stalls(&mut self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn a_client_reads_what_was_written_whatever_its_length() {
        let (near, far) = tokio::io::duplex(1 << 10);
        let mut server = WebSocketStream::from_raw_socket(near, Role::Server, None).await;
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let text = |length: usize| Bytes::from(format!("[{}]", "x".repeat(length - 2)));
        let frames: Vec<Bytes> =
            [2, 125, 126, 127, 65_535, 65_536, 200_000].into_iter().map(text).collect();
        let binary = Bytes::from_static(b"\x04rest");
        let mut sent = frames.clone();
        sent.push(binary.clone());

        let writing = tokio::spawn(async move {
            let mut reported = Reported(0);
            let total = write(&mut server, &sent, &mut reported).await.unwrap();
            assert_eq!(total, reported.0 as u64);
        });

        for frame in frames {
            let message = client.next().await.unwrap().unwrap();
            assert!(message.is_text());
            assert_eq!(message.into_data(), frame);
        }
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(binary));
        writing.await.unwrap();
    }
}
