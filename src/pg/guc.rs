//! The settings (`tide.*`): their definitions, and the [`Config`] made of them when a worker
//! starts.
//!
//! What concerns one database is `PGC_SUSET`, so that `ALTER DATABASE app SET tide.port = 4001`
//! works: Postgres applies those settings when a background worker connects. A running worker
//! keeps what it started with until `tide.restart_worker()`.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;

use crate::config::Config;

type Text = GucSetting<Option<CString>>;
type Int = GucSetting<i32>;
type Flag = GucSetting<bool>;

static EXECUTORS: Int = Int::new(1);
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
static ALLOWED_ORIGINS: Text = Text::new(Some(c""));

static SSL: Flag = Flag::new(false);
static SSL_CERT_FILE: Text = Text::new(Some(c""));
static SSL_KEY_FILE: Text = Text::new(Some(c""));
static PAGE: Flag = Flag::new(true);

static MAX_CONNECTIONS: Int = Int::new(10_000);
static MAX_CHANNELS_PER_CONNECTION: Int = Int::new(100);
static MAX_MESSAGE_SIZE: Int = Int::new(1 << 10);
static SEND_QUEUE_SIZE: Int = Int::new(4 << 10);
static JOIN_RATE: Int = Int::new(100);
static HANDSHAKE_TIMEOUT: Int = Int::new(10_000);
static IDLE_TIMEOUT: Int = Int::new(60_000);

static HISTORY_SIZE: Int = Int::new(32 << 10);
static HISTORY_RETENTION: Int = Int::new(120_000);
static MAX_SLOT_WAL_KEEP_SIZE: Int = Int::new(1 << 10);
static POLICY_TIMEOUT: Int = Int::new(1_000);

/// Largest size in kB that a setting can have.
const MAX_KB: i32 = i32::MAX / 1024;
/// `SET name = a, b` without quotes; pgrx has no name for it.
const LIST: GucFlags = GucFlags::from_bits_retain(pg_sys::GUC_LIST_INPUT as i32);
const DAY_MS: i32 = 24 * 60 * 60 * 1000;

/// Defines every setting and reserves the prefix; called once, from `_PG_init`.
pub(crate) fn init() {
    define_cluster();
    define_source();
    define_identity();
    define_transport();
    define_limits();
    define_history();
    // SAFETY: called in `_PG_init`, with a constant string.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"tide".as_ptr()) };
}

/// Applies to every worker of the cluster: `postgresql.conf` and a reload; workers take it up when
/// they start.
fn define_cluster() {
    let int = |name, short, long, setting, min, max, flags| {
        GucRegistry::define_int_guc(
            name,
            short,
            long,
            setting,
            min,
            max,
            GucContext::Sighup,
            flags,
        );
    };
    int(
        c"tide.executors",
        c"Sets how many processes per database run what clients ask for under the clients' own roles.",
        c"Each takes one of max_worker_processes.",
        &EXECUTORS,
        1,
        32,
        GucFlags::empty(),
    );
    int(
        c"tide.network_threads",
        c"Sets how many threads of each worker serve connections.",
        c"One thread serves thousands of connections; more help when many clients get a lot.",
        &NETWORK_THREADS,
        1,
        64,
        GucFlags::empty(),
    );
    int(
        c"tide.memory_limit",
        c"Sets how much memory each worker may use for its history, its queues and its connections.",
        c"At the limit new connections and joins are refused, and the slowest connections are cut off.",
        &MEMORY_LIMIT,
        64 << 10,
        i32::MAX,
        GucFlags::UNIT_KB,
    );
}

/// Where the changes come from.
fn define_source() {
    text(
        c"tide.publication",
        c"Names the publication whose tables are streamed.",
        c"tide.publish() makes it on first use. Its row filters, column lists and operations hold.",
        &PUBLICATION,
        GucFlags::IS_NAME,
    );
    text(
        c"tide.slot_name",
        c"Sets the beginning of the replication slot's name.",
        c"A random suffix is added to it. Empty: tide_ and the oid of the database.",
        &SLOT_NAME,
        GucFlags::IS_NAME,
    );
    int(
        c"tide.max_slot_wal_keep_size",
        c"Sets how much WAL pg_tide may hold back.",
        c"Past it the history shrinks: it gives up its oldest events, whatever its size and \
          age. It must exceed twice tide.history_size. -1: no limit.",
        &MAX_SLOT_WAL_KEEP_SIZE,
        -1,
        i32::MAX,
        GucFlags::UNIT_MB,
    );
}

