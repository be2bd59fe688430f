//! What a role may see of a table, by today's rules, kept until the catalogue changes.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tide_feed::backoff::Backoff;
use tide_feed::catalog::{ColumnAccess, Object, QUERY_CANCELED, TableAccess, Visibility, Which};
use tide_feed::event::{CatalogChange, Datum, Kind, Relation};
use tide_feed::json;
use tokio::sync::mpsc;

use super::group::GroupKey;
use super::history::Seq;
use super::subscription::Target;
use crate::catalog::{Catalog, CatalogError, Lane};
use crate::policy::{Images, Rule};
use crate::wire::change::ColumnSet;

/// How long a connection waits as a whole for an answer, which usually takes a few milliseconds.
/// After that only the channels that it is about do.
const PATIENCE: Duration = Duration::from_millis(100);
/// The longest pause before a look-up that failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// One role's view of one table.
pub(super) struct Entitlement {
    /// `None`: nothing at all.
    access: Option<Arc<TableAccess>>,
    /// Which rows.
    rule: Arc<Rule>,
    /// It holds for events before this one: while it was asked about, the catalogue changed.
    until: Seq,
    sets: std::cell::RefCell<Vec<CachedSet>>,
}

struct CachedSet {
    relation: Arc<Relation>,
    select: Option<Arc<[Box<str>]>>,
    columns: Rc<ColumnSet>,
}

impl Entitlement {
    /// `former`: the rule of the same role and table, for it to stay the same if it does.
    fn new(access: Option<Arc<TableAccess>>, former: Option<Arc<Rule>>, until: Seq) -> Entitlement {
        let security = access.as_ref().and_then(|access| access.row_security.as_ref());
        let columns = access.as_ref().map_or(&[][..], |access| &access.columns);
        let rule = Rule::of(security, columns);
        let rule = former.filter(|former| **former == rule).unwrap_or_else(|| Arc::new(rule));
        Entitlement { access, rule, until, sets: std::cell::RefCell::default() }
    }

    /// Whether events of the table reach the role at all.
    pub(super) fn is_granted(&self) -> bool {
        self.access.is_some()
    }

    /// Whether it holds for the event.
    pub(super) fn holds_for(&self, seq: Seq) -> bool {
        seq < self.until
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

    /// The columns that the policies look at.
    pub(super) fn policy_columns(&self) -> Vec<i16> {
        self.rule.columns().map_or_else(|| self.attnums(), <[i16]>::to_vec)
    }

    /// Whether the columns that the policies look at are of the kinds that they are compared as.
    pub(super) fn compares(&self, relation: &Relation) -> bool {
        let columns = self.access.iter().flat_map(|access| &access.columns);
        let is_compared = |attnum| self.rule.columns().is_none_or(|list| list.contains(&attnum));
        columns.filter(|column| is_compared(column.attnum)).all(|column| {
            let mut then = relation.columns.iter().filter(|then| then.attnum == column.attnum);
            // Texts of types of one kind are not all compared alike: those of character(n) are padded.
            let is_same = |name: &str| column.kind == Kind::Int || name == column.type_name;
            then.all(|then| then.kind == column.kind && is_same(&then.type_name))
        })
    }

    /// Writes an image of a row for Postgres to read: a JSON array of the texts of these columns'
    /// values, labels of enums by the names that they have today. `used` gets the labels. False: it
    /// cannot be said by today's names.
    pub(super) fn write_row<'a>(
        &self,
        columns: &[i16],
        out: &mut Vec<u8>,
        used: &mut BTreeMap<u32, Box<str>>,
        images: &Images<'a>,
        exact: impl Fn(i16) -> Datum<'a>,
    ) -> bool {
        for (index, &attnum) in columns.iter().enumerate() {
            out.push(if index == 0 { b'[' } else { b',' });
            let access = self.access.iter().flat_map(|access| &access.columns);
            let column = access.into_iter().find(|column| column.attnum == attnum);
            let (Some(column), Datum::Json(json)) = (column, exact(attnum)) else {
                out.extend_from_slice(b"null");
                continue;
            };
            if column.kind == Kind::Enum {
                let Some((oid, label)) = todays_label(column, images, json) else { return false };
                json::write_str(out, &label);
                used.insert(oid, label);
                continue;
            }
            // Within other values they have the names that they had: it will be seen whether these
            // are still theirs.
            for (oid, label) in images.labels(attnum).iter().flat_map(|l| l.pairs()) {
                used.insert(oid, label.into());
            }
            let Some(text) = images.text(attnum, json) else { return false };
            json::write_str(out, &text);
        }
        out.extend_from_slice(if columns.is_empty() { b"[]" } else { b"]" });
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

/// The label that a value of an enum is, by the name that it has today. Where today's names are too
/// many to be known it is the one that it had: it will be seen whether that is still its.
fn todays_label(
    column: &ColumnAccess,
    images: &Images<'_>,
    json: &[u8],
) -> Option<(u32, Box<str>)> {
    let oid = images.label(column.attnum, json)?;
    if column.labels.is_empty() {
        return Some((oid, serde_json::from_slice(json).ok()?));
    }
    let (_, label) = column.labels.iter().find(|(known, _)| *known == oid)?;
    Some((oid, label.as_str().into()))
}

/// What can be asked about a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// A table of the publication: its columns, and which of its rows.
    Rows(u32),
    /// A table or schema that need not be published.
    Object(Object),
}

type Key = (Arc<str>, Subject);

/// A question that has no answer yet.
struct Open {
    is_asking: bool,
    asked: Instant,
    /// The first event after a change of the catalogue that the answer may not know of.
    until: Seq,
    failures: u64,
    /// It takes longer than whole connections wait.
    is_late: bool,
    backoff: Backoff,
}

enum Found {
    Table(Option<Arc<TableAccess>>),
    Visibility(Visibility),
}

/// What became of a look-up.
pub(super) struct Outcome {
    key: Key,
    found: Result<Found, CatalogError>,
}

/// Every view in use. Asks the catalog worker for those it does not know. Nothing but an answer is
/// taken for one: a look-up that fails, for whatever reason, is tried again for as long as somebody
/// needs it.
pub(super) struct Entitlements {
    known: HashMap<(Arc<str>, u32), Rc<Entitlement>>,
    /// Rules of tables that have changed, while the functions and roles are what they were: what
    /// was worked out by a rule holds for as long as the rule is the same.
    former: HashMap<(Arc<str>, u32), Arc<Rule>>,
    /// What is known of tables and schemas that need not be published, and up to which event.
    visible: HashMap<(Arc<str>, Object), (Rc<Visibility>, Seq)>,
    open: HashMap<Key, Open>,
    /// Tables that were answered about: their routes were made without the answer.
    answered: Vec<u32>,
    /// Counts the changes of the catalogue.
    generation: u64,
    catalog: Catalog,
    sender: mpsc::UnboundedSender<Outcome>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
}

impl Entitlements {
    pub(super) fn new(catalog: Catalog) -> Entitlements {
        // At most one for each open question.
        let (sender, outcomes) = mpsc::unbounded_channel();
        Entitlements {
            known: HashMap::new(),
            former: HashMap::new(),
            visible: HashMap::new(),
            open: HashMap::new(),
            answered: Vec::new(),
            generation: 0,
            catalog,
            sender,
            outcomes,
        }
    }

