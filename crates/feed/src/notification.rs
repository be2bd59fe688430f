//! What NOTIFY says.

use serde::{Deserialize, Serialize};

/// A notification as Postgres delivers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    pub channel: Box<str>,
    pub payload: Box<str>,
    /// Of the backend that sent it.
    pub pid: i32,
}
