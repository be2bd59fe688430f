//! Who is present on a channel: what its members track of themselves, and how that changes.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use tide_feed::json;

/// One join of a channel by one connection. It tracks at most one meta at a time.
pub type MemberId = u64;

/// What one member tracks, as all members see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    member: MemberId,
    /// Unique among all metas ever: clients tell them apart by it.
    reference: u64,
    /// The reference of the meta in whose place this one came.
    previous: Option<u64>,
    details: Details,
}

/// What a client tracks: the members of a JSON object, without its braces, in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details(Box<str>);

impl Details {
    /// `None` if `json` is not an object. `phx_ref` and `phx_ref_prev` are the server's to set: a
    /// client that sent them could pass for another.
    pub fn of(json: &str) -> Option<Details> {
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).ok()?;
        let mut out = Vec::with_capacity(json.len());
        for (name, value) in &members {
            if matches!(name.as_str(), "phx_ref" | "phx_ref_prev") {
                continue;
            }
            if !out.is_empty() {
                out.push(b',');
            }
            json::write_key(&mut out, name);
            out.extend_from_slice(value.get().as_bytes());
        }
        String::from_utf8(out).ok().map(|text| Details(text.into()))
    }

    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

impl Meta {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"phx_ref\":\"");
        json::write_hex(out, self.reference, 16);
        out.push(b'"');
        if let Some(previous) = self.previous {
            out.extend_from_slice(b",\"phx_ref_prev\":\"");
            json::write_hex(out, previous, 16);
            out.push(b'"');
        }
        if !self.details.0.is_empty() {
            out.push(b',');
            out.extend_from_slice(self.details.0.as_bytes());
        }
        out.push(b'}');
    }

    fn bytes(&self) -> usize {
        size_of::<Meta>() + self.details.bytes()
    }
}

/// What one `track` or `untrack` changed: at most one meta each way, of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    key: Box<str>,
    joined: Option<Meta>,
    left: Option<Meta>,
}

impl Diff {
    /// `{"joins": {...}, "leaves": {...}}`, the payload of a `presence_diff`.
    pub fn write(&self, out: &mut Vec<u8>) {
        for (name, meta) in [("{\"joins\":{", &self.joined), ("},\"leaves\":{", &self.left)] {
            out.extend_from_slice(name.as_bytes());
            if let Some(meta) = meta {
                write_metas(out, &self.key, std::slice::from_ref(meta));
            }
        }
        out.extend_from_slice(b"}}");
    }
}

/// What came of a `track`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// The member tracks just this already.
    Unchanged,
    Changed(Diff),
    /// No more metas fit: refused.
    Full,
}

/// The presence of one channel.
#[derive(Debug, Default)]
pub struct Room {
    keys: BTreeMap<Box<str>, Vec<Meta>>,
    metas: usize,
    bytes: usize,
}

impl Room {
    /// Puts `details` in the place of what the member tracked before. `reference`: never used
    /// before; `limit`: metas that the room may hold.
    pub fn track(
        &mut self,
        member: MemberId,
        key: &str,
        details: Details,
        reference: u64,
        limit: usize,
    ) -> Tracked {
        let before = self.find(member, key);
        if before.is_some_and(|meta| meta.details == details) {
            return Tracked::Unchanged;
        }
        if before.is_none() && self.metas >= limit {
            return Tracked::Full;
        }
        let left = self.remove(member, key);
        let previous = left.as_ref().map(|meta| meta.reference);
        let meta = Meta { member, reference, previous, details };
        self.metas += 1;
        self.bytes += key.len() + meta.bytes();
        self.keys.entry(key.into()).or_default().push(meta.clone());
        Tracked::Changed(Diff { key: key.into(), joined: Some(meta), left })
    }

    /// Takes away what the member tracks; `None` if that is nothing.
    pub fn untrack(&mut self, member: MemberId, key: &str) -> Option<Diff> {
        let left = self.remove(member, key)?;
        Some(Diff { key: key.into(), joined: None, left: Some(left) })
    }

