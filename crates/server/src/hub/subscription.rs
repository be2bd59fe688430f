//! What one channel of one connection has asked to receive.

use std::sync::Arc;

use bytes::Bytes;
use tide_feed::event::{Cursor, Operation, Relation};
use tide_feed::snapshot::SnapshotToken;

use super::basis::Basis;
use super::sync::SnapshotPlan;
use crate::catalog::Moment;
use crate::filter::Predicate;
use crate::wire::Vsn;
use crate::wire::encode::Joined;

/// In whose name a channel is served.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub role: Arc<str>,
    /// The token's payload, a JSON object: what policies see in `request.jwt.claims`.
    pub claims: Arc<str>,
}

/// Which frames a channel's events become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Style {
    /// `postgres_changes`, as Supabase Realtime sends them.
    Changes,
    /// realtime-js 1.x: the topic is the subscription, the frame's event the operation.
    Legacy,
    /// `tide:table:<schema>.<table>`: a broadcast whose `meta.id` is the position.
    Table,
    /// `tide:records:<schema>`: a broadcast of the record's key.
    Records,
    /// Messages and client broadcasts of the channel itself.
    Channel,
    /// Who comes to the channel and who goes.
    Presence,
    /// `tide:schema[:<schema>]`: tables and schemas that are made, altered or dropped.
    Schema,
    /// `tide:notify:<channel>`.
    Notify,
}

impl Style {
    /// What it gets depends on what its role may see of tables.
    pub fn is_of_rows(self) -> bool {
        matches!(self, Style::Changes | Style::Legacy | Style::Table | Style::Records)
    }

    /// Its events are broadcasts with a `meta`.
    fn has_meta(self) -> bool {
        matches!(self, Style::Table | Style::Records | Style::Channel | Style::Schema)
    }
}

/// The operations a binding asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operations(u8);

impl Operations {
    /// Of `*`: rows, and not TRUNCATE, which only those get who name it.
    pub const ROWS: Operations = Operations(0b0111);
    pub const ALL: Operations = Operations(0b1111);

    pub fn of(operations: impl IntoIterator<Item = Operation>) -> Operations {
        Operations(operations.into_iter().fold(0, |bits, op| bits | 1 << op as u8))
    }

    pub fn contains(self, operation: Operation) -> bool {
        self.0 & 1 << operation as u8 != 0
    }
}

/// The tables a binding is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Every table of the publication that the role may see.
    All,
    /// Every such table of a schema.
    Schema(Box<str>),
    /// One table.
    Table { oid: u32, basis: Arc<Basis> },
}

impl Target {
    /// Whether a table is meant: as what it is now, or as what it was called or is called now.
    pub fn is_about(&self, relation: &Relation) -> bool {
        match self {
            Target::All => true,
            Target::Schema(schema) => *schema == relation.schema,
            Target::Table { oid, basis } => *oid == relation.oid || basis.names(relation),
        }
    }

    /// Whether it is the table that was meant when the binding was made.
    pub fn is_of(&self, relation: &Relation) -> bool {
        match self {
            Target::Table { oid, .. } => *oid == relation.oid,
            _ => self.is_about(relation),
        }
    }

    /// Whether the binding has to be made anew before it can be held against rows of the table.
    pub fn is_outdated(&self, relation: &Relation) -> bool {
        match self {
            Target::Table { oid, basis } => {
                self.is_about(relation) && !(*oid == relation.oid && basis.is_same(relation))
            }
            _ => false,
        }
    }

    /// Whether the columns that the binding names are among those that can be read.
    pub fn is_readable(&self, readable: &[i16]) -> bool {
        match self {
            Target::Table { basis, .. } => basis.attnums().all(|attnum| readable.contains(&attnum)),
            _ => true,
        }
    }

