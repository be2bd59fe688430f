//! Frames on the unix socket: a big-endian u32 length and that many bytes of JSON.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tide_feed::catalog::MAX_FRAME;
use tokio::io::{AsyncRead, AsyncReadExt};
#[cfg(test)]
use tokio::io::{AsyncWrite, AsyncWriteExt};

pub(crate) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<T> {
    let len = stream.read_u32().await? as usize;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let mut bytes = Vec::new();
    // Grows with what arrives: a length alone reserves nothing.
    stream.take(len as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&bytes).map_err(io::Error::from)
}

/// The frame, to be written as it is; an error if its body is larger than `most` bytes.
pub(crate) fn encode<T: Serialize>(value: &T, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, value)?;
    let len = bytes.len() - 4;
    if len > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    let header = u32::try_from(len).map_err(io::Error::other)?.to_be_bytes();
    bytes.splice(..4, header);
    Ok(bytes)
}

#[cfg(test)]
pub(crate) async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    value: &T,
) -> io::Result<()> {
    stream.write_all(&encode(value, MAX_FRAME)?).await
}
