//! The labels of an enum type at some moment. A value is told from others by the oid of its label,
//! which stays the same when the label is renamed.

use serde::{Deserialize, Serialize};

use crate::event::{Column, Kind};

/// Labels of one type with their oids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Pairs", into = "Pairs")]
pub struct Labels {
    /// By oid.
    pairs: Box<[(u32, Box<str>)]>,
    by_label: Box<[Named]>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    label: Box<str>,
    oid: u32,
    /// See [`Labels::json_key`].
    key: Box<str>,
}

type Pairs = Vec<(u32, Box<str>)>;

impl From<Pairs> for Labels {
    fn from(pairs: Pairs) -> Labels {
        Labels::new(pairs)
    }
}

impl From<Labels> for Pairs {
    fn from(labels: Labels) -> Pairs {
        labels.pairs.into_vec()
    }
}

impl Labels {
    pub fn new(mut pairs: Vec<(u32, Box<str>)>) -> Labels {
        pairs.sort_unstable();
        let named = |(oid, label): &(u32, Box<str>)| Named {
            label: label.clone(),
            oid: *oid,
            key: json_key(*oid),
        };
        let mut by_label: Box<[Named]> = pairs.iter().map(named).collect();
        by_label.sort_unstable();
        Labels { pairs: pairs.into(), by_label }
    }

    pub fn label(&self, oid: u32) -> Option<&str> {
        let index = self.pairs.binary_search_by_key(&oid, |(oid, _)| *oid).ok()?;
        self.pairs.get(index).map(|(_, label)| &**label)
    }

    pub fn oid(&self, label: &str) -> Option<u32> {
        self.find(label).map(|named| named.oid)
    }

    /// A JSON string that stands for the label, whatever it is called: that of [`key`].
    pub fn json_key(&self, label: &str) -> Option<&[u8]> {
        self.find(label).map(|named| named.key.as_bytes())
    }

    /// Labels with their oids, by oid.
    pub fn pairs(&self) -> impl Iterator<Item = (u32, &str)> {
        self.pairs.iter().map(|(oid, label)| (*oid, &**label))
    }

    fn find(&self, label: &str) -> Option<&Named> {
        let index = self.by_label.binary_search_by_key(&label, |named| &named.label).ok()?;
        self.by_label.get(index)
    }
}

/// What stands for a label where values are compared: no text of Postgres's has a null character.
pub fn key(oid: u32) -> Vec<u8> {
    format!("\0{oid}").into_bytes()
}

/// Whether it stands for a label.
pub fn is_key(key: &[u8]) -> bool {
    key.first() == Some(&0)
}

fn json_key(oid: u32) -> Box<str> {
    // Read by nobody but `index_key`, which does not mind.
    format!("\"\0{oid}\"").into()
}

impl Column {
    /// A column without labels.
    pub fn new(attnum: i16, name: &str, type_name: &str, kind: Kind, identity: bool) -> Column {
        let (name, type_name, labels) = (name.into(), type_name.into(), Box::default());
        Column { attnum, name, type_name, kind, identity, labels, lossy: false, form: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_found_by_its_name_and_its_oid() {
        let labels = Labels::new(vec![(7, "b".into()), (9, "a".into()), (8, "\"".into())]);

        assert_eq!(labels.oid("a"), Some(9));
        assert_eq!(labels.oid("\""), Some(8));
        assert_eq!(labels.oid("c"), None);
        assert_eq!(labels.label(7), Some("b"));
        assert_eq!(labels.label(10), None);
    }
}
