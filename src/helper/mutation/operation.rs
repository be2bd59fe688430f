//! One operation of a mutation, as SQL: done as the client's role, so that its rights and the table's
//! policies, triggers and constraints are what they are for anybody.

use pgrx::{PgSqlErrorCode, Spi};
use serde_json::value::RawValue;
use tide_feed::mutation::{ANOTHER_VERSION, Fields, Op, Returning, Verb};

use crate::encoding;
use crate::helper::chunk_rows::{ChunkRows, Returned, raw};
use crate::helper::key_order::same;
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
        let into = format!("insert into {} as t", self.target.table.qualified());
        let sql = if names.is_empty() {
            format!("{into} default values")
        } else {
            let source = self.target.source(&self.values, 1, "v")?;
            format!("{into} ({}) select {} from {source}", names.join(", "), of("v", &names))
        };
        self.insert_returning(&sql, &[&self.values])
    }

    /// A client that did not ask for anything hears the key that was made for its row. Where it may not
    /// see the row, it hears nothing, and the row is inserted all the same.
    fn insert_returning(&self, sql: &str, fields: &[&Fields]) -> Result<Done, Refusal> {
        let is_asked = self.op.returning.is_some() || self.is_linked;
        if is_asked || self.target.has_key(&self.values) {
            return self.returning(sql, fields);
        }
        if !self.target.may_read_key() {
            return self.plain(sql, fields);
        }
        match subtransaction(|| self.returning(sql, fields)) {
            Err(refusal) if refusal.sqlstate == "42501" => self.plain(sql, fields),
            other => other,
        }
    }

    fn upsert(&self) -> Result<Done, Refusal> {
        let mut values = self.values.clone();
        values.extend(self.key.clone());
        let names = bare(&self.target.columns(&values)?);
        let key = self.target.key()?;
        if !self.target.has_key(&values) {
            return Err(self.wrong_key()?);
        }
        let keys = bare_of(key.iter().map(|(_, column)| column));
        let mut changes: Vec<String> = names
            .iter()
            .filter(|name| !keys.contains(name))
            .map(|name| format!("{name} = excluded.{name}"))
            .collect();
        if !changes.is_empty()
            && let Some(version) = self.target.raised_version(&values)
        {
            changes.push(raise(&version));
        }
        let (table, keys) = (self.target.table.qualified(), keys.join(", "));
        let source = self.target.source(&values, 1, "v")?;
        let (list, given) = (names.join(", "), of("v", &names));
        let mut sql = format!(
            "insert into {table} as t ({list}) select {given} from {source} on conflict ({keys}) do "
        );
        if changes.is_empty() {
            sql += "nothing";
        } else {
            sql += &format!("update set {}", changes.join(", "));
        }
        let Some((version, condition)) = self.version_condition(2)? else {
            return self.returning(&sql, &[&values]);
        };
        if !changes.is_empty() {
            sql += &format!(" where {condition}");
        }
        let (ran, done) = self.ran_returning(&sql, &[&values, &version])?;
        if ran == 0 && !changes.is_empty() {
            return Err(another_version());
        }
        Ok(done)
    }

    fn set(&self) -> Result<Done, Refusal> {
        let names = bare(&self.target.columns(&self.values)?);
        let mut changes: Vec<String> =
            names.iter().map(|name| format!("{name} = v.{name}")).collect();
        changes.extend(self.target.raised_version(&self.values).map(|version| raise(&version)));
        let (source, key) = (self.target.source(&self.values, 1, "v")?, self.key_source(2)?);
        let version = self.version_condition(3)?;
        let condition = self.condition(version.as_ref())?;
        let (table, changes) = (self.target.table.name(), changes.join(", "));
        let sql =
            format!("update {table} as t set {changes} from {source}, {key} where {condition}");
        let mut fields = vec![&self.values, &self.key];
        fields.extend(version.as_ref().map(|(version, _)| version));
        match self.ran_returning(&sql, &fields)? {
            (0, _) => Err(self.untouched(true)?),
            (_, done) => Ok(done),
        }
    }

    /// One of a row that is not there is done already.
    fn delete(&self) -> Result<Done, Refusal> {
        let key = self.key_source(1)?;
        let version = self.version_condition(2)?;
        let condition = self.condition(version.as_ref())?;
        let table = self.target.table.name();
        let sql = format!("delete from {table} as t using {key} where {condition}");
        let mut fields = vec![&self.key];
        fields.extend(version.as_ref().map(|(version, _)| version));
        match self.ran_returning(&sql, &fields)? {
            (0, _) if self.current(false)?.is_some() => Err(self.untouched(false)?),
            (_, done) => Ok(done),
        }
    }

    /// The row as the client may see it; `is_locked`: nobody changes it until the transaction ends.
    pub(crate) fn current(&self, is_locked: bool) -> Result<Option<Box<RawValue>>, Refusal> {
        let columns = self.target.readable()?;
        if columns.is_empty() {
            return Ok(None);
        }
        let list: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let (list, table) = (list.join(", "), self.target.table.name());
        let (key, condition) = (self.key_source(1)?, self.condition(None)?);
        let lock = if is_locked { " for no key update of t" } else { "" };
        let sql = format!("select {list} from {table} as t, {key} where {condition}{lock}");
        Ok(run(&sql, &[&self.key], &columns, &[], false)?.row)
    }

    /// Why no row was changed.
    fn untouched(&self, has_to_be_there: bool) -> Result<Refusal, Refusal> {
        let is_there = self.current(false)?.is_some();
        Ok(if !is_there && has_to_be_there {
            Refusal::new(PgSqlErrorCode::ERRCODE_NO_DATA_FOUND, "there is no such row")
        } else if self.op.if_version.is_some() {
            another_version()
        } else {
            let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
            Refusal::new(code, "the policies do not let the role write this row")
        })
    }

    fn key_source(&self, parameter: usize) -> Result<String, Refusal> {
        let key = self.target.key()?;
        if self.key.len() != key.len() || !self.target.has_key(&self.key) {
            return Err(self.wrong_key()?);
        }
        self.target.source(&self.key, parameter, "k")
    }

    fn wrong_key(&self) -> Result<Refusal, Refusal> {
        let names: Vec<&str> = self.target.key()?.iter().map(|(name, _)| name.as_str()).collect();
        let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
        Ok(Refusal::new(code, format!("a row's key is its ({})", names.join(", "))))
    }

    /// That a row is the one of the key, and of the version.
    fn condition(&self, version: Option<&(Fields, String)>) -> Result<String, Refusal> {
        let key = self.target.key()?;
        let keys: Vec<String> = key.iter().map(|(_, column)| column.ordered()).collect();
        let values: Vec<String> =
            key.iter().map(|(_, column)| format!("k.{}", column.bare())).collect();
        let columns: Vec<&Column> = key.iter().map(|(_, column)| column).collect();
        let mut condition = same(&keys, &values, &columns)?;
        if let Some((_, version)) = version {
            condition += &format!(" and {version}");
        }
        Ok(condition)
    }

    /// The version that the client has seen, as fields, and the condition that it is the row's.
    fn version_condition(&self, parameter: usize) -> Result<Option<(Fields, String)>, Refusal> {
        let Some(version) = &self.op.if_version else { return Ok(None) };
        let column = self.target.version()?;
        let name = serde_json::from_str::<String>(&column.json_name).unwrap_or_default();
        let fields = Fields::from([(name, version.clone())]);
        let source = self.target.source(&fields, parameter, "w")?;
        let seen = format!("(select w.{} from {source})", column.bare());
        let condition = same(&[column.ordered()], &[seen], &[&column])?;
        Ok(Some((fields, condition)))
    }

    /// Runs a statement on rows `t`, and takes what the client wants to hear.
    fn returning(&self, sql: &str, fields: &[&Fields]) -> Result<Done, Refusal> {
        self.ran_returning(sql, fields).map(|(_, done)| done)
    }

    /// And says how many rows there were.
    fn ran_returning(&self, sql: &str, fields: &[&Fields]) -> Result<(u64, Done), Refusal> {
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
        let ran = run(&sql, fields, &columns, &keys, self.keeps_plan())?;
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
    fn plain(&self, sql: &str, fields: &[&Fields]) -> Result<Done, Refusal> {
        run(sql, fields, &[], &[], false).map(|_| Done::default())
    }

    /// Whether nothing of another's is in the plan of what is done.
    fn keeps_plan(&self) -> bool {
        matches!(self.op.op, Verb::Set | Verb::Delete) && !self.target.table.has_policies()
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

/// Runs one statement, whose parameters are fields as JSON; it returns these columns.
fn run(
    sql: &str,
    fields: &[&Fields],
    columns: &[Column],
    key: &[&Column],
    keeps_plan: bool,
) -> Result<Ran, Refusal> {
    let sql = encoding::server_string(sql);
    Spi::connect_mut(|_client| {
        let processed = statements::run(&sql, fields, keeps_plan)?;
        let Returned { row, key } =
            ChunkRows::of(columns.iter(), key.iter().copied()).returned()?;
        Ok(Ran { processed, row, key })
    })
}

fn bare(columns: &[Column]) -> Vec<String> {
    bare_of(columns.iter())
}

fn bare_of<'a>(columns: impl Iterator<Item = &'a Column>) -> Vec<String> {
    columns.map(|column| column.bare().to_owned()).collect()
}

/// These columns of the row of this name.
fn of(alias: &str, names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{alias}.{name}")).collect();
    names.join(", ")
}

fn raise(version: &Column) -> String {
    let (bare, name) = (version.bare(), &version.name);
    format!("{bare} = {name} operator(pg_catalog.+) 1::pg_catalog.int2")
}

fn another_version() -> Refusal {
    Refusal { sqlstate: ANOTHER_VERSION.into(), message: "the row is of another version".into() }
}
