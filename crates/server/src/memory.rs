//! The ledger of memory: all that grows with what clients do, counted before it is spent.
//!
//! `tide.memory_limit` is dealt out in parts, one for each [`Kind`], whose sum it is: no flood of one
//! kind leaves another without, and whoever wants more than is left of a part is refused, or has the
//! largest consumer of it cut off. A part is an [`Allowance`], what is held of it a
//! [`Share`](crate::allowance::Share).

use std::fmt::{self, Write};
use std::sync::Arc;

use tide_feed::config::Config;

use crate::allowance::Allowance;

/// What memory is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The newest events, for those who resume and those who lag.
    History,
    /// Frames that wait for clients, or that clients do not read.
    Queues,
    /// Notifications that wait for those who read slowly.
    Notices,
    /// Websockets: their tasks, small buffers, TLS, and in whose name they are.
    Connections,
    /// Sockets that are not a websocket yet, or have another request answered.
    Handshakes,
    /// Messages and HTTP requests that are arriving or being dealt with.
    Inbound,
    /// Joins that wait, and channels that are joined: what they asked for, and in whose name.
    Channels,
    /// Compiled filters.
    Filters,
    /// Who is present.
    Presence,
}

/// Each kind with its name and its part of what the history leaves.
const KINDS: [(Kind, &str, usize); 9] = [
    (Kind::History, "history", 0),
    (Kind::Queues, "queues", 4),
    (Kind::Notices, "notices", 2),
    (Kind::Connections, "connections", 3),
    (Kind::Handshakes, "handshakes", 1),
    (Kind::Inbound, "inbound", 2),
    (Kind::Channels, "channels", 3),
    (Kind::Filters, "filters", 1),
    (Kind::Presence, "presence", 1),
];

/// The parts of all kinds besides the history.
const PARTS: usize = 17;

/// What there is of each kind, and how much of it is held.
#[derive(Debug)]
pub struct Memory {
    parts: [Arc<Allowance>; KINDS.len()],
    limit: usize,
}

impl Memory {
    pub fn new(config: &Config) -> Memory {
        let limit = config.memory_limit;
        // A history that is small has room for a large event nevertheless.
        let history = config.history_size.clamp(limit / 16, limit / 2);
        let rest = limit - history;
        let of = |(kind, _, part)| match kind {
            Kind::History => history,
            _ => rest / PARTS * part,
        };
        Memory { parts: KINDS.map(|kind| Arc::new(Allowance::new(of(kind)))), limit }
    }

    /// The part of one kind.
    pub fn of(&self, kind: Kind) -> &Arc<Allowance> {
        &self.parts[kind as usize]
    }

    /// What is held of all kinds together.
    pub fn used(&self) -> usize {
        self.parts.iter().map(|part| part.used()).sum()
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// In the text format of Prometheus.
    pub fn prometheus(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_prometheus(&mut out);
        out
    }

    fn write_prometheus(&self, out: &mut String) -> fmt::Result {
        type Value = fn(&Allowance) -> u64;
        let gauges: [(&str, &str, &str, Value); 3] = [
            ("memory_bytes", "gauge", "Bytes held, by what for.", |part| part.used() as u64),
            ("memory_limit_bytes", "gauge", "Bytes that may be held, by what for.", |part| {
                part.limit() as u64
            }),
            (
                "memory_refused_total",
                "counter",
                "Times that there was no room, by what for.",
                |part| part.refused(),
            ),
        ];
        for (name, kind, help, value) in gauges {
            writeln!(out, "# HELP pg_tide_{name} {help}\n# TYPE pg_tide_{name} {kind}")?;
            for ((_, label, _), part) in KINDS.iter().zip(&self.parts) {
                writeln!(out, "pg_tide_{name}{{kind=\"{label}\"}} {}", value(part))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::allowance::Share;

    fn memory(memory_limit: usize, history_size: usize) -> Memory {
        Memory::new(&Config { memory_limit, history_size, ..Config::default() })
    }

    #[test]
    fn each_kind_has_its_place_and_a_part() {
        let memory = memory(512 << 20, 32 << 20);

        for (index, (kind, ..)) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
            assert!(memory.of(kind).limit() >= 28 << 20, "{kind:?}");
        }
        assert_eq!(KINDS.iter().map(|(.., part)| part).sum::<usize>(), PARTS);
        assert_eq!(memory.of(Kind::History).limit(), 32 << 20);
    }

    #[test]
    fn the_metrics_name_every_kind() {
        let memory = memory(64 << 20, 32 << 20);
        let mut share = Share::of(memory.of(Kind::Presence));
        assert!(share.grow(7));
        assert!(!share.grow(64 << 20));

        let text = memory.prometheus();

        assert!(text.contains("\npg_tide_memory_bytes{kind=\"presence\"} 7\n"), "{text}");
        assert!(text.contains("\npg_tide_memory_refused_total{kind=\"presence\"} 1\n"), "{text}");
        assert!(text.contains("\npg_tide_memory_limit_bytes{kind=\"history\"} 33554432\n"));
    }

    proptest! {
        #[test]
        fn whatever_is_taken_the_sum_stays_within_the_limit(
            memory_limit in (1_usize << 20)..(1 << 31),
            history_size in 0..(1_usize << 31),
            wanted in prop::collection::vec((0..KINDS.len(), 0..(1_usize << 28)), 0..200),
        ) {
            let memory = memory(memory_limit, history_size);
            let mut shares = Vec::new();
            for (kind, bytes) in wanted {
                let mut share = Share::of(memory.of(KINDS[kind].0));
                let _ = share.grow(bytes);
                shares.push(share);
                prop_assert!(memory.used() <= memory_limit);
            }
            drop(shares);
            prop_assert_eq!(memory.used(), 0);
        }
    }
}
