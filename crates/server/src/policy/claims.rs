//! Which expressions depend on who asks and on nothing else: neither on tables nor on the time. What
//! they are worth is asked once for each client, and kept.

use tide_feed::catalog::Function;

use super::syntax::{Node, NodeKind};
use super::token::{Token, tokens};

/// Postgres's own functions that read nothing but their arguments and the settings, with the type
/// that they give; `None`: that of their first argument.
const BUILT_IN: &[(&str, Option<&str>)] = &[
    ("btrim", Some("text")),
    ("coalesce", None),
    ("concat", Some("text")),
    ("current_setting", Some("text")),
    ("current_user", Some("name")),
    ("json_extract_path_text", Some("text")),
    ("jsonb_extract_path_text", Some("text")),
    ("lower", Some("text")),
    ("ltrim", Some("text")),
    ("nullif", None),
    ("replace", Some("text")),
    ("rtrim", Some("text")),
    ("split_part", Some("text")),
    ("string_to_array", Some("text[]")),
    ("upper", Some("text")),
];

/// Further functions that only occur in bodies, where their types are of no interest.
const IN_BODIES: &[&str] = &[
    "array_agg",
    "array_append",
    "array_remove",
    "btrim",
    "json_array_elements_text",
    "json_array_length",
    "jsonb_array_elements_text",
    "jsonb_array_length",
    "jsonb_exists",
    "jsonb_typeof",
    "length",
    "string_to_table",
    "trim",
    "unnest",
];

/// Words before a bracket that are no functions.
const KEYWORDS: &[&str] = &[
    "all", "and", "any", "array", "as", "begin", "case", "char", "else", "elsif", "end", "if",
    "in", "is", "not", "numeric", "or", "return", "select", "then", "values", "varchar", "when",
    "with",
];

/// Operators in bodies, which are Postgres's own: others may do anything.
const OPERATORS: &[&str] = &[
    "=", "<>", "!=", "<", "<=", ">", ">=", "+", "-", "*", "/", "%", "||", "->", "->>", "#>", "#>>",
    "?", "?|", "?&", "@>", "<@", "~", "!~", "&&", "::", ":=", "(", ")", "[", "]", ",", ".", ";",
];

/// Whether a setting is part of who asks; any other can be set while a client is there.
fn is_of_client(setting: &str) -> bool {
    matches!(setting, "request.jwt.claims" | "request.headers" | "role")
        || setting.starts_with("request.jwt.claim.")
}

/// Words that read tables, the time or a session, run what is not written there, or may have a text read
/// as a value of any type: `'now'` is another at each time.
const FORBIDDEN: &[&str] = &[
    "call",
    "cast",
    "copy",
    "current_catalog",
    "current_date",
    "current_schema",
    "current_time",
    "current_timestamp",
    "declare",
    "delete",
    "execute",
    "fetch",
    "from",
    "insert",
    "into",
    "localtime",
    "localtimestamp",
    "merge",
    "open",
    "operator",
    "perform",
    "raise",
    "set",
    "table",
    "update",
];

/// Types whose constants are printed and read in one way only.
const PLAIN: &[&str] = &[
    "bigint",
    "boolean",
    "character varying",
    "integer",
    "json",
    "jsonb",
    "name",
    "smallint",
    "text",
    "uuid",
];

