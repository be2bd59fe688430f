//! From a table, and the values in a row, to the groups that may want the event.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tide_feed::event::{Batch, CatalogChange, Change, Datum, Operation, Relation};

use super::group::{GroupId, GroupKey};
use crate::filter::index_key;
use crate::policy::Images;

/// A column with the key of a value of it.
pub(super) type Anchor = (i16, Box<[u8]>);

/// Columns with keys of their values, one of which the row of a change must have, before it or
/// after it, for a group to want it. `None`: there is no such list.
pub(super) type Anchors = Option<Vec<Anchor>>;

/// The groups of one table. Those that only want rows with certain values (by the filters of their
/// bindings, all of the form `column = value`, or by the policies) are found by these values; every
/// other group is asked about each event.
struct Route {
    relation: Arc<Relation>,
    every: HashSet<GroupId>,
    by_value: HashMap<i16, HashMap<Box<[u8]>, Vec<GroupId>>>,
    /// Where the groups that are found by values are.
    anchors_of: HashMap<GroupId, Box<[Anchor]>>,
}

impl Route {
    fn new(relation: &Arc<Relation>) -> Route {
        Route {
            relation: Arc::clone(relation),
            every: HashSet::new(),
            by_value: HashMap::new(),
            anchors_of: HashMap::new(),
        }
    }

    /// `anchors` are those of the group's policies.
    fn add(&mut self, id: GroupId, group: &GroupKey, anchors: Anchors) {
        // Whether it has been told of the row, the values do not say.
        let anchors = anchors.or_else(|| self.equalities(group)).filter(|_| group.only.is_none());
        let Some(anchors) = anchors else {
            self.every.insert(id);
            return;
        };
        for (attnum, value) in &anchors {
            let groups = self.by_value.entry(*attnum).or_default();
            let groups = groups.entry(value.clone()).or_insert_with(|| Vec::with_capacity(1));
            if !groups.contains(&id) {
                groups.push(id);
            }
        }
        self.anchors_of.insert(id, anchors.into());
    }

    /// What the filters of the group's bindings to the table ask for.
    fn equalities(&self, group: &GroupKey) -> Anchors {
        if group.is_outdated(&self.relation) {
            return None;
        }
        let about = group.bindings.iter().filter(|b| b.target.is_about(&self.relation));
        let filters = about.map(|binding| binding.filter.as_ref());
        filters
            .map(|filter| {
                let (attnum, value) = filter.and_then(|filter| filter.equality())?;
                Some((attnum, value.into()))
            })
            .collect()
    }

    fn remove(&mut self, id: GroupId) {
        self.every.remove(&id);
        for (attnum, value) in self.anchors_of.remove(&id).unwrap_or_default() {
            let Some(values) = self.by_value.get_mut(&attnum) else { continue };
            if let Some(groups) = values.get_mut(&value) {
                groups.retain(|group| *group != id);
                if groups.is_empty() {
                    values.remove(&value);
                }
            }
            if values.is_empty() {
                self.by_value.remove(&attnum);
            }
        }
    }

    fn candidates(&self, batch: &Batch, change: &Change, out: &mut Vec<GroupId>) {
        out.extend(&self.every);
        if self.anchors_of.is_empty() {
            return;
        }
        if change.operation == Operation::Truncate {
            out.extend(self.anchors_of.keys());
        }
        let images = Images::of(batch, change);
        for (attnum, values) in &self.by_value {
            let mut columns = change.relation.columns.iter();
            let Some(column) = columns.find(|column| column.attnum == *attnum) else { continue };
            // A row may come into sight or leave it.
            let before = if images.has_before() { images.before(*attnum) } else { Datum::Absent };
            let after = if images.has_after() { images.after(*attnum) } else { Datum::Absent };
            for datum in [Some(after), Some(before).filter(|before| *before != after)] {
                let Some(Datum::Json(value)) = datum else { continue };
                let key = index_key(column.kind, value);
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
    /// The groups that the change may be for, in `out`; `groups` are all there are, with the anchors
    /// of their policies.
    pub(super) fn candidates<'a>(
        &mut self,
        batch: &Batch,
        change: &Change,
        groups: impl Iterator<Item = (GroupId, &'a GroupKey, Anchors)>,
        out: &mut Vec<GroupId>,
    ) {
        let route = self.tables.entry(change.relation.oid).or_insert_with(|| {
            let mut route = Route::new(&change.relation);
            for (id, group, anchors) in groups {
                route.add(id, group, anchors);
            }
            route
        });
        route.candidates(batch, change, out);
    }

    pub(super) fn add(&mut self, id: GroupId, group: &GroupKey) {
        for route in self.tables.values_mut().filter(|route| group.targets(&route.relation)) {
            route.add(id, group, None);
        }
    }

    /// The anchors of the group's policies on the table have become known.
    pub(super) fn anchor(&mut self, id: GroupId, group: &GroupKey, table: u32, anchors: Anchors) {
        if let Some(route) = self.tables.get_mut(&table) {
            route.remove(id);
            route.add(id, group, anchors);
        }
    }

    pub(super) fn remove(&mut self, id: GroupId, group: &GroupKey) {
        for route in self.tables.values_mut().filter(|route| group.targets(&route.relation)) {
            route.remove(id);
        }
    }

    /// What the policies of these tables are was not known when their routes were made.
    pub(super) fn remake(&mut self, tables: impl Iterator<Item = u32>) {
        for table in tables {
            self.tables.remove(&table);
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
