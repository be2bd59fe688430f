//! Tables of every kind of column that policies look at, and the values that go into them.

use super::dice::Dice;

/// Of each column its name, its type, and what may be in it beside NULL.
const COLUMNS: [(&str, &str, &[&str]); 20] = [
    ("id", "bigint primary key", &[]),
    ("k", "int not null", &[]),
    (
        "owner",
        "uuid",
        &[
            "'00000000-0000-4000-8000-000000000001'",
            "'00000000-0000-4000-8000-000000000002'",
            "'00000000-0000-4000-8000-000000000003'",
        ],
    ),
    ("tenant", "int", &["1", "2", "3"]),
    ("flag", "boolean", &["true", "false"]),
    ("tags", "text[]", &["'{a}'", "'{a,b}'", "'{}'", "'{null}'"]),
    ("label", "text", &["'a'", "'b'", "'B'", "''", "'A\"\\\n'"]),
    ("nick", "text collate public.ignoring_case", &["'bob'", "'Bob'", "'eve'"]),
    ("code", "char(4)", &["'ab'", "'cd'", "'ab  '"]),
    ("amount", "numeric", &["1", "1.0", "2.50"]),
    ("level", "smallint", &["1", "2", "3"]),
    ("due", "date", &["'2025-12-31'", "'2026-03-01'", "'2026-12-01'"]),
    ("mood", "public.mood", &["'sad'", "'calm'", "'glad'"]),
    ("note", "varchar(20)", &["'a'", "'b'", "''"]),
    // Values that JSON does not say all of.
    ("nums", "int[]", &["'[5:6]={7,8}'", "'{7,8}'", "'{}'"]),
    ("pair", "public.pair", &["row(1, 'a')", "row(null, null)", "row(2, E'\"x\\\\')"]),
    ("doc", "json", &[r#"'{"a": 1}'"#, r#"'{"a":1}'"#, "'null'"]),
    ("docs", "jsonb[]", &["array['null'::jsonb]", "array[null::jsonb]"]),
    // A domain, by a name that is short.
    ("r", "public.plain", &["'x'", "'y'"]),
    // Long values lie outside of the row, and an UPDATE of others leaves them out of the WAL.
    ("big", "text", &["'short'", "repeat('x', 5000)", "repeat('y', 5000)"]),
];

pub const NAMES: [&str; COLUMNS.len()] = {
    let mut names = [""; COLUMNS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = COLUMNS[index].0;
        index += 1;
    }
    names
};

pub const USERS: [&str; 3] = [
    "00000000-0000-4000-8000-000000000001",
    "00000000-0000-4000-8000-000000000002",
    "00000000-0000-4000-8000-000000000003",
];

/// What an UPDATE or DELETE says of the row as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The primary key, where it changes or goes.
    Default,
    /// Everything.
    Full,
    /// Column `k`, where it changes or goes.
    Index,
}

impl Identity {
    pub fn any(dice: &mut Dice) -> Identity {
        *dice.pick(&[
            Identity::Default,
            Identity::Default,
            Identity::Full,
            Identity::Full,
            Identity::Index,
        ])
    }

    /// The columns that tell a row from others; of a whole image the primary key.
    pub fn column(self) -> &'static str {
        match self {
            Identity::Default | Identity::Full => "id",
            Identity::Index => "k",
        }
    }

    pub fn sql(self, schema: &str, table: &str) -> String {
        let what = match self {
            Identity::Default => "default".to_owned(),
            Identity::Full => "full".to_owned(),
            Identity::Index => format!("using index {table}_k"),
        };
        format!("alter table {schema}.{table} replica identity {what}")
    }
}

/// `create table` with the columns in any order, and a gap where one was dropped.
pub fn create(dice: &mut Dice, schema: &str, table: &str) -> String {
    let mut columns: Vec<String> =
        COLUMNS.iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
    dice.shuffle(&mut columns);
    columns.insert(dice.below(columns.len()), "gone int".to_owned());
    let target = format!("{schema}.{table}");
    format!(
        "create table {target} ({});
         alter table {target} drop gone;
         alter table {target} alter big set storage external;
         create unique index {table}_k on {target} (k)",
        columns.join(", ")
    )
}

/// A literal for any column but the keys.
pub fn value(dice: &mut Dice, column: &str) -> String {
    let (_, _, values) = COLUMNS.iter().find(|(name, ..)| *name == column).unwrap();
    if dice.percent(15) { "null".to_owned() } else { (*dice.pick(values)).to_owned() }
}

/// Every column but the keys.
pub fn payload_columns() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().skip(2)
}
