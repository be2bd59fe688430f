//! Slots for sockets that are not a websocket: those whose client has not sent a request yet, and
//! those whose request is being answered.
//!
//! Anybody can open sockets and say nothing. They take no slot from websockets, and among
//! themselves whoever has said nothing for the longest makes room for the next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::allowance::{Allowance, Share};

/// Bytes that a socket takes which is not a websocket: its task, HTTP's buffers, a TLS handshake.
pub(super) const HANDSHAKE: usize = 24 << 10;

#[derive(Debug)]
pub(super) struct ConnectionSlots {
    inner: Mutex<Inner>,
    /// Sockets in all.
    limit: usize,
    /// Requests at work that may wait for the database.
    opening: usize,
    memory: Arc<Allowance>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    taken: usize,
    opening: usize,
    /// Those that have asked for nothing, or for nothing more, the one that has waited longest
    /// first.
    silent: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl ConnectionSlots {
    pub(super) fn new(limit: usize, opening: usize, memory: Arc<Allowance>) -> ConnectionSlots {
        ConnectionSlots { inner: Mutex::default(), limit, opening, memory, freed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a new socket, if need be that of the one which has been silent for the longest.
    /// `None`: all are at work.
    pub(super) async fn take(self: &Arc<Self>) -> Option<ConnectionSlot> {
        loop {
            let freed = self.freed.notified();
            {
                let mut inner = self.lock();
                let mut share = Share::of(&self.memory);
                if inner.taken < self.limit && share.grow(HANDSHAKE) {
                    inner.taken += 1;
                    let number = inner.number();
                    let evicted = Arc::<Notify>::default();
                    inner.silent.insert(number, Arc::clone(&evicted));
                    return Some(ConnectionSlot {
                        slots: Arc::clone(self),
                        number: Mutex::new(number),
                        evicted,
                        _share: share,
                    });
                }
                let (_, silent) = inner.silent.pop_first()?;
                silent.notify_one();
            }
            // It leaves at once.
            freed.await;
        }
    }
}

/// One socket's slot, for as long as this lives.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    /// In the order of those that are silent.
    number: Mutex<u64>,
    evicted: Arc<Notify>,
    _share: Share,
}

impl ConnectionSlot {
    /// Waits until the socket has to make room for another. Then it is to be dropped at once.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// The client has sent a request; `opening`: one that may have to wait for the database.
    /// `None`: too many of these are at work.
    pub(super) fn work(&self, opening: bool) -> Option<Work<'_>> {
        let mut inner = self.slots.lock();
        if opening && inner.opening >= self.slots.opening {
            return None;
        }
        inner.opening += usize::from(opening);
        inner.silent.remove(&self.number());
        Some(Work { slot: self, opening, stays: false })
    }

    fn number(&self) -> MutexGuard<'_, u64> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut inner = self.slots.lock();
        inner.silent.remove(&self.number());
        inner.taken -= 1;
        drop(inner);
        self.slots.freed.notify_waiters();
    }
}

/// A request that is being answered; its socket is left alone meanwhile.
#[derive(Debug)]
pub(super) struct Work<'a> {
    slot: &'a ConnectionSlot,
    opening: bool,
    stays: bool,
}

impl Work<'_> {
    /// The socket becomes a websocket: it is left alone from here on as well.
    pub(super) fn stays(mut self) {
        self.stays = true;
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let mut inner = self.slot.slots.lock();
        inner.opening -= usize::from(self.opening);
        if !self.stays {
            let number = inner.number();
            *self.slot.number() = number;
            inner.silent.insert(number, Arc::clone(&self.slot.evicted));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn slots(limit: usize, opening: usize) -> Arc<ConnectionSlots> {
        let memory = Arc::new(Allowance::new(limit * HANDSHAKE));
        Arc::new(ConnectionSlots::new(limit, opening, memory))
    }

    #[tokio::test]
    async fn whoever_was_silent_for_the_longest_makes_room() {
        let slots = slots(2, 2);
        let first = slots.take().await.unwrap();
        let second = slots.take().await.unwrap();
        // It has sent something since.
        drop(first.work(false).unwrap());

        let mut third = Box::pin(slots.take());
        assert!(third.as_mut().now_or_never().is_none());
        assert!(second.evicted().now_or_never().is_some());
        assert!(first.evicted().now_or_never().is_none());
        drop(second);

        assert!(third.await.is_some());
    }

    #[tokio::test]
    async fn nobody_who_is_at_work_is_sent_away() {
        let slots = slots(2, 1);
        let (first, second) = (slots.take().await.unwrap(), slots.take().await.unwrap());
        let opening = first.work(true).unwrap();
        assert!(second.work(true).is_none());
        let asking = second.work(false).unwrap();

        assert!(slots.take().await.is_none());
        opening.stays();
        drop(asking);
        assert!(second.work(true).is_some());
        let newcomer = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.take().await.is_some() }
        });
        second.evicted().await;
        drop(second);

        assert!(newcomer.await.unwrap());
        assert!(first.evicted().now_or_never().is_none());
    }
}
