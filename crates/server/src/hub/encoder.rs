//! What encoding an event for a group takes: the event in its place, what is needed beside it, and
//! what may be missing.

use bytes::Bytes;
use tide_feed::event::{Batch, Cursor, Event, EventKind, Position};

use super::body_cache::BodyCache;
use super::entitlement::{Entitlements, Subject};
use super::handle::Live;
use super::history::Seq;
use super::sync::Sync;
use super::warning::Warning;
use crate::filter::{Effort, Place};
use crate::policy::Images;
use crate::wire::frame_buf::FrameBuf;

/// An event, with the batch that has its rows, its place in the history and the stream it is of.
#[derive(Clone, Copy)]
pub(super) struct EventRef<'a> {
    pub(super) batch: &'a Batch,
    pub(super) event: &'a Event,
    pub(super) seq: Seq,
    pub(super) live: Live,
}

/// What is missing to say what an event is to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Its members see different rows: it has to be split by identity.
    Identity,
    /// An answer about this: what the role may see of it, or what its policies say.
    Answer { about: Subject },
    /// Bindings that are made of what the table is now.
    Basis,
    /// The rest of a row that comes into a synced channel's sight: it is to be read.
    Row,
    /// What the filters are to be paid with: they make too much work.
    Effort,
    /// Time: the filters are to be evaluated beside the stream, or in the next turn.
    Time,
}

impl EventRef<'_> {
    /// Bytes of the row that it is about.
    pub(super) fn row_bytes(&self) -> usize {
        match &self.event.kind {
            EventKind::Change(change) => Images::of(self.batch, change).bytes(),
            _ => 0,
        }
    }

    pub(super) fn cursor(&self, position: Position) -> Cursor {
        Cursor { epoch: self.live.epoch, position }
    }
}

/// What encoding an event for a group needs, and where the frames go: the same for all groups.
pub(super) struct EncodeContext<'a> {
    pub(super) entitlements: &'a mut Entitlements,
    pub(super) bodies: &'a mut BodyCache,
    pub(super) frame_buf: &'a mut FrameBuf,
    pub(super) out: &'a mut Vec<Bytes>,
    /// What is to be told before them, to those who have not been told yet.
    pub(super) warning: &'a mut Option<Warning>,
    /// Of a channel that is kept equal to what its client would select.
    pub(super) sync: Option<&'a mut Sync>,
    /// What is after it, the bindings may not have known of when they were made.
    pub(super) made: Position,
    /// Whose filters are evaluated, and where.
    pub(super) effort: &'a Effort,
    pub(super) place: Place,
}
