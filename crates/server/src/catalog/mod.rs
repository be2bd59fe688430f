//! What today's catalogue says, asked of the executors and the catalog worker over the worker's own
//! unix socket. The decoding process itself never looks at it.

pub(crate) mod frame;
mod known;
mod lanes;
mod memory;
mod pool;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use known::KnownTables;
pub(crate) use lanes::Lane;
use lanes::Traffic;
pub(crate) use memory::memory;
use pool::Pool;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tide_feed::catalog::{
    Cast, Changes, Chunk, ChunkRequest, ClaimsOutcome, ClaimsOutcomes, Grant, MAX_FRAME,
    MAX_QUESTION, Object, Outbox, PolicyOutcome, PolicyOutcomes, Request, Retired, RoleStatus,
    Rows, Secrets, TableAccess, TableName, Tables, TakenOver, Unpublished, Visibility, Which,
    is_transient,
};
use tide_feed::event::{CatalogChange, Lsn};
use tide_feed::mutation::{MAX_MUTATION, Mutated};
use tokio::net::UnixStream;

/// How long a question may wait for a helper and its answer; covers the restart of a helper.
const PATIENCE: Duration = Duration::from_secs(15);

/// Tables that one question is about, at most: so that its answer has an end.
pub(crate) const PAGE: usize = 32;

/// The client whose question it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asker {
    pub role: Arc<str>,
    /// A JSON object.
    pub claims: Arc<str>,
}

/// The catalog worker is asked what everybody waits for first, then about the tables of joins.
const CATALOG_WORKER: Traffic = Traffic { in_a_row: 8, keeps_one_free: false };

/// Policies of rows may take as long as whoever owns the tables likes: what single clients wait for is
/// not behind them.
const EXECUTORS: Traffic = Traffic { in_a_row: 1, keeps_one_free: true };

/// One chunk after another, by clients in turn.
const READERS: Traffic = Traffic { in_a_row: 1, keeps_one_free: false };

/// One mutation after another, by clients in turn; those that had to be tried again leave a writer to the
/// others.
const WRITERS: Traffic = Traffic { in_a_row: 4, keeps_one_free: true };

/// Bytes of a question to a writer: a mutation, as a text within JSON, and the claims of a token.
const MAX_WRITING: usize = 2 * MAX_MUTATION + (1 << 20);

/// A question could not be answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CatalogError {
    /// The helper process is not there (yet), or went away.
    #[error("the database is not ready to answer")]
    Unavailable,
    /// The executor went away while it was answering. The question may have been the reason, so it
    /// is not asked again.
    #[error("the process that was answering ended")]
    Ended,
    /// Postgres said no.
    #[error("{message}")]
    Refused { sqlstate: String, message: String },
}

/// A moment in the life of the database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The end of the WAL.
    pub end: Lsn,
    /// The transactions that were running: of what has committed before `end`, only these could
    /// not be seen yet.
    pub running: Arc<[u32]>,
}

impl CatalogError {
    /// Whether the same question may well be answered in a moment.
    pub fn is_transient(&self) -> bool {
        match self {
            CatalogError::Unavailable => true,
            CatalogError::Ended => false,
            CatalogError::Refused { sqlstate, .. } => is_transient(sqlstate),
        }
    }
}

/// Asks the helper processes. A cheap clone.
#[derive(Clone, Debug)]
pub struct Catalog {
    catalog_worker: Pool,
    executors: Pool,
    readers: Pool,
    writers: Pool,
    publication: String,
    known: Arc<KnownTables>,
}

impl Catalog {
    /// `publication`: the one whose tables are looked up.
    pub fn new(publication: String) -> Catalog {
        let catalog_worker = Pool::new(CATALOG_WORKER, CatalogError::Unavailable, MAX_QUESTION);
        let executors = Pool::new(EXECUTORS, CatalogError::Ended, MAX_FRAME);
        let readers = Pool::new(READERS, CatalogError::Ended, MAX_FRAME);
        let writers = Pool::new(WRITERS, CatalogError::Ended, MAX_WRITING);
        let known = Arc::default();
        Catalog { catalog_worker, executors, readers, writers, publication, known }
    }

    pub async fn secrets(&self) -> Result<Secrets, CatalogError> {
        self.look_up(Request::Secrets).await
    }

    pub async fn role(&self, role: &str) -> Result<RoleStatus, CatalogError> {
        self.look_up(Request::Role { role: role.into(), streamed: self.known.streamed() }).await
    }

    /// The tables as `role` may see them, and a moment between the question and its answer: what
    /// could be seen then has committed before the answer, what could not is not in it. A question is
    /// about at most [`PAGE`] tables.
    pub(crate) async fn tables(
        &self,
        lane: Lane,
        role: &str,
        which: Which,
    ) -> Result<(Vec<Arc<TableAccess>>, Moment), CatalogError> {
        let (role_name, publication) = (role.into(), self.publication.clone());
        let streamed = self.known.streamed();
        let request = Request::Tables { role: role_name, publication, which, streamed };
        let answer: Tables = ask(&self.catalog_worker, lane, None, request).await?;
        let tables: Vec<_> = answer.tables.into_iter().map(Arc::new).collect();
        self.known.learn(streamed, role, answer.change, &tables);
        Ok((tables, Moment { end: Lsn(answer.lsn), running: answer.running.into() }))
    }

