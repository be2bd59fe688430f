//! Tables as roles may see them, kept until the catalogue changes.
//!
//! Two tell of changes. The catalog worker says, when it is asked, which tables have changed since it
//! was asked before: a join looks here only after that, so that it never gets what a REVOKE that its
//! client may know of has made untrue. And the stream tells of them in their places among the events:
//! the hub looks here between these.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tide_feed::catalog::{TableAccess, TableName};
use tide_feed::event::CatalogChange;

use super::memory;

/// Bytes of all tables together.
const LIMIT: usize = 12 << 20;

#[derive(Debug, Default)]
pub(super) struct KnownTables {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    roles: HashMap<Box<str>, Tables>,
    size: usize,
    /// The newest change of the catalogue that the catalog worker has told of: everything here
    /// knows of it.
    change: u64,
    /// Counts the changes that the stream has told of.
    streamed: u64,
}

/// What one role may see. Tables that it may not see are not kept: what they are called is all that
/// is known of them, and changes say oids.
#[derive(Debug, Default)]
struct Tables {
    by_oid: HashMap<u32, Arc<TableAccess>>,
    by_name: HashMap<TableName, u32>,
}

impl Tables {
    fn named(&self, name: &TableName) -> Option<&Arc<TableAccess>> {
        self.by_oid.get(self.by_name.get(name)?)
    }

    /// Says what it takes the place of.
    fn insert(&mut self, access: &Arc<TableAccess>) -> Option<Arc<TableAccess>> {
        let replaced = self.remove(access.oid);
        let name = TableName { schema: access.schema.clone(), table: access.table.clone() };
        self.by_name.insert(name, access.oid);
        self.by_oid.insert(access.oid, Arc::clone(access));
        replaced
    }

    fn remove(&mut self, table: u32) -> Option<Arc<TableAccess>> {
        let access = self.by_oid.remove(&table)?;
        let name = TableName { schema: access.schema.clone(), table: access.table.clone() };
        // Another table may have the name by now.
        if self.by_name.get(&name) == Some(&table) {
            self.by_name.remove(&name);
        }
        Some(access)
    }
}

impl KnownTables {
    /// How many changes the stream has told of: to be taken before a question.
    pub(super) fn streamed(&self) -> u64 {
        self.lock().streamed
    }

    /// Keeps the answer to a question that was asked when the stream had told of so many changes, and
    /// that knows of the catalog worker's changes up to `change`; unless something has happened since
    /// that it might not know of.
    pub(super) fn learn(
        &self,
        streamed: u64,
        role: &str,
        change: u64,
        tables: &[Arc<TableAccess>],
    ) {
        let mut known = self.lock();
        if known.streamed != streamed || change < known.change {
            return;
        }
        let added: usize = tables.iter().map(|access| memory(access)).sum();
        if known.size + added > LIMIT {
            known.clear();
        }
        if added > LIMIT || tables.is_empty() {
            return;
        }
        let of_role = known.roles.entry(role.into()).or_default();
        let replaced = tables.iter().filter_map(|access| of_role.insert(access));
        let replaced: usize = replaced.map(|access| memory(&access)).sum();
        known.size = (known.size + added).saturating_sub(replaced);
    }

    /// The tables of these names, if all of them are known.
    pub(super) fn named(&self, role: &str, names: &[TableName]) -> Option<Vec<Arc<TableAccess>>> {
        let known = self.lock();
        if names.is_empty() {
            return Some(Vec::new());
        }
        let of_role = known.roles.get(role)?;
        names.iter().map(|name| of_role.named(name).cloned()).collect()
    }

    /// The table as of this place in the stream.
    pub(super) fn at_head(&self, role: &str, table: u32) -> Option<Arc<TableAccess>> {
        self.lock().roles.get(role)?.by_oid.get(&table).cloned()
    }

    /// The newest change that the catalog worker has told of.
    pub(super) fn change(&self) -> u64 {
        self.lock().change
    }

    /// The catalog worker was asked what has changed after the change `since`: these tables (`None`:
    /// it may be any), up to the change `newest`.
    pub(super) fn changed(&self, since: u64, newest: u64, tables: Option<&[u32]>) {
        let mut known = self.lock();
        match tables {
            Some(tables) if since == known.change => {
                tables.iter().for_each(|table| known.remove(*table));
            }
            _ => known.clear(),
        }
        known.change = newest;
    }

