//! The settings' definitions: names, defaults, bounds, and what they mean.

use std::ffi::CStr;

use pgrx::guc::{GucContext, GucFlags, GucRegistry};
use pgrx::{pg_guard, pg_sys};

use super::*;

/// Largest size in kB that a setting can have.
const MAX_KB: i32 = i32::MAX / 1024;
/// An event must be far from where places in a batch no longer fit 32 bits.
const MAX_EVENT_KB: i32 = 256 << 10;
/// `SET name = a, b` without quotes; pgrx has no name for it.
const LIST: GucFlags = GucFlags::from_bits_retain(pg_sys::GUC_LIST_INPUT as i32);
/// In no list and no sample file.
const HIDDEN: GucFlags =
    GucFlags::from_bits_retain((pg_sys::GUC_NO_SHOW_ALL | pg_sys::GUC_NOT_IN_SAMPLE) as i32);
const DAY_MS: i32 = 24 * 60 * 60 * 1000;

/// Defines every setting and reserves the prefix; called once, from `_PG_init`.
pub(crate) fn init() {
    define_cluster();
    define_source();
    define_identity();
    define_transport();
    define_limits();
    define_history();
    define_writing();
    define_debugging();
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
        c"tide.snapshot_workers",
        c"Sets how many processes per database read the rows that clients' channels begin with.",
        c"They are there while clients want such rows, and a little longer. Each takes one of \
          max_worker_processes.",
        &SNAPSHOT_WORKERS,
        1,
        8,
        GucFlags::empty(),
    );
    int(
        c"tide.writers",
        c"Sets how many processes per database write what clients ask to be written.",
        c"They are there while clients write, and a little longer. Each takes one of \
          max_worker_processes. 0: clients write nothing.",
        &WRITERS,
        0,
        16,
        GucFlags::empty(),
    );
    int(
        c"tide.network_threads",
        c"Sets how many threads of each tide-server serve connections.",
        c"One thread serves thousands of connections; more help when many clients get a lot.",
        &NETWORK_THREADS,
        1,
        64,
        GucFlags::empty(),
    );
    int(
        c"tide.memory_limit",
        c"Sets how much memory each tide-server may use for its history, its queues and its connections.",
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
        c"tide.max_event_size",
        c"Sets the largest row change or message that is streamed.",
        c"As JSON, and unpacked. In place of a larger one clients get an error event with its key.",
        &MAX_EVENT_SIZE,
        64,
        MAX_EVENT_KB,
        GucFlags::UNIT_KB,
    );
    int(
        c"tide.max_slot_wal_keep_size",
        c"Sets how much WAL pg_tide may hold back.",
        c"The history gives up its oldest events, whatever its size and age, when it reaches back \
          a quarter of this, or of the server's own max_slot_wal_keep_size: the slot trails by more \
          than twice the history. It must exceed twice tide.history_size. -1: no limit.",
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
    define_jwt_secret();
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
    flag(
        c"tide.public_channels_send",
        c"Allows clients to broadcast and to be present on public channels.",
        c"Off: only the database says something on them.",
        &PUBLIC_CHANNELS_SEND,
    );
    text(
        c"tide.notify_channels",
        c"Lists the NOTIFY channels that clients may hear, as patterns.",
        c"Separated by commas; * stands for any characters. Empty: none. A private join also needs a \
          policy that admits it, any other one tide.public_channels.",
        &NOTIFY_CHANNELS,
        LIST,
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

/// Shown to nobody: those who may see every setting (pg_monitor) could otherwise sign tokens.
fn define_jwt_secret() {
    // SAFETY: the hook gives a constant.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"tide.jwt_secret",
            c"Sets the secret that tokens are signed with (HS256).",
            c"Overrides the secret made by CREATE EXTENSION. Everyone can read what ALTER DATABASE \
              and ALTER ROLE set: use postgresql.conf, or tide.jwt_secret_file.",
            &JWT_SECRET,
            GucContext::Suset,
            GucFlags::SUPERUSER_ONLY | GucFlags::NO_SHOW_ALL,
            None,
            None,
            Some(hide),
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn hide() -> *const std::ffi::c_char {
    c"********".as_ptr()
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
    flag(
        c"tide.public_metrics",
        c"Serves /metrics to whoever reaches the listener.",
        c"Off: only to the machine itself, and not to what comes by a proxy.",
        &PUBLIC_METRICS,
    );
}

/// What clients may use up.
fn define_limits() {
    let none = GucFlags::empty();
    int(
        c"tide.max_connections",
        c"Sets how many clients may be connected.",
        c"Further ones are refused with HTTP status 429. Each takes a file descriptor; where the \
          operating system allows fewer, tide.check() says so.",
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
        c"tide.max_bindings_per_channel",
        c"Sets how many entries of postgres_changes one channel may have.",
        c"A join with more is refused.",
        &MAX_BINDINGS_PER_CHANNEL,
        1,
        10_000,
        none,
    );
    int(
        c"tide.join_rate",
        c"Sets how many joins per second one connection may ask for.",
        c"One more ends the connection.",
        &JOIN_RATE,
        1,
        100_000,
        none,
    );
    define_channel_limits();
    int(
        c"tide.max_message_size",
        c"Sets the largest message that a client or tide.send() may send.",
        c"A larger one ends the client's connection, or fails the sender's transaction.",
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
        c"tide.server_timeout",
        c"Sets for how long tide-server may leave its worker unanswered before it is ended and started again.",
        c"It usually answers within milliseconds.",
        &SERVER_TIMEOUT,
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

/// What clients may use up by talking to each other.
fn define_channel_limits() {
    let none = GucFlags::empty();
    int(
        c"tide.broadcast_rate",
        c"Sets how many broadcasts per second one connection may send.",
        c"One more ends its channel; the client is told.",
        &BROADCAST_RATE,
        1,
        1_000_000,
        none,
    );
    int(
        c"tide.http_broadcast_rate",
        c"Sets how many broadcasts per second one token may send over HTTP.",
        c"Further ones are refused with HTTP status 429.",
        &HTTP_BROADCAST_RATE,
        1,
        1_000_000,
        none,
    );
    int(
        c"tide.max_broadcast_size",
        c"Sets the largest payload of a client's broadcast.",
        c"A larger one is refused. tide.max_message_size is a limit as well.",
        &MAX_BROADCAST_SIZE,
        1,
        MAX_KB,
        GucFlags::UNIT_KB,
    );
    int(
        c"tide.presence_rate",
        c"Sets how many times per second one connection may change what it tracks.",
        c"One more ends its channel; the client is told.",
        &PRESENCE_RATE,
        1,
        1_000_000,
        none,
    );
    int(
        c"tide.max_presence_size",
        c"Sets how much a client may track of itself on one channel.",
        c"Its key included. More ends its channel; the client is told.",
        &MAX_PRESENCE_SIZE,
        1,
        MAX_KB,
        GucFlags::UNIT_KB,
    );
    int(
        c"tide.max_presence_entries",
        c"Sets how many clients may be present on one channel.",
        c"Further ones are refused.",
        &MAX_PRESENCE_ENTRIES,
        1,
        1_000_000,
        none,
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
    int(
        c"tide.outbox_retention",
        c"Sets for how long published rows stay in outboxes.",
        c"They are flagged by locked_by = 'published'. The newest row of an outbox always stays.",
        &OUTBOX_RETENTION,
        0,
        i32::MAX,
        GucFlags::UNIT_S,
    );
    int(
        c"tide.snapshot_max_rows",
        c"Sets how many rows a channel may begin with.",
        c"Of a channel that asks for more the client is told so. -1: no limit.",
        &SNAPSHOT_MAX_ROWS,
        -1,
        i32::MAX,
        GucFlags::empty(),
    );
}

/// What clients write.
fn define_writing() {
    int(
        c"tide.write_timeout",
        c"Sets how long one mutation may take.",
        c"With the triggers and functions that it sets off, and its wait for locks. One that takes \
          longer is undone, and tried again.",
        &WRITE_TIMEOUT,
        1,
        DAY_MS,
        GucFlags::UNIT_MS,
    );
    int(
        c"tide.echo_timeout",
        c"Sets how long the answer to a mutation waits for the mutation's own events to be sent first.",
        c"Past that it says that they are still to come.",
        &ECHO_TIMEOUT,
        0,
        DAY_MS,
        GucFlags::UNIT_MS,
    );
    int(
        c"tide.mutation_rate",
        c"Sets how many mutations per second one connection may ask for, or one token over HTTP.",
        c"What is beyond is answered with an error, and nothing is written.",
        &MUTATION_RATE,
        1,
        i32::MAX,
        GucFlags::empty(),
    );
    int(
        c"tide.max_mutation_size",
        c"Sets the largest mutation that a client may ask for.",
        c"A larger one is answered with an error, and nothing is written.",
        &MAX_MUTATION_SIZE,
        1,
        4 << 10,
        GucFlags::UNIT_KB,
    );
    int(
        c"tide.max_pending_mutations",
        c"Sets how many mutations of one connection may wait to be done, or for their answers.",
        c"One more is answered with an error, and nothing is written.",
        &MAX_PENDING_MUTATIONS,
        1,
        10_000,
        GucFlags::empty(),
    );
    int(
        c"tide.mutation_retention",
        c"Sets for how long it is remembered how mutations ended.",
        c"One that is sent again after that is answered as expired. The newest of each client is \
          never forgotten.",
        &MUTATION_RETENTION,
        1,
        i32::MAX,
        GucFlags::UNIT_S,
    );
}

/// What is of use to pg_tide's own tests only, and in no list of settings.
fn define_debugging() {
    GucRegistry::define_bool_guc(
        c"tide.debug_faults",
        c"Lets superusers have tide-server crash, through tide_internal.control.",
        c"For pg_tide's own tests.",
        &DEBUG_FAULTS,
        GucContext::Suset,
        HIDDEN,
    );
    text(
        c"tide.debug_hang_on",
        c"Names a table at whose changes decoding stands still.",
        c"So that the worker can be ended right there. Empty: none.",
        &DEBUG_HANG_ON,
        HIDDEN,
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