    /// A moment after this call began. What is known of tables after it knows of all changes that
    /// were committed before.
    pub async fn moment(&self) -> Result<Moment, CatalogError> {
        let since = self.known.change();
        let answer: Changes = self.look_up(Request::Changes { since }).await?;
        self.known.changed(since, answer.change, answer.tables.as_deref());
        Ok(Moment { end: Lsn(answer.lsn), running: answer.running.into() })
    }

    /// The tables of these names as the role may see them, if all are known: as of the last
    /// [`Catalog::moment`].
    pub fn named(&self, role: &str, names: &[TableName]) -> Option<Vec<Arc<TableAccess>>> {
        self.known.named(role, names)
    }

    /// The table as the role may see it, if that is known: as of the changes of the catalogue that
    /// the stream has told of.
    pub fn at_head(&self, role: &str, table: u32) -> Option<Arc<TableAccess>> {
        self.known.at_head(role, table)
    }

    /// The stream tells of a change of the catalogue.
    pub fn forget(&self, change: &CatalogChange) {
        self.known.forget(change);
    }

    /// What `role` may know of a table or schema.
    pub async fn visibility(&self, role: &str, object: Object) -> Result<Visibility, CatalogError> {
        let streamed = self.known.streamed();
        self.look_up(Request::Visibility { role: role.into(), object, streamed }).await
    }

    /// The texts cast to the type by Postgres, as the client's role; each as the JSON `to_jsonb`
    /// prints.
    pub async fn cast(
        &self,
        asker: &Asker,
        type_sql: &str,
        values: Vec<String>,
    ) -> Result<Vec<String>, CatalogError> {
        let role = asker.role.as_ref().into();
        let request = Request::Cast { role, type_sql: type_sql.into(), values };
        let answer: Cast = ask(&self.executors, Lane::Express, Some(asker), request).await?;
        Ok(answer.values)
    }

    /// Which of the rows the table's policies admit for each client of the role, by its claims. `labels` are those of enums in them. An answer may be for the first of
    /// the clients only.
    pub async fn evaluate_policy(
        &self,
        role: &str,
        table: u32,
        rows: Rows,
        labels: Vec<(u32, String)>,
        claims: Vec<String>,
    ) -> Result<Vec<PolicyOutcome>, CatalogError> {
        let role = role.into();
        let request = Request::EvaluatePolicy { role, table, rows, labels, claims };
        let answer: PolicyOutcomes = ask(&self.executors, Lane::Slow, None, request).await?;
        Ok(answer.outcomes)
    }

    /// What the expressions are worth to each client of the role, by its claims. An answer may be
    /// for the first of them only.
    pub async fn evaluate_claims(
        &self,
        role: &str,
        expressions: Vec<String>,
        claims: Vec<String>,
    ) -> Result<Vec<ClaimsOutcome>, CatalogError> {
        let request = Request::EvaluateClaims { role: role.into(), expressions, claims };
        let answer: ClaimsOutcomes = ask(&self.executors, Lane::Slow, None, request).await?;
        Ok(answer.outcomes)
    }

    /// What the policies of `tide.channel` grant the client, for each of the extensions in turn.
    pub async fn channel(
        &self,
        asker: &Asker,
        topic: &str,
        extensions: &[&str],
    ) -> Result<Vec<Grant>, CatalogError> {
        let request = Request::Channel {
            role: asker.role.as_ref().into(),
            claims: asker.claims.as_ref().into(),
            topic: topic.into(),
            extensions: extensions.iter().map(|&name| name.into()).collect(),
        };
        ask(&self.executors, Lane::Express, Some(asker), request).await
    }

    /// The next rows of a table, as the client sees them.
    pub async fn chunk(&self, asker: &Asker, request: ChunkRequest) -> Result<Chunk, CatalogError> {
        ask_patiently(&self.readers, Lane::Slow, asker, Request::Chunk(Box::new(request))).await
    }

    /// Beyond how many of the borders each of the keys lies.
    pub async fn places(
        &self,
        asker: &Asker,
        table: u32,
        key: Vec<i16>,
        keys: Rows,
        borders: Rows,
    ) -> Result<Vec<u8>, CatalogError> {
        let Asker { role, claims } = asker;
        let (role, claims) = (role.as_ref().into(), claims.as_ref().into());
        let request = Request::Places { role, claims, table, key, keys, borders };
        ask_patiently(&self.readers, Lane::Express, asker, request).await
    }

    /// Has a mutation done, unless it has been, in the name of the client. Once a writer has begun it
    /// goes on, whether or not anybody waits for it.
    pub(crate) async fn mutate(
        &self,
        lane: Lane,
        asker: &Asker,
        mutation: String,
    ) -> Result<Mutated, CatalogError> {
        let Asker { role, claims } = asker;
        let (role, claims) = (role.as_ref().into(), claims.as_ref().into());
        let request = Request::Mutate { role, claims, mutation };
        ask_patiently(&self.writers, lane, asker, request).await
    }

