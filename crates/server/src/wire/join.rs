//! What a client asks for when it joins a channel.

use tide_feed::event::Operation;
use tide_feed::json;

use super::members::{Members, list, number, text, texts};
use crate::topic::LegacyParts;

/// The payload of `phx_join`. What is wrong in it falls back to defaults, as the clients expect;
/// only options of our own, whose loss would go unnoticed, are reported in `malformed`.
#[derive(Debug, Default, PartialEq)]
pub struct JoinPayload {
    pub broadcast: BroadcastOptions,
    pub presence: PresenceOptions,
    /// In the client's order. Members that are not objects are left out; a client that wrote
    /// more than `null` there finds the reply too short and says so.
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
    /// Begin with the rows that there are.
    pub snapshot: bool,
    /// Of a snapshot: go on after the page whose `meta.resume` this is.
    pub resume: Option<String>,
    /// Never blank.
    pub filter: Option<String>,
    pub select: Option<Vec<String>>,
    pub events: Option<Vec<Operation>>,
    /// Of `tide:records:` topics: what a record holds, besides its key.
    pub values: bool,
    /// `meta` of events of ours also as the payload's `_meta`.
    pub meta_in_payload: bool,
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

/// What a text takes up besides its letters, wherever it is.
const TEXT: usize = size_of::<String>() + 16;

impl JoinPayload {
    /// Bytes that it takes up, about.
    pub fn memory(&self) -> usize {
        let BroadcastOptions { since, resume, filter, select, .. } = &self.broadcast;
        let single = [since, resume, filter, &self.presence.key, &self.access_token];
        let changes = self.postgres_changes.iter().map(ChangeParams::memory).sum::<usize>();
        size_of::<JoinPayload>()
            + of_texts(single.into_iter().flatten())
            + of_list(select)
            + changes
    }
}

impl ChangeParams {
    fn memory(&self) -> usize {
        let single = [&self.schema, &self.table, &self.filter];
        size_of::<ChangeParams>()
            + self.raw.len()
            + of_texts(single.into_iter().flatten())
            + of_list(&self.select)
    }
}

fn of_texts<'t>(texts: impl Iterator<Item = &'t String>) -> usize {
    texts.map(|text| TEXT + text.len()).sum()
}

fn of_list(texts: &Option<Vec<String>>) -> usize {
    of_texts(texts.iter().flatten())
}

impl From<&Members<'_>> for JoinPayload {
    fn from(payload: &Members<'_>) -> JoinPayload {
        let config = payload.object("config");
        let mut malformed = None;
        let token = payload.get("access_token").or_else(|| payload.get("user_token"));
        JoinPayload {
            broadcast: BroadcastOptions::read(&config.object("broadcast"), &mut malformed),
            presence: PresenceOptions::from(&config.object("presence")),
            postgres_changes: (config.get("postgres_changes").and_then(list).unwrap_or_default())
                .into_iter()
                .filter(|json| json.starts_with('{'))
                .filter_map(|json| Some(ChangeParams::from(&Members::of(json)?)))
                .collect(),
            private: config.flag("private"),
            wait: config.object("postgres_changes_options").flag("wait"),
            access_token: token.and_then(text),
            legacy: !payload.has("config"),
            malformed,
        }
    }
}

impl BroadcastOptions {
    fn read(options: &Members<'_>, malformed: &mut Option<&'static str>) -> BroadcastOptions {
        // Supabase's replay is best effort; an unreadable one is none.
        let replay = options.object("replay");
        let replay_since = replay.get("since").and_then(number);
        let mut ours = Reader { options, malformed };
        BroadcastOptions {
            ack: options.flag("ack"),
            echo: options.flag("self"),
            replication_ready: options.flag("replication_ready"),
            replay: replay_since
                .map(|since| Replay { since, limit: replay.get("limit").and_then(number) }),
            since: ours.read("since", text, "config.broadcast.since must be a string"),
            last: ours.read("last", number, "config.broadcast.last must be a count"),
            snapshot: options.flag("snapshot"),
            resume: ours.read("resume", text, "config.broadcast.resume must be a string"),
            filter: ours
                .read("filter", text, "config.broadcast.filter must be a string")
                .filter(|filter| !filter.trim().is_empty()),
            select: ours.read("select", texts, "config.broadcast.select must be a list of columns"),
            events: ours.read(
                "events",
                operations,
                "config.broadcast.events must be a list of INSERT, UPDATE, DELETE, TRUNCATE",
            ),
            values: options.flag("values"),
            meta_in_payload: options.flag("meta_in_payload"),
        }
    }
}

/// Reads members that must not be lost in silence.
struct Reader<'a, 'm> {
    options: &'a Members<'a>,
    malformed: &'m mut Option<&'static str>,
}

impl Reader<'_, '_> {
    fn read<T>(
        &mut self,
        name: &str,
        read: impl Fn(&str) -> Option<T>,
        reason: &'static str,
    ) -> Option<T> {
        let value = read(self.options.get(name)?);
        if value.is_none() {
            self.malformed.get_or_insert(reason);
        }
        value
    }
}

fn operations(json: &str) -> Option<Vec<Operation>> {
    let names = texts(json)?;
    let operations: Option<Vec<Operation>> = names.iter().map(|name| operation(name)).collect();
    operations.filter(|operations| !operations.is_empty())
}

