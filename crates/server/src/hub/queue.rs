//! The bounded queue of frames that wait for one connection.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

/// Memory that all connections' queues share, in bytes.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
    queues: AtomicUsize,
}

impl Budget {
    pub fn new(limit: usize) -> Budget {
        Budget { used: AtomicUsize::new(0), limit, queues: AtomicUsize::new(0) }
    }

    /// The same frame, counted here once for all queues that it goes to, until the last of them has
    /// let go of it: see [`Queue::push_shared`].
    pub fn count(self: &Arc<Self>, frame: Bytes) -> Bytes {
        self.used.fetch_add(frame.len(), Ordering::Relaxed);
        Bytes::from_owner(Counted { frame, budget: Arc::clone(self) })
    }

    /// What a queue may hold even if all others have used up the budget: those who do not read must
    /// not be in the way of those who do.
    fn least(&self) -> usize {
        self.limit / 4 / self.queues.load(Ordering::Relaxed).max(1)
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn is_spent(&self) -> bool {
        self.used() >= self.limit
    }
}

/// A frame that is shared by several queues.
struct Counted {
    frame: Bytes,
    budget: Arc<Budget>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.frame.len(), Ordering::Relaxed);
    }
}

/// Room for frames that an empty queue keeps.
const KEPT: usize = 16;

/// Why the server ends a connection by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// It read too slowly and fell off the history.
    Slow,
    /// `tide.disconnect`.
    Disconnected,
    /// The worker stops.
    Shutdown,
}

/// What happened to a frame that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    Queued,
    /// Full: not queued. The hub reads on from the history once the queue has drained.
    Full,
    /// The connection is gone.
    Closed,
}

/// Frames between the hub, which pushes, and one session, which writes them to its socket.
/// Bounded in bytes; the overflow policy is the hub's: lag, then [`CloseReason::Slow`].
#[derive(Debug)]
pub struct Queue {
    inner: Mutex<Inner>,
    filled: Notify,
    capacity: usize,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct Waiting {
    frame: Bytes,
    /// Counted in the budget for this queue alone.
    is_own: bool,
}

impl Waiting {
    fn own_bytes(&self) -> usize {
        if self.is_own { self.frame.len() } else { 0 }
    }
}

#[derive(Debug, Default)]
struct Inner {
    frames: VecDeque<Waiting>,
    bytes: usize,
    sent_bytes: u64,
    sent_frames: u64,
    /// The hub wants to hear when the queue is half empty.
    lagging: bool,
    /// The client has not been told of somebody who came or went.
    missed_presence: bool,
    close_reason: Option<CloseReason>,
}

/// What a session took from its queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// Frames were added to the buffer; `drained`: tell the hub that there is room again;
    /// `missed_presence`: [`Queue::miss_presence`] was called, and there is room to make up for it.
    Frames {
        drained: bool,
        missed_presence: bool,
    },
    Closed(CloseReason),
}

/// Counters for `tide.stat_connections`.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueStats {
    pub queued_frames: usize,
    pub queued_bytes: usize,
    pub sent_frames: u64,
    pub sent_bytes: u64,
}

