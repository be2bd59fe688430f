//! Telling clients, and the outbox cleaner, what could not be made an event or is for nobody.

use std::sync::Arc;

use tide_feed::event::{Failed, Lsn, Message, Relation, Unsaid};

use super::encoder::{EncodeContext, EventRef, Missing};
use super::entitlement::Subject;
use super::group::GroupKey;
use super::receipts::Receipts;
use super::subscription::Style;
use crate::policy::Way;
use crate::stats::Stats;
use crate::topic;
use crate::wire::change;
use crate::wire::encode::{self, Undecoded};
use crate::wire::envelope::Envelope;

/// Tells a group of what could not be decoded, if it might have been for it.
pub(super) fn tell(
    group: &GroupKey,
    event_ref: EventRef<'_>,
    failed: &Failed,
    context: &mut EncodeContext<'_>,
) -> Result<(), Missing> {
    match (&failed.unsaid, &failed.relation) {
        (Some(unsaid), _) => tell_channel(group, event_ref, failed, unsaid, context),
        (None, Some(relation)) => tell_readers(group, event_ref, failed, relation, context)?,
        (None, None) if group.role.is_some() => {
            let (what, id) = (Undecoded::Change(None), event_ref.cursor(event_ref.event.position));
            let frame = encode::failed(group.vsn, &group.topic, what, &failed.sqlstate, &id, &[]);
            context.out.push(frame);
        }
        (None, None) => {}
    }
    Ok(())
}

/// Nobody but its channel's members is to hear of a message.
fn tell_channel(
    group: &GroupKey,
    event_ref: EventRef<'_>,
    failed: &Failed,
    unsaid: &Unsaid,
    context: &mut EncodeContext<'_>,
) {
    let is_for = group.style == Style::Channel
        && group.private == unsaid.private
        && group.topic.strip_prefix(topic::PREFIX) == Some(&unsaid.channel);
    if !is_for {
        return;
    }
    let number = unsaid.row.as_ref().map(|row| row.sequence_id.to_string());
    let mut details = Vec::new();
    if let (Some(row), Some(number)) = (&unsaid.row, &number) {
        details.push(("sequence_id", &**number));
        details.extend(Some(("mutation_id", &*row.mutation_id)).filter(|(_, id)| !id.is_empty()));
    }
    let (vsn, id) = (group.vsn, event_ref.cursor(event_ref.event.position));
    let (what, sqlstate) = (Undecoded::Message, &failed.sqlstate);
    context.out.push(encode::failed(vsn, &group.topic, what, sqlstate, &id, &details));
}

fn tell_readers(
    group: &GroupKey,
    event_ref: EventRef<'_>,
    failed: &Failed,
    relation: &Arc<Relation>,
    context: &mut EncodeContext<'_>,
) -> Result<(), Missing> {
    let Some(role) = &group.role else { return Ok(()) };
    if !group.targets(relation) {
        return Ok(());
    }
    // Whose row it was is not known: it is told to those only who see all of them.
    let missing = Missing::Answer { about: Subject::Rows(relation.oid) };
    let entitlement = context.entitlements.of(role, relation.oid, event_ref.seq).ok_or(missing)?;
    if !(entitlement.is_granted() && entitlement.rule().way == Way::Constant(true)) {
        return Ok(());
    }
    let column = failed.column.and_then(|index| relation.columns.get(index));
    let column = column.filter(|column| entitlement.may_read(column.attnum)).map(|c| &*c.name);
    let mut key = Vec::new();
    match failed.key {
        Some(row) => {
            let columns = entitlement.columns(relation, None);
            change::write_key(&mut key, event_ref.batch.row(row), &columns);
        }
        None => key.extend_from_slice(b"{}"),
    }
    let (vsn, topic, sqlstate) = (group.vsn, &group.topic, &failed.sqlstate);
    context.out.push(if group.style == Style::Changes {
        let about = group.bindings.iter().filter(|b| b.target.is_of(relation));
        let ids: Vec<u32> = about.map(|binding| binding.id).collect();
        let mut data = Vec::new();
        change::failed_data(&mut data, event_ref.event, relation, sqlstate, &key, column);
        Envelope::changes(vsn, topic, &ids).wrap(context.frame_buf, &data)
    } else {
        let what = Undecoded::Change(Some((&*relation.schema, &*relation.name)));
        let key = String::from_utf8(key).unwrap_or_default();
        let mut details = Vec::new();
        details.extend(column.map(|name| ("column", name)));
        details.extend(Some(("key", &*key)).filter(|(_, key)| key.len() > 2));
        encode::failed(
            vsn,
            topic,
            what,
            sqlstate,
            &event_ref.cursor(event_ref.event.position),
            &details,
        )
    });
    Ok(())
}

/// Why nobody could have joined a channel of that name: an SQLSTATE. A row of an outbox that was
/// adopted can name any.
pub(super) fn refusal(channel: &str) -> Option<&'static str> {
    if channel.is_empty() {
        return Some("22023");
    }
    if channel.starts_with("tide:") {
        return Some("42939");
    }
    (topic::PREFIX.len() + channel.len() > topic::MAX_LENGTH).then_some("42622")
}

/// A message that is for no channel is kept and counted.
pub(super) fn refuse(message: &Message, why: &str, at: Lsn, stats: &Stats, receipts: &Receipts) {
    stats.refused_messages_total.inc();
    let count = stats.refused_messages_total.get();
    if let Some(row) = &message.row {
        receipts.failures().add(row, why, at);
    }
    // Not one line for each of a million.
    if count.is_power_of_two() {
        let table = message.row.as_ref().map_or(0, |row| row.table);
        log::warn!(
            "a message in the outbox {table}::regclass is for no channel, or for one of pg_tide's own (SQLSTATE {why}): not published, and kept ({count} so far)"
        );
    }
}

/// A channel's topic on the wire.
pub(super) fn wire_topic(channel: &str) -> String {
    [topic::PREFIX, channel].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_one_that_clients_can_join() {
        assert_eq!(refusal("room"), None);
        assert_eq!(refusal(&"x".repeat(246)), None);
        assert_eq!(refusal(&"x".repeat(247)), Some("42622"));
        assert_eq!(refusal(""), Some("22023"));
        assert_eq!(refusal("tide:notify:jobs"), Some("42939"));
    }
}
