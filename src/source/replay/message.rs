//! Logical messages of the WAL: those that are pg_tide's own become events, or belong to one.

use std::ffi::CStr;

use pgrx::pg_sys;
use tide_feed::bounded::Overflow;
use tide_feed::event::{CatalogChange, EventKind, Message, Position, SchemaChange, Unsaid};
use tide_feed::link::{self, Word};
use tide_feed::payload::write_payload;
use tide_feed::wal::{self, WalMessage};

use crate::process::server;
use crate::source::replay::Replay;

/// Anybody may write to the WAL under any prefix.
const FORGED: &str = "ignored a message in the WAL that is not pg_tide's, but has its prefix";

impl Replay {
    /// A logical message was written; without a transaction if it did not wait for its commit.
    ///
    /// # Safety
    /// As called by the decoder.
    pub(crate) unsafe fn message(
        &mut self,
        transaction: Option<*const pg_sys::ReorderBufferTXN>,
        prefix: &CStr,
        content: &[u8],
    ) {
        let is_ours = prefix == wal::PREFIX;
        let Some(transaction) = transaction else {
            if is_ours {
                self.messages.refuse();
            }
            return;
        };
        let position = self.next_position();
        if is_ours {
            // SAFETY: as above.
            let work = |replay: &mut Replay| unsafe { replay.open(position, transaction, content) };
            self.guarded(None, position, work);
        }
    }

    /// Tells the hub how many messages have turned out not to be ours.
    pub(crate) fn report_forged(&mut self) {
        let forged = self.messages.forged();
        if forged > 0 && server::offer(&link::json(&Word::Forged(forged))) {
            self.messages.forget_forged();
        }
    }

    /// One of pg_tide's own messages, if it is genuine.
    unsafe fn open(
        &mut self,
        position: Position,
        transaction: *const pg_sys::ReorderBufferTXN,
        content: &[u8],
    ) {
        // SAFETY: as for `message`.
        match unsafe { self.messages.open(transaction, content) } {
            Some(WalMessage::MutationId(id)) => self.transaction.mutation_id = Some(id.into()),
            Some(WalMessage::Channel { channel, name, private, data })
                if !self.feed.has_sent(position) =>
            {
                self.feed.make_room();
                let batch = self.feed.batch();
                batch.begin_event(self.limit);
                let payload = batch.push_span(|out| -> Result<bool, Overflow> {
                    Ok(write_payload(out.room(data.len().saturating_add(9))?, data.as_bytes()))
                });
                let (channel, name, row) = (channel.into(), name.into(), None);
                match payload {
                    Ok((payload, wrapped)) => {
                        let message = Message { channel, name, private, payload, wrapped, row };
                        self.add(position, EventKind::Message(message));
                    }
                    Err(why) => {
                        self.unsaid(position, Unsaid { channel, private, row }, why.sqlstate());
                    }
                }
            }
            Some(WalMessage::Schema(change)) if !self.feed.has_sent(position) => {
                self.altered(position, change);
            }
            Some(WalMessage::Channel { .. } | WalMessage::Schema(_)) => {}
            None => self.log.write(FORGED),
        }
    }

    /// A table or schema was made, altered or dropped.
    fn altered(&mut self, position: Position, change: &str) {
        let Ok(change) = serde_json::from_str::<SchemaChange>(change) else {
            return self.log.write("ignored a schema change that could not be read");
        };
        if change.table.is_some() {
            // What the hub knows of it is from before; from now on it hears of every change.
            self.relations.see(change.oid);
            self.feed.catalog(CatalogChange::Relation(change.oid));
        }
        self.feed.make_room();
        self.add(position, EventKind::Schema(change));
    }
}
