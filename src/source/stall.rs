//! What keeps the stream from going on, said so that it can be mended.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::failure::Failure;
use crate::source::slot::PLUGIN;

const FIRST_DELAY: Duration = Duration::from_millis(500);
/// The pause after which it is taken for more than a hitch.
const LASTING: Duration = Duration::from_secs(4);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// The setting that allows output plugins to be used, where this Postgres has it.
const ALLOW_LIST: &CStr = c"output_plugin_libraries";

/// When to try again, and what was said about it already.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    reason: Option<String>,
    delay: Option<Duration>,
    due: Option<Instant>,
}

impl Stall {
    /// How long to wait yet before trying again.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        let remaining = self.due?.saturating_duration_since(Instant::now());
        (!remaining.is_zero()).then_some(remaining)
    }

    /// It did not work; says whether that is news.
    pub(crate) fn met(&mut self, reason: &str) -> bool {
        let delay = self.delay.map_or(FIRST_DELAY, |delay| (delay * 2).min(LONGEST_DELAY));
        self.delay = Some(delay);
        self.due = Some(Instant::now() + delay);
        if self.reason.as_deref() == Some(reason) {
            return false;
        }
        self.reason = Some(reason.to_owned());
        true
    }

    /// It has been tried a few times, for some seconds.
    pub(crate) fn is_lasting(&self) -> bool {
        self.delay.is_some_and(|delay| delay >= LASTING)
    }

    /// Tries again at once.
    pub(crate) fn retry_now(&mut self) {
        self.due = None;
        self.delay = None;
    }

    /// It works again; says whether it did not.
    pub(crate) fn overcome(&mut self) -> bool {
        let was_met = self.reason.is_some();
        *self = Stall::default();
        was_met
    }
}

/// `None`: this server is set up for decoding, as far as can be seen beforehand.
pub(crate) fn missing_setting() -> Option<String> {
    // SAFETY: plain variables of this process.
    let (level, slots) = unsafe { (pg_sys::wal_level, pg_sys::max_replication_slots) };
    if level < pg_sys::WalLevel::WAL_LEVEL_LOGICAL as i32 {
        return Some(
            "wal_level is not logical. Set it and restart the server: ALTER SYSTEM SET wal_level = logical"
                .to_owned(),
        );
    }
    if slots == 0 {
        return Some(
            "max_replication_slots is 0. Raise it and restart the server: ALTER SYSTEM SET max_replication_slots = 10"
                .to_owned(),
        );
    }
    None
}

/// An error in opening or creating the slot, with what mends it. Such an error is about settings
/// and slots: there is nothing of a row in it.
pub(crate) fn explain(failure: &Failure) -> String {
    let message = &failure.message;
    if let Some(line) = allow_list_line()
        && message.contains("output plugin")
    {
        return format!("{message}. Allow it: {line}; SELECT pg_reload_conf()");
    }
    if &*failure.sqlstate == "53400" {
        return format!(
            "{message}. Drop a slot that is not needed, or raise max_replication_slots and restart the server"
        );
    }
    message.clone()
}

/// The line that allows this library, if the server has an allow-list without it.
fn allow_list_line() -> Option<String> {
    // SAFETY: the value is copied before anything can change it.
    let value = unsafe {
        let value = pg_sys::GetConfigOption(ALLOW_LIST.as_ptr(), true, false);
        if value.is_null() {
            return None;
        }
        CStr::from_ptr(value).to_string_lossy().into_owned()
    };
    let plugin = PLUGIN.to_string_lossy();
    let mut libraries: Vec<&str> = value.split(',').map(str::trim).collect();
    if libraries.contains(&&*plugin) {
        return None;
    }
    libraries.retain(|library| !library.is_empty());
    libraries.push(&plugin);
    Some(format!("ALTER SYSTEM SET output_plugin_libraries = {}", libraries.join(", ")))
}
