//! What a client has shown, and what it is worth until when.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::catalog::Asker;
use crate::hub::subscription::Identity;

/// A role that the client may use, and until when.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    pub(super) identity: Arc<Identity>,
    /// Seconds since the Unix epoch; `None` for those who came without a token.
    pub(super) expires: Option<i64>,
    /// Of the token, so that the same one sent again is known; the token itself is not kept.
    digest: Option<[u8; 32]>,
}

impl Credentials {
    pub(super) fn new(
        identity: Identity,
        expires: Option<i64>,
        token: Option<&str>,
    ) -> Credentials {
        Credentials { identity: Arc::new(identity), expires, digest: token.map(digest) }
    }

    /// Of those who came without a token.
    pub(super) fn anonymous(role: &str) -> Credentials {
        let claims = serde_json::json!({ "role": role }).to_string();
        Credentials::new(Identity { role: role.into(), claims: claims.into() }, None, None)
    }

    /// In whose name questions are asked.
    pub(super) fn asker(&self) -> Asker {
        let Identity { role, claims } = &*self.identity;
        Asker { role: Arc::clone(role), claims: Arc::clone(claims) }
    }

    pub(super) fn role(&self) -> &Arc<str> {
        &self.identity.role
    }

    /// A digest that is the same for all connections of one client: of its token, or of its role.
    pub(super) fn id(&self) -> [u8; 32] {
        self.digest.unwrap_or_else(|| digest(self.role()))
    }

    /// Bytes that they take up, whoever shares them.
    pub(super) fn memory(&self) -> usize {
        self.identity.role.len() + self.identity.claims.len()
    }

    pub(super) fn has_expired(&self, now: i64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    pub(super) fn are_of(&self, token: &str) -> bool {
        self.digest == Some(digest(token))
    }

    /// What is said when they are used past their time.
    pub(super) fn expiry_text(&self, now: i64) -> String {
        let ago = now.saturating_sub(self.expires.unwrap_or(now));
        format!("Token has expired {ago} seconds ago")
    }
}

fn digest(token: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().unwrap_or_default()
}

/// Seconds since the Unix epoch.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
