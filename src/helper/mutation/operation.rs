//! One operation of a mutation, as SQL: done as the client's role, so that its rights and the table's
//! policies, triggers and constraints are what they are for anybody.

use std::collections::HashMap;

use pgrx::{PgSqlErrorCode, Spi, pg_sys};
use serde_json::value::RawValue;
use tide_feed::mutation::{ANOTHER_VERSION, Fields, Op, Returning, Verb};

use crate::encoding;
use crate::helper::chunk_rows::{ChunkRows, Returned, raw};
use crate::helper::key_order::same;
use crate::helper::mutation::given::{Given, Parameters};
use crate::helper::mutation::statements;
use crate::helper::mutation::target::OpenTarget;
use crate::helper::table::Column;
use crate::helper::transaction::{Refusal, subtransaction};

/// What has come of an operation.
#[derive(Default)]
pub(crate) struct Done {
    /// What the client wanted to hear.
    pub(crate) returned: Option<Box<RawValue>>,
    /// The key of the row, by its columns' names, if it is asked for.
    pub(crate) key: Option<Fields>,
}

/// How often a row is gone after that is made anew all the time.
const TRIES: usize = 3;

/// What a statement did.
struct Ran {
    processed: u64,
    row: Option<Box<RawValue>>,
    key: Vec<Box<RawValue>>,
}

/// An operation on a row.
pub(crate) struct RowOperation<'a> {
    pub(crate) target: &'a OpenTarget<'a>,
    pub(crate) op: &'a Op,
    /// With what links stand for; of an insert none.
    pub(crate) key: Fields,
    pub(crate) values: Fields,
    /// A later operation has a link to the row.
    pub(crate) is_linked: bool,
}

