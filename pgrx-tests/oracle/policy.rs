//! Policies as people write them, and some that only a tester would.

use serde_json::Value;

use super::dice::Dice;

/// A condition, and the columns of the row that it looks at.
#[derive(Clone, Debug)]
pub struct Atom {
    pub sql: String,
    pub columns: Vec<&'static str>,
}

impl Atom {
    /// It compares with a claim that is missing or empty.
    pub fn is_about_nothing(&self, claims: &Value) -> bool {
        let is_empty = |value: &Value| {
            value.is_null() || *value == "" || value.as_array().is_some_and(Vec::is_empty)
        };
        let names = self.sql.split("> '").skip(1).filter_map(|rest| rest.split('\'').next());
        let mut names = names.chain(self.sql.contains("auth.uid()").then_some("sub"));
        names.any(|name| is_empty(&claims[name]))
    }
}

#[derive(Clone, Debug)]
pub struct Policy {
    pub name: String,
    /// `create policy ...`
    pub sql: String,
    pub atoms: Vec<Atom>,
}

impl Policy {
    /// One of the table's policies; most are for SELECT or ALL, a few only for writing.
    pub fn any(dice: &mut Dice, name: &str, place: &Place<'_>) -> Policy {
        let condition = Condition::any(dice, place);
        let kind = if dice.percent(25) { "restrictive" } else { "permissive" };
        let (command, check) = match dice.below(10) {
            0..6 => ("select", ""),
            6..9 => ("all", ""),
            // For writers only: admits nobody to reading.
            _ => ("update", " with check (true)"),
        };
        let role = match dice.below(10) {
            0..6 => "public".to_owned(),
            6 | 7 => place.role("group"),
            8 => place.role("plain"),
            _ => format!("{}, {}", place.role("owner"), place.role("member")),
        };
        let sql = format!(
            "create policy {name} on {}.{} as {kind} for {command} to {role} using ({}){check}",
            place.schema, place.table, condition.sql
        );
        Policy { name: name.to_owned(), sql, atoms: condition.atoms }
    }

    /// `alter policy ... using`: another condition under the same name.
    pub fn alter(&mut self, dice: &mut Dice, place: &Place<'_>) -> String {
        let condition = Condition::any(dice, place);
        self.atoms = condition.atoms;
        format!(
            "alter policy {} on {}.{} using ({})",
            self.name, place.schema, place.table, condition.sql
        )
    }
}

/// What a condition may name.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub schema: &'a str,
    pub table: &'a str,
    /// Of the roles' names.
    pub prefix: &'a str,
}

impl Place<'_> {
    fn role(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }
}

struct Condition {
    sql: String,
    atoms: Vec<Atom>,
}

impl Condition {
    fn any(dice: &mut Dice, place: &Place<'_>) -> Condition {
        let count = *dice.pick(&[1, 1, 1, 1, 2, 2, 3]);
        let atoms: Vec<Atom> = (0..count).map(|_| atom(dice, place)).collect();
        let operator = *dice.pick(&[" and ", " or ", " or "]);
        let parts: Vec<String> = atoms
            .iter()
            .map(|atom| match dice.below(12) {
                0 => format!("not ({})", atom.sql),
                1 => format!("({}) is not false", atom.sql),
                _ => format!("({})", atom.sql),
            })
            .collect();
        Condition { sql: parts.join(operator), atoms }
    }
}

/// A claim as text, in one of the ways that people get at it.
fn claim(dice: &mut Dice, name: &str) -> String {
    match dice.below(4) {
        0 => format!("(select auth.jwt() ->> '{name}')"),
        1 => format!("(current_setting('request.jwt.claims', true)::jsonb ->> '{name}')"),
        2 => format!("((select auth.jwt()) ->> '{name}')"),
        _ => format!("(auth.jwt() ->> '{name}')"),
    }
}

fn user(dice: &mut Dice) -> String {
    match dice.below(4) {
        0 => "(select auth.uid())".to_owned(),
        1 => format!("{}::uuid", claim(dice, "sub")),
        _ => "auth.uid()".to_owned(),
    }
}

