//! The tables that joins are about, as their roles may see them.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tide_feed::catalog::{TableAccess, TableName, Which};
use tokio::sync::{Notify, Semaphore, oneshot};

use super::single_flight::SingleFlight;
use crate::catalog::{Asker, Catalog, CatalogError, Lane, Moment, PAGE};
use crate::fair_queue::FairQueue;

/// The tables as the role may see them, and the moment as of which.
pub(super) type Answer = Result<(Arc<[Arc<TableAccess>]>, Moment), CatalogError>;

/// Questions of one role that are under way at a time: the next is on its way while one is answered.
const TURNS: usize = 2;

/// What joins ask of the catalog worker. What is known already is only asked whether it still holds,
/// once for all joins; what is not is asked about together with what others of the role wait for.
#[derive(Debug)]
pub(super) struct TableQuestions {
    moments: SingleFlight<(), Result<Moment, CatalogError>>,
    lines: Mutex<HashMap<Arc<str>, Arc<Line>>>,
}

/// Those who wait for tables of one role.
#[derive(Debug)]
struct Line {
    /// By their claims.
    waiting: Mutex<FairQueue<Arc<str>, Waiter>>,
    turns: Semaphore,
    /// Some are to be asked for again.
    put_back: Notify,
}

#[derive(Debug)]
struct Waiter {
    names: Vec<TableName>,
    /// One of the tables that it was asked about with may be the reason for having no answer.
    alone: bool,
    answer: oneshot::Sender<Answer>,
}

impl TableQuestions {
    pub(super) fn new() -> TableQuestions {
        TableQuestions { moments: SingleFlight::new(), lines: Mutex::default() }
    }

    /// The tables of these names, as of a moment after this call began. Of more than one question is
    /// about, one is asked after the other: between them others have their turns.
    pub(super) async fn ask(
        &self,
        catalog: &Catalog,
        asker: &Asker,
        names: &[TableName],
    ) -> Answer {
        let role = &asker.role;
        if catalog.named(role, names).is_some() {
            let asked = self.moments.answer((), || catalog.moment()).await?;
            if let Some(tables) = catalog.named(role, names) {
                return Ok((tables.into(), asked));
            }
        }
        let line = self.line(role);
        let answer = line.ask_page_by_page(catalog, asker, names).await;
        self.leave(role, line);
        answer
    }

    fn line(&self, role: &Arc<str>) -> Arc<Line> {
        let new = || Line {
            waiting: Mutex::new(FairQueue::new()),
            turns: Semaphore::new(TURNS),
            put_back: Notify::new(),
        };
        let mut lines = lock(&self.lines);
        // Those who gave up have left theirs behind.
        lines.retain(|other, line| other == role || Arc::strong_count(line) > 1);
        Arc::clone(lines.entry(Arc::clone(role)).or_insert_with(|| Arc::new(new())))
    }

    fn leave(&self, role: &Arc<str>, line: Arc<Line>) {
        let mut lines = lock(&self.lines);
        drop(line);
        if lines.get(role).is_some_and(|line| Arc::strong_count(line) == 1) {
            lines.remove(role);
        }
    }
}

impl Line {
    async fn ask_page_by_page(
        &self,
        catalog: &Catalog,
        asker: &Asker,
        names: &[TableName],
    ) -> Answer {
        let (mut tables, mut first) = (Vec::new(), None);
        for page in names.chunks(PAGE) {
            let (some, moment) = self.ask(catalog, asker, page).await?;
            tables.extend_from_slice(&some);
            first.get_or_insert(moment);
        }
        Ok((tables.into(), first.unwrap_or_default()))
    }

