//! What a group is told of tables and schemas that come, change and go.

use std::rc::Rc;

use tide_feed::catalog::{Object, Visibility};
use tide_feed::event::{Position, SchemaChange, SchemaOperation};

use super::encoder::{EncodeContext, EventRef, Missing};
use super::entitlement::{Entitlements, Subject};
use super::group::GroupKey;
use super::history::Seq;
use super::subscription::Style;
use crate::wire::envelope::{Envelope, Meta};
use crate::wire::{record, schema};

/// A table or schema that was made, altered or dropped, for those who may see it, or could.
pub(super) fn altered(
    group: &GroupKey,
    event_ref: EventRef<'_>,
    change: &SchemaChange,
    previous: Option<Position>,
    context: &mut EncodeContext<'_>,
) -> Result<(), Missing> {
    use SchemaOperation::{CreateTable, DropTable};
    let is_told = match group.style {
        Style::Schema => true,
        // Records are about their tables only as far as these come and go.
        Style::Records => matches!(change.operation, CreateTable | DropTable),
        _ => false,
    };
    if !is_told || !is_within(group, change) {
        return Ok(());
    }
    let visibility = visibility(group, change, event_ref.seq, context.entitlements)?;
    let Some(visibility) = visibility else { return Ok(()) };
    let mut payload = Vec::new();
    match (group.style, &change.table) {
        (Style::Records, Some(table)) => record::table(&mut payload, table),
        _ => schema::write_payload(&mut payload, change, &visibility.columns),
    }
    let event = event_ref.event;
    let meta = Meta {
        prev: previous.map(|position| event_ref.cursor(position)),
        mutation_id: event.mutation_id.as_deref(),
        last_in_tx: event.last_in_tx,
        in_payload: group.meta_in_payload,
        ..Meta::of(event_ref.cursor(event.position), event.commit_time)
    };
    let envelope = Envelope::broadcast(group.vsn, &group.topic, change.operation.name());
    context.out.push(envelope.wrap_with(context.frame_buf, &payload, &meta));
    Ok(())
}

/// Whether the group's topic is about the schema. Live events are found by their topics; in a replay
/// every group is asked about every event.
fn is_within(group: &GroupKey, change: &SchemaChange) -> bool {
    let topic = group.topic.strip_prefix(crate::topic::PREFIX).unwrap_or_default();
    match topic.splitn(3, ':').nth(2) {
        Some(schema) => *schema == *change.schema,
        // `tide:schema`.
        None => true,
    }
}

/// What the group's role may know of what is there now, or could of what was dropped.
fn visibility(
    group: &GroupKey,
    change: &SchemaChange,
    seq: Seq,
    entitlements: &mut Entitlements,
) -> Result<Option<Rc<Visibility>>, Missing> {
    let Some(role) = &group.role else { return Ok(None) };
    if let Some(readers) = &change.readers {
        let could = readers.iter().any(|reader| **reader == **role);
        return Ok(could.then(Rc::default));
    }
    if group.style == Style::Records {
        // Only published tables have records that clients are told of.
        let entitlement = entitlements.of(role, change.oid, seq);
        let missing = Missing::Answer { about: Subject::Rows(change.oid) };
        return Ok(entitlement.ok_or(missing)?.is_granted().then(Rc::default));
    }
    let object = match change.table {
        Some(_) => Object::Table(change.oid),
        None => Object::Schema(change.oid),
    };
    let known = entitlements.visibility(role, object, seq);
    let known = known.ok_or(Missing::Answer { about: Subject::Object(object) })?;
    Ok(Some(known).filter(|visibility| visibility.visible))
}
