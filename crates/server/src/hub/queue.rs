//! The bounded queue of frames that wait for one connection.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::wire::frame_buf::FrameBuf;

pub use super::budget::Budget;

/// Room for frames that an empty queue keeps.
const KEPT: usize = 16;

/// Bytes of a frame that is moved away from its neighbours when it has to wait, lest it keep the
/// memory that it shares with them.
pub(super) const SMALL: usize = 2 << 10;

/// Bytes that are so few that it is for others to make room for them.
const LITTLE: usize = 64 << 10;

/// Bytes of answers that may wait, in a queue that is smaller than that, for a client that does not
/// read them.
const ANSWERS: usize = 64 << 10;

/// Why the server ends a connection by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// It read too slowly and fell off the history, or asks without reading the answers.
    Slow,
    /// There is no memory left, and it is the one that held most of it and did not read.
    Memory,
    /// `tide.disconnect`.
    Disconnected,
    /// Its role may not be used by clients any more.
    Role,
    /// The worker stops.
    Shutdown,
}

/// What happened to a frame that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    Queued,
    /// Full: not queued. The hub reads on from the history once the queue has drained.
    Full,
    /// Not queued, though nothing waits: others have the memory. To be offered again soon.
    Starved,
    /// The connection is gone.
    Closed,
}

/// Frames between the hub, which pushes, and one session, which writes them to its socket.
/// Bounded in bytes; the overflow policy is the hub's: lag, then [`CloseReason::Slow`].
#[derive(Debug)]
pub struct Queue {
    inner: Mutex<Inner>,
    filled: Notify,
    /// Bytes of what the session has taken that are written by now.
    written: AtomicUsize,
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
    /// What small frames are written on that wait here alone.
    frame_buf: FrameBuf,
    bytes: usize,
    /// Of these, counted in the budget for this queue alone.
    own: usize,
    /// What the session has taken and is writing: bytes in all, and of these its own.
    taken: usize,
    taken_own: usize,
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
        budget.queue_begins();
        let (inner, filled, written) = (Mutex::default(), Notify::new(), AtomicUsize::new(0));
        Queue { inner, filled, written, capacity, budget }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while the lock was held cannot leave the queue half changed in a way that
        // matters more than the connection it belongs to.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Offers an event's frames: all are queued, or none. Those of one event always fit a queue that
    /// is empty, if there is memory.
    pub fn push(&self, frames: &[Bytes]) -> Push {
        self.push_all(frames, true)
    }

    /// Offers an event's frames, all or none, that [`Queue::share`] or [`Budget::count`] has
    /// counted.
    pub fn push_shared(&self, frames: &[Bytes]) -> Push {
        self.push_all(frames, false)
    }

    /// Counts frames in the budget that are about to be pushed to this queue and others; false: there
    /// is no room for them.
    #[must_use]
    pub fn share(&self, frames: &mut [Bytes]) -> bool {
        frames.iter_mut().all(|frame| {
            let counted = self.budget.count(frame.clone());
            counted.map(|counted| *frame = counted).is_some()
        })
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
        if is_own && !self.charge(&inner, bytes) {
            inner.lagging = true;
            if !inner.frames.is_empty() {
                return Push::Full;
            }
            self.budget.fall_short();
            return Push::Starved;
        }
        for frame in frames {
            inner.append(frame.clone(), is_own);
        }
        drop(inner);
        self.filled.notify_one();
        Push::Queued
    }

    /// There was no memory for a frame that others would have shared: as if it had been offered here.
    pub fn starve(&self) -> Push {
        self.lock().lagging = true;
        Push::Starved
    }

    /// Whether there is no room for so much more.
    fn is_full(&self, inner: &Inner, bytes: usize) -> bool {
        let then = inner.bytes + bytes;
        if inner.frames.is_empty() {
            return false;
        }
        let is_short = self.budget.is_spent() && then > self.budget.least();
        if is_short && then <= LITTLE.min(self.capacity) {
            self.budget.fall_short();
        }
        then > self.capacity || is_short
    }

