//! A helper's lines for Postgres's log. Whoever asks it may ask what gives a line, and do so without
//! end.

use std::cell::RefCell;
use std::time::Instant;

use tide_feed::link::LineBudget;

thread_local! {
    static LINES: RefCell<LineBudget> = RefCell::new(LineBudget::new(Instant::now()));
}

/// Writes the line, unless there were too many lately.
pub(crate) fn say(text: &str) {
    let now = Instant::now();
    let (dropped, is_admitted) =
        LINES.with_borrow_mut(|lines| (lines.take_dropped(now), lines.admits(now)));
    if let Some(count) = dropped {
        pgrx::log!("pg_tide: {count} lines for the log were dropped");
    }
    if is_admitted {
        pgrx::log!("pg_tide: {text}");
    }
}
