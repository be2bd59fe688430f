//! The backend's side of pg_tide's own messages: seals them and writes them to the WAL.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::channel;
use tide_feed::wal::{Key, MessageOrigin, PREFIX, WalMessage, seal};

use crate::backend::report;
use crate::encoding::Encoding;
use crate::source::message_key;
use crate::{compat, guc};

/// Bytes of a channel's name: with its prefix it must be a topic.
const LONGEST_CHANNEL: usize = channel::MAX_NAME;
/// Bytes of a message's name, and of a mutation id.
const LONGEST_NAME: usize = 255;
/// Bytes that a message's data may take besides themselves.
const WRAPPING: usize = 16;

thread_local! {
    static KEY: RefCell<Option<Rc<Key>>> = const { RefCell::new(None) };
    /// Oid of the table that the key is from; what happens to it makes the key stale.
    static TABLE: Cell<u32> = const { Cell::new(0) };
    static STALE: Cell<bool> = const { Cell::new(true) };
    /// The transaction that wrote last, and how many messages.
    static WRITTEN: Cell<(u64, u32)> = const { Cell::new((0, 0)) };
}

/// Sends a message to a channel when this transaction commits. Not strict: each missing argument
/// has an error, or a meaning, of its own.
#[pg_extern]
fn tide_send(
    channel: Option<&[u8]>,
    name: Option<&[u8]>,
    data: Option<pgrx::AnyElement>,
    private: Option<bool>,
) {
    // SAFETY: raises an error or does nothing.
    unsafe { pg_sys::PreventCommandDuringRecovery(c"tide.send()".as_ptr()) };
    let encoding = Encoding::of_database();
    let channel = encoding.utf8(required(channel, "channel"));
    let name = encoding.utf8(required(name, "name"));
    check_channel(&channel);
    check_name(&name, "message name");
    // SAFETY: declared as jsonb.
    let data = data.as_ref().map(|data| unsafe { json_text(data.datum()) });
    let data = data.map_or("null".into(), |data| encoding.utf8(data));
    check_size(channel.len() + name.len() + data.len());
    let private = private.unwrap_or(true);
    write(&WalMessage::Channel { channel: &channel, name: &name, private, data: &data });
}

/// Stamps the events of this transaction.
#[pg_extern]
fn tide_set_mutation_id(id: Option<&[u8]>) {
    // SAFETY: raises an error or does nothing.
    unsafe { pg_sys::PreventCommandDuringRecovery(c"tide.set_mutation_id()".as_ptr()) };
    let id = Encoding::of_database().utf8(required(id, "mutation id"));
    check_name(&id, "mutation id");
    // SAFETY: reads a variable of this process. Whoever has written something has an id.
    if unsafe { pg_sys::GetTopTransactionIdIfAny() } != pg_sys::InvalidTransactionId {
        report::raise(
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "this transaction has written something already",
            "Call tide.set_mutation_id() once, right after BEGIN: it stamps the transaction's events from the first on.",
        );
    }
    write(&WalMessage::MutationId(&id));
}

/// Writes a message that arrives if this transaction, and the subtransaction it is in, commits.
/// Gives the transaction an id.
pub(crate) fn write(message: &WalMessage<'_>) {
    let key = key();
    // SAFETY: in the transaction of the calling query.
    let (transaction, subtransaction) = unsafe {
        (pg_sys::GetTopFullTransactionId().value, pg_sys::GetCurrentTransactionId().into_inner())
    };
    // Not taken back by a rollback to a savepoint: a number is never used twice.
    let number = match WRITTEN.get() {
        (last, count) if last == transaction => count.saturating_add(1),
        _ => 1,
    };
    WRITTEN.set((transaction, number));
    let origin = MessageOrigin { transaction, subtransaction, number };
    let content = seal(&key, origin, |out| message.write(out));
    // SAFETY: as above.
    unsafe { compat::log_message(PREFIX, &content) };
}

/// The newest key.
fn key() -> Rc<Key> {
    // SAFETY: in a transaction. Costs nothing if there is no news; with it no key is used long
    // after a rotation.
    unsafe { pg_sys::AcceptInvalidationMessages() };
    if let Some(key) = KEY.with_borrow(|key| key.as_ref().filter(|_| !STALE.get()).map(Rc::clone)) {
        return key;
    }
    listen();
    STALE.set(false);
    // SAFETY: in the transaction of the calling query. What comes meanwhile makes the key stale.
    let newest = unsafe {
        message_key::table().and_then(|table| {
            TABLE.set(table.to_u32());
            message_key::read(table).into_iter().max_by_key(Key::id)
        })
    };
    let Some(newest) = newest else {
        STALE.set(true);
        report::raise(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "there is no key to seal messages with",
            "select tide.rotate_message_key() makes one.",
        )
    };
    let newest = Rc::new(newest);
    KEY.set(Some(Rc::clone(&newest)));
    newest
}

/// Has the key forgotten when its table changes.
fn listen() {
    thread_local! { static LISTENING: Cell<bool> = const { Cell::new(false) }; }
    if !LISTENING.replace(true) {
        // SAFETY: the callback lives as long as the process.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(on_relation), pg_sys::Datum::null());
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn on_relation(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    let relation = relation.to_u32();
    if relation == 0 || relation == TABLE.get() {
        STALE.set(true);
    }
}

fn required<'a>(argument: Option<&'a [u8]>, what: &str) -> &'a [u8] {
    argument.unwrap_or_else(|| {
        let code = PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED;
        report::raise(code, format!("no {what} given"), "")
    })
}

fn check_channel(channel: &str) {
    if channel.starts_with("tide:") {
        report::raise(
            PgSqlErrorCode::ERRCODE_RESERVED_NAME,
            format!("channel \"{channel}\" is reserved"),
            "Channels whose names begin with tide: are pg_tide's own.",
        );
    }
    check_length(channel, "channel name", LONGEST_CHANNEL);
}

fn check_name(name: &str, what: &str) {
    check_length(name, what, LONGEST_NAME);
}

fn check_length(name: &str, what: &str, longest: usize) {
    if name.is_empty() {
        let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
        report::raise(code, format!("the {what} is empty"), "");
    }
    if name.len() > longest {
        report::raise(
            PgSqlErrorCode::ERRCODE_NAME_TOO_LONG,
            format!("the {what} is too long"),
            &format!("It has {} bytes; {longest} are allowed.", name.len()),
        );
    }
}

fn check_size(size: usize) {
    let (message, event) = (guc::max_message_size(), guc::max_event_size() - WRAPPING);
    let limit = message.min(event);
    if size > limit {
        let hint = if message < event {
            "Send less, or raise tide.max_message_size."
        } else {
            "Send less, or raise tide.max_event_size."
        };
        report::raise(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("the message has {size} bytes, and {limit} are allowed"),
            hint,
        );
    }
}

/// A jsonb as text, in the encoding of the database.
///
/// # Safety
/// The datum is a jsonb, not NULL. The text is in the current memory context.
unsafe fn json_text<'a>(datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: as above.
    unsafe {
        let jsonb = pg_sys::pg_detoast_datum(datum.cast_mut_ptr());
        let size = i32::try_from(pgrx::varlena::varsize_any(jsonb)).unwrap_or(i32::MAX);
        let root = &raw mut (*jsonb.cast::<pg_sys::Jsonb>()).root;
        let text = pg_sys::JsonbToCString(std::ptr::null_mut(), root, size);
        std::ffi::CStr::from_ptr(text).to_bytes()
    }
}
