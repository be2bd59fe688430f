//! From a token to an identity.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde_json::Value;
use tide_feed::token::seconds;

use super::error::{AuthError, KeyError};
use super::key::{self, Key};

/// Longest token: real ones have a few kilobytes.
pub const MAX_TOKEN: usize = 64 << 10;
/// Seconds by which the clock of whoever signs may be ahead of ours. Not granted to expiry.
const CLOCK_SKEW: i64 = 30;
/// Bytes of a role's name in Postgres.
const MAX_ROLE: usize = 63;

/// Who a client is, for as long as its token lasts.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub role: Arc<str>,
    /// The token's payload, byte for byte: a JSON object for `request.jwt.claims`.
    pub claims: Arc<str>,
    /// Seconds since the Unix epoch.
    pub exp: i64,
}

/// Checks tokens against the secrets and keys it was given.
pub struct Verifier {
    secrets: Vec<Key>,
    keys: Vec<Key>,
    audience: Option<String>,
}

impl Verifier {
    /// `secrets`, newest first, and the keys of the key set verify tokens, each those of its own
    /// kind; with an `audience`, only tokens that name it pass.
    pub fn new(
        secrets: Vec<String>,
        jwks_json: Option<&str>,
        audience: Option<String>,
    ) -> Result<Verifier, KeyError> {
        Ok(Verifier {
            secrets: secrets
                .iter()
                .map(|secret| Key::secret(secret.as_bytes()))
                .collect::<Result<_, _>>()?,
            keys: jwks_json.map(Key::set).transpose()?.unwrap_or_default(),
            audience,
        })
    }

    /// The identity that the token proves at this time.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, AuthError> {
        if token.len() > MAX_TOKEN {
            return Err(AuthError::TooLong);
        }
        let token = token.trim();
        let (message, signature) = token.rsplit_once('.').ok_or(AuthError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(AuthError::Malformed)?;
        let header = Header::read(header)?;
        self.check_signature(&header, message, signature)?;
        // Nothing is believed of a payload before its signature has been checked.
        let claims = decode(payload)?;
        Claims::read(&claims)?.identity(&claims, self.audience.as_deref(), seconds(now))
    }

    fn check_signature(
        &self,
        header: &Header,
        message: &str,
        signature: &str,
    ) -> Result<(), AuthError> {
        let algorithm = header.algorithm()?;
        let candidates = self.candidates(header.kid.as_deref(), algorithm);
        if candidates.is_empty() {
            return Err(AuthError::UnknownKey);
        }
        if candidates.iter().any(|key| key.signed(algorithm, message, signature)) {
            Ok(())
        } else {
            Err(AuthError::Signature)
        }
    }

    /// The key of that id; else those without an id. Secrets have none: tokens made with them
    /// often name a key that is not published.
    fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<&Key> {
        let fitting = || self.keys.iter().filter(|key| key.fits(algorithm));
        if id.is_some() {
            let named: Vec<&Key> = fitting().filter(|key| key.id() == id).collect();
            if !named.is_empty() {
                return named;
            }
        }
        let secrets = self.secrets.iter().filter(|key| key.fits(algorithm));
        secrets.chain(fitting().filter(|key| id.is_none() || key.id().is_none())).collect()
    }
}

fn decode(part: &str) -> Result<String, AuthError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| AuthError::Malformed)?;
    let text = String::from_utf8(bytes).map_err(|_| AuthError::Malformed)?;
    // serde would read the fields of a struct from an array as well.
    if text.trim_start().starts_with('{') { Ok(text) } else { Err(AuthError::Malformed) }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood. None is.
    crit: Option<Value>,
}

impl Header {
    fn read(part: &str) -> Result<Header, AuthError> {
        let header: Header =
            serde_json::from_str(&decode(part)?).map_err(|_| AuthError::Malformed)?;
        if header.crit.is_some() { Err(AuthError::Malformed) } else { Ok(header) }
    }

    fn algorithm(&self) -> Result<Algorithm, AuthError> {
        key::algorithm(&self.alg).ok_or(AuthError::Algorithm)
    }
}

/// The claims that decide, of whatever type. One that is there twice is refused: Postgres might
/// believe the other.
#[derive(Deserialize)]
struct Claims {
    role: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    aud: Option<Value>,
}

impl Claims {
    fn read(json: &str) -> Result<Claims, AuthError> {
        serde_json::from_str(json).map_err(|_| AuthError::Malformed)
    }

    fn identity(
        &self,
        json: &str,
        audience: Option<&str>,
        now: i64,
    ) -> Result<Identity, AuthError> {
        let exp = self.expiry()?;
        if exp <= now {
            return Err(AuthError::Expired { seconds_ago: now.saturating_sub(exp) });
        }
        self.check_begin(now)?;
        if audience.is_some_and(|audience| !self.is_for(audience)) {
            return Err(AuthError::Audience);
        }
        Ok(Identity { role: self.role()?.into(), claims: json.into(), exp })
    }

    /// Seconds since the epoch; later than can be counted is as late as can be.
    fn expiry(&self) -> Result<i64, AuthError> {
        let exp = self.exp.as_ref().ok_or(AuthError::NoExpiry)?;
        match (exp.as_i64(), exp.as_u64()) {
            (Some(exp), _) => Ok(exp),
            (None, Some(_)) => Ok(i64::MAX),
            (None, None) => Err(AuthError::InvalidExpiry),
        }
    }

    fn check_begin(&self, now: i64) -> Result<(), AuthError> {
        let Some(nbf) = &self.nbf else { return Ok(()) };
        let begin = nbf.as_f64().ok_or(AuthError::NotYetValid)?;
        let latest = now.saturating_add(CLOCK_SKEW) as f64;
        if begin > latest { Err(AuthError::NotYetValid) } else { Ok(()) }
    }

    fn is_for(&self, audience: &str) -> bool {
        match &self.aud {
            Some(Value::String(one)) => one == audience,
            Some(Value::Array(several)) => several.iter().any(|one| one == audience),
            _ => false,
        }
    }

    fn role(&self) -> Result<&str, AuthError> {
        let role = self.role.as_ref().ok_or(AuthError::NoRole)?;
        let role = role.as_str().ok_or(AuthError::InvalidRole)?;
        let possible = !role.is_empty() && role.len() <= MAX_ROLE && !role.contains('\0');
        if possible { Ok(role) } else { Err(AuthError::InvalidRole) }
    }
}

/// Without the claims, which are the client's own business.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("role", &self.role)
            .field("exp", &self.exp)
            .finish_non_exhaustive()
    }
}

/// How many secrets and keys there are, never what they are.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("secrets", &self.secrets.len())
            .field("keys", &self.keys.len())
            .field("audience", &self.audience)
            .finish()
    }
}
