//! What is said of clients that are not let in: to the log, and to those who could not read it in an
//! answer over HTTP.
//!
//! Browsers keep the answer to a refused handshake from scripts, and so does Node. Their clients are
//! let through to the websocket, which is closed at once with the reason: of that their libraries tell.
//! They take it for a connection, though, and the next attempt comes sooner than after a refusal. So an
//! address is told so only now and then, and the other refusals are answers over HTTP as ever.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{HeaderMap, HeaderValue, ORIGIN, USER_AGENT};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::stats::RefusedConnection;

/// How often one address is told over a websocket.
const BETWEEN_WORDS: Duration = Duration::from_secs(3);

/// Addresses that are told within that time.
const LISTENERS: usize = 100;

/// How often the log has a line about refusals of one kind.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

/// The most that fits into a close frame beside its code.
const LONGEST_REASON: usize = 123;

/// A close frame is all that is read.
const BUFFER: usize = 1 << 10;

/// How long a client has to read the reason.
const LINGER: Duration = Duration::from_secs(1);

/// Who was told, and what was logged, lately.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    told: Mutex<HashMap<IpAddr, Instant>>,
    logged: Mutex<Vec<(RefusedConnection, Instant)>>,
}

/// What a websocket is closed with that was opened for no more than that.
#[derive(Debug)]
pub(super) struct Farewell {
    pub(super) code: CloseCode,
    pub(super) reason: String,
}

impl Refusals {
    /// Says in the log that somebody was refused, unless others were for the like a moment ago.
    pub(super) fn log(&self, kind: RefusedConnection, peer: IpAddr, reason: &str) {
        if self.is_news(kind, Instant::now()) {
            log::info!("a client at {peer} was refused: {reason}");
        }
    }

    fn is_news(&self, kind: RefusedConnection, now: Instant) -> bool {
        let mut logged = lock(&self.logged);
        logged.retain(|(_, at)| now.saturating_duration_since(*at) < BETWEEN_LINES);
        let is_news = logged.iter().all(|(other, _)| *other != kind);
        if is_news {
            logged.push((kind, now));
        }
        is_news
    }

    /// Whether this client is to be told over a websocket.
    pub(super) fn are_told(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        hides_answers(headers) && self.take(peer, Instant::now())
    }

    fn take(&self, peer: IpAddr, now: Instant) -> bool {
        let mut told = lock(&self.told);
        told.retain(|_, at| now.saturating_duration_since(*at) < BETWEEN_WORDS);
        if told.len() >= LISTENERS || told.contains_key(&peer) {
            return false;
        }
        told.insert(peer, now);
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Browsers send an origin; libraries for JavaScript elsewhere name no program, or what it runs on.
/// Others name theirs, and read the answer.
fn hides_answers(headers: &HeaderMap) -> bool {
    const RUNTIMES: [&[u8]; 3] = [b"node", b"Deno/", b"Bun/"];
    let Some(agent) = headers.get(USER_AGENT).map(HeaderValue::as_bytes) else { return true };
    headers.contains_key(ORIGIN) || RUNTIMES.iter().any(|runtime| agent.starts_with(runtime))
}

impl Farewell {
    /// Closes a websocket that has just been opened, and gives the client a moment to read why.
    pub(super) async fn say<S>(self, stream: S, read_ahead: Vec<u8>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(0)
            .max_message_size(Some(BUFFER))
            .max_frame_size(Some(BUFFER));
        let mut socket =
            WebSocketStream::from_partially_read(stream, read_ahead, Role::Server, Some(config))
                .await;
        let mut reason = self.reason;
        reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
        let leave = async {
            let close = CloseFrame { code: self.code, reason: reason.into() };
            futures_util::SinkExt::send(&mut socket, Message::Close(Some(close))).await?;
            let stream = socket.get_mut();
            stream.shutdown().await?;
            // A socket closed with unread data in it takes back what was written.
            let mut scrap = [0; 512];
            while stream.read(&mut scrap).await? > 0 {}
            Ok::<_, SocketError>(())
        };
        // However it ends, the connection is dropped now.
        let _ = timeout(LINGER, leave).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (name.parse::<hyper::header::HeaderName>().unwrap(), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn those_who_cannot_read_an_answer_are_told() {
        for told in [
            &[][..],
            &[("user-agent", "node")],
            &[("user-agent", "Deno/2.6.0")],
            &[("user-agent", "Mozilla/5.0"), ("origin", "https://app.example")],
        ] {
            assert!(hides_answers(&headers(told)), "{told:?}");
        }
        for agent in ["Python/3.13 websockets/15.0", "curl/8.14.1", ""] {
            assert!(!hides_answers(&headers(&[("user-agent", agent)])), "{agent}");
        }
    }

    #[test]
    fn an_address_is_told_now_and_then_and_only_so_many_are() {
        let refusals = Refusals::default();
        let now = Instant::now();

        assert!(refusals.take(PEER, now));
        assert!(!refusals.take(PEER, now + BETWEEN_WORDS / 2));
        assert!(refusals.take(PEER, now + BETWEEN_WORDS));
        let others = (0..1000_u32).map(|n| IpAddr::V4(n.into()));
        let told = others.filter(|peer| refusals.take(*peer, now + BETWEEN_WORDS)).count();
        assert_eq!(told, LISTENERS - 1);
    }

    #[test]
    fn the_log_has_a_line_of_each_kind_in_a_while() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let news = |kind, seconds| refusals.is_news(kind, now + Duration::from_secs(seconds));

        assert!(news(RefusedConnection::Unauthorized, 0));
        assert!(!news(RefusedConnection::Unauthorized, 59));
        assert!(news(RefusedConnection::Role, 59));
        assert!(news(RefusedConnection::Unauthorized, 60));
    }
}
