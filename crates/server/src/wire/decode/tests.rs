use proptest::prelude::*;
use serde_json::{Value, json};
use tide_feed::event::Operation;

use super::*;
use crate::wire::encode;
use crate::wire::join::{Replay, Requested};

fn v1(message: &str) -> ClientFrame {
    decode_text(Vsn::V1, message).expect(message)
}

fn v2(message: &str) -> ClientFrame {
    decode_text(Vsn::V2, message).expect(message)
}

fn join(message: &str) -> JoinPayload {
    match v2(message).event {
        ClientEvent::Join(join) => *join,
        other => panic!("a join, not {other:?}"),
    }
}

/// A join with this `config`.
fn configured(config: &Value) -> JoinPayload {
    join(&json!(["6", "6", "realtime:r", "phx_join", {"config": config}]).to_string())
}

#[test]
fn join_of_the_current_client_is_read_whole() {
    let frame = v2(r#"["6","6","realtime:room1","phx_join",{"config":{
        "broadcast":{"ack":true,"self":true,"replay":{"since":1763407103911,"limit":10}},
        "presence":{"key":"me","enabled":true},
        "postgres_changes":[
            {"event":"*","schema":"public","table":"todos","filter":"id=eq.1"},
            {"event":"INSERT","schema":"public","table":"users","select":["id"]}],
        "private":true},"access_token":"JWT1"}]"#);

    assert_eq!(frame.join_ref.as_deref(), Some("6"));
    assert_eq!(frame.ref_.as_deref(), Some("6"));
    assert_eq!(frame.topic, "realtime:room1");
    let ClientEvent::Join(join) = frame.event else { panic!("a join") };
    assert!(join.broadcast.ack && join.broadcast.echo && join.private);
    assert!(!join.wait && !join.legacy && join.malformed.is_none());
    let replay = Replay { since: 1_763_407_103_911, limit: Some(10) };
    assert_eq!(join.broadcast.replay, Some(replay));
    assert_eq!(join.presence.key.as_deref(), Some("me"));
    assert!(join.presence.enabled);
    assert_eq!(join.access_token.as_deref(), Some("JWT1"));
    let [todos, users] = join.postgres_changes.as_slice() else { panic!("two bindings") };
    assert_eq!(todos.event, Requested::All);
    assert_eq!(todos.target(), Some(("public", "todos")));
    assert_eq!(todos.filter.as_deref(), Some("id=eq.1"));
    assert_eq!(users.event, Requested::One(Operation::Insert));
    assert_eq!(users.select.as_deref(), Some(&["id".to_owned()][..]));
}

#[test]
fn join_of_the_old_client_is_legacy_and_brings_its_token_by_the_old_name() {
    let frame = v1(r#"{"topic":"realtime:public:users:id=eq.1","event":"phx_join",
            "payload":{"user_token":"JWT"},"ref":"1","join_ref":"1"}"#);

    let ClientEvent::Join(join) = frame.event else { panic!("a join") };
    assert!(join.legacy);
    assert_eq!(join.access_token.as_deref(), Some("JWT"));
    assert_eq!(frame.join_ref.as_deref(), Some("1"));
}

#[test]
fn own_options_of_a_join_are_read_from_the_broadcast_config() {
    let join = configured(&json!({"broadcast": {
        "since": "0000000100000100000000000000000100000000", "last": "50", "snapshot": true,
        "filter": "status=eq.open", "select": ["id", "status"], "events": ["INSERT", "delete"],
        "meta_in_payload": true,
    }, "postgres_changes_options": {"wait": "true"}}));

    assert!(join.broadcast.since.is_some() && join.broadcast.snapshot && join.wait);
    assert!(join.broadcast.meta_in_payload);
    assert_eq!(join.broadcast.last, Some(50));
    assert_eq!(join.broadcast.filter.as_deref(), Some("status=eq.open"));
    assert_eq!(join.broadcast.select.map(|names| names.len()), Some(2));
    assert_eq!(join.broadcast.events, Some(vec![Operation::Insert, Operation::Delete]));
    assert_eq!(join.malformed, None);
}

#[test]
fn own_options_that_cannot_be_read_are_reported() {
    for broadcast in [
        json!({"since": 5}),
        json!({"last": -1}),
        json!({"last": "many"}),
        json!({"filter": ["a=eq.1"]}),
        json!({"select": "id"}),
        json!({"select": [1]}),
        json!({"events": []}),
        json!({"events": ["UPSERT"]}),
    ] {
        let join = configured(&json!({"broadcast": broadcast}));
        assert!(join.malformed.is_some(), "{broadcast}");
    }
    let nulls = json!({"since": null, "last": null, "filter": " ", "events": null});
    let join = configured(&json!({"broadcast": nulls}));
    assert_eq!(join.malformed, None);
    assert_eq!(join.broadcast, Default::default());
}

