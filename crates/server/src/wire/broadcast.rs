//! What clients say to each other, as frames for those who hear it.

use bytes::Bytes;
use tide_feed::json;

use super::Vsn;
use super::encode::{Address, push};

/// A broadcast of JSON. What is no object becomes one, `{"data": ...}`, and `meta.wrapped` says so:
/// some clients cannot take anything else.
pub fn json_frame(vsn: Vsn, topic: &str, event: &str, payload: &str) -> Bytes {
    let mut out = Vec::with_capacity(64 + event.len() + payload.len());
    out.extend_from_slice(b"{\"type\":\"broadcast\",\"event\":");
    json::write_str(&mut out, event);
    out.extend_from_slice(b",\"payload\":");
    let wrapped = !payload.starts_with('{');
    let (before, after): (&[u8], &[u8]) =
        if wrapped { (b"{\"data\":", b"},\"meta\":{\"wrapped\":true}}") } else { (b"", b"}") };
    for part in [before, payload.as_bytes(), after] {
        out.extend_from_slice(part);
    }
    push(vsn, Address::of(topic), "broadcast", &out)
}

/// A broadcast of bytes, which only `vsn` 2 can carry: kind 4. `None`: its event's name, or its
/// topic's, is longer than the 255 bytes that the form has room for.
pub fn binary_frame(topic: &str, event: &str, payload: &[u8]) -> Option<Bytes> {
    let (topic_len, event_len) = (u8::try_from(topic.len()), u8::try_from(event.len()));
    let header = [4, topic_len.ok()?, event_len.ok()?, 0, 0];
    Some([&header, topic.as_bytes(), event.as_bytes(), payload].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: &str = "realtime:room1";

    #[test]
    fn json_goes_as_text_to_both_versions() {
        let frame = |vsn| json_frame(vsn, ROOM, "hi", r#"{"x":1}"#);

        let v1 = r#"{"topic":"realtime:room1","event":"broadcast","payload":{"type":"broadcast","event":"hi","payload":{"x":1}},"ref":null}"#;
        let v2 = r#"[null,null,"realtime:room1","broadcast",{"type":"broadcast","event":"hi","payload":{"x":1}}]"#;
        assert_eq!(frame(Vsn::V1), v1);
        assert_eq!(frame(Vsn::V2), v2);
    }

    #[test]
    fn what_is_no_object_is_wrapped() {
        for payload in ["null", "1", "[1]", r#""text""#] {
            let frame = json_frame(Vsn::V2, ROOM, "e", payload);

            let expected = format!(
                r#"[null,null,"realtime:room1","broadcast",{{"type":"broadcast","event":"e","payload":{{"data":{payload}}},"meta":{{"wrapped":true}}}}]"#
            );
            assert_eq!(frame, expected);
        }
    }

    #[test]
    fn bytes_go_in_the_form_of_kind_4() {
        let frame = binary_frame(ROOM, "hi", &[0, 255]).expect("short names");

        assert_eq!(&frame[..], b"\x04\x0e\x02\x00\x00realtime:room1hi\x00\xff");
        assert_eq!(binary_frame(ROOM, &"x".repeat(256), b""), None);
    }
}
