//! Whatever a client sends is a frame or an error, and whatever is answered to it is JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pg_tide::topic::Topic;
use pg_tide::wire::Vsn;
use pg_tide::wire::decode::{ClientEvent, ClientFrame, decode_binary, decode_text};
use pg_tide::wire::encode;
use serde_json::Value;

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

fn answer(vsn: Vsn, frame: &ClientFrame) {
    let to = frame.address();
    let mut answers = vec![encode::ok(vsn, to), encode::error(vsn, to, &frame.topic)];
    if let ClientEvent::Join(join) = &frame.event {
        answers.push(encode::joined(vsn, to, &join.postgres_changes));
        let join_ref = frame.join_ref.as_deref();
        for params in &join.postgres_changes {
            answers.push(encode::unsubscribable(vsn, join_ref, &frame.topic, params));
        }
    }
    for answer in answers {
        serde_json::from_slice::<Value>(&answer).expect("an answer is JSON");
    }
}
