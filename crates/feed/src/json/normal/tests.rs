//! JSON texts: the form, and what it takes to write it.

use proptest::prelude::*;

use super::*;

fn printed(text: &str) -> Result<String, Unprintable> {
    within(text, usize::MAX)
}

/// Printed behind something else, in so many bytes.
fn within(text: &str, limit: usize) -> Result<String, Unprintable> {
    let mut out = b"before".to_vec();
    let end = limit.saturating_add(out.len());
    let result = normalise(&mut Bounded::new(&mut out, end, limit), text.as_bytes());
    assert!(out.len() <= end);
    result?;
    Ok(String::from_utf8(out.split_off(6)).expect("JSON stays UTF-8"))
}

#[test]
fn texts_take_the_form_of_jsonb() {
    for (text, expected) in [
        (" 1 ", "1"),
        ("[]", "[]"),
        ("{}", "{}"),
        ("[1,2 , [ ]]", "[1, 2, []]"),
        (r#"{"b":1,"a":2}"#, r#"{"a": 2, "b": 1}"#),
        (r#"{"aa":1,"b":2}"#, r#"{"b": 2, "aa": 1}"#),
        (r#"{"a":1,"a":{"c":[1,{}],"b":null}}"#, r#"{"a": {"b": null, "c": [1, {}]}}"#),
        (r#"{"a":1,"\u0061":2,"b":3}"#, r#"{"a": 2, "b": 3}"#),
        (r#""\u00e9\/\ud83d\ude00\n\u001f""#, "\"é/😀\\n\\u001f\""),
        (r#"[1.50, 1e3, -0, true]"#, "[1.50, 1000, 0, true]"),
    ] {
        assert_eq!(printed(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn what_jsonb_refuses_stays_as_written() {
    for text in [r#""\u0000""#, r#""\ud800x""#, r#"{"\u0000": 1}"#, "1e999999"] {
        assert_eq!(printed(text).as_deref(), Ok(text));
    }
}

#[test]
fn what_is_no_json_is_refused() {
    for text in
        ["", "{", "[1", "\"", "\"\\", "\"\\u12\"", "{1:2}", "tru", "1 2", "[1 2]", "{\"a\" 1}"]
    {
        assert_eq!(printed(text), Err(NotJson), "{text}");
    }
    assert_eq!(printed(&"[".repeat(100_000)), Err(NotJson));
}

#[test]
fn numbers_that_would_fill_gigabytes_are_not_printed() {
    let text = format!("[{}1]", "1e131071,".repeat(40_000));
    assert_eq!(within(&text, 16 << 20), Err(Overflow::Limit.into()));
}

#[test]
fn unsorted_keys_at_every_level_are_moved_once() {
    // 2 MB in each of 5,000 levels would be 10 GB if each level copied what it holds.
    let depth = 5_000;
    let pad = "x".repeat(2 << 20);
    let open = r#"{"b": 1, "aa": 2, "a": "#.repeat(depth);
    let text = format!("{open}\"{pad}\"{}", "}".repeat(depth));

    let got = printed(&text).expect("JSON");

    let open = r#"{"a": "#.repeat(depth);
    let expected = format!("{open}\"{pad}\"{}", r#", "b": 1, "aa": 2}"#.repeat(depth));
    assert!(got == expected);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(text in ".*") {
        let _ = printed(&text);
    }

    #[test]
    fn the_form_is_stable(keys in proptest::collection::vec("[a-c\"\\\\é]{0,3}", 0..6)) {
        let members: Vec<String> = keys.iter().enumerate()
            .map(|(i, key)| format!("{}:{i}", serde_json::to_string(key).expect("a string")))
            .collect();
        let once = printed(&format!("{{{}}}", members.join(","))).expect("JSON");
        prop_assert_eq!(printed(&once).expect("JSON"), once);
    }

    #[test]
    fn what_is_written_is_whole_or_ends_at_the_limit(value in nested(), limit in 0_usize..80) {
        let mut text = String::new();
        value.write(&mut text, false);
        let whole = printed(&text).expect("JSON");
        match within(&text, limit) {
            Ok(got) => prop_assert_eq!(got, whole),
            // All is written at first, doubles of keys as well, and a number's length is only
            // known roughly before.
            Err(error) => {
                prop_assert_eq!(error, Overflow::Limit.into());
                prop_assert!(text.len() + 2 > limit);
            }
        }
    }

    #[test]
    fn nested_objects_are_sorted_at_every_level(value in nested()) {
        let sorted = |value: &Json| { let mut text = String::new(); value.write(&mut text, true); text };
        let mut text = String::new();
        value.write(&mut text, false);
        prop_assert_eq!(printed(&text).expect("JSON"), sorted(&value));
    }
}
/// JSON as a model: objects keep the order and the doubles of their keys.
#[derive(Clone, Debug)]
enum Json {
    Number(u8),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    fn write(&self, text: &mut String, sorted: bool) {
        match self {
            Json::Number(number) => text.push_str(&number.to_string()),
            Json::Array(items) => {
                let list = items.iter().map(|item| (String::new(), item)).collect();
                Json::list(text, ('[', ']'), list, sorted);
            }
            Json::Object(members) => {
                let mut list: Vec<(String, &Json)> = Vec::new();
                for (index, (key, value)) in members.iter().enumerate() {
                    let again = |(later, _): &(String, Json)| later == key;
                    if !sorted || !members[index + 1..].iter().any(again) {
                        list.push((format!("\"{key}\": "), value));
                    }
                }
                if sorted {
                    list.sort_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
                }
                Json::list(text, ('{', '}'), list, sorted);
            }
        }
    }

    fn list(text: &mut String, ends: (char, char), list: Vec<(String, &Json)>, sorted: bool) {
        text.push(ends.0);
        for (index, (key, value)) in list.into_iter().enumerate() {
            text.push_str(if index > 0 { ", " } else { "" });
            text.push_str(&key);
            value.write(text, sorted);
        }
        text.push(ends.1);
    }
}

fn nested() -> impl Strategy<Value = Json> {
    any::<u8>().prop_map(Json::Number).prop_recursive(5, 60, 5, |inner| {
        let members = proptest::collection::vec(("[a-c]{0,2}", inner.clone()), 0..5);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Json::Array),
            members.prop_map(Json::Object),
        ]
    })
}
