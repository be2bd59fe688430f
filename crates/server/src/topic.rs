//! Channel names as clients write them, and what they mean.

use std::fmt;
use std::sync::Arc;

pub use tide_feed::channel::{MAX_TOPIC as MAX_LENGTH, PREFIX};
use tide_feed::names::qualified_name;

/// What a topic of notifications begins with, after [`PREFIX`].
pub const NOTIFY: &str = "tide:notify:";
const SCHEMA: &str = "tide:schema";
const RECORDS: &str = "tide:records:";
const MUTATIONS: &str = "tide:mutations";

/// The longest name that Postgres gives a channel, in bytes.
const MAX_CHANNEL: usize = 63;

/// A checked topic, `realtime:` and a name. A cheap clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic {
    text: Arc<str>,
    kind: Kind,
}

/// What a topic is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `tide:table:<schema>.<table>`: the changes of one table.
    Table { schema: Arc<str>, table: Arc<str> },
    /// `tide:table:<schema>.*`: those of all tables of a schema; `tide:table:*`: of all.
    Tables { schema: Option<Arc<str>> },
    /// `tide:notify:<channel>`: what is notified to a channel of Postgres's.
    Notify { channel: Arc<str> },
    /// `tide:schema:<schema>`: tables that are made, altered or dropped in a schema, and the schema
    /// itself; `tide:schema`: in all of them.
    Schema { schema: Option<Arc<str>> },
    /// `tide:records:<schema>`: the records of a schema.
    Records { schema: Arc<str> },
    /// `tide:mutations`: nothing comes on it but the answers to what its client asks to be written.
    Mutations,
    /// Any other `tide:...`: not for clients to use as they like.
    Reserved,
    /// A channel of the application's own.
    Channel,
}

/// Why a text is not a topic. The texts are the reasons of join errors.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TopicError {
    #[error("TopicNameRequired: You must provide a topic name")]
    NameRequired,
    /// Phoenix's own answer for a topic that no channel is mounted at.
    #[error("unmatched topic")]
    Unmatched,
    #[error("TopicNameTooLong: A topic has at most 255 bytes")]
    TooLong,
    /// Postgres's texts cannot hold it, and policies would be asked about another name.
    #[error("TopicNameInvalid: A topic must not contain the null character")]
    Null,
    #[error(
        "TopicNameInvalid: Expected tide:table:<schema>.<table>, names with dots in double quotes"
    )]
    TableName,
    #[error(
        "TopicNameInvalid: Expected tide:notify:<channel>, a channel's name of 1 to 63 bytes without control characters"
    )]
    NotifyName,
    #[error("TopicNameInvalid: Expected tide:schema or tide:schema:<schema>")]
    SchemaName,
    #[error("TopicNameInvalid: Expected tide:records:<schema>")]
    RecordsName,
}

impl Topic {
    pub fn parse(text: &str) -> Result<Topic, TopicError> {
        let name = text.strip_prefix(PREFIX).ok_or(TopicError::Unmatched)?;
        if name.is_empty() {
            return Err(TopicError::NameRequired);
        }
        if text.len() > MAX_LENGTH {
            return Err(TopicError::TooLong);
        }
        if name.contains('\0') {
            return Err(TopicError::Null);
        }
        let kind = if let Some(table) = name.strip_prefix("tide:table:") {
            table_kind(table)?
        } else if let Some(channel) = name.strip_prefix(NOTIFY) {
            notify_kind(channel)?
        } else if let Some(schema) = name.strip_prefix(SCHEMA) {
            schema_kind(schema)?
        } else if let Some(schema) = name.strip_prefix(RECORDS) {
            records_kind(schema)?
        } else if name == MUTATIONS {
            Kind::Mutations
        } else if name.starts_with("tide:") {
            Kind::Reserved
        } else {
            Kind::Channel
        };
        Ok(Topic { text: text.into(), kind })
    }

    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// As on the wire, with the prefix.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// [`Topic::as_str`], shared.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// Without the prefix: what applications call the channel.
    pub fn name(&self) -> &str {
        self.text.strip_prefix(PREFIX).unwrap_or(&self.text)
    }

