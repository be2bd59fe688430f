//! The settings (`tide.*`): their definitions, and the [`Config`] made of them when a worker
//! starts.
//!
//! What concerns one database is `PGC_SUSET`, so that `ALTER DATABASE app SET tide.port = 4001`
//! works: Postgres applies those settings when a background worker connects. A running worker
//! keeps what it started with until the server reloads its settings, or `tide.restart_worker()`.

mod define;

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use define::init;
use pgrx::guc::GucSetting;
use pgrx::pg_sys;
use tide_feed::config::{Config, Credentials, File};

type Text = GucSetting<Option<CString>>;
type Int = GucSetting<i32>;
type Flag = GucSetting<bool>;

static EXECUTORS: Int = Int::new(2);
static WRITERS: Int = Int::new(2);
static SNAPSHOT_WORKERS: Int = Int::new(1);
static NETWORK_THREADS: Int = Int::new(1);
static MEMORY_LIMIT: Int = Int::new(512 << 10);

static LISTEN_ADDRESSES: Text = Text::new(Some(c"localhost"));
static PORT: Int = Int::new(4000);
static PUBLICATION: Text = Text::new(Some(c"tide"));
static SLOT_NAME: Text = Text::new(Some(c""));

static ANON_ROLE: Text = Text::new(Some(c""));
static JWT_SECRET: Text = Text::new(Some(c""));
static JWT_SECRET_FILE: Text = Text::new(Some(c""));
static JWKS_FILE: Text = Text::new(Some(c""));
static JWT_AUDIENCE: Text = Text::new(Some(c""));
static ALLOW_PRIVILEGED_ROLES: Flag = Flag::new(false);
static PUBLIC_CHANNELS: Flag = Flag::new(false);
static NOTIFY_CHANNELS: Text = Text::new(Some(c""));
static PUBLIC_CHANNELS_SEND: Flag = Flag::new(false);
static ALLOWED_ORIGINS: Text = Text::new(Some(c""));

static SSL: Flag = Flag::new(false);
static SSL_CERT_FILE: Text = Text::new(Some(c""));
static SSL_KEY_FILE: Text = Text::new(Some(c""));
static PAGE: Flag = Flag::new(true);
static PUBLIC_METRICS: Flag = Flag::new(false);

static MAX_CONNECTIONS: Int = Int::new(10_000);
static MAX_CHANNELS_PER_CONNECTION: Int = Int::new(100);
static MAX_BINDINGS_PER_CHANNEL: Int = Int::new(100);
static MAX_MESSAGE_SIZE: Int = Int::new(1 << 10);
static SEND_QUEUE_SIZE: Int = Int::new(4 << 10);
static JOIN_RATE: Int = Int::new(100);
static BROADCAST_RATE: Int = Int::new(100);
static HTTP_BROADCAST_RATE: Int = Int::new(1_000);
static MAX_BROADCAST_SIZE: Int = Int::new(256);
static PRESENCE_RATE: Int = Int::new(10);
static MAX_PRESENCE_SIZE: Int = Int::new(16);
static MAX_PRESENCE_ENTRIES: Int = Int::new(1_000);
static HANDSHAKE_TIMEOUT: Int = Int::new(10_000);
static IDLE_TIMEOUT: Int = Int::new(60_000);

static HISTORY_SIZE: Int = Int::new(32 << 10);
static HISTORY_RETENTION: Int = Int::new(120_000);
static OUTBOX_RETENTION: Int = Int::new(0);
static MAX_EVENT_SIZE: Int = Int::new(16 << 10);
static DEBUG_HANG_ON: Text = Text::new(Some(c""));
static MAX_SLOT_WAL_KEEP_SIZE: Int = Int::new(1 << 10);
static POLICY_TIMEOUT: Int = Int::new(1_000);
static SNAPSHOT_MAX_ROWS: Int = Int::new(10_000_000);
static SERVER_TIMEOUT: Int = Int::new(30_000);

static WRITE_TIMEOUT: Int = Int::new(5_000);
static ECHO_TIMEOUT: Int = Int::new(5_000);
static MUTATION_RATE: Int = Int::new(100);
static MAX_MUTATION_SIZE: Int = Int::new(256);
static MAX_PENDING_MUTATIONS: Int = Int::new(100);
static MUTATION_RETENTION: Int = Int::new(7 * 24 * 60 * 60);

static DEBUG_FAULTS: Flag = Flag::new(false);

