//! The operations of one mutation, one after the other.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use pgrx::{PgSqlErrorCode, pg_sys};
use serde_json::value::RawValue;
use tide_feed::mutation::{Fields, Mutation, Op, Returning, Verb};

use crate::helper::mutation::call::Callable;
use crate::helper::mutation::on_mutate::OnMutate;
use crate::helper::mutation::operation::{Done, RowOperation};
use crate::helper::mutation::target::{OpenTarget, Target};
use crate::helper::mutation::writer::as_extension_owner;
use crate::helper::mutation::{is_passing, links};
use crate::helper::transaction::{Refusal, subtransaction};

/// Bytes that a client may hear of all rows together: it is remembered.
const MOST_RETURNED: usize = 64 << 10;

pub(crate) struct Attempt<'a> {
    role: &'a str,
    /// Of the extension.
    owner: pg_sys::Oid,
    mutation: &'a Mutation,
    linked: HashSet<usize>,
    /// The operation that is under way, and the key of its row, once that is known.
    at: Cell<Option<usize>>,
    about: RefCell<Option<Fields>>,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(role: &'a str, owner: pg_sys::Oid, mutation: &'a Mutation) -> Attempt<'a> {
        Attempt {
            role,
            owner,
            mutation,
            linked: links::linked(mutation),
            at: Cell::new(None),
            about: RefCell::default(),
        }
    }

    /// Does all of it, or nothing. As the client; what is checked at a transaction's end is checked here.
    pub(crate) fn run(&self) -> Result<Vec<Option<Box<RawValue>>>, Refusal> {
        subtransaction(|| {
            let mut all: Vec<Done> = Vec::new();
            let mut bytes = 0;
            for (index, op) in self.mutation.ops.iter().enumerate() {
                self.at.set(Some(index));
                self.about.take();
                let done = match op.op {
                    Verb::Call => self.call(op, &all)?,
                    _ => self.write(index, op, &all)?,
                };
                bytes += done.returned.as_ref().map_or(0, |json| json.get().len());
                if bytes > MOST_RETURNED {
                    let code = PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;
                    let message = "a mutation returns at most 64 kB: ask for fewer columns";
                    return Err(Refusal::new(code, message));
                }
                all.push(done);
            }
            self.at.set(None);
            self.about.take();
            set_constraints_immediate();
            Ok(all.into_iter().map(|done| done.returned).collect())
        })
    }

    /// Which operation it was that failed; `None`: what was checked at the end.
    pub(crate) fn failed_at(&self) -> Option<usize> {
        self.at.get()
    }

    /// The row that the operation that failed was about, as the client may see it. Once all is undone.
    pub(crate) fn current(&self) -> Result<Option<Box<RawValue>>, Refusal> {
        let op = self.at.get().and_then(|index| self.mutation.ops.get(index));
        let (Some(op), Some(key)) = (op, self.about.take()) else { return Ok(None) };
        let current = subtransaction(|| {
            let target = self.target(op)?;
            let target = target.open()?;
            let values = Fields::new();
            let operation = RowOperation { target: &target, op, key, values, is_linked: false };
            let current = operation.current(false)?;
            target.table.close();
            Ok(current)
        });
        match current {
            Err(refusal) if is_passing(&refusal.sqlstate) => Err(refusal),
            current => Ok(current.ok().flatten().filter(|row| row.get().len() <= MOST_RETURNED)),
        }
    }

    fn write(&self, index: usize, op: &Op, done: &[Done]) -> Result<Done, Refusal> {
        let target = self.target(op)?;
        let target = target.open()?;
        let done = self.write_to(&target, index, op, done)?;
        target.table.close();
        Ok(done)
    }

    fn write_to(
        &self,
        target: &OpenTarget<'_>,
        index: usize,
        op: &Op,
        done: &[Done],
    ) -> Result<Done, Refusal> {
        let key = links::resolved(op.key.as_ref(), done)?;
        let values = links::resolved(op.values.as_ref(), done)?;
        let (key, values) = told_apart(target, op.op, key, values);
        self.about.replace(target.has_key(&key).then(|| key.clone()));
        let is_linked = self.linked.contains(&index);
        let operation = RowOperation { target, op, key, values, is_linked };
        match target.on_mutate() {
            None => operation.run(),
            Some(function) => {
                let (table, mutation) = (target.name(), self.mutation);
                OnMutate { function, table, mutation }.run(operation)
            }
        }
    }

    fn call(&self, op: &Op, done: &[Done]) -> Result<Done, Refusal> {
        let given = links::resolved(op.args.as_ref(), done)?;
        let name = op.function.as_deref().unwrap_or_default();
        let callable = as_extension_owner(self.owner, || Callable::look_up(name, &given))?;
        let returned = callable.call(&given)?;
        let is_heard = op.returning != Some(Returning::All(false));
        Ok(Done { returned: returned.filter(|_| is_heard), key: None })
    }

    fn target(&self, op: &Op) -> Result<Rc<Target>, Refusal> {
        let name = op.table.as_deref().unwrap_or_default();
        Target::known(name, self.role, || {
            as_extension_owner(self.owner, || Target::look_up(name, self.role))
        })
    }
}

/// SET CONSTRAINTS ALL IMMEDIATE: what was put off to the end is checked and done.
fn set_constraints_immediate() {
    let mut statement = pg_sys::ConstraintsSetStmt {
        type_: pg_sys::NodeTag::T_ConstraintsSetStmt,
        constraints: std::ptr::null_mut(),
        deferred: false,
    };
    // SAFETY: in a transaction, outside of any query.
    unsafe { pg_sys::AfterTriggerSetState(&raw mut statement) };
}

/// What a row is told by, and what is written to it.
fn told_apart(
    target: &OpenTarget<'_>,
    verb: Verb,
    mut key: Fields,
    mut values: Fields,
) -> (Fields, Fields) {
    match verb {
        // What is inserted has its key among its values.
        Verb::Insert if target.has_key(&values) => {
            let names: Vec<&str> = target.key_names().collect();
            key = values.clone();
            key.retain(|name, _| names.contains(&name.as_str()));
        }
        Verb::Upsert => {
            for name in target.key_names() {
                if let Some(value) = values.remove(name) {
                    key.insert(name.to_owned(), value);
                }
            }
        }
        _ => {}
    }
    (key, values)
}
