//! JSON between a helper, the queries that it runs and whoever asked. What a query answers with is
//! not taken out of Postgres's memory, where running out of it is an error, before it is known to
//! be of a size that can be sent: here it would be the end of the process.

use pgrx::spi::SpiTupleTable;
use pgrx::{PgSqlErrorCode, pg_sys};
use serde::{Deserialize, Serialize};
use tide_feed::catalog::{MAX_FRAME, Reply};

use crate::helper::transaction::Refusal;
use crate::server_text::ServerText;

/// Bytes that a query may answer with. Written as JSON, also as JSON within JSON, that fits into a
/// frame.
pub(crate) const LARGEST: usize = MAX_FRAME / 2;

/// Bytes of an error's message: it may quote what the error is about.
const LONGEST_MESSAGE: usize = 2_000;

/// The one text that a query answers with; `None`: no row, or NULL.
pub(crate) fn text(rows: SpiTupleTable<'_>) -> Result<Option<String>, Refusal> {
    let unexpected = |_: pgrx::spi::Error| Refusal::internal("the query gave an unexpected answer");
    if rows.is_empty() {
        return Ok(None);
    }
    let row = rows.first();
    if let Some(datum) = row.get_datum_by_ordinal(1).map_err(unexpected)? {
        // SAFETY: what our queries answer with is a text.
        unsafe { admit(datum)? };
    }
    let answer = row.get_one::<ServerText<String>>().map_err(unexpected)?;
    Ok(answer.map(|ServerText(text)| text))
}

/// Refuses a value that is too large to be an answer.
///
/// # Safety
/// A value of a type of variable length.
pub(crate) unsafe fn admit(datum: pg_sys::Datum) -> Result<(), Refusal> {
    // SAFETY: as above; says how large it is when it is unpacked, without doing so.
    let size = unsafe { pg_sys::toast_raw_datum_size(datum) };
    if size > LARGEST { Err(too_large()) } else { Ok(()) }
}

pub(crate) fn too_large() -> Refusal {
    let message = format!("the answer to a question is larger than {} MB", LARGEST >> 20);
    Refusal::new(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, message)
}

/// An answer as a frame's body, which is never larger than a frame may be.
pub(crate) fn frame(answer: Result<String, Refusal>) -> Vec<u8> {
    let refused = match answer.map(serde_json::value::RawValue::from_string) {
        Ok(Ok(json)) => {
            let body = serde_json::to_vec(&Reply::Ok(json)).unwrap_or_default();
            if !body.is_empty() && body.len() <= MAX_FRAME {
                return body;
            }
            too_large()
        }
        Ok(Err(_)) => Refusal::internal("not JSON"),
        Err(refusal) => refusal,
    };
    let Refusal { sqlstate, mut message } = refused;
    message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
    // Plain data: cannot fail.
    serde_json::to_vec(&Reply::Error { sqlstate, message }).unwrap_or_default()
}

/// What a query of ours has answered.
pub(crate) fn parse<T: for<'a> Deserialize<'a>>(json: &str) -> Result<T, Refusal> {
    serde_json::from_str(json).map_err(|_| Refusal::internal("the query gave an unexpected answer"))
}

/// An answer as it is sent to whoever asked.
pub(crate) fn encode(answer: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(answer).map_err(|_| Refusal::internal("the answer cannot be written"))
}
