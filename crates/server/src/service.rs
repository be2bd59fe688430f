//! The network half as one thing that the worker starts and stops: runtime, hub, listeners.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Receiver;
use tide_feed::config::Config;
use tide_feed::event::Feed;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::auth::Verifier;
use crate::bridge::Bridge;
use crate::catalog::Catalog;
use crate::control::{self, Control};
use crate::descriptors::{self, Places};
use crate::hub::{self, Hub};
use crate::outbox_cleaner::{self, Keeper};
use crate::server::bind::Listener;
use crate::server::{self, ServerContext};
use crate::stats::Stats;

/// Time for the clients to be told that the worker stops.
const FAREWELL: Duration = Duration::from_millis(400);

/// Time for what is in the middle of a computation then.
const REST: Duration = Duration::from_millis(100);

/// Pause before a steward that did not give the secrets is asked again.
const RETRY: Duration = Duration::from_millis(200);

/// Running threads. They must be started with all signals blocked.
#[derive(Debug)]
pub struct Service {
    runtime: Runtime,
    hub: Hub,
    hub_thread: JoinHandle<()>,
    /// The last one serves the clients.
    tasks: Vec<tokio::task::JoinHandle<()>>,
    stop: watch::Sender<bool>,
    stopping: Arc<AtomicBool>,
}

impl Service {
    /// Binds the control socket and starts the threads. The listener for clients follows as soon
    /// as the steward has given the secrets and the port is free.
    pub fn start(config: Config, feed: Receiver<Feed>, bridge: Arc<Bridge>) -> io::Result<Service> {
        let descriptors = descriptors::raise();
        let places = Places::within(descriptors, config.reserved_files, config.max_connections);
        if places.websockets < config.max_connections {
            log::warn!(
                "the limit of {descriptors} open files leaves room for {} clients, not for tide.max_connections = {}",
                places.websockets,
                config.max_connections
            );
        }
        let config = Arc::new(config);
        let runtime = Builder::new_multi_thread()
            .worker_threads(config.network_threads.max(1))
            .thread_name("tide network")
            // For compiling patterns and resolving names: not one for each that is asked for.
            .max_blocking_threads(2)
            .enable_all()
            .build()?;
        let (stats, catalog) = (Arc::<Stats>::default(), Catalog::new(config.publication.clone()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (receipts, received) = hub::receipts::channel();
        let parts = hub::Parts {
            feed,
            bridge: Arc::clone(&bridge),
            catalog: catalog.clone(),
            runtime: runtime.handle().clone(),
            stats: Arc::clone(&stats),
            receipts,
        };
        let (hub, hub_thread) = hub::start(&config, parts, Arc::clone(&stopping))?;
        let (stop, stopped) = watch::channel(false);
        let (listener, reload) = (Arc::<Listener>::default(), Arc::<Notify>::default());
        let outboxes = Arc::<Notify>::default();
        let control = Arc::new(Control {
            hub: hub.clone(),
            catalog: catalog.clone(),
            stats: Arc::clone(&stats),
            bridge,
            listener: Arc::clone(&listener),
            reload: Arc::clone(&reload),
            outboxes: Arc::clone(&outboxes),
            connection_limit: places.websockets as u64,
        });
        let socket = {
            let _inside = runtime.enter();
            control::bind(&config.control_socket)?
        };
        let keeper = Keeper::new(outbox_cleaner::Parts {
            catalog: catalog.clone(),
            stats: Arc::clone(&stats),
            live: hub.watch_live(),
            received,
            changed: outboxes,
            retention: config.outbox_retention,
        });
        let clients =
            Clients { config, hub: hub.clone(), catalog, stats, listener, reload, places };
        let tasks = vec![
            runtime.spawn(control.run(socket)),
            runtime.spawn(keeper.run()),
            runtime.spawn(clients.serve(stopped)),
        ];
        Ok(Service { runtime, hub, hub_thread, tasks, stop, stopping })
    }

    /// Whether every thread is still there; if not, the worker must exit and be started again.
    pub fn is_alive(&self) -> bool {
        !self.hub_thread.is_finished() && !self.tasks.iter().any(|task| task.is_finished())
    }

    /// Says goodbye to the clients and ends the threads, within half a second.
    pub fn stop(mut self) {
        self.stopping.store(true, Ordering::Release);
        self.hub.stop();
        self.stop.send_replace(true);
        // The runtime drops what waits, and so would the words of farewell be: they go first.
        if let Some(serving) = self.tasks.pop() {
            let _ = self.runtime.block_on(async { timeout(FAREWELL, serving).await });
        }
        self.runtime.shutdown_timeout(REST);
        // The hub looks at `stopping` in everything that could keep it.
        let _ = self.hub_thread.join();
    }
}

/// What clients are served with.
struct Clients {
    config: Arc<Config>,
    hub: Hub,
    catalog: Catalog,
    stats: Arc<Stats>,
    listener: Arc<Listener>,
    reload: Arc<Notify>,
    places: Places,
}

impl Clients {
    async fn serve(self, stopped: watch::Receiver<bool>) {
        if self.config.port == 0 {
            // No listener: `tide.check()` names the line to add.
            return std::future::pending().await;
        }
        let verifier = self.verifier().await;
        let tls = self.tls().await;
        let listeners = self.listener.bind(&self.config).await;
        let context = Arc::new(ServerContext::new(
            Arc::clone(&self.config),
            self.hub.clone(),
            self.catalog.clone(),
            verifier,
            Arc::clone(&self.stats),
            self.places,
        ));
        log::info!("listening on {}", self.listener.url().unwrap_or_default());
        tokio::select! {
            () = server::run(listeners, tls, Arc::clone(&context), stopped) => {}
            () = self.follow_secrets(&context) => {}
        }
    }

    async fn follow_secrets(&self, context: &ServerContext) {
        loop {
            self.reload.notified().await;
            context.set_verifier(self.verifier().await);
        }
    }

    /// Waits until there is something to verify tokens by.
    async fn verifier(&self) -> Verifier {
        let mut told = None;
        loop {
            match self.try_verifier().await {
                Ok(verifier) => return verifier,
                Err(problem) => {
                    if told.as_ref() != Some(&problem) {
                        log::warn!("clients cannot be let in yet: {problem}");
                        told = Some(problem);
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_verifier(&self) -> Result<Verifier, String> {
        let secrets = match &self.config.jwt_secret {
            Some(secret) => vec![secret.clone()],
            None => self.catalog.secrets().await.map_err(|error| error.to_string())?.jwt_secrets,
        };
        let jwks = self.config.jwks_file.as_deref().map(read_jwks).transpose()?;
        Verifier::new(secrets, jwks.as_deref(), self.config.jwt_audience.clone())
            .map_err(|error| error.to_string())
    }

    /// Waits until the certificate can be used: never plain text where TLS was asked for.
    async fn tls(&self) -> Option<TlsAcceptor> {
        if !self.config.ssl {
            return None;
        }
        let certificate = self.config.ssl_cert_file.as_deref().unwrap_or(Path::new("server.crt"));
        let key = self.config.ssl_key_file.as_deref().unwrap_or(Path::new("server.key"));
        let mut told = None;
        loop {
            match server::tls::acceptor(certificate, key) {
                Ok(acceptor) => return Some(acceptor),
                Err(error) => {
                    let problem = error.to_string();
                    if told.as_ref() != Some(&problem) {
                        log::warn!("no client can connect: {problem}");
                        told = Some(problem);
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

fn read_jwks(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map_err(|error| format!("could not read tide.jwks_file \"{}\": {error}", path.display()))
}
