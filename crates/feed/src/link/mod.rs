//! The link between a worker and its server: frames over a pair of sockets. Down come the events
//! and what the server needs to know, up go confirmations, wishes and lines for the log.
//!
//! Either end takes the other's bytes for what they are: a length is checked before it is
//! believed, and what is not understood is an error, never a panic.

mod frame;
mod grip;
mod lines;
mod pace;
mod report;

pub use frame::{Frame, FrameError, FrameReader, HEADER, frame, header};
pub use grip::{Clings, Grip};
pub use lines::LineBudget;
pub use pace::Pace;
pub use report::{ReportError, ReportReader};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Credentials};
use crate::event::{CatalogChange, Epoch, Lsn};

/// Both ends are of the same build: another number is a file left over from another version.
pub const PROTOCOL: u32 = 2;

/// Bytes of a frame's body from the worker.
pub const MOST_DOWN: usize = 1 << 30;
/// Bytes of a frame's body from the server.
pub const MOST_UP: usize = 4 << 20;

/// Bytes of a line for the log; a message is never worth more.
pub const LONGEST_LINE: usize = 4096;

/// A frame's first byte: what its body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// JSON: a [`Word`] from the worker, a [`Report`] from the server.
    Json = 0,
    /// From the worker: events.
    Batch = 1,
    /// From the worker: everything that committed before this address has been fed. 8 bytes.
    Decoded = 2,
    /// From the server: the slot may move up to this address. 8 bytes.
    Confirm = 3,
}

impl Kind {
    /// `None`: no end of the link writes such frames.
    pub fn of(byte: u8) -> Option<Kind> {
        [Kind::Json, Kind::Batch, Kind::Decoded, Kind::Confirm]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// What the worker says that is neither events nor said often.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// The first frame of all.
    Start {
        protocol: u32,
        config: Box<Config>,
        credentials: Box<Credentials>,
    },
    /// The slot exists and is read from `from` on; joins may be answered. `until` is where the WAL ends
    /// now; `next_xid` no transaction has yet. `cause`: why the slot is another than before, if not for want
    /// of the WAL.
    Live {
        epoch: Epoch,
        from: Lsn,
        until: Lsn,
        next_xid: u32,
        cause: Option<String>,
    },
    Catalog(CatalogChange),
    /// So many messages in the WAL had our prefix, but not our seal.
    Forged(u64),
    /// The stream cannot go on for now; `Live` follows when it can.
    Stalled {
        reason: String,
    },
    /// Read again.
    Credentials(Box<Credentials>),
    /// Others than at the start, but for what [`Config::fixed`] keeps.
    Settings(Box<Config>),
    /// To be answered by [`Report::Alive`] once all before it has been dealt with.
    Ping(u64),
    /// Close all connections, saying why, and end.
    Stop,
}

/// What the server says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The helpers can connect.
    Ready,
    /// To the ping of this number.
    Alive(u64),
    /// Whether clients want to hear notifications, so that there has to be a notifier.
    WantsNotifier(bool),
    /// Whether clients want the rows that there are, so that there has to be a reader.
    WantsReader(bool),
    /// Clients want something written, or none does any more.
    WantsWriters(bool),
    /// A line for the log.
    Log { warning: bool, text: String },
}

/// An address as a frame.
pub fn address(kind: Kind, lsn: Lsn) -> [u8; HEADER + 8] {
    let mut bytes = [0; HEADER + 8];
    let (header, body) = bytes.split_at_mut(HEADER);
    header.copy_from_slice(&frame::header(kind, body.len()));
    body.copy_from_slice(&lsn.0.to_le_bytes());
    bytes
}

/// The address that a frame's body is.
pub fn read_address(body: &[u8]) -> Option<Lsn> {
    Some(Lsn(u64::from_le_bytes(body.try_into().ok()?)))
}

/// Either end's words as a frame. Their encoding cannot fail; an empty one would be refused.
pub fn json(word: &impl Serialize) -> Vec<u8> {
    frame(Kind::Json, &serde_json::to_vec(word).unwrap_or_default())
}
