//! One accepted socket: TLS, then HTTP, then perhaps a websocket.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::connection_slots::ConnectionSlot;
use super::context::ServerContext;
use super::http::{self, Front, Opening};
use super::read_budget::{Metered, lacks_memory};
use super::shutdown::stopped;
use super::{session, writer};
use crate::memory::Kind;
use crate::stats::RefusedConnection;

/// Largest head of a request: room for a token of many claims in the query.
const MAX_HEAD: usize = 64 << 10;

/// What a socket is told that has no place, before it has asked for anything.
const NO_PLACE: &str = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    content-type: application/json\r\ncache-control: no-store\r\nretry-after: 1\r\n\
    content-length: 63\r\n\r\n\
    {\"error\":\"too many connections have not sent a request so far\"}";

/// The same where a head is too large for the memory that is left for what is arriving.
const NO_MEMORY: &str = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    content-type: application/json\r\ncache-control: no-store\r\nretry-after: 1\r\n\
    content-length: 62\r\n\r\n\
    {\"error\":\"there is no memory for what is arriving, try again\"}";

/// A websocket that goes on until it ends.
type Conversing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves one socket until it ends or `stop` says so. `slot` is held until it is a websocket.
///
/// What comes first is large and soon over, so it is boxed: a websocket, which may live for days,
/// keeps none of its room.
pub(super) async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    context: Arc<ServerContext>,
    stop: watch::Receiver<bool>,
    slot: ConnectionSlot,
) {
    let websocket = Box::pin(open(socket, peer, tls, context, stop, Arc::new(slot))).await;
    if let Some(websocket) = websocket {
        websocket.await;
    }
}

/// Tells a socket for which there is no slot so, without waiting for anything.
pub(super) fn refuse(socket: TcpStream) {
    // If it cannot be told, it is gone.
    if let Ok(mut socket) = socket.into_std() {
        let _ = socket.write(NO_PLACE.as_bytes());
    }
}

/// TLS, if it is asked for, and HTTP.
async fn open(
    socket: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    context: Arc<ServerContext>,
    mut stop: watch::Receiver<bool>,
    slot: Arc<ConnectionSlot>,
) -> Option<Conversing> {
    // Frames are small and wanted now. If it cannot be set the connection is about to fail anyway.
    let _ = socket.set_nodelay(true);
    let Some(tls) = tls else { return speak_http(socket, peer, context, stop, slot).await };
    let handshake = tokio::select! {
        handshake = timeout(context.config().handshake_timeout, tls.accept(socket)) => handshake,
        () = stopped(&mut stop) => return None,
        () = slot.evicted() => {
            context.stats.refused_connection(RefusedConnection::Handshake).inc();
            return None;
        }
    };
    match handshake {
        // Boxed: it is ten times as large as a plain socket.
        Ok(Ok(mut socket)) => {
            socket.get_mut().1.set_buffer_limit(Some(writer::TLS_BUFFER));
            speak_http(Box::new(socket), peer, context, stop, slot).await
        }
        Ok(Err(_)) | Err(_) => {
            context.stats.refused_connection(RefusedConnection::Handshake).inc();
            None
        }
    }
}

/// Answers requests, until one of them makes a websocket of the socket.
async fn speak_http<S>(
    socket: S,
    peer: SocketAddr,
    context: Arc<ServerContext>,
    mut stop: watch::Receiver<bool>,
    slot: Arc<ConnectionSlot>,
) -> Option<Conversing>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limit = context.config().handshake_timeout;
    let front = Arc::new(Front::new(Arc::clone(&context), peer, Arc::clone(&slot)));
    let answering = Arc::clone(&front);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let front = Arc::clone(&answering);
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let mut answer = front.answer(request).await;
            http::open_to_other_origins(&path, &mut answer);
            Ok::<_, Infallible>(answer)
        })
    });
    let socket = Metered::new(socket, context.share(Kind::Inbound), MAX_HEAD);
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), service);
    let ended = tokio::select! {
        // Twice: the header's time, and as much for answers, requests after the first included.
        ended = timeout(limit * 2, poll_fn(|cx| connection.poll_without_shutdown(cx))) => ended.ok()?,
        () = stopped(&mut stop) => return None,
        () = slot.evicted() => {
            context.stats.refused_connection(RefusedConnection::Handshake).inc();
            let mut socket = connection.into_parts().io.into_inner();
            // Once: it has to make room now.
            let _ = socket.write_all(NO_PLACE.as_bytes()).now_or_never();
            let _ = socket.shutdown().now_or_never();
            return None;
        }
    };
    if ended.as_ref().is_err_and(hyper::Error::is_parse) {
        context.stats.refused_connection(RefusedConnection::Handshake).inc();
    }
    let is_short = ended.as_ref().is_err_and(lacks_memory);
    let parts = connection.into_parts();
    let mut socket = parts.io.into_inner();
    if is_short {
        context.stats.refused_connection(RefusedConnection::Memory).inc();
        let _ = socket.write_all(NO_MEMORY.as_bytes()).now_or_never();
    }
    ended.ok()?;
    match front.opening() {
        Some(Opening::Admitted(admission)) => {
            // Copied: it is a piece of HTTP's buffer, which is to go.
            let read_ahead = parts.read_buf.to_vec();
            socket.upgrade(&read_ahead, context.config().max_message_size).ok()?;
            Some(Box::pin(session::run(socket, read_ahead, peer, admission, context, stop)))
        }
        Some(Opening::Refused(farewell)) => {
            let read_ahead = parts.read_buf.to_vec();
            // Its slot goes to others when they need it: it counts as silent.
            tokio::select! {
                () = farewell.say(socket, read_ahead) => {}
                () = stopped(&mut stop) => {}
                () = slot.evicted() => {}
            }
            None
        }
        None => {
            // The peer closed, or was told to: nothing depends on how this ends.
            tokio::select! {
                _ = timeout(limit, socket.shutdown()) => {}
                () = slot.evicted() => {}
            }
            None
        }
    }
}
