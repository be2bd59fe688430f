//! Routing: events in, each subscriber's frames out. The hub owns who has joined what and who may
//! see what; it knows neither sockets nor Postgres.

mod alteration;
pub mod answers;
pub mod basis;
mod body_cache;
mod budget;
mod catch_up;
mod encoder;
mod entitlement;
mod failure;
mod group;
pub mod handle;
mod history;
mod joining;
mod lagging;
mod members;
mod messages;
mod notices;
mod plan;
mod policy_check;
mod policy_question;
pub mod queue;
pub mod receipts;
mod recent;
mod registry;
mod relief;
mod route;
mod row_batch;
mod slow_consumer;
pub mod snapshot_place;
mod stream;
pub mod subscription;
pub mod sync;
#[cfg(test)]
mod tests;
mod told;
mod verdict;
mod warning;

pub use handle::Hub;
pub use stream::{Parts, Stream, new};

/// A hub that runs in a thread of its own, as the tests' runtimes come and go.
#[cfg(test)]
pub(crate) fn start(config: tide_feed::config::Config, parts: Parts) -> Hub {
    let (sender, made) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (hub, stream) = new(&config, parts);
        sender.send(hub).expect("somebody waits for it");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(stream.run());
    });
    made.recv().expect("a hub")
}
