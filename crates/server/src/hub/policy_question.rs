//! What executors are asked about policies, and what they answer.

use std::sync::Arc;

use tide_feed::catalog::{ClaimsOutcome, PolicyOutcome, Rows};

use super::group::GroupId;
use super::row_batch::AskedEvent;
use crate::catalog::CatalogError;
use crate::policy::Rule;

/// A question about one rule, for several groups at once.
pub(super) struct PolicyQuestion {
    pub(super) rule: Arc<Rule>,
    pub(super) groups: Vec<GroupId>,
    pub(super) claims: Vec<String>,
    /// The events of the rows; none where the question is about what the claims are worth.
    pub(super) asked: Vec<AskedEvent>,
    pub(super) count: usize,
    /// The images of rows that are asked about.
    pub(super) rows: Rows,
    /// Labels of enums in the rows, with their oids.
    pub(super) labels: Vec<(u32, String)>,
}

impl PolicyQuestion {
    /// Bytes that it takes up until it is answered.
    pub(super) fn memory(&self) -> usize {
        let claims = self.claims.iter().map(String::len).sum::<usize>();
        let labels = self.labels.iter().map(|(_, label)| label.len()).sum::<usize>();
        let labels = labels + size_of_val(&*self.labels);
        self.rows.texts.len() + claims + labels + size_of_val(&*self.asked)
    }
}

/// What came of a [`PolicyQuestion`].
pub(super) struct PolicyAnswer {
    pub(super) role: Arc<str>,
    pub(super) table: u32,
    pub(super) rule: Arc<Rule>,
    pub(super) groups: Vec<GroupId>,
    pub(super) asked: Vec<AskedEvent>,
    pub(super) count: usize,
    pub(super) outcome: Result<Vec<GroupAnswer>, CatalogError>,
}

/// An answer as far as it is about one group.
pub(super) enum GroupAnswer {
    Visible(Vec<bool>),
    Values(Vec<Option<String>>),
    Failed(String),
}

impl From<PolicyOutcome> for GroupAnswer {
    fn from(outcome: PolicyOutcome) -> GroupAnswer {
        match outcome {
            PolicyOutcome::Visible(visible) => GroupAnswer::Visible(visible),
            PolicyOutcome::Failed(sqlstate) => GroupAnswer::Failed(sqlstate),
        }
    }
}

impl From<ClaimsOutcome> for GroupAnswer {
    fn from(outcome: ClaimsOutcome) -> GroupAnswer {
        match outcome {
            ClaimsOutcome::Values(values) => GroupAnswer::Values(values),
            ClaimsOutcome::Failed(sqlstate) => GroupAnswer::Failed(sqlstate),
        }
    }
}
