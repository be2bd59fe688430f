//! A backend's line to its database's worker, for the SQL functions that want something of it.

use std::io::Write;
use std::time::Duration;

use pgrx::{PgSqlErrorCode, pg_sys};
use serde::Deserialize;
use tide_feed::catalog::Hello;
use tide_feed::control::{self, ControlRequest, NoAnswer};

use crate::encoding::Encoding;
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
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
}

/// What the worker has answered, as the frame that it came in.
#[derive(Debug)]
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    /// It as JSON, which says whatever its author likes.
    pub(crate) fn json(&self) -> Result<&str, ControlError> {
        Ok(control::answer(&self.0)?)
    }

    /// It as what it is to be.
    pub(crate) fn read<'a, R: Deserialize<'a>>(&'a self) -> Result<R, ControlError> {
        Ok(serde_json::from_str(self.json()?).map_err(|_| NoAnswer::Garbled)?)
    }
}

/// Asks the worker and waits for its answer, which can be cancelled.
pub(crate) fn ask(request: &ControlRequest) -> Result<Answer, ControlError> {
    // SAFETY: set when this backend connected to its database.
    let path = guc::control_socket(unsafe { pg_sys::MyDatabaseId });
    let mut socket = FrameSocket::connect(&path).map_err(|error| {
        if socket::is_server_gone(&error) {
            return ControlError::NotRunning;
        }
        ControlError::Socket(error.into())
    })?;
    socket.set_timeout(TIMEOUT);
    socket.send(&encode(&Hello::Control))?;
    socket.send(&encode(request))?;
    Ok(Answer(socket.receive(request.largest_answer())?))
}

/// The protocol's own types, whose encoding cannot fail.
fn encode(message: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
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
    for message in [encode(&Hello::Control), encode(request)] {
        let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
        // A socket that nobody has written to has room for it.
        if stream.write_all(&[&length[..], &message].concat()).is_err() {
            return;
        }
    }
}

impl ControlError {
    /// Raises it as an error of the SQL function.
    pub(crate) fn raise(&self) -> ! {
        let code = match self {
            ControlError::NotRunning => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            ControlError::NoAnswer(NoAnswer::Refused(_)) => {
                PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION
            }
            ControlError::Socket(_) | ControlError::NoAnswer(NoAnswer::Garbled) => {
                PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE
            }
        };
        // The server may have said it.
        let message = Encoding::of_database().message(&self.to_string());
        crate::backend::report::raise(
            code,
            message,
            "select * from tide.check() says what is missing.",
        )
    }
}
