//! Who a client is: from its key or token to a role that it may use.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use tide_feed::catalog::RoleStatus;
use tokio::time::{Instant, sleep, timeout_at};

use super::context::ServerContext;
use super::credentials::Credentials;
use crate::auth::{self, AuthError, Shape, token_shape};
use crate::catalog::CatalogError;
use crate::hub::subscription::Identity;
use crate::stats::{RefusedConnection, RefusedJoin};

/// Between two questions to a catalogue that is not ready.
const PATIENCE: Duration = Duration::from_millis(100);

/// Why somebody is not let in. The texts say nothing that the client did not.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("API key is missing")]
    NoKey,
    #[error("the API key is not a token, and there is no role for those who come without one")]
    NoAnonymous,
    #[error(transparent)]
    Token(#[from] AuthError),
    /// The connection's own token, past its time.
    #[error("{0}")]
    Expired(String),
    #[error("the role \"{0}\" may not be used by clients")]
    Role(Arc<str>),
    /// Superusers and the like.
    #[error("the role \"{0}\" has too many privileges to be used by clients")]
    PrivilegedRole(Arc<str>),
    /// The policies of `tide.channel` do not admit it to the channel of this name.
    #[error("You do not have permissions to read from this Channel topic: {0}")]
    Channel(Box<str>),
    #[error("the database is not ready, try again")]
    Unavailable,
}

impl Refusal {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Refusal::NoKey | Refusal::NoAnonymous | Refusal::Token(_) | Refusal::Expired(_) => {
                StatusCode::UNAUTHORIZED
            }
            Refusal::Role(_) | Refusal::PrivilegedRole(_) | Refusal::Channel(_) => {
                StatusCode::FORBIDDEN
            }
            Refusal::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(super) fn of_connection(&self) -> RefusedConnection {
        match self {
            Refusal::NoKey | Refusal::NoAnonymous | Refusal::Token(_) | Refusal::Expired(_) => {
                RefusedConnection::Unauthorized
            }
            Refusal::Role(_) | Refusal::PrivilegedRole(_) | Refusal::Channel(_) => {
                RefusedConnection::Role
            }
            Refusal::Unavailable => RefusedConnection::Unavailable,
        }
    }

    pub(super) fn of_join(&self) -> RefusedJoin {
        match self {
            Refusal::NoKey | Refusal::NoAnonymous | Refusal::Token(_) | Refusal::Expired(_) => {
                RefusedJoin::Token
            }
            Refusal::Role(_) | Refusal::PrivilegedRole(_) => RefusedJoin::Role,
            Refusal::Channel(_) => RefusedJoin::Policy,
            Refusal::Unavailable => RefusedJoin::Unavailable,
        }
    }

    /// What a channel is told.
    pub(super) fn message(&self) -> String {
        match self {
            Refusal::Token(error) => error.message(),
            _ => self.to_string(),
        }
    }

    /// As the reason of a join error: a code and the text.
    pub(super) fn join_reason(&self) -> String {
        let code = match self {
            Refusal::Token(error) => error.code(),
            Refusal::NoKey => AuthError::Missing.code(),
            Refusal::NoAnonymous | Refusal::Expired(_) => "InvalidJWTToken",
            Refusal::Role(_) | Refusal::PrivilegedRole(_) | Refusal::Channel(_) => "Unauthorized",
            Refusal::Unavailable => "UnableToConnectToProject",
        };
        format!("{code}: {}", self.message())
    }
}

/// The identity of a connection: what its channels have unless they bring a token of their own.
pub(super) async fn of_handshake(
    context: &ServerContext,
    key: Option<&str>,
) -> Result<Credentials, Refusal> {
    let credentials = claimed(context, key)?;
    check_role(context, credentials.role()).await?;
    Ok(credentials)
}

/// The same before the catalogue has been asked about the role.
pub(super) fn claimed(context: &ServerContext, key: Option<&str>) -> Result<Credentials, Refusal> {
    match key {
        Some(token) if is_token(token) => proven(context, token),
        _ => match context.config().anon_role.as_deref() {
            Some(role) => Ok(Credentials::anonymous(role)),
            None if key.is_none() => Err(Refusal::NoKey),
            None => Err(Refusal::NoAnonymous),
        },
    }
}

