//! JSON between a helper, the queries that it runs and whoever asked.

use serde::{Deserialize, Serialize};

use crate::helper::transaction::Refusal;

/// What a query of ours has answered.
pub(crate) fn parse<T: for<'a> Deserialize<'a>>(json: &str) -> Result<T, Refusal> {
    serde_json::from_str(json).map_err(|_| Refusal::internal("the query gave an unexpected answer"))
}

/// An answer as it is sent to whoever asked.
pub(crate) fn encode(answer: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(answer).map_err(|_| Refusal::internal("the answer cannot be written"))
}
