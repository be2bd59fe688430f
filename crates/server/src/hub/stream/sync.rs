//! Asking for the rows that there are, and joining them to the stream.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tide_feed::catalog::{Chunk, OUTDATED, Rows};
use tide_feed::event::{Cursor, EventKind, Lsn, Operation, Position};
use tokio::sync::mpsc;

use super::Stream;
use crate::catalog::{Asker, Catalog, CatalogError};
use crate::hub::group::{GroupId, GroupKey, Member};
use crate::hub::handle::SessionId;
use crate::hub::history::{History, Seq};
use crate::hub::queue::Push;
use crate::hub::sync::{Phase, PlacedKeys, Sides, Sync};
use crate::policy::Images;
use crate::wire::encode;

/// Chunks that are asked for at a time; the others wait for theirs.
const AT_A_TIME: usize = 4;
/// Before a question is asked again that could not be answered for a moment.
const RETRY: Duration = Duration::from_millis(50);
/// Events whose keys are asked about at once, at most.
const MOST_KEYS: usize = 10_000;

/// The channels that have not been told of all rows that there were when they joined.
pub(super) struct Syncs {
    channels: HashMap<(SessionId, GroupId), Instant>,
    catalog: Catalog,
    sender: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
}

pub(super) struct Answer {
    session: SessionId,
    group: GroupId,
    said: Said,
}

enum Said {
    Chunk(Result<Chunk, CatalogError>),
    Places(Asked, Result<Vec<u8>, CatalogError>),
}

/// Whose keys were asked about.
struct Asked {
    keys: Vec<EventKey>,
    until: Seq,
}

/// The key of a row before an event or after it.
struct EventKey {
    seq: Seq,
    is_after: bool,
    /// That of the row which is read by itself.
    is_fetched: bool,
}

/// How far a channel has got.
enum Step {
    /// It is to be looked at again.
    Waits,
    /// It needs something at once that it has not got: from the beginning.
    Anew,
    /// It cannot be.
    Refused(String),
    /// It is live, or gone.
    Done,
}

impl Syncs {
    pub(super) fn new(catalog: Catalog) -> Syncs {
        let (sender, answers) = mpsc::unbounded_channel();
        Syncs { channels: HashMap::new(), catalog, sender, answers }
    }

    pub(super) fn add(&mut self, session: SessionId, group: GroupId) {
        self.channels.insert((session, group), Instant::now());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// The next answer, if there is a question.
    pub(super) async fn answer(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }
}

impl Stream {
    /// Goes on with those that can.
    pub(super) fn advance_syncs(&mut self) {
        for (session, id) in std::mem::take(&mut self.registry.wanting_rows) {
            self.syncs.add(session, id);
        }
        let now = Instant::now();
        let is_asked = |sync: &Sync| matches!(sync.phase, Phase::Asked | Phase::Placing(_));
        let channels: Vec<_> = self.syncs.channels.iter().map(|(key, due)| (*key, *due)).collect();
        let member = |key: &(SessionId, GroupId)| self.registry.group(key.1)?.members.of(key.0);
        let asked = channels.iter().filter_map(|(key, _)| member(key)?.sync.as_deref());
        let mut free = AT_A_TIME.saturating_sub(asked.filter(|sync| is_asked(sync)).count());
        for ((session, id), due) in channels {
            if due > now {
                continue;
            }
            match self.advance_sync(session, id, &mut free) {
                Step::Waits => continue,
                Step::Done => {}
                Step::Anew => {
                    log::info!("a snapshot begins anew for connection {session}");
                    self.registry.interrupt(session, id, self.history.head());
                }
                Step::Refused(reason) => self.registry.end_sync(session, id, &reason),
            }
            self.syncs.channels.remove(&(session, id));
        }
        let wants_reader = !self.syncs.is_empty();
        if std::mem::replace(&mut self.wants_reader, wants_reader) != wants_reader {
            self.uplink.wants_reader(wants_reader);
        }
    }

