//! Asking for the rows that there are, and joining them to the stream.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tide_feed::catalog::{Chunk, OUTDATED, QUERY_CANCELED};
use tide_feed::event::{Cursor, Lsn, Operation, Position};
use tokio::sync::mpsc;

use super::Stream;
use super::placing::{self, Asked};
use crate::catalog::{Catalog, CatalogError};
use crate::hub::group::{GroupId, GroupKey, Member};
use crate::hub::handle::SessionId;
use crate::hub::queue::Push;
use crate::hub::snapshot_place::Seal;
use crate::hub::sync::{Phase, Question, ReadRow, Sync};
use crate::wire::encode;

/// Chunks that are asked for or held at a time; the others wait for theirs.
const AT_A_TIME: usize = 8;
/// Before a question is asked again that could not be answered for a moment: at first, and at the longest.
const RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// How often a question is put to a reader that ended over it.
const TRIES: u32 = 3;
/// For how long a chunk is held for a client that does not read: then it is read again, once it does.
const HELD: Duration = Duration::from_secs(1);
/// Bytes that a chunk takes up, about, before it is known.
const CHUNK: usize = 2 << 20;

/// The channels that have not been told of all rows that there were when they joined.
pub(super) struct Syncs {
    channels: HashMap<(SessionId, GroupId), Waiting>,
    catalog: Catalog,
    sender: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
}