    /// Forgets how mutations ended that were done so long ago, of the `limit` oldest; answers how many.
    pub async fn forget_mutations(&self, age: Duration, limit: u32) -> Result<u64, CatalogError> {
        self.look_up(Request::ForgetMutations { age, limit }).await
    }

    /// What `tide.check()` finds: a JSON array of `{"item","ok","problem","fix"}`, as text.
    pub async fn check(&self) -> Result<String, CatalogError> {
        let answer: Box<RawValue> =
            ask(&self.catalog_worker, Lane::Slow, None, Request::Check).await?;
        Ok(answer.get().to_owned())
    }

    /// The tables that are outboxes.
    pub async fn outboxes(&self) -> Result<Vec<Outbox>, CatalogError> {
        self.look_up(Request::Outboxes).await
    }

    /// Puts up to `limit` rows that wait, after `after`, in line for the slot of this generation.
    pub async fn take_over(
        &self,
        table: u32,
        generation: u32,
        after: i64,
        limit: u32,
    ) -> Result<TakenOver, CatalogError> {
        self.look_up(Request::TakeOver { table, generation, after, limit }).await
    }

    /// Has published rows of an outbox deleted, or flagged if they are to be kept; answers which
    /// of those that are to go are still there.
    pub async fn retire(
        &self,
        table: u32,
        ids: Vec<i64>,
        keep: bool,
    ) -> Result<Vec<i64>, CatalogError> {
        let answer: Retired = self.look_up(Request::Retire { table, ids, keep }).await?;
        Ok(answer.kept)
    }

    /// Has rows of an outbox say that they could not be published, each with an SQLSTATE.
    pub async fn set_aside(
        &self,
        table: u32,
        rows: Vec<(i64, Box<str>)>,
    ) -> Result<(), CatalogError> {
        self.look_up(Request::SetAside { table, rows }).await
    }

    /// How many rows of an outbox say so.
    pub async fn count_failed(&self, table: u32) -> Result<u64, CatalogError> {
        self.look_up(Request::CountFailed { table }).await
    }

    /// Up to `limit` rows after `after` that are not flagged, and a WAL address before which they
    /// have committed.
    pub async fn unpublished(
        &self,
        table: u32,
        after: i64,
        limit: u32,
    ) -> Result<Unpublished, CatalogError> {
        self.look_up(Request::Unpublished { table, after, limit }).await
    }

    /// Deletes rows flagged so long ago, of the `limit` oldest; answers how many.
    pub async fn expire(&self, table: u32, age: Duration, limit: u32) -> Result<u64, CatalogError> {
        self.look_up(Request::Expire { table, age, limit }).await
    }

    /// Asks the catalog worker before whatever single clients want to know.
    async fn look_up<T: DeserializeOwned>(&self, request: Request) -> Result<T, CatalogError> {
        ask(&self.catalog_worker, Lane::Express, None, request).await
    }

    /// Lets a connected catalog worker work until its connection ends.
    pub(crate) async fn serve_catalog_worker(&self, helper: UnixStream) -> io::Result<()> {
        self.catalog_worker.serve(helper).await
    }

    /// Lets a connected executor work until its connection ends.
    pub(crate) async fn serve_executor(&self, helper: UnixStream) -> io::Result<()> {
        self.executors.serve(helper).await
    }

    /// Lets a connected reader work until its connection ends.
    pub(crate) async fn serve_reader(&self, helper: UnixStream) -> io::Result<()> {
        self.readers.serve(helper).await
    }

    /// Lets a connected writer work until its connection ends.
    pub(crate) async fn serve_writer(&self, helper: UnixStream) -> io::Result<()> {
        self.writers.serve(helper).await
    }

    /// How many helpers are connected: catalog workers, executors.
    pub fn helpers(&self) -> (usize, usize) {
        (self.catalog_worker.helpers(), self.executors.helpers())
    }
}

async fn ask<T: DeserializeOwned>(
    pool: &Pool,
    lane: Lane,
    asker: Option<&Asker>,
    request: Request,
) -> Result<T, CatalogError> {
    let asked = pool.ask(lane, asker.cloned(), request);
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    read(&answer.map_err(|_| CatalogError::Unavailable)??)
}

/// Waits for as long as it takes until it is its turn: who goes gives up the question.
async fn ask_patiently<T: DeserializeOwned>(
    pool: &Pool,
    lane: Lane,
    asker: &Asker,
    request: Request,
) -> Result<T, CatalogError> {
    read(&pool.ask(lane, Some(asker.clone()), request).await?)
}

fn read<T: DeserializeOwned>(answer: &RawValue) -> Result<T, CatalogError> {
    serde_json::from_str(answer.get()).map_err(|error| {
        log::error!("a helper's answer is not understood: {error}");
        CatalogError::Unavailable
    })
}
