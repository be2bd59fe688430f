//! Tokens as an attacker or another issuer would make them; tests that only need a good one take
//! it from `tide.token`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::Value;

/// A JWT with any header and claims, signed by HMAC-SHA-256 whatever the header says.
pub fn signed(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let body = format!("{}.{}", encode(header), encode(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), body.as_bytes());
    format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A JWT with an empty signature.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}.", encode(header), encode(claims))
}

/// The claims of a token, not verified.
pub fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn encode(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}
