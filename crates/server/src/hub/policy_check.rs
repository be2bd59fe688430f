//! Questions about policies that only Postgres can answer. They are put to the executors beside the
//! stream: a group whose answer is not at hand reads on from the history once it is, and nobody
//! else waits for it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tide_feed::catalog::{Evaluation, Judgement, RENAMED, is_transient};
use tide_feed::event::CatalogChange;
use tokio::sync::mpsc;

use super::catch_up::LaggingSessions;
use super::entitlement::{Entitlement, Entitlements, Subject};
use super::group::GroupId;
use super::history::{History, Seq};
use super::registry::Registry;
use super::shipment::{Asked, ROWS, Shipment};
use crate::catalog::{Catalog, CatalogError};
use crate::policy::{Rule, Seen, Sight, Value, Way};
use crate::stats::Stats;

/// The SQLSTATE of a process that was ended, as one is whose code cannot be cancelled.
const ADMIN_SHUTDOWN: &str = "57P01";

/// Clients that one question is about, at most: about rows, and about claims.
const CLIENTS: usize = 64;
const CLAIMANTS: usize = 256;
/// Verdicts that a group keeps: those that it has not come to yet. One more drops the oldest, which
/// is then asked about again.
const VERDICTS: usize = 4096;
/// Pause before a question that found no executor, or was not answered, is asked again.
const RETRY: Duration = Duration::from_millis(100);
/// How often one is that may have been the reason for having no answer.
const TRIES: u32 = 3;

/// What is known of an event for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Sight(Sight),
    /// The policy failed, with this SQLSTATE.
    Failed(Arc<str>),
}

/// What a group has heard about the policies that decide for it, and what it waits for.
#[derive(Default)]
pub(super) struct Hearing {
    verdicts: BTreeMap<Seq, (Arc<Rule>, Verdict)>,
    /// What the claims in the rules of tables are worth to it.
    values: Vec<(u32, Arc<Rule>, Box<[Value]>)>,
    /// The event that it waits at.
    awaited: Option<Seq>,
    /// What it waits to know.
    about: Option<Subject>,
    /// How often what it waits for was asked in vain.
    tries: u32,
    /// Rows that may be asked about at once, if fewer than usual: a policy failed on more.
    rows: Option<usize>,
    /// Its members know that the policy fails.
    pub(super) told: bool,
}

impl Hearing {
    pub(super) fn verdict(&self, seq: Seq, rule: &Arc<Rule>) -> Option<Verdict> {
        let (judged_by, verdict) = self.verdicts.get(&seq)?;
        Arc::ptr_eq(judged_by, rule).then(|| verdict.clone())
    }

    /// What the claims in a rule are worth to the group; `None`: not known yet.
    pub(super) fn values(&self, rule: &Arc<Rule>) -> Option<&[Value]> {
        if rule.claims.is_empty() {
            return Some(&[]);
        }
        let known = self.values.iter().find(|(_, of, _)| Arc::ptr_eq(of, rule));
        known.map(|(.., values)| &**values)
    }

    fn learn(&mut self, table: u32, rule: &Arc<Rule>, values: Box<[Value]>) {
        self.values.retain(|(other, ..)| *other != table);
        self.values.reserve_exact(1);
        self.values.push((table, Arc::clone(rule), values));
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.awaited.is_some()
    }

    /// What it waits to know, if it waits.
    pub(super) fn awaits(&self) -> Option<Subject> {
        self.about.filter(|_| self.is_waiting())
    }

    /// What is before `end` is not asked about any more.
    pub(super) fn skip_to(&mut self, end: Seq) {
        self.awaited = self.awaited.map(|awaited| awaited.max(end));
    }

    fn keep(&mut self, seq: Seq, rule: &Arc<Rule>, verdict: Verdict) {
        self.verdicts.insert(seq, (Arc::clone(rule), verdict));
        if self.verdicts.len() > VERDICTS {
            self.verdicts.pop_first();
        }
    }

    /// Drops what no member will come to any more; `lag` is where the last of them is.
    pub(super) fn forget(&mut self, lag: Option<Seq>) {
        match lag {
            Some(lag) if !self.verdicts.is_empty() => self.verdicts = self.verdicts.split_off(&lag),
            Some(_) => {}
            None => self.verdicts = BTreeMap::new(),
        }
    }
}

/// Whom and what a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Matter {
    role: Arc<str>,
    about: Subject,
}

/// The groups that wait for answers in one matter. One question of a matter is asked at a time, so
/// that a slow policy does not keep all executors busy.
#[derive(Default)]
struct Docket {
    waiting: VecDeque<GroupId>,
    is_asking: bool,
    /// No executor was there.
    not_before: Option<Instant>,
    /// How often the last question was about labels that have other names by now.
    renamings: u32,
}

