//! Questions about policies that only Postgres can answer. They are put to the executors beside the
//! stream: a group whose answer is not at hand reads on from the history once it is, and nobody
//! else waits for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tide_feed::backoff::Backoff;
use tide_feed::catalog::{OUTDATED, QUERY_CANCELED, Rows};
use tide_feed::event::CatalogChange;
use tokio::sync::mpsc;

use super::entitlement::{Entitlement, Entitlements, Subject};
use super::group::GroupId;
use super::history::{History, Seq};
use super::lagging::LaggingSessions;
use super::policy_question::{GroupAnswer, PolicyAnswer, PolicyQuestion};
use super::registry::Registry;
use super::row_batch::{ROWS, RowBatch};
use super::verdict::TRIES;
use crate::allowance::{Allowance, Share};
use crate::catalog::{Catalog, CatalogError};
use crate::policy::{Rule, Way};
use crate::stats::Stats;

/// The SQLSTATE of a process that was ended, as one is whose code cannot be cancelled.
const ADMIN_SHUTDOWN: &str = "57P01";

/// Clients that one question is about, at most: about rows, and about claims.
const CLIENTS: usize = 64;
const CLAIMANTS: usize = 256;
/// Pause before a question that found no executor, or was not answered, is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// How long it is remembered that a policy has taken too long, though nobody waits for it.
const REMEMBERED: Duration = Duration::from_secs(120);

/// Which role a question is about, and which table or object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PolicyKey {
    role: Arc<str>,
    about: Subject,
}

/// The groups that wait for answers about one [`PolicyKey`]. One question of a key is asked at a
/// time, so that a slow policy does not keep all executors busy.
#[derive(Default)]
struct CheckQueue {
    waiting: VecDeque<GroupId>,
    is_asking: bool,
    asked: Option<Instant>,
    /// No executor was there.
    not_before: Option<Instant>,
    /// The rule by which a question has taken too long, until one has not.
    slow: Option<(Arc<Rule>, Backoff)>,
    /// How often the last question was about labels that have other names by now.
    outdated: u32,
}

/// All open questions, with the groups that wait for them.
pub(super) struct PolicyChecks {
    queues: HashMap<PolicyKey, CheckQueue>,
    catalog: Catalog,
    /// The memory for channels, of which what is asked and answered takes some.
    channels: Arc<Allowance>,
    sender: mpsc::UnboundedSender<PolicyAnswer>,
    answers: mpsc::UnboundedReceiver<PolicyAnswer>,
}

impl PolicyChecks {
    pub(super) fn new(catalog: Catalog, channels: Arc<Allowance>) -> PolicyChecks {
        // At most one for each key.
        let (sender, answers) = mpsc::unbounded_channel();
        PolicyChecks { queues: HashMap::new(), catalog, channels, sender, answers }
    }

    /// Waits for what is to be given to [`PolicyChecks::settle`]. Loses nothing if it is given up.
    pub(super) async fn answer(&mut self) -> PolicyAnswer {
        match self.answers.recv().await {
            Some(answer) => answer,
            // Cannot be: the other end is here as well.
            None => std::future::pending().await,
        }
    }

    /// Somebody waits for a question that will be asked in a moment.
    pub(super) fn is_resting(&self) -> bool {
        let waits = |queue: &CheckQueue| !queue.is_asking && !queue.waiting.is_empty();
        self.queues.values().any(|queue| queue.not_before.is_some() || waits(queue))
    }

