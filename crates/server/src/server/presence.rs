//! Who is present on which channel, over all connections.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::rand::{SecureRandom, SystemRandom};
use tide_feed::config::Config;
use tide_feed::json;

use crate::allowance::Share;
use crate::hub::Hub;
use crate::hub::handle::{Ephemeral, SessionId};
use crate::hub::subscription::Style;
use crate::memory::Kind;
use crate::presence::{Details, Diff, MemberId, Room, Tracked};
use crate::wire::{Vsn, encode};

/// Which room: public and private channels of the same topic are two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RoomKey {
    /// As on the wire.
    pub(super) topic: Arc<str>,
    pub(super) private: bool,
}

/// The rooms that somebody is in.
#[derive(Debug)]
pub(super) struct Rooms {
    hub: Hub,
    inner: Mutex<Inner>,
    /// Metas per room.
    max_entries: usize,
}

#[derive(Debug)]
struct Inner {
    rooms: HashMap<RoomKey, Room>,
    bytes: usize,
    /// Of the memory for presence: as many, or more while somebody is let in.
    share: Share,
    /// Numbers for members and metas. It begins anywhere, so that clients that come back after a
    /// restart do not take a new meta for one that they know.
    next: u64,
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// Changes a room, which goes when it is empty.
    fn change<R>(&mut self, room_key: &RoomKey, change: impl FnOnce(&mut Room) -> R) -> R {
        let room = self.rooms.entry(room_key.clone()).or_default();
        let before = room.bytes();
        let result = change(room);
        self.bytes = self.bytes + room.bytes() - before;
        if room.is_empty() {
            self.rooms.remove(room_key);
        }
        // What was made room for before is enough.
        let _ = self.share.resize(self.bytes);
        result
    }
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// `tide.max_presence_entries` are there.
    Channel,
    /// The memory that presence may take is used up.
    Server,
}

impl Rooms {
    pub(super) fn new(hub: Hub, config: &Config) -> Rooms {
        let share = Share::of(hub.memory().of(Kind::Presence));
        let inner = Inner { rooms: HashMap::new(), bytes: 0, share, next: random() };
        Rooms { hub, inner: Mutex::new(inner), max_entries: config.max_presence_entries }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called with the lock held: members hear of changes in the order of the changes.
    fn announce(&self, room_key: &RoomKey, diff: &Diff) {
        // Without memory members are told afresh once they have read what waits for them.
        let _ = self.hub.send_ephemeral(Ephemeral {
            topic: Arc::clone(&room_key.topic),
            to: Style::Presence,
            private: room_key.private,
            v1: encode::presence_diff(Vsn::V1, &room_key.topic, diff),
            v2: encode::presence_diff(Vsn::V2, &room_key.topic, diff),
            except: None,
        });
    }
}

/// A channel's membership of its room. What it tracks goes with it, however the connection ends.
#[derive(Debug)]
pub(super) struct ChannelPresence {
    rooms: Arc<Rooms>,
    room_key: RoomKey,
    member: MemberId,
    /// What the client calls itself, or a name that it is given.
    key: Box<str>,
    tracking: bool,
}

impl ChannelPresence {
    pub(super) fn new(rooms: &Arc<Rooms>, room_key: RoomKey, key: Option<&str>) -> ChannelPresence {
        let member = rooms.lock().number();
        let key = key.map_or_else(uuid, Into::into);
        ChannelPresence { rooms: Arc::clone(rooms), room_key, member, key, tracking: false }
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn track(&mut self, details: Details) -> Result<(), NoRoom> {
        let mut inner = self.rooms.lock();
        let wanted = inner.bytes + Room::bytes_of(&self.key, &details);
        if !inner.share.resize(wanted) {
            return Err(NoRoom::Server);
        }
        let (reference, limit) = (inner.number(), self.rooms.max_entries);
        let track = |room: &mut Room| room.track(self.member, &self.key, details, reference, limit);
        match inner.change(&self.room_key, track) {
            Tracked::Unchanged => {}
            Tracked::Changed(diff) => {
                self.tracking = true;
                self.rooms.announce(&self.room_key, &diff);
            }
            Tracked::Full => return Err(NoRoom::Channel),
        }
        Ok(())
    }

    pub(super) fn untrack(&mut self) {
        if !std::mem::take(&mut self.tracking) {
            return;
        }
        let mut inner = self.rooms.lock();
        if let Some(diff) =
            inner.change(&self.room_key, |room| room.untrack(self.member, &self.key))
        {
            self.rooms.announce(&self.room_key, &diff);
        }
    }

    /// Tells a connection who is there, in its order among the changes.
    pub(super) fn tell(&self, session: SessionId, vsn: Vsn, join_ref: Option<&str>) {
        let inner = self.rooms.lock();
        let nobody = Room::default();
        let room = inner.rooms.get(&self.room_key).unwrap_or(&nobody);
        let frame = encode::presence_state(vsn, join_ref, &self.room_key.topic, room);
        self.rooms.hub.tell(session, frame);
    }
}

impl Drop for ChannelPresence {
    fn drop(&mut self) {
        self.untrack();
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // If the system has no random numbers, TLS has long failed; uniqueness in this process stays.
    let _ = SystemRandom::new().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A random name (a UUID of version 4).
fn uuid() -> Box<str> {
    let (high, low) = (random() & !0xF000 | 0x4000, random() >> 2 | 1 << 63);
    let mut out = Vec::with_capacity(36);
    json::write_hex(&mut out, high >> 32, 8);
    for group in [high >> 16 & 0xFFFF, high & 0xFFFF, low >> 48] {
        out.push(b'-');
        json::write_hex(&mut out, group, 4);
    }
    out.push(b'-');
    json::write_hex(&mut out, low, 12);
    String::from_utf8_lossy(&out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_names_are_uuids_and_differ() {
        let (one, other) = (uuid(), uuid());

        assert_ne!(one, other);
        let groups: Vec<usize> = one.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert!(one.chars().all(|c| c == '-' || c.is_ascii_hexdigit()));
        assert_eq!(one.as_bytes()[14], b'4');
        assert!(matches!(one.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }
}
