//! The worker's end of the link to its server: one socket, written and read without blocking by
//! the only thread there is.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use tide_feed::event::Lsn;
use tide_feed::link::{Report, ReportError, ReportReader};

/// Bytes that may lie in the socket unread, in either direction, as far as the system allows it.
const SOCKET_BUFFER: libc::c_int = 1 << 20;

/// Reports that may wait for the worker to look at them; the rest stays in the socket.
const MOST_HEARD: usize = 1024;

/// The link is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the server closed the link")]
    Closed,
    #[error("the server does not read any more")]
    Deaf,
    #[error("the link broke: {0}")]
    Io(#[from] io::Error),
    #[error("the server does not speak as it should: {0}")]
    Garbled(#[from] ReportError),
}

#[derive(Debug)]
pub(crate) struct Link {
    socket: UnixStream,
    is_in_a_frame: bool,
    reader: ReportReader,
}

impl Link {
    /// The worker's end, and the server's, which is to be its standard input.
    pub(crate) fn pair() -> io::Result<(Link, UnixStream)> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        for end in [&near, &far] {
            widen(end);
        }
        let reader = ReportReader::default();
        let link = Link { socket: near, is_in_a_frame: false, reader };
        Ok((link, far))
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether the server has read everything.
    pub(crate) fn is_idle(&self) -> bool {
        let mut unread: libc::c_int = 0;
        // SAFETY: the descriptor is open, and the number is where the answer goes.
        let asked = unsafe { libc::ioctl(self.fd(), libc::TIOCOUTQ, &raw mut unread) };
        asked == 0 && unread == 0
    }

    /// Whether a frame was left in its middle, by an error between its parts or in the socket: what
    /// would follow would not be understood.
    pub(crate) fn is_torn(&self) -> bool {
        self.is_in_a_frame
    }

    /// Nothing more is to be written: the server is of no use any more.
    pub(crate) fn tear(&mut self) {
        self.is_in_a_frame = true;
    }

    /// Writes of a frame's parts what the socket has room for, and takes it off them; true: the
    /// frame is complete. Else it has to be called again with what is left.
    pub(crate) fn write(&mut self, parts: &mut &mut [IoSlice<'_>]) -> Result<bool, LinkError> {
        while !parts.is_empty() {
            match self.socket.write_vectored(parts) {
                Ok(written) => {
                    IoSlice::advance_slices(parts, written);
                    self.is_in_a_frame = !parts.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_in_a_frame = true;
                    return Err(lost(error));
                }
            }
        }
        Ok(true)
    }

    /// Reads what there is.
    pub(crate) fn read(&mut self) -> Result<(), LinkError> {
        while self.reader.waiting() < MOST_HEARD {
            let mut chunk = [0; 8 << 10];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(read) => {
                    self.reader.take_in(chunk.get(..read).unwrap_or_default())?;
                    // A stream socket that gave less has no more.
                    if read < chunk.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    /// The reports that were read, in order.
    pub(crate) fn next(&mut self) -> Option<Report> {
        self.reader.report()
    }

    /// How far the slot may move, by what has been read; 0 until the server has said so.
    pub(crate) fn confirmed(&self) -> Lsn {
        self.reader.confirmed()
    }

    /// The server is told that everything up to here has been fed.
    pub(crate) fn set_fed(&mut self, lsn: Lsn) {
        self.reader.set_fed(lsn);
    }
}

fn lost(error: io::Error) -> LinkError {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => LinkError::Closed,
        _ => LinkError::Io(error),
    }
}

/// More room than the usual 200 kB makes for fewer switches between the processes. The system
/// gives what it allows; any amount does.
fn widen(socket: &UnixStream) {
    let bytes = SOCKET_BUFFER;
    for option in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        // SAFETY: the descriptor is open; the value is an int, as the option wants it.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of_val(&bytes) as libc::socklen_t,
            );
        }
    }
}
