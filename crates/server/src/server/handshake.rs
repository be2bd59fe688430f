//! What a request must look like to become a websocket, and what it says of the client.

use std::borrow::Cow;

use hyper::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderValue, ORIGIN, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
};
use hyper::http::request::Parts;

use crate::wire::Vsn;

/// Longest `User-Agent` kept for `tide.stat_connections`.
const USER_AGENT_LIMIT: usize = 120;

/// Why a request does not become a websocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("this address expects a websocket handshake")]
    NotWebsocket,
    #[error("only version 13 of the websocket protocol is spoken")]
    Version,
    #[error("Sec-WebSocket-Key must be 16 bytes in base64")]
    Key,
    #[error("vsn must be 1.0.0 or 2.0.0")]
    Vsn,
    #[error("this origin is not allowed")]
    Origin,
}

/// What a request for a websocket says of the client. Whether it has the form of a handshake, see
/// [`accept`].
#[derive(Debug)]
pub(super) struct Handshake<'a> {
    pub(super) vsn: Vsn,
    /// From the query, the `x-api-key` header or `Authorization`, in this order.
    pub(super) api_key: Option<Cow<'a, str>>,
    pub(super) user_agent: Option<Box<str>>,
}

impl<'a> Handshake<'a> {
    pub(super) fn read(
        request: &'a Parts,
        allowed_origins: &[String],
    ) -> Result<Self, HandshakeError> {
        let headers = &request.headers;
        if !origin_allowed(headers, allowed_origins)
            || !own_origin_allowed(headers, allowed_origins)
        {
            return Err(HandshakeError::Origin);
        }
        let query = request.uri.query().unwrap_or_default();
        Ok(Handshake {
            vsn: vsn(parameter(query, "vsn").as_deref())?,
            api_key: api_key(query, headers),
            user_agent: user_agent(headers),
        })
    }
}

/// The `Sec-WebSocket-Accept` that answers a well-formed handshake.
pub(super) fn accept(headers: &HeaderMap) -> Result<String, HandshakeError> {
    if !has_token(headers, CONNECTION.as_str(), "upgrade")
        || !has_token(headers, UPGRADE.as_str(), "websocket")
    {
        return Err(HandshakeError::NotWebsocket);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) != Some(b"13") {
        return Err(HandshakeError::Version);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key.filter(|key| is_key(key)).ok_or(HandshakeError::Key)?;
    Ok(tokio_tungstenite::tungstenite::handshake::derive_accept_key(key))
}

/// Whether a comma-separated header has this entry, in whatever case.
fn has_token(headers: &HeaderMap, name: &str, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

/// 16 bytes in base64: 22 characters and two of padding.
fn is_key(key: &[u8]) -> bool {
    match key.split_last_chunk::<2>() {
        Some((digits, b"==")) => {
            digits.len() == 22
                && digits.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
        }
        _ => false,
    }
}

/// Programs send no origin; tokens, not cookies, carry identity, so they need none.
pub(super) fn origin_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    allowed.is_empty()
        || origin.to_str().is_ok_and(|origin| {
            allowed.iter().any(|one| one.trim_end_matches('/').eq_ignore_ascii_case(origin))
        })
}

/// A browser names no origin in an ordinary request to the page's own, which is the `Host` then. Such
/// a page, too, is to learn that its websocket would be refused.
fn own_origin_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let own = headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin");
    if !own || headers.contains_key(ORIGIN) || allowed.is_empty() {
        return true;
    }
    let host = text(headers, HOST.as_str()).unwrap_or_default();
    allowed.iter().any(|one| {
        let named = one.split_once("://").map_or(&**one, |(_, named)| named);
        named.trim_end_matches('/').eq_ignore_ascii_case(host)
    })
}

fn vsn(text: Option<&str>) -> Result<Vsn, HandshakeError> {
    match text {
        None | Some("" | "1.0.0") => Ok(Vsn::V1),
        Some("2.0.0") => Ok(Vsn::V2),
        Some(_) => Err(HandshakeError::Vsn),
    }
}