impl RowOperation<'_> {
    /// Does it. As the client.
    pub(crate) fn run(&self) -> Result<Done, Refusal> {
        match self.op.op {
            Verb::Insert => self.insert(),
            Verb::Upsert => self.upsert(),
            Verb::Set => self.set(),
            Verb::Delete => self.delete(),
            Verb::Call => Err(Refusal::internal("a call is about no row")),
        }
    }

    fn insert(&self) -> Result<Done, Refusal> {
        let names = bare(&self.target.columns(&self.values)?);
        let mut parameters = Parameters::default();
        let given = Given::new(self.target, &self.values, "v", &mut parameters)?;
        let into = format!("insert into {} as t", self.target.table.qualified());
        let sql = match names.is_empty() {
            true => format!("{into} default values"),
            false => {
                let list: Vec<&str> = given.expressions().collect();
                let (names, list, from) = (names.join(", "), list.join(", "), from([&given]));
                format!("{into} ({names}) select {list}{from}")
            }
        };
        self.insert_returning(&sql, &parameters)
    }

    /// A client that did not ask for anything hears the key that was made for its row. Where it may not
    /// see the row, it hears nothing, and the row is inserted all the same.
    fn insert_returning(&self, sql: &str, parameters: &Parameters) -> Result<Done, Refusal> {
        let is_asked = self.op.returning.is_some() || self.is_linked;
        if is_asked || self.target.has_key(&self.values) {
            return self.returning(sql, parameters).map(|(_, done)| done);
        }
        if !self.target.may_read_key() {
            return self.plain(sql, parameters);
        }
        match subtransaction(|| self.returning(sql, parameters)) {
            Err(refusal) if refusal.sqlstate == "42501" => self.plain(sql, parameters),
            other => other.map(|(_, done)| done),
        }
    }

    /// Of a version that the client has seen, or of a key that only Postgres makes, there is a row, or there
    /// was one.
    fn upsert(&self) -> Result<Done, Refusal> {
        if self.values.is_empty() && self.op.if_version.is_some() {
            return self.check_version().map(|()| Done::default());
        }
        if (self.op.if_version.is_some() || self.target.makes_keys()) && !self.values.is_empty() {
            return self.set();
        }
        let mut values = self.values.clone();
        values.extend(self.key.clone());
        if !self.target.has_key(&values) {
            return Err(self.wrong_key()?);
        }
        let names = bare(&self.target.columns(&values)?);
        let keys: Vec<&str> = self.target.key()?.iter().map(|(_, column)| column.bare()).collect();
        let changes = names.iter().filter(|name| !keys.contains(&name.as_str()));
        let mut changes: Vec<String> =
            changes.map(|name| format!("{name} = excluded.{name}")).collect();
        let is_changed = !changes.is_empty();
        if is_changed {
            changes.extend(self.target.raised_version(&values).map(|version| raise(&version)));
        }
        let mut parameters = Parameters::default();
        let given = Given::new(self.target, &values, "v", &mut parameters)?;
        let list: Vec<&str> = given.expressions().collect();
        let mut sql = format!(
            "insert into {} as t ({}) select {}{} on conflict ({}) do ",
            self.target.table.qualified(),
            names.join(", "),
            list.join(", "),
            from([&given]),
            keys.join(", "),
        );
        sql += &match is_changed {
            true => format!("update set {}", changes.join(", ")),
            false => "nothing".into(),
        };
        self.returning(&sql, &parameters).map(|(_, done)| done)
    }

    /// Inserts it unless it is there; `None`: it is.
    pub(crate) fn insert_if_missing(&self) -> Result<Option<Done>, Refusal> {
        let mut values = self.values.clone();
        values.extend(self.key.clone());
        let names = bare(&self.target.columns(&values)?).join(", ");
        let mut parameters = Parameters::default();
        let given = Given::new(self.target, &values, "v", &mut parameters)?;
        let list: Vec<&str> = given.expressions().collect();
        let (table, list, from) = (self.target.table.qualified(), list.join(", "), from([&given]));
        let sql = format!(
            "insert into {table} as t ({names}) select {list}{from} on conflict do nothing"
        );
        let (count, done) = self.returning(&sql, &parameters)?;
        Ok((count > 0).then_some(done))
    }

    pub(crate) fn set(&self) -> Result<Done, Refusal> {
        let mut parameters = Parameters::default();
        let given = Given::new(self.target, &self.values, "v", &mut parameters)?;
        let mut changes = Vec::new();
        for name in self.values.keys() {
            let column = self.target.column(name)?;
            changes.push(format!("{} = {}", column.bare(), given.expression(name)));
        }
        changes.extend(self.target.raised_version(&self.values).map(|version| raise(&version)));
        let (key, condition) = self.condition(&mut parameters)?;
        let (table, changes) = (self.target.table.name(), changes.join(", "));
        let from = from([&given, &key]);
        let sql = format!("update {table} as t set {changes}{from} where {condition}");
        match self.touched(|| self.returning(&sql, &parameters))? {
            (0, _) if self.current(false)?.is_none() => Err(missing()),
            (_, done) => Ok(done),
        }
    }

    /// One of a row that is not there is done already.
    pub(crate) fn delete(&self) -> Result<Done, Refusal> {
        let mut parameters = Parameters::default();
        let (key, condition) = self.condition(&mut parameters)?;
        let using = key.from.map(|from| format!(" using {from}")).unwrap_or_default();
        let sql = format!("delete from {} as t{using} where {condition}", self.target.table.name());
        self.touched(|| self.returning(&sql, &parameters)).map(|(_, done)| done)
    }

    /// The same, with what the row was, as the client may see it.
    pub(crate) fn delete_seen(&self) -> Result<(Option<Box<RawValue>>, Done), Refusal> {
        let columns = self.target.readable()?;
        let list: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        if list.is_empty() {
            return self.delete().map(|done| (None, done));
        }
        let mut parameters = Parameters::default();
        let (key, condition) = self.condition(&mut parameters)?;
        let using = key.from.map(|from| format!(" using {from}")).unwrap_or_default();
        let (table, list) = (self.target.table.name(), list.join(", "));
        let sql = format!("delete from {table} as t{using} where {condition} returning {list}");
        let (_, row) = self.touched(|| {
            let ran = run(&sql, &parameters, &columns, &[], false)?;
            Ok((ran.processed, ran.row))
        })?;
        let returned = row.as_deref().map(|row| self.of_row(row)).transpose()?.flatten();
        Ok((row, Done { returned, key: None }))
    }

    /// What the client wants to hear of a row.
    fn of_row(&self, row: &RawValue) -> Result<Option<Box<RawValue>>, Refusal> {
        let columns = self.returned_columns()?;
        let fields: Fields = serde_json::from_str(row.get()).unwrap_or_default();
        let names =
            columns.iter().filter_map(|c| serde_json::from_str::<String>(&c.json_name).ok());
        let heard: Fields =
            names.filter_map(|name| fields.get(&name).map(|v| (name.clone(), v.clone()))).collect();
        let json = || raw(serde_json::to_vec(&heard).unwrap_or_default());
        if heard.is_empty() { Ok(None) } else { json().map(Some) }
    }

    /// Does something to a row that is there. Where nothing was done to one that the client sees, it may have
    /// been made a moment ago: it is done again before that is taken for an answer.
    fn touched<R>(
        &self,
        work: impl Fn() -> Result<(u64, R), Refusal>,
    ) -> Result<(u64, R), Refusal> {
        for _ in 0..TRIES {
            let ran = work()?;
            if ran.0 > 0 {
                return Ok(ran);
            }
            let is_there = self.current(false)?.is_some();
            // One that is gone is of no version.
            if !is_there && self.op.if_version.is_some() {
                return Err(another_version());
            }
            if !is_there || self.is_diverted()? {
                return Ok(ran);
            }
        }
        self.check_version()?;
        let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
        Err(Refusal::new(code, "the policies do not let the role write this row"))
    }

    /// Whether it was code of the table's owner that saw to it that nothing was done to the row, or something
    /// else, and not a policy.
    fn is_diverted(&self) -> Result<bool, Refusal> {
        let table = &self.target.table;
        if !table.may_be_diverted() {
            return Ok(false);
        }
        self.check_version()?;
        if !table.is_rewritten() {
            return Ok(true);
        }
        // Only rows that it may change can be locked by the role; of those that it may delete one has to see.
        if self.op.op != Verb::Delete {
            return Ok(self.current(true)?.is_some());
        }
        let (sql, parameters) = self.select("t.xmin::pg_catalog.text", "")?;
        let columns = [Column::of_text("xmin")];
        let row = run(&sql, &parameters, &columns, &[], false)?.row;
        let row: HashMap<String, String> =
            row.and_then(|row| serde_json::from_str(row.get()).ok()).unwrap_or_default();
        let xmin = row.values().next().and_then(|xmin| xmin.parse::<u32>().ok()).unwrap_or(0);
        // SAFETY: reads the state of this process's own transaction.
        Ok(unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xmin.into()) })
    }

    /// A SELECT of the row.
    fn select(&self, list: &str, lock: &str) -> Result<(String, Parameters), Refusal> {
        let mut parameters = Parameters::default();
        let (key, condition) = self.key_condition(&mut parameters)?;
        let also = key.from.map(|from| format!(", {from}")).unwrap_or_default();
        let table = self.target.table.name();
        Ok((format!("select {list} from {table} as t{also} where {condition}{lock}"), parameters))
    }

    /// An error if the row is not of the version that the client has seen.
    pub(crate) fn check_version(&self) -> Result<(), Refusal> {
        if self.op.if_version.is_none() {
            return Ok(());
        }
        let mut parameters = Parameters::default();
        let (key, condition) = self.condition(&mut parameters)?;
        let also = key.from.map(|from| format!(", {from}")).unwrap_or_default();
        let table = self.target.table.name();
        let sql = format!("select 1 from {table} as t{also} where {condition}");
        match run(&sql, &parameters, &[], &[], false)?.processed {
            0 => Err(another_version()),
            _ => Ok(()),
        }
    }

    /// The row as the client may see it; `is_locked`: nobody changes it until the transaction ends.
    pub(crate) fn current(&self, is_locked: bool) -> Result<Option<Box<RawValue>>, Refusal> {
        let columns = self.target.readable()?;
        if columns.is_empty() {
            return Ok(None);
        }
        let list: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let lock = if is_locked { " for no key update of t" } else { "" };
        let (sql, parameters) = self.select(&list.join(", "), lock)?;
        Ok(run(&sql, &parameters, &columns, &[], false)?.row)
    }

    fn wrong_key(&self) -> Result<Refusal, Refusal> {
        let names: Vec<&str> = self.target.key()?.iter().map(|(name, _)| name.as_str()).collect();
        let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
        Ok(Refusal::new(code, format!("a row's key is its ({})", names.join(", "))))
    }

    /// That a row is the one of the key.
    fn key_condition(&self, parameters: &mut Parameters) -> Result<(Given, String), Refusal> {
        let key = self.target.key()?;
        if self.key.len() != key.len() || !self.target.has_key(&self.key) {
            return Err(self.wrong_key()?);
        }
        let given = Given::new(self.target, &self.key, "k", parameters)?;
        let keys: Vec<String> = key.iter().map(|(_, column)| column.ordered()).collect();
        let values: Vec<String> =
            key.iter().map(|(name, _)| given.expression(name).to_owned()).collect();
        let columns: Vec<&Column> = key.iter().map(|(_, column)| column).collect();
        let condition = same(&keys, &values, &columns)?;
        Ok((given, condition))
    }

    /// And of the version that the client has seen, if it says which.
    fn condition(&self, parameters: &mut Parameters) -> Result<(Given, String), Refusal> {
        let (given, mut condition) = self.key_condition(parameters)?;
        if let Some(version) = self.seen_version(parameters)? {
            condition += &format!(" and {version}");
        }
        Ok((given, condition))
    }

    /// That a row is of the version that the client has seen, if it says which.
    fn seen_version(&self, parameters: &mut Parameters) -> Result<Option<String>, Refusal> {
        let Some(version) = &self.op.if_version else { return Ok(None) };
        let column = self.target.version()?;
        let name = serde_json::from_str::<String>(&column.json_name).unwrap_or_default();
        let fields = Fields::from([(name.clone(), version.clone())]);
        let given = Given::new(self.target, &fields, "w", parameters)?;
        let mut seen = given.expression(&name).to_owned();
        if let Some(from) = &given.from {
            seen = format!("(select {seen} from {from})");
        }
        same(&[column.ordered()], &[seen], &[&column]).map(Some)
    }

    /// Runs a statement on rows `t`; says how many there were, and what the client wants to hear.
    fn returning(&self, sql: &str, parameters: &Parameters) -> Result<(u64, Done), Refusal> {
        let columns = self.returned_columns()?;
        let hears_key = self.hears_key();
        let keys: Vec<&Column> = match hears_key || self.is_linked {
            true => self.target.key_columns().collect(),
            false => Vec::new(),
        };
        let list: Vec<&str> =
            columns.iter().chain(keys.iter().copied()).map(|column| column.name.as_str()).collect();
        let sql = match list.is_empty() {
            true => sql.to_owned(),
            false => format!("{sql} returning {}", list.join(", ")),
        };
        let ran = run(&sql, parameters, &columns, &keys, self.keeps_plan())?;
        let names = self.target.key_names().map(str::to_owned);
        let key = Some(names.zip(ran.key).collect::<Fields>()).filter(|key| !key.is_empty());
        let returned = match &key {
            Some(key) if hears_key => Some(raw(serde_json::to_vec(key).unwrap_or_default())?),
            _ => ran.row,
        };
        Ok((ran.processed, Done { returned, key }))
    }

    /// Whether the client is told of a key that was made for its row, without asking.
    fn hears_key(&self) -> bool {
        let is_made = self.op.op == Verb::Insert && !self.target.has_key(&self.values);
        self.op.returning.is_none() && is_made
    }

    /// Runs a statement whose row the client hears nothing of.
    fn plain(&self, sql: &str, parameters: &Parameters) -> Result<Done, Refusal> {
        run(sql, parameters, &[], &[], false).map(|_| Done::default())
    }

    /// Whether nothing of another's is in the plan of what is done.
    fn keeps_plan(&self) -> bool {
        !matches!(self.op.op, Verb::Insert | Verb::Upsert) && !self.target.table.is_rewritten()
    }

    /// What the client has asked for.
    fn returned_columns(&self) -> Result<Vec<Column>, Refusal> {
        match &self.op.returning {
            None | Some(Returning::All(false)) => Ok(Vec::new()),
            Some(Returning::All(true)) => self.target.readable(),
            Some(Returning::Columns(names)) => {
                names.iter().map(|name| self.target.column(name)).collect()
            }
        }
    }
}

