//! Tokens signed with a database's own secret.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Map, Value};

/// A token of HS256 for `role`. Its role, its time of issue and its expiry take the place of
/// claims of these names; where an audience is configured, `aud` has to be among the claims.
pub fn sign(
    secret: &str,
    role: &str,
    mut claims: Map<String, Value>,
    lifetime: Duration,
    now: SystemTime,
) -> String {
    let now = seconds(now);
    let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    claims.insert("role".into(), role.into());
    claims.insert("iat".into(), now.into());
    claims.insert("exp".into(), now.saturating_add(lifetime).into());

    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let payload = URL_SAFE_NO_PAD.encode(Value::Object(claims).to_string());
    let message = format!("{header}.{payload}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
    format!("{message}.{signature}")
}

/// Seconds since the Unix epoch; a clock before it stands at 0.
pub fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
