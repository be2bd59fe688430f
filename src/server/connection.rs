//! One accepted socket: TLS, then HTTP, then perhaps a websocket.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::context::ServerContext;
use super::http::{self, Admission, Front};
use super::listen::stopped;
use super::session;
use crate::stats::RefusedConnection;

/// Largest head of a request: room for a token of many claims in the query.
const MAX_HEAD: usize = 64 << 10;

/// Serves one socket until it ends or `stop` says so.
pub(super) async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    context: Arc<ServerContext>,
    stop: watch::Receiver<bool>,
) {
    // Frames are small and wanted now. If it cannot be set the connection is about to fail anyway.
    let _ = socket.set_nodelay(true);
    match tls {
        None => talk(socket, peer, context, stop).await,
        Some(tls) => {
            // Boxed: a handshake's state is large and short-lived.
            let handshake = Box::pin(timeout(context.config.handshake_timeout, tls.accept(socket)));
            match handshake.await {
                Ok(Ok(socket)) => talk(socket, peer, context, stop).await,
                Ok(Err(_)) | Err(_) => {
                    context.stats.refused_connection(RefusedConnection::Handshake).inc();
                }
            }
        }
    }
}

async fn talk<S>(
    socket: S,
    peer: SocketAddr,
    context: Arc<ServerContext>,
    mut stop: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Boxed, so that a websocket, which may live for days, does not keep the room that HTTP took.
    let http = Box::pin(speak_http(socket, peer, Arc::clone(&context), stop.clone()));
    let Some((socket, read_ahead, admission)) = http.await else { return };
    // Borrowed from HTTP's buffer, which is to go.
    let read_ahead = read_ahead.to_vec();
    if *stop.borrow_and_update() {
        return;
    }
    session::run(socket, read_ahead, peer, admission, context, stop).await;
}

/// Answers requests. Comes back with the socket if it is to become a websocket, and with what
/// has been read of it past the handshake.
async fn speak_http<S>(
    socket: S,
    peer: SocketAddr,
    context: Arc<ServerContext>,
    mut stop: watch::Receiver<bool>,
) -> Option<(S, Bytes, Admission)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limit = context.config.handshake_timeout;
    let front = Arc::new(Front::new(context, peer));
    let answering = Arc::clone(&front);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let front = Arc::clone(&answering);
        async move {
            let path = request.uri().path().to_owned();
            let mut answer = front.answer(request).await;
            http::open_to_other_origins(&path, &mut answer);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), service)
        .without_shutdown();
    let mut connection = pin!(connection);
    let parts = tokio::select! {
        // Twice: the header's time, and as much for answers, requests after the first included.
        ended = timeout(limit * 2, &mut connection) => ended.ok()?.ok()?,
        () = stopped(&mut stop) => return None,
    };
    let mut socket = parts.io.into_inner();
    match front.admission() {
        Some(admission) => Some((socket, parts.read_buf, admission)),
        None => {
            // The peer closed, or was told to: nothing depends on how this ends.
            let _ = timeout(limit, socket.shutdown()).await;
            None
        }
    }
}
