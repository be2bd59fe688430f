//! The SQL functions that are more than SQL. What users call is declared, described and granted in
//! `sql/extension/`.

use std::io::ErrorKind;
use std::net::{TcpListener, ToSocketAddrs};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant, SystemTime};

use pgrx::prelude::*;
use pgrx::{JsonB, PgXactCallbackEvent, pg_sys, register_xact_callback};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tide_feed::control::{ControlRequest, MOST_EVENTS, Recent, Status};
use tide_feed::event::{Lsn, Position};
use tide_feed::json::MICROS_1970_TO_2000;
use tide_feed::snapshot::SnapshotToken;
use tide_feed::token;

use crate::backend::control::ControlError;
use crate::backend::jsonb::Jsonb;
use crate::backend::{control, report};
use crate::guc;
use crate::process::shmem;
use crate::process::shmem::WorkerState;
use crate::server_text::ServerText;
use crate::source::in_flight::InFlight;
use crate::source::snapshot::{flushed, seen_by};

/// How long commits under way may keep `tide.current_position` waiting, and between two looks.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL_MICROS: i64 = 1000;

/// Asks the worker anything and gives its answer as it is. Not for users.
#[pg_extern]
fn tide_control(request: JsonB) -> Jsonb {
    let request: ControlRequest = match serde_json::from_value(request.0) {
        Ok(request) => request,
        Err(error) => {
            let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
            report::raise(code, format!("not a request: {error}"), "")
        }
    };
    let answer = control::ask(&request).unwrap_or_else(|error| error.raise());
    Jsonb::read(answer.json().unwrap_or_else(|error| error.raise()))
}

/// What the worker says of itself, or that and why it does not. Not for users.
#[pg_extern]
fn tide_worker_status() -> Jsonb {
    // SAFETY: set when this backend connected to its database.
    let known = shmem::status(unsafe { pg_sys::MyDatabaseId });
    let mut status = match ask_status() {
        Ok(status) => json!(status),
        Err(error) => {
            let reason = known.as_ref().and_then(|known| known.reason.clone());
            json!({
                "state": known.as_ref().map_or("stopped", |known| unanswering(known.state)),
                "reason": reason.unwrap_or_else(|| error.to_string()),
            })
        }
    };
    if let (Some(fields), Some(known)) = (status.as_object_mut(), known) {
        fields.insert("pid".into(), json!(known.pid));
        fields.insert("server_failure".into(), json!(known.server_failure));
        fields.insert("restarts".into(), json!(known.restarts));
        let started_at =
            known.started_at.map(|time| i64::from(time).saturating_add(MICROS_1970_TO_2000));
        fields.insert("started_at".into(), json!(started_at));
    }
    Jsonb::read(&status.to_string())
}

fn ask_status() -> Result<Status, ControlError> {
    control::ask(&ControlRequest::Status)?.read()
}

/// What a worker is doing that does not answer.
fn unanswering(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Absent | WorkerState::Stopping | WorkerState::Waiting => "stopped",
        WorkerState::Starting | WorkerState::Running => "starting",
        WorkerState::Stalled => "stalled",
    }
}

/// Whether a worker could listen on this port: nobody else does. For the end of CREATE EXTENSION, which
/// the worker is started after.
#[pg_extern]
fn tide_port_is_free(host: &str, port: i32) -> bool {
    let Ok(port) = u16::try_from(port) else { return false };
    // A name that leads nowhere is for tide.check() to tell of.
    let Ok(mut addresses) = (host, port).to_socket_addrs() else { return true };
    !addresses.any(|address| {
        TcpListener::bind(address).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    })
}

/// Has the worker of this database read its settings again. False: there is none to be.
#[pg_extern]
fn tide_restart_worker() -> bool {
    // SAFETY: set when this backend connected to its database.
    shmem::request_restart(unsafe { pg_sys::MyDatabaseId })
}

/// A position that everything before it can be seen, so that what cannot comes after it. What has
/// committed before this call comes before it, unless a commit hangs: then all since that one does
/// not. NULL if the worker is not live.
#[pg_extern]
fn tide_current_position() -> Option<String> {
    // SAFETY: set when this backend connected to its database.
    let newest = shmem::newest_commit(unsafe { pg_sys::MyDatabaseId });
    // Where the WAL is not on disk, other commits may come to be after a crash.
    // SAFETY: the address is the end of a record that was inserted.
    unsafe { pg_sys::XLogFlush(newest) };
    let mut in_flight = InFlight::now();
    let began = Instant::now();
    let mut is_visible = in_flight.are_visible();
    while !is_visible && began.elapsed() < PATIENCE {
        // SAFETY: naps, in a backend that holds no lock of its own.
        unsafe { pg_sys::pg_usleep(POLL_MICROS) };
        pgrx::check_for_interrupts!();
        is_visible = in_flight.are_visible();
    }
    let status = ask_status().ok()?;
    // What has been decoded could be seen before.
    let end = if is_visible { newest.max(status.decoded_lsn) } else { status.decoded_lsn };
    // It is text in the database's encoding, whatever that is.
    let epoch = status.epoch.filter(|epoch| epoch.is_ascii())?;
    Some(format!("{epoch}.{}", Position::before(Lsn(end))))
}

