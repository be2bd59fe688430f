//! What a role may see of a table, by today's rules, kept until the catalogue changes.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::catalog::protocol::{TableAccess, Which};
use crate::catalog::{Catalog, CatalogError};
use crate::event::{CatalogChange, Relation};
use crate::wire::change::ColumnSet;

/// Pause before a question that found no steward is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// One role's view of one table.
pub(super) struct Entitlement {
    /// `None`: nothing at all.
    access: Option<TableAccess>,
    sets: std::cell::RefCell<Vec<CachedSet>>,
}

struct CachedSet {
    relation: Arc<Relation>,
    select: Option<Arc<[Box<str>]>>,
    columns: Rc<ColumnSet>,
}

impl Entitlement {
    fn new(access: Option<TableAccess>) -> Entitlement {
        // Policies are not evaluated yet: whoever is subject to them gets nothing.
        let access = access.filter(|access| !access.row_security);
        Entitlement { access, sets: std::cell::RefCell::default() }
    }

    /// Whether events of the table reach the role at all.
    pub(super) fn is_granted(&self) -> bool {
        self.access.is_some()
    }

    /// The role may read the column, so a filter on it tells nothing that is hidden.
    pub(super) fn may_read(&self, attnum: i16) -> bool {
        let columns = self.access.iter().flat_map(|access| &access.columns);
        columns.into_iter().any(|column| column.attnum == attnum && column.readable)
    }

    fn shows(&self, attnum: i16, select: Option<&Arc<[Box<str>]>>) -> bool {
        let mut granted = self.access.iter().flat_map(|access| &access.columns);
        granted.any(|column| {
            let chosen = select.is_none_or(|select| {
                column.primary_key || select.iter().any(|name| **name == *column.name)
            });
            column.attnum == attnum && column.readable && chosen
        })
    }

    /// The columns to send: those the role may read, cut to `select` and the primary key.
    pub(super) fn columns(
        &self,
        relation: &Arc<Relation>,
        select: Option<&Arc<[Box<str>]>>,
    ) -> Rc<ColumnSet> {
        let mut sets = self.sets.borrow_mut();
        let known = |set: &&CachedSet| {
            Arc::ptr_eq(&set.relation, relation) && set.select.as_ref() == select
        };
        if let Some(set) = sets.iter().find(known) {
            return Rc::clone(&set.columns);
        }
        let columns = relation.columns.iter().enumerate();
        let shown = columns.filter(|(_, column)| self.shows(column.attnum, select));
        let columns = Rc::new(ColumnSet::new(relation, shown.map(|(index, _)| index)));
        // A table that is altered leaves its former shapes behind: only the newest are kept.
        if sets.len() >= 16 {
            sets.remove(0);
        }
        sets.push(CachedSet {
            relation: Arc::clone(relation),
            select: select.cloned(),
            columns: Rc::clone(&columns),
        });
        columns
    }
}

/// Every view in use. Asks the steward for those it does not know; the stream waits meanwhile,
/// since an event may be delivered neither before nor without the answer.
pub(super) struct Entitlements {
    known: HashMap<(Arc<str>, u32), Rc<Entitlement>>,
    /// Counts the changes of the catalogue.
    generation: u64,
    catalog: Catalog,
    runtime: Handle,
    stopping: Arc<std::sync::atomic::AtomicBool>,
}

impl Entitlements {
    pub(super) fn new(
        catalog: Catalog,
        runtime: Handle,
        stopping: Arc<std::sync::atomic::AtomicBool>,
    ) -> Entitlements {
        Entitlements { known: HashMap::new(), generation: 0, catalog, runtime, stopping }
    }

    pub(super) fn of(&mut self, role: &Arc<str>, table: u32) -> Rc<Entitlement> {
        // The key owns its role; cloning an Arc is cheaper than a second, borrowed look-up key.
        let key = (Arc::clone(role), table);
        if let Some(known) = self.known.get(&key) {
            return Rc::clone(known);
        }
        let asked = Rc::new(Entitlement::new(self.ask(role, table)));
        self.known.insert(key, Rc::clone(&asked));
        asked
    }

    /// Another number: what was worked out from entitlements does not hold any more.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn forget(&mut self, change: &CatalogChange) {
        self.generation += 1;
        match change {
            CatalogChange::All => self.known.clear(),
            CatalogChange::Relation(oid) => self.known.retain(|(_, table), _| table != oid),
        }
    }

    fn ask(&self, role: &str, table: u32) -> Option<TableAccess> {
        loop {
            let question = self.catalog.tables(role, Which::Oids(vec![table]));
            match self.runtime.block_on(question) {
                Ok((tables, _)) => return tables.into_iter().find(|access| access.oid == table),
                Err(CatalogError::Refused { sqlstate, .. }) => {
                    // A role that was dropped, for one.
                    log::info!("privileges on table {table} cannot be determined ({sqlstate})");
                    return None;
                }
                Err(CatalogError::Unavailable) => {
                    if self.stopping.load(std::sync::atomic::Ordering::Acquire) {
                        return None;
                    }
                    log::warn!("waiting for the steward to say who may see table {table}");
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}
