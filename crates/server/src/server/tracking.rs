//! What clients say of their own presence: whether they may, and what is said of it.

use std::borrow::Cow;

use super::channel::Channel;
use super::presence::NoRoom;
use crate::presence::Details;
use crate::stats::RefusedPush;
use crate::topic::PREFIX;
use crate::wire::decode::Presence;

/// Why somebody is not present as it wants to be.
pub(super) enum PresenceError {
    Refused {
        count: RefusedPush,
        reason: Cow<'static, str>,
    },
    /// Past `tide.max_presence_size`.
    TooLarge,
}

impl PresenceError {
    fn refused(count: RefusedPush, reason: impl Into<Cow<'static, str>>) -> PresenceError {
        PresenceError::Refused { count, reason: reason.into() }
    }
}

/// Does what a client asks about its own presence.
pub(super) fn track(
    channel: &mut Channel,
    topic: &str,
    request: &Presence,
    max_size: usize,
) -> Result<(), PresenceError> {
    let bad_request = |reason: &'static str| PresenceError::refused(RefusedPush::Request, reason);
    let Some(presence) = &mut channel.presence else {
        return Err(bad_request("this topic has no presence"));
    };
    let payload = match request {
        Presence::Untrack => {
            presence.untrack();
            return Ok(());
        }
        Presence::Track(payload) => payload,
        Presence::Other(_) => return Err(bad_request("presence can be tracked and untracked")),
    };
    if !channel.access.presence().write {
        let name = topic.strip_prefix(PREFIX).unwrap_or(topic);
        let reason = format!(
            "Unauthorized: You do not have permissions to track presence on this Channel topic: {name}"
        );
        return Err(PresenceError::refused(RefusedPush::Policy, reason));
    }
    let details = payload.as_deref().and_then(|payload| Details::of(payload.get()));
    let details = details.ok_or_else(|| bad_request("Presence track payload must be a map"))?;
    if presence.key().len() + details.bytes() > max_size {
        return Err(PresenceError::TooLarge);
    }
    presence.track(details).map_err(|no_room| match no_room {
        NoRoom::Channel => PresenceError::refused(
            RefusedPush::Full,
            "PresenceLimitReached: Too many are present on this channel",
        ),
        NoRoom::Server => PresenceError::refused(
            RefusedPush::Memory,
            "MemoryLimitReached: There is no memory for more presence, try again",
        ),
    })
}
