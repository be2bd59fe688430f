//! Who may see which rows: what a table's policies come to for a role, and what follows for a
//! change of a row.
//!
//! A [`Rule`] is made of a table's policies once; it decides by itself where it can be sure to
//! decide as Postgres does, and says so where Postgres has to be asked.

mod claims;
mod compile;
mod formula;
mod images;
mod rule;
mod sight;
mod syntax;
mod token;

pub use compile::Claim;
pub use formula::Value;
pub use images::Images;
pub use rule::{Rule, Way};
pub use sight::{Seen, Sight};
