//! Whether a role may be used by clients: asked of the catalogue, remembered for a moment, so that
//! a thousand clients that reconnect at once ask once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tide_feed::catalog::RoleStatus;

use super::context::ServerContext;
use super::identity::{self, Refusal};
use super::single_flight::SingleFlight;
use crate::catalog::{Catalog, CatalogError};

/// Short enough that nobody waits for a GRANT to take effect.
const KEPT: Duration = Duration::from_secs(1);

/// How often the roles of clients that are connected are looked at.
const BETWEEN_LOOKS: Duration = Duration::from_secs(3);

/// Roles come from signed tokens, so there are few; this many are no attack, but still a bound.
const LIMIT: usize = 1000;

#[derive(Debug)]
pub(super) struct RoleCache {
    known: Mutex<HashMap<Arc<str>, (Instant, RoleStatus)>>,
    asked: SingleFlight<Arc<str>, Result<RoleStatus, CatalogError>>,
}

impl RoleCache {
    pub(super) fn new() -> RoleCache {
        RoleCache { known: Mutex::default(), asked: SingleFlight::new() }
    }

    pub(super) async fn status(
        &self,
        catalog: &Catalog,
        role: &Arc<str>,
    ) -> Result<RoleStatus, CatalogError> {
        if let Some(status) = self.recall(role, Instant::now()) {
            return Ok(status);
        }
        let status = self.asked.answer(Arc::clone(role), || catalog.role(role)).await?;
        self.remember(Arc::clone(role), status, Instant::now());
        Ok(status)
    }

    fn recall(&self, role: &str, now: Instant) -> Option<RoleStatus> {
        let known = self.lock();
        let (asked, status) = known.get(role)?;
        (now.saturating_duration_since(*asked) < KEPT).then_some(*status)
    }

    fn remember(&self, role: Arc<str>, status: RoleStatus, now: Instant) {
        let mut known = self.lock();
        if known.len() >= LIMIT {
            known.clear();
        }
        known.insert(role, (now, status));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, (Instant, RoleStatus)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the connections of roles that may not be used by clients any more: nothing that they see from
/// then on is of the stream's making. Does not end.
pub(super) async fn watch(context: &ServerContext) {
    loop {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        for role in context.hub.roles().await {
            let refused = identity::check_role(context, &role).await;
            if let Err(why @ (Refusal::Role(_) | Refusal::PrivilegedRole(_))) = refused {
                log::info!("clients are disconnected: {why}");
                context.hub.refuse_role(&role);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_remembered_for_a_second() {
        let cache = RoleCache::new();
        let asked = Instant::now();

        cache.remember("web".into(), RoleStatus::Usable, asked);

        assert_eq!(cache.recall("web", asked + KEPT / 2), Some(RoleStatus::Usable));
        assert_eq!(cache.recall("web", asked + KEPT), None);
        assert_eq!(cache.recall("other", asked), None);
    }

    #[test]
    fn the_cache_does_not_grow_without_bound() {
        let cache = RoleCache::new();

        for n in 0..LIMIT * 3 {
            cache.remember(format!("role{n}").into(), RoleStatus::Refused, Instant::now());
        }

        assert!(cache.lock().len() <= LIMIT);
    }
}
