//! JSON compared by meaning but for numbers of any precision, which `serde_json::Value` would
//! round to floats.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// One spelling for each JSON value: keys sorted, no white space, strings escaped one way,
/// numbers as digits and exponent.
pub fn canonical(raw: &str) -> String {
    let raw = raw.trim();
    match raw.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = parse(raw);
            let members: Vec<String> = members
                .iter()
                .map(|(key, value)| {
                    format!("{}:{}", serde_json::to_string(key).unwrap(), canonical(value.get()))
                })
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = parse(raw);
            let items: Vec<String> = items.iter().map(|item| canonical(item.get())).collect();
            format!("[{}]", items.join(","))
        }
        Some(b'"') => {
            let text: String = parse(raw);
            serde_json::to_string(&text).unwrap()
        }
        Some(b'-' | b'0'..=b'9') => number(raw),
        _ => raw.to_owned(),
    }
}

/// The members of an object, each as its own text.
pub fn members(raw: &str) -> BTreeMap<String, &RawValue> {
    parse(raw)
}

#[track_caller]
fn parse<'a, T: serde::Deserialize<'a>>(raw: &'a str) -> T {
    serde_json::from_str(raw).unwrap_or_else(|error| panic!("not JSON ({error}): {raw}"))
}

fn number(raw: &str) -> String {
    let (mantissa, exponent) = raw.split_once(['e', 'E']).unwrap_or((raw, "0"));
    let mut exponent: i64 = exponent.parse().unwrap();
    let (sign, digits) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    exponent -= fraction.len() as i64;
    let digits = format!("{whole}{fraction}");
    let trimmed = digits.trim_end_matches('0');
    exponent += (digits.len() - trimmed.len()) as i64;
    match trimmed.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => format!("{sign}{digits}e{exponent}"),
    }
}

#[test]
fn numbers_are_equal_however_they_are_spelt() {
    for (a, b) in
        [("1e+20", "100000000000000000000"), ("0.10", "1e-1"), ("-0", "0"), ("12.0", "12")]
    {
        assert_eq!(canonical(a), canonical(b), "{a} {b}");
    }
    assert_ne!(canonical("9007199254740993"), canonical("9007199254740992"));
    assert_ne!(canonical("1"), canonical("-1"));
}
