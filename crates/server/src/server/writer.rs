//! Writing frames to a websocket past the library's own write buffer.
//!
//! That buffer stays as large as the busiest moment of a connection made it. Here a batch of
//! frames is put together once, written, and its memory given back, so that an idle connection
//! costs the same as before its first event. A server's frames are not masked, so the payload is
//! copied as it is.

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::{WebSocketStream, tungstenite};

/// Longest header of an unmasked frame.
const MAX_HEADER: usize = 10;

/// Writes all frames. Unless it ran to its end, nothing more may be written to the socket.
pub(super) async fn write<S>(
    socket: &mut WebSocketStream<S>,
    frames: &[Bytes],
) -> Result<u64, tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A pong that the library began to write has to end before anything else begins.
    socket.flush().await?;
    let batch = batch(frames);
    let stream = socket.get_mut();
    stream.write_all(&batch).await?;
    stream.flush().await?;
    Ok(batch.len() as u64)
}

fn batch(frames: &[Bytes]) -> Vec<u8> {
    let size = frames.iter().map(|frame| frame.len() + MAX_HEADER).sum();
    let mut out = Vec::with_capacity(size);
    for frame in frames {
        write_header(&mut out, frame);
        out.extend_from_slice(frame);
    }
    out
}

/// The header of one whole message: text if it is JSON, binary otherwise (those frames begin with
/// a small number).
fn write_header(out: &mut Vec<u8>, payload: &[u8]) {
    const LAST_TEXT: u8 = 0x81;
    const LAST_BINARY: u8 = 0x82;
    let text = matches!(payload.first(), None | Some(b'[' | b'{'));
    out.push(if text { LAST_TEXT } else { LAST_BINARY });
    let length = payload.len();
    if let Ok(short) = u8::try_from(length)
        && short <= 125
    {
        out.push(short);
    } else if let Ok(medium) = u16::try_from(length) {
        out.push(126);
        out.extend_from_slice(&medium.to_be_bytes());
    } else {
        out.push(127);
        out.extend_from_slice(&(length as u64).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

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

        let writing = tokio::spawn(async move { write(&mut server, &sent).await.unwrap() });

        for frame in frames {
            let message = client.next().await.unwrap().unwrap();
            assert!(message.is_text());
            assert_eq!(message.into_data(), frame);
        }
        assert_eq!(client.next().await.unwrap().unwrap(), Message::Binary(binary));
        writing.await.unwrap();
    }
}
