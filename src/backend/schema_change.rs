//! What the event triggers call to tell clients of tables and schemas.

use pgrx::pg_sys;
use pgrx::prelude::*;
use tide_feed::wal::WalMessage;

use crate::backend::{drops, send};
use crate::encoding::Encoding;

/// Tells of a change when this transaction commits; the argument is a `SchemaChange` in JSON.
#[pg_extern]
fn tide_write_schema_change(change: &[u8]) {
    let change = Encoding::of_database().utf8(change);
    send::write(&WalMessage::Schema(&change));
}

/// The clients' roles that could see what this transaction has dropped.
#[pg_extern]
fn tide_readers_before(catalog: pg_sys::Oid, object: pg_sys::Oid) -> Vec<String> {
    drops::take(catalog.to_u32(), object.to_u32())
}
