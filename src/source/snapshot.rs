//! What a query can see, and where the WAL ends that it has seen nothing beyond.

use pgrx::pg_sys;
use tide_feed::snapshot::Snapshot;

use crate::process::awaited;

/// Bytes of a page's header in the WAL, and of the first one's in a file.
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// What a snapshot sees, with whole numbers.
pub(crate) fn seen_by(snapshot: &pg_sys::SnapshotData) -> Snapshot {
    // SAFETY: reads a number from shared memory; the snapshot has as many transactions as it says.
    unsafe {
        let next = pg_sys::ReadNextFullTransactionId().value;
        // None of them is newer, and none 2^31 older.
        let whole = |xid: u32| next - u64::from((next as u32).wrapping_sub(xid));
        let count = snapshot.xcnt as usize;
        let running =
            if count == 0 { &[][..] } else { std::slice::from_raw_parts(snapshot.xip, count) };
        let mut xip: Vec<u64> = running.iter().map(|xid| whole(xid.into_inner())).collect();
        xip.sort_unstable();
        let (xmin, xmax) = (snapshot.xmin.into_inner(), snapshot.xmax.into_inner());
        Snapshot { xmin: whole(xmin), xmax: whole(xmax), xip }
    }
}

/// Where the WAL ends, which is on disk up to there afterwards, and about to be decoded. Whatever could be
/// seen before lies before it.
pub(crate) fn flushed() -> u64 {
    // SAFETY: reads numbers from shared memory; flushes what has been inserted.
    unsafe {
        let mut end = pg_sys::GetXLogInsertRecPtr();
        // Where a page begins, the next record would come after its header; the last ended before it.
        let in_page = end % u64::from(pg_sys::XLOG_BLCKSZ);
        let header = if end % pg_sys::wal_segment_size as u64 == in_page {
            LONG_HEADER
        } else {
            SHORT_HEADER
        };
        if in_page == header {
            end -= header;
        }
        pg_sys::XLogFlush(end);
        // Reading writes, too: what it does to pages ends in no commit.
        awaited::wake_worker(end);
        end
    }
}