    /// Waits for somebody else's question that this one is a part of, or for the turn to ask.
    async fn ask(&self, catalog: &Catalog, asker: &Asker, names: &[TableName]) -> Answer {
        loop {
            let (sender, mut answer) = oneshot::channel();
            let waiter = Waiter { names: names.to_vec(), alone: false, answer: sender };
            let _place = self.enter(&asker.claims, waiter);
            loop {
                let turn = tokio::select! {
                    biased;
                    answered = &mut answer => match answered {
                        Ok(answer) => return answer,
                        // Whoever asked has given up.
                        Err(_) => break,
                    },
                    turn = self.turns.acquire() => turn,
                };
                let mut put_back = pin!(self.put_back.notified());
                put_back.as_mut().enable();
                while let Some(batch) = self.next() {
                    self.put_back(batch.ask(catalog, &asker.role).await);
                    if let Ok(answer) = answer.try_recv() {
                        return answer;
                    }
                }
                drop(turn);
                // It is a part of a question that is under way.
                tokio::select! {
                    biased;
                    answered = &mut answer => match answered {
                        Ok(answer) => return answer,
                        Err(_) => break,
                    },
                    () = put_back => {}
                }
            }
        }
    }

    /// They are to be asked for again, each alone.
    fn put_back(&self, waiters: Vec<(Arc<str>, Waiter)>) {
        if waiters.is_empty() {
            return;
        }
        for (claims, waiter) in waiters {
            lock(&self.waiting).push(claims, Waiter { alone: true, ..waiter });
        }
        self.put_back.notify_waiters();
    }

    fn enter<'a>(&'a self, claims: &'a Arc<str>, waiter: Waiter) -> Place<'a> {
        let ticket = lock(&self.waiting).push(Arc::clone(claims), waiter);
        Place { line: self, claims, ticket }
    }

    /// Those who have waited longest, as many as one question is for.
    fn next(&self) -> Option<Batch> {
        let mut waiting = lock(&self.waiting);
        let mut batch = Batch { names: Vec::new(), waiters: Vec::new() };
        while let Some((claims, waiter)) = waiting.pop_if(|waiter| batch.has_room(waiter)) {
            if !waiter.answer.is_closed() {
                batch.add(claims, waiter);
            }
        }
        (!batch.waiters.is_empty()).then_some(batch)
    }
}

/// Somebody in a line. Who gives up leaves nothing behind.
struct Place<'a> {
    line: &'a Line,
    claims: &'a Arc<str>,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.line.waiting).remove(self.claims, self.ticket);
    }
}

/// Those who wait for one question.
struct Batch {
    names: Vec<TableName>,
    /// With their claims.
    waiters: Vec<(Arc<str>, Waiter)>,
}

impl Batch {
    fn has_room(&self, waiter: &Waiter) -> bool {
        if waiter.alone || self.waiters.iter().any(|(_, other)| other.alone) {
            return self.waiters.is_empty();
        }
        let more = waiter.names.iter().filter(|name| !self.names.contains(name)).count();
        self.names.len() + more <= PAGE
    }

    fn add(&mut self, claims: Arc<str>, waiter: Waiter) {
        for name in &waiter.names {
            if !self.names.contains(name) {
                self.names.push(name.clone());
            }
        }
        self.waiters.push((claims, waiter));
    }

    /// Gives those who are to be asked for again, each alone and in their turns: one table is the
    /// reason, and the others are none of its business.
    async fn ask(self, catalog: &Catalog, role: &str) -> Vec<(Arc<str>, Waiter)> {
        match look_up(catalog, role, &self.names).await {
            Ok((tables, asked)) => {
                for (_, Waiter { names, answer, .. }) in self.waiters {
                    let is_meant = |access: &&Arc<TableAccess>| {
                        let mut meant = names.iter();
                        meant.any(|n| n.schema == access.schema && n.table == access.table)
                    };
                    let tables = tables.iter().filter(is_meant).cloned().collect();
                    // Who does not want it any more is not there.
                    let _ = answer.send(Ok((tables, asked.clone())));
                }
            }
            Err(CatalogError::Refused { .. }) if self.waiters.len() > 1 => return self.waiters,
            Err(error) => {
                for (_, waiter) in self.waiters {
                    let _ = waiter.answer.send(Err(error.clone()));
                }
            }
        }
        Vec::new()
    }
}

