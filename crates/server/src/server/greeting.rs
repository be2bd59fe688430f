//! What a client hears about its subscription itself, between the reply to its join and the first
//! event.

use std::sync::Arc;

use bytes::Bytes;
use tide_feed::catalog::TableAccess;

use super::join::Joiner;
use crate::hub::subscription::{Binding, Target};
use crate::policy::Rule;
use crate::presence::Room;
use crate::wire::encode::{self, Status, System};
use crate::wire::join::JoinPayload;

impl Joiner {
    /// Clients that want presence hold everything back until they have its state.
    pub(super) fn greet_presence(&self, payload: &JoinPayload, greeting: &mut Vec<Bytes>) {
        if payload.presence.enabled {
            let join_ref = self.address.join_ref.as_deref();
            let (topic, nobody) = (&*self.address.topic, Room::default());
            greeting.push(encode::presence_state(self.vsn, join_ref, topic, &nobody));
        }
    }

    pub(super) fn greet_failures(&self, failures: &[String], greeting: &mut Vec<Bytes>) {
        for text in failures {
            self.greet_system("postgres_changes", Status::Error, text, &[], greeting);
        }
    }

    /// Rows that an UPDATE takes out of a client's sight are only told as gone if the WAL has what
    /// the policies look at.
    pub(super) fn greet_row_security(
        &self,
        bindings: &[Binding],
        tables: &[Arc<TableAccess>],
        greeting: &mut Vec<Bytes>,
    ) {
        let bound = |table: &TableAccess| {
            bindings
                .iter()
                .any(|b| matches!(b.target, Target::Table { oid, .. } if oid == table.oid))
        };
        for access in tables.iter().filter(|table| bound(table)) {
            let TableAccess { schema, table, row_security, columns, .. } = &**access;
            if !Rule::of(row_security.as_ref(), columns).is_blind_to_the_past() {
                continue;
            }
            let text = format!(
                "row-level security of {schema}.{table}: rows that are changed so that they may not be \
                 seen any more, and deleted rows, are not told where the policies look at columns \
                 outside the replica identity. HINT: ALTER TABLE ... REPLICA IDENTITY FULL"
            );
            let details = [("schema", &**schema), ("table", &**table)];
            self.greet_system("tide.row_security", Status::Ok, &text, &details, greeting);
        }
    }

    pub(super) fn greet_system(
        &self,
        extension: &str,
        status: Status,
        message: &str,
        details: &[(&str, &str)],
        greeting: &mut Vec<Bytes>,
    ) {
        let join_ref = self.address.join_ref.as_deref();
        let system = System { extension, status, message, details };
        greeting.push(encode::system(self.vsn, join_ref, &self.address.topic, &system));
    }
}