#[test]
fn what_is_wrong_in_a_join_falls_back_to_defaults() {
    let defaults = configured(&json!({}));
    for config in [
        json!(null),
        json!([]),
        json!("x"),
        json!({"broadcast": 1, "presence": [], "postgres_changes": {}, "private": "yes"}),
        json!({"postgres_changes": [null, null], "postgres_changes_options": true}),
    ] {
        assert_eq!(configured(&config), defaults, "{config}");
    }
    let strings = configured(&json!({"broadcast": {"self": "true", "ack": "false"}}));
    assert!(strings.broadcast.echo && !strings.broadcast.ack);
}

#[test]
fn bindings_keep_their_order_and_extra_members_but_no_id_of_the_clients() {
    let join = configured(&json!({"postgres_changes": [
        null,
        {"event": "UPDATE", "schema": "s", "x": {"y": [1, "ä\n"]}, "id": 7},
        {"table": "t", "filter": "", "event": null},
    ]}));

    let [first, second] = join.postgres_changes.as_slice() else { panic!("two bindings") };
    assert_eq!(&*first.raw, r#""event":"UPDATE","schema":"s","x":{"y":[1,"ä\n"]}"#);
    assert_eq!(first.target(), Some(("s", "*")));
    assert_eq!(second.target(), Some(("public", "t")));
    assert_eq!((&second.event, second.filter.as_deref()), (&Requested::All, None));
}

#[test]
fn binding_with_a_member_of_a_wrong_type_is_malformed_rather_than_wider() {
    for binding in [
        json!({"schema": 1, "table": "t"}),
        json!({"schema": "s", "table": ["t"]}),
        json!({"schema": "s", "filter": {}}),
        json!({"schema": "s", "table": "t", "select": "id"}),
        json!({"event": 1, "schema": "s"}),
    ] {
        let join = configured(&json!({"postgres_changes": [binding]}));
        let malformed = join.postgres_changes.first().map(|params| params.malformed.is_some());
        assert_eq!(malformed, Some(true), "{binding}");
    }
}

#[test]
fn every_other_event_of_the_client_is_told_apart() {
    assert!(matches!(v2(r#"[null,"26","phoenix","heartbeat",{}]"#).event, ClientEvent::Heartbeat));
    let leave = r#"{"topic":"realtime:a","event":"phx_leave","payload":{},"ref":13}"#;
    let leave = v1(leave);
    assert!(matches!(leave.event, ClientEvent::Leave));
    assert_eq!((leave.ref_.as_deref(), leave.join_ref), (Some("13"), None));
    let token = v2(r#"["6","11","realtime:a","access_token",{"access_token":"JWT2"}]"#).event;
    assert!(matches!(token, ClientEvent::AccessToken(Some(token)) if token == "JWT2"));
    let token = v2(r#"["6","11","realtime:a","access_token",{"access_token":null}]"#).event;
    assert!(matches!(token, ClientEvent::AccessToken(None)));
    let other = v2(r#"["6","11","realtime:a","postgres_changes",null]"#).event;
    assert!(matches!(other, ClientEvent::Other(name) if name == "postgres_changes"));
    let track = v2(r#"["6","9","realtime:a","presence",
        {"type":"presence","event":"TRACK","payload":{"user":"u1"}}]"#);
    assert!(matches!(track.event,
        ClientEvent::Presence(Presence::Track(Some(map))) if map.get() == r#"{"user":"u1"}"#));
    let track = v2(r#"["6","9","realtime:a","presence",{"event":"track","payload":"u1"}]"#);
    assert!(matches!(track.event, ClientEvent::Presence(Presence::Track(None))));
    let untrack = v2(r#"["6","9","realtime:a","presence",{"event":"untrack"}]"#);
    assert!(matches!(untrack.event, ClientEvent::Presence(Presence::Untrack)));
}

#[test]
fn broadcast_keeps_its_payload_as_it_was_written() {
    let frame = v2(r#"["10","1","realtime:chat","broadcast",
            {"type":"broadcast","event":"e","payload":{"n":9007199254740993,"f":1.10}}]"#);

    let ClientEvent::Broadcast(broadcast) = frame.event else { panic!("a broadcast") };
    assert_eq!(broadcast.event, "e");
    assert!(matches!(broadcast.payload,
        Payload::Json(json) if json.get() == r#"{"n":9007199254740993,"f":1.10}"#));
}

/// `send({type: 'broadcast', event: 'hi', payload: {x: 1}})`, as captured.
const BINARY: &[u8] = b"\x03\x01\x01\x0e\x02\x00\x0167realtime:room1hi{\"x\":1}";

#[test]
fn binary_broadcast_is_read_as_captured() {
    let frame = decode_binary(BINARY).expect("as captured");

    assert_eq!((frame.join_ref.as_deref(), frame.ref_.as_deref()), (Some("6"), Some("7")));
    assert_eq!(frame.topic, "realtime:room1");
    let ClientEvent::Broadcast(broadcast) = frame.event else { panic!("a broadcast") };
    assert_eq!(broadcast.event, "hi");
    assert!(matches!(broadcast.payload, Payload::Json(json) if json.get() == r#"{"x":1}"#));

    let frame = decode_binary(b"\x03\x00\x00\x01\x01\x02\x00te{}\xff\x00").expect("binary");
    assert_eq!((frame.join_ref, frame.ref_), (None, None));
    assert!(matches!(frame.event,
        ClientEvent::Broadcast(Broadcast { payload: Payload::Binary(b), .. }) if b == b"\xff\x00"));
}

#[test]
fn binary_broadcast_cut_anywhere_is_refused_or_has_less_payload() {
    let header = BINARY.len() - 7;
    for length in 0..BINARY.len() {
        let cut = BINARY.get(..length).expect("shorter");
        // Nothing at all stands for an empty payload.
        assert_eq!(decode_binary(cut).is_ok(), length == header, "{length}");
    }
    for kind in [0, 1, 2, 4, 255] {
        assert!(decode_binary(&[kind, 0, 0, 0, 0, 0, 0]).is_err());
    }
    assert!(decode_binary(&[3, 0, 0, 0, 0, 0, 2]).is_err());
    assert!(decode_binary(b"\x03\x00\x00\x01\x00\x00\x00\xff").is_err());
}

#[test]
fn messages_that_are_no_frames_are_told_apart() {
    use DecodeError::*;
    type Check = fn(&DecodeError) -> bool;
    let cases: [(&str, Check); 14] = [
        ("", |e| matches!(e, NotJson)),
        ("hello", |e| matches!(e, NotJson)),
        ("[null,null,\"t\",\"e\",{}", |e| matches!(e, NotJson)),
        ("[null,null,\"t\",\"e\",{}] x", |e| matches!(e, NotJson)),
        ("{}", |e| matches!(e, NotAFrame(_))),
        ("[]", |e| matches!(e, NotAFrame(_))),
        ("null", |e| matches!(e, NotAFrame(_))),
        ("[1,2,3,4,5]", |e| matches!(e, NotAFrame(_))),
        ("[{},null,\"t\",\"e\",{}]", |e| matches!(e, NotAFrame(_))),
        ("[true,null,\"t\",\"e\",{}]", |e| matches!(e, NotAFrame(_))),
        ("[null,null,null,\"e\",{}]", |e| matches!(e, NotAFrame(_))),
        ("[\"1\",\"2\",\"t\",\"phx_join\",[]]", |e| matches!(e, Payload { .. })),
        ("[\"1\",\"2\",\"t\",\"broadcast\",{}]", |e| matches!(e, Payload { .. })),
        ("[\"1\",\"2\",\"t\",\"presence\",7]", |e| matches!(e, Payload { .. })),
    ];
    for (message, expected) in cases {
        let error = decode_text(Vsn::V2, message).expect_err(message);
        assert!(expected(&error), "{message}: {error:?}");
    }
    assert!(matches!(decode_text(Vsn::V1, "[null,null,\"t\",\"e\",{}]"), Err(NotAFrame(_))));
}

#[test]
fn refused_payload_says_whom_to_answer() {
    let message = r#"{"topic":"realtime:a","event":"broadcast","payload":"x","ref":"9"}"#;

    let error = decode_text(Vsn::V1, message).expect_err("no object");

    let DecodeError::Payload { ref_, topic, event, .. } = error else { panic!("{error:?}") };
    assert_eq!((ref_.as_deref(), &*topic, &*event), (Some("9"), "realtime:a", "broadcast"));
}

#[test]
fn depth_is_bounded_and_brackets_in_strings_do_not_count() {
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!(r#"["1","2","t","broadcast",{{"event":"e","payload":{open}{close}}}]"#)
    };
    // The frame and its payload object are two levels.
    assert!(decode_text(Vsn::V2, &nested(MAX_DEPTH - 2)).is_ok());
    let too_deep = decode_text(Vsn::V2, &nested(MAX_DEPTH - 1));
    assert!(matches!(too_deep, Err(DecodeError::TooDeep)));
    let endless = "[".repeat(1 << 20);
    assert!(matches!(decode_text(Vsn::V2, &endless), Err(DecodeError::TooDeep)));
    let mut binary = b"\x03\x00\x00\x01\x01\x00\x01te".to_vec();
    binary.extend_from_slice(endless.as_bytes());
    assert!(matches!(decode_binary(&binary), Err(DecodeError::TooDeep)));

    let brackets = format!(r#"["1","2","t","e",{{"a":"\"{}"}}]"#, "[\\\\".repeat(200));
    assert!(decode_text(Vsn::V2, &brackets).is_ok());
}

#[test]
fn ref_too_long_to_be_one_is_refused() {
    let message = |length| format!(r#"[null,"{}","t","e",{{}}]"#, "1".repeat(length));
    assert!(decode_text(Vsn::V2, &message(255)).is_ok());
    assert!(decode_text(Vsn::V2, &message(256)).is_err());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z*\\\\\"ä]{0,6}".prop_map(Value::from),
    ];
    let names = prop_oneof![
        "config|broadcast|presence|postgres_changes|private|event|payload|schema|table|filter",
        "select|since|last|events|replay|access_token|postgres_changes_options|wait|id|key",
    ];
    leaf.prop_recursive(5, 60, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(names.clone(), inner, 0..8)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

fn any_event() -> impl Strategy<Value = String> {
    "phx_join|phx_leave|heartbeat|access_token|broadcast|presence|[a-z]{0,4}"
}

proptest! {
    #[test]
    fn any_bytes_are_a_frame_or_an_error(bytes: Vec<u8>) {
        let _ = decode_binary(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = decode_text(Vsn::V1, &text);
        let _ = decode_text(Vsn::V2, &text);
    }

    #[test]
    fn any_binary_header_is_a_frame_or_an_error(header: [u8; 6], body: Vec<u8>) {
        let message: Vec<u8> = [&[3], &header[..], &body].concat();
        let _ = decode_binary(&message);
    }

    #[test]
    fn any_payload_is_a_frame_or_an_error_and_a_join_can_be_echoed(
        event in any_event(), payload in any_json()
    ) {
        let message = json!(["1", "2", "realtime:a", event, payload]).to_string();
        let Ok(frame) = decode_text(Vsn::V2, &message) else { return Ok(()) };
        if let ClientEvent::Join(join) = &frame.event {
            let reply = encode::joined(Vsn::V2, frame.address(), &join.postgres_changes).at(None);
            let reply: Value = serde_json::from_slice(&reply).expect("JSON");
            let echoed = reply[4]["response"]["postgres_changes"].as_array().map(Vec::len);
            prop_assert_eq!(echoed, Some(join.postgres_changes.len()));
        }
    }

    #[test]
    fn frames_survive_encoding_and_decoding(
        join_ref: Option<u16>, ref_ in prop::option::of("[ -~]{0,8}"), topic: String,
        event in "[a-z\"\\\\]{0,9}x", payload in any_json()
    ) {
        let join_ref = join_ref.map(|number| number.to_string());
        let to = encode::Address {
            join_ref: join_ref.as_deref(), ref_: ref_.as_deref(), topic: &topic,
        };
        let payload = json!({"event": "e", "payload": payload}).to_string();
        for vsn in [Vsn::V1, Vsn::V2] {
            for sent in [event.as_str(), "broadcast"] {
                let bytes = encode::push(vsn, to, sent, payload.as_bytes());
                let text = str::from_utf8(&bytes).expect("UTF-8");
                let frame = decode_text(vsn, text).expect(text);
                prop_assert_eq!(&frame.ref_, &ref_);
                prop_assert_eq!(&frame.topic, &topic);
                if vsn == Vsn::V2 {
                    prop_assert_eq!(&frame.join_ref, &join_ref);
                }
                let same = match frame.event {
                    ClientEvent::Other(name) => name == event,
                    ClientEvent::Broadcast(Broadcast { payload: Payload::Json(json), .. }) =>
                        json.get() == "{}" || payload.contains(json.get()),
                    _ => false,
                };
                prop_assert!(same, "{}", text);
            }
        }
    }
}