fn api_key<'a>(query: &'a str, headers: &'a HeaderMap) -> Option<Cow<'a, str>> {
    parameter(query, "apikey")
        .filter(|key| !key.is_empty())
        .or_else(|| text(headers, "x-api-key").or_else(|| bearer(headers)).map(Cow::Borrowed))
        .filter(|key| !key.is_empty())
}

/// Of a request that is no handshake: `Authorization` first, which has the user's own token where
/// the key in the query is everybody's.
pub(super) fn request_key<'a>(query: &'a str, headers: &'a HeaderMap) -> Option<Cow<'a, str>> {
    [bearer(headers), text(headers, "x-api-key"), text(headers, "apikey")]
        .into_iter()
        .flatten()
        .find(|key| !key.is_empty())
        .map(Cow::Borrowed)
        .or_else(|| parameter(query, "apikey").filter(|key| !key.is_empty()))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = text(headers, AUTHORIZATION.as_str())?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn user_agent(headers: &HeaderMap) -> Option<Box<str>> {
    let text = headers.get(USER_AGENT)?.to_str().ok()?;
    // `to_str` admits visible ASCII only, so any byte is a character.
    Some(text.get(..USER_AGENT_LIMIT).unwrap_or(text).into())
}

/// The first value of a query parameter. Text that is not UTF-8 once decoded counts as absent.
pub(super) fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let raw = query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })?;
    percent_decoded(raw)
}

