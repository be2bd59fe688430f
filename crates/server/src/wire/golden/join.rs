//! The answer to a join, and the end of what is replayed after it.

use super::*;

#[test]
fn join_is_answered_with_the_bindings_and_their_ids() {
    let todos = params(r#""event":"*","schema":"public","table":"todos","filter":"id=eq.1""#);
    let users = params(r#""event":"INSERT","schema":"public","table":"users","select":["id"]"#);
    let (first, second) = (binding_id(&todos), binding_id(&users));
    let changes = [todos, users, params("")];
    let third = binding_id(&params(""));
    assert_frame(
        &encode::joined(V2, JOIN, &changes).at(None),
        &format!(
            r#"["6","6","realtime:room1","phx_reply",{{"status":"ok","response":{{"postgres_changes":[{{"id":{first},"event":"*","schema":"public","table":"todos","filter":"id=eq.1"}},{{"id":{second},"event":"INSERT","schema":"public","table":"users","select":["id"]}},{{"id":{third}}}]}}}}]"#
        ),
    );
    assert_frames(
        |vsn| encode::joined(vsn, JOIN, &[]).at(Some(cursor(1))),
        r#"{"topic":"realtime:room1","event":"phx_reply","payload":{"status":"ok","response":{"postgres_changes":[],"position":"0000002a000001.000000000100000000000001"}},"ref":"6"}"#,
        r#"["6","6","realtime:room1","phx_reply",{"status":"ok","response":{"postgres_changes":[],"position":"0000002a000001.000000000100000000000001"}}]"#,
    );
}

#[test]
fn join_of_the_old_client_is_answered_with_the_subscription_its_topic_is() {
    let topic = "realtime:public:users:id=eq.1";
    let parsed = Topic::parse(topic).expect("a topic");
    let params = ChangeParams::legacy(&parsed.legacy_parts());
    let id = binding_id(&params);
    assert_eq!(params.target(), Some(("public", "users")));
    assert_frame(
        &encode::joined(V1, Address { join_ref: Some("1"), ref_: Some("1"), topic }, &[params])
            .at(None),
        &format!(
            r#"{{"topic":"realtime:public:users:id=eq.1","event":"phx_reply","payload":{{"status":"ok","response":{{"postgres_changes":[{{"id":{id},"filter":"id=eq.1","schema":"public","table":"users"}}]}}}},"ref":"1"}}"#
        ),
    );
}

#[test]
fn the_end_of_a_replay_is_told() {
    assert_frames(
        |vsn| encode::caught_up(vsn, ROOM, cursor(1)),
        r#"{"topic":"realtime:room1","event":"system","payload":{"message":"caught up; position 0000002a000001.000000000100000000000001","status":"ok","extension":"tide.caught_up","channel":"room1","position":"0000002a000001.000000000100000000000001"},"ref":null}"#,
        r#"[null,null,"realtime:room1","system",{"message":"caught up; position 0000002a000001.000000000100000000000001","status":"ok","extension":"tide.caught_up","channel":"room1","position":"0000002a000001.000000000100000000000001"}]"#,
    );
}
