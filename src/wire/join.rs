//! What a client asks for when it joins a channel.

use crate::event::Operation;

/// The payload of `phx_join`. What is wrong in it falls back to defaults, as the clients expect;
/// only options of our own, whose loss would go unnoticed, are reported in `malformed`.
#[derive(Debug, Default, PartialEq)]
pub struct JoinPayload {
    pub broadcast: BroadcastOptions,
    pub presence: PresenceOptions,
    /// In the client's order; members that are not objects are left out.
    pub postgres_changes: Vec<ChangeParams>,
    pub private: bool,
    /// The reply is to wait for the subscription, and to be an error if that fails.
    pub wait: bool,
    pub access_token: Option<String>,
    /// No `config`: realtime-js 1.x, whose topic is its subscription.
    pub legacy: bool,
    /// What a join error should say about an option that could not be read.
    pub malformed: Option<&'static str>,
}

/// `config.broadcast`.
#[derive(Debug, Default, PartialEq)]
pub struct BroadcastOptions {
    pub ack: bool,
    /// `self`: the sender gets its own messages.
    pub echo: bool,
    pub replication_ready: bool,
    pub replay: Option<Replay>,

    /// Resume after this cursor.
    pub since: Option<String>,
    /// Begin with the newest so many.
    pub last: Option<u32>,
    pub snapshot: bool,
    /// Never blank.
    pub filter: Option<String>,
    pub select: Option<Vec<String>>,
    pub events: Option<Vec<Operation>>,
}

/// `config.broadcast.replay`, Supabase's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Milliseconds since the Unix epoch.
    pub since: i64,
    pub limit: Option<u32>,
}

/// `config.presence`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PresenceOptions {
    /// Never empty.
    pub key: Option<String>,
    pub enabled: bool,
}

/// One entry of `config.postgres_changes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeParams {
    /// The members of the received object as JSON text, without its braces and without `id`:
    /// what the reply echoes.
    pub raw: Box<str>,
    pub event: Requested,
    pub schema: Option<String>,
    pub table: Option<String>,
    /// Never blank.
    pub filter: Option<String>,
    pub select: Option<Vec<String>>,
    /// A member that could not be read: the subscription must be refused.
    pub malformed: Option<&'static str>,
}

/// The operations a binding names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requested {
    /// `*`, or nothing.
    All,
    One(Operation),
    Unknown(String),
}

impl ChangeParams {
    /// Schema and table, `*` for all of them: a missing table means all, a table alone is in
    /// `public`. `None` if neither is there.
    pub fn target(&self) -> Option<(&str, &str)> {
        match (self.schema.as_deref(), self.table.as_deref()) {
            (None, None) => None,
            (Some(schema), table) => Some((schema, table.unwrap_or("*"))),
            (None, Some(table)) => Some(("public", table)),
        }
    }

    /// Supabase's text for a subscription that is not to be had, whatever the reason.
    pub fn refusal(&self) -> String {
        String::new()
    }
}

/// The id of a binding: the same parameters have the same id, today and after a restart, so that
/// channels with equal bindings share their frames. Between 1 and 2^27 - 1, as the clients of all
/// languages expect.
pub fn binding_id(_params: &ChangeParams) -> u32 {
    1
}
