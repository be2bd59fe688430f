//! Accepting connections, and ending them all.

use std::io;
use std::net;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::context::ServerContext;
use super::shutdown::stopped;
use super::{connection, role};
use crate::stats::RefusedConnection;

/// Time for clients to be told that the server stops.
const FAREWELL: Duration = Duration::from_millis(300);

/// Pause after a failed accept, which is most often a lack of file descriptors.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// It may go on for hours, and the log is for others too.
const BETWEEN_LOGS: Duration = Duration::from_secs(60);

/// Serves the listeners until `stop` turns true (or its sender is gone); then every connection is
/// told, and none of the tasks outlives this call.
pub async fn run(
    listeners: Vec<net::TcpListener>,
    tls: watch::Receiver<Option<TlsAcceptor>>,
    context: Arc<ServerContext>,
    stop: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                log::error!("nobody can connect to one of the addresses: {error}");
                continue;
            }
        };
        let acceptor = Acceptor { listener, tls: tls.clone(), context: Arc::clone(&context) };
        tasks.spawn(acceptor.run(stop.clone()));
    }
    tokio::select! {
        () = async { while tasks.join_next().await.is_some() {} } => {}
        () = role::watch(&context) => {}
    }
}

struct Acceptor {
    listener: TcpListener,
    /// May become another; connections keep the one that they began with.
    tls: watch::Receiver<Option<TlsAcceptor>>,
    context: Arc<ServerContext>,
}

impl Acceptor {
    async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        let stopping = stop.clone();
        let mut logged_at = None;
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((socket, peer)) => {
                        let tls = self.tls.borrow().clone();
                        let Some(slot) = self.context.slots.take().await else {
                            self.context.stats.refused_connection(RefusedConnection::Limit).inc();
                            // What is not encrypted would mean nothing to a client of TLS.
                            if tls.is_none() {
                                connection::refuse(socket);
                            }
                            continue;
                        };
                        let context = Arc::clone(&self.context);
                        let stop = stopping.clone();
                        connections
                            .spawn(connection::serve(socket, peer, tls, context, stop, slot));
                    }
                    Err(error) => pause_after(&error, &mut logged_at).await,
                },
                // A panic ends the connection it happened in, nothing else.
                Some(ended) = connections.join_next() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        log::error!("a connection ended in a panic");
                    }
                }
            }
        }
        drop(self.listener);
        let all = async { while connections.join_next().await.is_some() {} };
        // Who has not taken leave by now is dropped with `connections`, and waited for.
        let _ = timeout(FAREWELL, all).await;
        connections.shutdown().await;
    }
}

/// A listener that could not accept: says so now and then, and waits a little, lest it spin.
pub(crate) async fn pause_after(error: &io::Error, logged_at: &mut Option<Instant>) {
    // These are the peer's doing; the next accept is as good as ever.
    let of_peer = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset];
    if of_peer.contains(&error.kind()) {
        return;
    }
    if logged_at.is_none_or(|last| last.elapsed() > BETWEEN_LOGS) {
        log::warn!("could not accept a connection: {error}");
        *logged_at = Some(Instant::now());
    }
    sleep(AFTER_FAILURE).await;
}
