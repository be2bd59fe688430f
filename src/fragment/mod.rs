//! JSON fragments exactly as `to_jsonb` prints them, from values as the WAL has them.
//!
//! Pure, so that every corner can be tested without a server; `pg::value` decides which of these
//! prints a column.
#![forbid(unsafe_code)]

mod datetime;
mod normal;
mod number;

pub use datetime::{date, timestamp};
pub use normal::{Unprintable, normalise};
pub use number::{number, number_length, numeric_length};