    /// The group cannot go on without a verdict on the event.
    pub(super) fn raise(&mut self, id: GroupId, seq: Seq, about: Subject, registry: &mut Registry) {
        let Some(group) = registry.group_mut(id) else { return };
        let Some(role) = &group.key.role else { return };
        let policy = &mut group.plans.policy;
        if let Some(awaited) = &mut policy.awaited {
            *awaited = seq.min(*awaited);
            return;
        }
        (policy.awaited, policy.about) = (Some(seq), Some(about));
        let key = PolicyKey { role: Arc::clone(role), about };
        self.queues.entry(key).or_default().waiting.push_back(id);
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
        self.queues.retain(|_, queue| {
            queue.is_asking || !queue.waiting.is_empty() || queue.is_remembered(now)
        });
        let mut is_any_asked = self.queues.values().any(|queue| queue.is_asking);
        for (key, queue) in &mut self.queues {
            if queue.is_asking || queue.not_before.is_some_and(|time| now < time) {
                continue;
            }
            queue.not_before = None;
            let Some(seq) = queue.awaited(registry) else { continue };
            let table = match key.about {
                Subject::Rows(table) => table,
                Subject::Object(object) => {
                    if entitlements.visibility(&key.role, object, seq).is_some() {
                        queue.release(registry, lagging);
                    }
                    continue;
                }
            };
            let Some(entitlement) = entitlements.of(&key.role, table, seq) else { continue };
            if queue.rests(entitlement.rule()) {
                continue;
            }
            let question = queue.question(table, registry, history, &entitlement, lagging);
            let Some(question) = question else { continue };
            let mut share = Share::of(&self.channels);
            // One is asked in any case: others give back theirs, but this may be too large alone.
            if !share.grow(question.memory()) && is_any_asked {
                queue.not_before = Some(now + RETRY);
                queue.put_back(question.groups);
                continue;
            }
            stats.policy_questions_total.inc();
            (queue.is_asking, is_any_asked) = (true, true);
            queue.asked = Some(now);
            let (catalog, sender) = (self.catalog.clone(), self.sender.clone());
            let role = Arc::clone(&key.role);
            tokio::spawn(async move {
                let answer = put(&catalog, role, table, question).await;
                drop(share);
                // The hub may have stopped.
                let _ = sender.send(answer);
            });
        }
    }

    /// Hands an answer to the groups that waited for it.
    pub(super) fn settle(
        &mut self,
        answer: PolicyAnswer,
        registry: &mut Registry,
        entitlements: &mut Entitlements,
        lagging: &mut LaggingSessions,
        stats: &Stats,
    ) {
        let PolicyAnswer { role, table, rule, groups, asked, count, outcome } = answer;
        let key = PolicyKey { role: Arc::clone(&role), about: Subject::Rows(table) };
        let part = &self.channels;
        let Some(queue) = self.queues.get_mut(&key) else { return };
        queue.is_asking = false;
        queue.time(&rule, &outcome);
        // What is said by a rule counts for as long as that is the rule. Here it may not be known
        // whether it still is: whoever comes to the event looks.
        let now = entitlements.current(&role, table).map(|entitlement| entitlement.rule());
        let is_current = now.is_some_and(|now| Arc::ptr_eq(now, &rule));
        let is_stale = now.is_some() && !is_current;
        let is_outdated = outcome.as_ref().is_err_and(asks_too_late)
            || outcome
                .iter()
                .flatten()
                .any(|said| matches!(said, GroupAnswer::Failed(s) if s == OUTDATED));
        queue.outdated = if is_outdated { queue.outdated + 1 } else { 0 };
        let said = match outcome {
            _ if is_stale => Vec::new(),
            // Sooner than the stream comes to it: the question is put by today's names again. If
            // that does not help, it is about values that have others in them.
            _ if is_outdated && queue.outdated < TRIES => {
                entitlements.forget(&CatalogChange::Relation(table), Seq::MAX);
                Vec::new()
            }
            Ok(said) => said,
            Err(CatalogError::Unavailable) => {
                queue.not_before = Some(Instant::now() + RETRY);
                Vec::new()
            }
            // As likely as not by the first; the others are asked about again.
            Err(CatalogError::Ended) => vec![GroupAnswer::Failed(ADMIN_SHUTDOWN.into())],
            Err(CatalogError::Refused { sqlstate, .. }) => {
                groups.iter().map(|_| GroupAnswer::Failed(sqlstate.clone())).collect()
            }
        };
        let mut said = said.into_iter();
        // Those that it was too late for are the first to be asked about next, in their order.
        let mut again = Vec::new();
        for id in groups {
            let Some(group) = registry.group_mut(id) else { continue };
            let policy = &mut group.plans.policy;
            match said.next() {
                None => again.push(id),
                Some(GroupAnswer::Visible(visible)) if visible.len() == count => {
                    policy.keep_visible(&visible, table, &rule, &asked, part);
                    wake(id, registry, lagging);
                }
                Some(GroupAnswer::Values(values)) => {
                    match rule.read(&values) {
                        Some(values) => {
                            policy.learn(table, &rule, values);
                            if is_current {
                                registry.anchor(id, table, &rule);
                            }
                        }
                        None => policy.failed(&rule, "XX000", table, stats, part),
                    }
                    wake(id, registry, lagging);
                }
                Some(GroupAnswer::Failed(sqlstate))
                    if policy.is_to_wait(&sqlstate, table, asked.len()) =>
                {
                    queue.not_before = Some(Instant::now() + RETRY);
                    again.push(id);
                }
                Some(GroupAnswer::Failed(_) | GroupAnswer::Visible(_)) if asked.len() > 1 => {
                    policy.rows = Some((count / 8).max(1));
                    again.push(id);
                }
                Some(GroupAnswer::Visible(_)) => {
                    policy.failed(&rule, "XX000", table, stats, part);
                    wake(id, registry, lagging);
                }
                Some(GroupAnswer::Failed(sqlstate)) => {
                    policy.failed(&rule, &sqlstate, table, stats, part);
                    wake(id, registry, lagging);
                }
            }
        }
        queue.put_back(again);
    }
}

