//! What Postgres has said about events for one group, and what the group still waits to be told.

use std::collections::BTreeMap;
use std::sync::Arc;

use tide_feed::catalog::is_transient;

use super::entitlement::Subject;
use super::history::Seq;
use super::row_batch::{AskedEvent, ROWS};
use crate::allowance::{Allowance, Share};
use crate::policy::{Rule, Seen, Sight, Value};
use crate::stats::Stats;

/// Verdicts that a group keeps: those that it has not come to yet. One more drops the oldest, which
/// is then asked about again.
const VERDICTS: usize = 4096;
/// Bytes that each takes up, about.
const VERDICT: usize = 96;
/// How often a question is asked again that may itself be the reason for having no answer.
pub(super) const TRIES: u32 = 3;

/// What is known of an event for a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Sight(Sight),
    /// The policy failed, as it has since the event `outage`.
    Failed {
        sqlstate: Arc<str>,
        outage: Seq,
    },
}

/// Tables of one group whose outages are remembered; of more, they are told again.
const OUTAGES: usize = 16;

/// The policies of a table fail.
struct Outage {
    table: u32,
    since: Seq,
    is_logged: bool,
}

/// What a group knows of the policies that decide what it sees, and what it waits to know.
#[derive(Default)]
pub(super) struct PolicyState {
    verdicts: BTreeMap<Seq, (Arc<Rule>, Verdict)>,
    /// What they take up.
    memory: Option<Share>,
    /// What the claims in the rules of tables are worth to it.
    values: Vec<(u32, Arc<Rule>, Box<[Value]>)>,
    /// The event that it waits at.
    pub(super) awaited: Option<Seq>,
    /// What it waits to know, of that event.
    pub(super) about: Option<Subject>,
    /// How often what it waits for was asked in vain.
    pub(super) tries: u32,
    /// Rows that may be asked about at once, if fewer than usual: a policy failed on more.
    pub(super) rows: Option<usize>,
    /// Of the tables whose policies failed when they were last evaluated.
    outages: Vec<Outage>,
}

impl PolicyState {
    pub(super) fn verdict(&self, seq: Seq, rule: &Arc<Rule>) -> Option<Verdict> {
        let (decided_by, verdict) = self.verdicts.get(&seq)?;
        Arc::ptr_eq(decided_by, rule).then(|| verdict.clone())
    }

    /// What the claims in a rule are worth to the group; `None`: not known yet.
    pub(super) fn values(&self, rule: &Arc<Rule>) -> Option<&[Value]> {
        if rule.claims.is_empty() {
            return Some(&[]);
        }
        let known = self.values.iter().find(|(_, of, _)| Arc::ptr_eq(of, rule));
        known.map(|(.., values)| &**values)
    }

    pub(super) fn learn(&mut self, table: u32, rule: &Arc<Rule>, values: Box<[Value]>) {
        self.recover(table);
        self.values.retain(|(other, ..)| *other != table);
        self.values.reserve_exact(1);
        self.values.push((table, Arc::clone(rule), values));
    }

    /// The policies of the table fail: since when.
    pub(super) fn fail(&mut self, table: u32, seq: Seq) -> Seq {
        if let Some(outage) = self.outages.iter().find(|outage| outage.table == table) {
            return outage.since;
        }
        if self.outages.len() >= OUTAGES {
            self.outages.remove(0);
        }
        self.outages.push(Outage { table, since: seq, is_logged: false });
        seq
    }

    /// They could be evaluated.
    pub(super) fn recover(&mut self, table: u32) {
        self.outages.retain(|outage| outage.table != table);
    }

    /// Whether that the policies of the table fail is not in the log yet; it is from then on.
    pub(super) fn is_news(&mut self, table: u32) -> bool {
        let outage = self.outages.iter_mut().find(|outage| outage.table == table);
        outage.is_some_and(|outage| !std::mem::replace(&mut outage.is_logged, true))
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

    /// `part`: the memory for channels.
    fn keep(&mut self, seq: Seq, rule: &Arc<Rule>, verdict: Verdict, part: &Arc<Allowance>) {
        self.verdicts.insert(seq, (Arc::clone(rule), verdict));
        if self.verdicts.len() > VERDICTS {
            self.verdicts.pop_first();
        }
        let share = self.memory.get_or_insert_with(|| Share::of(part));
        // Without memory there are fewer, but the first is what the group waits for.
        while !share.resize(self.verdicts.len() * VERDICT) && self.verdicts.len() > 1 {
            self.verdicts.pop_last();
        }
    }

    pub(super) fn has_verdicts(&self) -> bool {
        !self.verdicts.is_empty()
    }

    /// Drops what no member will come to any more; `lag` is where the last of them is.
    pub(super) fn forget(&mut self, lag: Option<Seq>) {
        match lag {
            Some(lag) if !self.verdicts.is_empty() => self.verdicts = self.verdicts.split_off(&lag),
            Some(_) => {}
            None => self.verdicts = BTreeMap::new(),
        }
        // They are no more than before.
        let bytes = self.verdicts.len() * VERDICT;
        self.memory = self.memory.take().filter(|share| bytes > 0 && bytes <= share.bytes());
        if let Some(share) = &mut self.memory {
            let _ = share.resize(bytes);
        }
    }
}

impl PolicyState {
    /// Takes in which of the rows are visible.
    pub(super) fn keep_visible(
        &mut self,
        visible: &[bool],
        table: u32,
        rule: &Arc<Rule>,
        asked: &[AskedEvent],
        part: &Arc<Allowance>,
    ) {
        self.recover(table);
        self.rows = self.rows.map(|rows| rows * 2).filter(|rows| *rows < ROWS);
        for AskedEvent { seq, before, after, sight } in asked {
            let seen = |place: Option<usize>, known| {
                place.and_then(|i| visible.get(i)).map_or(known, |v| Seen::from(*v))
            };
            let sight =
                Sight { before: seen(*before, sight.before), after: seen(*after, sight.after) };
            self.keep(*seq, rule, Verdict::Sight(sight), part);
        }
    }

    /// Whether an error says nothing about the policies. An internal one, or a process that has ended,
    /// may do so after all, if it does not go away.
    pub(super) fn is_to_wait(&mut self, sqlstate: &str, table: u32, events: usize) -> bool {
        let is_doubtful = sqlstate == "XX000" || sqlstate.starts_with("57");
        if !is_transient(sqlstate) || !is_doubtful {
            return is_transient(sqlstate);
        }
        let is_tried = events <= 1 && self.outages.iter().all(|outage| outage.table != table);
        self.tries += u32::from(is_tried);
        is_tried && self.tries < TRIES
    }

    /// There will be no verdict on the event that is waited for.
    pub(super) fn failed(
        &mut self,
        rule: &Arc<Rule>,
        sqlstate: &str,
        table: u32,
        stats: &Stats,
        part: &Arc<Allowance>,
    ) {
        stats.policy_failures_total.inc();
        if let Some(seq) = self.awaited {
            let outage = self.fail(table, seq);
            self.keep(seq, rule, Verdict::Failed { sqlstate: sqlstate.into(), outage }, part);
        }
    }
}
