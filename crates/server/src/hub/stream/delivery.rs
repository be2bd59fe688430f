//! Delivering events and ephemeral messages to the groups that want them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tide_feed::event::{Batch, EventKind, Position};

use super::Stream;
use crate::filter::Place;
use crate::hub::encoder::{EncodeContext, EventRef, Missing};
use crate::hub::entitlement::Subject;
use crate::hub::failure::{self, refusal, wire_topic};
use crate::hub::group::GroupId;
use crate::hub::handle::{Ephemeral, SessionId};
use crate::hub::history::Seq;
use crate::hub::queue::Push;
use crate::hub::subscription::Style;
use crate::wire::Vsn;

impl Stream {
    pub(super) fn deliver(&mut self, batch: Batch) {
        let Some(live) = self.live else { return };
        let batch = Arc::new(batch);
        let first = self.history.push(Arc::clone(&batch), Instant::now());
        self.stats.events_total.add(batch.events.len() as u64);
        self.measure();
        for (index, event) in batch.events.iter().enumerate() {
            self.deliver_event(EventRef { batch: &batch, event, seq: first + index as Seq, live });
        }
        if let Some(event) = batch.events.last() {
            self.stats.position.set(event.position.commit.0);
        }
    }

    fn deliver_event(&mut self, event_ref: EventRef<'_>) {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.clear();
        match &event_ref.event.kind {
            EventKind::Change(change) => {
                let (batch, entitlements) = (event_ref.batch, &mut self.entitlements);
                self.registry.candidates(
                    batch,
                    change,
                    event_ref.seq,
                    entitlements,
                    &mut candidates,
                );
            }
            EventKind::Message(message) => {
                if let Some(why) = refusal(&message.channel) {
                    let at = event_ref.event.position.commit;
                    failure::refuse(message, why, at, &self.stats, &self.receipts);
                } else {
                    message.row.iter().for_each(|row| self.receipts.note(row));
                    candidates.extend(self.registry.of_topic(&wire_topic(&message.channel)));
                }
            }
            EventKind::Schema(change) => {
                candidates.extend(self.registry.of_topic("realtime:tide:schema"));
                for kind in ["schema", "records"] {
                    let topic = format!("realtime:tide:{kind}:{}", change.schema);
                    candidates.extend(self.registry.of_topic(&topic));
                }
            }
            EventKind::Failed(failed) => {
                self.stats.failed_events_total.inc();
                match &failed.unsaid {
                    Some(unsaid) => {
                        let at = event_ref.event.position.commit;
                        let (failures, sqlstate) = (self.receipts.failures(), &failed.sqlstate);
                        unsaid.row.iter().for_each(|row| failures.add(row, sqlstate, at));
                        candidates.extend(self.registry.of_topic(&wire_topic(&unsaid.channel)));
                    }
                    None => candidates.extend(self.registry.row_groups()),
                }
            }
        }
        self.bodies.clear();
        for id in &candidates {
            self.deliver_to_group(*id, event_ref);
        }
        self.candidates = candidates;
    }

    fn deliver_to_group(&mut self, id: GroupId, event_ref: EventRef<'_>) {
        let mut made = Some(Position::default());
        while let Some(after) = made {
            made = self.try_to_deliver(id, event_ref, after);
        }
    }

    /// `made`: what is after it, the bindings may not have known of when they were made. With which the
    /// event is to be tried again, for those who are left.
    fn try_to_deliver(
        &mut self,
        id: GroupId,
        event_ref: EventRef<'_>,
        made: Position,
    ) -> Option<Position> {
        let group = self.registry.group_mut(id)?;
        let payer = group.payer(event_ref.seq)?;
        let (payer, effort) = (payer.session, Rc::clone(&payer.effort));
        let only = group.key.only.and_then(|session| group.members.of_mut(session));
        let sync = only.and_then(|member| member.sync.as_deref_mut());
        self.frames.clear();
        let mut warning = None;
        let mut context = EncodeContext {
            entitlements: &mut self.entitlements,
            bodies: &mut self.bodies,
            frame_buf: &mut self.frame_buf,
            out: &mut self.frames,
            warning: &mut warning,
            sync,
            made,
            effort: &effort,
            place: Place::Stream,
        };
        match group.plans.frames(&group.key, event_ref, group.previous, &mut context) {
            Ok(()) => {}
            Err(Missing::Identity) => {
                self.split(id, event_ref);
                return None;
            }
            Err(Missing::Basis) if group.key.only.is_some() => {
                // Whatever its bindings know of: it begins anew.
                self.registry.interrupt(payer, id, event_ref.seq);
                return None;
            }
            Err(Missing::Basis) => {
                // From the end, where each is found at once.
                for session in group.outdated(event_ref.event).into_iter().rev() {
                    self.registry.interrupt(session, id, event_ref.seq);
                }
                // Those who joined as others did before, but later than this.
                return Some(event_ref.event.position);
            }
            Err(Missing::Row) => {
                self.put_off(id, event_ref);
                self.registry.want_rows(payer, id);
                return None;
            }
            Err(Missing::Effort) => {
                self.registry.relieve(payer, event_ref.row_bytes());
                // The others of the group, or those of its channels that are left.
                return Some(Position::default());
            }
            Err(Missing::Time) => {
                self.put_off(id, event_ref);
                return None;
            }
            Err(Missing::Answer { about }) => {
                self.hold(id, event_ref, about);
                return None;
            }
        }
        let (lagging, EventRef { event, seq, .. }) = (&mut self.lagging, event_ref);
        let mut lags = |session, pushed| {
            lagging.add(session);
            if pushed == Push::Starved {
                lagging.starve(session);
            }
        };
        if let Some(warning) = warning {
            group.warn(&warning, event, seq, &mut lags);
        }
        if !self.frames.is_empty() {
            group.give(&mut self.frames, event, seq, lags);
        }
        if let Some(member) = group.key.only.and_then(|session| group.members.of_mut(session))
            && member.lag.is_none()
        {
            member.settle_told();
        }
        None
    }