/// The identity that a token proves.
pub(super) async fn of_token(context: &ServerContext, token: &str) -> Result<Credentials, Refusal> {
    let credentials = proven(context, token)?;
    check_role(context, credentials.role()).await?;
    Ok(credentials)
}

fn proven(context: &ServerContext, token: &str) -> Result<Credentials, Refusal> {
    let auth::Identity { role, claims, exp } =
        context.verifier().verify(token, SystemTime::now())?;
    Ok(Credentials::new(Identity { role, claims }, Some(exp), Some(token)))
}

/// Whether the token says anything: what is not JWT-shaped (`anon`, `sb_publishable_...`) is sent
/// by clients that have no token, and stands for the connection's own identity.
pub(super) fn is_token(token: &str) -> bool {
    token_shape(token) == Shape::Jwt
}

pub(super) async fn check_role(context: &ServerContext, role: &Arc<str>) -> Result<(), Refusal> {
    let ask = || context.roles.status(&context.catalog, role);
    match patiently(context.config().handshake_timeout, ask).await {
        Ok(RoleStatus::Usable) => Ok(()),
        Ok(RoleStatus::Privileged) if context.config().allow_privileged_roles => Ok(()),
        Ok(RoleStatus::Privileged) => Err(Refusal::PrivilegedRole(Arc::clone(role))),
        Ok(RoleStatus::Refused) => Err(Refusal::Role(Arc::clone(role))),
        Err(CatalogError::Unavailable | CatalogError::Ended) => Err(Refusal::Unavailable),
        Err(error @ CatalogError::Refused { .. }) => {
            log::warn!("could not look up a client's role: {error}");
            Err(Refusal::Unavailable)
        }
    }
}

/// Asks the catalogue again while it is not ready, as it is for a moment after a start, or while what
/// it looks at is locked.
pub(super) async fn patiently<T, F>(
    limit: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T, CatalogError>
where
    F: Future<Output = Result<T, CatalogError>>,
{
    let deadline = Instant::now() + limit;
    loop {
        match timeout_at(deadline, ask()).await {
            Ok(Err(error)) if error.is_transient() && Instant::now() + PATIENCE < deadline => {
                sleep(PATIENCE).await;
            }
            Ok(answer) => return answer,
            Err(_elapsed) => return Err(CatalogError::Unavailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Identity {
        Identity { role: "web".into(), claims: "{}".into() }
    }

    #[test]
    fn the_same_token_is_known_again() {
        let credentials = Credentials::new(web(), Some(10), Some("a.b.c"));

        assert!(credentials.are_of("a.b.c"));
        assert!(!credentials.are_of("a.b.d"));
        assert!(!Credentials::anonymous("web").are_of("a.b.c"));
    }

    #[test]
    fn credentials_expire_at_their_second() {
        let credentials = Credentials::new(web(), Some(10), None);

        assert!(!credentials.has_expired(9));
        assert!(credentials.has_expired(10));
        assert_eq!(credentials.expiry_text(11), "Token has expired 1 seconds ago");
    }

    #[tokio::test(start_paused = true)]
    async fn a_catalogue_that_is_not_ready_is_asked_again() {
        let mut answers = 0;

        let answer = patiently(Duration::from_secs(5), || {
            answers += 1;
            let ready = answers > 3;
            async move { if ready { Ok(7) } else { Err(CatalogError::Unavailable) } }
        });

        assert!(matches!(answer.await, Ok(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_a_moment_is_asked_again_and_what_is_refused_is_not() {
        for (sqlstate, again) in
            [("55P03", true), ("40P01", true), ("53200", true), ("XX000", true), ("42501", false)]
        {
            let mut asked = 0;

            let answer = patiently(Duration::from_secs(5), || {
                asked += 1;
                let refused =
                    CatalogError::Refused { sqlstate: sqlstate.into(), message: String::new() };
                let answer = if asked > 3 { Ok(()) } else { Err(refused) };
                async move { answer }
            });

            assert_eq!(answer.await.is_ok(), again, "{sqlstate}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_catalogue_that_never_answers_is_given_up() {
        let answer = patiently(Duration::from_secs(5), std::future::pending::<Result<(), _>>);

        assert!(matches!(answer.await, Err(CatalogError::Unavailable)));
    }
}
