//! Rows on their way to an executor, which is to say whether policies admit them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tide_feed::catalog::Rows;
use tide_feed::event::{Column, EventKind, Operation, Relation};

use super::entitlement::Entitlement;
use super::history::{History, Seq};
use crate::policy::{Images, Sight};

/// Images of rows in one question, at most, and their bytes.
pub(super) const ROWS: usize = 1024;
const BYTES: usize = 1 << 20;
/// Bytes of an image that can be asked about at all; larger ones count as not known.
const LARGEST: usize = 16 << 20;
/// Events looked at for one question.
const REACH: Seq = 65_536;

/// The rows of one event, by their places in the question.
pub(super) struct AskedEvent {
    pub(super) seq: Seq,
    pub(super) before: Option<usize>,
    pub(super) after: Option<usize>,
    /// What is known without asking.
    pub(super) sight: Sight,
}

#[derive(Default)]
pub(super) struct RowBatch {
    pub(super) asked: Vec<AskedEvent>,
    pub(super) count: usize,
    /// The columns that are asked about, and what their types were made of.
    columns: Vec<i16>,
    forms: Vec<u64>,
    rows: Vec<u8>,
    /// Labels of enums that are in the rows, by their oids.
    labels: BTreeMap<u32, Box<str>>,
}

impl RowBatch {
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
        self.columns = entitlement.policy_columns();
        let mut first: Option<&Arc<Relation>> = None;
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
            let relation = &change.relation;
            // Where a label or a type is another from here on, the same text may mean two things.
            if !is_read_alike(first.get_or_insert(relation), relation) {
                break;
            }
            if self.asked.is_empty() {
                self.forms = self.columns.iter().map(|attnum| form(relation, *attnum)).collect();
            }
            self.add_change(seq, &Images::of(batch, change), entitlement, &attnums);
        }
    }

    fn add_change(
        &mut self,
        seq: Seq,
        images: &Images<'_>,
        entitlement: &Entitlement,
        attnums: &[i16],
    ) {
        let (before, after) = entitlement.rule().decidable(images, attnums);
        if !before && !after {
            return;
        }
        let before = before
            .then(|| {
                self.add(|columns, out, labels| {
                    entitlement.write_row(columns, out, labels, images, |a| images.exact_before(a))
                })
            })
            .flatten();
        let after = after
            .then(|| {
                self.add(|columns, out, labels| {
                    entitlement.write_row(columns, out, labels, images, |a| images.exact_after(a))
                })
            })
            .flatten();
        self.asked.push(AskedEvent { seq, before, after, sight: Sight::unknown(images) });
    }

    /// Adds an image; gives its place, unless it cannot be written, or is too large to be sent.
    fn add(
        &mut self,
        write: impl FnOnce(&[i16], &mut Vec<u8>, &mut BTreeMap<u32, Box<str>>) -> bool,
    ) -> Option<usize> {
        let start = self.rows.len();
        let is_written = write(&self.columns, &mut self.rows, &mut self.labels);
        if !is_written || self.rows.len() - start > LARGEST {
            self.rows.truncate(start);
            return None;
        }
        self.count += 1;
        Some(self.count - 1)
    }

    /// The images, and the labels of enums in them.
    pub(super) fn finish(self) -> (Rows, Vec<(u32, String)>) {
        let labels = self.labels.into_iter().map(|(oid, label)| (oid, label.into()));
        // Made of values that are JSON, and JSON is UTF-8.
        let texts = String::from_utf8(self.rows).unwrap_or_default();
        (Rows { columns: self.columns, forms: self.forms, texts }, labels.collect())
    }
}

/// What the type of a column is made of; 0: there is no such column.
fn form(relation: &Relation, attnum: i16) -> u64 {
    let mut columns = relation.columns.iter();
    columns.find(|column| column.attnum == attnum).map_or(0, |column| column.form)
}

/// Whether texts of both are of the same types, with the same labels.
fn is_read_alike(one: &Arc<Relation>, other: &Arc<Relation>) -> bool {
    let read = |column: &'_ Column| (column.attnum, column.form);
    Arc::ptr_eq(one, other)
        || one.columns.len() == other.columns.len()
            && one
                .columns
                .iter()
                .zip(&other.columns)
                .all(|(one, other)| read(one) == read(other) && one.labels == other.labels)
}
