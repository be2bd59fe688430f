//! A table's policies, put together for one role.

use tide_feed::catalog::{ColumnAccess, Policy, RowSecurity};
use tide_feed::event::Datum;

use super::compile::{Claim, Compiler, and, or};
use super::formula::{Formula, Value};
use super::images::Images;
use super::sight::{Seen, Sight};

/// How it is found out whether a row is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All rows are, or none is.
    Constant(bool),
    /// By a formula over the row and what some expressions over the claims are worth.
    Formula,
    /// Postgres has to be asked, for each client by its claims.
    Ask,
}

/// What the policies of a table come to for a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub way: Way,
    /// Why it is this way, for people.
    pub reason: Box<str>,
    /// All the policies in one, as SQL.
    pub condition: Box<str>,
    /// What the formula needs of a client.
    pub claims: Box<[Claim]>,
    formula: Formula,
    /// The columns that the condition looks at; `None`: any of them.
    columns: Option<Box<[i16]>>,
    /// The columns of old images.
    identity: Box<[i16]>,
}

impl Rule {
    /// `None`: the role is not subject to row-level security.
    pub fn of(security: Option<&RowSecurity>, columns: &[ColumnAccess]) -> Rule {
        let Some(security) = security else {
            return Rule::constant(true, "the role is not subject to row-level security");
        };
        let policies = |permissive| {
            security.policies.iter().filter(move |policy| policy.permissive == permissive)
        };
        if policies(true).next().is_none() {
            return Rule::constant(false, "no permissive policy is for the role");
        }
        let mut rule = Rule {
            way: Way::Ask,
            condition: condition(policies(true), policies(false)).into(),
            columns: columns_of(&security.policies),
            identity: security.identity.clone().into(),
            ..Rule::constant(false, "")
        };
        match compile(security, columns) {
            Ok((Formula::Constant(value), _)) => {
                let visible = value == Some(true);
                Rule::constant(visible, "the policies come to the same for every row")
            }
            Ok((formula, claims)) => {
                let mut columns = Vec::new();
                formula.columns(&mut columns);
                columns.sort_unstable();
                columns.dedup();
                let reason = if formula.is_indexed() {
                    "subscribers are found by the values of the row"
                } else {
                    "it is evaluated once for each kind of client"
                };
                rule.way = Way::Formula;
                rule.reason = reason.into();
                rule.formula = formula;
                rule.claims = claims.into();
                rule.columns = Some(columns.into());
                rule
            }
            Err(reason) => Rule { reason: reason.into(), ..rule },
        }
    }

    fn constant(visible: bool, reason: &str) -> Rule {
        Rule {
            way: Way::Constant(visible),
            reason: reason.into(),
            condition: visible.to_string().into(),
            claims: Box::default(),
            formula: Formula::Constant(Some(visible)),
            columns: Some(Box::default()),
            identity: Box::default(),
        }
    }

    /// Whether it differs from one client of the role to another.
    pub fn is_personal(&self) -> bool {
        match self.way {
            Way::Constant(_) => false,
            Way::Formula => !self.claims.is_empty(),
            Way::Ask => true,
        }
    }

    /// Reads what the [claims](Rule::claims) are worth to a client, as `to_jsonb` printed it.
    pub fn read(&self, values: &[Option<String>]) -> Option<Box<[Value]>> {
        let pairs = self.claims.iter().zip(values);
        let read =
            pairs.map(|(claim, json)| Value::read(claim.kind, claim.is_array, json.as_deref()));
        let values: Option<Box<[Value]>> = read.collect();
        values.filter(|values| values.len() == self.claims.len())
    }

    /// What a client to whom the claims are worth this much sees of a change.
    pub fn sight(&self, values: &[Value], images: &Images<'_>) -> Sight {
        let before = if images.has_before() {
            self.formula.seen(values, &|attnum| images.compared(attnum, images.before(attnum)))
        } else {
            Seen::No
        };
        let after = if images.has_after() {
            self.formula.seen(values, &|attnum| images.compared(attnum, images.after(attnum)))
        } else {
            Seen::No
        };
        Sight { before, after }
    }

    /// Columns and the keys of their values one of which a row must have to be visible to such a
    /// client; `None`: there is no telling.
    pub fn anchors(&self, values: &[Value]) -> Option<Vec<(i16, Box<[u8]>)>> {
        match self.way {
            Way::Formula => self.formula.anchors(values),
            Way::Constant(_) | Way::Ask => None,
        }
    }

    /// The columns that the condition looks at; `None`: any of them.
    pub fn columns(&self) -> Option<&[i16]> {
        self.columns.as_deref()
    }