fn operation(name: &str) -> Option<Operation> {
    [Operation::Insert, Operation::Update, Operation::Delete, Operation::Truncate]
        .into_iter()
        .find(|operation| operation.name().eq_ignore_ascii_case(name))
}

impl From<&Members<'_>> for PresenceOptions {
    fn from(options: &Members<'_>) -> PresenceOptions {
        PresenceOptions {
            key: options.get("key").and_then(text).filter(|key| !key.is_empty()),
            // Older clients cannot say it, and always want it.
            enabled: if options.has("enabled") {
                options.flag("enabled")
            } else {
                options.has("key")
            },
        }
    }
}

impl From<&Members<'_>> for ChangeParams {
    fn from(members: &Members<'_>) -> ChangeParams {
        let mut malformed = None;
        let mut reader = Reader { options: members, malformed: &mut malformed };
        let event = reader.read("event", text, "event must be a string");
        let schema = reader.read("schema", text, "schema must be a string");
        let table = reader.read("table", text, "table must be a string");
        let filter = reader.read("filter", text, "filter must be a string");
        let select = reader.read("select", texts, "select must be a list of columns");
        ChangeParams {
            raw: raw(members.iter().filter(|(name, _)| *name != "id")),
            event: event.map_or(Requested::All, Requested::named),
            schema,
            table,
            filter: filter.filter(|filter| !filter.trim().is_empty()),
            select,
            malformed,
        }
    }
}

fn raw<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> Box<str> {
    let mut raw = Vec::new();
    for (name, value) in members {
        if !raw.is_empty() {
            raw.push(b',');
        }
        json::write_key(&mut raw, name);
        raw.extend_from_slice(value.as_bytes());
    }
    // Made of strings only, so there is nothing to lose.
    String::from_utf8_lossy(&raw).into()
}

impl Requested {
    fn named(name: String) -> Requested {
        match operation(&name) {
            _ if name == "*" => Requested::All,
            Some(operation) => Requested::One(operation),
            None => Requested::Unknown(name),
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Requested::All => "*",
            Requested::One(operation) => operation.name(),
            Requested::Unknown(name) => name,
        }
    }
}

impl ChangeParams {
    /// The subscription that a topic of realtime-js 1.x is.
    pub fn legacy(parts: &LegacyParts<'_>) -> ChangeParams {
        let schema = parts.schema.unwrap_or("*");
        let members = [("filter", parts.filter), ("schema", Some(schema)), ("table", parts.table)];
        let quoted: Vec<(&str, String)> = members
            .into_iter()
            .filter_map(|(name, value)| {
                let mut text = Vec::new();
                json::write_str(&mut text, value?);
                Some((name, String::from_utf8_lossy(&text).into_owned()))
            })
            .collect();
        ChangeParams {
            raw: raw(quoted.iter().map(|(name, value)| (*name, value.as_str()))),
            event: Requested::All,
            schema: Some(schema.to_owned()),
            table: parts.table.map(str::to_owned),
            filter: parts.filter.filter(|filter| !filter.trim().is_empty()).map(str::to_owned),
            select: None,
            malformed: None,
        }
    }

    /// Schema and table, `*` for all of them: a missing table means all, a table alone is in
    /// `public`. `None` if neither is there.
    pub fn target(&self) -> Option<(&str, &str)> {
        match (self.schema.as_deref(), self.table.as_deref()) {
            (None, None) => None,
            (Some(schema), table) => Some((schema, table.unwrap_or("*"))),
            (None, Some(table)) => Some(("public", table)),
        }
    }

    /// Supabase's text for a subscription that is not to be had, whatever the reason: it repeats
    /// what the client asked for and tells no more.
    pub fn refusal(&self) -> String {
        let (schema, table) = self.target().unwrap_or(("*", "*"));
        let filters: Vec<&String> = self.filter.iter().collect();
        let select = self.select.as_ref().map_or("nil".to_owned(), |names| format!("{names:?}"));
        format!(
            "Unable to subscribe to changes with given parameters. Please check Realtime is \
             enabled for the given connect parameters: [event: {}, schema: {schema}, \
             table: {table}, filters: {filters:?}, select: {select}]",
            self.event.name(),
        )
    }
}

/// The id of a binding: the same parameters have the same id, today and after a restart, so that
/// channels with equal bindings share their frames. Between 1 and 2^27 - 1, as the clients of all
/// languages expect.
pub fn binding_id(params: &ChangeParams) -> u32 {
    /// FNV-1a's, for 32 bits.
    const BASIS: u32 = 0x811C_9DC5;
    const PRIME: u32 = 0x0100_0193;
    let mut hash = BASIS;
    let (mut in_string, mut escaped) = (false, false);
    for byte in params.raw.bytes() {
        // White space between tokens is the client's taste.
        if !in_string && byte.is_ascii_whitespace() {
            continue;
        }
        if byte == b'"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && byte == b'\\' && !escaped;
        hash = (hash ^ u32::from(byte)).wrapping_mul(PRIME);
    }
    ((hash >> 27) ^ (hash & ((1 << 27) - 1))).max(1)
}
