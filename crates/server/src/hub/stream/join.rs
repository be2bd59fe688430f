//! Joining: where in the stream a channel begins.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tide_feed::event::{Change, Cursor, EventKind, Operation, Position};
use tide_feed::snapshot::SnapshotToken;

use super::Stream;
use crate::allowance::Share;
use crate::catalog::{Asker, Moment};
use crate::filter::{Effort, Place};
use crate::hub::encoder::{EncodeContext, EventRef, Missing};
use crate::hub::entitlement::Subject;
use crate::hub::group::{Floor, GroupKey, Latest, Unseen};
use crate::hub::handle::SessionId;
use crate::hub::history::Seq;
use crate::hub::plan::Plans;
use crate::hub::registry::{self, Membership};
use crate::hub::snapshot_place::SnapshotPlace;
use crate::hub::subscription::{Facet, Identity, Since, Style, Subscription};
use crate::hub::sync::{SnapshotPlan, Sync};
use crate::hub::told::Told;
use crate::policy::Way;
use crate::wire::encode::{self, Resync, resync};

/// Events that are looked at for the newest that are for a channel while the stream waits.
const LOOKED_AT: Seq = 4096;

/// Bytes of frames that are made to find them.
const MADE: usize = 256 << 10;

/// Where a channel begins.
struct Beginning {
    memberships: Vec<Membership>,
    /// What is after it, the channel is given.
    position: Position,
    /// Why it does not begin where the client wanted it to.
    gap: Option<&'static str>,
}

impl Stream {
    pub(super) fn join(&mut self, session: SessionId, subscription: Subscription) {
        let Some(entry) = self.registry.sessions.get(&session) else { return };
        let queue = Arc::clone(&entry.queue);
        // May have to ask the catalog worker: before the client hears that it has joined, and goes
        // on.
        let effort = Rc::clone(&entry.effort);
        let interrupted = self.registry.interrupted(session, &subscription.topic);
        let beginning = match (&subscription.since, interrupted) {
            (_, interrupted) if let Some(plan) = &subscription.snapshot => {
                let is_anew = interrupted.is_some();
                self.beginning_with_rows(session, &subscription, plan, is_anew)
            }
            (Since::Now(asked) | Since::Last(_, asked), Some(places)) => {
                self.going_on(&subscription, &places, asked)
            }
            _ => self.beginning(&subscription, &effort),
        };
        let Beginning { mut memberships, position, gap } = beginning;
        let epoch = self.live.map(|live| live.epoch).unwrap_or_default();
        // Notifications have none.
        let is_kept = subscription.facets.iter().all(|facet| facet.style != Style::Notify);
        queue.reply(subscription.reply.at(is_kept.then_some(Cursor { epoch, position })));
        for frame in &subscription.greeting {
            queue.reply(frame.clone());
        }
        if let Some(reason) = gap {
            queue.reply(self.resync_frame(&subscription, reason));
        }
        let lags = memberships.iter().any(|membership| membership.lag.is_some());
        let replays = gap.is_some() || !matches!(subscription.since, Since::Now(_));
        if replays && !lags {
            let position = Cursor { epoch, position: self.history.reached().max(position) };
            queue.reply(encode::caught_up(subscription.vsn, &subscription.topic, position));
        }
        let made = Position::before(subscription.since.asked().end);
        for membership in &mut memberships {
            (membership.made, membership.replays) = (made, replays && lags);
            membership.has_gap = gap.is_some();
        }
        self.registry.join(session, &subscription.topic, subscription.identity, memberships);
        self.prefetch(session, &subscription.topic);
        if lags {
            self.lagging.add(session);
            self.lagging.wake(session);
        }
    }

