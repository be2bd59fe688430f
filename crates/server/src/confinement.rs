//! What this process takes from the system, and what it gives up.

use std::io;

use rustix::process::{Pid, Resource, Rlimit, Signal};

/// Beyond what the settings allow for queues, history and connections: code, stacks, the
/// allocator's own waste.
const MARGIN: u64 = 256 << 20;

/// Ends this process when the worker that started it ends, however that comes about.
///
/// # Errors
/// The worker has ended already.
pub fn die_with(worker: i32) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before the signal was asked for.
    let parent = rustix::process::getppid().map(Pid::as_raw_nonzero);
    match parent {
        Some(parent) if parent.get() == worker => Ok(()),
        _ => Err(io::Error::other("the worker has ended")),
    }
}

/// Limits memory, so that this process alone ends when it wants too much, and offers it to the
/// kernel as the first to go when there is too little for all.
pub fn limit_memory(memory_limit: usize) {
    let most = (memory_limit as u64).saturating_mul(2).saturating_add(MARGIN);
    let before = rustix::process::getrlimit(Resource::Data);
    let limit =
        Rlimit { current: Some(before.current.map_or(most, |now| now.min(most))), ..before };
    if let Err(error) = rustix::process::setrlimit(Resource::Data, limit) {
        log::warn!("could not limit the server's memory: {error}");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "500") {
        log::info!("could not offer the server to the kernel for want of memory: {error}");
    }
}
