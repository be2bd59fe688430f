//! What every connection shares.

use std::sync::{Arc, PoisonError, RwLock};

use tide_feed::config::Config;
use tokio::sync::Semaphore;

use super::connection_slots::ConnectionSlots;
use super::grant;
use super::presence::Rooms;
use super::rest::HttpBroadcasts;
use super::role::RoleCache;
use super::single_flight::SingleFlight;
use super::tables::TableQuestions;
use crate::allowance::Allowance;
use crate::auth::Verifier;
use crate::catalog::Catalog;
use crate::descriptors::ConnectionLimits;
use crate::hub::Hub;
use crate::stats::Stats;

#[derive(Debug)]
pub struct ServerContext {
    pub config: Arc<Config>,
    pub hub: Hub,
    pub catalog: Catalog,
    pub stats: Arc<Stats>,
    verifier: RwLock<Arc<Verifier>>,
    pub(super) roles: RoleCache,
    pub(super) tables: TableQuestions,
    pub(super) access: SingleFlight<grant::AccessQuestion, grant::AccessAnswer>,
    pub(super) rooms: Arc<Rooms>,
    pub(super) http_broadcasts: HttpBroadcasts,
    /// Parts of `tide.memory_limit`.
    pub(super) inbound: Arc<Allowance>,
    pub(super) filters: Arc<Allowance>,
    /// `tide.max_connections` permits, or as many as there are descriptors for.
    pub(super) websockets: Arc<Semaphore>,
    pub(super) slots: Arc<ConnectionSlots>,
}

impl ServerContext {
    pub fn new(
        config: Arc<Config>,
        hub: Hub,
        catalog: Catalog,
        verifier: Verifier,
        stats: Arc<Stats>,
        limits: ConnectionLimits,
    ) -> ServerContext {
        // The hub's history and queues have the rest.
        let inbound = Arc::new(Allowance::new(config.memory_limit / 8));
        let filters = Arc::new(Allowance::new(config.memory_limit / 16));
        let limit = limits.websockets.min(Semaphore::MAX_PERMITS);
        let rooms = Arc::new(Rooms::new(hub.clone(), &config));
        ServerContext {
            config,
            hub,
            catalog,
            stats,
            verifier: RwLock::new(Arc::new(verifier)),
            roles: RoleCache::new(),
            tables: TableQuestions::new(),
            access: SingleFlight::new(),
            rooms,
            http_broadcasts: HttpBroadcasts::default(),
            inbound,
            filters,
            websockets: Arc::new(Semaphore::new(limit)),
            slots: Arc::new(ConnectionSlots::new(limits.waiting, limits.opening)),
        }
    }

    /// What the filters of one connection may take up.
    pub(super) fn own_filters(&self) -> Arc<Allowance> {
        Arc::new(Allowance::new(self.config.memory_limit / 128))
    }

    pub fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(&self.verifier.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The secrets or keys changed. Tokens that were accepted stay so until they expire.
    pub fn set_verifier(&self, verifier: Verifier) {
        *self.verifier.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(verifier);
    }
}
