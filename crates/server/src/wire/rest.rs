//! Bodies of the REST endpoint for broadcasts.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::decode::{Broadcast, Payload, is_too_deep};

/// A broadcast and where it is to go.
#[derive(Debug)]
pub struct Addressed {
    /// Without `realtime:`.
    pub name: String,
    pub private: bool,
    pub broadcast: Broadcast,
}

/// Why a body is not what it should be. None of the texts has anything of the client's in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body is not JSON")]
    NotJson,
    #[error("the body is nested too deeply")]
    TooDeep,
    #[error(
        "expected {{\"messages\": [{{\"topic\": \"...\", \"event\": \"...\", \"payload\": {{...}}, \"private\": false}}]}}"
    )]
    NotMessages,
}

#[derive(Deserialize)]
struct Batch {
    messages: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    topic: String,
    event: String,
    payload: Box<RawValue>,
    #[serde(default)]
    private: Option<bool>,
}

/// `{"messages": [...]}`.
pub fn batch(body: &[u8]) -> Result<Vec<Addressed>, BodyError> {
    if is_too_deep(body) {
        return Err(BodyError::TooDeep);
    }
    let batch: Batch = serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => BodyError::NotMessages,
        _ => BodyError::NotJson,
    })?;
    let addressed = |entry: Entry| Addressed {
        name: entry.topic,
        private: entry.private.unwrap_or(false),
        broadcast: Broadcast { event: entry.event, payload: Payload::Json(entry.payload) },
    };
    Ok(batch.messages.into_iter().map(addressed).collect())
}

/// A payload alone.
pub fn payload(body: &[u8]) -> Result<Payload, BodyError> {
    if is_too_deep(body) {
        return Err(BodyError::TooDeep);
    }
    serde_json::from_slice(body).map(Payload::Json).map_err(|_| BodyError::NotJson)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_batch_is_read_with_its_payloads_as_they_are() {
        let body = br#"{"messages":[
            {"topic":"a","event":"e","payload":{"n":12345678901234567890.10},"private":true},
            {"topic":"b","event":"f","payload":null,"more":1}]}"#;

        let messages = batch(body).unwrap();

        let [first, second] = messages.as_slice() else { panic!("two messages") };
        assert_eq!((&*first.name, first.private, &*first.broadcast.event), ("a", true, "e"));
        let Payload::Json(json) = &first.broadcast.payload else { panic!("JSON") };
        assert_eq!(json.get(), r#"{"n":12345678901234567890.10}"#);
        assert!(!second.private);
        assert!(batch(br#"{"messages":[]}"#).unwrap().is_empty());
    }

    #[test]
    fn other_bodies_are_refused() {
        let deep = "[".repeat(1000);
        for (body, error) in [
            ("", BodyError::NotJson),
            ("{", BodyError::NotJson),
            ("[]", BodyError::NotMessages),
            ("{}", BodyError::NotMessages),
            (r#"{"messages":{}}"#, BodyError::NotMessages),
            (r#"{"messages":[{"topic":"a","event":"e"}]}"#, BodyError::NotMessages),
            (r#"{"messages":[{"topic":1,"event":"e","payload":{}}]}"#, BodyError::NotMessages),
            (&deep, BodyError::TooDeep),
        ] {
            assert_eq!(batch(body.as_bytes()).unwrap_err(), error, "{body}");
        }
        assert_eq!(payload(deep.as_bytes()).unwrap_err(), BodyError::TooDeep);
        assert_eq!(payload(b"{} {}").unwrap_err(), BodyError::NotJson);
        assert_eq!(payload(b"\xff").unwrap_err(), BodyError::NotJson);
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body: Vec<u8>, text in "[\\[\\]{}\":,a-z0-9]{0,80}") {
            let _ = (batch(&body), payload(&body), batch(text.as_bytes()));
        }
    }
}
