//! Whatever a subscription was made of changes in the middle of a stream: it goes on as a new one would,
//! as SQL has it, and nothing is missed on the way.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::{Cluster, Database};

const SUB: &str = "00000000-0000-0000-0000-00000000000a";
const PATIENCE: Duration = Duration::from_secs(30);

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> = LazyLock::new(|| {
        let database = Cluster::shared().database("alterations");
        database
            .sql()
            .batch_execute(
                "create role alterations_member; grant alterations_member to authenticated",
            )
            .unwrap();
        database
    });
    &DATABASE
}

/// A table, what somebody subscribes to in it, and what becomes of it. `$t` is its name. The last row of
/// each of the three lists is one that the subscriber is to get.
struct Case<'a> {
    columns: &'a str,
    /// Of the subscription, and as SQL says it; empty: none.
    filter: &'a str,
    condition: &'a str,
    policy: &'a str,
    /// Rows from before the change, from right after it, and from when others have subscribed.
    before: &'a [&'a str],
    change: &'a str,
    after: &'a [&'a str],
    later: &'a [&'a str],
}

const PLAIN: Case<'static> = Case {
    columns: "n int",
    filter: "",
    condition: "true",
    policy: "true",
    before: &["1"],
    change: "",
    after: &["2"],
    later: &["3"],
};

/// A client that joins again when its channel is ended, as clients do by themselves.
struct Follower {
    client: Client,
    topic: &'static str,
    config: Value,
    told: BTreeSet<i64>,
}

impl Follower {
    /// `None`: refused.
    fn new(table: &str, filter: &str) -> Option<Follower> {
        let claims = json!({ "sub": SUB, "role": "authenticated" }).to_string();
        let token = database().token_with("authenticated", &claims, "1 hour");
        let mut client = database().connect(&format!("apikey={token}&vsn=2.0.0"));
        let mut binding = json!({ "event": "*", "schema": "public", "table": table });
        if !filter.is_empty() {
            binding["filter"] = filter.into();
        }
        let config = json!({ "postgres_changes": [binding] });
        let (topic, told) = ("realtime:room", BTreeSet::new());
        client.join(topic, &config);
        let answer = client.wait_for("the system frame", |frame| frame.event == "system");
        if answer.payload["status"] != "ok" {
            return None;
        }
        Some(Follower { client, topic, config, told })
    }

    /// Reads until it is told of the row; false: it is refused when it joins again.
    fn follow_to(&mut self, id: i64) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut said = Vec::new();
        while !self.told.contains(&id) {
            assert!(
                Instant::now() < deadline,
                "row {id} does not come; told {:?}, {said:#?}",
                self.told
            );
            let Some(frame) = self.client.read(Duration::from_millis(200)).unwrap() else {
                continue;
            };
            if frame.event == "postgres_changes" {
                let data = &frame.payload["data"];
                let row = if data["type"] == "DELETE" { "old_record" } else { "record" };
                self.told.extend(data[row]["id"].as_i64());
            } else if frame.event == "phx_error" {
                self.client.push(self.topic, "phx_join", &json!({ "config": self.config }));
            } else if frame.payload["extension"] == "postgres_changes"
                && frame.payload["status"] == "error"
            {
                return false;
            }
            said.push(frame.text);
        }
        true
    }
}

/// What a SELECT of the client's shows of these rows.
fn selected(table: &str, condition: &str, ids: std::ops::Range<i64>) -> Option<BTreeSet<i64>> {
    let mut sql = database().sql();
    let mut transaction = sql.transaction().unwrap();
    transaction.batch_execute("set local role authenticated").unwrap();
    let claims = json!({ "sub": SUB, "role": "authenticated" }).to_string();
    transaction.execute("select set_config('request.jwt.claims', $1, true)", &[&claims]).unwrap();
    let query = format!(
        "select id::int8 from {table} where ({condition}) and id >= {} and id < {}",
        ids.start, ids.end
    );
    let rows = transaction.query(&query, &[]).ok()?;
    Some(rows.iter().map(|row| row.get(0)).collect())
}

fn insert(table: &str, first: i64, rows: &[&str]) -> i64 {
    let mut sql = database().sql();
    let mut last = first;
    for (id, row) in (first..).zip(rows) {
        sql.batch_execute(&format!("insert into {table} values ({id}, {row})")).unwrap();
        last = id;
    }
    last
}

fn within(told: &BTreeSet<i64>, ids: std::ops::Range<i64>) -> BTreeSet<i64> {
    told.range(ids).copied().collect()
}