/// `2026-01-31`, and no other style of dates.
pub(super) fn is_iso(date: &str) -> bool {
    date.len() == 10
        && date.bytes().enumerate().all(|(index, byte)| match index {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

/// What is known of the functions that policies call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Functions<'a>(pub(super) &'a [Function]);

impl<'a> Functions<'a> {
    /// The type of an expression without columns, or why it may depend on more than the claims.
    pub(super) fn type_of(self, node: &Node) -> Result<String, String> {
        use NodeKind as N;
        let types = node.parts().into_iter().map(|part| self.type_of(part));
        let types = types.collect::<Result<Vec<String>, String>>()?;
        let first = types.first().cloned().unwrap_or_default();
        Ok(match &node.kind {
            N::Column(name) => return Err(format!("it combines column {name} with other values")),
            N::Text(_) | N::Null => "unknown".to_owned(),
            N::Number(_) => "integer".to_owned(),
            N::Bool(_) | N::Not(_) | N::And(_) | N::Or(_) | N::Is { .. } | N::Any(..) => {
                "boolean".to_owned()
            }
            N::Cast(_, name) if name.contains(['.', '"']) => {
                return Err(format!("it casts to {name}"));
            }
            N::Cast(part, name) => {
                // Texts that mean the same whatever the session's settings are.
                let is_plain = match &part.kind {
                    N::Text(text) if name == "date" => is_iso(text),
                    N::Null => true,
                    // What is read as a value of another type may be `now`.
                    _ => PLAIN.contains(&name.trim_end_matches("[]")),
                };
                if !is_plain {
                    return Err(format!("it has a value of type {name}"));
                }
                name.clone()
            }
            N::Array(_) => format!("{first}[]"),
            N::Select(_) => first,
            N::Operator(operator, ..) => match operator.as_str() {
                "->>" | "#>>" => "text".to_owned(),
                "->" | "#>" => first,
                "=" | "<>" | "<" | "<=" | ">" | ">=" | "?" | "@>" | "<@" => "boolean".to_owned(),
                "||" if first == "text" => first,
                _ => return Err(format!("it uses the operator {operator}")),
            },
            N::Call { schema: None, name, arguments } if name == "current_setting" => {
                match arguments.first().map(|argument| &argument.kind) {
                    Some(N::Cast(text, _)) if is_setting_of_client(text) => "text".to_owned(),
                    _ => return Err("it reads a setting that may change".to_owned()),
                }
            }
            N::Call { schema: None, name, .. } => {
                let known = BUILT_IN.iter().find(|(known, _)| known == name);
                let (_, gives) = known
                    .ok_or_else(|| format!("function {name} may depend on more than the claims"))?;
                let concrete = || types.iter().find(|found| *found != "unknown").cloned();
                gives.map(str::to_owned).or_else(concrete).unwrap_or_default()
            }
            N::Call { schema: Some(schema), name, .. } => self.returned_by(schema, name)?,
        })
    }

    fn returned_by(self, schema: &str, name: &str) -> Result<String, String> {
        let shown = || format!("function {schema}.{name}");
        let mut overloads = self.0.iter().filter(|f| f.schema == schema && f.name == name);
        let Some(first) = overloads.next() else {
            return Err(format!("{} may depend on more than the claims", shown()));
        };
        for function in std::iter::once(first).chain(overloads) {
            if function.returns != first.returns {
                return Err(format!("{} is several functions", shown()));
            }
            self.check(function, 0)?;
        }
        Ok(first.returns.clone())
    }

    /// Whether a function depends on the claims alone, as far as its source tells.
    fn check(self, function: &Function, depth: usize) -> Result<(), String> {
        let Function { schema, name, volatility, language, body, .. } = function;
        let because = |why: &str| Err(format!("function {schema}.{name} {why}"));
        if *volatility == 'v' {
            return because("is VOLATILE; declare it STABLE if it only depends on the claims");
        }
        if !matches!(language.as_str(), "sql" | "plpgsql") {
            return because(&format!("is written in {language}, which is not looked into"));
        }
        if depth > 8 {
            return because("calls too many others in one another");
        }
        let is_plain = |name: &str| PLAIN.contains(&name.trim_end_matches("[]"));
        if !is_plain(&function.returns) {
            return because(&format!("returns {}", function.returns));
        }
        if let Some(argument) = function.arguments.iter().find(|name| !is_plain(name)) {
            return because(&format!("takes a value of type {argument}"));
        }
        if function.has_defaults {
            return because("has arguments with defaults, which are not looked into");
        }
        let Some(body) = body else { return because("is too long to be looked into") };
        let Some(tokens) = tokens(body) else { return because("is not understood") };
        let token = |index: usize| tokens.get(index).map(|(token, _)| token);
        let is_sign = |index, sign: &str| matches!(token(index), Some(Token::Sign(s)) if s == sign);
        for (index, (token_here, _)) in tokens.iter().enumerate() {
            let word = match token_here {
                Token::Word(word) if FORBIDDEN.contains(&word.as_str()) => {
                    return because(&format!("may read more than the claims: {word}"));
                }
                Token::Sign(sign) if !OPERATORS.contains(&sign.as_str()) => {
                    return because(&format!("uses the operator {sign}"));
                }
                Token::Word(word) | Token::Quoted(word) => word,
                _ => continue,
            };
            let follows = |sign| index.checked_sub(1).is_some_and(|before| is_sign(before, sign));
            let is_read_as = follows("::")
                || matches!(token(index + 1), Some(Token::Text(_)))
                    && !KEYWORDS.contains(&word.as_str());
            if is_read_as && !PLAIN.contains(&word.as_str()) {
                return because(&format!("has a value of type {word}"));
            }
            if !is_sign(index + 1, "(") {
                continue;
            }
            if word == "current_setting"
                && !matches!(token(index + 2), Some(Token::Text(name)) if is_of_client(name))
            {
                return because("reads a setting that may change");
            }
            let qualified = follows(".");
            let is_known = BUILT_IN.iter().any(|(known, _)| known == word)
                || IN_BODIES.contains(&word.as_str())
                || KEYWORDS.contains(&word.as_str());
            if is_known && !qualified {
                continue;
            }
            let mut called = self.0.iter().filter(|f| f.name == *word).peekable();
            if called.peek().is_none() {
                return because(&format!("calls {word}, which is not known"));
            }
            for other in called.filter(|other| *other != function) {
                self.check(other, depth + 1)?;
            }
        }
        Ok(())
    }
}

fn is_setting_of_client(node: &Node) -> bool {
    matches!(&node.kind, NodeKind::Text(name) if is_of_client(name))
}

#[cfg(test)]
mod tests {
    use super::super::syntax::parse;
    use super::*;

    fn function(name: &str, returns: &str, volatility: char, body: &str) -> Function {
        Function {
            schema: "auth".into(),
            name: name.into(),
            returns: returns.into(),
            arguments: Vec::new(),
            has_defaults: false,
            volatility,
            language: "sql".into(),
            body: Some(body.into()),
        }
    }

    fn functions() -> Vec<Function> {
        let claim = "select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid";
        vec![
            function("uid", "uuid", 's', claim),
            function(
                "jwt",
                "jsonb",
                's',
                "select coalesce(current_setting('request.jwt.claims', true), '{}')::jsonb",
            ),
            function(
                "org",
                "bigint",
                's',
                "select (auth.jwt() -> 'app' ->> 'org')::bigint -- from the token",
            ),
            function("team", "uuid", 's', "select team from people where id = auth.uid()"),
            Function {
                arguments: vec!["timestamp with time zone".into()],
                ..function("takes_a_time", "text", 's', "select $1::text")
            },
            Function {
                has_defaults: true,
                ..function("takes_now", "text", 's', "select $1::text")
            },
            function("at_now", "text", 's', "select ('now'::timestamptz)::text"),
            function("returns_now", "timestamp with time zone", 's', "select 'now'"),
            function("typed_now", "text", 's', "select moment 'now'"),
            function("declares_now", "text", 's', "declare t moment := 'now'; begin return t; end"),
            function("uses_an_operator", "boolean", 's', "select 1 ~=~ 1"),
            function("reads_a_setting", "text", 's', "select current_setting('app.tenant')"),
            function("reads_some_setting", "text", 's', "select current_setting(auth.plain())"),
            function("lead", "uuid", 's', "select auth.team()"),
            function("now_id", "uuid", 's', "select md5(now()::text)::uuid"),
            function("random", "uuid", 'v', "select null::uuid"),
            Function { language: "c".into(), ..function("native", "uuid", 'i', "") },
            Function { body: None, ..function("long", "uuid", 's', "") },
            function("longer", "uuid", 's', "select auth.long()"),
            Function {
                language: "plpgsql".into(),
                ..function(
                    "plain",
                    "text",
                    's',
                    "begin if auth.uid() is null then return 'x'; end if; return auth.jwt() ->> 'role'; end",
                )
            },
        ]
    }

    fn type_of(text: &str) -> Result<String, String> {
        Functions(&functions()).type_of(&parse(text).expect("an expression"))
    }

    #[test]
    fn expressions_over_claims_have_a_type() {
        for (text, expected) in [
            ("auth.uid()", "uuid"),
            ("( SELECT auth.uid() AS uid)", "uuid"),
            ("(auth.jwt() ->> 'tenant'::text)", "text"),
            ("((auth.jwt() -> 'a'::text) ->> 'b'::text)", "text"),
            ("auth.org()", "bigint"),
            ("auth.plain()", "text"),
            ("(current_setting('request.jwt.claim.tenant'::text, true))::uuid", "uuid"),
            ("((auth.jwt() ->> 'role'::text) = 'admin'::text)", "boolean"),
            ("NULLIF(auth.plain(), ''::text)", "text"),
            ("COALESCE(NULL::text, 'a'::text)", "text"),
            ("ARRAY['a'::text, 'b'::text]", "text[]"),
            ("string_to_array(auth.plain(), ','::text)", "text[]"),
        ] {
            assert_eq!(type_of(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_may_depend_on_more_is_not_kept() {
        for (text, why) in [
            ("auth.team()", "from"),
            ("auth.lead()", "from"),
            ("auth.now_id()", "calls"),
            ("auth.random()", "VOLATILE"),
            ("auth.native()", "written in c"),
            ("auth.long()", "too long"),
            ("auth.longer()", "too long"),
            ("auth.unheard_of()", "more than the claims"),
            ("auth.at_now()", "type timestamptz"),
            ("auth.takes_a_time()", "takes a value of type timestamp"),
            ("auth.takes_now()", "defaults"),
            ("(auth.plain())::timestamp with time zone", "type timestamp"),
            ("auth.returns_now()", "returns timestamp"),
            ("auth.typed_now()", "type moment"),
            ("auth.declares_now()", "declare"),
            ("auth.uses_an_operator()", "operator ~=~"),
            ("auth.reads_a_setting()", "setting"),
            ("auth.reads_some_setting()", "setting"),
            ("current_setting('app.tenant'::text, true)", "setting"),
            ("current_setting(auth.plain(), true)", "setting"),
            ("now()", "function now"),
            ("('a'::text)::public.status", "casts"),
            ("(1 + 1)", "operator +"),
        ] {
            let refused = type_of(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
