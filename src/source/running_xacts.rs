//! Before a slot is created: the transactions that run have to end first, and Postgres waits for
//! them where nothing else can be done meanwhile. So they are waited for here first, in rounds.

use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::source::in_flight;

/// This is not worth a word.
const SHORT: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct RunningXacts {
    /// Those that were running at first: transaction and process. `None`: not looked yet.
    older: Option<Vec<(pg_sys::TransactionId, Option<i32>)>>,
    since: Option<Instant>,
    was_said: bool,
}

impl RunningXacts {
    /// How long to wait between two looks.
    pub(crate) const POLL: Duration = Duration::from_millis(100);

    /// Whether transactions still run that did so at the first call: `Some`, with a text the
    /// first time that it has taken a while.
    pub(crate) fn waits_for(&mut self) -> Option<Option<String>> {
        let older = self.older.get_or_insert_with(running);
        // SAFETY: reads shared memory.
        older.retain(|(xid, _)| unsafe { pg_sys::TransactionIdIsInProgress(*xid) });
        if older.is_empty() {
            return None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.was_said || since.elapsed() < SHORT {
            return Some(None);
        }
        self.was_said = true;
        let name = |pid: Option<i32>| match pid {
            Some(pid) => format!("pid {pid}"),
            None => "prepared".to_owned(),
        };
        let mut processes: Vec<String> = older.iter().take(10).map(|(_, pid)| name(*pid)).collect();
        if older.len() > processes.len() {
            processes.push("more".to_owned());
        }
        Some(Some(format!(
            "the stream begins when transactions that are open now have ended ({})",
            processes.join(", ")
        )))
    }
}

/// Transactions that have written something, with their processes; those that are prepared have none.
fn running() -> Vec<(pg_sys::TransactionId, Option<i32>)> {
    let running = in_flight::running();
    let processes = processes();
    let process = |xid| processes.iter().find(|(of, _)| *of == xid).map(|(_, pid)| *pid);
    running.into_iter().map(|xid| (xid, process(xid))).collect()
}

fn processes() -> Vec<(pg_sys::TransactionId, i32)> {
    let mut running = Vec::new();
    // SAFETY: the array is as long as said for as long as the server runs. It is read without a
    // lock: each word is whole, and whether the transaction runs is asked properly afterwards.
    unsafe {
        let processes = pg_sys::ProcGlobal;
        let count = usize::try_from((*processes).allProcCount).unwrap_or(0);
        for index in 0..count {
            let process = (*processes).allProcs.add(index);
            let xid = (&raw const (*process).xid).read_volatile();
            if xid != pg_sys::InvalidTransactionId {
                running.push((xid, (*process).pid));
            }
        }
    }
    running
}
