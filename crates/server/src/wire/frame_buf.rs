//! Memory that many frames are written on, one after the other: a frame costs no allocation of its
//! own, and is freed with its neighbours when the last of them has been sent.

use bytes::{Bytes, BytesMut};

/// Bytes of a sheet: small enough that one frame left unsent does not hold on to much.
const SIZE: usize = 32 << 10;

#[derive(Debug, Default)]
pub struct Sheet {
    paper: BytesMut,
}

impl Sheet {
    /// Writes the parts on the sheet, or a new one if they do not fit, and cuts them off.
    pub fn cut(&mut self, parts: &[&[u8]]) -> Bytes {
        let length = parts.iter().map(|part| part.len()).sum();
        if self.paper.capacity() < length {
            self.paper = BytesMut::with_capacity(SIZE.max(length));
        }
        for part in parts {
            self.paper.extend_from_slice(part);
        }
        self.paper.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_on_one_sheet_do_not_touch_each_other() {
        let mut sheet = Sheet::default();
        let large = vec![b'x'; 2 * SIZE];

        let frames = [sheet.cut(&[b"ab", b"c"]), sheet.cut(&[&large]), sheet.cut(&[b"", b"d"])];

        assert_eq!(frames, [&b"abc"[..], &large, b"d"]);
    }
}
