//! The notifier as the server sees it: a helper that listens to the channels that clients have
//! joined.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tide_feed::catalog::MAX_FRAME;
use tide_feed::notification::{Notification, Notified};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::catalog::frame;
use crate::link::Uplink;
use crate::notify::NotifyRegistry;
use crate::stats::Stats;

/// Batches of notifications that may wait for the hub; the rest waits at the notifier, which drops
/// what is too much.
pub const WAITING: usize = 16;

/// Pause for each byte of a list of channels: all of it is sent when one comes or goes, and what comes
/// and goes meanwhile is in the next. The longest list takes a sixth of a second.
const PACE: Duration = Duration::from_nanos(250);

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
            let list = frame::encode(&self.registry.tell(), MAX_FRAME)?;
            stream.write_all(&list).await?;
            sleep(PACE * u32::try_from(list.len()).unwrap_or(u32::MAX)).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn changes_of_a_long_list_are_told_together() {
        let registry = NotifyRegistry::default();
        let mut leases: Vec<_> = (0..1000).map(|n| registry.lease(&n.to_string())).collect();
        let (notified, _) = mpsc::channel(1);
        let notifier = Notifier { registry: registry.clone(), notified, stats: Arc::default() };
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let telling = tokio::spawn(async move { notifier.tell(ours).await });
        let told: Vec<String> = frame::read(&mut theirs).await.expect("a list");
        assert_eq!(told.len(), 1000);

        for n in 1000..1050 {
            leases.push(registry.lease(&n.to_string()));
            tokio::task::yield_now().await;
        }

        let told: Vec<String> = frame::read(&mut theirs).await.expect("a list");
        assert_eq!(told.len(), 1050);
        telling.abort();
    }
}