    fn advance_sync(&mut self, session: SessionId, id: GroupId, free: &mut usize) -> Step {
        let Some(group) = self.registry.group_mut(id) else { return Step::Done };
        let Some(member) = group.members.of_mut(session) else { return Step::Done };
        let next = member.lag.unwrap_or(self.history.head());
        let Some(sync) = &mut member.sync else { return Step::Done };
        match std::mem::replace(&mut sync.phase, Phase::Idle) {
            Phase::Idle if *free == 0 => {}
            Phase::Idle => {
                *free -= 1;
                sync.phase = Phase::Asked;
                let (catalog, sender) = (self.syncs.catalog.clone(), self.syncs.sender.clone());
                let (asker, request) = (sync.asker.clone(), sync.request());
                tokio::spawn(async move {
                    let said = Said::Chunk(catalog.chunk(&asker, request).await);
                    let _ = sender.send(Answer { session, group: id, said });
                });
            }
            Phase::Read(chunk) if self.history.decoded() < Lsn(chunk.lsn) => {
                sync.phase = Phase::Read(chunk);
            }
            Phase::Read(chunk) if sync.has_another_key(&chunk) => return Step::Anew,
            Phase::Read(chunk) if sync.is_too_much(&chunk) => {
                let most = sync.plan.most_rows;
                return Step::Refused(format!(
                    "there are more than tide.snapshot_max_rows = {most}: choose fewer with a filter"
                ));
            }
            Phase::Read(chunk) if !sync.has_room(&chunk) => {
                return Step::Refused("there is no memory for the keys of so many rows".into());
            }
            Phase::Read(chunk) => {
                let until = self.history.after(Position::before(Lsn(chunk.lsn))).max(next);
                // Not all of a key is in the WAL, or there is too much of it.
                let Some((asked, rows)) = keys(&chunk, sync, next..until, &self.history) else {
                    return Step::Anew;
                };
                let borders = sync.borders(&chunk);
                let is_known = asked.keys.is_empty() || !sync.has_borders();
                let (asker, table) = (sync.asker.clone(), sync.plan.table);
                let columns = chunk.key.clone();
                sync.phase = Phase::Placing(chunk);
                if is_known {
                    let places = vec![0; asked.keys.len()];
                    let said = Said::Places(asked, Ok(places));
                    self.settle_sync(Answer { session, group: id, said });
                } else {
                    self.ask_places(session, id, (asker, table, columns), (asked, rows), borders);
                }
            }
            Phase::Placed(chunk, joining) => {
                let told = match self.live {
                    Some(live) => {
                        let position = self.history.before(next);
                        let at = Cursor { epoch: live.epoch, position };
                        member.tell_rows(&group.key, &chunk, at)
                    }
                    None => Push::Starved,
                };
                let Some(sync) = &mut member.sync else { return Step::Done };
                match told {
                    Push::Queued => {
                        sync.tell(*chunk, joining);
                        self.lagging.add(session);
                        self.lagging.wake(session);
                    }
                    Push::Full | Push::Starved => sync.phase = Phase::Placed(chunk, joining),
                    Push::Closed => return Step::Done,
                }
            }
            Phase::Joining(joining) if next < joining.until => {
                sync.phase = Phase::Joining(joining);
            }
            Phase::Joining(joining) if joining.is_last => {
                let Some(live) = self.live else {
                    sync.phase = Phase::Joining(joining);
                    return Step::Waits;
                };
                sync.phase = Phase::Live;
                if !std::mem::replace(&mut sync.is_up_to_date, true) {
                    let cursor = Cursor { epoch: live.epoch, position: self.history.before(next) };
                    let (vsn, topic) = (group.key.vsn, &group.key.topic);
                    member.queue.reply(encode::up_to_date(vsn, topic, sync.rows, cursor));
                }
                self.lagging.add(session);
                self.lagging.wake(session);
                return Step::Done;
            }
            Phase::Joining(_) => {}
            Phase::Live => {
                sync.phase = Phase::Live;
                return Step::Done;
            }
            waiting @ (Phase::Asked | Phase::Placing(_)) => sync.phase = waiting,
        }
        Step::Waits
    }

    fn retry(&mut self, session: SessionId, id: GroupId) {
        self.syncs.channels.insert((session, id), Instant::now() + RETRY);
    }

    /// Asks where keys lie.
    fn ask_places(
        &mut self,
        session: SessionId,
        group: GroupId,
        (asker, table, columns): (Asker, u32, Vec<i16>),
        (asked, rows): (Asked, Rows),
        borders: Vec<Vec<String>>,
    ) {
        let (catalog, sender) = (self.syncs.catalog.clone(), self.syncs.sender.clone());
        let texts: String =
            borders.iter().filter_map(|border| serde_json::to_string(border).ok()).collect();
        let borders = Rows { texts, ..Rows::default() };
        tokio::spawn(async move {
            let places = catalog.places(&asker, table, columns, rows, borders).await;
            let said = Said::Places(asked, places);
            let _ = sender.send(Answer { session, group, said });
        });
    }

