//! What the hub tells SQL: the newest events, and who is connected.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::value::RawValue;
use tide_feed::control::{ConnectedChannel, Connection, RecentEvent};
use tide_feed::event::{Batch, Cursor, Datum, Epoch, Event, EventKind, Relation, Row};
use tide_feed::json;

use super::handle::SessionId;
use super::history::{History, Seq};
use super::lagging::LaggingSessions;
use super::registry::{JoinedTopic, Registry};

/// The newest `limit` events of the tables (`None`: of all), oldest first.
pub(super) fn events(
    history: &History,
    epoch: Epoch,
    limit: usize,
    tables: Option<&[u32]>,
) -> Vec<RecentEvent> {
    let wanted = |event: &Event| match (tables, subject(event).table) {
        (None, _) => true,
        (Some(tables), Some(table)) => tables.contains(&table),
        (Some(_), None) => false,
    };
    let newest = history.newest_first().filter(|(.., event)| wanted(event)).take(limit);
    let mut events: Vec<_> =
        newest.map(|(_, batch, event)| recent_event(batch, event, epoch)).collect();
    events.reverse();
    events
}

fn relation(event: &Event) -> Option<&Relation> {
    match &event.kind {
        EventKind::Change(change) => Some(&change.relation),
        EventKind::Failed(failed) => failed.relation.as_deref(),
        EventKind::Message(_) | EventKind::Schema(_) => None,
    }
}

/// What an event is about.
#[derive(Default)]
struct Subject<'a> {
    /// Oid of a table.
    table: Option<u32>,
    schema: &'a str,
    name: &'a str,
}

fn subject(event: &Event) -> Subject<'_> {
    if let EventKind::Schema(change) = &event.kind {
        return Subject {
            table: change.table.as_ref().map(|_| change.oid),
            schema: &change.schema,
            name: change.table.as_deref().unwrap_or_default(),
        };
    }
    relation(event).map_or_else(Subject::default, |relation| Subject {
        table: Some(relation.oid),
        schema: &relation.schema,
        name: &relation.name,
    })
}

fn recent_event(batch: &Batch, event: &Event, epoch: Epoch) -> RecentEvent {
    let (relation, subject) = (relation(event), subject(event));
    let (operation, new, old) = match &event.kind {
        EventKind::Change(change) => (change.operation.name(), change.new, change.old),
        EventKind::Failed(failed) => ("ERROR", failed.key, None),
        EventKind::Message(_) => ("MESSAGE", None, None),
        EventKind::Schema(change) => (change.operation.name(), None, None),
    };
    let image = |row: Option<Row>| Some(record(batch, relation?, row?)).flatten();
    RecentEvent {
        id: Cursor { epoch, position: event.position }.to_string(),
        commit_time: event.commit_time,
        schema: subject.schema.to_owned(),
        table: subject.name.to_owned(),
        operation: operation.to_owned(),
        record: image(new),
        old_record: image(old),
    }
}

fn record(batch: &Batch, relation: &Relation, row: Row) -> Option<Box<RawValue>> {
    let row = batch.row(row);
    let mut out = vec![b'{'];
    for (index, column) in relation.columns.iter().enumerate() {
        let value = match row.get(index) {
            Datum::Json(value) => value,
            Datum::Null => b"null",
            Datum::Unchanged | Datum::Absent => continue,
        };
        if out.len() > 1 {
            out.push(b',');
        }
        json::write_str(&mut out, &column.name);
        out.push(b':');
        out.extend_from_slice(value);
    }
    out.push(b'}');
    RawValue::from_string(String::from_utf8(out).ok()?).ok()
}

/// Every connection with its channels; `head` is the number of the history's next event.
pub(super) fn connections(
    registry: &Registry,
    lagging: &LaggingSessions,
    head: Seq,
) -> Vec<Connection> {
    let mut connections: Vec<Connection> = registry
        .sessions
        .iter()
        .map(|(id, session)| {
            let queue = session.queue.stats();
            let channels: Vec<ConnectedChannel> = (session.channels.iter())
                .map(|(topic, channel)| describe(topic, channel, *id, registry, head))
                .collect();
            Connection {
                id: *id,
                address: session.peer.address.to_string(),
                user_agent: session.peer.user_agent.as_deref().map(str::to_owned),
                connected_at: unix_microseconds(session.peer.connected_at),
                sent_frames: queue.sent_frames,
                sent_bytes: queue.sent_bytes,
                queued_frames: queue.queued_frames as u64,
                queued_bytes: queue.queued_bytes as u64,
                lagging: lagging.contains(*id),
                lag: channels.iter().map(|channel| channel.lag).max().unwrap_or_default(),
                channels,
            }
        })
        .collect();
    connections.sort_unstable_by_key(|connection| connection.id);
    connections
}

fn describe(
    topic: &str,
    channel: &JoinedTopic,
    session: SessionId,
    registry: &Registry,
    head: Seq,
) -> ConnectedChannel {
    let groups = || channel.groups.iter().filter_map(|group| registry.group(*group));
    let members = groups().filter_map(|group| group.members.of(session));
    let next = members.filter_map(|member| member.lag).min().unwrap_or(head);
    let bindings: usize = groups().map(|group| group.key.bindings.len()).sum();
    ConnectedChannel {
        topic: topic.to_owned(),
        role: channel.identity.role.to_string(),
        subject: claimed_subject(&channel.identity.claims),
        private: groups().any(|group| group.key.private),
        joined_at: unix_microseconds(channel.joined_at),
        bindings: u32::try_from(bindings).unwrap_or(u32::MAX),
        lag: head.saturating_sub(next),
        snapshot_rows: groups().find_map(|group| {
            let sync = group.members.of(session)?.sync.as_ref()?;
            (!sync.is_up_to_date).then_some(sync.rows)
        }),
    }
}

/// Whom the token is about, by its claims.
fn claimed_subject(claims: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    serde_json::from_str::<Claims>(claims).ok().map(|claims| claims.sub)
}

fn unix_microseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
