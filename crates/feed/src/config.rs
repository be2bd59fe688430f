//! The settings the server works with: read from `tide.*` by the worker, when it starts.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub database: String,
    /// Unix socket of this worker, relative to the data directory (the process's working
    /// directory), so that it stays under the 107 bytes that a socket address holds.
    pub control_socket: PathBuf,
    pub listen_addresses: Vec<String>,
    /// 0: no listener (a second database that was not given a port of its own).
    pub port: u16,
    pub network_threads: usize,
    pub publication: String,

    /// Role of those who come without a token; `None` refuses them.
    pub anon_role: Option<String>,
    pub jwt_audience: Option<String>,
    pub allow_privileged_roles: bool,

    pub public_channels: bool,
    /// Patterns of the NOTIFY channels that clients may hear; `*` stands for any characters.
    pub notify_channels: Vec<String>,
    /// Whether clients may say something on public channels.
    pub public_channels_send: bool,
    /// Origins a browser may connect from; empty: any (tokens, not cookies, carry identity).
    pub allowed_origins: Vec<String>,
    pub ssl: bool,
    /// Whether `GET /` serves the page; it is only ever served to loopback.
    pub page: bool,
    pub public_metrics: bool,

    pub max_connections: usize,
    pub max_channels_per_connection: usize,
    /// How many entries of `postgres_changes` one channel may have.
    pub max_bindings_per_channel: usize,
    /// Bytes of one websocket message from a client.
    pub max_message_size: usize,
    /// Bytes that may wait for one client.
    pub send_queue_size: usize,
    /// Joins per second that one connection may ask for.
    pub join_rate: u32,
    /// Broadcasts per second that one connection may send.
    pub broadcast_rate: u32,
    /// Broadcasts per second that one token may send over HTTP.
    pub http_broadcast_rate: u32,
    /// Bytes of a broadcast's payload.
    pub max_broadcast_size: usize,
    /// Changes of what it tracks, per second, that one connection may ask for.
    pub presence_rate: u32,
    /// Bytes of what a client may track on one channel, key included.
    pub max_presence_size: usize,
    /// How many may be present on one channel.
    pub max_presence_entries: usize,
    /// Bytes over all queues, the history and the connections.
    pub memory_limit: usize,
    pub handshake_timeout: Duration,
    /// A connection that sends nothing, not even a heartbeat, for this long is closed.
    pub idle_timeout: Duration,

    /// Bytes of events kept for those who resume.
    pub history_size: usize,
    pub history_retention: Duration,
    /// For how long published rows of outboxes are kept.
    pub outbox_retention: Duration,
    /// Bytes of WAL that the slot may hold back; `u64::MAX`: any amount.
    pub max_slot_wal_keep_size: u64,
    /// Bytes of WAL that the history may reach back.
    pub history_reach: u64,

    /// How many rows a channel may begin with; `u64::MAX`: any number.
    pub snapshot_max_rows: u64,

    /// How many processes write what clients ask to be written; 0: clients write nothing.
    pub writers: usize,
    /// Mutations per second that one connection, or one token over HTTP, may ask for.
    pub mutation_rate: u32,
    /// Bytes of a mutation.
    pub max_mutation_size: usize,
    /// Mutations of one connection that may wait to be done.
    pub max_pending_mutations: usize,
    /// How long the answer to a mutation waits for its own events to come first.
    pub echo_timeout: Duration,
    /// For how long it is remembered how mutations ended.
    pub mutation_retention: Duration,

    /// Whether the server dies when it is asked to, for tests.
    pub debug_faults: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            database: String::new(),
            control_socket: PathBuf::from("pg_tide.sock"),
            listen_addresses: vec!["localhost".into()],
            port: 4000,
            network_threads: 1,
            publication: "tide".into(),
            anon_role: None,
            jwt_audience: None,
            allow_privileged_roles: false,
            public_channels: false,
            notify_channels: Vec::new(),
            public_channels_send: false,
            allowed_origins: Vec::new(),
            ssl: false,
            page: true,
            public_metrics: false,
            max_connections: 10_000,
            max_channels_per_connection: 100,
            max_bindings_per_channel: 100,
            max_message_size: 1 << 20,
            send_queue_size: 4 << 20,
            join_rate: 100,
            broadcast_rate: 100,
            http_broadcast_rate: 1_000,
            max_broadcast_size: 256 << 10,
            presence_rate: 10,
            max_presence_size: 16 << 10,
            max_presence_entries: 1_000,
            memory_limit: 512 << 20,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            history_size: 32 << 20,
            history_retention: Duration::from_secs(120),
            outbox_retention: Duration::ZERO,
            max_slot_wal_keep_size: 1 << 30,
            history_reach: (1 << 30) / 4,
            snapshot_max_rows: 10_000_000,
            writers: 2,
            mutation_rate: 100,
            max_mutation_size: 256 << 10,
            max_pending_mutations: 100,
            echo_timeout: Duration::from_secs(5),
            mutation_retention: Duration::from_secs(7 * 24 * 3600),
            debug_faults: false,
        }
    }
}

impl Config {
    /// What a server that runs cannot change any more: all but the settings that it can, which are
    /// as by default here.
    pub fn fixed(&self) -> Config {
        let usual = Config::default();
        Config {
            anon_role: usual.anon_role,
            jwt_audience: usual.jwt_audience,
            public_channels: usual.public_channels,
            notify_channels: usual.notify_channels,
            public_channels_send: usual.public_channels_send,
            allowed_origins: usual.allowed_origins,
            page: usual.page,
            public_metrics: usual.public_metrics,
            max_channels_per_connection: usual.max_channels_per_connection,
            max_bindings_per_channel: usual.max_bindings_per_channel,
            max_message_size: usual.max_message_size,
            join_rate: usual.join_rate,
            broadcast_rate: usual.broadcast_rate,
            http_broadcast_rate: usual.http_broadcast_rate,
            max_broadcast_size: usual.max_broadcast_size,
            presence_rate: usual.presence_rate,
            max_presence_size: usual.max_presence_size,
            handshake_timeout: usual.handshake_timeout,
            idle_timeout: usual.idle_timeout,
            history_reach: usual.history_reach,
            snapshot_max_rows: usual.snapshot_max_rows,
            mutation_rate: usual.mutation_rate,
            max_mutation_size: usual.max_mutation_size,
            max_pending_mutations: usual.max_pending_mutations,
            echo_timeout: usual.echo_timeout,
            ..self.clone()
        }
    }
}

/// What the server is to keep to itself: the secret and the files that the settings name, as they
/// are now. They are read by the worker, since the server sees no files.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// `tide.jwt_secret` or the content of `tide.jwt_secret_file`; overrides the generated secret.
    pub jwt_secret: Option<String>,
    /// The public keys (a JWK set) of those who issue tokens.
    pub jwks: Option<File>,
    /// The certificate chain and its private key, in PEM form; where `tide.ssl` is on.
    pub certificate: Option<File>,
    pub key: Option<File>,
}

/// A file that a setting names.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub path: PathBuf,
    /// What it holds, or why it could not be read.
    pub content: Result<String, String>,
}

impl Credentials {
    /// Whether some file could not be read: it may be there soon.
    pub fn is_incomplete(&self) -> bool {
        let files = [&self.jwks, &self.certificate, &self.key];
        files.into_iter().flatten().any(|file| file.content.is_err())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}
