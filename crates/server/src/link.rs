//! The server's end of the link to its worker.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tide_feed::config::{Config, Credentials};
use tide_feed::event::{Batch, CatalogChange, Epoch, Lsn, Relations};
use tide_feed::link::{
    self, Frame, FrameError, FrameReader, Kind, MOST_DOWN, PROTOCOL, Report, Word, read_address,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, watch};

/// Lines for the log that may wait for the worker; those on top are counted and dropped.
const LINES: usize = 1024;

/// Bytes of a batch of which only one waits for the hub at a time.
const LARGE: usize = 1 << 20;

/// What the worker tells the hub, in order.
#[derive(Debug)]
pub enum Feed {
    /// The slot exists and is read from `from` on; joins may be answered.
    Live {
        epoch: Epoch,
        from: Lsn,
        until: Lsn,
        next_xid: u32,
        cause: Option<String>,
    },
    Batch(Batch),
    Catalog(CatalogChange),
    /// So many messages in the WAL had our prefix, but not our seal.
    Forged(u64),
    /// Everything that committed before this address has been fed.
    Decoded(Lsn),
    /// The stream cannot go on for now (sent once per cause; `Live` follows when it can).
    Stalled {
        reason: String,
    },
    /// Bytes of WAL that the history may reach back from now on.
    Reach(u64),
    /// To be answered once everything before it has been dealt with.
    Ping(u64),
}

/// What the server works with, as far as the worker says.
#[derive(Clone, Debug)]
pub struct Settings {
    pub config: Arc<Config>,
    pub credentials: Credentials,
}

/// Why there is nothing more to come.
#[derive(Debug, thiserror::Error)]
pub enum LinkEnd {
    #[error("the worker closed the link")]
    Closed,
    #[error("the worker asks the server to end")]
    Stop,
    #[error("the link broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0} is not what this server understands")]
    Garbled(&'static str),
}

/// Reads what the worker says.
#[derive(Debug)]
pub struct Downlink {
    stream: OwnedReadHalf,
    reader: FrameReader,
    relations: Relations,
}

/// Both directions of the link. Within a runtime only.
pub fn open(stream: StdStream) -> io::Result<(Downlink, OwnedWriteHalf)> {
    stream.set_nonblocking(true)?;
    let (read, write) = UnixStream::from_std(stream)?.into_split();
    let (reader, relations) = (FrameReader::new(MOST_DOWN), Relations::default());
    Ok((Downlink { stream: read, reader, relations }, write))
}

impl Downlink {
    /// The settings, which come first.
    pub async fn start(&mut self) -> Result<Settings, LinkEnd> {
        match self.frame().await? {
            Frame { kind: Kind::Json, body } => match serde_json::from_slice(&body) {
                Ok(Word::Start { protocol: PROTOCOL, config, credentials }) => {
                    Ok(Settings { config: Arc::from(config), credentials: *credentials })
                }
                _ => Err(LinkEnd::Garbled("the first word")),
            },
            _ => Err(LinkEnd::Garbled("the first frame")),
        }
    }

    /// Passes on what comes, until nothing more does.
    pub async fn run(
        mut self,
        feed: mpsc::Sender<Feed>,
        settings: watch::Sender<Settings>,
    ) -> LinkEnd {
        loop {
            let next = match self.next(&settings).await {
                Ok(Some(next)) => next,
                Ok(None) => continue,
                Err(end) => return end,
            };
            // A large batch waits for all before it, lest as many of them wait as of small ones.
            let is_large = matches!(&next, Feed::Batch(batch) if batch.size() > LARGE);
            let places = if is_large { feed.max_capacity() } else { 1 };
            let Ok(mut places) = feed.reserve_many(places).await else { return LinkEnd::Stop };
            if let Some(place) = places.next() {
                place.send(next);
            }
        }
    }

    async fn next(&mut self, settings: &watch::Sender<Settings>) -> Result<Option<Feed>, LinkEnd> {
        let Frame { kind, body } = self.frame().await?;
        let word = match kind {
            Kind::Batch => {
                let batch = self.relations.read(body).ok_or(LinkEnd::Garbled("a batch"))?;
                return Ok(Some(Feed::Batch(batch)));
            }
            Kind::Decoded => {
                let lsn = read_address(&body).ok_or(LinkEnd::Garbled("an address"))?;
                return Ok(Some(Feed::Decoded(lsn)));
            }
            Kind::Confirm => return Err(LinkEnd::Garbled("a confirmation")),
            Kind::Json => serde_json::from_slice(&body).map_err(|_| LinkEnd::Garbled("a word"))?,
        };
        Ok(Some(match word {
            Word::Start { .. } => return Err(LinkEnd::Garbled("a second beginning")),
            Word::Live { epoch, from, until, next_xid, cause } => {
                Feed::Live { epoch, from, until, next_xid, cause }
            }
            Word::Catalog(change) => Feed::Catalog(change),
            Word::Forged(count) => Feed::Forged(count),
            Word::Stalled { reason } => Feed::Stalled { reason },
            Word::Ping(number) => Feed::Ping(number),
            Word::Credentials(new) => {
                settings.send_modify(|settings| settings.credentials = *new);
                return Ok(None);
            }
            Word::Settings(new) => {
                let reach = new.history_reach;
                settings.send_modify(|settings| settings.config = Arc::from(new));
                Feed::Reach(reach)
            }
            Word::Stop => return Err(LinkEnd::Stop),
        }))
    }

