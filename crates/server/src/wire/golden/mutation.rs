//! What clients are told of what they asked to be written.

use std::sync::Arc;

use serde_json::json;
use tide_feed::mutation::Settled;

use super::*;
use crate::wire::mutation::{Answer, Code, Echo, Failure, Name, Recipient, Verdict};

const EPOCH: Epoch = Epoch { generation: 42, timeline: 1 };

fn name() -> Name {
    Name { mutation_id: Some("m-1".into()), client_id: Some("c \"1\"".into()), n: Some(7) }
}

fn settled(outcome: serde_json::Value) -> Answer {
    let settled: Settled =
        serde_json::from_value(json!({ "lsn": 0x1001, "outcome": outcome })).expect("an outcome");
    Answer { name: name(), verdict: Verdict::Settled(settled) }
}

fn to(vsn: Vsn, waits: bool) -> Recipient {
    let (join_ref, ref_) = (Some("6".into()), Some("9".into()));
    Recipient { vsn, join_ref, ref_, topic: Arc::from(ROOM), waits }
}

#[track_caller]
fn assert_json(answer: &Answer, expected: &str) {
    assert_eq!(answer.json(Some(EPOCH), Echo::First), expected);
}

#[test]
fn an_answer_is_an_event_after_the_reply_to_the_push() {
    let answer = settled(json!({ "status": "confirmed", "returning": [{ "id": 1 }, null] }));
    let frames = |vsn, waits| answer.frames(&to(vsn, waits), Some(EPOCH), Echo::First);

    let [reply, _] = &frames(V2, true)[..] else { panic!("a reply and an event") };
    assert_frame(reply, r#"["6","9","realtime:room1","phx_reply",{"status":"ok","response":{}}]"#);
    assert_frames(
        |vsn| frames(vsn, false).remove(0),
        r#"{"topic":"realtime:room1","event":"broadcast","payload":{"type":"broadcast","event":"tide:mutation","payload":{"mutation_id":"m-1","client_id":"c \"1\"","n":7,"status":"confirmed","position":"0000002a000001.0000000000001000ffffffff","returning":[{"id":1},null]}},"ref":null}"#,
        r#"[null,null,"realtime:room1","broadcast",{"type":"broadcast","event":"tide:mutation","payload":{"mutation_id":"m-1","client_id":"c \"1\"","n":7,"status":"confirmed","position":"0000002a000001.0000000000001000ffffffff","returning":[{"id":1},null]}}]"#,
    );
}

#[test]
fn what_was_not_done_is_an_error_reply() {
    let rejection = json!({ "op": 1, "sqlstate": "23505", "reason": "taken", "current": null });
    let rejected = settled(json!({ "status": "rejected", "rejection": rejection }));
    let failed = Answer::failed(name(), Failure::new(Code::Rate, "slowly"));

    for (answer, reason) in [(rejected, "taken"), (failed, "slowly")] {
        let [reply, event] = &answer.frames(&to(V1, true), None, Echo::First)[..] else {
            panic!("a reply and an event")
        };
        assert_frame(
            reply,
            &format!(
                r#"{{"topic":"realtime:room1","event":"phx_reply","payload":{{"status":"error","response":{{"error":"{reason}"}}}},"ref":"9"}}"#
            ),
        );
        assert!(event.starts_with(br#"{"topic":"realtime:room1","event":"broadcast""#));
    }
}

#[test]
fn an_outcome_says_where_it_lies_if_that_can_be_said() {
    let bare = settled(json!({ "status": "confirmed" }));

    assert_json(
        &bare,
        r#"{"mutation_id":"m-1","client_id":"c \"1\"","n":7,"status":"confirmed","position":"0000002a000001.0000000000001000ffffffff"}"#,
    );
    assert_eq!(
        bare.json(None, Echo::Skipped),
        r#"{"mutation_id":"m-1","client_id":"c \"1\"","n":7,"status":"confirmed","echo":"skipped"}"#
    );
}

#[test]
fn a_rejection_says_which_operation_and_what_there_is() {
    let rejected = |op, current| {
        let rejection =
            json!({ "op": op, "sqlstate": "TD004", "reason": "newer", "current": current });
        settled(json!({ "status": "rejected", "rejection": rejection }))
    };
    assert_json(
        &rejected(json!(0), json!({ "id": 1 })),
        r#"{"mutation_id":"m-1","client_id":"c \"1\"","n":7,"status":"rejected","position":"0000002a000001.0000000000001000ffffffff","op":0,"sqlstate":"TD004","reason":"newer","current":{"id":1}}"#,
    );
    assert_json(
        &rejected(json!(null), json!(null)),
        r#"{"mutation_id":"m-1","client_id":"c \"1\"","n":7,"status":"rejected","position":"0000002a000001.0000000000001000ffffffff","op":null,"sqlstate":"TD004","reason":"newer","current":null}"#,
    );
}

#[test]
fn an_error_says_why_and_of_which_mutation_as_far_as_that_is_known() {
    let missing = Failure { expected: Some(5), ..Failure::new(Code::OutOfOrder, "5 is missing") };
    assert_json(
        &Answer::failed(name(), missing),
        r#"{"mutation_id":"m-1","client_id":"c \"1\"","n":7,"status":"error","code":"out_of_order","expected":5,"reason":"5 is missing"}"#,
    );
    let refused =
        Failure { sqlstate: Some("42501".into()), ..Failure::new(Code::Refused, "may not") };
    assert_json(
        &Answer::failed(Name::default(), refused),
        r#"{"mutation_id":null,"client_id":null,"n":null,"status":"error","code":"refused","sqlstate":"42501","reason":"may not"}"#,
    );
}
