//! What the worker has done so far, in numbers: written by the hub and the sessions, read by
//! `GET /metrics` and `tide.status()`.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::confinement::Confinement;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn inc(&self) {
        self.add(1);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn dec(&self) {
        self.sub(1);
    }

    pub fn sub(&self, n: u64) {
        // Never below nothing: a gauge that wrapped would read as 2^64.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |value| {
            Some(value.saturating_sub(n))
        });
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a connection was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedConnection {
    /// `tide.max_connections` are there already.
    Limit,
    Origin,
    /// No token, or one that is not valid.
    Unauthorized,
    /// The token's role may not be used.
    Role,
    /// The TLS or HTTP handshake failed or took too long.
    Handshake,
    /// The database could not answer.
    Unavailable,
    /// Its part of `tide.memory_limit` is used up.
    Memory,
}

impl RefusedConnection {
    const ALL: [(RefusedConnection, &'static str); 7] = [
        (RefusedConnection::Limit, "limit"),
        (RefusedConnection::Origin, "origin"),
        (RefusedConnection::Unauthorized, "unauthorized"),
        (RefusedConnection::Role, "role"),
        (RefusedConnection::Handshake, "handshake"),
        (RefusedConnection::Unavailable, "unavailable"),
        (RefusedConnection::Memory, "memory"),
    ];
}

/// Why a join was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedJoin {
    /// `tide.join_rate`.
    Rate,
    /// `tide.max_channels_per_connection`.
    Channels,
    /// `tide.max_bindings_per_channel`.
    Bindings,
    /// More or larger filters than one join, one connection or all may have.
    Filters,
    Token,
    Role,
    /// The topic's name, or what it was asked for.
    Request,
    /// A table that is missing or that the role may not read.
    Table,
    /// The policies of `tide.channel`.
    Policy,
    Unavailable,
    /// Their part of `tide.memory_limit` is used up.
    Memory,
}

impl RefusedJoin {
    const ALL: [(RefusedJoin, &'static str); 11] = [
        (RefusedJoin::Rate, "rate"),
        (RefusedJoin::Channels, "channels"),
        (RefusedJoin::Bindings, "bindings"),
        (RefusedJoin::Filters, "filters"),
        (RefusedJoin::Token, "token"),
        (RefusedJoin::Role, "role"),
        (RefusedJoin::Request, "request"),
        (RefusedJoin::Table, "table"),
        (RefusedJoin::Policy, "policy"),
        (RefusedJoin::Unavailable, "unavailable"),
        (RefusedJoin::Memory, "memory"),
    ];
}

/// Why a client was not let say something on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedPush {
    /// `tide.broadcast_rate`, `tide.presence_rate` or `tide.http_broadcast_rate`.
    Rate,
    /// `tide.max_broadcast_size`, `tide.max_presence_size`.
    Size,
    /// `tide.max_presence_entries`
    Full,
    /// The policies of `tide.channel`, or `tide.public_channels_send`.
    Policy,
    /// What was asked for, or of which topic.
    Request,
    /// Its part of `tide.memory_limit` is used up.
    Memory,
}

impl RefusedPush {
    const ALL: [(RefusedPush, &'static str); 6] = [
        (RefusedPush::Rate, "rate"),
        (RefusedPush::Size, "size"),
        (RefusedPush::Full, "full"),
        (RefusedPush::Policy, "policy"),
        (RefusedPush::Request, "request"),
        (RefusedPush::Memory, "memory"),
    ];
}

/// How a mutation was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MutationOutcome {
    Confirmed,
    Rejected,
    /// It has no outcome.
    Error,
}

impl MutationOutcome {
    const ALL: [(MutationOutcome, &'static str); 3] = [
        (MutationOutcome::Confirmed, "confirmed"),
        (MutationOutcome::Rejected, "rejected"),
        (MutationOutcome::Error, "error"),
    ];
}

/// Shared by the hub, the sessions and the listener.
#[derive(Debug, Default)]
pub struct Stats {
    /// How this process confined itself before it let the first client in.
    pub confinement: OnceLock<Confinement>,
    /// Websocket connections. Kept by the sessions, as are the next four.
    pub connections: Gauge,
    pub connections_total: Counter,
    /// Joined channels.
    pub channels: Gauge,
    pub joins_total: Counter,
    pub http_requests_total: Counter,
    /// Clients' broadcasts that were accepted.
    pub broadcasts_total: Counter,
    /// Mutations that wait to be done, or are under way.
    pub mutations_pending: Gauge,
    /// Frames of clients that could not be understood.
    pub malformed_frames_total: Counter,
    /// Frames and bytes written to sockets.
    pub frames_sent_total: Counter,
    pub bytes_sent_total: Counter,