/// Puts the question to an executor.
async fn put(
    catalog: &Catalog,
    role: Arc<str>,
    table: u32,
    question: PolicyQuestion,
) -> PolicyAnswer {
    let PolicyQuestion { rule, groups, claims, asked, count, rows, labels } = question;
    let outcome = if rule.way == Way::Formula {
        let expressions = rule.claims.iter().map(|claim| claim.sql.to_string()).collect();
        let evaluated = catalog.evaluate_claims(&role, expressions, claims).await;
        evaluated.map(|all| all.into_iter().map(GroupAnswer::from).collect())
    } else {
        let evaluated = catalog.evaluate_policy(&role, table, rows, labels, claims);
        evaluated.await.map(|all| all.into_iter().map(GroupAnswer::from).collect())
    };
    PolicyAnswer { role, table, rule, groups, asked, count, outcome }
}

/// Whether it was made of what the catalogue said before it changed.
fn asks_too_late(error: &CatalogError) -> bool {
    matches!(error, CatalogError::Refused { sqlstate, .. } if sqlstate == OUTDATED)
}

/// Lets the members of a group go on.
fn wake(id: GroupId, registry: &mut Registry, lagging: &mut LaggingSessions) {
    let Some(group) = registry.group_mut(id) else { return };
    group.plans.policy.awaited = None;
    group.plans.policy.tries = 0;
    for member in group.members.iter().filter(|member| member.lag.is_some()) {
        lagging.wake(member.session);
    }
}

impl CheckQueue {
    /// Whether it has taken too long not long ago.
    fn is_remembered(&self, now: Instant) -> bool {
        let is_recent = |asked| now.saturating_duration_since(asked) < REMEMBERED;
        self.slow.is_some() && self.asked.is_some_and(is_recent)
    }

    /// Whether the rule has taken too long, and others are to have their turns before it is asked
    /// about again.
    fn rests(&self, rule: &Arc<Rule>) -> bool {
        let slow = self.slow.as_ref().filter(|(slow, _)| Arc::ptr_eq(slow, rule));
        slow.is_some_and(|(_, backoff)| !backoff.is_due())
    }