/// A channel that is not told all yet.
#[derive(Clone, Copy)]
struct Waiting {
    /// When it was asked for last, or began to wait.
    since: Instant,
    /// When to look at it again.
    due: Instant,
    /// Since when there is a chunk that its client does not take.
    held: Option<Instant>,
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

/// How far a channel has got.
enum Step {
    /// It is to be looked at again.
    Waits,
    /// At once.
    Moved,
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
        let now = Instant::now();
        self.channels.insert((session, group), Waiting { since: now, due: now, held: None });
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
        let mut channels: Vec<_> = self.syncs.channels.iter().map(|(key, w)| (*key, *w)).collect();
        // Who has waited longest comes first, and who has a chunk already, in another channel, last.
        let mut busy: HashMap<SessionId, usize> = HashMap::new();
        for ((session, id), _) in &channels {
            let member = self.registry.group(*id).and_then(|group| group.members.of(*session));
            let sync = member.and_then(|member| member.sync.as_deref());
            *busy.entry(*session).or_default() += usize::from(sync.is_some_and(Sync::has_chunk));
        }
        let mut free = AT_A_TIME.saturating_sub(busy.values().sum());
        channels.sort_by_key(|((session, _), waiting)| (busy.get(session).copied(), waiting.since));
        for ((session, id), Waiting { due, .. }) in channels {
            if due > now {
                continue;
            }
            let mut step = Step::Moved;
            while let Step::Moved = step {
                step = self.advance_sync(session, id, &mut free);
            }
            match step {
                Step::Waits | Step::Moved => continue,
                Step::Done => {}
                Step::Anew => {
                    log::info!("a snapshot begins anew for connection {session}");
                    self.registry.interrupt(session, id, self.history.head());
                }
                Step::Refused(reason) => self.registry.end_sync(session, id, &reason),
            }
            self.syncs.channels.remove(&(session, id));
        }
        self.stats.snapshots.set(self.syncs.channels.len() as u64);
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
            // For who reads, if there is memory for it; of rows by themselves, any number.
            Phase::Idle
                if *free == 0 && sync.fetched().is_none()
                    || !member.queue.has_room()
                    || !sync.held.resize(CHUNK) =>
            {
                let waiting = self.syncs.channels.get_mut(&(session, id));
                waiting.into_iter().for_each(|waiting| waiting.due = Instant::now() + RETRY);
            }
            Phase::Idle => {
                *free = free.saturating_sub(sync.fetched().is_none().into());
                sync.phase = Phase::Asked;
                self.syncs.add(session, id);
                let (catalog, sender) = (self.syncs.catalog.clone(), self.syncs.sender.clone());
                let (asker, request) = (sync.asker.clone(), sync.request());
                let question = tokio::spawn(async move {
                    let said = Said::Chunk(catalog.chunk(&asker, request).await);
                    let _ = sender.send(Answer { session, group: id, said });
                });
                sync.question = Some(Question(question.abort_handle()));
            }
            Phase::Read(chunk) if self.history.decoded() < Lsn(chunk.lsn) => {
                sync.phase = Phase::Read(chunk);
            }
            Phase::Read(chunk) if sync.has_another_key(&chunk) => return Step::Anew,
            // It is larger than most: there has to be memory for it.
            Phase::Read(chunk) if !sync.held.resize(size(&chunk)) && sync.is_untold() => {
                drop(chunk);
                self.retry(session, id);
            }
            Phase::Read(chunk) if sync.is_past_telling(&chunk) => {
                let reason = "the table has no key, and has policies: give it a primary key";
                return Step::Refused(reason.into());
            }
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
                let Some((asked, rows)) = placing::keys(&chunk, sync, next..until, &self.history)
                else {
                    return Step::Anew;
                };
                let borders = sync.borders(&chunk);
                let is_known = asked.keys.is_empty() || !sync.has_borders();
                let (asker, table) = (sync.asker.clone(), sync.plan.table);
                let about = (table, chunk.key.clone());
                sync.phase = Phase::Placing(chunk);
                if is_known {
                    let places = vec![0; asked.keys.len()];
                    let said = Said::Places(asked, Ok(places));
                    self.settle_sync(Answer { session, group: id, said });
                    return Step::Moved;
                } else {
                    let (catalog, sender) = (self.syncs.catalog.clone(), self.syncs.sender.clone());
                    let question = tokio::spawn(async move {
                        let places = placing::ask(&catalog, &asker, about, rows, &borders).await;
                        let said = Said::Places(asked, places);
                        let _ = sender.send(Answer { session, group: id, said });
                    });
                    sync.question = Some(Question(question.abort_handle()));
                }
            }
            Phase::Placed(chunk, joining) => {
                let told = match self.live {
                    Some(live) => {
                        let position = self.history.before(next);
                        let at = Cursor { epoch: live.epoch, position };
                        member.tell_rows(&group.key, &chunk, at, self.seal.as_ref())
                    }
                    None => Push::Starved,
                };
                let Some(sync) = &mut member.sync else { return Step::Done };
                match told {
                    Push::Queued => {
                        self.stats.snapshot_rows_total.add(chunk.count);
                        sync.tell(*chunk, joining);
                        self.lagging.add(session);
                        self.lagging.wake(session);
                        return Step::Moved;
                    }
                    Push::Full | Push::Starved => {
                        let waiting = self.syncs.channels.get_mut(&(session, id));
                        let is_held_long = waiting.is_some_and(|waiting| {
                            waiting.due = Instant::now() + RETRY;
                            waiting.held.get_or_insert_with(Instant::now).elapsed() > HELD
                        });
                        // One that its client had before cannot be read again.
                        if is_held_long && sync.is_untold() && sync.fetched().is_none() {
                            sync.give_up();
                        } else {
                            sync.phase = Phase::Placed(chunk, joining);
                        }
                    }
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
                    let place = sync.complete_place(cursor);
                    let resume = place.and_then(|place| self.seal.as_ref()?.seal(&place));
                    let resume = resume.as_deref();
                    member.queue.reply(encode::up_to_date(
                        group.key.listener(),
                        sync.rows,
                        cursor,
                        resume,
                    ));
                }
                self.lagging.add(session);
                self.lagging.wake(session);
                return Step::Done;
            }
            // The next chunk is to be asked for.
            Phase::Joining(_) => return Step::Moved,
            Phase::Live => {
                sync.phase = Phase::Live;
                return Step::Done;
            }
            waiting @ (Phase::Asked | Phase::Placing(_)) => sync.phase = waiting,
        }
        Step::Waits
    }

    /// Once the catalogue has changed, synced channels whose policies are others now begin anew, whether or not
    /// anything happens in their tables.
    pub(super) fn check_sights(&mut self) {
        if !std::mem::take(&mut self.is_sight_unsure) {
            return;
        }
        for (session, id) in self.registry.synced() {
            let Some(group) = self.registry.group_mut(id) else { continue };
            let rules = self.entitlements.rules(&group.key, self.history.head());
            // It is being asked.
            self.is_sight_unsure |= rules.is_empty();
            let member = group.members.of_mut(session);
            let sync = member.and_then(|member| member.sync.as_mut());
            if sync.is_some_and(|sync| !sync.sees_by(rules)) {
                self.registry.interrupt(session, id, self.history.head());
            }
        }
    }

    /// Looks at it again in a moment, and later each time.
    fn retry(&mut self, session: SessionId, id: GroupId) {
        let member = self.registry.group_mut(id).and_then(|group| group.members.of_mut(session));
        let sync = member.and_then(|member| member.sync.as_mut());
        let failures = sync.map_or(0, |sync| {
            sync.failures = sync.failures.saturating_add(1);
            sync.failures
        });
        let wait = RETRY.saturating_mul(1 << failures.min(8)).min(LONGEST_RETRY);
        let waiting = self.syncs.channels.get_mut(&(session, id));
        waiting.into_iter().for_each(|waiting| waiting.due = Instant::now() + wait);
    }

    /// Takes in what was said.
    pub(super) fn settle_sync(&mut self, Answer { session, group: id, said }: Answer) {
        let Some(group) = self.registry.group_mut(id) else { return };
        let Some(Member { sync: Some(sync), .. }) = group.members.of_mut(session) else { return };
        sync.question = None;
        let error = match (said, std::mem::replace(&mut sync.phase, Phase::Idle)) {
            (Said::Chunk(Ok(chunk)), Phase::Asked) => {
                sync.failures = 0;
                sync.phase = Phase::Read(Box::new(chunk));
                return;
            }
            (Said::Places(asked, Ok(places)), Phase::Placing(chunk))
                if places.len() == asked.keys.len() =>
            {
                sync.failures = 0;
                let keys = placing::placed(&asked.keys, &places);
                let joining = sync.joining(&chunk, asked.until, &keys);
                sync.phase = Phase::Placed(chunk, joining);
                return;
            }
            (Said::Chunk(Err(error)), Phase::Asked) => error,
            // The chunk is still good, and may be one that cannot be had again.
            (Said::Places(_, said), Phase::Placing(chunk)) => {
                sync.phase = Phase::Read(chunk);
                said.err().unwrap_or(CatalogError::Unavailable)
            }
            // What it had asked for before it began anew.
            (_, phase) => {
                sync.phase = phase;
                return;
            }
        };
        let has_ended = matches!(error, CatalogError::Ended) && sync.failures < TRIES;
        // A bug, of somebody's, that does not go away.
        let is_bug = matches!(&error, CatalogError::Refused { sqlstate, .. } if sqlstate == "XX000")
            && sync.failures >= TRIES;
        if (error.is_transient() || has_ended) && !is_bug {
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
            CatalogError::Refused { sqlstate, .. } if sqlstate == QUERY_CANCELED => {
                "it takes too long: an index for the filter, or a plainer policy, would help".into()
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

/// Bytes that a chunk takes up.
fn size(chunk: &Chunk) -> usize {
    CHUNK.max(2 * (chunk.rows.get().len() + chunk.keys.get().len()))
}

impl Member {
    /// Tells the client of the rows of a chunk, standing before this position.
    fn tell_rows(
        &mut self,
        key: &GroupKey,
        chunk: &Chunk,
        at: Cursor,
        seal: Option<&Seal>,
    ) -> Push {
        let Some(sync) = &self.sync else { return Push::Queued };
        let (schema, table) = &sync.plan.name;
        let (to, table) = (key.listener(), (&**schema, &**table));
        self.queue.resume();
        if sync.fetched().is_some() {
            let rows: Vec<&RawValue> = serde_json::from_str(chunk.rows.get()).unwrap_or_default();
            let (ReadRow::Is(operation), old) = sync.read_row(!rows.is_empty()) else {
                // What it could go on from is not all that it knows: that nothing is there.
                let page =
                    encode::SnapshotPage { table, rows: "[]", is_fresh: false, resume: None };
                return match sync.is_up_to_date {
                    true => Push::Queued,
                    false => self.queue.push(&[encode::snapshot(to, page)]),
                };
            };
            if !key.bindings.iter().any(|binding| binding.operations.contains(operation)) {
                return Push::Queued;
            }
            let row = rows.first().map_or("null", |row| row.get());
            let old = if operation == Operation::Insert { "null" } else { old };
            return self.queue.push(&[encode::read_row(to, table, operation, (row, old))]);
        }
        if !sync.is_untold() {
            return Push::Queued;
        }
        let resume = sync.place(chunk, at).and_then(|place| seal?.seal(&place));
        let page = encode::SnapshotPage {
            table,
            rows: chunk.rows.get(),
            is_fresh: sync.is_fresh(),
            resume: resume.as_deref(),
        };
        self.queue.push(&[encode::snapshot(to, page)])
    }
}