    pub fn is_empty(&self) -> bool {
        self.metas == 0
    }

    /// Memory that one more meta takes, about.
    pub fn bytes_of(key: &str, details: &Details) -> usize {
        key.len() + size_of::<Meta>() + details.bytes()
    }

    /// Memory that the metas take, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `{"<key>": {"metas": [...]}, ...}`, the payload of a `presence_state`.
    pub fn write_state(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (index, (key, metas)) in self.keys.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_metas(out, key, metas);
        }
        out.push(b'}');
    }

    fn find(&self, member: MemberId, key: &str) -> Option<&Meta> {
        self.keys.get(key)?.iter().find(|meta| meta.member == member)
    }

    fn remove(&mut self, member: MemberId, key: &str) -> Option<Meta> {
        let metas = self.keys.get_mut(key)?;
        let index = metas.iter().position(|meta| meta.member == member)?;
        let meta = metas.remove(index);
        if metas.is_empty() {
            self.keys.remove(key);
        }
        self.metas -= 1;
        self.bytes -= key.len() + meta.bytes();
        Some(meta)
    }
}

fn write_metas(out: &mut Vec<u8>, key: &str, metas: &[Meta]) {
    json::write_key(out, key);
    out.extend_from_slice(b"{\"metas\":[");
    for (index, meta) in metas.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        meta.write(out);
    }
    out.extend_from_slice(b"]}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn details(value: &Value) -> Details {
        Details::of(&value.to_string()).expect("an object")
    }

    fn state(room: &Room) -> Value {
        let mut out = Vec::new();
        room.write_state(&mut out);
        serde_json::from_slice(&out).expect("JSON")
    }

    fn payload(diff: &Diff) -> Value {
        let mut out = Vec::new();
        diff.write(&mut out);
        serde_json::from_slice(&out).expect("JSON")
    }

    fn changed(tracked: Tracked) -> Diff {
        match tracked {
            Tracked::Changed(diff) => diff,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_track_joins_and_an_untrack_leaves() {
        let mut room = Room::default();

        let joined = changed(room.track(1, "me", details(&json!({"at": "home"})), 0xA, 10));

        let meta = json!({"phx_ref": "000000000000000a", "at": "home"});
        assert_eq!(payload(&joined), json!({"joins": {"me": {"metas": [meta]}}, "leaves": {}}));
        assert_eq!(state(&room), json!({"me": {"metas": [meta]}}));
        let left = room.untrack(1, "me").expect("it was there");
        assert_eq!(payload(&left), json!({"joins": {}, "leaves": {"me": {"metas": [meta]}}}));
        assert_eq!(state(&room), json!({}));
        assert!(room.is_empty());
        assert_eq!(room.bytes(), 0);
        assert_eq!(room.untrack(1, "me"), None);
    }

    #[test]
    fn a_change_leaves_and_joins_at_once_and_names_what_it_replaces() {
        let mut room = Room::default();
        room.track(1, "me", details(&json!({"n": 1})), 1, 10);

        let diff = changed(room.track(1, "me", details(&json!({"n": 2})), 2, 10));

        let before = json!({"phx_ref": "0000000000000001", "n": 1});
        let after = json!({
            "phx_ref": "0000000000000002", "phx_ref_prev": "0000000000000001", "n": 2,
        });
        let both = json!({
            "joins": {"me": {"metas": [after]}}, "leaves": {"me": {"metas": [before]}},
        });
        assert_eq!(payload(&diff), both);
        assert_eq!(state(&room), json!({"me": {"metas": [after]}}));
    }

    #[test]
    fn the_same_again_is_no_change_in_whatever_order_its_members_come() {
        let mut room = Room::default();
        room.track(1, "me", Details::of(r#"{"a":1,"b":2}"#).unwrap(), 1, 10);

        let again = room.track(1, "me", Details::of(r#"{"b":2, "a":1}"#).unwrap(), 2, 10);

        assert_eq!(again, Tracked::Unchanged);
    }

    #[test]
    fn two_seats_of_one_key_are_two_metas() {
        let mut room = Room::default();
        room.track(1, "me", details(&json!({"device": "phone"})), 1, 10);
        room.track(2, "me", details(&json!({"device": "laptop"})), 2, 10);

        let metas = state(&room)["me"]["metas"].clone();
        assert_eq!(metas.as_array().map(Vec::len), Some(2));

        let left = payload(&room.untrack(1, "me").unwrap());
        assert_eq!(left["leaves"]["me"]["metas"][0]["device"], "phone");
        assert_eq!(state(&room)["me"]["metas"][0]["device"], "laptop");
    }

    #[test]
    fn a_full_room_takes_changes_but_nobody_new() {
        let mut room = Room::default();
        room.track(1, "a", details(&json!({})), 1, 1);

        assert_eq!(room.track(2, "b", details(&json!({})), 2, 1), Tracked::Full);
        assert!(matches!(room.track(1, "a", details(&json!({"n": 1})), 3, 1), Tracked::Changed(_)));
        room.untrack(1, "a");
        assert!(matches!(room.track(2, "b", details(&json!({})), 4, 1), Tracked::Changed(_)));
    }

    #[test]
    fn a_client_cannot_choose_its_reference() {
        let mut room = Room::default();
        let forged = json!({"phx_ref": "f", "phx_ref_prev": "e", "n": 1});

        room.track(1, "me", details(&forged), 7, 10);

        let meta = json!({"phx_ref": "0000000000000007", "n": 1});
        assert_eq!(state(&room), json!({"me": {"metas": [meta]}}));
    }

    #[test]
    fn only_objects_are_tracked() {
        for json in ["", "null", "1", "[]", "\"text\"", "{", "{\"a\":}"] {
            assert_eq!(Details::of(json), None, "{json}");
        }
        assert_eq!(Details::of("{}"), Some(Details::default()));
    }

    /// A client that starts from a state and applies diffs, as Phoenix's do.
    fn apply(view: &mut Value, diff: &Value) {
        for (key, joined) in diff["joins"].as_object().unwrap() {
            let metas = view[key]["metas"].as_array().cloned().unwrap_or_default();
            let added = joined["metas"].as_array().unwrap();
            let metas = [metas, added.clone()].concat();
            view[key] = json!({"metas": metas});
        }
        for (key, left) in diff["leaves"].as_object().unwrap() {
            let gone: BTreeSet<String> = left["metas"]
                .as_array()
                .unwrap()
                .iter()
                .map(|meta| meta["phx_ref"].to_string())
                .collect();
            let metas = view[key]["metas"].as_array().cloned().unwrap_or_default();
            let rest: Vec<Value> = metas
                .into_iter()
                .filter(|meta| !gone.contains(&meta["phx_ref"].to_string()))
                .collect();
            if rest.is_empty() {
                view.as_object_mut().unwrap().remove(key);
            } else {
                view[key] = json!({"metas": rest});
            }
        }
    }

    proptest! {
        #[test]
        fn state_and_diffs_agree(
            steps in prop::collection::vec((0..4u64, 0..3u8, 0..3u8), 0..60), cut in 0..60usize,
        ) {
            let mut room = Room::default();
            let mut view = json!({});
            for (index, (member, step, n)) in steps.into_iter().enumerate() {
                if index == cut {
                    view = state(&room);
                }
                // A member has one key; two members may share it.
                let key = ["a", "b", "a\"\n", "a"][member as usize];
                let diff = if step == 0 {
                    room.untrack(member, key)
                } else {
                    let reference = index as u64;
                    match room.track(member, key, details(&json!({"n": n})), reference, 3) {
                        Tracked::Changed(diff) => Some(diff),
                        Tracked::Unchanged | Tracked::Full => None,
                    }
                };
                if let Some(diff) = diff {
                    apply(&mut view, &payload(&diff));
                }
                prop_assert_eq!(&view, &state(&room));
            }
        }

        #[test]
        fn any_text_is_an_object_or_nothing(text: String) {
            let _ = Details::of(&text);
        }
    }
}
