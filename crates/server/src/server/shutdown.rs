//! How connections and listeners hear that the server stops.

use tokio::sync::watch;

/// Waits for the stop, or for its sender's end.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