    /// Gives the event to the groups that a group is split into.
    fn split(&mut self, id: GroupId, event_ref: EventRef<'_>) {
        let split = self.registry.split_by_identity(id, Some(event_ref.seq));
        for id in split.made {
            self.deliver_to_group(id, event_ref);
        }
        for session in split.put_off {
            self.lagging.add(session);
            self.hold_all(session, event_ref);
        }
        // Who waited for an answer as a member of the former group goes on by itself.
        for session in split.members {
            self.lagging.wake(session);
        }
    }

    /// Has a group's members read on from the history, with all their channels, so that what they are
    /// told stays in order: their filters take longer than the stream can wait.
    fn put_off(&mut self, id: GroupId, event_ref: EventRef<'_>) {
        let Some(group) = self.registry.group_mut(id) else { return };
        let mut put_off = Vec::new();
        for member in group.members.iter_mut().filter(|member| member.lag.is_none()) {
            member.lag = Some(event_ref.seq);
            put_off.push(member.session);
        }
        for session in put_off {
            self.lagging.add(session);
            self.lagging.wake(session);
            self.hold_all(session, event_ref);
        }
    }

    /// Has a group wait for what decides about the event; it reads on from the history.
    fn hold(&mut self, id: GroupId, event_ref: EventRef<'_>, about: Subject) {
        let Some(group) = self.registry.group_mut(id) else { return };
        let role = group.key.role.clone();
        let mut held = Vec::new();
        for member in group.members.iter_mut() {
            if member.lag.is_none() && member.floor.admits(event_ref.event) {
                member.lag = Some(event_ref.seq);
                self.lagging.add(member.session);
                held.push(member.session);
            }
        }
        if held.is_empty() {
            return;
        }
        self.policy_checks.raise(id, event_ref.seq, about, &mut self.registry);
        if role.is_some_and(|role| self.entitlements.is_about_to_know(&role, about)) {
            held.iter().for_each(|session| self.hold_all(*session, event_ref));
        }
    }

    /// Has all channels of a connection read on from the history, each from where it is.
    fn hold_all(&mut self, session: SessionId, event_ref: EventRef<'_>) {
        let Some(entry) = self.registry.sessions.get(&session) else { return };
        let groups: Vec<GroupId> = entry.groups().collect();
        for id in groups {
            let Some(group) = self.registry.group_mut(id) else { continue };
            let has_had_it = group.previous == Some(event_ref.event.position);
            let next = event_ref.seq + Seq::from(has_had_it);
            if let Some(member) = group.members.of_mut(session).filter(|m| m.lag.is_none()) {
                member.lag = Some(next);
            }
        }
    }

    /// Gives an ephemeral message to everybody in its topic whose queue has room.
    pub(super) fn deliver_ephemeral(&mut self, message: &Ephemeral) {
        for id in self.registry.of_topic(&message.topic) {
            let Some(group) = self.registry.group(*id) else { continue };
            if group.key.style != message.to || group.key.private != message.private {
                continue;
            }
            let frame = match group.key.vsn {
                Vsn::V1 => &message.v1,
                Vsn::V2 => &message.v2,
            };
            for member in group.members.iter() {
                let is_missed = frame.is_empty() && message.to == Style::Presence;
                if message.except == Some(member.session) || frame.is_empty() && !is_missed {
                    continue;
                }
                if is_missed || member.queue.offer(frame) == Push::Full {
                    self.stats.dropped_casts_total.inc();
                    if message.to == Style::Presence {
                        member.queue.miss_presence();
                    }
                }
            }
        }
    }
}
