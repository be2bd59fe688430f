//! Every kind of frame that the server can send, byte for byte, in both versions.

mod join;
mod meta_in_payload;
mod mutation;

use bytes::Bytes;
use tide_feed::event::{
    BatchBuilder, Change, Column, Cursor, Epoch, Event, EventKind, Failed, Kind, Lsn, Operation,
    Position, Relation, Row,
};

use super::Vsn::{self, V1, V2};
use super::change::{ColumnSet, change_data, failed_data, table_payload, unchanged_list};
use super::encode::{self, Address, Resync, Status, System};
use super::envelope::{Envelope, MessageMeta, Meta, RowMeta};
use super::frame_buf::FrameBuf;
use super::join::{ChangeParams, Requested, binding_id};
use crate::presence::{Details, Room, Tracked};
use crate::topic::Topic;

const ROOM: &str = "realtime:room1";

const JOIN: Address<'_> = Address { join_ref: Some("6"), ref_: Some("6"), topic: ROOM };

#[track_caller]
fn assert_frame(frame: &Bytes, expected: &str) {
    let text = str::from_utf8(frame).expect("frames are UTF-8");
    assert_eq!(text, expected);
    serde_json::from_str::<serde_json::Value>(text).expect("frames are JSON");
}

#[track_caller]
fn assert_frames(frame: impl Fn(Vsn) -> Bytes, v1: &str, v2: &str) {
    assert_frame(&frame(V1), v1);
    assert_frame(&frame(V2), v2);
}

fn alone(envelope: &Envelope, data: &[u8]) -> Bytes {
    envelope.wrap(&mut FrameBuf::default(), data)
}

fn alone_with(vsn: Vsn, topic: &str, event: &str, payload: &[u8], meta: &Meta<'_>) -> Bytes {
    Envelope::broadcast(vsn, topic, event).wrap_with(&mut FrameBuf::default(), payload, meta)
}

fn params(raw: &str) -> ChangeParams {
    let text = |text: &str| Some(text.to_owned());
    ChangeParams {
        raw: raw.into(),
        event: Requested::One(Operation::Insert),
        schema: text("public"),
        table: None,
        filter: None,
        select: None,
        malformed: None,
    }
}

#[test]
fn heartbeat_is_answered() {
    let to = Address { join_ref: None, ref_: Some("26"), topic: "phoenix" };
    assert_frames(
        |vsn| encode::ok(vsn, to),
        r#"{"topic":"phoenix","event":"phx_reply","payload":{"status":"ok","response":{}},"ref":"26"}"#,
        r#"[null,"26","phoenix","phx_reply",{"status":"ok","response":{}}]"#,
    );
}

