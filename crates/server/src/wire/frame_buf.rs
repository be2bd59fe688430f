//! Memory that many frames are written on, one after the other: a frame costs no allocation of its
//! own, and is freed with its neighbours when the last of them has been sent.

use bytes::{Bytes, BytesMut};

/// Bytes of one buffer: small enough that one frame left unsent does not hold on to much memory.
const SIZE: usize = 8 << 10;

#[derive(Debug, Default)]
pub struct FrameBuf {
    buf: BytesMut,
}

impl FrameBuf {
    /// Writes the parts to the buffer, or to a new one if they do not fit, and splits them off as a
    /// frame.
    pub fn split(&mut self, parts: &[&[u8]]) -> Bytes {
        let length = parts.iter().map(|part| part.len()).sum();
        if self.buf.capacity() < length {
            self.buf = BytesMut::with_capacity(SIZE.max(length));
        }
        for part in parts {
            self.buf.extend_from_slice(part);
        }
        self.buf.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_one_buffer_do_not_touch_each_other() {
        let mut frame_buf = FrameBuf::default();
        let large = vec![b'x'; 2 * SIZE];

        let frames = [
            frame_buf.split(&[b"ab", b"c"]),
            frame_buf.split(&[&large]),
            frame_buf.split(&[b"", b"d"]),
        ];

        assert_eq!(frames, [&b"abc"[..], &large, b"d"]);
    }
}