    fn beginning(&mut self, subscription: &Subscription, effort: &Effort) -> Beginning {
        let facets = subscription.facets.iter();
        let keys: Vec<GroupKey> = facets.map(|facet| self.key(subscription, facet)).collect();
        let at = |floor: Floor, lag: Option<Seq>| {
            keys.iter().map(|key| Membership::new(key.clone(), floor.clone(), lag)).collect()
        };
        let position = self.history.reached();
        match &subscription.since {
            Since::Now(asked) => {
                let (floor, lag) = self.now(asked);
                let position = lag.map_or(position, |first| self.history.before(first));
                Beginning { memberships: at(floor, lag), position, gap: None }
            }
            Since::Cursor(cursor, asked) => {
                let resumed = self.resume(*cursor, asked);
                self.beginning_at(resumed.map(|lag| (Floor::at(cursor.position), lag)), at)
            }
            Since::Unseen(token, asked) => {
                let resumed = self.resume_unseen(token, asked);
                self.beginning_at(resumed, at)
            }
            Since::Last(count, _) => {
                let identity = &subscription.identity;
                effort.begin_turn();
                let newest = |key| self.newest(key, *count, identity, effort);
                let memberships: Vec<Membership> = keys.into_iter().map(newest).collect();
                let first = memberships.iter().filter_map(|membership| membership.lag).min();
                let position = first.map_or(position, |first| self.history.before(first));
                Beginning { memberships, position, gap: None }
            }
        }
    }

    /// A channel begins with the rows that there are: it stands where it joins until it has the first of
    /// them. One that was interrupted begins anew, whatever its client has.
    fn beginning_with_rows(
        &mut self,
        session: SessionId,
        subscription: &Subscription,
        plan: &Arc<SnapshotPlan>,
        is_anew: bool,
    ) -> Beginning {
        let mut position = self.history.reached();
        let mut memberships = Vec::new();
        for facet in &subscription.facets {
            let mut key = self.key(subscription, facet);
            key.only = Some(session);
            let rules = self.entitlements.rules(&key, self.history.head());
            let sees_all = rules.iter().all(|(_, rule)| rule.way == Way::Constant(true));
            // The stream alone says all that there is to say; unless it turns out that policies do.
            let sees_all = sees_all && !key.has_filters();
            self.is_sight_unsure |= rules.is_empty();
            let Identity { role, claims } = &*subscription.identity;
            let asker = Asker { role: Arc::clone(role), claims: Arc::clone(claims) };
            let told = (!sees_all).then(|| Told::new(&self.channels));
            let sync = Sync::new(Arc::clone(plan), asker, rules, &self.channels, told);
            let goes_on = (sees_all && !is_anew).then(|| self.place(subscription, plan)).flatten();
            let (floor, lag, sync) = match goes_on {
                Some((at, lag, Some(place))) => {
                    position = at;
                    // It stands there, whether or not anything has happened since.
                    (Floor::at(at), lag.or(Some(self.history.head())), sync.resumed(&place))
                }
                Some((at, lag, None)) => {
                    position = at;
                    (Floor::at(at), lag, sync.live())
                }
                None => (Floor::default(), Some(self.history.head()), sync),
            };
            let membership = Membership::new(key, floor, lag);
            memberships.push(Membership { sync: Some(Box::new(sync)), ..membership });
        }
        Beginning { memberships, position, gap: None }
    }

    /// Where to go on among the rows that there were, or after them; `None`: that cannot be.
    fn place(
        &self,
        subscription: &Subscription,
        plan: &SnapshotPlan,
    ) -> Option<(Position, Option<Seq>, Option<SnapshotPlace>)> {
        let asked = subscription.since.asked();
        let since = match &subscription.since {
            Since::Cursor(cursor, _) => Some(*cursor),
            Since::Now(_) | Since::Unseen(..) | Since::Last(..) => None,
        };
        // What a client has that says no more than since, only it knows.
        let place = self.seal.as_ref()?.open(plan.place.as_deref()?)?;
        let place = Some(place).filter(|p| p.is_of(plan, &subscription.identity.role))?;
        // It may have had events after that.
        let page = place.position()?;
        if self.live?.epoch != page.epoch {
            return None;
        }
        let since = since.filter(|since| since.epoch == page.epoch);
        let at = since.into_iter().chain([page]).max_by_key(|cursor| cursor.position)?;
        let lag = self.resume(at, asked).ok()?;
        // Past that it would begin anew, each time.
        let is_emptied = lag.is_some_and(|lag| self.is_emptied_after(lag, plan.table));
        (!is_emptied).then_some((at.position, lag, Some(place).filter(|place| !place.is_complete)))
    }

