//! What is answered over HTTP, and the step from there to a websocket.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::connection_slots::{ConnectionSlot, Work};
use super::context::ServerContext;
use super::credentials::Credentials;
use super::handshake::{Handshake, HandshakeError};
use super::refusals::Farewell;
use super::route::Route;
use super::{handshake, identity, mutate_request, page, rest};
use crate::allowance::Share;
use crate::memory::Kind;
use crate::stats::RefusedConnection;
use crate::wire::Vsn;

/// A client that may open a websocket.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) credentials: Credentials,
    pub(super) vsn: Vsn,
    pub(super) user_agent: Option<Box<str>>,
    /// One of `tide.max_connections`, given back when the connection ends.
    pub(super) permit: OwnedSemaphorePermit,
    /// What the connection takes up while it is idle.
    pub(super) memory: Share,
}

/// What has become of a request for a websocket that was answered by "switching protocols".
#[derive(Debug)]
pub(super) enum Opening {
    Admitted(Admission),
    /// It is opened for no more than to say why it is closed.
    Refused(Farewell),
}

/// Bytes of an idle websocket: its task and buffers, and what the hub has of it; with TLS, its state
/// besides.
const WEBSOCKET: usize = 6 << 10;
const TLS: usize = 8 << 10;

const NOT_PUBLIC: &str = "the metrics are for this machine, unless tide.public_metrics is on";

/// Headers that proxies add.
const OF_PROXIES: [&str; 6] =
    ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"];

/// Answers the requests of one connection, until one of them asks for a websocket and may have it.
#[derive(Debug)]
pub(super) struct Front {
    context: Arc<ServerContext>,
    peer: SocketAddr,
    slot: Arc<ConnectionSlot>,
    opening: Mutex<Option<Opening>>,
}

type HttpAnswer = Response<Full<Bytes>>;

impl Front {
    pub(super) fn new(
        context: Arc<ServerContext>,
        peer: SocketAddr,
        slot: Arc<ConnectionSlot>,
    ) -> Front {
        Front { context, peer, slot, opening: Mutex::new(None) }
    }

    /// Set once the last answer was "switching protocols".
    pub(super) fn opening(&self) -> Option<Opening> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn opens(&self, opening: Opening) {
        *self.opening.lock().unwrap_or_else(PoisonError::into_inner) = Some(opening);
    }

