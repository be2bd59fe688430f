//! What every connection shares.

use std::sync::{Arc, PoisonError, RwLock};

use tide_feed::config::Config;
use tokio::sync::Semaphore;

use super::connection_slots::{self, ConnectionSlots};
use super::findings::Findings;
use super::grant;
use super::limit::Paces;
use super::presence::Rooms;
use super::refusals::Refusals;
use super::role::RoleCache;
use super::single_flight::SingleFlight;
use super::table_questions::TableQuestions;
use crate::allowance::{Allowance, Share};
use crate::auth::Verifier;
use crate::catalog::Catalog;
use crate::descriptors::ConnectionLimits;
use crate::hub::Hub;
use crate::memory::{Kind, Memory};
use crate::stats::Stats;
use crate::writer_demand::WriterDemand;

#[derive(Debug)]
pub struct ServerContext {
    config: RwLock<Arc<Config>>,
    pub hub: Hub,
    pub catalog: Catalog,
    pub stats: Arc<Stats>,
    verifier: RwLock<Arc<Verifier>>,
    pub(super) roles: RoleCache,
    pub(super) tables: TableQuestions,
    pub(super) access: SingleFlight<grant::AccessQuestion, grant::AccessAnswer>,
    pub(super) findings: Findings,
    pub(super) rooms: Arc<Rooms>,
    pub(super) http_broadcasts: Paces,
    pub(super) http_mutations: Paces,
    /// What clients want written.
    pub(super) demand: WriterDemand,
    /// `tide.max_connections` permits, or as many as there are descriptors for.
    pub(super) websockets: Arc<Semaphore>,
    pub(super) slots: Arc<ConnectionSlots>,
    pub(super) refusals: Refusals,
}

impl ServerContext {
    pub fn new(
        config: Arc<Config>,
        hub: Hub,
        catalog: Catalog,
        verifier: Verifier,
        stats: Arc<Stats>,
        demand: WriterDemand,
        limits: ConnectionLimits,
    ) -> ServerContext {
        let handshakes = Arc::clone(hub.memory().of(Kind::Handshakes));
        let limits = limits.fitting(handshakes.limit() / connection_slots::HANDSHAKE);
        let limit = limits.websockets.min(Semaphore::MAX_PERMITS);
        let rooms = Arc::new(Rooms::new(hub.clone(), &config));
        ServerContext {
            config: RwLock::new(config),
            hub,
            catalog,
            stats,
            verifier: RwLock::new(Arc::new(verifier)),
            roles: RoleCache::new(),
            tables: TableQuestions::new(),
            access: SingleFlight::new(),
            findings: Findings::default(),
            rooms,
            http_broadcasts: Paces::default(),
            http_mutations: Paces::default(),
            demand,
            websockets: Arc::new(Semaphore::new(limit)),
            slots: Arc::new(ConnectionSlots::new(limits.waiting, limits.opening, handshakes)),
            refusals: Refusals::default(),
        }
    }

    /// What all memory is counted in.
    pub fn memory(&self) -> &Memory {
        self.hub.memory()
    }

    /// A share of nothing of what there is for this.
    pub(super) fn share(&self, kind: Kind) -> Share {
        Share::of(self.memory().of(kind))
    }

    /// What the filters of one connection may take up.
    pub(super) fn own_filters(&self) -> Arc<Allowance> {
        Arc::new(Allowance::new(self.config().memory_limit / 128))
    }

    /// The settings as they are now.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Some settings changed. What clients were granted before stays so; what they ask for from now
    /// on is answered by these.
    pub fn set_config(&self, config: &Arc<Config>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(config);
    }

    pub fn verifier(&self) -> Arc<Verifier> {
        Arc::clone(&self.verifier.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The secrets or keys changed. Tokens that were accepted stay so until they expire.
    pub fn set_verifier(&self, verifier: Verifier) {
        *self.verifier.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(verifier);
    }
}
