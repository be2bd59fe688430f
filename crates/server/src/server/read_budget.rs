//! Memory for what is still arriving.
//!
//! A client may take its time over a message of `tide.max_message_size`, or over the head of its
//! first request, and ten thousand clients may do so at once. What has arrived of messages that
//! are not complete yet is counted over all connections; past the limit those lose their
//! connections that want more.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::allowance::Allowance;

/// Bytes of a message that are not counted: every connection may have that much.
const FREE: usize = 16 << 10;

/// A socket whose unfinished messages are counted.
#[derive(Debug)]
pub(super) struct Metered<S> {
    stream: S,
    allowance: Arc<Allowance>,
    /// Bytes read since the last whole message.
    arrived: usize,
    /// Of these, counted in the allowance.
    counted: usize,
}

impl<S> Metered<S> {
    pub(super) fn new(stream: S, allowance: Arc<Allowance>) -> Metered<S> {
        Metered { stream, allowance, arrived: 0, counted: 0 }
    }

    /// A message is complete and will be dealt with at once.
    pub(super) fn message_complete(&mut self) {
        self.allowance.give_back(self.counted);
        (self.arrived, self.counted) = (0, 0);
    }

    fn count(&mut self, bytes: usize) -> io::Result<()> {
        self.arrived += bytes;
        let wanted = self.arrived.saturating_sub(FREE);
        if wanted > self.counted {
            if !self.allowance.take(wanted - self.counted) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            self.counted = wanted;
        }
        Ok(())
    }
}

impl<S> Drop for Metered<S> {
    fn drop(&mut self) {
        self.allowance.give_back(self.counted);
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
        let read = buffer.filled().len() - before;
        Poll::Ready(self.count(read))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn unfinished_messages_share_one_allowance() {
        let allowance = Arc::new(Allowance::new(1000));
        let arriving = |bytes: usize| {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let socket = Metered::new(near, Arc::clone(&allowance));
            async move {
                far.write_all(&vec![0; bytes]).await.unwrap();
                (socket, far)
            }
        };
        let (mut small, _far) = arriving(FREE).await;
        let (mut large, _other) = arriving(FREE + 900).await;
        let (mut late, _another) = arriving(FREE + 900).await;

        small.read_exact(&mut vec![0; FREE]).await.unwrap();
        large.read_exact(&mut vec![0; FREE + 900]).await.unwrap();
        let refused = late.read_exact(&mut vec![0; FREE + 900]).await.unwrap_err();

        assert_eq!(refused.kind(), io::ErrorKind::OutOfMemory);
        large.message_complete();
        assert_eq!(allowance.used(), 0);
        drop((small, large, late));
        assert_eq!(allowance.used(), 0);
    }
}
