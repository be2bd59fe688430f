//! What clients say on channels: whether they may, and to whom it goes.

use std::sync::Arc;

use tide_feed::config::Config;

use super::channel::Channel;
use super::context::ServerContext;
use crate::hub::handle::{Ephemeral, SessionId};
use crate::hub::subscription::Style;
use crate::stats::RefusedPush;
use crate::topic::PREFIX;
use crate::wire::Vsn;
use crate::wire::broadcast::{binary_frame, json_frame};
use crate::wire::decode::{Broadcast, Payload};

/// What a client is told whose broadcast there is no memory for.
pub(super) const NO_MEMORY: &str =
    "MemoryLimitReached: There is no memory for more broadcasts, try again";

/// Why something is not said; the reason is for the client.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) count: RefusedPush,
    pub(super) reason: String,
}

impl Refused {
    pub(super) fn new(count: RefusedPush, reason: impl Into<String>) -> Refused {
        Refused { count, reason: reason.into() }
    }
}

/// A broadcast that has passed all checks.
#[derive(Debug)]
pub(super) struct CheckedBroadcast<'a> {
    topic: &'a str,
    private: bool,
    broadcast: &'a Broadcast,
}

/// What a client says on a channel that it has joined.
pub(super) fn of_client<'a>(
    config: &Config,
    channel: &Channel,
    topic: &'a str,
    broadcast: &'a Broadcast,
) -> Result<CheckedBroadcast<'a>, Refused> {
    let name = topic.strip_prefix(PREFIX).unwrap_or(topic);
    check(config, name, broadcast)?;
    if !channel.access.broadcast().write {
        return Err(not_permitted(name));
    }
    Ok(CheckedBroadcast { topic, private: channel.private, broadcast })
}

/// What can be said of a broadcast whoever sends it. `name`: the topic without `realtime:`.
pub(super) fn check(config: &Config, name: &str, broadcast: &Broadcast) -> Result<(), Refused> {
    let request = |reason| Err(Refused::new(RefusedPush::Request, reason));
    if name.starts_with("tide:") {
        return request(if broadcast.event.starts_with("tide:") {
            "this request is not supported"
        } else {
            "topics that begin with tide: take no broadcasts"
        });
    }
    if broadcast.event.starts_with("tide:") {
        return request("events that begin with tide: are requests, and this one is not supported");
    }
    let size = match &broadcast.payload {
        Payload::Json(json) => json.get().len(),
        Payload::Binary(bytes) => bytes.len(),
    };
    if size > config.max_broadcast_size {
        return Err(Refused::new(RefusedPush::Size, "payload_size_exceeded"));
    }
    Ok(())
}

pub(super) fn not_permitted(name: &str) -> Refused {
    Refused::new(
        RefusedPush::Policy,
        format!("Unauthorized: You do not have permissions to write to this Channel topic: {name}"),
    )
}

impl<'a> CheckedBroadcast<'a> {
    /// `topic`: with its `realtime:`. Only for what has been checked.
    pub(super) fn new(
        topic: &'a str,
        private: bool,
        broadcast: &'a Broadcast,
    ) -> CheckedBroadcast<'a> {
        CheckedBroadcast { topic, private, broadcast }
    }

    /// To everybody who has joined the channel, but one. False: there is no memory for it.
    #[must_use]
    pub(super) fn send(&self, context: &ServerContext, except: Option<SessionId>) -> bool {
        let (topic, event) = (self.topic, &*self.broadcast.event);
        let (v1, v2) = match &self.broadcast.payload {
            Payload::Json(json) => {
                let frame = |vsn| json_frame(vsn, topic, event, json.get());
                (frame(Vsn::V1), frame(Vsn::V2))
            }
            // Clients of version 1 cannot take bytes.
            Payload::Binary(bytes) => {
                (Default::default(), binary_frame(topic, event, bytes).unwrap_or_default())
            }
        };
        let (to, private, topic) = (Style::Channel, self.private, Arc::from(topic));
        let has_memory =
            context.hub.send_ephemeral(Ephemeral { topic, to, private, v1, v2, except });
        if has_memory {
            context.stats.broadcasts_total.inc();
        } else {
            context.stats.refused_broadcast(RefusedPush::Memory).inc();
        }
        has_memory
    }
}