    /// The subscription that the name is in realtime-js 1.x,
    /// `<schema>[:<table>[:<filter>]]`; `*`, or nothing, is everything.
    pub fn legacy_parts(&self) -> LegacyParts<'_> {
        let mut parts = self.name().splitn(3, ':').map(|part| Some(part).filter(|p| !p.is_empty()));
        let mut next = || parts.next().flatten();
        let (schema, table, filter) = (next(), next(), next());
        LegacyParts {
            schema: schema.filter(|name| *name != "*"),
            table: table.filter(|name| *name != "*"),
            filter,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A `*` that is not in quotes stands for all names.
fn table_kind(text: &str) -> Result<Kind, TopicError> {
    if text == "*" {
        return Ok(Kind::Tables { schema: None });
    }
    let (schema, table) = qualified_name(text).ok_or(TopicError::TableName)?;
    Ok(if text.ends_with(".*") {
        Kind::Tables { schema: Some(schema.into()) }
    } else {
        Kind::Table { schema: schema.into(), table: table.into() }
    })
}

/// Whether a name is of the form of a pattern, in which `*` stands for any characters.
pub fn fits(pattern: &str, name: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(begin) else { return false };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    // The first place for each piece leaves the most for those after it.
    for piece in middle.split('*') {
        let Some((_, after)) = name.split_once(piece) else { return false };
        name = after;
    }
    name.ends_with(end)
}

fn notify_kind(channel: &str) -> Result<Kind, TopicError> {
    let is_fit = (1..=MAX_CHANNEL).contains(&channel.len()) && !channel.contains(char::is_control);
    if !is_fit {
        return Err(TopicError::NotifyName);
    }
    Ok(Kind::Notify { channel: channel.into() })
}

/// Nothing, or a colon and a schema's name as it is, without quotes.
fn schema_kind(text: &str) -> Result<Kind, TopicError> {
    if text.is_empty() {
        return Ok(Kind::Schema { schema: None });
    }
    match text.strip_prefix(':') {
        Some(schema) if !schema.is_empty() => Ok(Kind::Schema { schema: Some(schema.into()) }),
        _ => Err(TopicError::SchemaName),
    }
}

/// The schema's name as it is, without quotes.
fn records_kind(schema: &str) -> Result<Kind, TopicError> {
    if schema.is_empty() {
        return Err(TopicError::RecordsName);
    }
    Ok(Kind::Records { schema: schema.into() })
}

/// [`Topic::legacy_parts`]. `None` is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacyParts<'a> {
    pub schema: Option<&'a str>,
    pub table: Option<&'a str>,
    pub filter: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Topic {
        Topic::parse(text).expect(text)
    }

    fn table(text: &str) -> (String, String) {
        match parse(text).kind() {
            Kind::Table { schema, table } => (schema.to_string(), table.to_string()),
            other => panic!("{text} is a table, not {other:?}"),
        }
    }

    #[test]
    fn topics_are_told_apart_by_their_prefix() {
        assert_eq!(parse("realtime:room1").kind(), &Kind::Channel);
        assert_eq!(parse("realtime:*").kind(), &Kind::Channel);
        assert_eq!(parse("realtime:tide").kind(), &Kind::Channel);
        assert_eq!(parse("realtime:realtime:tide:x").kind(), &Kind::Channel);
        assert_eq!(parse("realtime:tide:").kind(), &Kind::Reserved);
        assert_eq!(parse("realtime:tide:table").kind(), &Kind::Reserved);
        assert_eq!(parse("realtime:tide:notify").kind(), &Kind::Reserved);
        assert_eq!(parse("realtime:tide:mutations").kind(), &Kind::Mutations);
        assert_eq!(parse("realtime:tide:mutations:x").kind(), &Kind::Reserved);
        let room = parse("realtime:a:b");
        assert_eq!((room.as_str(), room.name()), ("realtime:a:b", "a:b"));
        assert_eq!(room.to_string(), "realtime:a:b");
    }

    #[test]
    fn table_names_keep_their_case_and_are_quoted_as_in_sql() {
        let pair = |schema: &str, table: &str| (schema.to_owned(), table.to_owned());
        assert_eq!(table("realtime:tide:table:public.Orders"), pair("public", "Orders"));
        assert_eq!(table(r#"realtime:tide:table:"a.b"."c""#), pair("a.b", "c"));
        assert_eq!(table(r#"realtime:tide:table:a."b""c:""""#), pair("a", r#"b"c:""#));
        assert_eq!(table("realtime:tide:table:süß.größe x"), pair("süß", "größe x"));
    }

    #[test]
    fn a_star_outside_quotes_stands_for_all_names() {
        let kind = |text| parse(text).kind().clone();
        assert_eq!(kind("realtime:tide:table:*"), Kind::Tables { schema: None });
        let schema = Some("public".into());
        assert_eq!(kind("realtime:tide:table:public.*"), Kind::Tables { schema });
        assert_eq!(table(r#"realtime:tide:table:public."*""#), ("public".into(), "*".into()));
    }

    #[test]
    fn a_channel_of_postgres_has_a_name_of_any_characters() {
        for channel in ["jobs", "a:b.c", "Ünï \"x\"", "*", &"x".repeat(63)] {
            let topic = parse(&format!("realtime:tide:notify:{channel}"));
            assert_eq!(topic.kind(), &Kind::Notify { channel: channel.into() });
        }
    }

    #[test]
    fn a_channel_of_postgres_has_no_control_characters_in_its_name() {
        for channel in ["", "a\nb", "\t", "\u{7f}", "\u{1b}[2J", "\u{85}", &"x".repeat(64)] {
            let topic = format!("realtime:tide:notify:{channel}");
            assert_eq!(Topic::parse(&topic), Err(TopicError::NotifyName), "{channel:?}");
        }
    }

    #[test]
    fn a_star_in_a_pattern_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("jobs", "jobs", true),
            ("jobs", "jobs2", false),
            ("jobs", "Jobs", false),
            ("", "jobs", false),
            ("*", "any.thing", true),
            ("job*", "jobs", true),
            ("job*", "job", true),
            ("job*", "a job", false),
            ("*.done", "jobs.done", true),
            ("*.done", "jobs.done.not", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("*ab*ab*", "abab", true),
            ("*ab*ab*", "ab", false),
            ("**", "", true),
            ("ü*ß", "ü und ß", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn schema_changes_are_of_one_schema_or_of_all() {
        let kind = |text| parse(text).kind().clone();
        assert_eq!(kind("realtime:tide:schema"), Kind::Schema { schema: None });
        let schema = Some("Of me:x".into());
        assert_eq!(kind("realtime:tide:schema:Of me:x"), Kind::Schema { schema });
    }

    #[test]
    fn records_are_those_of_a_schema_whatever_its_name() {
        for schema in ["ds", "Mixed Case", "a:b.c", "\"*\"", "süß"] {
            let topic = parse(&format!("realtime:tide:records:{schema}"));
            assert_eq!(topic.kind(), &Kind::Records { schema: schema.into() });
        }
    }

    #[test]
    fn what_is_no_topic_is_refused() {
        let long = format!("realtime:{}", "x".repeat(247));
        for (text, error) in [
            ("", TopicError::Unmatched),
            ("room1", TopicError::Unmatched),
            ("phoenix", TopicError::Unmatched),
            ("Realtime:a", TopicError::Unmatched),
            ("realtime", TopicError::Unmatched),
            ("realtime:", TopicError::NameRequired),
            (&long, TopicError::TooLong),
            ("realtime:a\0b", TopicError::Null),
            ("realtime:tide:table:", TopicError::TableName),
            ("realtime:tide:table:orders", TopicError::TableName),
            ("realtime:tide:table:.orders", TopicError::TableName),
            ("realtime:tide:table:public.", TopicError::TableName),
            ("realtime:tide:table:a.b.c", TopicError::TableName),
            (r#"realtime:tide:table:"a.b"#, TopicError::TableName),
            (r#"realtime:tide:table:"a"b.c"#, TopicError::TableName),
            (r#"realtime:tide:table:a.b"c"#, TopicError::TableName),
            (r#"realtime:tide:table:""."c""#, TopicError::TableName),
            ("realtime:tide:records:", TopicError::RecordsName),
            ("realtime:tide:notify:", TopicError::NotifyName),
            (&format!("realtime:tide:notify:{}", "x".repeat(64)), TopicError::NotifyName),
            ("realtime:tide:notify:a\0b", TopicError::Null),
            ("realtime:tide:schema:", TopicError::SchemaName),
            ("realtime:tide:schemas", TopicError::SchemaName),
        ] {
            assert_eq!(Topic::parse(text), Err(error), "{text}");
        }
        assert!(Topic::parse(&long[..255]).is_ok());
    }

    #[test]
    fn old_topics_are_subscriptions() {
        let parts = |schema, table, filter| LegacyParts { schema, table, filter };
        for (topic, expected) in [
            ("realtime:*", parts(None, None, None)),
            ("realtime:public", parts(Some("public"), None, None)),
            ("realtime:public:*", parts(Some("public"), None, None)),
            ("realtime:*:users", parts(None, Some("users"), None)),
            ("realtime:public:users", parts(Some("public"), Some("users"), None)),
            ("realtime:p:u:id=eq.1", parts(Some("p"), Some("u"), Some("id=eq.1"))),
            ("realtime:p:u:at=eq.12:00:01", parts(Some("p"), Some("u"), Some("at=eq.12:00:01"))),
            ("realtime:p:u:", parts(Some("p"), Some("u"), None)),
        ] {
            assert_eq!(parse(topic).legacy_parts(), expected, "{topic}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_topic_or_an_error(text: String) {
            let _ = Topic::parse(&text);
            if let Ok(topic) = Topic::parse(&format!("realtime:tide:table:{text}")) {
                let is_table = matches!(topic.kind(), Kind::Table { .. } | Kind::Tables { .. });
                prop_assert!(is_table);
            }
            if let Ok(topic) = Topic::parse(&format!("realtime:{text}")) {
                prop_assert_eq!(topic.name(), &text);
                let _ = topic.legacy_parts();
            }
        }

        #[test]
        fn any_quoted_pair_of_names_is_read_back(
            schema in "[ -~äß]{1,20}", name in "[ -~äß]{1,20}"
        ) {
            let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
            let text = format!("realtime:tide:table:{}.{}", quoted(&schema), quoted(&name));
            prop_assert_eq!(table(&text), (schema, name));
        }
    }
}
