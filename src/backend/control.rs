//! A backend's line to its database's worker, for the SQL functions that want something of it.

use std::time::Duration;

use pgrx::{PgSqlErrorCode, pg_sys};
use serde::de::DeserializeOwned;
use tide_feed::catalog::{Hello, Reply};
use tide_feed::control::ControlRequest;

use crate::guc;
use crate::socket::{self, FrameSocket, SocketError};

/// The worker answers from memory.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("the pg_tide worker of this database is not running")]
    NotRunning,
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("the worker's answer could not be understood")]
    Answer(#[from] serde_json::Error),
    #[error("{message}")]
    Refused { message: String },
}

/// Asks the worker and waits for its answer, which can be cancelled.
pub(crate) fn ask<R: DeserializeOwned>(request: &ControlRequest) -> Result<R, ControlError> {
    // SAFETY: set when this backend connected to its database.
    let path = guc::control_socket(unsafe { pg_sys::MyDatabaseId });
    let mut socket = FrameSocket::connect(&path).map_err(|error| {
        if socket::is_server_gone(&error) {
            return ControlError::NotRunning;
        }
        ControlError::Socket(error.into())
    })?;
    socket.set_timeout(TIMEOUT);
    socket.send(&serde_json::to_vec(&Hello::Control)?)?;
    socket.send(&serde_json::to_vec(request)?)?;
    match serde_json::from_slice(&socket.receive()?)? {
        Reply::Ok(json) => Ok(serde_json::from_str(json.get())?),
        Reply::Error { message, .. } => Err(ControlError::Refused { message }),
    }
}

/// Tells the worker of this database to read the secrets again.
pub(crate) fn nudge_reload() {
    nudge(&ControlRequest::Reload);
}

/// Tells the worker of this database that there is an outbox more or less.
pub(crate) fn nudge_outboxes() {
    nudge(&ControlRequest::Outboxes);
}

/// Tells the worker something, and waits for nothing. For the end of a transaction: no call into
/// Postgres, and no error.
fn nudge(request: &ControlRequest) {
    // SAFETY: set when this backend connected to its database.
    let path = guc::control_socket(unsafe { pg_sys::MyDatabaseId });
    let Ok(mut stream) = socket::connect(&path) else { return };
    for message in [serde_json::to_vec(&Hello::Control), serde_json::to_vec(request)] {
        let Ok(message) = message else { return };
        let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
        let frame = [&length[..], &message].concat();
        // A socket that nobody has written to has room for it.
        if std::io::Write::write_all(&mut stream, &frame).is_err() {
            return;
        }
    }
}

impl ControlError {
    /// Raises it as an error of the SQL function.
    pub(crate) fn raise(&self) -> ! {
        let code = match self {
            ControlError::NotRunning => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            ControlError::Refused { .. } => PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
            ControlError::Socket(_) | ControlError::Answer(_) => {
                PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE
            }
        };
        crate::backend::report::raise(
            code,
            self.to_string(),
            "select * from tide.check() says what is missing.",
        )
    }
}
