//! Calls of functions that clients may make.

use pgrx::{PgSqlErrorCode, Spi};
use serde::Deserialize;
use serde_json::value::RawValue;
use tide_feed::mutation::Fields;
use tide_feed::names::qualified_name;

use crate::encoding;
use crate::helper::answer::{self, parse};
use crate::helper::plan::Plan;
use crate::helper::table::{quoted_name, quoted_names};
use crate::helper::transaction::Refusal;
use crate::server_text::ServerText;

thread_local! {
    static LOOKED_UP: Plan =
        const { Plan::new(include_str!("../../../sql/catalog/callable.sql")) };
}

/// A function that clients may call.
#[derive(Clone, Deserialize)]
pub(crate) struct Callable {
    is_set: bool,
    /// How many of the last arguments need not be given.
    defaults: usize,
    arguments: Vec<Argument>,
    /// As SQL names it.
    #[serde(skip)]
    name: String,
}

#[derive(Clone, Deserialize)]
struct Argument {
    name: String,
    #[serde(rename = "type")]
    type_sql: String,
}

impl Callable {
    /// The one of this name that takes these arguments. As the extension's owner.
    pub(crate) fn look_up(name: &str, given: &Fields) -> Result<Callable, Refusal> {
        let (schema, function) = qualified_name(name).ok_or_else(|| {
            let code = PgSqlErrorCode::ERRCODE_INVALID_NAME;
            Refusal::new(
                code,
                "a function is named schema.function, names with dots in double quotes",
            )
        })?;
        let arguments = [ServerText(schema.as_str()).into(), ServerText(function.as_str()).into()];
        let found: Vec<Callable> = parse(&LOOKED_UP.with(|plan| plan.text(&arguments))?)?;
        let mut fitting = found.into_iter().filter(|callable| callable.takes(given));
        let callable = fitting.next().ok_or_else(|| {
            let code = PgSqlErrorCode::ERRCODE_UNDEFINED_FUNCTION;
            let message =
                format!("there is no function {name} that clients may call with these arguments");
            Refusal::new(code, message)
        })?;
        if fitting.next().is_some() {
            let code = PgSqlErrorCode::ERRCODE_AMBIGUOUS_FUNCTION;
            return Err(Refusal::new(
                code,
                format!("several functions {name} take these arguments"),
            ));
        }
        let name = quoted_names(&schema, &function);
        Ok(Callable { name, ..callable })
    }

    fn takes(&self, given: &Fields) -> bool {
        let required = self.arguments.len().saturating_sub(self.defaults);
        let is_known = |name: &String| self.arguments.iter().any(|argument| argument.name == *name);
        given.keys().all(is_known)
            && self
                .arguments
                .iter()
                .take(required)
                .all(|argument| given.contains_key(&argument.name))
    }

    /// Calls it, and says what it returned, as JSON. As the client.
    pub(crate) fn call(&self, given: &Fields) -> Result<Option<Box<RawValue>>, Refusal> {
        let given_arguments: Vec<&Argument> =
            self.arguments.iter().filter(|argument| given.contains_key(&argument.name)).collect();
        let join = |part: &dyn Fn(&str, &Argument) -> String| {
            let parts =
                given_arguments.iter().map(|argument| part(&quoted_name(&argument.name), argument));
            parts.collect::<Vec<_>>().join(", ")
        };
        let call = format!("{}({})", self.name, join(&|name, _| format!("{name} => v.{name}")));
        let source = match given_arguments.is_empty() {
            true => String::new(),
            false => {
                let list = join(&|name, argument| format!("{name} {}", argument.type_sql));
                format!("pg_catalog.json_to_record($1::pg_catalog.json) as v ({list})")
            }
        };
        let from =
            |text: &str| if text.is_empty() { String::new() } else { format!(" from {text}") };
        let sql = if self.is_set {
            let comma = if source.is_empty() { "" } else { ", " };
            format!(
                "select coalesce(pg_catalog.json_agg(r), '[]'::pg_catalog.json)::pg_catalog.text from {source}{comma}{call} as r"
            )
        } else {
            format!("select pg_catalog.to_json({call})::pg_catalog.text{}", from(&source))
        };
        let sql = encoding::server_string(&sql);
        let json = serde_json::to_string(given).unwrap_or_default();
        let arguments = [ServerText(json).into()];
        let arguments = if source.is_empty() { &[][..] } else { &arguments[..] };
        let failed = |_: pgrx::spi::Error| Refusal::internal("the function cannot be called");
        let returned = Spi::connect_mut(|client| {
            answer::text(client.update(sql.as_c_str(), None, arguments).map_err(failed)?)
        })?;
        let json = |text| RawValue::from_string(text).map_err(|_| Refusal::internal("not JSON"));
        returned.map(json).transpose()
    }
}
