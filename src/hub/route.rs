//! From a table, and the values in a row, to the groups that may want the event.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::group::{GroupId, GroupKey, is_about};
use crate::event::{Batch, CatalogChange, Change, Datum, Operation, Relation};
use crate::filter::index_key;

/// The groups of one table. A group all of whose bindings to the table are of the form
/// `column = value` is found by the value; every other group is asked about each event.
struct Route {
    relation: Arc<Relation>,
    every: HashSet<GroupId>,
    by_value: HashMap<i16, HashMap<Box<[u8]>, Vec<GroupId>>>,
}

impl Route {
    fn add(&mut self, id: GroupId, group: &GroupKey) {
        let about =
            |binding: &&super::subscription::Binding| is_about(&binding.target, &self.relation);
        let equalities: Option<Vec<_>> = group
            .bindings
            .iter()
            .filter(about)
            .map(|binding| binding.filter.as_ref().and_then(|filter| filter.equality()))
            .collect();
        match equalities {
            Some(equalities) => {
                for (attnum, value) in equalities {
                    let groups = self.by_value.entry(attnum).or_default();
                    let groups = groups.entry(value.into()).or_default();
                    if !groups.contains(&id) {
                        groups.push(id);
                    }
                }
            }
            None => {
                self.every.insert(id);
            }
        }
    }

    fn remove(&mut self, id: GroupId) {
        self.every.remove(&id);
        self.by_value.retain(|_, values| {
            values.retain(|_, groups| {
                groups.retain(|group| *group != id);
                !groups.is_empty()
            });
            !values.is_empty()
        });
    }

    fn candidates(&self, batch: &Batch, change: &Change, out: &mut Vec<GroupId>) {
        out.extend(&self.every);
        if self.by_value.is_empty() {
            return;
        }
        let row = match change.operation {
            Operation::Insert | Operation::Update => change.new,
            Operation::Delete => change.old,
            Operation::Truncate => {
                out.extend(self.by_value.values().flat_map(HashMap::values).flatten());
                None
            }
        };
        if let Some(row) = row {
            let row = batch.row(row);
            for (attnum, values) in &self.by_value {
                let columns = &change.relation.columns;
                let Some(index) = columns.iter().position(|c| c.attnum == *attnum) else {
                    continue;
                };
                let Datum::Json(value) = row.get(index) else { continue };
                let kind = columns.get(index).map(|column| column.kind);
                let key = kind.and_then(|kind| index_key(kind, value));
                if let Some(groups) = key.and_then(|key| values.get(&*key)) {
                    out.extend(groups);
                }
            }
        }
        // A group can be found by more than one of its bindings.
        out.sort_unstable();
        out.dedup();
    }
}

/// Routes of the tables that have had events.
#[derive(Default)]
pub(super) struct Routes {
    tables: HashMap<u32, Route>,
}

impl Routes {
    /// The groups that the change may be for, in `out`; `groups` are all there are.
    pub(super) fn candidates<'a>(
        &mut self,
        batch: &Batch,
        change: &Change,
        groups: impl Iterator<Item = (GroupId, &'a GroupKey)>,
        out: &mut Vec<GroupId>,
    ) {
        let route = self.tables.entry(change.relation.oid).or_insert_with(|| {
            let mut route = Route {
                relation: Arc::clone(&change.relation),
                every: HashSet::new(),
                by_value: HashMap::new(),
            };
            for (id, group) in groups.filter(|(_, group)| group.targets(&change.relation)) {
                route.add(id, group);
            }
            route
        });
        route.candidates(batch, change, out);
    }

    pub(super) fn add(&mut self, id: GroupId, group: &GroupKey) {
        for route in self.tables.values_mut().filter(|route| group.targets(&route.relation)) {
            route.add(id, group);
        }
    }

    pub(super) fn remove(&mut self, id: GroupId, group: &GroupKey) {
        for route in self.tables.values_mut().filter(|route| group.targets(&route.relation)) {
            route.remove(id);
        }
    }

    /// A table may have moved to another schema or be gone: its route is made anew when needed.
    pub(super) fn forget(&mut self, change: &CatalogChange) {
        match change {
            CatalogChange::All => self.tables.clear(),
            CatalogChange::Relation(oid) => {
                self.tables.remove(oid);
            }
        }
    }
}
