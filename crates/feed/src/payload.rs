//! What a message to a channel carries.

/// Appends the data as a broadcast's payload, which has to be an object; anything else is made its
/// `data`. True if it was.
pub fn write_payload(out: &mut Vec<u8>, data: &[u8]) -> bool {
    let is_object = data.trim_ascii_start().starts_with(b"{");
    if is_object {
        out.extend_from_slice(data);
    } else {
        out.reserve(data.len() + 9);
        out.extend_from_slice(b"{\"data\":");
        out.extend_from_slice(data);
        out.push(b'}');
    }
    !is_object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_always_an_object() {
        for (data, payload, wrapped) in [
            (r#"{"a": 1}"#, r#"{"a": 1}"#, false),
            (" {}", " {}", false),
            ("[{}]", r#"{"data":[{}]}"#, true),
            (r#""{""#, r#"{"data":"{"}"#, true),
            ("null", r#"{"data":null}"#, true),
        ] {
            let mut out = Vec::new();
            assert_eq!(write_payload(&mut out, data.as_bytes()), wrapped, "{data}");
            assert_eq!(String::from_utf8(out).expect("UTF-8"), payload);
        }
    }
}
