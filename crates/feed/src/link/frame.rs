//! Frames: a length (little-endian u32), a byte that says what it is, and that many bytes.

use bytes::{Buf, Bytes, BytesMut};

use super::Kind;

/// Bytes before a frame's body.
pub const HEADER: usize = 5;

/// Room for so much is made at a time: most frames come whole.
const READ: usize = 256 << 10;
/// What is left of it is used as long as it is no less than this.
const LEAST: usize = 4 << 10;

/// A frame that has arrived. Its body shares the memory that it was read into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub body: Bytes,
}

/// The other end does not speak as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("frames of kind {0} are unknown")]
    Kind(u8),
}

/// Cuts frames out of what arrives.
#[derive(Debug)]
pub struct FrameReader {
    arrived: BytesMut,
    /// Bytes that a body may have.
    most: usize,
}

impl FrameReader {
    pub fn new(most: usize) -> FrameReader {
        FrameReader { arrived: BytesMut::new(), most }
    }

    /// Where to put what is read next. Has room for the rest of a frame that has begun, so that a
    /// large one is not moved as it grows, but little for what has only been announced. Frames
    /// share the memory that they are read into until it is used up: it is kept for as long as any
    /// of them is.
    pub fn buffer(&mut self) -> &mut BytesMut {
        let announced = self.announced().filter(|length| *length <= self.most);
        let missing =
            announced.map_or(0, |length| (HEADER + length).saturating_sub(self.arrived.len()));
        let room = self.arrived.capacity() - self.arrived.len();
        if missing > room {
            self.arrived.reserve(missing.min(READ.max(self.arrived.len())));
        } else if room < LEAST {
            self.arrived.reserve(READ);
        }
        &mut self.arrived
    }

    /// The next frame, if all of it is there.
    pub fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(length) = self.announced() else { return Ok(None) };
        if length > self.most {
            return Err(FrameError::TooLong(length));
        }
        let byte = self.arrived.get(4).copied().unwrap_or_default();
        let kind = Kind::of(byte).ok_or(FrameError::Kind(byte))?;
        if self.arrived.len() < HEADER + length {
            return Ok(None);
        }
        self.arrived.advance(HEADER);
        Ok(Some(Frame { kind, body: self.arrived.split_to(length).freeze() }))
    }

    /// The length of the frame that has begun, once its header is there.
    fn announced(&self) -> Option<usize> {
        let (length, _) = self.arrived.get(..HEADER)?.split_first_chunk::<4>()?;
        Some(u32::from_le_bytes(*length) as usize)
    }
}

/// The beginning of a frame whose body has so many bytes.
pub fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    [a, b, c, d, kind as u8]
}

/// A whole frame.
pub fn frame(kind: Kind, body: &[u8]) -> Vec<u8> {
    [&header(kind, body.len()), body].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 1 << 16;

    fn read(reader: &mut FrameReader, bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
        reader.buffer().extend_from_slice(bytes);
        std::iter::from_fn(|| reader.cut().transpose()).collect()
    }

    #[test]
    fn a_length_is_not_believed() {
        let mut reader = FrameReader::new(MOST);
        let header = [&u32::MAX.to_le_bytes()[..], &[0]].concat();

        assert_eq!(read(&mut reader, &header), Err(FrameError::TooLong(u32::MAX as usize)));
    }

    #[test]
    fn what_is_only_announced_takes_little_memory() {
        let mut reader = FrameReader::new(1 << 30);
        let header = [&(1_u32 << 30).to_le_bytes()[..], &[0]].concat();
        assert_eq!(read(&mut reader, &header), Ok(vec![]));

        assert!(reader.buffer().capacity() <= 2 * READ);
    }

    #[test]
    fn an_unknown_kind_is_refused_before_its_body_is_there() {
        let mut reader = FrameReader::new(MOST);

        assert_eq!(read(&mut reader, &[9, 0, 0, 0, 77]), Err(FrameError::Kind(77)));
    }

    #[test]
    fn small_frames_share_their_memory() {
        let mut reader = FrameReader::new(MOST);
        let frames: Vec<Frame> = (0..1000)
            .flat_map(|_| read(&mut reader, &frame(Kind::Batch, &[7; 100])).expect("a frame"))
            .collect();

        let addresses: Vec<usize> = frames.iter().map(|f| f.body.as_ptr() as usize).collect();
        let far = addresses.windows(2).filter(|pair| pair[1].abs_diff(pair[0]) > 1000).count();
        assert!(far <= 1, "{far} times was memory made anew");
    }

    proptest! {
        #[test]
        fn frames_survive_being_cut_anywhere(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            cuts in proptest::collection::vec(1_usize..200, 1..50)
        ) {
            let sent: Vec<u8> = bodies.iter().flat_map(|body| frame(Kind::Batch, body)).collect();
            let (mut reader, mut got) = (FrameReader::new(MOST), Vec::new());
            let (mut rest, mut cuts) = (&sent[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().expect("a cycle")));
                got.extend(read(&mut reader, now).expect("frames"));
                rest = later;
            }
            let got: Vec<_> = got.into_iter().map(|frame| frame.body.to_vec()).collect();
            prop_assert_eq!(got, bodies);
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = read(&mut FrameReader::new(MOST), &bytes);
        }
    }
}
