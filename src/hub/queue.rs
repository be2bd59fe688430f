//! The bounded queue of frames that wait for one connection.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::sync::Notify;

/// Why the server ends a connection by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
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
/// Bounded in bytes; the overflow policy is the hub's: lag, then [`Goodbye::Slow`].
#[derive(Debug)]
pub struct Queue {
    inner: Mutex<Inner>,
    filled: Notify,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Inner {
    frames: VecDeque<Bytes>,
    bytes: usize,
    sent_bytes: u64,
    sent_frames: u64,
    /// The hub wants to hear when the queue is half empty.
    lagging: bool,
    goodbye: Option<Goodbye>,
}

/// What a session took from its queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// Frames were added to the buffer; `drained`: tell the hub that there is room again.
    Frames {
        drained: bool,
    },
    Goodbye(Goodbye),
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
    pub fn new(capacity: usize) -> Queue {
        Queue { inner: Mutex::default(), filled: Notify::new(), capacity }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while the lock was held cannot leave the queue half changed in a way that
        // matters more than the connection it belongs to.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Offers an event's frame. One frame always fits an empty queue, whatever its size.
    pub fn push(&self, frame: Bytes) -> Push {
        let mut inner = self.lock();
        if inner.goodbye.is_some() {
            return Push::Closed;
        }
        if inner.lagging || (inner.bytes > 0 && inner.bytes + frame.len() > self.capacity) {
            inner.lagging = true;
            return Push::Full;
        }
        Self::append(&mut inner, frame);
        drop(inner);
        self.filled.notify_one();
        Push::Queued
    }

    /// Queues an answer to the client's own request, past the limit: the session asks for no more
    /// than one at a time.
    pub fn reply(&self, frame: Bytes) {
        Self::append(&mut self.lock(), frame);
        self.filled.notify_one();
    }

    /// Ends the connection after what is being written.
    pub fn close(&self, goodbye: Goodbye) {
        self.lock().goodbye.get_or_insert(goodbye);
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

    fn try_take(&self, buffer: &mut Vec<Bytes>, limit: usize) -> Option<Taken> {
        let mut inner = self.lock();
        if let Some(goodbye) = inner.goodbye {
            return Some(Taken::Goodbye(goodbye));
        }
        let before = inner.bytes;
        let mut taken = 0;
        while taken < limit {
            let Some(frame) = inner.frames.pop_front() else { break };
            taken += frame.len();
            inner.bytes -= frame.len();
            inner.sent_bytes += frame.len() as u64;
            inner.sent_frames += 1;
            buffer.push(frame);
        }
        if taken == 0 {
            return None;
        }
        if inner.frames.is_empty() {
            // An idle connection keeps no buffer of its busy times.
            inner.frames = VecDeque::new();
        }
        let half = self.capacity / 2;
        let drained = inner.lagging && before > half && inner.bytes <= half
            || inner.lagging && inner.bytes == 0;
        Some(Taken::Frames { drained })
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

    fn append(inner: &mut Inner, frame: Bytes) {
        inner.bytes += frame.len();
        inner.frames.push_back(frame);
    }
}