    /// Whether old images may lack a column that decides: rows that leave a client's sight are
    /// then not told to it.
    pub fn is_blind_to_the_past(&self) -> bool {
        match &self.columns {
            _ if matches!(self.way, Way::Constant(_)) => false,
            Some(columns) => !columns.iter().all(|column| self.identity.contains(column)),
            None => true,
        }
    }

    /// Whether the images have what the condition looks at: that before the change, and that after
    /// it. `attnums` are the table's columns.
    pub fn decidable(&self, images: &Images<'_>, attnums: &[i16]) -> (bool, bool) {
        let columns = self.columns.as_deref().unwrap_or(attnums);
        let before = || columns.iter().all(|a| images.exact_before(*a) != Datum::Absent);
        let after = || columns.iter().all(|a| images.exact_after(*a) != Datum::Absent);
        (images.has_before() && before(), images.has_after() && after())
    }
}

fn condition<'a>(
    permissive: impl Iterator<Item = &'a Policy>,
    restrictive: impl Iterator<Item = &'a Policy>,
) -> String {
    let bracketed = |policy: &Policy| format!("({})", policy.condition);
    let any: Vec<String> = permissive.map(bracketed).collect();
    let mut all = vec![format!("({})", any.join(" or "))];
    all.extend(restrictive.map(bracketed));
    all.join(" and ")
}

/// All policies as one formula, with the expressions over the claims in it; or why they are left to
/// Postgres.
fn compile(
    security: &RowSecurity,
    columns: &[ColumnAccess],
) -> Result<(Formula, Vec<Claim>), String> {
    let mut compiler = Compiler {
        columns,
        functions: &security.functions,
        nondeterministic: &security.nondeterministic,
        claims: Vec::new(),
    };
    let (mut alternatives, mut all) = (Vec::new(), Vec::new());
    for Policy { name, permissive, condition, .. } in &security.policies {
        let formula =
            compiler.compile(condition).map_err(|reason| format!("policy {name}: {reason}"))?;
        if *permissive { &mut alternatives } else { &mut all }.push(formula);
    }
    all.insert(0, or(alternatives));
    Ok((and(all), compiler.claims))
}

fn columns_of(policies: &[Policy]) -> Option<Box<[i16]>> {
    let mut columns = Vec::new();
    for policy in policies {
        columns.extend(policy.columns.as_ref()?);
    }
    columns.sort_unstable();
    columns.dedup();
    Some(columns.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(permissive: bool, condition: &str, columns: Option<&[i16]>) -> Policy {
        let columns = columns.map(<[i16]>::to_vec);
        Policy { name: "p".into(), permissive, condition: condition.into(), columns }
    }

    fn rule(policies: Vec<Policy>) -> Rule {
        let security = RowSecurity { policies, identity: vec![1], ..RowSecurity::default() };
        Rule::of(Some(&security), &[])
    }

    #[test]
    fn permissive_policies_are_alternatives_and_restrictive_ones_all_have_to_hold() {
        let rule = rule(vec![
            policy(true, "a", Some(&[2])),
            policy(false, "b", Some(&[1])),
            policy(true, "c or d", Some(&[2])),
        ]);

        assert_eq!(&*rule.condition, "((a) or (c or d)) and (b)");
        assert_eq!(rule.columns(), Some(&[1, 2][..]));
    }

    #[test]
    fn policies_that_admit_everything_are_not_evaluated() {
        let both = rule(vec![policy(true, "true", Some(&[])), policy(true, "x()", Some(&[]))]);
        assert_eq!(both.way, Way::Ask, "the other one may fail");
        assert_eq!(rule(vec![policy(true, "true", Some(&[]))]).way, Way::Constant(true));
        let none = rule(vec![policy(true, "true", None), policy(false, "false", None)]);
        assert_eq!(none.way, Way::Constant(false));
    }

    #[test]
    fn without_a_permissive_policy_nothing_is_visible() {
        assert_eq!(rule(vec![]).way, Way::Constant(false));
        assert_eq!(rule(vec![policy(false, "true", Some(&[]))]).way, Way::Constant(false));
        assert_eq!(Rule::of(None, &[]).way, Way::Constant(true));
    }

    #[test]
    fn old_images_may_lack_what_decides() {
        assert!(!rule(vec![policy(true, "id > 1", Some(&[1]))]).is_blind_to_the_past());
        assert!(rule(vec![policy(true, "x > 1", Some(&[1, 2]))]).is_blind_to_the_past());
        assert!(rule(vec![policy(true, "t is not null", None)]).is_blind_to_the_past());
    }
}