#[track_caller]
fn goes_on_as_a_new_one(what: &str, case: &Case<'_>) {
    let t = database().table("altered", &format!("id int primary key, {}", case.columns));
    let mut sql = database().sql();
    sql.batch_execute(&format!(
        "alter table {t} enable row level security; create policy judged on {t} using ({})",
        case.policy.replace("$t", &t)
    ))
    .unwrap();
    let mut old = Follower::new(&t, case.filter).expect("the subscriber is admitted");

    let last = insert(&t, 1, case.before);
    assert!(old.follow_to(last), "{what}");
    let shown = selected(&t, case.condition, 1..100);
    assert_eq!(Some(within(&old.told, 1..100)), shown, "{what}: before");

    sql.batch_execute(&case.change.replace("$t", &t)).unwrap();
    let last = insert(&t, 100, case.after);
    let is_followed = old.follow_to(last);

    let new = Follower::new(&t, case.filter);
    let Some(mut new) = new else {
        assert!(!is_followed, "{what}: others are refused");
        return;
    };
    assert!(is_followed, "{what}: others are admitted");
    let last = insert(&t, 200, case.later);
    assert!(new.follow_to(last) && old.follow_to(last), "{what}");

    let shown = selected(&t, case.condition, 200..300).unwrap();
    assert_eq!(within(&new.told, 200..300), shown, "{what}: a new subscription");
    assert_eq!(within(&old.told, 200..300), shown, "{what}: the old one, later");
    let shown = selected(&t, case.condition, 100..200).unwrap();
    assert_eq!(within(&old.told, 100..200), shown, "{what}: right after the change");
}

#[test]
fn types_of_columns() {
    for (from, to, filter, condition, before, after) in [
        ("int", "numeric", "c=gt.5", "c > 5", ["4", "6"], ["5.5", "7"]),
        ("int", "bigint", "c=gt.5", "c > 5", ["4", "6"], ["-5000000000", "5000000000"]),
        (
            "date",
            "timestamptz",
            "c=gte.2026-01-02",
            "c >= '2026-01-02'",
            ["'2026-01-01'", "'2026-01-02'"],
            ["'2026-01-01 23:00+00'", "'2026-01-02 03:00+00'"],
        ),
        (
            "text",
            "uuid",
            "c=eq.00000000-0000-0000-0000-00000000000A",
            "c::text = '00000000-0000-0000-0000-00000000000a'",
            ["'b0000000-0000-0000-0000-00000000000a'", "'00000000-0000-0000-0000-00000000000A'"],
            ["'b0000000-0000-0000-0000-00000000000a'", "'00000000-0000-0000-0000-00000000000A'"],
        ),
        ("int", "text", "c=eq.10", "c::text = '10'", ["1", "10"], ["'010'", "'10'"]),
    ] {
        let using = format!("using c::{to}");
        let is_text = from == "text";
        let condition = if is_text {
            "lower(c::text) = '00000000-0000-0000-0000-00000000000a'"
        } else {
            condition
        };
        goes_on_as_a_new_one(
            &format!("{from} to {to}"),
            &Case {
                columns: &format!("c {from}"),
                filter,
                condition,
                before: &before,
                change: &format!("alter table $t alter column c type {to} {using}"),
                after: &after,
                later: &after,
                ..PLAIN
            },
        );
    }
}

#[test]
fn names_of_types() {
    database().sql().batch_execute("create type mood as enum ('glad', 'sad')").unwrap();
    goes_on_as_a_new_one(
        "a type renamed under a policy",
        &Case {
            columns: "c mood",
            policy: "c = 'glad'",
            before: &["'sad'", "'glad'"],
            change: "alter type mood rename to temper",
            after: &["'sad'", "'glad'"],
            later: &["'sad'", "'glad'"],
            ..PLAIN
        },
    );
}

