//! JSON objects read loosely: any member may be missing or of the wrong type.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of a JSON object, each as its text; of equal names the last one counts.
#[derive(Debug, Default)]
pub(super) struct Members<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Members<'a> {
    /// `None` if `json` is not an object; `null` is an empty one.
    pub(super) fn of(json: &'a str) -> Option<Members<'a>> {
        serde_json::from_str::<Option<Members<'a>>>(json).ok().map(Option::unwrap_or_default)
    }

    /// The member's text; `None` as well if it is `null`.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(|raw| raw.get()).filter(|json| *json != "null")
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The object at `name`, empty if there is none.
    pub(super) fn object(&self, name: &str) -> Members<'a> {
        self.get(name).and_then(Members::of).unwrap_or_default()
    }

    /// Whether the member is true; clients write booleans as strings, too.
    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "\"true\""))
    }

    /// The members in alphabetical order of their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(name, raw)| (name.as_str(), raw.get()))
    }
}

/// The string that `json` is, if it is one.
pub(super) fn text(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}

/// The list that `json` is, each member as its text, if it is one.
pub(super) fn list(json: &str) -> Option<Vec<&str>> {
    let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    Some(items.into_iter().map(RawValue::get).collect())
}

/// The list of strings that `json` is, if it is one.
pub(super) fn texts(json: &str) -> Option<Vec<String>> {
    serde_json::from_str(json).ok()
}

/// The number that `json` is, also if it is written as a string.
pub(super) fn number<T: std::str::FromStr>(json: &str) -> Option<T> {
    json.trim_matches('"').parse().ok()
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
            members.insert(name, value);
        }
        Ok(Members(members))
    }
}
