//! Whatever a client sends is a frame or an error, and what is sent back is well-formed JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tide_server::topic::Topic;
use tide_server::wire::Vsn;
use tide_server::wire::decode::{ClientEvent, ClientFrame, decode_binary, decode_text};
use tide_server::wire::encode::{self, Address};

fuzz_target!(|message: &[u8]| {
    if let Ok(frame) = decode_binary(message) {
        answer(Vsn::V2, &frame);
    }
    let Ok(text) = str::from_utf8(message) else { return };
    for vsn in [Vsn::V1, Vsn::V2] {
        if let Ok(frame) = decode_text(vsn, text) {
            answer(vsn, &frame);
        }
    }
    if let Ok(topic) = Topic::parse(text) {
        let _ = topic.legacy_parts();
    }
});

/// The answers repeat parts of the client's frame, so they must be escaped.
fn answer(vsn: Vsn, frame: &ClientFrame) {
    let address = Address {
        join_ref: frame.join_ref.as_deref(),
        ref_: frame.ref_.as_deref(),
        topic: &frame.topic,
    };
    let mut answers = vec![encode::ok(vsn, address), encode::error(vsn, address, &frame.topic)];
    if let ClientEvent::Join(join) = &frame.event {
        answers.push(encode::joined(vsn, address, &join.postgres_changes).at(None));
        for params in &join.postgres_changes {
            answers.push(encode::unsubscribable(vsn, address.join_ref, address.topic, params));
        }
    }
    for answer in answers {
        serde_json::from_slice::<serde_json::Value>(&answer).expect("an answer is JSON");
    }
}