    /// Counts so much in the budget for this queue alone.
    fn charge(&self, inner: &Inner, bytes: usize) -> bool {
        self.budget.take(bytes, inner.own + inner.taken_own + bytes)
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
        inner.append(frame.clone(), false);
        drop(inner);
        self.filled.notify_one();
        Push::Queued
    }

    /// Offers a frame that does not count as what the client may miss, and that is counted already.
    pub fn tell(&self, frame: &Bytes) -> Push {
        let mut inner = self.lock();
        if inner.close_reason.is_some() {
            return Push::Closed;
        }
        if !inner.frames.is_empty() && inner.bytes + frame.len() > self.capacity {
            return Push::Full;
        }
        inner.append(frame.clone(), false);
        drop(inner);
        self.filled.notify_one();
        Push::Queued
    }

    /// A frame about presence was refused: what the client believes of it is not true any more, and
    /// its session has to tell it afresh once there is room.
    pub fn miss_presence(&self) {
        self.lock().missed_presence = true;
    }

    /// Queues an answer to the client's own request, past the limit. A client that asks and asks and
    /// does not read is cut off.
    pub fn reply(&self, frame: Bytes) {
        let mut inner = self.lock();
        if inner.close_reason.is_some() {
            return;
        }
        if inner.bytes > self.capacity + self.capacity.max(ANSWERS) {
            drop(inner);
            return self.close(CloseReason::Slow);
        }
        if !self.charge(&inner, frame.len()) {
            self.budget.fall_short();
            drop(inner);
            return self.close(CloseReason::Memory);
        }
        inner.append(frame, true);
        drop(inner);
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
        // What was taken before has been written.
        self.budget.give_back(std::mem::take(&mut inner.taken_own));
        inner.taken = 0;
        self.written.store(0, Ordering::Relaxed);
        let before = inner.bytes;
        while inner.taken < limit {
            let Some(waiting) = inner.frames.pop_front() else { break };
            let (bytes, own) = (waiting.frame.len(), waiting.own_bytes());
            inner.bytes -= bytes;
            inner.own -= own;
            inner.taken += bytes;
            inner.taken_own += own;
            inner.sent_bytes += bytes as u64;
            inner.sent_frames += 1;
            buffer.push(waiting.frame);
        }
        if inner.taken == 0 {
            return None;
        }
        // An idle connection keeps no buffer of its busy times.
        if inner.frames.is_empty() && inner.frames.capacity() > KEPT {
            inner.frames = VecDeque::new();
        }
        if inner.frames.is_empty() {
            inner.frame_buf = FrameBuf::default();
        }
        let half = self.capacity / 2;
        let drained = inner.lagging && before > half && inner.bytes <= half
            || inner.lagging && inner.bytes == 0;
        let missed_presence = inner.bytes <= half && std::mem::take(&mut inner.missed_presence);
        Some(Taken::Frames { drained, missed_presence })
    }

    /// So much of what the session has taken is written.
    pub fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of frames that the session has written so far.
    pub fn sent_bytes(&self) -> u64 {
        let inner = self.lock();
        let unwritten = inner.taken.saturating_sub(self.written.load(Ordering::Relaxed));
        inner.sent_bytes - unwritten as u64
    }

    /// Whether its client reads: no more than half of it waits.
    pub fn has_room(&self) -> bool {
        self.lock().bytes <= self.capacity / 2
    }

    /// Bytes that would go with it.
    pub fn held_bytes(&self) -> usize {
        let inner = self.lock();
        inner.bytes + inner.taken
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

    /// Drops what waits.
    fn clear(&self, inner: &mut Inner) {
        self.budget.give_back(std::mem::take(&mut inner.own));
        (inner.frames, inner.bytes) = (VecDeque::new(), 0);
    }
}

impl Inner {
    fn append(&mut self, frame: Bytes, is_own: bool) {
        let waits = is_own && frame.len() < SMALL && !self.frames.is_empty();
        let frame = if waits { self.frame_buf.split(&[&frame]) } else { frame };
        let waiting = Waiting { frame, is_own };
        self.bytes += waiting.frame.len();
        self.own += waiting.own_bytes();
        self.frames.push_back(waiting);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut inner = self.lock();
        self.clear(&mut inner);
        self.budget.give_back(inner.taken_own);
        self.budget.queue_ends();
    }
}
