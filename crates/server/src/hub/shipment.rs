//! Rows on their way to an executor, which is to say whether policies admit them.

use tide_feed::event::{EventKind, Operation};

use super::entitlement::Entitlement;
use super::history::{History, Seq};
use crate::policy::{Images, Sight};

/// Bytes of the images in one question, at most.
const BYTES: usize = 1 << 20;
/// Bytes of an image that can be asked about at all; larger ones count as not known.
const LARGEST: usize = 16 << 20;
/// Events looked at for one question.
const REACH: Seq = 65_536;

/// The rows of one event, by their places in the question.
pub(super) struct Asked {
    pub(super) seq: Seq,
    pub(super) before: Option<usize>,
    pub(super) after: Option<usize>,
    /// What is known without asking.
    pub(super) sight: Sight,
}

/// Rows on their way to an executor.
#[derive(Default)]
pub(super) struct Shipment {
    pub(super) asked: Vec<Asked>,
    pub(super) count: usize,
    pub(super) rows: Vec<u8>,
}

impl Shipment {
    /// Loads images of the table's rows from the event `from` on.
    pub(super) fn load(
        &mut self,
        table: u32,
        from: Seq,
        limit: usize,
        history: &History,
        entitlement: &Entitlement,
    ) {
        let attnums = entitlement.attnums();
        for seq in from..history.head().min(from.saturating_add(REACH)) {
            if self.count >= limit || self.rows.len() >= BYTES {
                break;
            }
            let Some((batch, index)) = history.at(seq) else { continue };
            let Some(event) = batch.events.get(index) else { continue };
            let EventKind::Change(change) = &event.kind else { continue };
            if change.relation.oid != table || change.operation == Operation::Truncate {
                continue;
            }
            let images = Images::of(batch, change);
            let (before, after) = entitlement.rule().decidable(&images, &attnums);
            if before || after {
                let before = before
                    .then(|| self.add(|out| entitlement.write_row(out, |a| images.before(a))))
                    .flatten();
                let after = after
                    .then(|| self.add(|out| entitlement.write_row(out, |a| images.after(a))))
                    .flatten();
                self.asked.push(Asked { seq, before, after, sight: Sight::unknown(&images) });
            }
        }
    }

    /// Adds an image; gives its place, unless it is too large to be sent.
    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Option<usize> {
        let start = self.rows.len();
        self.rows.push(if start == 0 { b'[' } else { b',' });
        write(&mut self.rows);
        if self.rows.len() - start > LARGEST {
            self.rows.truncate(start);
            return None;
        }
        self.count += 1;
        Some(self.count - 1)
    }
}
