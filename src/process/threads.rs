//! The network half inside the worker: threads that never see a signal, and a bell by which they
//! wake the main thread.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Receiver;
use tide_feed::config::Config;
use tide_feed::event::Feed;
use tide_server::bridge::Bridge;
use tide_server::service::Service;

/// Here and not on the worker's stack, because FATAL ends the process without unwinding.
static SERVICE: Mutex<Option<Service>> = Mutex::new(None);

/// An eventfd: any thread rings it, the main thread waits for it.
#[derive(Clone, Debug)]
pub(crate) struct Bell(Arc<File>);

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        // SAFETY: makes a new file descriptor, which is ours alone.
        let file = unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from(OwnedFd::from_raw_fd(fd))
        };
        Ok(Bell(Arc::new(file)))
    }

    pub(crate) fn ring(&self) {
        // It cannot fail but by being full, and then it rings already.
        let _ = (&*self.0).write(&1u64.to_ne_bytes());
    }

    pub(crate) fn silence(&self) {
        let _ = (&*self.0).read(&mut [0; 8]);
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Starts the network half.
pub(crate) fn start(config: Config, feed: Receiver<Feed>, bridge: Arc<Bridge>) -> io::Result<()> {
    let service = {
        let _blocked = Blocked::all();
        Service::start(config, feed, bridge)?
    };
    *lock() = Some(service);
    Ok(())
}

/// Whether it was started and every thread is still there.
pub(crate) fn are_alive() -> bool {
    lock().as_ref().is_some_and(Service::is_alive)
}

/// Ends the network half, if it runs, in bounded time.
pub(crate) fn stop() {
    let service = lock().take();
    if let Some(service) = service {
        service.stop();
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Service>> {
    SERVICE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All signals are blocked in this thread, and in those it starts, while this lives. A handler of
/// Postgres's must never run on another thread than its own.
struct Blocked(libc::sigset_t);

impl Blocked {
    fn all() -> Blocked {
        // SAFETY: both sets are initialised by the calls that are given them.
        unsafe {
            let mut all = MaybeUninit::uninit();
            libc::sigfillset(all.as_mut_ptr());
            let mut before = MaybeUninit::uninit();
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Blocked(before.assume_init())
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the mask is the one that `all` found.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, null_mut()) };
    }
}
