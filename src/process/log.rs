//! The network threads' way into the server's log, which only the main thread can write to: a
//! bounded channel behind the `log` crate.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Lines that may wait for the main thread. What comes on top is counted and dropped.
const CAPACITY: usize = 1024;
/// Bytes of one line; a message is never worth more.
const LONGEST: usize = 4096;

static CHANNEL: OnceLock<Channel> = OnceLock::new();

struct Channel {
    lines: Sender<Line>,
    waiting: Receiver<Line>,
    dropped: AtomicU64,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Line {
    warning: bool,
    text: String,
}

/// Takes what `log` gets in this process from now on; `wake` makes the main thread drain it.
pub(crate) fn install(wake: impl Fn() + Send + Sync + 'static) {
    let (lines, waiting) = bounded(CAPACITY);
    let wake = Box::new(wake);
    let channel =
        CHANNEL.get_or_init(|| Channel { lines, waiting, dropped: AtomicU64::new(0), wake });
    if log::set_logger(channel).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Writes the waiting lines. Main thread only.
pub(crate) fn drain() {
    let Some(channel) = CHANNEL.get() else { return };
    // No more than were there at first, however fast others add.
    for line in channel.waiting.try_iter().take(CAPACITY) {
        if line.warning {
            pgrx::warning!("{}", line.text);
        } else {
            pgrx::log!("{}", line.text);
        }
    }
    let dropped = channel.dropped.swap(0, Ordering::Relaxed);
    if dropped > 0 {
        pgrx::warning!("pg_tide: {dropped} log lines were dropped");
    }
}

impl Log for Channel {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' chatter is not the administrator's concern.
        metadata.level() <= Level::Warn
            || metadata.level() == Level::Info && metadata.target().starts_with("pg_tide")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut text = String::from("pg_tide: ");
        let _ = write!(text, "{}", record.args());
        text.truncate(text.floor_char_boundary(LONGEST));
        let line = Line { warning: record.level() <= Level::Warn, text };
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        (self.wake)();
    }

    fn flush(&self) {}
}
