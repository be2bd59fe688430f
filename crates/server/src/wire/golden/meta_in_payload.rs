//! Events of ours whose `meta` stands in the payload as well, for clients that pass nothing else on; and
//! the frames of synced channels, which are the only ones that are not an [`Envelope`]'s.

use super::encode::{Listener, SnapshotPage};
use super::*;

const TABLE: &str = "realtime:tide:table:public.t";

const META: &str = r#"{"id":"0000002a000001.000000000100000000000002","commit_timestamp":"2025-11-19T00:22:40.877Z","last_in_tx":true}"#;

fn listener(vsn: Vsn, meta_in_payload: bool) -> Listener<'static> {
    Listener { vsn, topic: TABLE, meta_in_payload }
}

/// A broadcast in version 2.
fn broadcast(event: &str, payload: &str, meta: &str) -> String {
    format!(
        r#"[null,null,"{TABLE}","broadcast",{{"type":"broadcast","event":"{event}","payload":{payload},"meta":{meta}}}]"#
    )
}

#[test]
fn the_last_member_of_the_payload_is_the_meta() {
    let meta = Meta { last_in_tx: true, in_payload: true, ..Meta::of(cursor(2), COMMIT_TIME) };
    for (payload, expected) in [
        (r#"{"a":1}"#, format!(r#"{{"a":1,"_meta":{META}}}"#)),
        ("{}", format!(r#"{{"_meta":{META}}}"#)),
        ("{ \n} ", format!("{{ \n\"_meta\":{META}}}")),
        (r#"{"a":{}}"#, format!(r#"{{"a":{{}},"_meta":{META}}}"#)),
        (r#"{"a":"{"}"#, format!(r#"{{"a":"{{","_meta":{META}}}"#)),
        // Whoever reads the frame keeps the last of two.
        (r#"{"_meta":{"id":"x"}}"#, format!(r#"{{"_meta":{{"id":"x"}},"_meta":{META}}}"#)),
    ] {
        assert_frame(
            &alone_with(V2, TABLE, "INSERT", payload.as_bytes(), &meta),
            &broadcast("INSERT", &expected, META),
        );
    }
    assert_frame(
        &alone_with(V1, ROOM, "edit", br#"{"data":1}"#, &meta),
        &format!(
            r#"{{"topic":"realtime:room1","event":"broadcast","payload":{{"type":"broadcast","event":"edit","payload":{{"data":1,"_meta":{META}}},"meta":{META}}},"ref":null}}"#
        ),
    );
}

#[test]
fn a_page_of_rows_says_where_to_go_on() {
    let page = SnapshotPage {
        table: ("public", "t"),
        rows: r#"[{"id":1}]"#,
        is_fresh: true,
        resume: Some("sealed"),
    };
    let members = r#""schema":"public","table":"t","fresh":true,"rows":[{"id":1}]"#;
    let meta = r#"{"resume":"sealed"}"#;
    assert_frame(
        &encode::snapshot(listener(V2, false), page),
        &broadcast("SNAPSHOT", &format!("{{{members}}}"), meta),
    );
    assert_frame(
        &encode::snapshot(listener(V2, true), page),
        &broadcast("SNAPSHOT", &format!(r#"{{{members},"_meta":{meta}}}"#), meta),
    );
    let rest = SnapshotPage { rows: "[]", is_fresh: false, resume: None, ..page };
    assert_frame(
        &encode::snapshot(listener(V1, false), rest),
        &format!(
            r#"{{"topic":"{TABLE}","event":"broadcast","payload":{{"type":"broadcast","event":"SNAPSHOT","payload":{{"schema":"public","table":"t","rows":[]}},"meta":{{"resume":null}}}},"ref":null}}"#
        ),
    );
}

#[test]
fn the_end_of_the_rows_has_a_position() {
    let members = r#""rows":12"#;
    let meta = r#"{"id":"0000002a000001.000000000100000000000001","resume":"sealed"}"#;
    assert_frame(
        &encode::up_to_date(listener(V2, false), 12, cursor(1), Some("sealed")),
        &broadcast("up_to_date", &format!("{{{members}}}"), meta),
    );
    assert_frame(
        &encode::up_to_date(listener(V2, true), 12, cursor(1), Some("sealed")),
        &broadcast("up_to_date", &format!(r#"{{{members},"_meta":{meta}}}"#), meta),
    );
}

#[test]
fn a_row_that_was_read_has_no_position() {
    let members = r#""schema":"public","table":"t","operation":"UPDATE","record":{"id":1},"old_record":{"id":1}"#;
    let meta = r#"{"cause":"read","resume":null}"#;
    let read_row = |meta_in_payload| {
        let images = (r#"{"id":1}"#, r#"{"id":1}"#);
        let to = listener(V2, meta_in_payload);
        encode::read_row(to, ("public", "t"), Operation::Update, images)
    };
    assert_frame(&read_row(false), &broadcast("UPDATE", &format!("{{{members}}}"), meta));
    assert_frame(
        &read_row(true),
        &broadcast("UPDATE", &format!(r#"{{{members},"_meta":{meta}}}"#), meta),
    );
}
