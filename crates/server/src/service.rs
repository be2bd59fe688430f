//! The server as a whole: what it is made of, and how it begins and ends.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tide_feed::config::{Config, Credentials, File};
use tokio::net::unix::pipe;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::auth::Verifier;
use crate::catalog::Catalog;
use crate::control::{self, Control};
use crate::descriptors::{self, ConnectionLimits};
use crate::hub::{self, Hub};
use crate::link::{self, LinkEnd, Settings, Uplink};
use crate::mutation_cleaner::MutationCleaner;
use crate::notifier::{self, Notifier};
use crate::notify::NotifyRegistry;
use crate::outbox_cleaner::{self, OutboxCleaner};
use crate::server::bind::Listener;
use crate::server::{self, ServerContext};
use crate::stats::Stats;
use crate::writer_demand::{self, WriterDemand};
use crate::{confinement, logging};

/// Messages from the worker that may wait for the hub; the rest waits in the link, and then the
/// worker does.
const FEED: usize = 4;

/// Time for the clients to be told that the server stops.
const FAREWELL: Duration = Duration::from_millis(400);

/// Pause before a catalog worker that did not give the secrets is asked again.
const RETRY: Duration = Duration::from_millis(200);

/// Serves until the link ends, or the postmaster does.
///
/// # Errors
/// The link broke, or a part of the server ended that should not have.
pub fn run(link: UnixStream, postmaster: OwnedFd) -> io::Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        // For compiling patterns: not one for each that is asked for.
        .max_blocking_threads(2)
        .build()?;
    let uplink = Uplink::default();
    logging::install(uplink.clone());
    let ended = runtime.block_on(serve(link, postmaster, uplink));
    // Nothing that is still under way is of use to anybody.
    match ended {
        Ok(LinkEnd::Closed | LinkEnd::Stop) => std::process::exit(0),
        Ok(end) => Err(io::Error::other(end)),
        Err(error) => Err(error),
    }
}

async fn serve(link: UnixStream, postmaster: OwnedFd, uplink: Uplink) -> io::Result<LinkEnd> {
    let (mut downlink, up) = link::open(link)?;
    let settings = match downlink.start().await {
        Ok(start) => start,
        Err(end) => return Ok(end),
    };
    let config = Arc::clone(&settings.config);
    confinement::limit_memory(config.memory_limit);
    let (feed, fed) = mpsc::channel(FEED);
    let notify_registry = NotifyRegistry::default();
    let (settings, given) = watch::channel(settings);
    let (stop, stopped) = watch::channel(false);
    let mut parts = Parts::start(&config, fed, &uplink, &notify_registry, given, stopped)?;
    uplink.ready();

    let mut hub = pin!(parts.routing.run());
    let end = tokio::select! {
        end = downlink.run(feed, settings) => end,
        () = &mut hub => return Err(io::Error::other("the hub ended")),
        ended = uplink.clone().run(up) => return ended.map(|()| LinkEnd::Closed),
        () = ended(postmaster) => LinkEnd::Closed,
        _ = parts.tasks.join_next() => {
            return Err(io::Error::other("a part of the server ended unexpectedly"));
        }
    };
    if matches!(end, LinkEnd::Stop) {
        parts.hub.stop();
        stop.send_replace(true);
        let _ = timeout(FAREWELL, async { tokio::join!(hub, parts.clients) }).await;
    }
    Ok(end)
}

/// Waits for the end of the postmaster, which alone holds the other end of the pipe.
async fn ended(postmaster: OwnedFd) {
    let Ok(mut pipe) = pipe::Receiver::from_owned_fd(postmaster) else {
        return std::future::pending().await;
    };
    let _ = tokio::io::AsyncReadExt::read_u8(&mut pipe).await;
}

/// Where the connections are served: on the hub's own thread, so that an event is routed and
/// written without a switch between threads; or on some besides, if the settings ask for it.
struct Threads {
    handle: Handle,
    more: Option<Runtime>,
}