    /// Whether the table is emptied by something that comes from there on.
    fn is_emptied_after(&self, from: Seq, table: u32) -> bool {
        (from..self.history.head()).any(|seq| {
            let event = self.history.at(seq).and_then(|(batch, index)| batch.events.get(index));
            event.is_some_and(|event| match &event.kind {
                EventKind::Change(Change { operation: Operation::Truncate, relation, .. }) => {
                    relation.oid == table
                }
                _ => false,
            })
        })
    }

    /// A channel that was interrupted is given what it has not had yet.
    fn going_on(
        &mut self,
        subscription: &Subscription,
        places: &[registry::Place],
        asked: &Moment,
    ) -> Beginning {
        let first = places.iter().map(|place| place.next).min();
        let is_kept = first.is_some_and(|first| first >= self.history.start());
        let mut memberships = Vec::new();
        for facet in &subscription.facets {
            let key = self.key(subscription, facet);
            let (floor, lag) = match places.iter().find(|place| place.style == facet.style) {
                Some(place) if is_kept => {
                    let lag = (place.next < self.history.head()).then_some(place.next);
                    (place.floor.clone(), lag)
                }
                Some(_) => {
                    let (position, lag) = self.oldest();
                    (Floor::at(position), lag)
                }
                None => self.now(asked),
            };
            memberships.push(Membership::new(key, floor, lag));
        }
        let lag = memberships.iter().filter_map(|membership| membership.lag).min();
        let position = lag.map_or(self.history.reached(), |first| self.history.before(first));
        Beginning { memberships, position, gap: (!is_kept).then_some("trimmed") }
    }

    /// Where to begin with what could not be seen at that moment: with all of a transaction that is being
    /// fed, or none of it.
    fn now(&self, asked: &Moment) -> (Floor, Option<Seq>) {
        let floor = after(asked);
        let first = self.history.unfinished().map(|before| self.history.after(before));
        let first = first.filter(|first| {
            let event = self.history.at(*first).and_then(|(batch, index)| batch.events.get(index));
            event.is_some_and(|event| floor.admits(event))
        });
        (floor, first)
    }

    /// Where to begin with everything that is kept, of whole transactions.
    fn oldest(&self) -> (Position, Option<Seq>) {
        let before = self.history.first_whole();
        let first = self.history.after(before);
        (before, (first < self.history.head()).then_some(first))
    }

    /// Where the channel begins that was to go on from there; else with the oldest that is kept.
    fn beginning_at(
        &self,
        resumed: Result<(Floor, Option<Seq>), &'static str>,
        memberships: impl Fn(Floor, Option<Seq>) -> Vec<Membership>,
    ) -> Beginning {
        let (floor, lag, gap) = match resumed {
            Ok((floor, lag)) => (floor, lag, None),
            Err(reason) => {
                let (position, lag) = self.oldest();
                (Floor::at(position), lag, Some(reason))
            }
        };
        Beginning { position: floor.position, memberships: memberships(floor, lag), gap }
    }

