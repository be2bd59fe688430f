//! A table that a client wants to write to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use pgrx::{PgSqlErrorCode, pg_sys};
use serde::Deserialize;
use tide_feed::catalog::OUTDATED;
use tide_feed::mutation::Fields;
use tide_feed::names::qualified_name;

use crate::guc;
use crate::helper::answer::parse;
use crate::helper::plan::Plan;
use crate::helper::table::{Column, Table};
use crate::helper::transaction::Refusal;
use crate::server_text::ServerText;
use crate::source::invalidation;

/// How often a table is looked up that changes meanwhile.
const TRIES: usize = 5;

/// Tables that are remembered; past it all are looked up anew.
const MOST: usize = 1_000;

thread_local! {
    static LOOKED_UP: Plan =
        const { Plan::new(include_str!("../../../sql/catalog/writable.sql")) };
    /// By the role and what it calls them, as long as nothing has changed in the catalogue.
    static KNOWN: RefCell<HashMap<(String, String), Rc<Target>>> = RefCell::default();
}

/// True: something has changed in the catalogue.
fn forget_stale() -> bool {
    let is_stale = invalidation::take().is_some();
    if is_stale {
        KNOWN.with_borrow_mut(HashMap::clear);
    }
    is_stale
}

/// What the catalogue says of it.
#[derive(PartialEq, Eq, Deserialize)]
struct Found {
    oid: u32,
    version: Option<String>,
    on_mutate: Option<String>,
    columns: Vec<FoundColumn>,
}

#[derive(PartialEq, Eq, Deserialize)]
struct FoundColumn {
    name: String,
    attnum: i16,
    readable: bool,
    updatable: bool,
}

/// A table as the client may write it.
pub(crate) struct Target {
    /// As the client calls it.
    name: String,
    found: Found,
}

impl Target {
    /// The one of this name, locked; looked up if it is not remembered. In a transaction.
    pub(crate) fn known(
        name: &str,
        role: &str,
        look_up: impl Fn() -> Result<Target, Refusal>,
    ) -> Result<Rc<Target>, Refusal> {
        let key = (role.to_owned(), name.to_owned());
        // Waiting for the lock is when another may have come to have the name, or the columns.
        for _ in 0..TRIES {
            forget_stale();
            let known = KNOWN.with_borrow(|known| known.get(&key).cloned());
            let target = match known {
                Some(target) => target,
                None => Target::remember(&key, look_up()?),
            };
            target.lock();
            if !forget_stale() {
                return Ok(target);
            }
            let again = look_up()?;
            if again.found == target.found {
                return Ok(Target::remember(&key, again));
            }
        }
        Err(Refusal { sqlstate: OUTDATED.into(), message: "the table changes all the time".into() })
    }

    fn remember(key: &(String, String), target: Target) -> Rc<Target> {
        let target = Rc::new(target);
        KNOWN.with_borrow_mut(|known| {
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(key.clone(), Rc::clone(&target));
        });
        target
    }

    /// Looks it up. As the extension's owner.
    pub(crate) fn look_up(name: &str, role: &str) -> Result<Target, Refusal> {
        let (schema, table) = qualified_name(name).ok_or_else(|| {
            let code = PgSqlErrorCode::ERRCODE_INVALID_NAME;
            Refusal::new(code, "a table is named schema.table, names with dots in double quotes")
        })?;
        let publication = guc::publication();
        let arguments = [
            ServerText(schema.as_str()).into(),
            ServerText(table.as_str()).into(),
            ServerText(role).into(),
            ServerText(publication.as_str()).into(),
        ];
        let found: Option<Found> = parse(&LOOKED_UP.with(|plan| plan.text(&arguments))?)?;
        let found = found.ok_or_else(|| {
            let code = PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE;
            Refusal::new(code, format!("there is no published table {name} that the role may use"))
        })?;
        Ok(Target { name: name.to_owned(), found })
    }

    /// Locks it against changes of its definition. In a transaction, whose end unlocks it.
    pub(crate) fn lock(&self) {
        // SAFETY: in a transaction. As what is done to it will lock it anyway.
        unsafe {
            let oid = pg_sys::Oid::from(self.found.oid);
            pg_sys::LockRelationOid(oid, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
        }
    }

    /// Once it is locked.
    pub(crate) fn open(&self) -> Result<OpenTarget<'_>, Refusal> {
        let table = Table::open(self.found.oid)?;
        let key = table.write_key();
        let key = table.key_columns(&key)?.into_iter().zip(key).map(|(column, (attnum, _))| {
            let name = self.found.columns.iter().find(|found| found.attnum == attnum);
            (name.map(|found| found.name.clone()).unwrap_or_default(), column)
        });
        let key = key.collect();
        let attnums = self.found.columns.iter().map(|found| (found.name.as_str(), found)).collect();
        Ok(OpenTarget { target: self, table, key, attnums })
    }
}