    /// Waits for what is to be given to [`Entitlements::learn`]. Loses nothing if it is given up.
    pub(super) async fn outcome(&mut self) -> Outcome {
        match self.outcomes.recv().await {
            Some(outcome) => outcome,
            // Cannot be: the other end is here as well.
            None => std::future::pending().await,
        }
    }

    /// What the role may see of the table at this event; `None`: that is being asked.
    pub(super) fn of(&mut self, role: &Arc<str>, table: u32, seq: Seq) -> Option<Rc<Entitlement>> {
        // The key owns its role; cloning an Arc is cheaper than a second, borrowed look-up key.
        let key = (Arc::clone(role), table);
        if let Some(known) = self.known.get(&key).filter(|known| known.holds_for(seq)) {
            return Some(Rc::clone(known));
        }
        let question = (Arc::clone(role), Subject::Rows(table));
        if !self.open.contains_key(&question)
            && let Some(access) = self.catalog.at_head(role, table)
        {
            // A join has asked; the stream has told of no change since.
            let former = self.former.remove(&key);
            let known = Rc::new(Entitlement::new(Some(access), former, Seq::MAX));
            self.known.insert(key, Rc::clone(&known));
            return Some(known);
        }
        self.ask(question);
        self.known.get(&key).filter(|known| known.holds_for(seq)).cloned()
    }

    /// What the role may see of the table's rows from now on, if that is known.
    pub(super) fn current(&self, role: &Arc<str>, table: u32) -> Option<&Rc<Entitlement>> {
        let known = self.known.get(&(Arc::clone(role), table))?;
        (known.until == Seq::MAX).then_some(known)
    }

    /// The rules, as far as they are known, of the tables that the group's bindings name.
    pub(super) fn rules(&mut self, key: &GroupKey, head: Seq) -> Vec<(u32, Arc<Rule>)> {
        let Some(role) = &key.role else { return Vec::new() };
        let tables = key.bindings.iter().filter_map(|binding| match binding.target {
            Target::Table { oid, .. } => Some(oid),
            Target::All | Target::Schema(_) => None,
        });
        tables
            .filter_map(|table| Some((table, Arc::clone(self.of(role, table, head)?.rule()))))
            .collect()
    }

    /// What the role may know of a table or schema that was made or altered by this event; `None`:
    /// that is being asked.
    pub(super) fn visibility(
        &mut self,
        role: &Arc<str>,
        object: Object,
        seq: Seq,
    ) -> Option<Rc<Visibility>> {
        let key = (Arc::clone(role), object);
        if self.visible.get(&key).is_none_or(|(_, until)| seq >= *until) {
            self.ask((Arc::clone(role), Subject::Object(object)));
        }
        let (known, until) = self.visible.get(&key)?;
        (seq < *until).then(|| Rc::clone(known))
    }