pub(super) fn percent_decoded(raw: &str) -> Option<Cow<'_, str>> {
    if !raw.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Some(Cow::Borrowed(raw));
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'+', _) => out.push(b' '),
            (b'%', [high, low, after @ ..]) => {
                let digit = |b: u8| char::from(b).to_digit(16);
                let (high, low) = (digit(*high)?, digit(*low)?);
                out.push(u8::try_from(high * 16 + low).ok()?);
                rest = after;
            }
            (b'%', _) => return None,
            (other, _) => out.push(other),
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use proptest::prelude::*;

    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    const GOOD: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn with(extra: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        let replaced = |name: &str| extra.iter().any(|(other, _)| *other == name);
        GOOD.into_iter().filter(|(name, _)| !replaced(name)).chain(extra.iter().copied()).collect()
    }

    #[test]
    fn a_browsers_handshake_is_accepted() {
        let parts = request("/socket/websocket?apikey=a%2Bb&log_level=info&vsn=2.0.0", &GOOD);

        let handshake = Handshake::read(&parts, &[]).unwrap();

        assert_eq!(accept(&parts.headers).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(handshake.vsn, Vsn::V2);
        assert_eq!(handshake.api_key.as_deref(), Some("a+b"));
    }

    #[test]
    fn a_client_that_names_no_version_gets_the_first() {
        let parts = request("/socket/websocket", &GOOD);

        assert_eq!(Handshake::read(&parts, &[]).unwrap().vsn, Vsn::V1);
    }

    #[test]
    fn what_is_not_a_handshake_is_refused() {
        let cases = [
            (vec![], HandshakeError::NotWebsocket),
            (with(&[("upgrade", "h2c")]), HandshakeError::NotWebsocket),
            (with(&[("connection", "close")]), HandshakeError::NotWebsocket),
            (with(&[("sec-websocket-version", "8")]), HandshakeError::Version),
            (with(&[("sec-websocket-key", "short==")]), HandshakeError::Key),
            (with(&[("sec-websocket-key", "")]), HandshakeError::Key),
        ];
        for (headers, expected) in cases {
            let parts = request("/", &headers);
            assert_eq!(accept(&parts.headers).unwrap_err(), expected, "{headers:?}");
        }
        let parts = request("/?vsn=3.0.0", &GOOD);
        assert_eq!(Handshake::read(&parts, &[]).unwrap_err(), HandshakeError::Vsn);
    }

    #[test]
    fn only_listed_origins_get_in_where_there_is_a_list() {
        let allowed = ["https://app.example".to_owned()];
        let origin = |origin: &'static str| request("/", &with(&[("origin", origin)]));

        let from = |parts: &Parts| Handshake::read(parts, &allowed).map(drop);

        assert_eq!(from(&origin("https://app.example")), Ok(()));
        assert_eq!(from(&request("/", &GOOD)), Ok(()));
        for other in
            ["https://evil.example", "https://app.example.evil", "null", "http://app.example"]
        {
            assert_eq!(from(&origin(other)), Err(HandshakeError::Origin), "{other}");
            assert!(Handshake::read(&origin(other), &[]).is_ok());
        }
    }

    #[test]
    fn an_ordinary_request_of_a_page_to_its_own_origin_is_held_to_the_list() {
        let allowed = ["https://app.example/".to_owned()];
        let from = |host, site| {
            let parts = request("/", &[("host", host), ("sec-fetch-site", site)]);
            Handshake::read(&parts, &allowed).map(drop)
        };

        assert_eq!(from("app.example", "same-origin"), Ok(()));
        assert_eq!(from("localhost:4000", "same-origin"), Err(HandshakeError::Origin));
        assert_eq!(from("localhost:4000", "none"), Ok(()), "it was typed in");
        let open = request("/", &[("host", "x"), ("sec-fetch-site", "same-origin")]);
        assert!(Handshake::read(&open, &[]).is_ok());
    }

    #[test]
    fn the_key_comes_from_the_query_or_a_header() {
        let key = |uri, extra: &[(&'static str, &'static str)]| {
            let parts = request(uri, &with(extra));
            Handshake::read(&parts, &[]).unwrap().api_key.map(Cow::into_owned)
        };

        assert_eq!(key("/?apikey=q", &[("x-api-key", "h")]).as_deref(), Some("q"));
        assert_eq!(
            key("/", &[("x-api-key", "h"), ("authorization", "Bearer b")]).as_deref(),
            Some("h")
        );
        assert_eq!(key("/", &[("authorization", "bearer b")]).as_deref(), Some("b"));
        assert_eq!(key("/", &[("authorization", "Basic b")]), None);
        assert_eq!(key("/?apikey=", &[]), None);
        assert_eq!(key("/?xapikey=1", &[]), None);
    }

    #[test]
    fn a_request_is_its_bearers_before_it_is_anybodys() {
        let key = |uri, headers: &[(&str, &str)]| {
            let parts = request(uri, headers);
            let query = parts.uri.query().unwrap_or_default();
            request_key(query, &parts.headers).map(Cow::into_owned)
        };

        let all = [("apikey", "h"), ("x-api-key", "x"), ("authorization", "Bearer b")];
        assert_eq!(key("/?apikey=q", &all).as_deref(), Some("b"));
        assert_eq!(key("/?apikey=q", &all[..2]).as_deref(), Some("x"));
        assert_eq!(key("/?apikey=q", &all[..1]).as_deref(), Some("h"));
        assert_eq!(key("/?apikey=q", &[("apikey", "")]).as_deref(), Some("q"));
        assert_eq!(key("/", &[]), None);
    }

    #[test]
    fn broken_percent_encoding_is_no_value() {
        for raw in ["%", "%4", "%zz", "%ff", "a%"] {
            assert_eq!(percent_decoded(raw), None, "{raw}");
        }
        assert_eq!(percent_decoded("%C3%A9+x").as_deref(), Some("é x"));
    }

    proptest! {
        #[test]
        fn any_value_survives_its_percent_encoding(value in any::<String>()) {
            let encoded: String = value.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let query = format!("a=1&apikey={encoded}&b");

            let read = parameter(&query, "apikey");

            prop_assert_eq!(read.as_deref(), Some(&*value));
        }

        #[test]
        fn any_query_is_read_without_a_panic(query in "[&=%+a-f0-9éapikey]{0,60}") {
            parameter(&query, "apikey");
        }
    }
}