/// Who may come.
fn define_identity() {
    text(
        c"tide.anon_role",
        c"Names the role of clients that come without a token.",
        c"Empty: they are refused. The role must be granted to tide_authenticator.",
        &ANON_ROLE,
        GucFlags::IS_NAME,
    );
    text(
        c"tide.jwt_secret",
        c"Sets the secret that tokens are signed with (HS256).",
        c"Overrides the secret made by CREATE EXTENSION. Everyone can read what ALTER DATABASE and \
          ALTER ROLE set: use postgresql.conf, or tide.jwt_secret_file.",
        &JWT_SECRET,
        GucFlags::SUPERUSER_ONLY | GucFlags::NO_SHOW_ALL,
    );
    text(
        c"tide.jwt_secret_file",
        c"Names a file that holds the secret that tokens are signed with (HS256).",
        c"Relative to the data directory. Used when tide.jwt_secret is empty.",
        &JWT_SECRET_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
    text(
        c"tide.jwks_file",
        c"Names a file with the public keys (a JWK set) of those who issue tokens.",
        c"Relative to the data directory. For tokens signed with RS256, ES256 or EdDSA.",
        &JWKS_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
    text(
        c"tide.jwt_audience",
        c"Sets the audience that tokens must name.",
        c"Empty: any.",
        &JWT_AUDIENCE,
        GucFlags::empty(),
    );
    flag(
        c"tide.allow_privileged_roles",
        c"Allows tokens for roles with SUPERUSER, BYPASSRLS or REPLICATION.",
        c"Whoever can sign a token has such a role's powers.",
        &ALLOW_PRIVILEGED_ROLES,
    );
    flag(
        c"tide.public_channels",
        c"Allows channels that anyone with a valid token may join.",
        c"Off: every channel is private, and policies decide who may join.",
        &PUBLIC_CHANNELS,
    );
    text(
        c"tide.allowed_origins",
        c"Lists the origins from which browsers may connect.",
        c"Separated by commas, such as https://app.example.com. Empty: any; tokens, not cookies, \
          say who a client is.",
        &ALLOWED_ORIGINS,
        LIST,
    );
}

/// Where the listener is and what it speaks.
fn define_transport() {
    text(
        c"tide.listen_addresses",
        c"Sets the host names or addresses to listen on.",
        c"Separated by commas; * is every address. Empty: no listener.",
        &LISTEN_ADDRESSES,
        LIST,
    );
    int(
        c"tide.port",
        c"Sets the port to listen on.",
        c"Each database needs its own: ALTER DATABASE ... SET tide.port. 0: no listener.",
        &PORT,
        0,
        65_535,
        GucFlags::empty(),
    );
    flag(
        c"tide.ssl",
        c"Serves https and wss instead of http and ws.",
        c"With tide.ssl_cert_file and tide.ssl_key_file, or the server's own certificate.",
        &SSL,
    );
    text(
        c"tide.ssl_cert_file",
        c"Names the file with the certificate chain (PEM).",
        c"Empty: the server's ssl_cert_file.",
        &SSL_CERT_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
    text(
        c"tide.ssl_key_file",
        c"Names the file with the private key (PEM).",
        c"Empty: the server's ssl_key_file.",
        &SSL_KEY_FILE,
        GucFlags::SUPERUSER_ONLY,
    );
    flag(
        c"tide.page",
        c"Serves a page that shows the events as they come, to connections from the machine itself.",
        c"At the root of the listener.",
        &PAGE,
    );
}

/// What clients may use up.
fn define_limits() {
    let none = GucFlags::empty();
    int(
        c"tide.max_connections",
        c"Sets how many clients may be connected.",
        c"Further ones are refused with HTTP status 503.",
        &MAX_CONNECTIONS,
        1,
        1_000_000,
        none,
    );
    int(
        c"tide.max_channels_per_connection",
        c"Sets how many channels one connection may join.",
        c"Further joins are refused.",
        &MAX_CHANNELS_PER_CONNECTION,
        1,
        100_000,
        none,
    );
    int(
        c"tide.join_rate",
        c"Sets how many joins per second one connection may ask for.",
        c"Further ones are refused.",
        &JOIN_RATE,
        1,
        100_000,
        none,
    );
    int(
        c"tide.max_message_size",
        c"Sets the largest message that a client may send.",
        c"A larger one ends the connection.",
        &MAX_MESSAGE_SIZE,
        1,
        MAX_KB,
        GucFlags::UNIT_KB,
    );
    int(
        c"tide.send_queue_size",
        c"Sets how much may wait for one slow client.",
        c"Past it the client is served from the history, and cut off when it falls behind that.",
        &SEND_QUEUE_SIZE,
        64,
        MAX_KB,
        GucFlags::UNIT_KB,
    );
    int(
        c"tide.handshake_timeout",
        c"Sets how long a client may take to send its request and finish the handshake.",
        c"",
        &HANDSHAKE_TIMEOUT,
        100,
        DAY_MS,
        GucFlags::UNIT_MS,
    );
    int(
        c"tide.idle_timeout",
        c"Sets after how long a connection that sends nothing, not even a heartbeat, is closed.",
        c"Clients of Supabase Realtime send a heartbeat every 25 or 30 seconds.",
        &IDLE_TIMEOUT,
        1_000,
        DAY_MS,
        GucFlags::UNIT_MS,
    );
    int(
        c"tide.policy_timeout",
        c"Sets how long one question to the database on behalf of a client may take.",
        c"Such as casting a filter's value.",
        &POLICY_TIMEOUT,
        1,
        DAY_MS,
        GucFlags::UNIT_MS,
    );
}

/// What those can have who come back.
fn define_history() {
    int(
        c"tide.history_size",
        c"Sets how much of the past is kept in memory for clients that resume.",
        c"The same amount of WAL is held back, so that the history survives a restart.",
        &HISTORY_SIZE,
        64,
        MAX_KB,
        GucFlags::UNIT_KB,
    );
    int(
        c"tide.history_retention",
        c"Sets for how long the past is kept for clients that resume.",
        c"Less is kept when tide.history_size is reached.",
        &HISTORY_RETENTION,
        0,
        7 * DAY_MS,
        GucFlags::UNIT_MS,
    );
}

fn text(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static Text,
    flags: GucFlags,
) {
    GucRegistry::define_string_guc(name, short, long, setting, GucContext::Suset, flags);
}

fn flag(name: &'static CStr, short: &'static CStr, long: &'static CStr, setting: &'static Flag) {
    GucRegistry::define_bool_guc(name, short, long, setting, GucContext::Suset, GucFlags::empty());
}

fn int(
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static Int,
    min: i32,
    max: i32,
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(name, short, long, setting, min, max, GucContext::Suset, flags);
}

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
        jwt_secret: jwt_secret(),
        jwks_file: path(&JWKS_FILE),
        jwt_audience: string(&JWT_AUDIENCE),
        allow_privileged_roles: ALLOW_PRIVILEGED_ROLES.get(),
        public_channels: PUBLIC_CHANNELS.get(),
        allowed_origins: list(&ALLOWED_ORIGINS),
        ssl: SSL.get(),
        ssl_cert_file: path(&SSL_CERT_FILE).or_else(|| server_path(c"ssl_cert_file")),
        ssl_key_file: path(&SSL_KEY_FILE).or_else(|| server_path(c"ssl_key_file")),
        page: PAGE.get(),
        max_connections: count(&MAX_CONNECTIONS),
        max_channels_per_connection: count(&MAX_CHANNELS_PER_CONNECTION),
        max_message_size: bytes(&MAX_MESSAGE_SIZE),
        send_queue_size: bytes(&SEND_QUEUE_SIZE),
        join_rate: JOIN_RATE.get().unsigned_abs(),
        memory_limit: bytes(&MEMORY_LIMIT),
        handshake_timeout: time(&HANDSHAKE_TIMEOUT),
        idle_timeout: time(&IDLE_TIMEOUT),
        history_size: bytes(&HISTORY_SIZE),
        history_retention: time(&HISTORY_RETENTION),
        max_slot_wal_keep_size: u64::try_from(MAX_SLOT_WAL_KEEP_SIZE.get())
            .map_or(u64::MAX, |megabytes| megabytes << 20),
    }
}

/// Where the worker of this database listens for its helpers and for SQL functions.
pub(crate) fn control_socket(oid: pg_sys::Oid) -> PathBuf {
    PathBuf::from(format!("pg_tide.{}.sock", oid.to_u32()))
}

/// How many executors the worker keeps.
pub(crate) fn executors() -> usize {
    count(&EXECUTORS)
}

pub(crate) fn publication() -> String {
    string(&PUBLICATION).unwrap_or_else(|| "tide".into())
}

/// What the slot's name begins with, if not the usual.
pub(crate) fn slot_name() -> Option<String> {
    string(&SLOT_NAME)
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