    /// Another number: what was worked out from entitlements does not hold any more.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The catalogue has changed; `next` is the first event after that.
    pub(super) fn forget(&mut self, change: &CatalogChange, next: Seq) {
        self.generation += 1;
        self.catalog.forget(change);
        // Whoever needs the others asks again.
        self.open.retain(|_, open| open.is_asking || !open.backoff.is_due());
        let is_stale = |subject: &Subject| match change {
            CatalogChange::All => true,
            CatalogChange::Relation(oid) => {
                [Subject::Rows(*oid), Subject::Object(Object::Table(*oid))].contains(subject)
            }
        };
        for (_, open) in self.open.iter_mut().filter(|((_, subject), _)| is_stale(subject)) {
            open.until = open.until.min(next);
        }
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

    /// Whether the answer is about to come: until then a connection waits as a whole, so that what
    /// it is told stays in order.
    pub(super) fn is_about_to_know(&self, role: &Arc<str>, about: Subject) -> bool {
        self.open.get(&(Arc::clone(role), about)).is_some_and(|open| !open.is_late)
    }

    /// Whether some answer has become late since the last call: what is not about it is to go on.
    pub(super) fn gives_up_waiting(&mut self) -> bool {
        let mut is_any = false;
        for open in self.open.values_mut().filter(|open| !open.is_late) {
            open.is_late = open.failures > 0 || open.asked.elapsed() > PATIENCE;
            is_any |= open.is_late;
        }
        is_any
    }

    /// The tables that were answered about since the last call.
    pub(super) fn answered(&mut self) -> impl Iterator<Item = u32> {
        self.answered.drain(..)
    }

    /// Has the question asked, unless it is.
    fn ask(&mut self, key: Key) {
        let open = self.open.entry(key.clone()).or_insert_with(Open::new);
        if open.is_asking || !open.backoff.is_due() {
            return;
        }
        (open.is_asking, open.asked, open.until) = (true, Instant::now(), Seq::MAX);
        let (catalog, sender) = (self.catalog.clone(), self.sender.clone());
        tokio::spawn(async move {
            let found = look_up(&catalog, &key).await;
            // The hub may have stopped.
            let _ = sender.send(Outcome { key, found });
        });
    }

    /// Takes in what became of a look-up.
    pub(super) fn learn(&mut self, Outcome { key, found }: Outcome) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                if let Some(open) = self.open.get_mut(&key) {
                    open.failed(&key, &error);
                }
                return;
            }
        };
        let Some(open) = self.open.remove(&key) else { return };
        let (role, subject) = key;
        match (subject, found) {
            (Subject::Rows(table), Found::Table(access)) => {
                let key = (role, table);
                let former = self.former.remove(&key);
                let entitlement = Entitlement::new(access, former, open.until);
                self.known.insert(key, Rc::new(entitlement));
                self.answered.push(table);
            }
            (Subject::Object(object), Found::Visibility(visibility)) => {
                self.visible.insert((role, object), (Rc::new(visibility), open.until));
            }
            _ => {}
        }
    }
}

impl Open {
    fn new() -> Open {
        Open {
            is_asking: false,
            asked: Instant::now(),
            until: Seq::MAX,
            failures: 0,
            is_late: false,
            backoff: Backoff::up_to(LONGEST_PAUSE),
        }
    }

    fn failed(&mut self, (role, subject): &Key, error: &CatalogError) {
        self.is_asking = false;
        match error {
            CatalogError::Refused { sqlstate, .. } if sqlstate == QUERY_CANCELED => {
                self.backoff.timed_out_after(self.asked.elapsed());
            }
            _ => self.backoff.failed_after(self.asked.elapsed()),
        }
        self.failures += 1;
        if self.failures.is_power_of_two() {
            let why = match error {
                CatalogError::Refused { sqlstate, .. } => sqlstate,
                CatalogError::Unavailable | CatalogError::Ended => {
                    "the catalog worker is not there"
                }
            };
            log::warn!(
                "what role {role} may see of {subject} cannot be looked up ({why}): its subscribers wait ({} tries so far)",
                self.failures
            );
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Subject::Rows(oid) | Subject::Object(Object::Table(oid)) => {
                write!(f, "the table {oid}::regclass")
            }
            Subject::Object(Object::Schema(oid)) => write!(f, "the schema {oid}::regnamespace"),
        }
    }
}

async fn look_up(catalog: &Catalog, (role, subject): &Key) -> Result<Found, CatalogError> {
    match *subject {
        Subject::Rows(table) => {
            let (tables, _) = catalog.tables(Lane::Express, role, Which::Oids(vec![table])).await?;
            Ok(Found::Table(tables.into_iter().find(|access| access.oid == table)))
        }
        Subject::Object(object) => Ok(Found::Visibility(catalog.visibility(role, object).await?)),
    }
}
