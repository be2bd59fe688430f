//! End-to-end tests: a real Postgres with the extension installed, real WAL, real sockets.
//!
//! `make test-e2e` builds, installs and runs them; `make test-e2e T=kill` some of them.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic where it stands")]
#![allow(unreachable_pub, dead_code, reason = "support/ is written like a library")]

mod abuse;
mod alterations;
mod answers;
mod bounds;
mod changes;
mod channels;
mod clients;
mod convergence;
mod crash_page;
mod documents;
mod enums;
mod failing_questions;
mod firewall;
mod first_minute;
mod floods;
mod historic_catalogue;
mod hostile;
mod identity;
mod kill;
mod leaks;
mod lifecycle;
mod limits;
mod lookups;
mod memory;
mod messages;
mod mutation_kill;
mod mutations;
mod notify;
mod oracle;
mod outbox;
mod outbox_failures;
mod policies;
mod positions;
mod privileges;
mod processes;
mod protocol;
mod records;
mod schema_events;
mod sessions;
mod settings_walk;
mod slot;
mod snapshots;
mod sql;
mod stored_policies;
mod support;
mod sync;
mod tls;
mod upgrade;
mod values;
mod writers;
