//! A running server and its clients.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tide_feed::catalog::{ColumnAccess, Request, TableAccess, Which};
use tide_feed::config::Config;
use tide_feed::event::{
    BatchBuilder, Change, Column, Epoch, Event, EventKind, Kind, Lsn, Operation, Relation,
};
use tide_feed::token::sign;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::auth::Verifier;
use crate::catalog::{Catalog, frame};
use crate::descriptors::ConnectionLimits;
use crate::hub;
use crate::link::{Feed, Uplink};
use crate::notify::NotifyRegistry;
use crate::server::{self, ServerContext};
use crate::stats::Stats;
use crate::writer_demand::WriterDemand;

pub(super) const TABLE: u32 = 16_400;
pub(super) const SECRET: &str = "a secret for tests, long enough for HS256";

/// Nothing in these tests takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct World {
    pub(super) address: SocketAddr,
    pub(super) context: Arc<ServerContext>,
    /// What the catalog worker says that the role `web` may see.
    pub(super) granted: Arc<Mutex<Vec<TableAccess>>>,
    feed: mpsc::Sender<Feed>,
    /// Of the WAL, as the catalog worker says.
    end: Arc<AtomicU64>,
    relation: Arc<Relation>,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

pub(super) fn config() -> Config {
    Config { anon_role: Some("web".into()), ..Config::default() }
}

impl World {
    /// A server whose stream is live.
    pub(super) async fn new(config: Config) -> World {
        let world = World::stalled(config, None).await;
        world.go_live().await;
        world
    }

    /// A server that has no stream yet.
    pub(super) async fn stalled(config: Config, tls: Option<TlsAcceptor>) -> World {
        let limits = ConnectionLimits::within(usize::MAX, config.max_connections);
        World::with_limits(config, tls, limits).await
    }

    /// The same, with room for so many sockets.
    pub(super) async fn with_limits(
        config: Config,
        tls: Option<TlsAcceptor>,
        limits: ConnectionLimits,
    ) -> World {
        let config = Arc::new(config);
        let catalog = Catalog::new("tide".into());
        let granted = Arc::new(Mutex::new(vec![table(TABLE, "t")]));
        let end = Arc::new(AtomicU64::new(100));
        helpers(&catalog, &granted, &end);
        let (feed, fed) = mpsc::channel(4096);
        let stats = Arc::<Stats>::default();
        let parts = hub::Parts {
            feed: fed,
            notified: mpsc::channel(1).1,
            uplink: Uplink::default(),
            notify_registry: NotifyRegistry::default(),
            catalog: catalog.clone(),
            stats: Arc::clone(&stats),
            receipts: hub::receipts::channel().0,
        };
        let hub = hub::start((*config).clone(), parts);
        let verifier = Verifier::new(vec![SECRET.into()], None, None).unwrap();
        let demand = WriterDemand::new(Arc::clone(&stats));
        let context = ServerContext::new(config, hub, catalog, verifier, stats, demand, limits);
        let context = Arc::new(context);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let running =
            server::run(vec![listener], watch::channel(tls).1, Arc::clone(&context), stopped);
        let running = tokio::spawn(running);
        World { address, context, granted, feed, end, relation: relation(), stop, running }
    }

    pub(super) async fn go_live(&self) {
        let epoch = Epoch { generation: 7, timeline: 1 };
        self.feed
            .try_send(Feed::Live {
                epoch,
                from: Lsn(100),
                until: Lsn(100),
                next_xid: 1,
                cause: None,
            })
            .unwrap();
        until(|| self.context.hub.live().is_some()).await;
    }

    /// Stops the server and waits for its tasks.
    pub(super) async fn stop(self) {
        self.stop.send(true).unwrap();
        timeout(PATIENCE, self.running).await.unwrap().unwrap();
    }

    /// One transaction with one inserted row.
    pub(super) fn insert(&self, commit: u64, id: i64, note: &str) {
        let mut batch = BatchBuilder::default();
        let start = batch.begin_row();
        batch.push_text(&id.to_string());
        batch.push_text(&serde_json::to_string(note).expect("a text"));
        let row = batch.end_row(&start).expect("a small row");
        let relation = Arc::clone(&self.relation);
        let change = Change { relation, operation: Operation::Insert, old: None, new: Some(row) };
        batch.events.push(Event::alone(commit, EventKind::Change(change)));
        self.end.store(commit + 8, Ordering::Relaxed);
        self.feed.try_send(Feed::Batch(batch.finish())).unwrap();
    }