    /// Takes in what was said.
    pub(super) fn settle_sync(&mut self, Answer { session, group: id, said }: Answer) {
        let Some(group) = self.registry.group_mut(id) else { return };
        let Some(Member { sync: Some(sync), .. }) = group.members.of_mut(session) else { return };
        let error = match (said, std::mem::replace(&mut sync.phase, Phase::Idle)) {
            (Said::Chunk(Ok(chunk)), _) => {
                sync.phase = Phase::Read(Box::new(chunk));
                return;
            }
            (Said::Places(asked, Ok(places)), Phase::Placing(chunk))
                if places.len() == asked.keys.len() =>
            {
                let keys = placed(&asked.keys, &places);
                let joining = sync.joining(&chunk, asked.until, &keys);
                sync.phase = Phase::Placed(chunk, joining);
                return;
            }
            (Said::Places(_, Ok(_)), _) => return self.retry(session, id),
            (Said::Chunk(Err(error)) | Said::Places(_, Err(error)), _) => error,
        };
        if error.is_transient() {
            return self.retry(session, id);
        }
        self.syncs.channels.remove(&(session, id));
        // Where it is to go on is what the client says, or how the table was.
        let is_outdated =
            matches!(&error, CatalogError::Refused { sqlstate, .. } if sqlstate == OUTDATED);
        if is_outdated || !sync.is_untold() {
            return self.registry.interrupt(session, id, self.history.head());
        }
        let reason = match &error {
            CatalogError::Refused { message, sqlstate } if sqlstate.starts_with("55") => {
                message.clone()
            }
            CatalogError::Refused { sqlstate, .. } if sqlstate == "42501" => {
                "SQLSTATE 42501: a column that the filter names, or its key may not be read".into()
            }
            CatalogError::Refused { sqlstate, .. } => format!("SQLSTATE {sqlstate}"),
            other => other.to_string(),
        };
        log::info!("the rows of a table cannot be read for connection {session}: {reason}");
        self.registry.end_sync(session, id, &reason);
    }
}

impl Member {
    /// Tells the client of the rows of a chunk, standing before this position.
    fn tell_rows(&mut self, key: &GroupKey, chunk: &Chunk, at: Cursor) -> Push {
        let Some(sync) = &self.sync else { return Push::Queued };
        let (schema, table) = &sync.plan.name;
        let (vsn, topic, table) = (key.vsn, &key.topic, (&**schema, &**table));
        self.queue.resume();
        if sync.fetched().is_some() {
            let rows: Vec<&RawValue> = serde_json::from_str(chunk.rows.get()).unwrap_or_default();
            let wants = key.bindings.iter().any(|b| b.operations.contains(Operation::Insert));
            let frames = rows.iter().filter(|_| wants);
            let frames = frames.map(|row| encode::read_row(vsn, topic, table, row.get()));
            return self.queue.push(&frames.collect::<Vec<_>>());
        }
        if !sync.is_untold() {
            return Push::Queued;
        }
        let resume = sync.place(chunk, at);
        let page = encode::SnapshotPage {
            table,
            rows: chunk.rows.get(),
            is_fresh: sync.is_fresh(),
            resume: resume.as_deref(),
        };
        self.queue.push(&[encode::snapshot(vsn, topic, page)])
    }
}

/// Of each event, where its keys are; `places`: beyond how many borders they lie.
fn placed(keys: &[EventKey], places: &[u8]) -> BTreeMap<Seq, PlacedKeys> {
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

/// The keys of what happened to the table, as texts; `None`: some are not known, or they are too many.
fn keys(
    chunk: &Chunk,
    sync: &Sync,
    range: std::ops::Range<Seq>,
    history: &History,
) -> Option<(Asked, Rows)> {
    let (until, table) = (range.end, sync.plan.table);
    let (mut keys, mut texts) = (Vec::new(), Vec::new());
    for seq in range.filter(|_| !chunk.key.is_empty()) {
        let Some((batch, index)) = history.at(seq) else { continue };
        let Some(event) = batch.events.get(index) else { continue };
        let EventKind::Change(change) = &event.kind else { continue };
        if change.relation.oid != table {
            continue;
        }
        let images = Images::of(batch, change);
        if !images.has_before() && !images.has_after() {
            return None;
        }
        for is_after in [false, true] {
            if !(if is_after { images.has_after() } else { images.has_before() }) {
                continue;
            }
            let key = images.key_texts(&chunk.key, is_after)?;
            let is_fetched = sync.fetched().is_some_and(|fetched| *fetched == *key);
            if sync.has_borders() {
                serde_json::to_writer(&mut texts, &key).ok()?;
            } else if !is_fetched {
                continue;
            }
            keys.push(EventKey { seq, is_after, is_fetched });
        }
    }
    let texts = String::from_utf8(texts).ok().filter(|_| keys.len() <= MOST_KEYS)?;
    Some((Asked { keys, until }, Rows { texts, ..Rows::default() }))
}