/// Runs one statement, which returns these columns.
fn run(
    sql: &str,
    parameters: &Parameters,
    columns: &[Column],
    key: &[&Column],
    keeps_plan: bool,
) -> Result<Ran, Refusal> {
    let sql = encoding::server_string(sql);
    Spi::connect_mut(|_client| {
        let processed = statements::run(&sql, parameters, keeps_plan)?;
        let Returned { row, key } =
            ChunkRows::of(columns.iter(), key.iter().copied()).returned()?;
        Ok(Ran { processed, row, key })
    })
}

fn bare(columns: &[Column]) -> Vec<String> {
    columns.iter().map(|column| column.bare().to_owned()).collect()
}

/// The FROM of what has to stand among the tables.
fn from<'a>(given: impl IntoIterator<Item = &'a Given>) -> String {
    let from: Vec<&str> = given.into_iter().filter_map(|given| given.from.as_deref()).collect();
    if from.is_empty() { String::new() } else { format!(" from {}", from.join(", ")) }
}

fn raise(version: &Column) -> String {
    let (bare, name) = (version.bare(), &version.name);
    format!("{bare} = {name} operator(pg_catalog.+) 1::pg_catalog.int2")
}

fn missing() -> Refusal {
    Refusal::new(PgSqlErrorCode::ERRCODE_NO_DATA_FOUND, "there is no such row")
}

fn another_version() -> Refusal {
    Refusal { sqlstate: ANOTHER_VERSION.into(), message: "the row is of another version".into() }
}