    /// Whether the binding's filter can be held against rows of the table.
    pub fn is_comparable(&self, relation: &Relation) -> bool {
        match self {
            Target::Table { basis, .. } => basis.is_comparable(relation),
            _ => true,
        }
    }

    fn memory(&self) -> usize {
        match self {
            Target::Table { basis, .. } => basis.memory(),
            _ => 0,
        }
    }
}

/// One entry of `postgres_changes`, or the whole of a `tide:table:` topic. Two equal bindings get
/// the same frames.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// What `ids` names; the same parameters give the same id. Never 0.
    pub id: u32,
    pub operations: Operations,
    pub target: Target,
    pub filter: Option<Arc<Predicate>>,
    /// Columns to send, besides the primary key; `None`: all that the role may read.
    pub select: Option<Arc<[Box<str>]>>,
}

/// Where a joiner wants to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// With what could not be seen at this moment, which is after the join was asked for.
    Now(Moment),
    /// After an event it has seen; if that cannot be, as [`Since::Now`].
    Cursor(Cursor, Moment),
    /// With what a query could not see; if that cannot be, the same.
    Unseen(SnapshotToken, Moment),
    /// With the newest so many events that are still at hand; the join was asked for before this moment.
    Last(u32, Moment),
}

impl Since {
    /// Bytes that it takes up for as long as the channel is there.
    pub fn memory(&self) -> usize {
        match self {
            Since::Unseen(token, _) => size_of_val(&*token.snapshot.xip),
            _ => 0,
        }
    }

    /// A moment between the client's asking and the answer.
    pub fn asked(&self) -> &Moment {
        match self {
            Since::Now(asked)
            | Since::Cursor(_, asked)
            | Since::Unseen(_, asked)
            | Since::Last(_, asked) => asked,
        }
    }
}

/// One of the things that a channel of a connection receives.
#[derive(Clone, Debug)]
pub struct Facet {
    pub style: Style,
    /// Of [`Style::Channel`] and [`Style::Presence`]: joined as a private channel.
    pub private: bool,
    /// Of styles that are about rows; else none.
    pub bindings: Arc<[Binding]>,
    /// Of styles whose events have `meta`: it is told in the payload as well.
    pub meta_in_payload: bool,
}

impl Facet {
    pub fn of_rows(style: Style, bindings: Vec<Binding>) -> Facet {
        Facet { style, private: false, bindings: bindings.into(), meta_in_payload: false }
    }

    pub fn of_topic(style: Style, private: bool) -> Facet {
        Facet { style, private, bindings: Arc::default(), meta_in_payload: false }
    }

    /// As the client asks for it. What has no `meta` is the same either way, and shared.
    pub fn with_meta_in_payload(self, wanted: bool) -> Facet {
        Facet { meta_in_payload: wanted && self.style.has_meta(), ..self }
    }

    /// Bytes that it takes up, besides its filters, with what the hub makes of it: measured.
    pub fn memory(&self) -> usize {
        const GROUP: usize = 512;
        /// The routes to it, too.
        const BINDING: usize = 256;
        let select = |binding: &Binding| {
            let names = binding.select.iter().flat_map(|names| names.iter());
            names.map(|name| size_of::<Box<str>>() + 16 + name.len()).sum::<usize>()
        };
        let bindings = self.bindings.iter();
        let bindings = bindings.map(|binding| BINDING + binding.target.memory() + select(binding));
        GROUP + bindings.sum::<usize>()
    }
}

/// A join that has passed all checks.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// As the client wrote it, `realtime:...`.
    pub topic: Arc<str>,
    pub vsn: Vsn,
    pub identity: Arc<Identity>,
    /// At most one of each style.
    pub facets: Vec<Facet>,
    pub since: Since,
    /// It begins with the rows that there are.
    pub snapshot: Option<Arc<SnapshotPlan>>,
    /// The answer to the join.
    pub reply: Joined,
    /// Frames that go out after it, before the first event.
    pub greeting: Vec<Bytes>,
}
