//! What a channel has been told of, so that it is told of nothing else: the keys of rows.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use serde_json::value::RawValue;
use tide_feed::event::Datum;

use super::joining::Sides;
use crate::allowance::{Allowance, Share};
use crate::policy::{Images, Seen, Sight};

/// Bytes that a key takes up which a channel has been told of, with what the set of them has to spare.
const KEY: usize = 24;

/// The keys that a channel has been told of, as hashes with a key of their own.
#[derive(Debug)]
pub(super) struct Told {
    keys: HashSet<u64>,
    memory: Share,
    /// Bytes that it may take.
    most: usize,
    hasher: RandomState,
    /// What the event at hand makes of them, once its frames are queued.
    staged: Vec<(u64, bool)>,
}

impl Told {
    /// `memory`: the part that they are counted in.
    pub(super) fn new(memory: &Arc<Allowance>) -> Told {
        let (keys, hasher, staged) = (HashSet::new(), RandomState::new(), Vec::new());
        Told { keys, memory: Share::of(memory), most: memory.limit() / 4, hasher, staged }
    }

    /// Makes room for so many more; false: there is none.
    pub(super) fn reserve(&mut self, more: usize) -> bool {
        let wanted = (self.keys.len() + more) * KEY;
        // No channel has more than others have left.
        let most = self.most;
        wanted <= self.memory.bytes()
            || wanted <= most && self.memory.resize(wanted.max(2 * self.memory.bytes()).min(most))
    }

    /// Adds the keys of a chunk, an array of arrays.
    pub(super) fn add_all(&mut self, keys: &RawValue) {
        let keys: Vec<Vec<&RawValue>> = serde_json::from_str(keys.get()).unwrap_or_default();
        for key in &keys {
            let key = self.hash(key.iter().map(|value| value.get().as_bytes()));
            self.keys.insert(key);
        }
    }

    fn hash<'a>(&self, values: impl Iterator<Item = &'a [u8]>) -> u64 {
        self.hasher.hash_one(values.collect::<Vec<_>>())
    }

    /// The key of a row before or after an event; `None`: the image does not have it.
    fn key_of<'a>(&self, key: &[i16], image: impl Fn(i16) -> Datum<'a>) -> Option<u64> {
        let values: Option<Vec<&[u8]>> = key
            .iter()
            .map(|attnum| match image(*attnum) {
                Datum::Json(json) => Some(json),
                _ => None,
            })
            .collect();
        values.map(|values| self.hash(values.into_iter()))
    }

    /// What a change is to the channel: what it is told, as the row's sight before and after it.
    /// `None`: it cannot be known.
    pub(super) fn sight(
        &mut self,
        key: &[i16],
        images: &Images<'_>,
        sides: Sides,
        is_visible: bool,
    ) -> Option<Sight> {
        self.staged.clear();
        let new = match images.has_after() {
            true => Some(self.key_of(key, |attnum| images.after(attnum))?),
            false => None,
        };
        let old = match images.has_before() {
            true => Some(self.key_of(key, |attnum| images.before(attnum))?),
            false => None,
        };
        let was_told = sides.before && old.is_some_and(|old| self.keys.contains(&old));
        let is_told = sides.after && is_visible;
        if let Some(old) = old.filter(|_| sides.before) {
            self.staged.push((old, false));
        }
        if let Some(new) = new.filter(|_| is_told) {
            // Without memory it begins anew, and says then that there is none.
            if !self.reserve(1) {
                return None;
            }
            self.staged.push((new, true));
        }
        Some(Sight { before: Seen::from(was_told), after: Seen::from(is_told) })
    }

    /// The hash of the key of the row after an event, and whether it has been told of; `None`: the image
    /// does not have the key.
    pub(super) fn of_row(&self, key: &[i16], images: &Images<'_>) -> Option<(u64, bool)> {
        let key = self.key_of(key, |attnum| images.after(attnum))?;
        Some((key, self.keys.contains(&key)))
    }

    /// It is not there any more.
    pub(super) fn remove(&mut self, key: u64) {
        self.keys.remove(&key);
    }

    /// The frames of the event at hand are queued, or there are none.
    pub(super) fn settle(&mut self) {
        for (key, is_told) in std::mem::take(&mut self.staged) {
            if is_told {
                self.keys.insert(key);
            } else {
                self.keys.remove(&key);
            }
        }
    }
}