struct Question {
    rule: Arc<Rule>,
    groups: Vec<GroupId>,
    claims: Vec<String>,
    /// None where it is about what the claims are worth.
    asked: Vec<Asked>,
    count: usize,
    /// A JSON array.
    rows: String,
    /// Of enums, in the rows and the rule's condition, with their oids.
    labels: Vec<(u32, String)>,
}

/// An answered question.
pub(super) struct Answer {
    role: Arc<str>,
    table: u32,
    rule: Arc<Rule>,
    groups: Vec<GroupId>,
    asked: Vec<Asked>,
    count: usize,
    outcome: Result<Vec<Said>, CatalogError>,
}

/// What was said about one group.
enum Said {
    Visible(Vec<bool>),
    Values(Vec<Option<String>>),
    Failed(String),
}

impl From<Judgement> for Said {
    fn from(judgement: Judgement) -> Said {
        match judgement {
            Judgement::Visible(visible) => Said::Visible(visible),
            Judgement::Failed(sqlstate) => Said::Failed(sqlstate),
        }
    }
}

impl From<Evaluation> for Said {
    fn from(evaluation: Evaluation) -> Said {
        match evaluation {
            Evaluation::Values(values) => Said::Values(values),
            Evaluation::Failed(sqlstate) => Said::Failed(sqlstate),
        }
    }
}

/// All open questions.
pub(super) struct Inquiries {
    dockets: HashMap<Matter, Docket>,
    catalog: Catalog,
    sender: mpsc::UnboundedSender<Answer>,
    answers: mpsc::UnboundedReceiver<Answer>,
}

impl Inquiries {
    pub(super) fn new(catalog: Catalog) -> Inquiries {
        // At most one for each matter.
        let (sender, answers) = mpsc::unbounded_channel();
        Inquiries { dockets: HashMap::new(), catalog, sender, answers }
    }