    fn count(&self, kind: RefusedConnection, reason: &str) {
        self.context.stats.refused_connection(kind).inc();
        self.context.refusals.log(kind, self.peer.ip().to_canonical(), reason);
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> HttpAnswer {
        self.context.stats.http_requests_total.inc();
        let (parts, arriving) = request.into_parts();
        let route = Route::of(&parts.method, parts.uri.path());
        if route == Route::Broadcast {
            return self.broadcast(&parts, arriving).await;
        }
        if route == Route::Mutate {
            return self.mutate(&parts, arriving).await;
        }
        let Some(work) = self.slot.work(route == Route::Websocket) else { return self.no_place() };
        match route {
            Route::Page if self.serves_page(&parts) => {
                page::response(self.context.config().anon_role.as_deref())
            }
            Route::Check if self.serves_page(&parts) => self.check().await,
            Route::Page | Route::Check | Route::Broadcast | Route::Mutate | Route::Unknown => {
                failure(StatusCode::NOT_FOUND, "there is nothing at this address")
            }
            Route::Health => self.health(),
            Route::Metrics if !self.serves_metrics(&parts) => {
                failure(StatusCode::FORBIDDEN, NOT_PUBLIC)
            }
            Route::Metrics => {
                let text = self.context.stats.prometheus() + &self.context.memory().prometheus();
                body(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
            }
            Route::Websocket => self.upgrade(&parts, work).await,
            Route::Preflight => preflight(),
            Route::WrongMethod(allowed) => wrong_method(allowed),
        }
    }

    /// Until the body has come the socket counts as silent: it takes no place from others meanwhile.
    async fn broadcast(&self, parts: &Parts, arriving: Incoming) -> HttpAnswer {
        let done = match rest::Post::read(&self.context, parts, arriving).await {
            Ok(post) => {
                let Some(_work) = self.slot.work(true) else { return self.no_place() };
                post.publish().await
            }
            Err(denied) => Err(denied),
        };
        match done {
            Ok(()) => empty(StatusCode::ACCEPTED),
            Err(denied) => failure(denied.status, &denied.reason),
        }
    }

    /// As [`Front::broadcast`].
    async fn mutate(&self, parts: &Parts, arriving: Incoming) -> HttpAnswer {
        let said = match mutate_request::Post::read(&self.context, parts, arriving).await {
            Ok(post) => {
                let Some(_work) = self.slot.work(true) else { return self.no_place() };
                post.mutate().await
            }
            Err(said) => said,
        };
        body(said.status, "application/json", said.json)
    }

    fn no_place(&self) -> HttpAnswer {
        let reason = "too many clients are connecting at the moment, try again";
        self.count(RefusedConnection::Limit, reason);
        failure(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    fn serves_page(&self, request: &Parts) -> bool {
        self.context.config().page && self.is_local(request)
    }

    fn serves_metrics(&self, request: &Parts) -> bool {
        self.context.config().public_metrics || self.is_local(request)
    }

    /// Whether the machine itself asks: the peer must be on it, and must have asked for it by such a
    /// name, or a web site whose name was made to point to 127.0.0.1 could read along. A proxy on the
    /// machine asks for others.
    fn is_local(&self, request: &Parts) -> bool {
        self.peer.ip().to_canonical().is_loopback()
            && names_loopback(&request.headers)
            && !OF_PROXIES.iter().any(|name| request.headers.contains_key(*name))
    }

    fn health(&self) -> HttpAnswer {
        let confined_by = self.context.stats.confined_by();
        match self.context.hub.live() {
            Some(_) => {
                let behind = self.context.stats.behind();
                json_body(
                    StatusCode::OK,
                    &json!({"status": "ok", "behind": behind, "confined_by": confined_by}),
                )
            }
            None => {
                let reason = self.context.hub.stalled();
                let reason = reason.as_deref().unwrap_or("the change stream is not live yet");
                json_body(
                    StatusCode::SERVICE_UNAVAILABLE,
                    &json!({"status": "unavailable", "reason": reason, "confined_by": confined_by}),
                )
            }
        }
    }

    async fn check(&self) -> HttpAnswer {
        let context = &self.context;
        match context.findings.answer(|| context.catalog.check()).await {
            Ok(findings) => body(StatusCode::OK, "application/json", findings.as_ref().to_owned()),
            Err(error) => failure(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
        }
    }

    /// Whether the request has the form of a handshake comes last: a browser does not tell a script
    /// why a handshake failed, but it shows it the answer to an ordinary request to the same address,
    /// which so says everything that stands in the way.
    async fn upgrade(&self, request: &Parts, work: Work<'_>) -> HttpAnswer {
        let handshake = match Handshake::read(request, &self.context.config().allowed_origins) {
            Ok(handshake) => handshake,
            Err(error) => return self.refuse_handshake(error),
        };
        let Ok(permit) = Arc::clone(&self.context.websockets).try_acquire_owned() else {
            let reason = "Too many connected users";
            self.count(RefusedConnection::Limit, reason);
            let status = StatusCode::TOO_MANY_REQUESTS;
            return self.tell(request, status, reason.to_owned());
        };
        let credentials =
            match identity::of_handshake(&self.context, handshake.api_key.as_deref()).await {
                Ok(credentials) => credentials,
                Err(refusal) => {
                    let reason = refusal.to_string();
                    self.count(refusal.of_connection(), &reason);
                    return self.tell(request, refusal.status(), reason);
                }
            };
        let mut memory = self.context.share(Kind::Connections);
        let tls = if self.context.config().ssl { TLS } else { 0 };
        if !memory.grow(WEBSOCKET + tls + credentials.memory()) {
            let reason = "there is no memory for more connections, try again";
            self.count(RefusedConnection::Memory, reason);
            return failure(StatusCode::SERVICE_UNAVAILABLE, reason);
        }
        let accept = match handshake::accept(&request.headers) {
            Ok(accept) => accept,
            Err(error) => return self.refuse_handshake(error),
        };
        let (vsn, user_agent) = (handshake.vsn, handshake.user_agent);
        let admission = Admission { credentials, vsn, user_agent, permit, memory };
        self.opens(Opening::Admitted(admission));
        work.stays();
        switch(&accept)
    }

    /// Says why a client is refused, where its library lets it read that.
    fn tell(&self, request: &Parts, status: StatusCode, reason: String) -> HttpAnswer {
        let Ok(accept) = handshake::accept(&request.headers) else {
            return failure(status, &reason);
        };
        if !self.context.refusals.are_told(self.peer.ip().to_canonical(), &request.headers) {
            return failure(status, &reason);
        }
        let is_passing =
            matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let code = if is_passing { CloseCode::Again } else { CloseCode::Policy };
        self.opens(Opening::Refused(Farewell { code, reason }));
        switch(&accept)
    }

    fn refuse_handshake(&self, error: HandshakeError) -> HttpAnswer {
        let (status, kind) = match error {
            HandshakeError::Origin => (StatusCode::FORBIDDEN, RefusedConnection::Origin),
            HandshakeError::NotWebsocket | HandshakeError::Version => {
                (StatusCode::UPGRADE_REQUIRED, RefusedConnection::Handshake)
            }
            HandshakeError::Key | HandshakeError::Vsn => {
                (StatusCode::BAD_REQUEST, RefusedConnection::Handshake)
            }
        };
        let reason = error.to_string();
        self.count(kind, &reason);
        let mut answer = failure(status, &reason);
        if status == StatusCode::UPGRADE_REQUIRED {
            let headers = answer.headers_mut();
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        answer
    }
}

/// Whether the `Host` is this machine's own name for itself.
fn names_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
        return false;
    };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _port)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn switch(accept: &str) -> HttpAnswer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is always a valid header.
    if let Ok(accept) = HeaderValue::from_str(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    answer
}

/// What a client reads as the reason: `{"error": "..."}`.
fn failure(status: StatusCode, error: &str) -> HttpAnswer {
    json_body(status, &json!({ "error": error }))
}

fn json_body(status: StatusCode, value: &serde_json::Value) -> HttpAnswer {
    body(status, "application/json", value.to_string())
}

fn body(status: StatusCode, content_type: &'static str, text: String) -> HttpAnswer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// Lets scripts of any origin call; what they may do is for their token to say.
fn preflight() -> HttpAnswer {
    empty(StatusCode::NO_CONTENT)
}

fn wrong_method(allowed: &[Method]) -> HttpAnswer {
    let mut answer =
        failure(StatusCode::METHOD_NOT_ALLOWED, "this address does not know the method");
    let allowed: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    if let Ok(allowed) = HeaderValue::from_str(&allowed.join(", ")) {
        answer.headers_mut().insert(header::ALLOW, allowed);
    }
    answer
}

fn empty(status: StatusCode) -> HttpAnswer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

/// Adds what a browser needs to show an answer to a script of another origin. The page, its
/// findings and the metrics are for no other origin and do not get it.
pub(super) fn open_to_other_origins(path: &str, answer: &mut HttpAnswer) {
    if matches!(path, "/" | "/check" | "/metrics") {
        return;
    }
    let headers = answer.headers_mut();
    let any = HeaderValue::from_static("*");
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any);
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("authorization, x-client-info, apikey, x-api-key, content-type"),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, OPTIONS"),
    );
}
