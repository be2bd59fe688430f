//! Why a token is refused, in the words that Supabase's clients know.

use super::key::MIN_SECRET;

/// A token that is refused. `Display` is the text of a refused handshake. Nothing of the token is
/// repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("API key is missing")]
    Missing,
    #[error("The token provided is not a valid JWT")]
    TooLong,
    /// Not three parts of base64 and JSON, or a claim that is there twice.
    #[error("The token provided is not a valid JWT")]
    Malformed,
    /// `none`, or one that is not supported.
    #[error("Failed to validate JWT signature")]
    Algorithm,
    /// No secret or key at hand is meant for such a token.
    #[error("Failed to validate JWT signature")]
    UnknownKey,
    #[error("Failed to validate JWT signature")]
    Signature,
    #[error("Fields `role` and `exp` are required in JWT")]
    NoExpiry,
    /// Not a whole number of seconds.
    #[error("Fields `role` and `exp` are required in JWT")]
    InvalidExpiry,
    #[error("Token has expired")]
    Expired { seconds_ago: i64 },
    #[error("Token is not valid yet")]
    NotYetValid,
    #[error("Fields `role` and `exp` are required in JWT")]
    NoRole,
    /// Not a text that could name a role.
    #[error("Fields `role` and `exp` are required in JWT")]
    InvalidRole,
    #[error("Token is meant for another audience")]
    Audience,
}

impl AuthError {
    /// Supabase's code for the refusal of a channel.
    pub fn code(&self) -> &'static str {
        match self {
            AuthError::Missing => "MissingAPIKey",
            AuthError::TooLong | AuthError::Malformed => "MalformedJWT",
            AuthError::Algorithm | AuthError::UnknownKey | AuthError::Signature => {
                "JwtSignatureError"
            }
            AuthError::NoExpiry
            | AuthError::InvalidExpiry
            | AuthError::Expired { .. }
            | AuthError::NotYetValid
            | AuthError::NoRole
            | AuthError::InvalidRole
            | AuthError::Audience => "InvalidJWTToken",
        }
    }

    /// What a channel is told, which is more than the handshake says if the token has expired.
    pub fn message(&self) -> String {
        match self {
            AuthError::Expired { seconds_ago } => {
                format!("Token has expired {seconds_ago} seconds ago")
            }
            _ => self.to_string(),
        }
    }

    /// The `reason` of a refused join.
    pub fn reason(&self) -> String {
        format!("{}: {}", self.code(), self.message())
    }
}

/// Secrets or keys that cannot be used. Nothing of them is repeated.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("a JWT secret must have at least {MIN_SECRET} bytes")]
    ShortSecret,
    /// Without the parser's own words, which repeat what they stumble over.
    #[error("the key set is not of the form {{\"keys\": [...]}} (line {line}, column {column})")]
    NotAKeySet { line: usize, column: usize },
    #[error("none of the keys in the key set can be used to verify tokens")]
    NoUsableKey,
}