    /// Takes in whether the rule has taken too long.
    fn time(&mut self, rule: &Arc<Rule>, outcome: &Result<Vec<GroupAnswer>, CatalogError>) {
        let is_too_slow = match outcome {
            Ok(said) => said
                .iter()
                .any(|said| matches!(said, GroupAnswer::Failed(s) if s == QUERY_CANCELED)),
            Err(CatalogError::Refused { sqlstate, .. }) => sqlstate == QUERY_CANCELED,
            Err(_) => return,
        };
        let slow = self.slow.take().filter(|(slow, _)| Arc::ptr_eq(slow, rule));
        if is_too_slow {
            let (_, mut backoff) = slow.unwrap_or_else(|| (Arc::clone(rule), Backoff::usual()));
            backoff.timed_out_after(self.asked.map_or(Duration::ZERO, |asked| asked.elapsed()));
            self.slow = Some((Arc::clone(rule), backoff));
        }
    }

    /// The event that the first of those who wait is at.
    fn awaited(&mut self, registry: &Registry) -> Option<Seq> {
        while let Some(id) = self.waiting.front() {
            let awaited = registry.group(*id).and_then(|group| group.plans.policy.awaited);
            if awaited.is_some() {
                return awaited;
            }
            self.waiting.pop_front();
        }
        None
    }

    /// They wait before all others.
    fn put_back(&mut self, groups: Vec<GroupId>) {
        for id in groups.into_iter().rev() {
            self.waiting.push_front(id);
        }
    }

    /// Lets all waiting groups go on.
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
    ) -> Option<PolicyQuestion> {
        let rule = entitlement.rule();
        let (mut groups, mut claims) = (Vec::new(), Vec::new());
        let (mut from, mut limit) = (Seq::MAX, ROWS);
        let most = if rule.way == Way::Formula { CLAIMANTS } else { CLIENTS };
        while groups.len() < most {
            let Some(id) = self.waiting.pop_front() else { break };
            let Some(group) = registry.group(id) else { continue };
            let policy = &group.plans.policy;
            let (Some(identity), Some(awaited), true) =
                (&group.key.identity, policy.awaited, rule.is_personal())
            else {
                // It can be decided otherwise by now.
                wake(id, registry, lagging);
                continue;
            };
            let rows = policy.rows.unwrap_or(ROWS);
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
        let mut row_batch = RowBatch::default();
        if rule.way == Way::Formula {
            let (asked, rows, labels) = (Vec::new(), Rows::default(), Vec::new());
            let is_any = !groups.is_empty();
            let (rule, count) = (Arc::clone(rule), 0);
            return is_any.then_some(PolicyQuestion {
                rule,
                groups,
                claims,
                asked,
                count,
                rows,
                labels,
            });
        }
        row_batch.load(table, from, limit, history, entitlement);
        if row_batch.asked.is_empty() {
            for id in groups {
                wake(id, registry, lagging);
            }
            return None;
        }
        let (asked, count) = (std::mem::take(&mut row_batch.asked), row_batch.count);
        let (rows, labels) = row_batch.finish();
        Some(PolicyQuestion { rule: Arc::clone(rule), groups, claims, asked, count, rows, labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_takes_too_long_rests_before_it_is_asked_about_again() {
        let (rule, mended) = (Arc::new(Rule::of(None, &[])), Arc::new(Rule::of(None, &[])));
        let now = Instant::now();
        let asked = now.checked_sub(Duration::from_secs(5));
        let mut queue = CheckQueue { asked, ..CheckQueue::default() };

        queue.time(&rule, &Ok(vec![GroupAnswer::Failed(QUERY_CANCELED.into())]));
        assert!(queue.rests(&rule) && queue.is_remembered(now));
        assert!(!queue.rests(&mended), "the table has another policy");
        queue.time(&rule, &Err(CatalogError::Unavailable));
        assert!(queue.rests(&rule));
        queue.time(&rule, &Ok(vec![GroupAnswer::Visible(vec![true])]));

        assert!(!queue.rests(&rule) && !queue.is_remembered(now));
    }
}