    async fn frame(&mut self) -> Result<Frame, LinkEnd> {
        loop {
            if let Some(frame) = self.reader.cut()? {
                return Ok(frame);
            }
            if self.stream.read_buf(self.reader.buffer()).await? == 0 {
                return Err(LinkEnd::Closed);
            }
        }
    }
}

/// Tells the worker something; never waits. A cheap clone.
#[derive(Clone, Debug, Default)]
pub struct Uplink(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Notify,
    /// Nothing is confirmed any more, for tests.
    is_clinging: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The newest, which stands for all before it.
    confirm: Option<Lsn>,
    alive: Option<u64>,
    is_ready: bool,
    wants_notifier: Option<bool>,
    wants_reader: Option<bool>,
    wants_writers: Option<bool>,
    lines: VecDeque<(bool, String)>,
    dropped_lines: u64,
}

impl Uplink {
    /// The history no longer needs anything before `lsn`: the slot may move up to it.
    pub fn confirm(&self, lsn: Lsn) {
        if !self.0.is_clinging.load(Ordering::Relaxed) {
            self.add(|waiting| waiting.confirm = Some(lsn));
        }
    }

    /// Confirms nothing from now on.
    pub fn cling(&self) {
        self.0.is_clinging.store(true, Ordering::Relaxed);
    }

    /// The helpers can connect.
    pub fn ready(&self) {
        self.add(|waiting| waiting.is_ready = true);
    }

    /// Whether some client wants to hear notifications.
    pub fn wants_notifier(&self, wants: bool) {
        self.add(|waiting| waiting.wants_notifier = Some(wants));
    }

    /// Whether some client wants the rows that there are.
    pub fn wants_reader(&self, wants: bool) {
        self.add(|waiting| waiting.wants_reader = Some(wants));
    }

    /// Whether some client wants something written.
    pub fn wants_writers(&self, wants: bool) {
        self.add(|waiting| waiting.wants_writers = Some(wants));
    }

    /// Answers a ping, and with it those before.
    pub fn alive(&self, number: u64) {
        self.add(|waiting| waiting.alive = Some(number));
    }

    /// A line for Postgres's log.
    pub fn log(&self, warning: bool, text: String) {
        self.add(|waiting| {
            if waiting.lines.len() < LINES {
                waiting.lines.push_back((warning, text));
            } else {
                waiting.dropped_lines += 1;
            }
        });
    }

    /// Writes what there is to say, for as long as the link is open.
    pub async fn run(self, mut stream: OwnedWriteHalf) -> io::Result<()> {
        loop {
            let frames = self.take();
            if frames.is_empty() {
                self.0.wake.notified().await;
            }
            stream.write_all(&frames).await?;
        }
    }

    /// What there is to say, as frames.
    fn take(&self) -> Vec<u8> {
        let Waiting {
            confirm,
            alive,
            is_ready,
            wants_notifier,
            wants_reader,
            wants_writers,
            lines,
            dropped_lines,
        } = std::mem::take(&mut *self.waiting());
        let mut reports = Vec::new();
        if is_ready {
            reports.push(Report::Ready);
        }
        reports.extend(wants_notifier.map(Report::WantsNotifier));
        reports.extend(wants_reader.map(Report::WantsReader));
        reports.extend(wants_writers.map(Report::WantsWriters));
        reports.extend(lines.into_iter().map(|(warning, text)| Report::Log { warning, text }));
        if dropped_lines > 0 {
            let text = format!("{dropped_lines} log lines were dropped");
            reports.push(Report::Log { warning: true, text });
        }
        reports.extend(alive.map(Report::Alive));
        let mut frames: Vec<u8> = reports.iter().flat_map(link::json).collect();
        if let Some(lsn) = confirm {
            frames.extend_from_slice(&link::address(Kind::Confirm, lsn));
        }
        frames
    }

    fn add(&self, add: impl FnOnce(&mut Waiting)) {
        add(&mut self.waiting());
        self.0.wake.notify_one();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
