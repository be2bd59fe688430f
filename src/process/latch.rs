//! Waking another process by its place in shared memory.

use std::sync::atomic::{AtomicI32, Ordering};

use pgrx::pg_sys;

const NOBODY: i32 = -1;

/// A process whose latch others set.
#[repr(C)]
pub(crate) struct Owner(AtomicI32);

impl Owner {
    /// Others set this process's latch from now on.
    pub(crate) fn become_me(&self) {
        // SAFETY: this process has a PGPROC, which is an element of that array.
        let number = unsafe { pg_sys::MyProc.offset_from((*pg_sys::ProcGlobal).allProcs) };
        self.0.store(i32::try_from(number).unwrap_or(NOBODY), Ordering::Release);
    }

    pub(crate) fn clear(&self) {
        self.0.store(NOBODY, Ordering::Release);
    }

    /// Wakes the process, if there is one. Cannot fail; at worst it wakes the next process that
    /// got the same place, which does not mind.
    pub(crate) fn set_latch(&self) {
        let Ok(number) = usize::try_from(self.0.load(Ordering::Acquire)) else { return };
        // SAFETY: the number is an index into the fixed array of PGPROCs in shared memory, whose
        // latches live as long as the memory.
        unsafe {
            let process = (*pg_sys::ProcGlobal).allProcs.add(number);
            if process != pg_sys::MyProc {
                pg_sys::SetLatch(&raw mut (*process).procLatch);
            }
        }
    }
}
