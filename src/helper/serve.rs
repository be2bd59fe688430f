//! The processes beside each worker that ask the database what the worker must not: the catalog
//! worker in the session of the extension's owner, the executors in that of `tide_authenticator`.
//!
//! Each connects to the unix socket of its database's server, says which it is, and answers requests
//! one at a time until that closes the connection; then it waits for the next server, for as long as
//! the worker is there. If a helper ends, for whatever reason, the worker starts another. A question
//! that cannot be understood, or whose answer is too large, is answered by an error; one that is
//! itself too large costs the connection.

use std::path::Path;
use std::time::{Duration, Instant};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::{pg_guard, pg_sys};
use tide_feed::backoff::Backoff;
use tide_feed::catalog::{Hello, MAX_FRAME, MAX_QUESTION, Request};
use tide_feed::mutation::MAX_MUTATION;

use crate::helper::mutation::{self, ledger, leftovers};
use crate::helper::transaction::Refusal;
use crate::helper::{
    answer, catalog, changes, channel, executor, notifier, outbox, policy, role_settings, session,
    snapshot,
};
use crate::process::{helpers, signals};
use crate::socket::{FrameSocket, SocketError};
use crate::source::invalidation;
use crate::{guc, socket, wait};

/// Pause before a server that is not there is looked for again.
const RETRY: Duration = Duration::from_millis(50);
/// The longest pause before a server that does not keep to the protocol is talked to again.
const LONGEST: Duration = Duration::from_secs(10);

/// Bytes of a question for a writer: a mutation as a string of JSON, and whose it is.
const MAX_MUTATION_QUESTION: usize = 2 * MAX_MUTATION + (1 << 20);

/// Entry point; `arg` is the oid of the database, the worker's `bgw_extra` says which it is to be.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tide_helper_main(arg: pg_sys::Datum) {
    let database = pg_sys::Oid::from(arg.value() as u32);
    let hello = match BackgroundWorker::get_extra() {
        "catalog worker" => Hello::CatalogWorker,
        "notifier" => Hello::Notifier,
        "reader" => Hello::Reader,
        "writer" => Hello::Writer,
        _ => Hello::Executor,
    };
    signals::install();
    if !helpers::attach(database) {
        // The database is about to be dropped or renamed: nobody is to connect to it.
        return;
    }
    match hello {
        Hello::CatalogWorker => {
            session::connect_as_owner(database);
            changes::listen();
        }
        Hello::Executor | Hello::Reader | Hello::Writer => {
            session::connect_as_authenticator(database);
            role_settings::remember();
            invalidation::listen();
        }
        _ => session::connect_as_authenticator(database),
    }
    let socket = guc::control_socket(database);
    let worker = helpers::worker(database);
    let mut backoff = Backoff::up_to(LONGEST);
    while worker.is_some() && helpers::worker(database) == worker && !role_settings::is_old() {
        let begun = Instant::now();
        match serve(hello, &socket) {
            // A server that ends is followed by another, which this session serves as well.
            Ok(()) | Err(SocketError::Closed) => {}
            Err(SocketError::Io(error)) if socket::is_server_gone(&error) => {}
            Err(error) => {
                pgrx::log!("pg_tide: {error}");
                backoff.failed_after(begun.elapsed());
            }
        }
        wait::until_latch_or(RETRY.max(backoff.wait()));
    }
}

fn serve(hello: Hello, path: &Path) -> Result<(), SocketError> {
    let mut socket = FrameSocket::connect(path)?;
    socket.send(&encode(&hello))?;
    changes::begin_stream();
    if hello == Hello::Notifier {
        return notifier::serve(socket.into_stream());
    }
    let most = match hello {
        Hello::CatalogWorker => MAX_QUESTION,
        Hello::Writer => MAX_MUTATION_QUESTION,
        // It is asked about rows.
        _ => MAX_FRAME,
    };
    loop {
        let frame = socket.receive(most)?;
        signals::reload();
        socket.send(&answer::frame(answer(hello, &frame)))?;
        if hello == Hello::Writer {
            leftovers::discard();
        }
        if role_settings::is_old() {
            return Ok(());
        }
    }
}

fn answer(hello: Hello, frame: &[u8]) -> Result<String, Refusal> {
    let unknown = || {
        let code = pgrx::PgSqlErrorCode::ERRCODE_PROTOCOL_VIOLATION;
        Refusal::new(code, "not a request that this process answers")
    };
    let request: Request = serde_json::from_slice(frame).map_err(|_| unknown())?;
    match (hello, request) {
        (Hello::CatalogWorker, Request::Secrets) => catalog::secrets(),
        (Hello::CatalogWorker, Request::Role { role, streamed }) => catalog::role(&role, streamed),
        (Hello::CatalogWorker, Request::Tables { role, publication, which, streamed }) => {
            catalog::tables(&role, &publication, &which, streamed)
        }
        (Hello::CatalogWorker, Request::Changes { since }) => catalog::changes(since),
        (Hello::CatalogWorker, Request::Visibility { role, object, streamed }) => {
            catalog::visibility(&role, object, streamed)
        }
        (Hello::CatalogWorker, Request::Check) => catalog::check(),
        (Hello::CatalogWorker, Request::Outboxes) => outbox::list(),
        (Hello::CatalogWorker, Request::TakeOver { table, generation, after, limit }) => {
            outbox::take_over(table, generation, after, limit)
        }
        (Hello::CatalogWorker, Request::Retire { table, ids, keep }) => {
            outbox::retire(table, ids, keep)
        }
        (Hello::CatalogWorker, Request::SetAside { table, rows }) => outbox::set_aside(table, rows),
        (Hello::CatalogWorker, Request::CountFailed { table }) => outbox::count_failed(table),
        (Hello::CatalogWorker, Request::Unpublished { table, after, limit }) => {
            outbox::unpublished(table, after, limit)
        }
        (Hello::CatalogWorker, Request::Expire { table, age, limit }) => {
            outbox::expire(table, age, limit)
        }
        (Hello::Executor, Request::Cast { role, type_sql, values }) => {
            executor::cast(&role, &type_sql, &values)
        }
        (Hello::Executor, Request::EvaluatePolicy { role, table, rows, labels, claims }) => {
            policy::evaluate_policy(&role, table, &rows, &labels, &claims)
        }
        (Hello::Executor, Request::EvaluateClaims { role, expressions, claims }) => {
            policy::evaluate_claims(&role, &expressions, &claims)
        }
        (Hello::Reader, Request::Chunk(request)) => snapshot::chunk(&request),
        (Hello::Reader, Request::Places { role, claims, table, key, keys, borders }) => {
            snapshot::places((&role, &claims), table, &key, &keys, &borders)
        }
        (Hello::Writer, Request::Mutate { role, claims, mutation }) => {
            mutation::mutate(&role, &claims, &mutation)
        }
        (Hello::CatalogWorker, Request::ForgetMutations { age, limit }) => {
            ledger::forget(age, limit)
        }
        (Hello::Executor, Request::Channel { role, claims, topic, extensions }) => {
            channel::grants(&role, &claims, &topic, &extensions)
        }
        _ => Err(unknown()),
    }
}

/// The protocol's own types, whose encoding cannot fail.
fn encode(message: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}