#[test]
fn labels_of_enums() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create type level as enum ('low', 'mid', 'high');
         create type grade as enum ('secret', 'open', 'other');
         create type shade as enum ('dark', 'light')",
    )
    .unwrap();
    goes_on_as_a_new_one(
        "a label more",
        &Case {
            columns: "c level",
            filter: "c=gte.mid",
            condition: "c >= 'mid'",
            before: &["'low'", "'high'"],
            change: "alter type level add value 'lower' before 'mid';
                     alter type level add value 'upper' after 'mid'",
            after: &["'lower'", "'upper'"],
            later: &["'lower'", "'low'", "'upper'"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "a label renamed under a policy",
        &Case {
            columns: "c grade",
            policy: "c <> 'secret'",
            before: &["'secret'", "'open'"],
            change: "alter type grade rename value 'secret' to 'x';
                     alter type grade rename value 'other' to 'secret'",
            after: &["'x'", "'secret'"],
            later: &["'x'", "'secret'", "'open'"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "labels that change their names under a filter",
        &Case {
            columns: "c shade",
            filter: "c=eq.dark",
            condition: "c = 'dark'",
            before: &["'light'", "'dark'"],
            change: "alter type shade rename value 'dark' to 'x';
                     alter type shade rename value 'light' to 'dark'",
            after: &["'x'", "'dark'"],
            later: &["'x'", "'dark'"],
            ..PLAIN
        },
    );
}

#[test]
fn names_of_columns() {
    goes_on_as_a_new_one(
        "another column of the name",
        &Case {
            columns: "c int, d int",
            filter: "c=eq.1",
            condition: "c = 1",
            before: &["2, 1", "1, 2"],
            change: "alter table $t rename c to e; alter table $t rename d to c",
            after: &["1, 2", "2, 1"],
            later: &["1, 2", "2, 1"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "a column dropped and added",
        &Case {
            columns: "c int",
            filter: "c=eq.1",
            condition: "c::text = '1'",
            before: &["2", "1"],
            change: "alter table $t drop column c; alter table $t add column c text",
            after: &["'01'", "'1'"],
            later: &["'01'", "'1'"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "a column gone",
        &Case {
            columns: "c int, d int",
            filter: "c=eq.1",
            before: &["2, 1", "1, 1"],
            condition: "c = 1",
            change: "alter table $t drop column c",
            after: &["1"],
            ..PLAIN
        },
    );
}

#[test]
fn tables_of_the_same_name() {
    let remade = "create table $t (id int primary key, n int);
                  grant select on $t to authenticated; alter publication tide add table $t";
    goes_on_as_a_new_one(
        "dropped and created",
        &Case { change: &format!("drop table $t; {remade}"), ..PLAIN },
    );
    goes_on_as_a_new_one(
        "renamed away and made anew",
        &Case { change: &format!("alter table $t rename to $t_old; {remade}"), ..PLAIN },
    );
    goes_on_as_a_new_one(
        "swapped",
        &Case {
            filter: "n=gt.1",
            condition: "n > 1",
            before: &["1", "2"],
            change: "create table $t_new (n numeric, id int primary key);
                     grant select on $t_new to authenticated; alter publication tide add table $t_new;
                     begin; alter table $t rename to $t_old; alter table $t_new rename to $t;
                     create view $t_rows as select id, n from $t; commit;
                     alter table $t drop column n cascade; alter table $t add column n numeric",
            after: &["1", "1.5"],
            later: &["1", "1.5"],
            ..PLAIN
        },
    );
}

#[test]
fn what_is_published() {
    goes_on_as_a_new_one(
        "taken out and put back",
        &Case {
            change: "alter publication tide drop table $t; alter publication tide add table $t",
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "without a column of the filter",
        &Case {
            columns: "c int, d int",
            filter: "c=eq.1",
            condition: "c = 1",
            before: &["2, 1", "1, 1"],
            change: "alter publication tide drop table $t; alter publication tide add table $t (id, d)",
            after: &["1, 1"],
            ..PLAIN
        },
    );
}

#[test]
fn policies_and_what_they_call() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create function is_open(int) returns boolean language sql stable as 'select $1 > 0';
         create function is_like(int, int) returns boolean language sql stable as 'select $1 = $2';
         create operator ~=~ (leftarg = int, rightarg = int, function = is_like);
         create table allowed (n int); grant select on allowed to authenticated;
         insert into allowed values (1);
         create type place as (x int, y int)",
    )
    .unwrap();
    let negatives: &[&str] = &["1", "-1"];
    goes_on_as_a_new_one(
        "another policy",
        &Case {
            policy: "n > 0",
            before: &["-1", "1"],
            change: "alter policy judged on $t using (n < 0)",
            after: negatives,
            later: negatives,
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "a policy that looks at another column",
        &Case {
            columns: "n int, m int",
            policy: "case when true then n > 0 end",
            before: &["-1, 1", "1, -1"],
            change: "alter policy judged on $t using (case when true then m is null or m > 0 end)",
            after: &["1, -1", "-1, 1"],
            later: &["1, -1", "-1, 1"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "another body of a function",
        &Case {
            policy: "is_open(n)",
            before: &["-1", "1"],
            change: "create or replace function is_open(int) returns boolean language sql stable
                         as 'select $1 < 0'",
            after: negatives,
            later: negatives,
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "another function of an operator",
        &Case {
            policy: "n ~=~ 1",
            before: &["2", "1"],
            change:
                "create or replace function is_like(int, int) returns boolean language sql stable
                         as 'select $1 <> $2'",
            after: &["1", "2"],
            later: &["1", "2"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "another table of the name in a policy's query",
        &Case {
            policy: "exists (select from allowed as a where a.n = $t.n)",
            before: &["2", "1"],
            change: "delete from allowed; insert into allowed values (2)",
            after: &["1", "2"],
            later: &["1", "2"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "another attribute of a composite type",
        &Case {
            columns: "p place",
            policy: "(p).x = 1",
            before: &["'(2,1)'", "'(1,2)'"],
            change: "alter type place drop attribute y cascade; alter type place add attribute z text cascade",
            after: &["'(2,1)'", "'(1,z)'"],
            later: &["'(2,1)'", "'(1,z)'"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "row-level security off",
        &Case {
            policy: "n > 0",
            before: &["-1", "1"],
            change: "alter table $t disable row level security",
            after: &["1", "-1"],
            later: &["1", "-1"],
            ..PLAIN
        },
    );
}

#[test]
fn roles() {
    goes_on_as_a_new_one(
        "no member any more",
        &Case {
            policy: "n > 0 or pg_has_role('alterations_member', 'member')",
            before: &["-1", "1"],
            change: "revoke alterations_member from authenticated",
            after: &["-1", "1"],
            later: &["-1", "1"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "a setting of the database",
        &Case {
            policy: "n = coalesce(nullif(current_setting('app.n', true), ''), '1')::int",
            before: &["2", "1"],
            change: "alter database alterations set app.n = '2'",
            after: &["1", "2"],
            later: &["1", "2"],
            ..PLAIN
        },
    );
    goes_on_as_a_new_one(
        "no privilege on the filter's column",
        &Case {
            columns: "c int, d int",
            filter: "c=eq.1",
            condition: "c = 1",
            before: &["2, 1", "1, 1"],
            change: "revoke select on $t from authenticated; grant select (id, d) on $t to authenticated",
            after: &["1, 1"],
            ..PLAIN
        },
    );
}

#[test]
fn a_role_that_clients_may_not_use_any_more() {
    for (role, change) in [
        ("alterations_revoked", "revoke alterations_revoked from tide_authenticator"),
        ("alterations_bypass", "alter role alterations_bypass bypassrls"),
    ] {
        let t = database().table("t", "id int primary key, n int");
        let mut sql = database().sql();
        sql.batch_execute(&format!(
            "create role {role}; grant {role} to tide_authenticator; grant select on {t} to {role};
             alter table {t} enable row level security;
             create policy judged on {t} using (n > 0)"
        ))
        .unwrap();
        let mut client = database().client_as(role);
        client.subscribe("room", &t);
        sql.batch_execute(&format!("insert into {t} values (1, -1), (2, 1)")).unwrap();
        assert_eq!(client.change()["record"]["id"], 2);

        sql.batch_execute(&format!("{change}; insert into {t} values (3, -1), (4, 1)")).unwrap();

        let closed = client.wait_until_closed();
        let why = "the role may not be used by clients any more";
        assert_eq!(closed.0, Some((1008, why.into())));
        assert!(client.passed("postgres_changes").is_empty(), "{change}");
    }
}

#[test]
fn the_replica_identity() {
    let t = database().table("t", "id int primary key, n int");
    let mut sql = database().sql();
    sql.batch_execute(&format!(
        "insert into {t} select n, n from generate_series(1, 3) as n;
         alter table {t} enable row level security;
         create policy judged on {t} using (n > 0)"
    ))
    .unwrap();
    let mut client = database().client();
    client.subscribe("room", &t);

    sql.batch_execute(&format!("delete from {t} where id = 1")).unwrap();
    sql.batch_execute(&format!(
        "alter table {t} replica identity full; delete from {t} where id = 2"
    ))
    .unwrap();
    assert_eq!(client.change()["old_record"]["id"], 2, "it is known what it was");
    sql.batch_execute(&format!(
        "alter table {t} replica identity default; delete from {t} where id = 3;
                                insert into {t} values (4, 4)"
    ))
    .unwrap();
    assert_eq!(client.change()["record"]["id"], 4, "it is not known what it was");
}

#[test]
fn row_filters_of_the_publication() {
    let t = database().table("t", "id int primary key, n int");
    let mut sql = database().sql();
    let mut client = database().client();
    client.subscribe("room", &t);

    for (filter, value, last) in [("n > 5", 4, 6), ("n < 5", 6, 4), ("true", 1, 2)] {
        sql.batch_execute(&format!(
            "begin; alter publication tide drop table {t};
             alter publication tide add table {t} where ({filter}); commit;
             alter table {t} replica identity full;
             truncate {t}; insert into {t} values (1, {value}), (2, {last})"
        ))
        .unwrap();
        let first = client.change();
        let expected = if filter == "true" { 1 } else { 2 };
        assert_eq!(first["record"]["id"], expected, "{filter}");
        if filter == "true" {
            client.change();
        }
    }
}