    /// Everything that committed before has been fed.
    pub(super) fn decoded(&self, lsn: u64) {
        self.feed.try_send(Feed::Decoded(Lsn(lsn))).unwrap();
    }

    /// A websocket with `vsn` 2 and no token.
    pub(super) async fn client(&self) -> Client<TcpStream> {
        self.client_at("/socket/websocket?vsn=2.0.0&apikey=anon").await.unwrap()
    }

    pub(super) async fn client_at(&self, path: &str) -> Result<Client<TcpStream>, SocketError> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Client::over(stream, &format!("ws://{}{path}", self.address)).await
    }

    /// The status and body that a path answers.
    pub(super) async fn get(&self, path: &str) -> (u16, String) {
        let host = format!("Host: localhost:{}\r\n", self.address.port());
        let request = format!("GET {path} HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
        let answer = self.http(&request).await;
        (answer.status(), answer.body().to_owned())
    }

    /// Sends a request as it is written, and reads until the server closes.
    pub(super) async fn http(&self, request: &str) -> HttpAnswer {
        self.http_bytes(request.as_bytes()).await
    }

    pub(super) async fn http_bytes(&self, request: &[u8]) -> HttpAnswer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may refuse it before it has read all.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        HttpAnswer(String::from_utf8(answer).unwrap())
    }
}

/// An HTTP answer as text.
#[derive(Debug)]
pub(super) struct HttpAnswer(pub(super) String);

impl HttpAnswer {
    pub(super) fn status(&self) -> u16 {
        self.0.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
    }

    pub(super) fn body(&self) -> &str {
        self.0.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }
}

/// A websocket client that speaks JSON.
pub(super) struct Client<S> {
    pub(super) socket: WebSocketStream<S>,
}

impl<S> Client<S>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    pub(super) async fn over(stream: S, uri: &str) -> Result<Client<S>, SocketError> {
        let opening = timeout(PATIENCE, client_async(uri, stream)).await.unwrap();
        opening.map(|(socket, _)| Client { socket })
    }

    pub(super) async fn send(&mut self, frame: Value) {
        self.send_text(frame.to_string()).await;
    }

    pub(super) async fn send_text(&mut self, text: String) {
        self.send_message(Message::Text(text.into())).await;
    }

    pub(super) async fn send_message(&mut self, message: Message) {
        // The server may have hung up; what it said last is what a test looks at.
        let _ = self.socket.send(message).await;
    }

    /// Joins with a configuration, as the first and sixth ref.
    pub(super) async fn join(&mut self, reference: &str, topic: &str, config: Value) {
        self.send(json!([reference, reference, topic, "phx_join", {"config": config}])).await;
    }

    /// The next frame.
    pub(super) async fn next(&mut self) -> Value {
        match self.message().await {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).unwrap(),
            other => panic!("no frame but {other:?}"),
        }
    }

    /// The code that the server closes with, whatever it says before.
    pub(super) async fn closed(&mut self) -> u16 {
        loop {
            match self.message().await {
                Some(Ok(Message::Close(Some(close)))) => return close.code.into(),
                Some(Ok(_)) => {}
                other => panic!("not closed but {other:?}"),
            }
        }
    }

    pub(super) async fn message(&mut self) -> Option<Result<Message, SocketError>> {
        timeout(PATIENCE, self.socket.next()).await.expect("the server says something")
    }

    /// Heartbeat and its answer: everything before it has been looked at.
    pub(super) async fn settle(&mut self) {
        self.send(json!([null, "beat", "phoenix", "heartbeat", {}])).await;
        let answer =
            json!([null, "beat", "phoenix", "phx_reply", {"status": "ok", "response": {}}]);
        assert_eq!(self.next().await, answer);
    }
}

/// A token of the secret's.
pub(super) fn token(role: &str, lifetime: Duration) -> String {
    token_with(role, json!({}), lifetime)
}

/// The same with further claims.
pub(super) fn token_with(role: &str, claims: Value, lifetime: Duration) -> String {
    let claims = claims.as_object().cloned().unwrap_or_default();
    sign(SECRET, role, claims, lifetime, SystemTime::now())
}

/// Waits for a condition.
pub(super) async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("the condition comes true");
}

pub(super) fn table(oid: u32, name: &str) -> TableAccess {
    let column = |attnum, name: &str, type_name: &str, type_sql: &str, kind| ColumnAccess {
        attnum,
        name: name.into(),
        type_name: type_name.into(),
        type_sql: type_sql.into(),
        kind,
        readable: true,
        primary_key: attnum == 1,
        labels: Vec::new(),
    };
    TableAccess {
        oid,
        schema: "public".into(),
        table: name.into(),
        row_security: None,
        columns: vec![
            column(1, "id", "int8", "bigint", Kind::Int),
            column(2, "note", "text", "text", Kind::Text),
        ],
    }
}