impl Queue {
    pub fn new(capacity: usize, budget: Arc<Budget>) -> Queue {
        budget.queues.fetch_add(1, Ordering::Relaxed);
        Queue { inner: Mutex::default(), filled: Notify::new(), capacity, budget }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while the lock was held cannot leave the queue half changed in a way that
        // matters more than the connection it belongs to.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Offers an event's frames: all are queued, or none. They always fit an empty queue, whatever
    /// their size.
    pub fn push(&self, frames: &[Bytes]) -> Push {
        self.push_all(frames, true)
    }

    /// Offers an event's frames, all or none, that [`Queue::share`] or [`Budget::count`] has
    /// counted.
    pub fn push_shared(&self, frames: &[Bytes]) -> Push {
        self.push_all(frames, false)
    }

    /// Counts frames in the budget that are about to be pushed to this queue and others.
    pub fn share(&self, frames: &mut [Bytes]) {
        for frame in frames {
            *frame = self.budget.count(std::mem::take(frame));
        }
    }

    fn push_all(&self, frames: &[Bytes], is_own: bool) -> Push {
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        let mut inner = self.lock();
        if inner.close_reason.is_some() {
            return Push::Closed;
        }
        if inner.lagging || self.is_full(&inner, bytes) {
            inner.lagging = true;
            return Push::Full;
        }
        for frame in frames {
            self.append(&mut inner, frame.clone(), is_own);
        }
        drop(inner);
        self.filled.notify_one();
        Push::Queued
    }

    /// Whether there is no room for so much more.
    fn is_full(&self, inner: &Inner, bytes: usize) -> bool {
        let then = inner.bytes + bytes;
        let is_full =
            then > self.capacity || (self.budget.is_spent() && then > self.budget.least());
        inner.bytes > 0 && is_full
    }

    /// Offers a frame that will not be offered again: a queue that is full, or whose client reads
    /// from the history, refuses it, and stays as it is. It is counted already, as by
    /// [`Budget::count`].
    pub fn offer(&self, frame: &Bytes) -> Push {
        let mut inner = self.lock();
        if inner.close_reason.is_some() {
            return Push::Closed;
        }
        if inner.lagging || self.is_full(&inner, frame.len()) {
            return Push::Full;
        }
        self.append(&mut inner, frame.clone(), false);
        drop(inner);
        self.filled.notify_one();
        Push::Queued
    }

    /// A frame about presence was refused: what the client believes of it is not true any more, and
    /// its session has to tell it afresh once there is room.
    pub fn miss_presence(&self) {
        self.lock().missed_presence = true;
    }

    /// Queues an answer to the client's own request, past the limit: the session asks for no more
    /// than one at a time.
    pub fn reply(&self, frame: Bytes) {
        self.append(&mut self.lock(), frame, true);
        self.filled.notify_one();
    }

    /// Ends the connection after what is being written.
    pub fn close(&self, reason: CloseReason) {
        let mut inner = self.lock();
        inner.close_reason.get_or_insert(reason);
        // The session may take its time to say so.
        self.clear(&mut inner);
        drop(inner);
        self.filled.notify_one();
    }

    /// Lets the hub push again; called by the hub when it resumes a lagging connection.
    pub fn resume(&self) {
        self.lock().lagging = false;
    }

    /// Waits for frames and moves up to `limit` bytes of them (at least one) into `buffer`.
    /// Cancel safe: nothing is taken unless it returns.
    pub async fn take(&self, buffer: &mut Vec<Bytes>, limit: usize) -> Taken {
        loop {
            if let Some(taken) = self.try_take(buffer, limit) {
                return taken;
            }
            self.filled.notified().await;
        }
    }

    /// Waits until the connection is to end: for a session that is busy writing.
    pub async fn closed(&self) -> CloseReason {
        loop {
            if let Some(reason) = self.lock().close_reason {
                return reason;
            }
            self.filled.notified().await;
        }
    }

    fn try_take(&self, buffer: &mut Vec<Bytes>, limit: usize) -> Option<Taken> {
        let mut inner = self.lock();
        if let Some(reason) = inner.close_reason {
            return Some(Taken::Closed(reason));
        }
        let before = inner.bytes;
        let (mut taken, mut own) = (0, 0);
        while taken < limit {
            let Some(waiting) = inner.frames.pop_front() else { break };
            own += waiting.own_bytes();
            let frame = waiting.frame;
            taken += frame.len();
            inner.bytes -= frame.len();
            inner.sent_bytes += frame.len() as u64;
            inner.sent_frames += 1;
            buffer.push(frame);
        }
        if taken == 0 {
            return None;
        }
        self.budget.used.fetch_sub(own, Ordering::Relaxed);
        if inner.frames.is_empty() && inner.frames.capacity() > KEPT {
            // An idle connection keeps no buffer of its busy times.
            inner.frames = VecDeque::new();
        }
        let half = self.capacity / 2;
        let drained = inner.lagging && before > half && inner.bytes <= half
            || inner.lagging && inner.bytes == 0;
        let missed_presence = inner.bytes <= half && std::mem::take(&mut inner.missed_presence);
        Some(Taken::Frames { drained, missed_presence })
    }

    /// Bytes of frames that the session has taken so far.
    pub fn sent_bytes(&self) -> u64 {
        self.lock().sent_bytes
    }

    pub fn stats(&self) -> QueueStats {
        let inner = self.lock();
        QueueStats {
            queued_frames: inner.frames.len(),
            queued_bytes: inner.bytes,
            sent_frames: inner.sent_frames,
            sent_bytes: inner.sent_bytes,
        }
    }

    fn append(&self, inner: &mut Inner, frame: Bytes, is_own: bool) {
        inner.bytes += frame.len();
        let waiting = Waiting { frame, is_own };
        self.budget.used.fetch_add(waiting.own_bytes(), Ordering::Relaxed);
        inner.frames.push_back(waiting);
    }

    /// Drops what waits.
    fn clear(&self, inner: &mut Inner) {
        let own = inner.frames.iter().map(Waiting::own_bytes).sum();
        self.budget.used.fetch_sub(own, Ordering::Relaxed);
        (inner.frames, inner.bytes) = (VecDeque::new(), 0);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.clear(&mut self.lock());
        self.budget.queues.fetch_sub(1, Ordering::Relaxed);
    }
}
