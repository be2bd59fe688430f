//! The worker's unix socket: helpers connect to it to be asked, SQL functions to ask.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::ser::Error as _;
use serde_json::value::RawValue;
use tide_feed::catalog::{Hello, Reply, TOO_LARGE, Which};
use tide_feed::control::{
    Connections, ControlRequest, Disconnected, Explanation, FailedMessages, Recent, State, Status,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use crate::catalog::{Catalog, Lane, frame};
use crate::hub::Hub;
use crate::link::Uplink;
use crate::notifier::Notifier;
use crate::policy::{Rule, Way};
use crate::server::bind::Listener;
use crate::stats::Stats;
use crate::{fault, server};

/// What the socket's conversations need.
#[derive(Debug)]
pub struct Control {
    pub hub: Hub,
    pub catalog: Catalog,
    pub notifier: Notifier,
    pub stats: Arc<Stats>,
    pub listener: Arc<Listener>,
    /// The secrets are to be read again.
    pub reload: Arc<Notify>,
    /// Another table is an outbox.
    pub outboxes: Arc<Notify>,
    /// How many websockets there can be.
    pub connection_limit: u64,
    pub uplink: Uplink,
    /// Whether it fails when it is asked to, for tests.
    pub obeys_faults: bool,
}

/// Binds the socket, for nobody but the server's own operating system user.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Control {
    /// Serves the socket for as long as the worker runs.
    pub async fn run(self: Arc<Self>, listener: UnixListener) {
        let mut logged_at = None;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(Arc::clone(&self).converse(stream));
                }
                Err(error) => server::pause_after(&error, &mut logged_at).await,
            }
        }
    }

    async fn converse(self: Arc<Self>, mut stream: UnixStream) {
        let ended = match frame::read(&mut stream).await {
            Ok(Hello::Control) => self.answer(&mut stream).await,
            Ok(helper) => match helper {
                Hello::CatalogWorker => self.catalog.serve_catalog_worker(stream).await,
                Hello::Reader => self.catalog.serve_reader(stream).await,
                Hello::Writer => self.catalog.serve_writer(stream).await,
                Hello::Notifier => self.notifier.clone().serve(stream).await,
                _ => self.catalog.serve_executor(stream).await,
            },
            Err(error) => Err(error),
        };
        match ended {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                log::warn!("a conversation on the control socket broke off: {error}");
            }
            _ => {}
        }
    }

    async fn answer(&self, stream: &mut UnixStream) -> io::Result<()> {
        loop {
            let request: ControlRequest = frame::read(stream).await?;
            let largest = request.largest_answer();
            let reply = match self.reply(request).await {
                Ok(answer) => Reply::Ok(answer),
                Err(error) => Reply::Error { sqlstate: "XX000".into(), message: error.to_string() },
            };
            let frame = match frame::encode(&reply, largest) {
                Ok(frame) => frame,
                Err(error) => {
                    let message = format!("the answer is too large: {error}");
                    frame::encode(&Reply::Error { sqlstate: TOO_LARGE.into(), message }, largest)?
                }
            };
            stream.write_all(&frame).await?;
        }
    }

    async fn reply(&self, request: ControlRequest) -> serde_json::Result<Box<RawValue>> {
        match request {
            ControlRequest::Recent { limit, tables } => {
                let events = self.hub.recent(limit as usize, tables).await;
                raw(&Recent { events })
            }
            ControlRequest::Status => raw(&self.status()),
            ControlRequest::Connections => {
                raw(&Connections { connections: self.hub.connections().await })
            }
            ControlRequest::Disconnect { id } => {
                raw(&Disconnected { found: self.hub.disconnect(id).await })
            }
            ControlRequest::Explain { role, table } => raw(&self.explain(&role, table).await),
            ControlRequest::Reload => {
                self.reload.notify_one();
                raw(&())
            }
            ControlRequest::Outboxes => {
                self.outboxes.notify_one();
                raw(&())
            }
            ControlRequest::Fault { fault: asked } => {
                if self.obeys_faults {
                    fault::fail(asked, &self.uplink);
                    return raw(&());
                }
                Err(serde_json::Error::custom("tide.debug_faults is off"))
            }
        }
    }

    async fn explain(&self, role: &str, table: u32) -> Option<Explanation> {
        let (tables, _) =
            self.catalog.tables(Lane::Slow, role, Which::Oids(vec![table])).await.ok()?;
        let Some(access) = tables.into_iter().find(|access| access.oid == table) else {
            let reason = "the table is not published, or the role may not read it";
            return Some(Explanation {
                way: "constant".into(),
                reason: reason.into(),
                condition: "false".into(),
                claims: Vec::new(),
                sees_old_rows: true,
            });
        };
        let rule = Rule::of(access.row_security.as_ref(), &access.columns);
        let way = match rule.way {
            Way::Constant(_) => "constant",
            Way::Formula => "worker",
            Way::Ask => "postgres",
        };
        Some(Explanation {
            way: way.into(),
            reason: rule.reason.to_string(),
            condition: rule.condition.to_string(),
            claims: rule.claims.iter().map(|claim| claim.sql.to_string()).collect(),
            sees_old_rows: !rule.is_blind_to_the_past(),
        })
    }

    fn status(&self) -> Status {
        let live = self.hub.live();
        let reason = self.hub.stalled();
        let (catalog_workers, executors) = self.catalog.helpers();
        Status {
            server_pid: std::process::id(),
            confined_by: self.stats.confined_by().into_iter().map(str::to_owned).collect(),
            state: match (&reason, live) {
                (Some(_), _) => State::Stalled,
                (None, Some(_)) => State::Live,
                (None, None) => State::Starting,
            },
            reason,
            epoch: live.map(|live| live.epoch.to_string()),
            decoded_lsn: self.stats.decoded.get(),
            confirmed_lsn: self.stats.confirmed.get(),
            history_events: self.stats.history_events.get(),
            history_bytes: self.stats.history_bytes.get(),
            connections: self.stats.connections.get(),
            channels: self.stats.channels.get(),
            forged_messages: self.stats.forged_messages_total.get(),
            failed_messages: (self.stats.failed_messages().iter())
                .map(|(table, count)| FailedMessages { table: *table, count: *count })
                .collect(),
            url: self.listener.url(),
            listener_error: self.listener.error(),
            connection_limit: self.connection_limit,
            catalog_worker: catalog_workers > 0,
            executors: u32::try_from(executors).unwrap_or(u32::MAX),
        }
    }
}

fn raw(answer: &impl Serialize) -> serde_json::Result<Box<RawValue>> {
    serde_json::value::to_raw_value(answer)
}
