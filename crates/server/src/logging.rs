//! What this process has to say goes into Postgres's log, by way of the worker.

use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};
use tide_feed::link::LONGEST_LINE;

use crate::link::Uplink;

static UPLINK: OnceLock<Logger> = OnceLock::new();

struct Logger(Uplink);

/// Sends what `log` gets from now on to the worker.
pub fn install(uplink: Uplink) {
    let logger = UPLINK.get_or_init(|| Logger(uplink));
    if log::set_logger(logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
        report_panics();
    }
}

/// A panic ends what it is in, not always the process, whose standard error is looked at when it
/// has ended.
fn report_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log::error!("tide-server has a bug: {panic}");
        usual(panic);
    }));
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other crates' chatter is not the administrator's concern.
        metadata.level() <= Level::Warn
            || metadata.level() == Level::Info && metadata.target().starts_with("tide_")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut text = record.args().to_string();
            text.truncate(text.floor_char_boundary(LONGEST_LINE));
            self.0.log(record.level() <= Level::Warn, text);
        }
    }

    fn flush(&self) {}
}