#[test]
fn ids_of_bindings_are_stable_and_in_the_range_that_all_clients_take() {
    // Written down: a restart, or another release, must not change them.
    assert_eq!(binding_id(&params(r#""event":"*","schema":"public","table":"todos""#)), 37_428_599);
    let spaced = params(r#""event":"*","select":[ "a b" , "c\" d" ]"#);
    let dense = params(r#""event":"*","select":["a b","c\" d"]"#);
    let other = params(r#""event":"*","select":["ab","c\" d"]"#);
    assert_eq!(binding_id(&spaced), binding_id(&dense));
    assert_ne!(binding_id(&other), binding_id(&dense));
    for number in 0..10_000 {
        let id = binding_id(&params(&format!("\"table\":\"t{number}\"")));
        assert!((1..1 << 27).contains(&id));
    }
}

#[test]
fn errors_are_replies_with_a_reason() {
    let reason = "Unauthorized: You do not have permissions to read from this Channel topic: \"x\"";
    assert_frames(
        |vsn| encode::error(vsn, JOIN, reason),
        r#"{"topic":"realtime:room1","event":"phx_reply","payload":{"status":"error","response":{"reason":"Unauthorized: You do not have permissions to read from this Channel topic: \"x\""}},"ref":"6"}"#,
        r#"["6","6","realtime:room1","phx_reply",{"status":"error","response":{"reason":"Unauthorized: You do not have permissions to read from this Channel topic: \"x\""}}]"#,
    );
    assert_frame(
        &encode::broadcast_error(V2, Address { ref_: Some("7"), ..JOIN }, "payload_size_exceeded"),
        r#"["6","7","realtime:room1","phx_reply",{"status":"error","response":{"error":"payload_size_exceeded"}}]"#,
    );
    assert_frame(
        &encode::reply(V2, Address::of(ROOM), Status::Error, r#"{"reason":"x"}"#),
        r#"[null,null,"realtime:room1","phx_reply",{"status":"error","response":{"reason":"x"}}]"#,
    );
}

#[test]
fn channel_is_closed_or_fails_under_its_join_ref() {
    assert_frames(
        |vsn| encode::phx_close(vsn, Some("6"), ROOM),
        r#"{"topic":"realtime:room1","event":"phx_close","payload":{},"ref":"6"}"#,
        r#"["6","6","realtime:room1","phx_close",{}]"#,
    );
    assert_frames(
        |vsn| encode::phx_error(vsn, Some("3"), "realtime:x"),
        r#"{"topic":"realtime:x","event":"phx_error","payload":{},"ref":"3"}"#,
        r#"["3","3","realtime:x","phx_error",{}]"#,
    );
}

#[test]
fn presence_begins_empty() {
    assert_frames(
        |vsn| encode::presence_state(vsn, Some("6"), ROOM, &Room::default()),
        r#"{"topic":"realtime:room1","event":"presence_state","payload":{},"ref":null}"#,
        r#"["6",null,"realtime:room1","presence_state",{}]"#,
    );
}

#[test]
fn presence_is_told_as_state_and_as_changes() {
    let mut room = Room::default();
    let details = Details::of(r#"{"user":"u1"}"#).expect("an object");
    let Tracked::Changed(diff) = room.track(1, "me", details, 0x1f, 1) else { panic!("tracked") };
    assert_frames(
        |vsn| encode::presence_state(vsn, Some("4"), ROOM, &room),
        r#"{"topic":"realtime:room1","event":"presence_state","payload":{"me":{"metas":[{"phx_ref":"000000000000001f","user":"u1"}]}},"ref":null}"#,
        r#"["4",null,"realtime:room1","presence_state",{"me":{"metas":[{"phx_ref":"000000000000001f","user":"u1"}]}}]"#,
    );
    assert_frames(
        |vsn| encode::presence_diff(vsn, ROOM, &diff),
        r#"{"topic":"realtime:room1","event":"presence_diff","payload":{"joins":{"me":{"metas":[{"phx_ref":"000000000000001f","user":"u1"}]}},"leaves":{}},"ref":null}"#,
        r#"[null,null,"realtime:room1","presence_diff",{"joins":{"me":{"metas":[{"phx_ref":"000000000000001f","user":"u1"}]}},"leaves":{}}]"#,
    );
}

#[test]
fn system_frames_say_what_happened() {
    assert_frames(
        |vsn| encode::subscribed(vsn, Some("6"), ROOM),
        r#"{"topic":"realtime:room1","event":"system","payload":{"message":"Subscribed to PostgreSQL","status":"ok","extension":"postgres_changes","channel":"room1"},"ref":null}"#,
        r#"["6",null,"realtime:room1","system",{"message":"Subscribed to PostgreSQL","status":"ok","extension":"postgres_changes","channel":"room1"}]"#,
    );
    assert_frame(
        &encode::system_error(V2, Some("6"), ROOM, "Token has expired 1 seconds ago"),
        r#"["6",null,"realtime:room1","system",{"message":"Token has expired 1 seconds ago","status":"error","extension":"system","channel":"room1"}]"#,
    );
    let system = System {
        extension: "tide.x",
        status: Status::Ok,
        message: "m",
        details: &[("a\"b", "c\nd")],
    };
    assert_frame(
        &encode::system(V2, None, "odd", &system),
        r#"[null,null,"odd","system",{"message":"m","status":"ok","extension":"tide.x","channel":"odd","a\"b":"c\nd"}]"#,
    );
}

#[test]
fn refusal_repeats_what_the_client_asked_for() {
    let asked = ChangeParams {
        event: Requested::Unknown("UPSERT".into()),
        filter: Some("id=eq.\"1\"".into()),
        select: Some(vec!["id".into(), "b".into()]),
        ..params("")
    };
    let text = asked.refusal();
    let (_, asked) = text.split_once(": [").expect("parameters");
    assert_eq!(
        asked,
        r#"event: UPSERT, schema: public, table: *, filters: ["id=eq.\"1\""], select: ["id", "b"]]"#
    );
}

#[test]
fn gaps_emptied_tables_and_failures_are_announced() {
    let resync = Resync { reason: "trimmed", oldest: Some(cursor(1)), newest: Some(cursor(2)) };
    assert_frame(
        &encode::resync(V2, Some("6"), ROOM, resync),
        r#"["6",null,"realtime:room1","system",{"message":"resync: trimmed; oldest 0000002a000001.000000000100000000000001 newest 0000002a000001.000000000100000000000002","status":"ok","extension":"tide.resync","channel":"room1","reason":"trimmed","oldest":"0000002a000001.000000000100000000000001","newest":"0000002a000001.000000000100000000000002"}]"#,
    );
    let resync = Resync { reason: "epoch", oldest: None, newest: None };
    assert_frame(
        &encode::resync(V1, Some("6"), ROOM, resync),
        r#"{"topic":"realtime:room1","event":"system","payload":{"message":"resync: epoch; oldest none newest none","status":"ok","extension":"tide.resync","channel":"room1","reason":"epoch"},"ref":null}"#,
    );
    assert_frame(
        &encode::truncated(V2, ROOM, "public", "t"),
        r#"[null,null,"realtime:room1","system",{"message":"TRUNCATE of public.t: all of its rows are gone","status":"ok","extension":"tide.truncate","channel":"room1","schema":"public","table":"t"}]"#,
    );
    let t = ("public", "t");
    assert_frame(
        &encode::failed(V2, ROOM, Some(t).into(), "22P02", &cursor(1), &[("key", "{}")]),
        r#"[null,null,"realtime:room1","system",{"message":"a change of public.t could not be decoded: SQLSTATE 22P02; key {}; position 0000002a000001.000000000100000000000001","status":"ok","extension":"tide.error","channel":"room1","sqlstate":"22P02","position":"0000002a000001.000000000100000000000001","schema":"public","table":"t","key":"{}"}]"#,
    );
    assert_frame(
        &encode::failed(V2, ROOM, None.into(), "XX000", &cursor(1), &[]),
        r#"[null,null,"realtime:room1","system",{"message":"a change could not be decoded: SQLSTATE XX000; position 0000002a000001.000000000100000000000001","status":"ok","extension":"tide.error","channel":"room1","sqlstate":"XX000","position":"0000002a000001.000000000100000000000001"}]"#,
    );
}

fn cursor(ordinal: u32) -> Cursor {
    Cursor {
        epoch: Epoch { generation: 42, timeline: 1 },
        position: Position { commit: Lsn(0x0100_0000), ordinal },
    }
}

/// Columns `id` (the key), `te"xt`, `raw` (bytea), `doc`.
fn relation() -> Relation {
    let column =
        |attnum, name, type_name, kind| Column::new(attnum, name, type_name, kind, attnum == 1);
    Relation {
        oid: 16_384,
        schema: "public".into(),
        name: "test".into(),
        columns: Box::new([
            column(1, "id", "int8", Kind::Int),
            column(2, "te\"xt", "text", Kind::Text),
            column(3, "raw", "bytea", Kind::Other),
            column(5, "doc", "jsonb", Kind::Json),
        ]),
        identity_full: false,
    }
}

/// What a column has in a row of a test.
#[derive(Clone, Copy)]
enum Cell {
    Json(&'static str),
    Null,
    Unchanged,
    Absent,
}
use Cell::{Absent, Null, Unchanged};

const ROW: [Cell; 4] =
    [Cell::Json("46"), Cell::Json(r#""con\ntent""#), Cell::Json(r#""\\x0102ff""#), Null];

const KEY: [Cell; 4] = [Cell::Json("46"), Absent, Absent, Absent];

fn row(batch: &mut BatchBuilder, cells: [Cell; 4]) -> Row {
    let start = batch.begin_row();
    for cell in cells {
        match cell {
            Cell::Json(json) => batch.push_text(json),
            Null => batch.push_null(),
            Unchanged => batch.push_unchanged(),
            Absent => batch.push_absent(),
        }
    }
    batch.end_row(&start).expect("a small row")
}

struct Written {
    data: String,
    payload: String,
    unchanged: String,
}

/// The change as all the forms that subscribers share, with the columns at `indexes`.
fn written(
    operation: Operation,
    old: Option<[Cell; 4]>,
    new: Option<[Cell; 4]>,
    indexes: &[usize],
) -> Written {
    let relation = relation();
    let columns = ColumnSet::new(&relation, indexes.iter().copied());
    let mut batch = BatchBuilder::default();
    let old = old.map(|cells| row(&mut batch, cells));
    let new = new.map(|cells| row(&mut batch, cells));
    let batch = batch.finish();
    let change = Change { relation: relation.into(), operation, old, new };
    let event = event(EventKind::Change(change.clone()));
    let text = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("UTF-8")
    };
    Written {
        data: text(&|out| change_data(out, &batch, &event, &change, &columns)),
        payload: text(&|out| table_payload(out, &batch, &change, &columns)),
        unchanged: text(&|out| unchanged_list(out, &batch, &change, &columns)),
    }
}

/// `2025-11-19T00:22:40.877Z`, and a bit.
const COMMIT_TIME: i64 = 1_763_511_760_877_123;

fn event(kind: EventKind) -> Event {
    Event {
        position: cursor(1).position,
        end: Lsn(0),
        xid: 7,
        commit_time: COMMIT_TIME,
        last_in_tx: true,
        mutation_id: None,
        kind,
    }
}

const ALL: &[usize] = &[0, 1, 2, 3];

const COLUMNS: &str = r#""columns":[{"name":"id","type":"int8"},{"name":"te\"xt","type":"text"},{"name":"raw","type":"bytea"},{"name":"doc","type":"jsonb"}]"#;

fn data(operation: &str, columns: &str, images: &str) -> String {
    format!(
        r#"{{"schema":"public","table":"test","commit_timestamp":"2025-11-19T00:22:40.877Z","type":"{operation}",{columns},{images},"errors":null}}"#
    )
}

fn payload(operation: &str, record: &str, old_record: &str) -> String {
    format!(
        r#"{{"schema":"public","table":"test","operation":"{operation}","record":{record},"old_record":{old_record}}}"#
    )
}

#[test]
fn insert_has_a_record_only() {
    let written = written(Operation::Insert, None, Some(ROW), ALL);

    let record = r#""record":{"id":46,"te\"xt":"con\ntent","raw":"0102ff","doc":null}"#;
    assert_eq!(written.data, data("INSERT", COLUMNS, record));
    let record = r#"{"id":46,"te\"xt":"con\ntent","raw":"\\x0102ff","doc":null}"#;
    assert_eq!(written.payload, payload("INSERT", record, "null"));
    assert_eq!(written.unchanged, "");
}

#[test]
fn update_without_an_old_row_has_the_key_of_the_new_one() {
    let new = [Cell::Json("46"), Unchanged, Null, Unchanged];
    let written = written(Operation::Update, None, Some(new), ALL);

    let images = r#""record":{"id":46,"raw":null},"old_record":{"id":46}"#;
    assert_eq!(written.data, data("UPDATE", COLUMNS, images));
    assert_eq!(written.payload, payload("UPDATE", r#"{"id":46,"raw":null}"#, r#"{"id":46}"#));
    assert_eq!(written.unchanged, r#"["te\"xt","doc"]"#);
}

#[test]
fn update_of_the_key_has_the_old_key() {
    let new = [Cell::Json("47"), Null, Null, Null];
    let written = written(Operation::Update, Some(KEY), Some(new), ALL);

    let images = r#""record":{"id":47,"te\"xt":null,"raw":null,"doc":null},"old_record":{"id":46}"#;
    assert_eq!(written.data, data("UPDATE", COLUMNS, images));
}

#[test]
fn whole_old_row_fills_in_what_the_statement_did_not_change() {
    let new = [Cell::Json("46"), Unchanged, Unchanged, Cell::Json("[1]")];
    let old = [Cell::Json("46"), Cell::Json("\"long\""), Absent, Cell::Json("{}")];
    let written = written(Operation::Update, Some(old), Some(new), ALL);

    let images = r#""record":{"id":46,"te\"xt":"long","doc":[1]},"old_record":{"id":46,"te\"xt":"long","doc":{}}"#;
    assert_eq!(written.data, data("UPDATE", COLUMNS, images));
    assert_eq!(written.unchanged, r#"["raw"]"#);
}

#[test]
fn delete_has_an_old_record_only() {
    let written_key = written(Operation::Delete, Some(KEY), None, ALL);
    assert_eq!(written_key.data, data("DELETE", COLUMNS, r#""old_record":{"id":46}"#));
    assert_eq!(written_key.payload, payload("DELETE", "null", r#"{"id":46}"#));

    let nothing = written(Operation::Delete, None, None, ALL);
    assert_eq!(nothing.data, data("DELETE", COLUMNS, r#""old_record":{}"#));
}

#[test]
fn truncate_has_empty_records() {
    let written = written(Operation::Truncate, None, None, ALL);
    assert_eq!(written.data, data("TRUNCATE", COLUMNS, r#""record":{},"old_record":{}"#));
    assert_eq!(written.payload, payload("TRUNCATE", "null", "null"));
}

#[test]
fn columns_outside_the_set_are_nowhere_to_be_seen() {
    let new = [Cell::Json("46"), Unchanged, Cell::Json(r#""\\x""#), Cell::Json("{}")];
    let written = written(Operation::Update, Some(ROW), Some(new), &[2, 3, 9]);
    let columns = r#""columns":[{"name":"raw","type":"bytea"},{"name":"doc","type":"jsonb"}]"#;
    let images = r#""record":{"raw":"","doc":{}},"old_record":{"raw":"0102ff","doc":null}"#;
    assert_eq!(written.data, data("UPDATE", columns, images));
    assert_eq!(written.unchanged, "");

    let none = self::written(Operation::Update, None, Some(new), &[]);
    assert_eq!(none.data, data("UPDATE", r#""columns":[]"#, r#""record":{},"old_record":{}"#));
    assert!(ColumnSet::new(&relation(), []).is_empty());
    assert!(!ColumnSet::all(&relation()).is_empty());
}

#[test]
fn change_is_wrapped_for_each_topic() {
    let data = br#"{"schema":"public","type":"INSERT"}"#;
    assert_frames(
        |vsn| alone(&Envelope::changes(vsn, ROOM, &[104_868_189, 2]), data),
        r#"{"topic":"realtime:room1","event":"postgres_changes","payload":{"ids":[104868189,2],"data":{"schema":"public","type":"INSERT"}},"ref":null}"#,
        r#"[null,null,"realtime:room1","postgres_changes",{"ids":[104868189,2],"data":{"schema":"public","type":"INSERT"}}]"#,
    );
    assert_frames(
        |vsn| alone(&Envelope::legacy(vsn, "realtime:public:test", Operation::Insert), data),
        r#"{"topic":"realtime:public:test","event":"INSERT","payload":{"schema":"public","type":"INSERT"},"ref":null}"#,
        r#"[null,null,"realtime:public:test","INSERT",{"schema":"public","type":"INSERT"}]"#,
    );
}

#[test]
fn table_events_are_broadcasts_that_carry_their_position() {
    let topic = "realtime:tide:table:public.test";
    let meta = Meta {
        prev: Some(cursor(1)),
        unchanged: br#"["doc"]"#,
        mutation_id: Some("680f\""),
        last_in_tx: true,
        ..Meta::of(cursor(2), COMMIT_TIME)
    };
    let few = Meta::of(cursor(2), COMMIT_TIME);
    assert_frame(
        &alone_with(V2, topic, "UPDATE", br#"{"table":"test"}"#, &meta),
        r#"[null,null,"realtime:tide:table:public.test","broadcast",{"type":"broadcast","event":"UPDATE","payload":{"table":"test"},"meta":{"id":"0000002a000001.000000000100000000000002","prev":"0000002a000001.000000000100000000000001","commit_timestamp":"2025-11-19T00:22:40.877Z","unchanged":["doc"],"mutation_id":"680f\"","last_in_tx":true}}]"#,
    );
    assert_frame(
        &alone_with(V1, topic, "SNAPSHOT", b"{}", &few),
        r#"{"topic":"realtime:tide:table:public.test","event":"broadcast","payload":{"type":"broadcast","event":"SNAPSHOT","payload":{},"meta":{"id":"0000002a000001.000000000100000000000002","commit_timestamp":"2025-11-19T00:22:40.877Z"}},"ref":null}"#,
    );
    let bare = alone(&Envelope::broadcast(V2, "realtime:tide:notify:jobs", "notify"), b"{}");
    assert_frame(
        &bare,
        r#"[null,null,"realtime:tide:notify:jobs","broadcast",{"type":"broadcast","event":"notify","payload":{}}]"#,
    );
}

#[test]
fn messages_are_broadcasts_of_the_channel_itself() {
    let row = RowMeta { sequence_id: 42, rejected: false, headers: br#"{"a":1}"# };
    let message = MessageMeta { row: Some(row), wrapped: true };
    let meta = Meta {
        prev: Some(cursor(1)),
        message: Some(message),
        mutation_id: Some("680f"),
        ..Meta::of(cursor(2), COMMIT_TIME)
    };
    assert_frame(
        &alone_with(V2, ROOM, "edit", br#"{"data":1}"#, &meta),
        r#"[null,null,"realtime:room1","broadcast",{"type":"broadcast","event":"edit","payload":{"data":1},"meta":{"id":"0000002a000001.000000000100000000000002","prev":"0000002a000001.000000000100000000000001","commit_timestamp":"2025-11-19T00:22:40.877Z","sequence_id":"42","rejected":false,"headers":{"a":1},"wrapped":true,"mutation_id":"680f"}}]"#,
    );
    let sent = Meta { message: Some(MessageMeta::default()), ..Meta::of(cursor(2), COMMIT_TIME) };
    assert_frame(
        &alone_with(V1, ROOM, "edit", b"{}", &sent),
        r#"{"topic":"realtime:room1","event":"broadcast","payload":{"type":"broadcast","event":"edit","payload":{},"meta":{"id":"0000002a000001.000000000100000000000002","commit_timestamp":"2025-11-19T00:22:40.877Z"}},"ref":null}"#,
    );
}

#[test]
fn position_in_meta_is_the_cursors_own_text() {
    for (generation, timeline, commit, ordinal) in
        [(0, 0, 0, 0), (u32::MAX, 0xFF_FFFF, u64::MAX, u32::MAX), (1, 2, 3, 4)]
    {
        let id = Cursor {
            epoch: Epoch { generation, timeline },
            position: Position { commit: Lsn(commit), ordinal },
        };
        let frame = alone_with(V2, ROOM, "x", b"{}", &Meta::of(id, COMMIT_TIME));
        let frame: serde_json::Value = serde_json::from_slice(&frame).expect("JSON");
        assert_eq!(frame[4]["meta"]["id"], id.to_string());
    }
}

#[test]
fn failed_change_has_supabases_errors_form() {
    let (mut out, event) = (Vec::new(), event(EventKind::Failed(Failed::default())));
    failed_data(&mut out, &event, &relation(), "54000", b"{\"id\":1}", Some("x"));
    let expected = r#"{"schema":"public","table":"test","commit_timestamp":"2025-11-19T00:22:40.877Z","type":"*","columns":[],"record":{"id":1},"errors":["Error 413: Payload Too Large (54000, column \"x\")"]}"#;
    assert_eq!(String::from_utf8_lossy(&out), expected);
}

/// How long one event takes; run by hand with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_change_data() {
    let relation = relation();
    let columns = ColumnSet::all(&relation);
    let mut batch = BatchBuilder::default();
    let new = Some(row(&mut batch, ROW));
    let batch = batch.finish();
    let change = Change { relation: relation.into(), operation: Operation::Insert, old: None, new };
    let event = event(EventKind::Change(change.clone()));
    let envelope = Envelope::changes(V2, ROOM, &[104_868_189]);
    let meta = Meta::of(cursor(2), COMMIT_TIME);
    let mut frame_buf = FrameBuf::default();
    let broadcast = Envelope::broadcast(V2, ROOM, "INSERT");
    let mut out = Vec::new();
    let mut measure = |name: &str, run: &mut dyn FnMut(&mut Vec<u8>)| {
        const ROUNDS: u32 = 2_000_000;
        let start = std::time::Instant::now();
        for _ in 0..ROUNDS {
            out.clear();
            run(&mut out);
            std::hint::black_box(&out);
        }
        println!("{name}: {:?} per event, {} bytes", start.elapsed() / ROUNDS, out.len());
    };
    measure("change_data", &mut |out| change_data(out, &batch, &event, &change, &columns));
    measure("table_payload", &mut |out| table_payload(out, &batch, &change, &columns));
    measure("timestamp", &mut |out| super::timestamp::write(out, event.commit_time));
    let data = [b'x'; 400];
    measure("wrap", &mut |_| drop(std::hint::black_box(envelope.wrap(&mut frame_buf, &data))));
    measure("wrap_with", &mut |_| {
        drop(std::hint::black_box(broadcast.wrap_with(&mut frame_buf, &data, &meta)));
    });
}