/// It is locked.
pub(crate) struct OpenTarget<'a> {
    target: &'a Target,
    pub(crate) table: Table,
    /// The columns that a row is told by, with their names as clients write them.
    key: Vec<(String, Column)>,
    attnums: HashMap<&'a str, &'a FoundColumn>,
}

impl<'a> OpenTarget<'a> {
    /// As the client calls it.
    pub(crate) fn name(&self) -> &'a str {
        &self.target.name
    }

    /// The function that says what is stored, as SQL names it.
    pub(crate) fn on_mutate(&self) -> Option<&'a str> {
        self.target.found.on_mutate.as_deref()
    }

    /// The key's columns; an error if there are none.
    pub(crate) fn key(&self) -> Result<&[(String, Column)], Refusal> {
        if self.key.is_empty() {
            let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
            let message = format!("{} has no primary key to tell its rows by", self.target.name);
            return Err(Refusal::new(code, message));
        }
        Ok(&self.key)
    }

    /// The key's columns, if there are any.
    pub(crate) fn key_columns(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().map(|(_, column)| column)
    }

    /// Whether a column of the key is only ever made by Postgres.
    pub(crate) fn makes_keys(&self) -> bool {
        let attnums = self.key.iter().filter_map(|(name, _)| self.attnums.get(name.as_str()));
        attnums.into_iter().any(|found| self.table.is_always_generated(found.attnum))
    }

    pub(crate) fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().map(|(name, _)| name.as_str())
    }

    /// Whether these fields have all of a key.
    pub(crate) fn has_key(&self, fields: &Fields) -> bool {
        !self.key.is_empty() && self.key.iter().all(|(name, _)| fields.contains_key(name))
    }

    /// The columns of these fields.
    pub(crate) fn columns(&self, fields: &Fields) -> Result<Vec<Column>, Refusal> {
        fields.keys().map(|name| self.column(name)).collect()
    }

    pub(crate) fn column(&self, name: &str) -> Result<Column, Refusal> {
        let found = self.attnums.get(name).ok_or_else(|| {
            let code = PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN;
            Refusal::new(code, format!("{} has no column \"{name}\"", self.target.name))
        })?;
        self.table.column(found.attnum)
    }

    /// Those that the client may read.
    pub(crate) fn readable(&self) -> Result<Vec<Column>, Refusal> {
        let found = self.target.found.columns.iter().filter(|found| found.readable);
        found.map(|found| self.table.column(found.attnum)).collect()
    }

    pub(crate) fn may_read_key(&self) -> bool {
        self.key
            .iter()
            .all(|(name, _)| self.attnums.get(name.as_str()).is_some_and(|found| found.readable))
    }

    /// The column that says which version of a row there is; an error if there is none.
    pub(crate) fn version(&self) -> Result<Column, Refusal> {
        let name = self.target.found.version.as_deref().ok_or_else(|| {
            let code = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
            let message = format!(
                "{} has no version to compare with: select tide.version_column('{}', '...')",
                self.target.name, self.target.name
            );
            Refusal::new(code, message)
        })?;
        self.column(name)
    }

    /// The version's column, if it is a number that a write of these fields is to raise.
    pub(crate) fn raised_version(&self, given: &Fields) -> Option<Column> {
        let name =
            self.target.found.version.as_deref().filter(|name| !given.contains_key(*name))?;
        let found = self.attnums.get(name).filter(|found| found.updatable)?;
        let column = self.table.column(found.attnum).ok()?;
        [pg_sys::INT2OID, pg_sys::INT4OID, pg_sys::INT8OID]
            .contains(&column.type_id)
            .then_some(column)
    }

    /// What takes these fields out of a parameter that is JSON, as a row of this name.
    pub(crate) fn taken_apart(
        &self,
        fields: &Fields,
        parameter: &str,
        alias: &str,
    ) -> Result<String, Refusal> {
        let attnums: Vec<i16> = fields
            .keys()
            .filter_map(|name| self.attnums.get(name.as_str()).map(|found| found.attnum))
            .collect();
        // The row that is made has all columns, and with them the checks of domains.
        if self.table.has_constrained_domains_besides(&attnums) {
            let columns = self.columns(fields)?;
            let columns = columns.iter().map(|c| format!("{} {}", c.bare(), c.type_sql));
            let list = columns.collect::<Vec<_>>().join(", ");
            return Ok(format!(
                "pg_catalog.json_to_record({parameter}::pg_catalog.json) as {alias} ({list})"
            ));
        }
        let table = self.table.qualified();
        Ok(format!(
            "pg_catalog.json_populate_record(null::{table}, {parameter}::pg_catalog.json) as {alias}"
        ))
    }
}
