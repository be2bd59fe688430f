//! The notifier as the server sees it: a helper that listens to the channels that clients have
//! joined.

use std::io;
use std::sync::Arc;

use tide_feed::notification::{Notification, Notified};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::catalog::frame;
use crate::link::Uplink;
use crate::notify::NotifyRegistry;
use crate::stats::Stats;

/// Batches of notifications that may wait for the hub; the rest waits at the notifier, which drops
/// what is too much.
pub const WAITING: usize = 16;

/// What a conversation with a notifier needs.
#[derive(Clone, Debug)]
pub struct Notifier {
    pub registry: NotifyRegistry,
    pub notified: mpsc::Sender<Vec<Notification>>,
    pub stats: Arc<Stats>,
}

impl Notifier {
    /// Talks to a connected notifier until its connection ends.
    ///
    /// # Errors
    /// The end of the connection.
    pub async fn serve(self, stream: UnixStream) -> io::Result<()> {
        let (read, write) = stream.into_split();
        self.registry.begin();
        tokio::select! {
            ended = self.tell(write) => ended,
            ended = self.hear(read) => ended,
        }
    }

    /// Tells it what is wanted, at first and whenever that changes.
    async fn tell(&self, mut stream: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut changes = self.registry.changes();
        loop {
            changes.borrow_and_update();
            frame::write(&mut stream, &self.registry.tell()).await?;
            if changes.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn hear(&self, mut stream: impl AsyncRead + Unpin) -> io::Result<()> {
        loop {
            match frame::read(&mut stream).await? {
                Notified::Listening { channel, heard } => self.registry.settle(&channel, heard),
                Notified::Notifications(batch) => {
                    if self.notified.send(batch).await.is_err() {
                        return Ok(());
                    }
                }
                Notified::Dropped(count) => {
                    self.stats.dropped_casts_total.add(count);
                    log::warn!(
                        "{count} notifications were lost: clients did not read them in time"
                    );
                }
            }
        }
    }
}

/// Has the worker run a notifier for as long as some channel is wanted.
pub async fn employ(registry: NotifyRegistry, uplink: Uplink) {
    let mut changes = registry.changes();
    let mut is_wanted = false;
    loop {
        changes.borrow_and_update();
        let wants = !registry.wanted().is_empty();
        if wants != is_wanted {
            is_wanted = wants;
            uplink.wants_notifier(wants);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
