//! Channel names as clients write them, and what they mean.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

/// What every topic begins with on the wire.
pub const PREFIX: &str = "realtime:";

/// Bytes of a topic, prefix included: its length must fit a byte of a binary frame.
pub const MAX_LENGTH: usize = 255;

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
    #[error(
        "TopicNameInvalid: Expected tide:table:<schema>.<table>, names with dots in double quotes"
    )]
    TableName,
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
        let kind = if let Some(table) = name.strip_prefix("tide:table:") {
            let (schema, table) = qualified_name(table).ok_or(TopicError::TableName)?;
            Kind::Table { schema: schema.into(), table: table.into() }
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

/// [`Topic::legacy_parts`]. `None` is all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacyParts<'a> {
    pub schema: Option<&'a str>,
    pub table: Option<&'a str>,
    pub filter: Option<&'a str>,
}

/// `schema.table`; a name with dots or quotes stands in double quotes, as in SQL. Case is kept
/// with or without quotes.
fn qualified_name(text: &str) -> Option<(String, String)> {
    let (schema, rest) = identifier(text)?;
    let (table, rest) = identifier(rest.strip_prefix('.')?)?;
    rest.is_empty().then_some((schema, table))
}

/// The name that `text` begins with, and what follows it.
fn identifier(text: &str) -> Option<(String, &str)> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted_identifier(quoted)?,
        None => {
            let (name, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
            (Some(name.to_owned()).filter(|name| !name.contains('"'))?, rest)
        }
    };
    (!name.is_empty()).then_some((name, rest))
}

/// A quoted name after its opening quote; a doubled quote stands for one.
fn quoted_identifier(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (plain, tail) = rest.split_once('"')?;
        name.push_str(plain);
        match tail.strip_prefix('"') {
            Some(tail) => {
                name.push('"');
                rest = tail;
            }
            None => return Some((name, tail)),
        }
    }
}