    /// Row changes and the like that came from the decoder. Kept by the hub, as is the rest.
    pub events_total: Counter,
    /// Changes that could not be turned into events.
    pub failed_events_total: Counter,
    /// Messages in the WAL that had our prefix, but not our seal.
    pub forged_messages_total: Counter,
    /// Messages in outboxes for no channel, or for one that is pg_tide's own.
    pub refused_messages_total: Counter,
    /// Rows that outboxes, by oid, keep because they could not be published. Counted by the outbox
    /// cleaner.
    failed_messages: Mutex<BTreeMap<u32, u64>>,
    /// Clients cut off because they read too slowly.
    pub slow_clients_total: Counter,
    /// Broadcasts, presence and notifications that a client did not get: its queue was full.
    pub dropped_casts_total: Counter,
    /// Questions about policies that executors were asked, and changes that were not delivered to
    /// somebody because the policy failed or took too long.
    pub policy_questions_total: Counter,
    pub policy_failures_total: Counter,
    /// Times that a channel was sent on because its policies could not keep up with the stream.
    pub policy_skips_total: Counter,
    /// Joins with a position that was still at hand.
    pub resumes_total: Counter,
    /// Joins with a position that was not.
    pub resyncs_total: Counter,
    /// Commit address of the newest event.
    pub position: Gauge,
    /// Address up to which everything has been decoded.
    pub decoded: Gauge,
    /// Address up to which there was WAL when the stream was last opened.
    pub until: Gauge,
    /// Address up to which the slot may move.
    pub confirmed: Gauge,
    /// 1 while the stream is live.
    pub live: Gauge,
    /// Bytes of the history that is kept for those who resume.
    pub history_bytes: Gauge,
    pub history_events: Gauge,
    /// Channels that have not been told yet of all the rows that they begin with.
    pub snapshots: Gauge,
    /// Rows that channels that begin with rows were told of.
    pub snapshot_rows_total: Counter,

    refused_connections: [Counter; RefusedConnection::ALL.len()],
    refused_joins: [Counter; RefusedJoin::ALL.len()],
    refused_broadcasts: [Counter; RefusedPush::ALL.len()],
    refused_presence: [Counter; RefusedPush::ALL.len()],
    mutations: [Counter; MutationOutcome::ALL.len()],
}

impl Stats {
    /// What keeps this process to itself; nothing yet before it listens.
    pub fn confined_by(&self) -> Vec<&'static str> {
        self.confinement.get().map_or_else(Vec::new, |confinement| confinement.names())
    }

    /// Bytes of the WAL that there was when the stream was last opened, and that it has not come to yet.
    pub fn behind(&self) -> u64 {
        self.until.get().saturating_sub(self.decoded.get().max(self.position.get()))
    }

    pub fn refused_connection(&self, reason: RefusedConnection) -> &Counter {
        &self.refused_connections[reason as usize]
    }

    pub fn refused_join(&self, reason: RefusedJoin) -> &Counter {
        &self.refused_joins[reason as usize]
    }

    pub fn refused_broadcast(&self, reason: RefusedPush) -> &Counter {
        &self.refused_broadcasts[reason as usize]
    }

    pub fn refused_presence(&self, reason: RefusedPush) -> &Counter {
        &self.refused_presence[reason as usize]
    }

    pub fn mutations(&self, outcome: MutationOutcome) -> &Counter {
        &self.mutations[outcome as usize]
    }

    /// How many rows each outbox keeps because they could not be published; those that have none
    /// need not be there.
    pub fn failed_messages(&self) -> MutexGuard<'_, BTreeMap<u32, u64>> {
        self.failed_messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything in the text format of Prometheus.
    pub fn prometheus(&self) -> String {
        let mut out = String::with_capacity(4096);
        // Writing to a String cannot fail.
        let _ = self.write_prometheus(&mut out);
        out
    }