    /// The stream tells of a change.
    pub(super) fn forget(&self, change: &CatalogChange) {
        let mut known = self.lock();
        known.streamed += 1;
        match change {
            CatalogChange::All => known.clear(),
            CatalogChange::Relation(table) => known.remove(*table),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn remove(&mut self, table: u32) {
        let removed = self.roles.values_mut().filter_map(|tables| tables.remove(table));
        let size: usize = removed.map(|access| memory(&access)).sum();
        self.size = self.size.saturating_sub(size);
    }

    fn clear(&mut self) {
        self.roles.clear();
        self.size = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "web";

    fn table(oid: u32, name: &str) -> Arc<TableAccess> {
        let (schema, table) = ("public".into(), name.into());
        Arc::new(TableAccess { oid, schema, table, row_security: None, columns: Vec::new() })
    }

    fn name(table: &str) -> TableName {
        TableName { schema: "public".into(), table: table.into() }
    }

    /// Knows the tables `a` (oid 1) and `b` (oid 2), as of the catalog worker's change 5.
    fn known() -> KnownTables {
        let known = KnownTables::default();
        known.changed(0, 5, None);
        known.learn(known.streamed(), ROLE, 5, &[table(1, "a"), table(2, "b")]);
        known
    }

    fn knows(known: &KnownTables, table: &str) -> bool {
        known.named(ROLE, &[name(table)]).is_some()
    }

    #[test]
    fn what_was_learnt_is_known_to_its_role_only() {
        let known = known();

        assert_eq!(known.named(ROLE, &[name("b"), name("a")]).map(|tables| tables.len()), Some(2));
        assert!(known.named(ROLE, &[name("a"), name("c")]).is_none());
        assert!(known.named("other", &[name("a")]).is_none());
        assert_eq!(known.at_head(ROLE, 1).map(|access| access.oid), Some(1));
    }

    #[test]
    fn a_change_makes_its_table_unknown_whoever_tells_of_it() {
        let (told, streamed) = (known(), known());

        told.changed(5, 6, Some(&[1]));
        streamed.forget(&CatalogChange::Relation(1));

        for known in [told, streamed] {
            assert!(!knows(&known, "a") && known.at_head(ROLE, 1).is_none());
            assert!(knows(&known, "b"));
        }
    }

    #[test]
    fn a_change_of_everything_makes_all_tables_unknown_whoever_tells_of_it() {
        let (told, streamed) = (known(), known());

        told.changed(5, 6, None);
        streamed.forget(&CatalogChange::All);

        for known in [told, streamed] {
            assert!(!knows(&known, "a") && !knows(&known, "b"));
        }
    }

    #[test]
    fn an_answer_to_a_question_from_before_a_change_of_the_stream_is_not_kept() {
        let known = known();
        let asked = known.streamed();

        known.forget(&CatalogChange::Relation(3));
        known.learn(asked, ROLE, 5, &[table(3, "c")]);

        assert!(!knows(&known, "c"));
    }

    #[test]
    fn an_answer_that_does_not_know_of_a_change_is_not_kept() {
        let known = known();
        let asked = known.streamed();

        known.changed(5, 6, Some(&[3]));
        known.learn(asked, ROLE, 5, &[table(3, "c")]);

        assert!(!knows(&known, "c"));
    }

    #[test]
    fn an_answer_that_knows_of_more_than_was_told_is_kept_until_that_is() {
        let known = known();

        known.learn(known.streamed(), ROLE, 7, &[table(3, "c")]);
        assert!(knows(&known, "c"));
        known.changed(5, 7, Some(&[3]));

        assert!(!knows(&known, "c"));
    }

    #[test]
    fn changes_after_another_change_than_the_last_may_be_of_any_table() {
        let known = known();

        known.changed(4, 6, Some(&[]));

        assert!(!knows(&known, "a"));
    }

    #[test]
    fn a_table_that_has_another_name_now_is_not_known_by_the_old_one() {
        let known = known();

        known.learn(known.streamed(), ROLE, 5, &[table(1, "c")]);

        assert!(knows(&known, "c") && !knows(&known, "a"));
    }

    #[test]
    fn a_name_that_another_table_has_now_is_that_tables() {
        let known = known();

        known.learn(known.streamed(), ROLE, 5, &[table(3, "a")]);
        known.changed(5, 6, Some(&[1]));

        let found = known.named(ROLE, &[name("a")]).expect("is known");
        assert_eq!(found[0].oid, 3);
    }

    #[test]
    fn what_is_known_does_not_grow_without_bound() {
        let known = known();

        let long = "x".repeat(1 << 10);
        for oid in 0..3 * (LIMIT >> 10) as u32 {
            known.learn(known.streamed(), ROLE, 5, &[table(oid, &format!("{oid}{long}"))]);
        }

        let inner = known.lock();
        let tables = &inner.roles[ROLE];
        assert!(inner.size <= LIMIT);
        assert_eq!(inner.size, tables.by_oid.values().map(|access| memory(access)).sum::<usize>());
        assert_eq!(tables.by_name.len(), tables.by_oid.len());
    }
}