fn atom(dice: &mut Dice, place: &Place<'_>) -> Atom {
    let s = place.schema;
    let (sql, columns): (String, &[&'static str]) = match dice.below(40) {
        // Equality with claims.
        0 | 1 => (format!("owner = {}", user(dice)), &["owner"]),
        2 => (format!("{} = owner", user(dice)), &["owner"]),
        3 => (format!("owner::text = {}", claim(dice, "sub")), &["owner"]),
        4 | 5 => (format!("tenant = {}::int", claim(dice, "tenant")), &["tenant"]),
        // Types whose equality is not that of their images.
        6 => (
            match dice.below(4) {
                0 => format!("nick = {}", claim(dice, "nick")),
                1 => format!("code = {}", claim(dice, "code")),
                2 => format!("amount = {}::numeric", claim(dice, "amount")),
                _ => format!("note = {}", claim(dice, "label")),
            },
            &["nick", "code", "amount", "note"],
        ),
        7 => (format!("label = {}", claim(dice, "label")), &["label"]),
        // any()
        8 => (
            "label = any (array(select jsonb_array_elements_text(auth.jwt() -> 'labels')))".into(),
            &["label"],
        ),
        9 => (format!("{} = any (tags)", claim(dice, "label")), &["tags"]),
        10 => (
            (*dice.pick(&[
                "tenant = any ('{1,2}')",
                "tenant in (1, 3)",
                "tenant <> all ('{1,null}')",
            ]))
            .to_owned(),
            &["tenant"],
        ),
        11 => (format!("label = any (string_to_array({}, ','))", claim(dice, "list")), &["label"]),
        // Flags and NULLs.
        12 | 13 => (
            (*dice.pick(&[
                "flag",
                "not flag",
                "flag = true",
                "flag is true",
                "flag is not true",
                "flag is null",
                "flag <> false",
            ]))
            .to_owned(),
            &["flag"],
        ),
        14 => (
            (*dice.pick(&[
                "note is null",
                "note is not null",
                "note = ''",
                "note = 'b' or note is null",
            ]))
            .to_owned(),
            &["note"],
        ),
        15 => (
            (*dice.pick(&["big is null", "big is not null", "big like 'y%'", "length(big) > 100"]))
                .to_owned(),
            &["big"],
        ),
        16 => (format!("owner is distinct from {}", user(dice)), &["owner"]),
        17 => (format!("tenant = {}::int and flag", claim(dice, "tenant")), &["tenant", "flag"]),
        // Comparisons.
        18 => (
            (*dice.pick(&["level >= 2", "level < 3", "2 > level", "level between 1 and 2"]))
                .to_owned(),
            &["level"],
        ),
        19 => (format!("level <= {}::int", claim(dice, "level")), &["level"]),
        20 => (
            (*dice.pick(&[
                "due > '2026-01-01'",
                "due <= date '2026-06-01'",
                "mood >= 'calm'",
                "mood = 'sad'",
            ]))
            .to_owned(),
            &["due", "mood"],
        ),
        21 => (
            (*dice.pick(&["label > 'a'", "label like 'a%'", "upper(label) = 'B'"])).to_owned(),
            &["label"],
        ),
        // Other tables.
        22 => (
            format!(
                "exists (select from {s}.members m where m.tenant = {}.tenant and m.person = {})",
                place.table,
                user(dice)
            ),
            &["tenant"],
        ),
        23 => (
            format!(
                "tenant in (select m.tenant from {s}.members m where m.person = {})",
                user(dice)
            ),
            &["tenant"],
        ),
        24 => (
            format!(
                "exists (select 1 from {s}.members where members.tenant = {0}.tenant and members.person = {0}.owner)",
                place.table
            ),
            &["tenant", "owner"],
        ),
        // Functions.
        25 => (format!("{s}.is_mine(tenant)"), &["tenant"]),
        26 => (format!("{s}.may_see(owner, flag)"), &["owner", "flag"]),
        27 => (format!("{s}.knows(tenant)"), &["tenant"]),
        // Nothing of the row.
        28 => (
            match dice.below(8) {
                0 => "true".to_owned(),
                1 => "false".to_owned(),
                2 => "null".to_owned(),
                3 => "auth.uid() is not null".to_owned(),
                4 => format!("current_user = '{}'", place.role("plain")),
                5 => format!("pg_has_role('{}', 'member')", place.role("group")),
                6 => format!("{}::boolean", claim(dice, "admin")),
                _ => format!("auth.role() = '{}'", place.role("member")),
            },
            &[],
        ),
        // The whole row.
        29 => (format!("(to_jsonb({}) ->> 'tenant')::int = 1", place.table), ALL),
        // Shapes.
        30 => {
            (format!("coalesce(owner, '{}') = {}", super::table::USERS[0], user(dice)), &["owner"])
        }
        31 => (
            "case when flag then tenant = 1 else level = 1 end".into(),
            &["flag", "tenant", "level"],
        ),
        32 => ("(tenant, level) = (1, 2)".into(), &["tenant", "level"]),
        // What JSON does not say all of.
        33 => (
            (*dice.pick(&["array_lower(nums, 1) = 5", "nums[6] = 8", "nums = '{7,8}'"])).to_owned(),
            &["nums"],
        ),
        34 => (
            (*dice.pick(&[
                "(pair).a = 1",
                "pair is null",
                "pair is not null",
                "(pair).b = 'a'",
                "pair = row(1, 'a')::public.pair",
            ]))
            .to_owned(),
            &["pair"],
        ),
        35 => (
            (*dice.pick(&[r#"doc::text = '{"a":1}'"#, "doc is null", "doc ->> 'a' = '1'"]))
                .to_owned(),
            &["doc"],
        ),
        36 => ((*dice.pick(&["docs[1] is null", "docs[1] = 'null'"])).to_owned(), &["docs"]),
        37 => ((*dice.pick(&["r = 'x'", "r::text <> 'x'", "r is null"])).to_owned(), &["r"]),
        // The session, and the table.
        38 => (
            match dice.below(2) {
                0 => format!("current_setting('role') = '{}'", place.role("plain")),
                _ => format!("tableoid = '{s}.{}'::regclass and id > 2", place.table),
            },
            &["id"],
        ),
        _ => {
            ((*dice.pick(&["id % 2 = 0", "id = any ('{1,2,3,4}')", "id > 4"])).to_owned(), &["id"])
        }
    };
    // Where there was a choice, only what was chosen is looked at.
    let named = |column: &&'static str| columns == ALL || mentions(&sql, column);
    let columns = columns.iter().copied().filter(named).collect();
    Atom { sql, columns }
}

const ALL: &[&str] = &super::table::NAMES;

fn mentions(sql: &str, column: &str) -> bool {
    sql.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == column)
}