    fn write_prometheus(&self, out: &mut String) -> fmt::Result {
        let gauges = [
            ("connections", "Websocket connections.", &self.connections),
            ("channels", "Joined channels.", &self.channels),
            ("live", "1 while the change stream is live.", &self.live),
            ("position", "Commit address of the newest event, as a number.", &self.position),
            ("decoded_position", "WAL address decoded up to, as a number.", &self.decoded),
            ("history_bytes", "Bytes of events kept for resuming clients.", &self.history_bytes),
            ("history_events", "Events kept for resuming clients.", &self.history_events),
            ("snapshots", "Channels being told the rows that there are.", &self.snapshots),
            ("mutations_pending", "Mutations waiting or under way.", &self.mutations_pending),
        ];
        for (name, help, gauge) in gauges {
            header(out, name, help, "gauge")?;
            writeln!(out, "pg_tide_{name} {}", gauge.get())?;
        }
        let (name, help) = ("failed_messages", "Rows of outboxes that could not be published.");
        header(out, name, help, "gauge")?;
        writeln!(out, "pg_tide_{name} {}", self.failed_messages().values().sum::<u64>())?;
        let counters = [
            ("connections_total", "Websocket connections so far.", &self.connections_total),
            ("joins_total", "Channels joined so far.", &self.joins_total),
            ("http_requests_total", "HTTP requests, upgrades included.", &self.http_requests_total),
            ("broadcasts_total", "Clients' broadcasts accepted.", &self.broadcasts_total),
            ("malformed_frames_total", "Frames not understood.", &self.malformed_frames_total),
            ("events_total", "Events decoded.", &self.events_total),
            (
                "failed_events_total",
                "Changes that could not be decoded.",
                &self.failed_events_total,
            ),
            (
                "forged_messages_total",
                "Messages in the WAL with pg_tide's prefix that were not its own.",
                &self.forged_messages_total,
            ),
            (
                "refused_messages_total",
                "Messages in outboxes for no channel, or for one of pg_tide's own.",
                &self.refused_messages_total,
            ),
            ("frames_sent_total", "Frames written to clients.", &self.frames_sent_total),
            ("bytes_sent_total", "Bytes written to clients.", &self.bytes_sent_total),
            (
                "dropped_casts_total",
                "Broadcasts, presence and notifications that a client did not get: its queue was full.",
                &self.dropped_casts_total,
            ),
            ("slow_clients_total", "Clients cut off for reading slowly.", &self.slow_clients_total),
            (
                "policy_questions_total",
                "Questions about policies that executors were asked.",
                &self.policy_questions_total,
            ),
            (
                "policy_failures_total",
                "Changes withheld from a client because a policy failed or took too long.",
                &self.policy_failures_total,
            ),
            (
                "policy_skips_total",
                "Channels that were sent on because a policy did not keep up.",
                &self.policy_skips_total,
            ),
            ("resumes_total", "Joins that resumed from a position.", &self.resumes_total),
            ("resyncs_total", "Joins whose position was gone.", &self.resyncs_total),
            ("snapshot_rows_total", "Rows that there were, told.", &self.snapshot_rows_total),
        ];
        for (name, help, counter) in counters {
            header(out, name, help, "counter")?;
            writeln!(out, "pg_tide_{name} {}", counter.get())?;
        }
        let name = "refused_connections_total";
        header(out, name, "Connections not let in, by reason.", "counter")?;
        for (reason, label) in RefusedConnection::ALL {
            let count = self.refused_connection(reason).get();
            writeln!(out, "pg_tide_{name}{{reason=\"{label}\"}} {count}")?;
        }
        let name = "refused_joins_total";
        header(out, name, "Joins answered with an error, by reason.", "counter")?;
        for (reason, label) in RefusedJoin::ALL {
            let count = self.refused_join(reason).get();
            writeln!(out, "pg_tide_{name}{{reason=\"{label}\"}} {count}")?;
        }
        let pushes = [
            ("refused_broadcasts_total", "Clients' broadcasts refused.", &self.refused_broadcasts),
            ("refused_presence_total", "Presence refused.", &self.refused_presence),
        ];
        for (name, help, counters) in pushes {
            header(out, name, help, "counter")?;
            for (reason, label) in RefusedPush::ALL {
                let count = counters[reason as usize].get();
                writeln!(out, "pg_tide_{name}{{reason=\"{label}\"}} {count}")?;
            }
        }
        let name = "mutations_total";
        header(out, name, "Mutations answered, by outcome.", "counter")?;
        for (outcome, label) in MutationOutcome::ALL {
            let count = self.mutations(outcome).get();
            writeln!(out, "pg_tide_{name}{{outcome=\"{label}\"}} {count}")?;
        }
        Ok(())
    }
}

fn header(out: &mut String, name: &str, help: &str, kind: &str) -> fmt::Result {
    writeln!(out, "# HELP pg_tide_{name} {help}\n# TYPE pg_tide_{name} {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        let stats = Stats::default();

        for (reason, _) in RefusedConnection::ALL {
            stats.refused_connection(reason).inc();
        }
        for (reason, _) in RefusedJoin::ALL {
            stats.refused_join(reason).inc();
        }

        assert!(
            RefusedConnection::ALL.iter().all(|(r, _)| stats.refused_connection(*r).get() == 1)
        );
        for (reason, _) in RefusedPush::ALL {
            stats.refused_broadcast(reason).inc();
            stats.refused_presence(reason).inc();
        }
        assert!(RefusedPush::ALL.iter().all(|(r, _)| stats.refused_broadcast(*r).get() == 1));
        assert!(RefusedPush::ALL.iter().all(|(r, _)| stats.refused_presence(*r).get() == 1));
        assert!(RefusedJoin::ALL.iter().all(|(r, _)| stats.refused_join(*r).get() == 1));
        for (outcome, _) in MutationOutcome::ALL {
            stats.mutations(outcome).inc();
        }
        assert!(MutationOutcome::ALL.iter().all(|(o, _)| stats.mutations(*o).get() == 1));
    }

    #[test]
    fn prometheus_text_has_a_type_line_for_every_metric() {
        let stats = Stats::default();
        stats.connections.inc();
        stats.refused_join(RefusedJoin::Rate).add(7);

        let text = stats.prometheus();

        assert!(text.contains("\npg_tide_connections 1\n"));
        assert!(text.contains("\npg_tide_refused_joins_total{reason=\"rate\"} 7\n"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split([' ', '{']).next().unwrap_or_default();
            assert!(text.contains(&format!("# TYPE {name} ")), "{line}");
        }
    }

    #[test]
    fn a_gauge_never_goes_below_nothing() {
        let gauge = Gauge::default();

        gauge.dec();

        assert_eq!(gauge.get(), 0);
    }
}
