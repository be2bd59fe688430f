//! Messages to channels as frames.

use tide_feed::event::{Message, Position};

use super::encoder::{EncodeContext, EventRef};
use super::group::GroupKey;
use super::subscription::Style;
use crate::wire::envelope::{Envelope, MessageMeta, Meta, RowMeta};

/// A message, for those who have joined its channel in the same way, private or not.
pub(super) fn message(
    group: &GroupKey,
    event_ref: EventRef<'_>,
    message: &Message,
    previous: Option<Position>,
    context: &mut EncodeContext<'_>,
) {
    let is_for = group.style == Style::Channel
        && group.private == message.private
        && group.topic.strip_prefix(crate::topic::PREFIX) == Some(&message.channel);
    if !is_for {
        return;
    }
    let EventRef { batch, event, .. } = event_ref;
    let row = message.row.as_ref().map(|row| RowMeta {
        sequence_id: row.sequence_id,
        rejected: row.rejected,
        headers: row.headers.map_or(&[], |headers| batch.bytes(headers)),
    });
    let own_id = message.row.as_ref().map(|row| &*row.mutation_id);
    let meta = Meta {
        prev: previous.map(|position| event_ref.cursor(position)),
        message: Some(MessageMeta { row, wrapped: message.wrapped }),
        mutation_id: own_id.or(event.mutation_id.as_deref()),
        in_payload: group.meta_in_payload,
        ..Meta::of(event_ref.cursor(event.position), event.commit_time)
    };
    let envelope = Envelope::broadcast(group.vsn, &group.topic, &message.name);
    context.out.push(envelope.wrap_with(context.frame_buf, batch.bytes(message.payload), &meta));
}