    /// Waits for what is to be given to [`Inquiries::settle`]. Loses nothing if it is given up.
    pub(super) async fn answer(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => answer,
            // Cannot be: the other end is here as well.
            None => std::future::pending().await,
        }
    }

    /// Somebody waits for a question that will be asked in a moment.
    pub(super) fn is_resting(&self) -> bool {
        let waits = |docket: &Docket| !docket.is_asking && !docket.waiting.is_empty();
        self.dockets.values().any(|docket| docket.not_before.is_some() || waits(docket))
    }

    /// The group cannot go on without a verdict on the event.
    pub(super) fn raise(&mut self, id: GroupId, seq: Seq, about: Subject, registry: &mut Registry) {
        let Some(group) = registry.group_mut(id) else { return };
        let Some(role) = &group.key.role else { return };
        let hearing = &mut group.plans.hearing;
        if let Some(awaited) = &mut hearing.awaited {
            *awaited = seq.min(*awaited);
            return;
        }
        (hearing.awaited, hearing.about) = (Some(seq), Some(about));
        let matter = Matter { role: Arc::clone(role), about };
        self.dockets.entry(matter).or_default().waiting.push_back(id);
    }

    /// Asks whatever can be asked now.
    pub(super) fn ask(
        &mut self,
        registry: &mut Registry,
        history: &History,
        entitlements: &mut Entitlements,
        lagging: &mut LaggingSessions,
        stats: &Stats,
    ) {
        let now = Instant::now();
        self.dockets.retain(|_, docket| docket.is_asking || !docket.waiting.is_empty());
        for (matter, docket) in &mut self.dockets {
            if docket.is_asking || docket.not_before.is_some_and(|time| now < time) {
                continue;
            }
            docket.not_before = None;
            let Some(seq) = docket.awaited(registry) else { continue };
            let table = match matter.about {
                Subject::Rows(table) => table,
                Subject::Object(object) => {
                    if entitlements.visibility(&matter.role, object, seq).is_some() {
                        docket.release(registry, lagging);
                    }
                    continue;
                }
            };
            let Some(entitlement) = entitlements.of(&matter.role, table, seq) else { continue };
            let question = docket.question(table, registry, history, &entitlement, lagging);
            let Some(question) = question else { continue };
            stats.policy_questions_total.inc();
            docket.is_asking = true;
            let (catalog, sender) = (self.catalog.clone(), self.sender.clone());
            let role = Arc::clone(&matter.role);
            tokio::spawn(async move {
                let Question { rule, groups, claims, asked, count, rows, labels } = question;
                let outcome = if rule.way == Way::Formula {
                    let expressions = rule.claims.iter().map(|claim| claim.sql.to_string());
                    let evaluated = catalog.evaluate(&role, expressions.collect(), claims).await;
                    evaluated.map(|all| all.into_iter().map(Said::from).collect())
                } else {
                    let condition = &rule.condition;
                    let judged = catalog.judge(&role, table, condition, rows, labels, claims);
                    judged.await.map(|all| all.into_iter().map(Said::from).collect())
                };
                // The hub may have stopped.
                let _ = sender.send(Answer { role, table, rule, groups, asked, count, outcome });
            });
        }
    }

    /// Hands an answer to the groups that waited for it.
    pub(super) fn settle(
        &mut self,
        answer: Answer,
        registry: &mut Registry,
        entitlements: &mut Entitlements,
        lagging: &mut LaggingSessions,
        stats: &Stats,
    ) {
        let Answer { role, table, rule, groups, asked, count, outcome } = answer;
        let matter = Matter { role: Arc::clone(&role), about: Subject::Rows(table) };
        let Some(docket) = self.dockets.get_mut(&matter) else { return };
        docket.is_asking = false;
        // What is said by a rule counts for as long as that is the rule. Here it may not be known
        // whether it still is: whoever comes to the event looks.
        let now = entitlements.current(&role, table).map(|entitlement| entitlement.rule());
        let is_current = now.is_some_and(|now| Arc::ptr_eq(now, &rule));
        let is_stale = now.is_some() && !is_current;
        let is_renamed = outcome.as_ref().is_err_and(is_renaming)
            || outcome.iter().flatten().any(|said| matches!(said, Said::Failed(s) if s == RENAMED));
        docket.renamings = if is_renamed { docket.renamings + 1 } else { 0 };
        let said = match outcome {
            _ if is_stale => Vec::new(),
            // Sooner than the stream comes to it: the question is put by today's names again. If
            // that does not help, it is about values that have others in them.
            _ if is_renamed && docket.renamings < TRIES => {
                entitlements.forget(&CatalogChange::Relation(table), Seq::MAX);
                Vec::new()
            }
            Ok(said) => said,
            Err(CatalogError::Unavailable) => {
                docket.not_before = Some(Instant::now() + RETRY);
                Vec::new()
            }
            // As likely as not by the first; the others are asked about again.
            Err(CatalogError::Ended) => vec![Said::Failed(ADMIN_SHUTDOWN.into())],
            Err(CatalogError::Refused { sqlstate, .. }) => {
                groups.iter().map(|_| Said::Failed(sqlstate.clone())).collect()
            }
        };
        let mut said = said.into_iter();
        // Those that it was too late for are the first to be asked about next, in their order.
        let mut again = Vec::new();
        for id in groups {
            let Some(group) = registry.group_mut(id) else { continue };
            let hearing = &mut group.plans.hearing;
            match said.next() {
                None => again.push(id),
                Some(Said::Visible(visible)) if visible.len() == count => {
                    hearing.heed(&visible, &rule, &asked);
                    wake(id, registry, lagging);
                }
                Some(Said::Values(values)) => {
                    match rule.read(&values) {
                        Some(values) => {
                            hearing.learn(table, &rule, values);
                            if is_current {
                                registry.anchor(id, table, &rule);
                            }
                        }
                        None => hearing.failed(&rule, "XX000", (&role, table), stats),
                    }
                    wake(id, registry, lagging);
                }
                Some(Said::Failed(sqlstate)) if hearing.is_to_wait(&sqlstate, asked.len()) => {
                    docket.not_before = Some(Instant::now() + RETRY);
                    again.push(id);
                }
                Some(Said::Failed(_) | Said::Visible(_)) if asked.len() > 1 => {
                    hearing.rows = Some((count / 8).max(1));
                    again.push(id);
                }
                Some(Said::Visible(_)) => {
                    hearing.failed(&rule, "XX000", (&role, table), stats);
                    wake(id, registry, lagging);
                }
                Some(Said::Failed(sqlstate)) => {
                    hearing.failed(&rule, &sqlstate, (&role, table), stats);
                    wake(id, registry, lagging);
                }
            }
        }
        for id in again.into_iter().rev() {
            docket.waiting.push_front(id);
        }
    }
}

impl Hearing {
    /// Takes in which of the rows are visible.
    fn heed(&mut self, visible: &[bool], rule: &Arc<Rule>, asked: &[Asked]) {
        self.rows = self.rows.map(|rows| rows * 2).filter(|rows| *rows < ROWS);
        for Asked { seq, before, after, sight } in asked {
            let seen = |place: Option<usize>, known| {
                place.and_then(|i| visible.get(i)).map_or(known, |v| Seen::from(*v))
            };
            let sight =
                Sight { before: seen(*before, sight.before), after: seen(*after, sight.after) };
            self.keep(*seq, rule, Verdict::Sight(sight));
        }
    }