async fn look_up(catalog: &Catalog, role: &str, names: &[TableName]) -> Answer {
    let (tables, asked) = catalog.tables(Lane::Slow, role, Which::Named(names.to_vec())).await?;
    Ok((tables.into(), asked))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use serde_json::json;
    use tide_feed::catalog::Request;
    use tokio::net::UnixStream;
    use tokio::sync::mpsc;

    use super::*;
    use crate::catalog::frame;

    /// A catalog worker that knows every table but those called `gone`, and fails where one called
    /// `locked` is asked about. Gives what it is asked.
    fn catalog() -> (Catalog, mpsc::UnboundedReceiver<Request>) {
        let catalog = Catalog::new("tide".into());
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let served = catalog.clone();
        tokio::spawn(async move { served.serve_catalog_worker(ours).await });
        let (asked, questions) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(request) = frame::read::<Request>(&mut theirs).await {
                let answer = answer(&request);
                let _ = asked.send(request);
                if frame::write(&mut theirs, &answer).await.is_err() {
                    return;
                }
            }
        });
        (catalog, questions)
    }

    fn answer(request: &Request) -> serde_json::Value {
        let Request::Tables { which: Which::Named(names), .. } = request else {
            return json!({ "ok": { "lsn": 1, "running": [], "change": 7, "tables": [] } });
        };
        if names.iter().any(|name| name.table == "locked") {
            return json!({ "error": { "sqlstate": "55P03", "message": "not now" } });
        }
        let there = names.iter().filter(|name| name.table != "gone").map(|name| {
            let oid: u32 = name.table.parse().expect("a number");
            json!({ "oid": oid, "schema": name.schema, "table": name.table, "columns": [] })
        });
        let tables: Vec<_> = there.collect();
        json!({ "ok": { "lsn": 1, "running": [], "change": 7, "tables": tables } })
    }

    fn names(tables: &[&str]) -> Vec<TableName> {
        tables
            .iter()
            .map(|table| TableName { schema: "public".into(), table: (*table).into() })
            .collect()
    }

    fn asker(claims: &str) -> Asker {
        Asker { role: "web".into(), claims: claims.into() }
    }

    async fn ask(questions: &TableQuestions, catalog: &Catalog, tables: &[&str]) -> Vec<u32> {
        let asked = questions.ask(catalog, &asker("{}"), &names(tables)).await;
        let (tables, _) = asked.expect("an answer");
        tables.iter().map(|access| access.oid).collect()
    }

    fn all(asked: &mut mpsc::UnboundedReceiver<Request>) -> Vec<Request> {
        std::iter::from_fn(|| asked.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn what_waits_at_the_same_time_is_asked_about_together() {
        let (questions, (catalog, mut asked)) = (TableQuestions::new(), catalog());
        let tables: Vec<String> = (1..=2 * PAGE).map(|n| n.to_string()).collect();

        let asking = tables.iter().map(|table| {
            let (questions, catalog) = (&questions, &catalog);
            async move { ask(questions, catalog, &[table.as_str()]).await }
        });
        let answers = join_all(asking).await;

        let expected: Vec<Vec<u32>> = (1..=2 * PAGE as u32).map(|oid| vec![oid]).collect();
        assert_eq!(answers, expected);
        assert!(all(&mut asked).len() <= 2 * TURNS + 2);
        assert!(lock(&questions.lines).is_empty());
    }

    #[tokio::test]
    async fn a_known_table_is_only_asked_whether_it_has_changed() {
        let (questions, (catalog, mut asked)) = (TableQuestions::new(), catalog());
        // So that it knows how far the catalog worker has counted.
        catalog.moment().await.expect("an answer");
        assert_eq!(ask(&questions, &catalog, &["1", "2"]).await, [1, 2]);
        all(&mut asked);

        assert_eq!(ask(&questions, &catalog, &["2", "1"]).await, [2, 1]);

        assert_eq!(all(&mut asked), [Request::Changes { since: 7 }]);
    }

    #[tokio::test]
    async fn a_table_that_is_not_there_is_not_taken_for_known() {
        let (questions, (catalog, mut asked)) = (TableQuestions::new(), catalog());

        assert!(ask(&questions, &catalog, &["gone"]).await.is_empty());
        assert!(ask(&questions, &catalog, &["gone"]).await.is_empty());

        assert_eq!(all(&mut asked).len(), 2);
    }

    #[tokio::test]
    async fn tables_that_cannot_be_looked_up_hold_up_those_who_want_them() {
        let (questions, (catalog, mut asked)) = (TableQuestions::new(), catalog());
        let (greedy, other) = (asker("greedy"), asker("other"));
        let (locked, own) = (names(&["locked"]), names(&["1"]));

        let flood = join_all((0..50).map(|_| questions.ask(&catalog, &greedy, &locked)));
        let quick = async {
            let answer = questions.ask(&catalog, &other, &own).await;
            assert_eq!(answer.expect("an answer").0.len(), 1);
            all(&mut asked).len()
        };
        let (refused, before) = tokio::join!(flood, quick);

        assert!(refused.iter().all(Result::is_err));
        // Those that were under way, together with it, and one more for each turn.
        assert!(before <= 3 * TURNS + 2, "{before} questions came first");
    }

    #[tokio::test]
    async fn a_table_that_cannot_be_looked_up_is_not_in_the_way_of_others() {
        let (questions, (catalog, _asked)) = (TableQuestions::new(), catalog());
        let asker = asker("{}");

        let asking = ["locked", "1", "2", "locked", "3"].map(|table| {
            let (questions, catalog, asker) = (&questions, &catalog, &asker);
            async move { questions.ask(catalog, asker, &names(&[table])).await.is_ok() }
        });
        let answers = join_all(asking).await;

        assert_eq!(answers, [false, true, true, false, true]);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_question_to_the_others() {
        let (questions, catalog) = (TableQuestions::new(), Catalog::new("tide".into()));
        let asker = asker("{}");
        let (first, second) = (names(&["1"]), names(&["2"]));
        let mut given_up: Vec<_> =
            (0..TURNS).map(|_| Box::pin(questions.ask(&catalog, &asker, &first))).collect();
        given_up.iter_mut().for_each(|asking| assert!(asking.now_or_never().is_none()));
        let mut waits = Box::pin(questions.ask(&catalog, &asker, &second));
        assert!((&mut waits).now_or_never().is_none());

        drop(given_up);
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let served = catalog.clone();
        tokio::spawn(async move { served.serve_catalog_worker(ours).await });
        let helper = async {
            loop {
                let request = frame::read::<Request>(&mut theirs).await.expect("a question");
                frame::write(&mut theirs, &answer(&request)).await.expect("is there");
            }
        };

        tokio::select! {
            answer = tokio::time::timeout(Duration::from_secs(20), waits) => {
                assert_eq!(answer.expect("in time").expect("an answer").0.len(), 1);
            }
            () = helper => {}
        }
    }

    #[tokio::test]
    async fn a_client_that_names_a_great_many_tables_does_not_hold_up_another() {
        let (questions, (catalog, mut asked)) = (TableQuestions::new(), catalog());
        let (greedy, other) = (asker("greedy"), asker("other"));
        let many: Vec<String> = (1000..1000 + 40 * PAGE).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let joins: Vec<Vec<TableName>> = many.chunks(2 * PAGE).map(names).collect();

        let flood = join_all(joins.iter().map(|join| questions.ask(&catalog, &greedy, join)));
        let own = names(&["1"]);
        let quick = async {
            let answer = questions.ask(&catalog, &other, &own).await;
            (answer.expect("an answer").0.len(), all(&mut asked).len())
        };
        let (_, (found, before)) = tokio::join!(flood, quick);

        assert_eq!(found, 1);
        // Those that were under way, and one more for each turn.
        assert!(before <= 2 * TURNS + 2, "{before} questions came first");
    }

    #[tokio::test]
    async fn more_tables_than_one_question_is_for_are_asked_about_page_by_page() {
        let (questions, (catalog, mut asked)) = (TableQuestions::new(), catalog());
        let tables: Vec<String> = (1..=2 * PAGE + 1).map(|n| n.to_string()).collect();
        let tables: Vec<&str> = tables.iter().map(String::as_str).collect();

        assert_eq!(ask(&questions, &catalog, &tables).await.len(), 2 * PAGE + 1);

        assert_eq!(all(&mut asked).len(), 3);
    }
}
