//! Secrets and public keys, and which tokens each may verify.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

use super::error::KeyError;

/// Shortest secret: as long as the digest it makes, as RFC 7518 asks and PostgREST does.
pub const MIN_SECRET: usize = 32;

const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// A key and the algorithms it is for. That a key serves one family only is what keeps a public
/// key from being taken for a secret.
pub(super) struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
}

impl Key {
    pub(super) fn secret(secret: &[u8]) -> Result<Key, KeyError> {
        if secret.len() < MIN_SECRET {
            return Err(KeyError::ShortSecret);
        }
        let decoding = DecodingKey::from_secret(secret);
        Ok(Key { id: None, algorithms: HMAC.to_vec(), decoding })
    }

    /// The keys of a JWKS. Those that pg_tide has no use for, as for encryption or on other
    /// curves, are passed over.
    pub(super) fn set(jwks: &str) -> Result<Vec<Key>, KeyError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_str(jwks)
            .map_err(|error| KeyError::NotAKeySet { line: error.line(), column: error.column() })?;
        let keys: Vec<Key> = set
            .keys
            .into_iter()
            .filter_map(|key| Key::public(serde_json::from_value(key).ok()?))
            .collect();
        if keys.is_empty() { Err(KeyError::NoUsableKey) } else { Ok(keys) }
    }

    fn public(jwk: Jwk) -> Option<Key> {
        if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let (family, decoding) = jwk.material()?;
        let mut algorithms = family.to_vec();
        if let Some(only) = &jwk.alg {
            let only = algorithm(only)?;
            algorithms.retain(|algorithm| *algorithm == only);
        }
        (!algorithms.is_empty()).then_some(Key { id: jwk.kid, algorithms, decoding })
    }

    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    /// Whether the key made this signature. An algorithm that does not fit it did not.
    pub(super) fn signed(&self, algorithm: Algorithm, message: &str, signature: &str) -> bool {
        self.fits(algorithm)
            && jsonwebtoken::crypto::verify(
                signature,
                message.as_bytes(),
                &self.decoding,
                algorithm,
            )
            .unwrap_or(false)
    }
}

/// The algorithm of that name. `none` is not one.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        // RFC 9864's name for what RFC 8037 calls EdDSA.
        "Ed25519" => Some(Algorithm::EdDSA),
        _ => name.parse().ok(),
    }
}

/// RFC 7517. Private parts are not read.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

impl Jwk {
    /// The algorithms that a key of this type and curve can be for, and the key.
    fn material(&self) -> Option<(&'static [Algorithm], DecodingKey)> {
        let (x, y) = (self.x.as_deref(), self.y.as_deref());
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let key = DecodingKey::from_rsa_components(self.n.as_deref()?, self.e.as_deref()?);
                Some((RSA, key.ok()?))
            }
            ("EC", Some("P-256")) => {
                Some((&[Algorithm::ES256], DecodingKey::from_ec_components(x?, y?).ok()?))
            }
            ("EC", Some("P-384")) => {
                Some((&[Algorithm::ES384], DecodingKey::from_ec_components(x?, y?).ok()?))
            }
            ("OKP", Some("Ed25519")) => {
                Some((&[Algorithm::EdDSA], DecodingKey::from_ed_components(x?).ok()?))
            }
            ("oct", _) => {
                let secret = URL_SAFE_NO_PAD.decode(self.k.as_deref()?).ok()?;
                (secret.len() >= MIN_SECRET).then(|| (HMAC, DecodingKey::from_secret(&secret)))
            }
            _ => None,
        }
    }
}
