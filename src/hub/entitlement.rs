//! What a role may see of a table, by today's rules, kept until the catalogue changes.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::catalog::protocol::{Object, TableAccess, Visibility, Which};
use crate::catalog::{Catalog, CatalogError};
use crate::event::{CatalogChange, Datum, Kind, Relation};
use crate::json;
use crate::policy::{Images, Rule};
use crate::wire::change::ColumnSet;

/// Pause before a question that found no steward is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// One role's view of one table.
pub(super) struct Entitlement {
    /// `None`: nothing at all.
    access: Option<TableAccess>,
    /// Which rows.
    rule: Arc<Rule>,
    sets: std::cell::RefCell<Vec<CachedSet>>,
}

struct CachedSet {
    relation: Arc<Relation>,
    select: Option<Arc<[Box<str>]>>,
    columns: Rc<ColumnSet>,
}

impl Entitlement {
    /// `former`: the rule of the same role and table, for it to stay the same if it does.
    fn new(access: Option<TableAccess>, former: Option<Arc<Rule>>) -> Entitlement {
        let security = access.as_ref().and_then(|access| access.row_security.as_ref());
        let columns = access.as_ref().map_or(&[][..], |access| &access.columns);
        let rule = Rule::of(security, columns);
        let rule = former.filter(|former| **former == rule).unwrap_or_else(|| Arc::new(rule));
        Entitlement { access, rule, sets: std::cell::RefCell::default() }
    }

    /// Whether events of the table reach the role at all.
    pub(super) fn is_granted(&self) -> bool {
        self.access.is_some()
    }

    /// Which rows of the table the role may see.
    pub(super) fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    /// The columns that the table has today.
    pub(super) fn attnums(&self) -> Vec<i16> {
        let columns = self.access.iter().flat_map(|access| &access.columns);
        columns.map(|column| column.attnum).collect()
    }

    /// Labels of enums in the policies' texts, with their oids.
    pub(super) fn labels(&self) -> &[(u32, String)] {
        let security = self.access.as_ref().and_then(|access| access.row_security.as_ref());
        security.map_or(&[], |security| &security.labels)
    }

    /// Whether the two are about the same table in the same state.
    pub(super) fn is_like(&self, other: &Entitlement) -> bool {
        self.access == other.access
    }

    /// Writes an image of a row as an object for Postgres to read: the columns that the policies
    /// look at, and labels of enums, by the names that they have today. `used` gets the labels.
    /// False: it cannot be said by today's names.
    pub(super) fn write_row<'a>(
        &self,
        out: &mut Vec<u8>,
        used: &mut BTreeMap<u32, Box<str>>,
        images: &Images<'a>,
        value: impl Fn(i16) -> Datum<'a>,
    ) -> bool {
        let is_needed = |attnum| self.rule.columns().is_none_or(|some| some.contains(&attnum));
        let columns = self.access.iter().flat_map(|access| &access.columns);
        out.push(b'{');
        let mut is_first = true;
        for column in columns.filter(|column| is_needed(column.attnum)) {
            let Datum::Json(json) = value(column.attnum) else { continue };
            if !std::mem::take(&mut is_first) {
                out.push(b',');
            }
            json::write_key(out, &column.name);
            if column.kind == Kind::Enum {
                let oid = images.label(column.attnum, json);
                let label = column.labels.iter().find(|(known, _)| Some(*known) == oid);
                let Some((oid, label)) = label else { return false };
                json::write_str(out, label);
                used.insert(*oid, label.as_str().into());
                continue;
            }
            // Within other values they have the names that they had: it will be seen whether these
            // are still theirs.
            for (oid, label) in images.labels(column.attnum).iter().flat_map(|l| l.pairs()) {
                used.insert(oid, label.into());
            }
            out.extend_from_slice(json);
        }
        out.push(b'}');
        true
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
    /// Rules of tables that have changed, while the functions and roles are what they were: what was
    /// worked out by a rule holds for as long as the rule is the same.
    former: HashMap<(Arc<str>, u32), Arc<Rule>>,
    /// What is known of tables and schemas that need not be published.
    visible: HashMap<(Arc<str>, Object), Rc<Visibility>>,
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
        let (known, former, visible) = (HashMap::new(), HashMap::new(), HashMap::new());
        Entitlements { known, former, visible, generation: 0, catalog, runtime, stopping }
    }

    pub(super) fn of(&mut self, role: &Arc<str>, table: u32) -> Rc<Entitlement> {
        // The key owns its role; cloning an Arc is cheaper than a second, borrowed look-up key.
        let key = (Arc::clone(role), table);
        if let Some(known) = self.known.get(&key) {
            return Rc::clone(known);
        }
        let asked = Rc::new(Entitlement::new(self.ask(role, table), self.former.remove(&key)));
        self.known.insert(key, Rc::clone(&asked));
        asked
    }

    /// What the role may know of a table or schema that was made or altered.
    pub(super) fn visibility(&mut self, role: &Arc<str>, object: Object) -> Rc<Visibility> {
        let key = (Arc::clone(role), object);
        if let Some(known) = self.visible.get(&key) {
            return Rc::clone(known);
        }
        let asked =
            self.patiently(&format!("{object:?}"), || self.catalog.visibility(role, object));
        let asked = Rc::new(asked.unwrap_or_default());
        self.visible.insert(key, Rc::clone(&asked));
        asked
    }

    /// Another number: what was worked out from entitlements does not hold any more.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn forget(&mut self, change: &CatalogChange) {
        self.generation += 1;
        match change {
            CatalogChange::All => {
                self.known.clear();
                self.former.clear();
                self.visible.clear();
            }
            CatalogChange::Relation(oid) => {
                let stale = self.known.extract_if(|(_, table), _| table == oid);
                let rules = stale.map(|(key, entitlement)| (key, Arc::clone(entitlement.rule())));
                self.former.extend(rules);
                self.visible.retain(|(_, object), _| *object != Object::Table(*oid));
            }
        }
    }

    /// Asks again what the role may see of the table; whether that has changed.
    pub(super) fn renew(&mut self, role: &Arc<str>, table: u32) -> bool {
        let before = self.of(role, table);
        self.forget(&CatalogChange::Relation(table));
        !self.of(role, table).is_like(&before)
    }

    fn ask(&self, role: &str, table: u32) -> Option<TableAccess> {
        let question = || self.catalog.tables(role, Which::Oids(vec![table]));
        let (tables, _) = self.patiently(&format!("table {table}"), question)?;
        tables.into_iter().find(|access| access.oid == table)
    }

    /// Asks until there is an answer; `None`: nothing may be seen.
    fn patiently<T, F>(&self, what: &str, question: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, CatalogError>>,
    {
        loop {
            match self.runtime.block_on(question()) {
                Ok(answer) => return Some(answer),
                Err(CatalogError::Refused { sqlstate, .. }) => {
                    // A role that was dropped, for one.
                    log::info!("privileges on {what} cannot be determined ({sqlstate})");
                    return None;
                }
                Err(CatalogError::Unavailable | CatalogError::Ended) => {
                    if self.stopping.load(std::sync::atomic::Ordering::Acquire) {
                        return None;
                    }
                    log::warn!("waiting for the steward to say who may see {what}");
                    std::thread::sleep(RETRY);
                }
            }
        }
    }
}
