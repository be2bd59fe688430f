//! Names of tables and functions, as clients write them.

/// `schema.table`; a name with dots or quotes stands in double quotes, as in SQL. Case is kept
/// with or without quotes.
pub fn qualified_name(text: &str) -> Option<(String, String)> {
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