impl Threads {
    fn new(count: usize) -> Threads {
        let one = Threads { handle: Handle::current(), more: None };
        if count <= 1 {
            return one;
        }
        let more = Builder::new_multi_thread()
            .worker_threads(count - 1)
            .thread_name("tide network")
            .max_blocking_threads(2)
            .enable_all()
            .build();
        match more {
            Ok(more) => Threads { handle: more.handle().clone(), more: Some(more) },
            Err(error) => {
                log::warn!("one thread serves all clients, since more could not be had: {error}");
                one
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Waiting for threads is not for a task to do.
        if let Some(more) = self.more.take() {
            more.shutdown_background();
        }
    }
}

/// The parts that run beside each other.
struct Parts {
    hub: Hub,
    routing: hub::Stream,
    /// None of these ever ends by itself.
    tasks: JoinSet<()>,
    clients: tokio::task::JoinHandle<()>,
}

impl Parts {
    fn start(
        config: &Arc<Config>,
        feed: mpsc::Receiver<link::Feed>,
        uplink: &Uplink,
        notify_registry: &NotifyRegistry,
        settings: watch::Receiver<Settings>,
        stopped: watch::Receiver<bool>,
    ) -> io::Result<Parts> {
        let limits = limits(config);
        let (stats, catalog) = (Arc::<Stats>::default(), Catalog::new(config.publication.clone()));
        let (receipts, received) = hub::receipts::channel();
        let (sender, notified) = mpsc::channel(notifier::WAITING);
        let notifier = Notifier {
            registry: notify_registry.clone(),
            notified: sender,
            stats: Arc::clone(&stats),
        };
        let (hub, routing) = hub::new(
            config,
            hub::Parts {
                feed,
                notified,
                uplink: uplink.clone(),
                notify_registry: notify_registry.clone(),
                catalog: catalog.clone(),
                stats: Arc::clone(&stats),
                receipts,
            },
        );
        let (listener, reload) = (Arc::<Listener>::default(), Arc::<Notify>::default());
        let outboxes = Arc::<Notify>::default();
        let control = Arc::new(Control {
            hub: hub.clone(),
            catalog: catalog.clone(),
            notifier,
            stats: Arc::clone(&stats),
            listener: Arc::clone(&listener),
            reload: Arc::clone(&reload),
            outboxes: Arc::clone(&outboxes),
            connection_limit: limits.websockets as u64,
            uplink: uplink.clone(),
            obeys_faults: config.debug_faults,
        });
        let socket = control::bind(&config.control_socket)?;
        let cleaner = OutboxCleaner::new(outbox_cleaner::Parts {
            catalog: catalog.clone(),
            stats: Arc::clone(&stats),
            live: hub.watch_live(),
            received,
            changed: outboxes,
            retention: config.outbox_retention,
        });
        let mut tasks = JoinSet::new();
        if config.writers > 0 {
            tasks.spawn(MutationCleaner::new(catalog.clone(), config.mutation_retention).run());
        }
        let demand = WriterDemand::new(Arc::clone(&stats));
        tasks.spawn(writer_demand::employ(demand.clone(), uplink.clone()));
        let clients = Clients {
            config: Arc::clone(config),
            hub: hub.clone(),
            catalog,
            stats,
            demand,
            listener,
            reload,
            settings,
            limits,
        };
        tasks.spawn(control.run(socket));
        tasks.spawn(cleaner.run());
        tasks.spawn(notifier::employ(notify_registry.clone(), uplink.clone()));
        let clients = tokio::spawn(clients.serve(stopped));
        Ok(Parts { hub, routing, tasks, clients })
    }
}

fn limits(config: &Config) -> ConnectionLimits {
    let descriptors = descriptors::raise();
    let limits = ConnectionLimits::within(descriptors, config.max_connections);
    if limits.websockets < config.max_connections {
        log::warn!(
            "the limit of {descriptors} open files leaves room for {} clients, not for tide.max_connections = {}",
            limits.websockets,
            config.max_connections
        );
    }
    limits
}

/// What clients are served with.
struct Clients {
    config: Arc<Config>,
    hub: Hub,
    catalog: Catalog,
    stats: Arc<Stats>,
    demand: WriterDemand,
    listener: Arc<Listener>,
    reload: Arc<Notify>,
    settings: watch::Receiver<Settings>,
    limits: ConnectionLimits,
}

impl Clients {
    async fn serve(mut self, stopped: watch::Receiver<bool>) {
        let mut stop = stopped.clone();
        let ready = tokio::select! {
            ready = self.ready() => ready,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        // Before the first byte of a stranger is read, and before there is any other thread.
        let _ = self.stats.confinement.set(confinement::confine());
        let Some((verifier, tls, listeners)) = ready else {
            return std::future::pending().await;
        };
        let context = Arc::new(ServerContext::new(
            Arc::clone(&self.config),
            self.hub.clone(),
            self.catalog.clone(),
            verifier,
            Arc::clone(&self.stats),
            self.demand.clone(),
            self.limits,
        ));
        log::info!("listening on {}", self.listener.url().unwrap_or_default());
        let (tls, acceptors) = watch::channel(tls);
        let threads = Threads::new(self.config.network_threads);
        let serving = server::run(listeners, acceptors, Arc::clone(&context), stopped);
        tokio::select! {
            _ = threads.handle.spawn(serving) => {}
            () = self.follow(&context, tls) => {}
        }
    }

    /// Waits until clients can be let in; `None`: the settings ask for none, and `tide.check()`
    /// names the line to add.
    async fn ready(&self) -> Option<(Verifier, Option<TlsAcceptor>, Vec<TcpListener>)> {
        if self.config.port == 0 {
            return None;
        }
        let (verifier, tls) = (self.verifier().await, self.tls().await);
        Some((verifier, tls, self.listener.bind(&self.config).await))
    }

    /// Settings, secrets, keys and certificates are exchanged without cutting anybody off.
    async fn follow(&mut self, context: &ServerContext, tls: watch::Sender<Option<TlsAcceptor>>) {
        let mut is_complete = true;
        loop {
            tokio::select! {
                () = self.reload.notified() => {}
                changed = self.settings.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = tokio::time::sleep(RETRY * 10), if !is_complete => {}
            }
            self.config = Arc::clone(&self.settings.borrow_and_update().config);
            context.set_config(&self.config);
            let mut problems = Vec::new();
            match self.try_verifier().await {
                Ok(verifier) => context.set_verifier(verifier),
                Err(problem) => {
                    problems.push(format!("tokens are verified as they were before: {problem}"));
                }
            }
            // The secret is the database's, which may not be ready; files are looked at by the worker.
            is_complete = problems.is_empty();
            if self.config.ssl {
                match self.acceptor() {
                    Ok(acceptor) => {
                        tls.send_replace(Some(acceptor));
                    }
                    Err(problem) => {
                        problems.push(format!("the certificate stays as it was: {problem}"));
                    }
                }
            }
            self.listener.set_obstacle((!problems.is_empty()).then(|| problems.join("; ")));
        }
    }

    /// Waits until there is something to verify tokens by.
    async fn verifier(&self) -> Verifier {
        loop {
            match self.try_verifier().await {
                Ok(verifier) => {
                    self.listener.set_obstacle(None);
                    return verifier;
                }
                Err(problem) => {
                    let obstacle = format!("clients cannot be let in yet: {problem}");
                    self.listener.set_obstacle(Some(obstacle));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_verifier(&self) -> Result<Verifier, String> {
        let Credentials { jwt_secret, jwks, .. } = self.settings.borrow().credentials.clone();
        let secrets = match jwt_secret {
            Some(secret) => vec![secret],
            None => self.catalog.secrets().await.map_err(|error| error.to_string())?.jwt_secrets,
        };
        let jwks = jwks.as_ref().map(|file| content("tide.jwks_file", file)).transpose()?;
        Verifier::new(secrets, jwks, self.config.jwt_audience.clone())
            .map_err(|error| error.to_string())
    }

    /// Waits until the certificate can be used: never plain text where TLS was asked for.
    async fn tls(&self) -> Option<TlsAcceptor> {
        if !self.config.ssl {
            return None;
        }
        loop {
            match self.acceptor() {
                Ok(acceptor) => {
                    self.listener.set_obstacle(None);
                    return Some(acceptor);
                }
                Err(problem) => {
                    self.listener.set_obstacle(Some(format!("no client can connect: {problem}")));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn acceptor(&self) -> Result<TlsAcceptor, String> {
        let credentials = &self.settings.borrow().credentials;
        let missing = || "there are no files for TLS".to_owned();
        let certificate = credentials.certificate.as_ref().ok_or_else(missing)?;
        let key = credentials.key.as_ref().ok_or_else(missing)?;
        server::tls::acceptor(certificate, key).map_err(|error| error.to_string())
    }
}

fn content<'a>(setting: &str, file: &'a File) -> Result<&'a str, String> {
    let unreadable =
        |error: &String| format!("could not read {setting} \"{}\": {error}", file.path.display());
    file.content.as_deref().map_err(unreadable)
}
