//! Asking for the rows that there are, and joining them to the stream.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use tide_feed::catalog::{Chunk, Rows};
use tide_feed::event::{Cursor, Datum, EventKind, Lsn, Position};
use tokio::sync::mpsc;

use super::Stream;
use crate::catalog::{Asker, Catalog, CatalogError};
use crate::hub::group::{GroupId, Member};
use crate::hub::handle::SessionId;
use crate::hub::history::{History, Seq};
use crate::hub::queue::Push;
use crate::hub::sync::{Phase, Sync};
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
    /// The event, and whether it is the key after it.
    keys: Vec<(Seq, bool)>,
    until: Seq,
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
        let now = Instant::now();
        let is_asked = |sync: &Sync| matches!(sync.phase, Phase::Asked | Phase::Placing(_));
        let channels: Vec<_> = self.syncs.channels.iter().map(|(key, due)| (*key, *due)).collect();
        let member = |key: &(SessionId, GroupId)| self.registry.group(key.1)?.members.of(key.0);
        let asked = channels.iter().filter_map(|(key, _)| member(key)?.sync.as_deref());
        let mut free = AT_A_TIME.saturating_sub(asked.filter(|sync| is_asked(sync)).count());
        for ((session, id), due) in channels {
            if due <= now && !self.advance_sync(session, id, &mut free) {
                self.syncs.channels.remove(&(session, id));
            }
        }
        let wants_reader = !self.syncs.is_empty();
        if std::mem::replace(&mut self.wants_reader, wants_reader) != wants_reader {
            self.uplink.wants_reader(wants_reader);
        }
    }

    /// False: it is live, or gone.
    fn advance_sync(&mut self, session: SessionId, id: GroupId, free: &mut usize) -> bool {
        let Some(group) = self.registry.group_mut(id) else { return false };
        let Some(member) = group.members.of_mut(session) else { return false };
        let lag = member.lag;
        let Some(sync) = &mut member.sync else { return false };
        match std::mem::replace(&mut sync.phase, Phase::Idle) {
            Phase::Idle if *free == 0 => {}
            Phase::Idle => {
                *free -= 1;
                sync.phase = Phase::Asked;
                let (catalog, asker, request) =
                    (self.syncs.catalog.clone(), sync.asker.clone(), sync.request());
                let sender = self.syncs.sender.clone();
                tokio::spawn(async move {
                    let said = Said::Chunk(catalog.chunk(&asker, request).await);
                    let _ = sender.send(Answer { session, group: id, said });
                });
            }
            Phase::Read(chunk) if self.history.decoded() < Lsn(chunk.lsn) => {
                sync.phase = Phase::Read(chunk);
            }
            Phase::Read(chunk) if !sync.has_room(&chunk) => {
                let reason = "there is no memory for the keys of so many rows";
                self.registry.end_sync(session, id, reason);
                return false;
            }
            // It was taken before something could be seen that an earlier one left to it.
            Phase::Read(chunk) if !sync.is_seen(&chunk) => self.retry(session, id),
            Phase::Read(chunk) => {
                let from = lag.unwrap_or(self.history.head());
                let until = self.history.after(Position::before(Lsn(chunk.lsn)));
                let keys = keys(&chunk, sync.plan.table, from..until, &self.history);
                match keys {
                    Some((keys, rows)) if keys.len() <= MOST_KEYS => {
                        let asked = Asked { keys, until };
                        let borders = sync.borders(&chunk);
                        let (asker, table) = (sync.asker.clone(), sync.plan.table);
                        let columns = chunk.key.clone();
                        sync.phase = Phase::Placing(chunk);
                        self.place(session, id, (asker, table, columns), (asked, rows), borders);
                    }
                    // Not all of a key is in the WAL, or there is too much of it: from the beginning.
                    _ => {
                        log::info!("a snapshot begins anew for connection {session}");
                        self.registry.interrupt(session, id, self.history.head());
                        return false;
                    }
                }
            }
            Phase::Placed(chunk, joining) => {
                let (schema, table) = &sync.plan.name;
                let (vsn, topic) = (group.key.vsn, &group.key.topic);
                let frame = encode::snapshot(vsn, topic, (schema, table), chunk.rows.get());
                member.queue.resume();
                match member.queue.push(&[frame]) {
                    Push::Queued => {
                        sync.tell(*chunk, joining);
                        self.lagging.add(session);
                        self.lagging.wake(session);
                    }
                    Push::Full | Push::Starved => sync.phase = Phase::Placed(chunk, joining),
                    Push::Closed => return false,
                }
            }
            Phase::Joining(joining) if lag.is_some_and(|lag| lag < joining.until) => {
                sync.phase = Phase::Joining(joining);
            }
            Phase::Joining(joining) if joining.is_last => {
                sync.phase = Phase::Live;
                let rows = sync.rows;
                let Some(live) = self.live else { return true };
                let position = self.history.before(lag.unwrap_or(self.history.head()));
                let cursor = Cursor { epoch: live.epoch, position };
                let frame = encode::up_to_date(group.key.vsn, &group.key.topic, rows, cursor);
                member.queue.reply(frame);
                self.lagging.add(session);
                self.lagging.wake(session);
                return false;
            }
            Phase::Joining(_) => {}
            Phase::Live => {
                sync.phase = Phase::Live;
                return false;
            }
            waiting @ (Phase::Asked | Phase::Placing(_)) => sync.phase = waiting,
        }
        true
    }

    fn retry(&mut self, session: SessionId, id: GroupId) {
        self.syncs.channels.insert((session, id), Instant::now() + RETRY);
    }

    /// Asks where keys lie.
    fn place(
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
            let places = if asked.keys.is_empty() {
                Ok(Vec::new())
            } else {
                catalog.places(&asker, table, columns, rows, borders).await
            };
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
                let mut beyond: BTreeMap<Seq, (Option<u8>, Option<u8>)> = BTreeMap::new();
                for ((seq, is_after), place) in asked.keys.into_iter().zip(places) {
                    let entry = beyond.entry(seq).or_default();
                    *if is_after { &mut entry.1 } else { &mut entry.0 } = Some(place);
                }
                let joining = sync.joining(&chunk, asked.until, beyond.into_iter());
                sync.phase = Phase::Placed(chunk, joining);
                return;
            }
            (Said::Places(_, Ok(_)), _) => return self.retry(session, id),
            (Said::Chunk(Err(error)) | Said::Places(_, Err(error)), _) => error,
        };
        if error.is_transient() {
            return self.retry(session, id);
        }
        let reason = match &error {
            CatalogError::Refused { message, sqlstate } if sqlstate.starts_with("55") => {
                message.clone()
            }
            CatalogError::Refused { sqlstate, .. } => format!("SQLSTATE {sqlstate}"),
            other => other.to_string(),
        };
        log::info!("the rows of a table cannot be read for connection {session}: {reason}");
        self.registry.end_sync(session, id, &reason);
        self.syncs.channels.remove(&(session, id));
    }
}

/// The keys of what happened to the table, as texts; `None`: some are not known.
fn keys(
    chunk: &Chunk,
    table: u32,
    range: std::ops::Range<Seq>,
    history: &History,
) -> Option<(Vec<(Seq, bool)>, Rows)> {
    let (mut of, mut texts) = (Vec::new(), Vec::new());
    for seq in range {
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
            let exact = |attnum| {
                if is_after { images.exact_after(attnum) } else { images.exact_before(attnum) }
            };
            let text = |attnum: &i16| match exact(*attnum) {
                Datum::Json(json) => images.text(*attnum, json),
                _ => None,
            };
            let key: Option<Vec<_>> = chunk.key.iter().map(text).collect();
            serde_json::to_writer(&mut texts, &key?).ok()?;
            of.push((seq, is_after));
        }
    }
    let texts = String::from_utf8(texts).ok()?;
    Some((of, Rows { texts, ..Rows::default() }))
}
