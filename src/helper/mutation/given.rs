//! Values that a client has given, as SQL takes them: each a parameter of its column's own type, so that no
//! type has to be named, and is none that the client may not name. What is an array or an object to JSON,
//! but no JSON to its column, is taken apart by Postgres.

use std::collections::BTreeMap;
use std::ffi::c_char;

use pgrx::{IntoDatum, pg_sys};
use serde_json::value::RawValue;
use tide_feed::mutation::Fields;

use crate::encoding;
use crate::helper::mutation::target::OpenTarget;
use crate::helper::table::Column;
use crate::helper::transaction::Refusal;
use crate::server_text::ServerText;

/// The parameters of a statement.
#[derive(Default)]
pub(crate) struct Parameters {
    pub(crate) types: Vec<pg_sys::Oid>,
    pub(crate) values: Vec<pg_sys::Datum>,
    /// A space for each that is there, an `n` for each that is NULL, as SPI wants it.
    pub(crate) nulls: Vec<c_char>,
}

impl Parameters {
    /// What SQL calls it.
    fn push(&mut self, type_id: pg_sys::Oid, value: Option<pg_sys::Datum>) -> String {
        self.types.push(type_id);
        self.values.push(value.unwrap_or(pg_sys::Datum::null()));
        self.nulls.push(if value.is_some() { b' ' } else { b'n' } as c_char);
        format!("${}", self.types.len())
    }
}

/// Fields as SQL takes them.
pub(crate) struct Given {
    /// What has to stand among the tables.
    pub(crate) from: Option<String>,
    expressions: BTreeMap<String, String>,
}

impl Given {
    /// `alias`: what the fields that are taken apart are a row of.
    pub(crate) fn new(
        target: &OpenTarget<'_>,
        fields: &Fields,
        alias: &str,
        parameters: &mut Parameters,
    ) -> Result<Given, Refusal> {
        let (mut expressions, mut apart) = (BTreeMap::new(), Fields::new());
        for (name, json) in fields {
            let column = target.column(name)?;
            let expression = match Text::of(&column, json) {
                Text::Null => parameters.push(column.type_id, None),
                Text::Plain(text) => {
                    let value = input(&column, &text);
                    parameters.push(column.type_id, Some(value))
                }
                Text::None => {
                    apart.insert(name.clone(), json.clone());
                    format!("{alias}.{}", column.bare())
                }
            };
            expressions.insert(name.clone(), expression);
        }
        let from = match apart.is_empty() {
            true => None,
            false => {
                let json = serde_json::to_string(&apart).unwrap_or_default();
                let parameter = parameters.push(pg_sys::TEXTOID, ServerText(json).into_datum());
                Some(target.taken_apart(&apart, &parameter, alias)?)
            }
        };
        Ok(Given { from, expressions })
    }

    /// The value of a field.
    pub(crate) fn expression(&self, name: &str) -> &str {
        self.expressions.get(name).map_or("null", String::as_str)
    }

    /// Those of all fields, in the order of their names.
    pub(crate) fn expressions(&self) -> impl Iterator<Item = &str> {
        self.expressions.values().map(String::as_str)
    }
}

/// What the input function of a column's type is given.
enum Text {
    Null,
    Plain(String),
    /// It is nothing that such a function reads.
    None,
}

impl Text {
    fn of(column: &Column, json: &RawValue) -> Text {
        let json = json.get();
        let is_json = [pg_sys::JSONOID, pg_sys::JSONBOID].contains(&column.type_id);
        match json.as_bytes().first() {
            Some(b'n') => Text::Null,
            _ if is_json => Text::Plain(json.to_owned()),
            Some(b'{' | b'[') | None => Text::None,
            // What is no text of Postgres's is left for it to refuse.
            Some(b'"') => match serde_json::from_str::<String>(json) {
                Ok(text) if !text.contains('\0') => Text::Plain(text),
                _ => Text::None,
            },
            Some(_) => Text::Plain(json.to_owned()),
        }
    }
}

/// A value of the column's type, without its modifier: that is for the assignment to heed.
fn input(column: &Column, text: &str) -> pg_sys::Datum {
    let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    let text = encoding::server_text(text);
    // SAFETY: in a transaction; the function takes a C string, its parameter and a modifier.
    unsafe {
        pg_sys::getTypeInputInfo(column.type_id, &raw mut function, &raw mut parameter);
        pg_sys::OidInputFunctionCall(function, text, parameter, -1)
    }
}
