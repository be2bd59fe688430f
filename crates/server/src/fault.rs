//! Ways to fail that nothing can be done against from within. A test asks for them, to see what
//! becomes of everybody else.

use std::hint::black_box;
use std::process::abort;
use std::thread;

use tide_feed::control::Fault;

use crate::link::Uplink;

/// Does to this process as the fault would.
pub fn fail(fault: Fault, uplink: &Uplink) {
    match fault {
        Fault::Cling => return uplink.cling(),
        Fault::Chatter => return (0..1_000).for_each(|n| log::info!("chatter, line {n}")),
        Fault::Abort => {}
        Fault::StackOverflow => {
            // A thread's stack has an end, whatever the limit of the main one's is.
            let _ = thread::spawn(|| descend(0)).join();
        }
        Fault::OutOfMemory => {
            // No machine has so much, and Rust's answer to that is to abort.
            black_box(Vec::<u8>::with_capacity(isize::MAX.unsigned_abs()));
        }
    }
    abort()
}

/// Each call needs what its caller has, so that none can make way for the next.
fn descend(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == u64::MAX {
        return 0;
    }
    descend(depth + 1) + frame.iter().sum::<u64>()
}