/// The settings as they are in this process, for the worker of this database.
pub(crate) fn config(database: &str, oid: pg_sys::Oid) -> Config {
    Config {
        database: database.to_owned(),
        control_socket: control_socket(oid),
        listen_addresses: list(&LISTEN_ADDRESSES),
        port: u16::try_from(PORT.get()).unwrap_or(0),
        network_threads: count(&NETWORK_THREADS),
        publication: publication(),
        anon_role: string(&ANON_ROLE),
        jwt_audience: string(&JWT_AUDIENCE),
        allow_privileged_roles: ALLOW_PRIVILEGED_ROLES.get(),
        public_channels: PUBLIC_CHANNELS.get(),
        notify_channels: list(&NOTIFY_CHANNELS),
        public_channels_send: PUBLIC_CHANNELS_SEND.get(),
        allowed_origins: list(&ALLOWED_ORIGINS),
        ssl: SSL.get(),
        page: PAGE.get(),
        public_metrics: PUBLIC_METRICS.get(),
        max_connections: count(&MAX_CONNECTIONS),
        max_channels_per_connection: count(&MAX_CHANNELS_PER_CONNECTION),
        max_bindings_per_channel: count(&MAX_BINDINGS_PER_CHANNEL),
        max_message_size: bytes(&MAX_MESSAGE_SIZE),
        send_queue_size: bytes(&SEND_QUEUE_SIZE),
        join_rate: JOIN_RATE.get().unsigned_abs(),
        broadcast_rate: BROADCAST_RATE.get().unsigned_abs(),
        http_broadcast_rate: HTTP_BROADCAST_RATE.get().unsigned_abs(),
        max_broadcast_size: bytes(&MAX_BROADCAST_SIZE),
        presence_rate: PRESENCE_RATE.get().unsigned_abs(),
        max_presence_size: bytes(&MAX_PRESENCE_SIZE),
        max_presence_entries: count(&MAX_PRESENCE_ENTRIES),
        memory_limit: bytes(&MEMORY_LIMIT),
        handshake_timeout: time(&HANDSHAKE_TIMEOUT),
        idle_timeout: time(&IDLE_TIMEOUT),
        history_size: bytes(&HISTORY_SIZE),
        history_retention: time(&HISTORY_RETENTION),
        outbox_retention: seconds(&OUTBOX_RETENTION),
        max_slot_wal_keep_size: max_slot_wal_keep_size(),
        history_reach: history_reach(),
        snapshot_max_rows: u64::try_from(SNAPSHOT_MAX_ROWS.get()).unwrap_or(u64::MAX),
        writers: count(&WRITERS),
        mutation_rate: MUTATION_RATE.get().unsigned_abs(),
        max_mutation_size: bytes(&MAX_MUTATION_SIZE),
        max_pending_mutations: count(&MAX_PENDING_MUTATIONS),
        echo_timeout: time(&ECHO_TIMEOUT),
        mutation_retention: seconds(&MUTATION_RETENTION),
        debug_faults: DEBUG_FAULTS.get(),
    }
}

/// How far back in the WAL the history may reach, so that the slot stays within its limit, and within the
/// one past which Postgres invalidates it. The slot's oldest address (`restart_lsn`) is moved only once
/// what was current when it was found is confirmed, and one is found only where Postgres logs what runs
/// (at checkpoints, and every 15 seconds): it trails by twice the history, and by twice that distance.
fn history_reach() -> u64 {
    // SAFETY: a variable of this process.
    let servers = unsafe { (&raw const pg_sys::max_slot_wal_keep_size_mb).read() };
    max_slot_wal_keep_size().min(megabytes(servers)) / 4
}

/// How much WAL a slot may hold back, as this process knows it.
pub(crate) fn max_slot_wal_keep_size() -> u64 {
    megabytes(MAX_SLOT_WAL_KEEP_SIZE.get())
}

/// In bytes; -1 is no limit.
fn megabytes(setting: i32) -> u64 {
    u64::try_from(setting).map_or(u64::MAX, |megabytes| megabytes << 20)
}

/// The secrets and files that the settings name, as they are now.
pub(crate) fn credentials() -> Credentials {
    let tls = |setting, servers| {
        let named = || path(setting).or_else(|| server_path(servers));
        SSL.get().then(|| read(named().unwrap_or_default()))
    };
    Credentials {
        jwt_secret: jwt_secret(),
        jwks: path(&JWKS_FILE).map(read),
        certificate: tls(&SSL_CERT_FILE, c"ssl_cert_file"),
        key: tls(&SSL_KEY_FILE, c"ssl_key_file"),
    }
}

