//! What a subscriber must get of a change, by what it could see before and can see after it.

use serde_json::{Map, Value};

use super::policy::Policy;
use super::table::Identity;

pub type Row = Map<String, Value>;

/// A change of one row, with both its images whole, as a superuser sees them.
#[derive(Clone, Debug)]
pub struct Change {
    /// Number of the table.
    pub table: usize,
    pub identity: Identity,
    pub old: Option<Row>,
    pub new: Option<Row>,
    /// The columns of each image that are in the WAL.
    pub old_known: Vec<&'static str>,
    pub new_known: Vec<&'static str>,
    /// By subscriber: whether a SELECT just before, and just after, returns the row.
    pub before: Vec<bool>,
    pub after: Vec<bool>,
}

/// What Postgres says of a table to one subscriber.
#[derive(Clone, Debug)]
pub struct Access {
    pub row_security: bool,
    /// The names of those that apply to its role.
    pub policies: Vec<String>,
    pub readable: Vec<String>,
    /// The subscriber's.
    pub claims: Value,
}

/// What a subscriber gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    Insert,
    Update,
    Delete,
}

/// Whether an image is seen, as far as what is known of it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Seen,
    Unseen,
    /// The policies look at columns that the WAL does not have.
    Unknown,
    /// The same, but what is known may suffice to answer: in `a or b` a true `a` does, and nothing
    /// is equal to a claim that is missing. Whoever goes by that is right, and so is who does not;
    /// the answer itself must be the true one.
    Partial {
        seen: bool,
    },
}

impl Access {
    /// Everything that may reach the subscriber of this number, of which one thing must.
    pub fn outcomes(&self, change: &Change, policies: &[Policy], viewer: usize) -> Vec<Outcome> {
        if self.readable.is_empty() {
            return vec![Outcome::Nothing];
        }
        let before = self.sight(&change.old_known, change.before[viewer], policies);
        let after = self.sight(&change.new_known, change.after[viewer], policies);
        let mut outcomes = Vec::new();
        for before in before.readings() {
            for after in after.readings() {
                let outcome = match (&change.old, &change.new) {
                    (None, _) if after == Sight::Seen => Outcome::Insert,
                    (Some(_), None) if before == Sight::Seen => Outcome::Delete,
                    (Some(_), Some(_)) => update(before, after),
                    _ => Outcome::Nothing,
                };
                outcomes.push(outcome);
            }
        }
        outcomes.dedup();
        outcomes
    }

    fn sight(&self, known: &[&str], seen: bool, policies: &[Policy]) -> Sight {
        let applied = policies.iter().filter(|policy| self.policies.contains(&policy.name));
        let atoms: Vec<_> = applied.flat_map(|policy| &policy.atoms).collect();
        let answered =
            |columns: &Vec<&'static str>| columns.iter().all(|column| known.contains(column));
        if !self.row_security || atoms.iter().all(|atom| answered(&atom.columns)) {
            if seen { Sight::Seen } else { Sight::Unseen }
        } else if atoms.iter().any(|a| answered(&a.columns) || a.is_about_nothing(&self.claims)) {
            Sight::Partial { seen }
        } else {
            Sight::Unknown
        }
    }
}

impl Sight {
    fn readings(self) -> Vec<Sight> {
        match self {
            Sight::Partial { seen: true } => vec![Sight::Seen, Sight::Unknown],
            Sight::Partial { seen: false } => vec![Sight::Unseen, Sight::Unknown],
            sight => vec![sight],
        }
    }
}

fn update(before: Sight, after: Sight) -> Outcome {
    match (before, after) {
        (Sight::Seen | Sight::Unknown, Sight::Seen) => Outcome::Update,
        (Sight::Unseen, Sight::Seen) => Outcome::Insert,
        (Sight::Seen, _) => Outcome::Delete,
        _ => Outcome::Nothing,
    }
}

/// A change as a subscriber got it.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    pub table: String,
    pub operation: String,
    pub record: Row,
    pub old_record: Row,
    /// Columns that are said to be left out; `None` where the form has no place for it.
    pub unchanged: Option<Vec<String>>,
    /// The columns that are listed; `None` where the form has no place for it.
    pub columns: Option<Vec<String>>,
}

impl Received {
    /// Whether this is what the outcome of the change looks like to who may read these columns.
    pub fn is(&self, outcome: Outcome, change: &Change, readable: &[String]) -> bool {
        let record = change.new.as_ref().map(|new| cut(new, &change.new_known, readable));
        let columns = self.columns.as_ref().is_none_or(|columns| same(columns, readable));
        let unchanged = self.unchanged.as_ref().is_none_or(|unchanged| {
            let left_out =
                readable.iter().filter(|name| !change.new_known.contains(&name.as_str()));
            let left_out: Vec<String> = left_out.cloned().collect();
            same(unchanged, if outcome == Outcome::Delete { &[] } else { &left_out })
        });
        columns
            && unchanged
            && match outcome {
                Outcome::Nothing => false,
                Outcome::Insert => {
                    self.operation == "INSERT"
                        && Some(&self.record) == record.as_ref()
                        && self.old_record.is_empty()
                }
                Outcome::Update => {
                    self.operation == "UPDATE"
                        && Some(&self.record) == record.as_ref()
                        && (self.old_record == old_record(change, readable)
                            || self.old_record == told_key(change, readable))
                }
                // The key is enough; nothing may be in it that the subscriber could not see.
                Outcome::Delete => {
                    let key = change.identity.column();
                    let whole = old_record(change, readable);
                    self.operation == "DELETE"
                        && self.record.is_empty()
                        && self.old_record.contains_key(key)
                        && self
                            .old_record
                            .iter()
                            .all(|(name, value)| whole.get(name) == Some(value))
                }
            }
    }
}

/// The old row as far as the replica identity has it. The WAL has the key only where it changed,
/// but then it is also that of the new row.
fn old_record(change: &Change, readable: &[String]) -> Row {
    let Some(old) = &change.old else { return Row::new() };
    match change.identity {
        Identity::Full => cut(old, &super::table::NAMES, readable),
        identity => cut(old, &[identity.column()], readable),
    }
}

/// The key as it is now: all that is told of an old row that may have been out of sight.
fn told_key(change: &Change, readable: &[String]) -> Row {
    match (&change.new, change.identity) {
        (Some(new), identity) if identity != Identity::Full => {
            cut(new, &[identity.column()], readable)
        }
        _ => old_record(change, readable),
    }
}

fn cut(row: &Row, known: &[&str], readable: &[String]) -> Row {
    let wanted = |name: &String| known.contains(&name.as_str()) && readable.contains(name);
    row.iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn same(left: &[String], right: &[String]) -> bool {
    left.len() == right.len() && left.iter().all(|name| right.contains(name))
}
