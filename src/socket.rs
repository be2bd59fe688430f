//! Frames over the worker's unix socket, waited for in a way that signals, the postmaster's death
//! and a deadline can interrupt.

use std::cell::OnceCell;
use std::io::{self, ErrorKind, Read, Write};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use tide_feed::catalog::MAX_FRAME;
use tide_feed::wishes::WishError;

use crate::wait::WaitSet;

/// Waits this long at a time where there is no deadline: only to be a number that fits.
const LONG_WAIT: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("could not talk to the worker: {0}")]
    Io(#[from] io::Error),
    #[error("the worker did not answer in time")]
    TimedOut,
    #[error("the worker closed the connection")]
    Closed,
    #[error("a frame of {0} bytes is too large")]
    TooLarge(usize),
    #[error(transparent)]
    Wish(#[from] WishError),
}

/// A connection to the server's socket, which never blocks; neither does this: a server that accepts
/// nobody is as good as none.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let path = path.as_os_str().as_bytes();
    // SAFETY: plain numbers, for which zeros are valid.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_un>() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // The last byte stays zero.
    if path.len() >= address.sun_path.len() {
        return Err(io::Error::from(ErrorKind::InvalidFilename));
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = *from as libc::c_char;
    }
    let length = offset_of!(libc::sockaddr_un, sun_path) + path.len() + 1;
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the descriptor is new and nobody else's; the address lives, and is as long as said.
    unsafe {
        let socket = libc::socket(libc::AF_UNIX, kind, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let stream = UnixStream::from_raw_fd(socket);
        let address = (&raw const address).cast();
        if libc::connect(socket, address, length as libc::socklen_t) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stream)
    }
}

/// Whether that could not be done because there is no server, or none that accepts anybody.
pub(crate) fn is_server_gone(error: &io::Error) -> bool {
    let gone = [ErrorKind::NotFound, ErrorKind::ConnectionRefused, ErrorKind::WouldBlock];
    gone.contains(&error.kind())
}

/// A connection to the worker. Every wait may raise Postgres's own errors (cancelled, terminated).
#[derive(Debug)]
pub(crate) struct FrameSocket {
    /// For what is to be read, once that has had to be waited for. Goes before the connection does.
    arrival: OnceCell<WaitSet>,
    stream: UnixStream,
    /// `None`: waits as long as it takes.
    deadline: Option<Instant>,
}

impl FrameSocket {
    pub(crate) fn connect(path: &Path) -> io::Result<FrameSocket> {
        Ok(FrameSocket { stream: connect(path)?, deadline: None, arrival: OnceCell::new() })
    }

    /// The connection itself, which never blocks.
    pub(crate) fn into_stream(self) -> UnixStream {
        self.stream
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.deadline = Some(Instant::now() + timeout);
    }

    pub(crate) fn send(&mut self, body: &[u8]) -> Result<(), SocketError> {
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_FRAME);
        let length = length.ok_or(SocketError::TooLarge(body.len()))?;
        // In one piece: whoever reads is woken once.
        let mut frame = Vec::with_capacity(4 + body.len());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(body);
        self.write_all(&frame)
    }

    /// A frame of no more than so many bytes.
    pub(crate) fn receive(&mut self, most: usize) -> Result<Vec<u8>, SocketError> {
        let mut length = [0; 4];
        self.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > most {
            return Err(SocketError::TooLarge(length));
        }
        let mut body = Vec::new();
        // Memory that cannot be had is an error here, and the end of the process where it is taken
        // for granted.
        body.try_reserve_exact(length).map_err(|_| io::Error::from(ErrorKind::OutOfMemory))?;
        body.resize(length, 0);
        self.read_exact(&mut body)?;
        Ok(body)
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), SocketError> {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(SocketError::Closed),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) => self.wait_or_fail(error, pg_sys::WL_SOCKET_WRITEABLE)?,
            }
        }
        Ok(())
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), SocketError> {
        while !buffer.is_empty() {
            match self.stream.read(buffer) {
                Ok(0) => return Err(SocketError::Closed),
                Ok(read) => buffer = buffer.get_mut(read..).unwrap_or_default(),
                Err(error) => self.wait_or_fail(error, pg_sys::WL_SOCKET_READABLE)?,
            }
        }
        Ok(())
    }

    fn wait_or_fail(&self, error: io::Error, event: u32) -> Result<(), SocketError> {
        match error.kind() {
            ErrorKind::WouldBlock => self.wait(event),
            ErrorKind::Interrupted => Ok(()),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Err(SocketError::Closed),
            _ => Err(error.into()),
        }
    }

    fn wait(&self, event: u32) -> Result<(), SocketError> {
        let timeout = match self.deadline {
            None => LONG_WAIT,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(SocketError::TimedOut);
                }
                left.min(LONG_WAIT)
            }
        };
        match event {
            pg_sys::WL_SOCKET_READABLE => {
                let arrival =
                    self.arrival.get_or_init(|| WaitSet::new(Some(self.stream.as_raw_fd())));
                arrival.wait(timeout);
            }
            _ => self.wait_for(event, timeout),
        }
        // SAFETY: the latch is this process's own.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        pgrx::check_for_interrupts!();
        Ok(())
    }
    fn wait_for(&self, event: u32, timeout: Duration) {
        let events =
            event | pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        // SAFETY: the latch is this process's own, the descriptor is open as long as `self`.
        unsafe {
            pg_sys::WaitLatchOrSocket(
                pg_sys::MyLatch,
                events as i32,
                self.stream.as_raw_fd(),
                timeout.as_millis().max(1) as i64,
                pg_sys::PG_WAIT_EXTENSION,
            );
        }
    }
}