/// The settings behind [`credentials`]: which secret and files they name, not what is in the files,
/// which may be exchanged while a worker runs.
pub(crate) fn named_credentials() -> [Option<String>; 5] {
    let tls = |setting, servers| {
        let named = path(setting).or_else(|| server_path(servers));
        named.filter(|_| SSL.get()).map(|path| path.display().to_string())
    };
    [
        string(&JWT_SECRET),
        string(&JWT_SECRET_FILE),
        string(&JWKS_FILE),
        tls(&SSL_CERT_FILE, c"ssl_cert_file"),
        tls(&SSL_KEY_FILE, c"ssl_key_file"),
    ]
}

fn read(path: PathBuf) -> File {
    let content = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    File { path, content }
}

/// Where the worker of this database listens for its helpers and for SQL functions.
pub(crate) fn control_socket(database: pg_sys::Oid) -> PathBuf {
    own_file(database, "sock")
}

/// A file of a database's worker, relative to the data directory: where Postgres's extensions keep
/// what is of one running server. Base backups and pg_rewind leave that folder's content out; a
/// socket that they came upon elsewhere would have the latter fail midway.
pub(crate) fn own_file(database: pg_sys::Oid, what: &str) -> PathBuf {
    PathBuf::from(format!("pg_stat_tmp/pg_tide.{}.{what}", database.to_u32()))
}

/// A table at whose changes decoding stands still, if there is to be one.
pub(crate) fn debug_hang_on() -> Option<CString> {
    DEBUG_HANG_ON.get().filter(|table| !table.is_empty())
}

/// How long the server may take to answer before it counts as dead.
pub(crate) fn server_timeout() -> Duration {
    time(&SERVER_TIMEOUT)
}

/// How many executors the worker keeps.
pub(crate) fn executors() -> usize {
    count(&EXECUTORS)
}

/// How many readers it keeps while clients want rows.
pub(crate) fn snapshot_workers() -> usize {
    count(&SNAPSHOT_WORKERS)
}

/// How many writers it keeps while clients write.
pub(crate) fn writers() -> usize {
    count(&WRITERS)
}

/// How long one mutation may take.
pub(crate) fn write_timeout() -> Duration {
    time(&WRITE_TIMEOUT)
}

pub(crate) fn publication() -> String {
    string(&PUBLICATION).unwrap_or_else(|| "tide".into())
}

/// What the slot's name begins with, if not the usual.
pub(crate) fn slot_name() -> Option<String> {
    string(&SLOT_NAME)
}

/// Bytes of one message.
pub(crate) fn max_message_size() -> usize {
    bytes(&MAX_MESSAGE_SIZE)
}

/// Bytes of one event.
pub(crate) fn max_event_size() -> usize {
    bytes(&MAX_EVENT_SIZE)
}

pub(crate) fn allow_privileged_roles() -> bool {
    ALLOW_PRIVILEGED_ROLES.get()
}

pub(crate) fn policy_timeout() -> Duration {
    time(&POLICY_TIMEOUT)
}

/// The secret that the settings give; `None`: the generated one counts.
pub(crate) fn jwt_secret() -> Option<String> {
    if let Some(secret) = string(&JWT_SECRET) {
        return Some(secret);
    }
    let file = path(&JWT_SECRET_FILE)?;
    match std::fs::read_to_string(&file) {
        Ok(content) => Some(content.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => {
            pgrx::warning!("could not read tide.jwt_secret_file: {error}");
            None
        }
    }
}

fn string(setting: &Text) -> Option<String> {
    let value = setting.get()?.to_string_lossy().trim().to_owned();
    (!value.is_empty()).then_some(value)
}

fn path(setting: &Text) -> Option<PathBuf> {
    string(setting).map(PathBuf::from)
}

fn list(setting: &Text) -> Vec<String> {
    let text = string(setting).unwrap_or_default();
    let items = text.split(',').map(|item| item.trim().trim_matches('"'));
    items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn count(setting: &Int) -> usize {
    usize::try_from(setting.get()).unwrap_or(0)
}

/// Of a setting in kB.
fn bytes(setting: &Int) -> usize {
    count(setting) << 10
}

fn time(setting: &Int) -> Duration {
    Duration::from_millis(u64::from(setting.get().unsigned_abs()))
}

fn seconds(setting: &Int) -> Duration {
    Duration::from_secs(u64::from(setting.get().unsigned_abs()))
}

/// A file that one of the server's own settings names, relative to the data directory, which is
/// where every process of the server is.
fn server_path(name: &CStr) -> Option<PathBuf> {
    // SAFETY: the name is a constant; the value is copied before Postgres can change it.
    let value = unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        if value.is_null() { return None } else { CStr::from_ptr(value) }
    };
    let value = value.to_string_lossy();
    (!value.is_empty()).then(|| PathBuf::from(value.as_ref()))
}