    /// Whether an error says nothing about the policies. An internal one, or a process that has ended,
    /// may do so after all, if it does not go away.
    fn is_to_wait(&mut self, sqlstate: &str, events: usize) -> bool {
        let is_doubtful = sqlstate == "XX000" || sqlstate.starts_with("57");
        if !is_transient(sqlstate) || !is_doubtful {
            return is_transient(sqlstate);
        }
        let is_tried = events <= 1 && !self.told;
        self.tries += u32::from(is_tried);
        is_tried && self.tries < TRIES
    }

    /// There will be no verdict on the event that is waited for.
    fn failed(
        &mut self,
        rule: &Arc<Rule>,
        sqlstate: &str,
        (role, table): (&str, u32),
        stats: &Stats,
    ) {
        stats.policy_failures_total.inc();
        if !self.told {
            log::warn!("a policy of table {table} failed for role {role}: SQLSTATE {sqlstate}");
        }
        if let Some(seq) = self.awaited {
            self.keep(seq, rule, Verdict::Failed(sqlstate.into()));
        }
    }
}

/// Whether it was about labels of enums that have other names by now.
fn is_renaming(error: &CatalogError) -> bool {
    matches!(error, CatalogError::Refused { sqlstate, .. } if sqlstate == RENAMED)
}

/// Lets the members of a group go on.
fn wake(id: GroupId, registry: &mut Registry, lagging: &mut LaggingSessions) {
    let Some(group) = registry.group_mut(id) else { return };
    group.plans.hearing.awaited = None;
    group.plans.hearing.tries = 0;
    for member in group.members.iter().filter(|member| member.lag.is_some()) {
        lagging.wake(member.session);
    }
}

impl Docket {
    /// The event that the first of those who wait is at.
    fn awaited(&mut self, registry: &Registry) -> Option<Seq> {
        while let Some(id) = self.waiting.front() {
            let awaited = registry.group(*id).and_then(|group| group.plans.hearing.awaited);
            if awaited.is_some() {
                return awaited;
            }
            self.waiting.pop_front();
        }
        None
    }

    /// Lets all of them go on.
    fn release(&mut self, registry: &mut Registry, lagging: &mut LaggingSessions) {
        for id in self.waiting.drain(..) {
            wake(id, registry, lagging);
        }
    }

    /// The next question, for those who have waited longest.
    fn question(
        &mut self,
        table: u32,
        registry: &mut Registry,
        history: &History,
        entitlement: &Entitlement,
        lagging: &mut LaggingSessions,
    ) -> Option<Question> {
        let rule = entitlement.rule();
        let (mut groups, mut claims) = (Vec::new(), Vec::new());
        let (mut from, mut limit) = (Seq::MAX, ROWS);
        let most = if rule.way == Way::Formula { CLAIMANTS } else { CLIENTS };
        while groups.len() < most {
            let Some(id) = self.waiting.pop_front() else { break };
            let Some(group) = registry.group(id) else { continue };
            let hearing = &group.plans.hearing;
            let (Some(identity), Some(awaited), true) =
                (&group.key.identity, hearing.awaited, rule.is_personal())
            else {
                // It can be decided otherwise by now.
                wake(id, registry, lagging);
                continue;
            };
            let rows = hearing.rows.unwrap_or(ROWS);
            if rows < ROWS && !groups.is_empty() {
                // It is to be asked about alone.
                self.waiting.push_front(id);
                break;
            }
            groups.push(id);
            claims.push(identity.claims.to_string());
            from = from.min(awaited);
            limit = rows;
            if rows < ROWS {
                break;
            }
        }
        let mut shipment = Shipment::default();
        if rule.way == Way::Formula {
            let (asked, rows, labels) = (Vec::new(), String::new(), Vec::new());
            let is_any = !groups.is_empty();
            let (rule, count) = (Arc::clone(rule), 0);
            return is_any.then_some(Question { rule, groups, claims, asked, count, rows, labels });
        }
        shipment.load(table, from, limit, history, entitlement);
        if shipment.asked.is_empty() {
            for id in groups {
                wake(id, registry, lagging);
            }
            return None;
        }
        let (asked, count) = (std::mem::take(&mut shipment.asked), shipment.count);
        let (rows, mut labels) = shipment.finish();
        labels.extend_from_slice(entitlement.labels());
        Some(Question { rule: Arc::clone(rule), groups, claims, asked, count, rows, labels })
    }
}
