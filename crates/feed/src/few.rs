//! Lists that have an end: whoever reads them does not take a few bytes of JSON for much memory.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Items of one list in a question.
pub(crate) const MOST: usize = 1 << 20;

/// Reads a list of at most [`MOST`] items.
pub(crate) fn few<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    at_most::<MOST, D, T>(deserializer)
}

/// Reads a list of at most `END` items.
pub(crate) fn at_most<'de, const END: usize, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Few<const END: usize, T>(PhantomData<T>);

    impl<'de, const END: usize, T: Deserialize<'de>> Visitor<'de> for Few<END, T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {END} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() >= END {
                    return Err(A::Error::invalid_length(END + 1, &self));
                }
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(Few::<END, T>(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{MOST_ROWS, Request, Which};

    fn retire(count: usize) -> String {
        let ids = vec!["7"; count].join(",");
        format!(r#"{{"op":"retire","table":1,"ids":[{ids}],"keep":false}}"#)
    }

    #[test]
    fn a_list_in_a_question_has_an_end() {
        let most = MOST_ROWS as usize;
        assert!(serde_json::from_str::<Request>(&retire(most)).is_ok());
        assert!(serde_json::from_str::<Request>(&retire(most + 1)).is_err());
    }

    #[test]
    fn a_list_of_tables_in_a_question_has_an_end() {
        let oids = |count| format!(r#"{{"oids":[{}]}}"#, vec!["7"; count].join(","));

        assert!(serde_json::from_str::<Which>(&oids(MOST)).is_ok());
        assert!(serde_json::from_str::<Which>(&oids(MOST + 1)).is_err());
    }
}