/// What the query that calls this can see, as a `since`. NULL if the worker is not live.
#[pg_extern]
fn tide_snapshot_token() -> Option<String> {
    // SAFETY: a query runs, with a snapshot.
    let (mut snapshot, own) = unsafe {
        let active = pg_sys::GetActiveSnapshot();
        (seen_by(&*active), pg_sys::GetTopTransactionIdIfAny().into_inner())
    };
    // What it does itself is told, since it may do more.
    if own != pg_sys::InvalidTransactionId.into_inner() {
        snapshot.add_unseen(own);
    }
    let position = Position::before(Lsn(flushed()));
    let epoch = ask_status().ok()?.epoch?;
    let cursor = format!("{epoch}.{position}").parse().ok()?;
    Some(SnapshotToken { cursor, snapshot }.to_string())
}

/// The newest events of all tables, for superusers and members of pg_monitor; of their own tables
/// for others.
#[pg_extern]
#[expect(clippy::type_complexity, reason = "the columns of a table function")]
fn tide_recent(
    limit: i32,
) -> TableIterator<
    'static,
    (
        name!(id, ServerText<String>),
        name!(commit_time, TimestampWithTimeZone),
        name!(schema, ServerText<String>),
        name!(table, ServerText<String>),
        name!(operation, ServerText<String>),
        name!(record, Option<ServerText<String>>),
        name!(old_record, Option<ServerText<String>>),
    ),
> {
    let limit = u32::try_from(limit).unwrap_or(0).min(MOST_EVENTS as u32);
    let tables = (!sees_everything()).then(own_tables);
    let answer = control::ask(&ControlRequest::Recent { limit, tables });
    let answer = answer.unwrap_or_else(|error| error.raise());
    let recent: Recent = answer.read().unwrap_or_else(|error| error.raise());
    drop(answer);
    TableIterator::new(recent.events.into_iter().map(|event| {
        let commit_time = timestamp(event.commit_time);
        // As text: Postgres's jsonb keeps numbers of any precision.
        let json = |json: Option<Box<RawValue>>| Some(ServerText(Box::<str>::from(json?).into()));
        let (record, old_record) = (json(event.record), json(event.old_record));
        let [id, schema, table, operation] =
            [event.id, event.schema, event.table, event.operation].map(ServerText);
        (id, commit_time, schema, table, operation, record, old_record)
    }))
}

fn sees_everything() -> bool {
    // SAFETY: catalogue look-ups, in the transaction of the calling query.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), pg_sys::ROLE_PG_MONITOR.into()) }
}

/// Tables whose owner the caller is, or has the rights of. The worker cuts nothing from a row, so
/// lesser privileges do not count, and row-level security that binds the owner hides the table.
fn own_tables() -> Vec<u32> {
    let query = include_str!("../../sql/catalog/own_tables.sql");
    let oids = Spi::get_one::<Vec<pg_sys::Oid>>(query).ok().flatten().unwrap_or_default();
    oids.into_iter().map(pg_sys::Oid::to_u32).collect()
}

/// Microseconds since 1970 as Postgres's own since 2000.
fn timestamp(unix_microseconds: i64) -> TimestampWithTimeZone {
    TimestampWithTimeZone::try_from(unix_microseconds.saturating_sub(MICROS_1970_TO_2000))
        .unwrap_or_else(|_| TimestampWithTimeZone::positive_infinity())
}

/// A new secret: 256 bits from the system's source of randomness, in hexadecimal.
#[pg_extern]
fn tide_random_secret() -> String {
    let mut bytes = [0_u8; 32];
    // SAFETY: the buffer is as long as it is said to be.
    if !unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) } {
        let code = PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
        report::raise(code, "could not generate a random secret", "Try again.");
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A token, signed with the secret that counts. Not for users: `tide.token` checks what is asked.
#[pg_extern]
fn tide_sign(role: &str, claims: JsonB, seconds: i64) -> String {
    let newest = "select secret from tide.secret order by created_at desc, id desc limit 1";
    let secret = guc::jwt_secret().or_else(|| Spi::get_one::<String>(newest).ok().flatten());
    let Some(secret) = secret else {
        report::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "there is no secret to sign with",
            "select tide.rotate_jwt_secret() makes one.",
        )
    };
    let claims = match claims.0 {
        Value::Object(claims) => claims,
        _ => serde_json::Map::new(),
    };
    let lifetime = Duration::from_secs(seconds.unsigned_abs());
    token::sign(&secret, role, claims, lifetime, SystemTime::now())
}

/// Has the worker read the secrets again once this transaction has committed.
#[pg_extern]
fn tide_reload_at_commit() {
    register_xact_callback(PgXactCallbackEvent::Commit, AssertUnwindSafe(control::nudge_reload));
}