    /// Where to begin with what a query could not see, or why that is not possible.
    fn resume_unseen(
        &self,
        SnapshotToken { cursor, snapshot }: &SnapshotToken,
        asked: &Moment,
    ) -> Result<(Floor, Option<Seq>), &'static str> {
        self.resume(*cursor, asked)?;
        if !self.history.has_unseen(snapshot) {
            return Err("trimmed");
        }
        let unseen = Unseen::By(Arc::new(snapshot.clone()));
        let first = self.history.start();
        let lag = (first < self.history.head()).then_some(first);
        Ok((Floor { position: cursor.position, unseen }, lag))
    }

    /// Where to go on after an event the client has seen, or why that is not possible.
    fn resume(&self, cursor: Cursor, asked: &Moment) -> Result<Option<Seq>, &'static str> {
        let Some(live) = self.live else { return Err(self.cause) };
        let Cursor { epoch, position } = cursor;
        let start =
            if epoch.generation != live.epoch.generation || epoch.timeline > live.epoch.timeline {
                Err(self.cause)
            } else if position < self.history.floor() {
                Err("trimmed")
            } else if position.commit >= asked.end {
                Err("future")
            } else if !self.history.may_have(position) {
                Err("unknown")
            } else {
                let seq = self.history.after(position);
                Ok((seq < self.history.head()).then_some(seq))
            };
        let counter =
            if start.is_ok() { &self.stats.resumes_total } else { &self.stats.resyncs_total };
        counter.inc();
        start
    }

    fn resync_frame(&self, subscription: &Subscription, reason: &str) -> Bytes {
        let epoch = self.live.map(|live| live.epoch).unwrap_or_default();
        let cursor = |position| Cursor { epoch, position };
        let resync_of = Resync {
            reason,
            oldest: self.history.newest().map(|_| cursor(self.history.floor())),
            newest: self.history.newest().map(cursor),
        };
        resync(subscription.vsn, None, &subscription.topic, resync_of)
    }

    /// Where to begin so that the newest `count` events of the group are given.
    fn newest(
        &mut self,
        mut key: GroupKey,
        count: u32,
        identity: &Arc<Identity>,
        effort: &Effort,
    ) -> Membership {
        let now = self.history.reached();
        let Some(live) = self.live else { return Membership::new(key, Floor::at(now), None) };
        let mut plans = Plans::default();
        let (mut found, mut made) = (0, 0);
        let mut start = None;
        for (seq, batch, event) in self.history.newest_first() {
            if found >= count {
                break;
            }
            self.bodies.clear();
            self.frames.clear();
            let event_ref = EventRef { batch, event, seq, live };
            let mut warning = None;
            let mut context = EncodeContext {
                entitlements: &mut self.entitlements,
                bodies: &mut self.bodies,
                frame_buf: &mut self.frame_buf,
                out: &mut self.frames,
                warning: &mut warning,
                sync: None,
                made: now,
                effort,
                place: Place::Turn,
            };
            let looked_at = self.history.head() - seq;
            let found_out = match plans.frames(&key, event_ref, None, &mut context) {
                Ok(()) if looked_at > LOOKED_AT || made > MADE => Err(Missing::Time),
                outcome => outcome,
            };
            // How many of the events are for it is only known once the policies were asked, or once
            // there was more time.
            if let Err(missing) = found_out {
                if missing == Missing::Identity {
                    key.identity = Some(Arc::clone(identity));
                }
                effort.forgive(event_ref.row_bytes());
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                let latest = Latest::new(count, self.history.head(), Share::of(&self.channels));
                let start = Some(self.history.start());
                let membership = Membership::new(key, Floor::default(), start);
                return Membership { latest: Some(Box::new(latest)), ..membership };
            }
            made += self.frames.iter().map(Bytes::len).sum::<usize>();
            found += u32::from(!self.frames.is_empty());
            // What there is to be told instead of an event, it is told when it comes to it.
            if !self.frames.is_empty() || warning.is_some() {
                start = Some(seq);
            }
        }
        let floor = if start.is_some() { Position::default() } else { now };
        Membership::new(key, Floor::at(floor), start)
    }

    /// Where the policies of the tables it names tell clients apart, a group is one identity's.
    pub(super) fn key(&mut self, subscription: &Subscription, facet: &Facet) -> GroupKey {
        let key = GroupKey::of(subscription, facet);
        let rules = self.entitlements.rules(&key, self.history.head());
        let is_personal = rules.iter().any(|(_, rule)| rule.is_personal());
        GroupKey { identity: is_personal.then(|| Arc::clone(&subscription.identity)), ..key }
    }

    /// Has it found out what the channel's claims are worth, so that its first event need not wait.
    pub(super) fn prefetch(&mut self, session: SessionId, topic: &str) {
        let Some(entry) = self.registry.sessions.get(&session) else { return };
        let groups = entry.channels.get(topic).map(|channel| channel.groups.clone());
        for id in groups.unwrap_or_default() {
            let Some(key) = self.registry.group(id).map(|group| group.key.clone()) else {
                continue;
            };
            for (table, rule) in self.entitlements.rules(&key, self.history.head()) {
                let Some(group) = self.registry.group(id) else { continue };
                let is_known = group.plans.policy.values(&rule).is_some();
                if rule.way == Way::Formula && key.identity.is_some() && !is_known {
                    let about = Subject::Rows(table);
                    self.policy_checks.raise(id, self.history.head(), about, &mut self.registry);
                }
            }
        }
    }
}

/// What could be seen when the channel was asked for is not for it, also if it is fed later.
fn after(asked: &Moment) -> Floor {
    Floor {
        position: Position::before(asked.end),
        unseen: Unseen::Running(Arc::clone(&asked.running)),
    }
}
