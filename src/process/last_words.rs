//! What a server writes to its standard error: what Rust's runtime has to say when a program dies of
//! something that cannot be caught. Not Postgres's own, which would be a way to fill its log.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::ChildStderr;

/// Bytes that are kept: the newest.
const KEPT: usize = 300;
/// Bytes that are read at a time, which is all that a pipe holds.
const READ: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct LastWords {
    pipe: Option<ChildStderr>,
    kept: Vec<u8>,
}

impl LastWords {
    pub(crate) fn of(pipe: Option<ChildStderr>) -> LastWords {
        if let Some(pipe) = &pipe {
            // SAFETY: changes a flag of a descriptor that is open, and this process's alone.
            unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        }
        LastWords { pipe, kept: Vec::new() }
    }

    /// Takes in what there is, so that the server need not wait.
    pub(crate) fn listen(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let (mut chunk, mut read) = ([0; 4096], 0);
        while read < READ {
            // Nothing more, for now or for ever.
            let Ok(count @ 1..) = pipe.read(&mut chunk) else { return };
            read += count;
            self.kept.extend_from_slice(chunk.get(..count).unwrap_or_default());
            let superfluous = self.kept.len().saturating_sub(KEPT);
            self.kept.drain(..superfluous);
        }
    }

    /// The newest of it in one line that any database has the characters of; `None`: it has said
    /// nothing.
    pub(crate) fn text(&mut self) -> Option<String> {
        self.listen();
        let is_plain = |byte: &u8| byte.is_ascii() && !byte.is_ascii_control();
        let plain = |byte: &u8| if is_plain(byte) { char::from(*byte) } else { ' ' };
        let text: String = self.kept.iter().map(plain).collect();
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}