fn relation() -> Arc<Relation> {
    let column =
        |attnum, name, type_name, kind| Column::new(attnum, name, type_name, kind, attnum == 1);
    Arc::new(Relation {
        oid: TABLE,
        schema: "public".into(),
        name: "t".into(),
        columns: [column(1, "id", "int8", Kind::Int), column(2, "note", "text", Kind::Text)].into(),
        identity_full: false,
    })
}

/// A catalog worker and an executor that know one role and a few tables.
fn helpers(catalog: &Catalog, granted: &Arc<Mutex<Vec<TableAccess>>>, end: &Arc<AtomicU64>) {
    let (catalog_worker, mut at_catalog_worker) = UnixStream::pair().unwrap();
    let (executor, mut at_executor) = UnixStream::pair().unwrap();
    let (one, other) = (catalog.clone(), catalog.clone());
    tokio::spawn(async move { one.serve_catalog_worker(catalog_worker).await });
    tokio::spawn(async move { other.serve_executor(executor).await });
    let (granted, end) = (Arc::clone(granted), Arc::clone(end));
    tokio::spawn(async move {
        while let Ok(request) = frame::read::<Request>(&mut at_catalog_worker).await {
            let answer = answer(&request, &granted, end.load(Ordering::Relaxed));
            if frame::write(&mut at_catalog_worker, &answer).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok(request) = frame::read::<Request>(&mut at_executor).await {
            let answer = execute(&request);
            if frame::write(&mut at_executor, &answer).await.is_err() {
                return;
            }
        }
    });
}

fn answer(request: &Request, granted: &Mutex<Vec<TableAccess>>, end: u64) -> Value {
    match request {
        Request::Role { role, .. } => json!({"ok": match role.as_str() {
            "web" | "other" => "usable",
            "boss" => "privileged",
            _ => "refused",
        }}),
        Request::Tables { role, which, .. } => {
            let mut tables = granted.lock().unwrap().clone();
            tables.retain(|table| match which {
                _ if role != "web" => false,
                Which::Named(names) => names
                    .iter()
                    .any(|name| name.schema == table.schema && name.table == table.table),
                Which::Oids(oids) => oids.contains(&table.oid),
            });
            json!({"ok": {"lsn": end, "running": [], "change": 0, "tables": tables}})
        }
        // It may be that what is granted has changed.
        Request::Changes { .. } => {
            json!({"ok": {"lsn": end, "running": [], "change": 0, "tables": null}})
        }
        Request::Check => json!({"ok": [{"item": "preload", "ok": true}]}),
        other => json!({"error": {"sqlstate": "0A000", "message": format!("{other:?}")}}),
    }
}

fn execute(request: &Request) -> Value {
    match request {
        Request::Cast { type_sql, values, .. } => cast(type_sql, values),
        Request::Channel { claims, topic, extensions, .. } => {
            let grants: Vec<Value> =
                extensions.iter().map(|extension| grant(claims, topic, extension)).collect();
            json!({"ok": grants})
        }
        _ => json!({"error": {"sqlstate": "0A000", "message": "not for an executor"}}),
    }
}

/// The policies of `tide.channel`: what the topic's name says, but nothing for those who are
/// banned.
fn grant(claims: &str, topic: &str, extension: &str) -> Value {
    let is_banned = claims.contains(r#""banned":true"#);
    let (read, write) = match topic.split('-').next().unwrap_or_default() {
        "room" => (true, true),
        "news" => (true, false),
        "presence" => (extension == "presence", extension == "presence"),
        _ => (false, false),
    };
    json!({"read": read && !is_banned, "write": write && !is_banned})
}

fn cast(type_sql: &str, values: &[String]) -> Value {
    let wrong = |value: &&String| type_sql == "bigint" && value.parse::<i64>().is_err();
    if values.iter().find(wrong).is_some() {
        let message = "invalid input syntax for type bigint";
        return json!({"error": {"sqlstate": "22P02", "message": message}});
    }
    let as_json = |value: &String| match type_sql {
        "bigint" => value.clone(),
        _ => Value::from(value.as_str()).to_string(),
    };
    json!({"ok": {"values": values.iter().map(as_json).collect::<Vec<_>>()}})
}
