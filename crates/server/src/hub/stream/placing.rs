//! Where the keys of changes lie among the rows that have been read: for Postgres to say, whatever their types
//! and collations.

use std::collections::BTreeMap;

use tide_feed::catalog::{Chunk, Rows};
use tide_feed::event::EventKind;

use crate::catalog::{Asker, Catalog, CatalogError};
use crate::hub::history::{History, Seq};
use crate::hub::joining::{PlacedKeys, Sides};
use crate::hub::sync::Sync;
use crate::policy::Images;

/// Events whose keys are asked about for a chunk, at most, and at once; and events that are looked at for
/// them.
const MOST_KEYS: usize = 100_000;
const KEYS_AT_ONCE: usize = 5_000;
const LOOKED_AT: Seq = 500_000;

/// Whose keys were asked about.
pub(super) struct Asked {
    pub(super) keys: Vec<EventKey>,
    pub(super) until: Seq,
}

/// The key of a row before an event or after it.
pub(super) struct EventKey {
    seq: Seq,
    is_after: bool,
    /// That of the row which is read by itself.
    is_fetched: bool,
}

/// The keys of what happened to the table, as texts; `None`: some are not known, or they are too many.
pub(super) fn keys(
    chunk: &Chunk,
    sync: &Sync,
    range: std::ops::Range<Seq>,
    history: &History,
) -> Option<(Asked, Vec<String>)> {
    let (until, table) = (range.end, sync.plan.table);
    let (mut keys, mut texts) = (Vec::new(), Vec::new());
    if !chunk.key.is_empty() && until.saturating_sub(range.start) > LOOKED_AT {
        return None;
    }
    for seq in range.filter(|_| !chunk.key.is_empty()) {
        let Some((batch, index)) = history.at(seq) else { continue };
        let Some(event) = batch.events.get(index) else { continue };
        let EventKind::Change(change) = &event.kind else { continue };
        if change.relation.oid != table {
            continue;
        }
        let images = Images::of(batch, change);
        if !images.has_before() && !images.has_after() || keys.len() >= MOST_KEYS {
            return None;
        }
        for is_after in [false, true] {
            if !(if is_after { images.has_after() } else { images.has_before() }) {
                continue;
            }
            let key = images.key_texts(&chunk.key, is_after)?;
            let is_fetched = sync.fetched().is_some_and(|fetched| *fetched == *key);
            if sync.has_borders() {
                texts.push(serde_json::to_string(&key).ok()?);
            } else if !is_fetched {
                continue;
            }
            keys.push(EventKey { seq, is_after, is_fetched });
        }
    }
    Some((Asked { keys, until }, texts))
}

/// Asks where keys lie, so many at once.
pub(super) async fn ask(
    catalog: &Catalog,
    asker: &Asker,
    (table, key): (u32, Vec<i16>),
    keys: Vec<String>,
    borders: &[Vec<String>],
) -> Result<Vec<u8>, CatalogError> {
    let texts = borders.iter().filter_map(|border| serde_json::to_string(border).ok()).collect();
    let borders = Rows { texts, ..Rows::default() };
    let mut places = Vec::new();
    for keys in keys.chunks(KEYS_AT_ONCE) {
        let keys = Rows { texts: keys.concat(), ..Rows::default() };
        places.extend(catalog.places(asker, table, key.clone(), keys, borders.clone()).await?);
    }
    Ok(places)
}

/// Of each event, where its keys are; `places`: beyond how many borders they lie.
pub(super) fn placed(keys: &[EventKey], places: &[u8]) -> BTreeMap<Seq, PlacedKeys> {
    let mut placed: BTreeMap<Seq, PlacedKeys> = BTreeMap::new();
    for (EventKey { seq, is_after, is_fetched }, place) in keys.iter().zip(places) {
        let PlacedKeys { beyond, fetched } = placed.entry(*seq).or_default();
        let Sides { before, after } = fetched;
        let (beyond, fetched) =
            if *is_after { (&mut beyond.1, after) } else { (&mut beyond.0, before) };
        (*beyond, *fetched) = (Some(*place), *is_fetched);
    }
    placed
}
