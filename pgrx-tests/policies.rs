//! Row-level security: who gets which changes, and as what.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::client::{Client, Frame};
use crate::support::{Cluster, Database};

/// Postgres's usual way of asking who somebody is, as Supabase has it.
const UID: &str = "create schema auth; grant usage on schema auth to public;
    create function auth.uid() returns uuid language sql stable as $$
        select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
    $$;";

const ALICE: &str = "00000000-0000-0000-0000-00000000000a";
const BOB: &str = "00000000-0000-0000-0000-00000000000b";

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> = LazyLock::new(|| {
        let database = Cluster::shared().database("policies");
        database.sql().batch_execute(UID).unwrap();
        database
    });
    &DATABASE
}

fn run(statements: &str) {
    database().sql().batch_execute(statements).unwrap();
}

/// A published table with row-level security that `authenticated` may read.
fn secured(stem: &str, columns: &str, policy: &str) -> String {
    let t = database().table(stem, columns);
    run(&format!("alter table {t} enable row level security; {}", policy.replace("$t", &t)));
    t
}

fn user(sub: &str) -> Client {
    with_claims(&json!({ "sub": sub }))
}

fn with_claims(claims: &Value) -> Client {
    let token = database().token_with("authenticated", &claims.to_string(), "1 hour");
    database().connect(&format!("apikey={token}&vsn=2.0.0"))
}

/// A change as its operation and its row's id.
fn told(change: &Value) -> String {
    let record = if change["type"] == "DELETE" { "old_record" } else { "record" };
    format!("{} {}", change["type"].as_str().unwrap(), change[record]["id"])
}

fn next(client: &mut Client) -> String {
    told(&client.change())
}

#[test]
fn each_client_gets_the_rows_that_its_policy_admits() {
    for policy in [
        // Asked of Postgres, and decided by the worker itself.
        "create policy own on $t using (case when true then owner = auth.uid() end)",
        "create policy own on $t using ((select auth.uid()) = owner)",
    ] {
        let t = secured("own", "id int primary key, owner uuid", policy);
        let (mut alice, mut bob) = (user(ALICE), user(BOB));
        alice.subscribe("room", &t);
        bob.subscribe("room", &t);

        run(&format!(
            "insert into {t} values (1, '{ALICE}'), (2, '{BOB}'), (3, null), (4, '{ALICE}'), (5, '{BOB}')"
        ));

        assert_eq!([next(&mut alice), next(&mut alice)], ["INSERT 1", "INSERT 4"]);
        assert_eq!([next(&mut bob), next(&mut bob)], ["INSERT 2", "INSERT 5"]);
        assert_eq!(
            alice.passed("postgres_changes").len() + bob.passed("postgres_changes").len(),
            0
        );
    }
}

#[test]
fn an_update_is_told_as_what_it_is_to_the_one_who_sees() {
    for policy in [
        "create policy own on $t using (case when true then owner = auth.uid() end)",
        "create policy own on $t using (owner = auth.uid())",
    ] {
        let t = secured("moved", "id int primary key, owner uuid, n int", policy);
        run(&format!("alter table {t} replica identity full"));
        let (mut alice, mut bob) = (user(ALICE), user(BOB));
        alice.subscribe("room", &t);
        bob.subscribe("room", &t);

        run(&format!(
            "insert into {t} values (1, '{ALICE}', 0);
             update {t} set n = 1;
             update {t} set owner = '{BOB}';
             update {t} set n = 2;
             delete from {t};
             insert into {t} values (2, '{ALICE}', 0)"
        ));

        let alices: Vec<String> = (0..4).map(|_| next(&mut alice)).collect();
        assert_eq!(alices, ["INSERT 1", "UPDATE 1", "DELETE 1", "INSERT 2"], "{policy}");
        let bobs: Vec<Value> = bob.changes(3);
        let short: Vec<String> = bobs.iter().map(told).collect();
        assert_eq!(short, ["INSERT 1", "UPDATE 1", "DELETE 1"], "{policy}");
        assert_eq!(bobs[0].get("old_record"), None, "what it was is not Bob's to know");
    }
}

#[test]
fn what_the_replica_identity_lacks_is_not_told_and_the_join_says_so() {
    let t = secured(
        "blind",
        "id int primary key, owner uuid",
        "create policy own on $t using (owner = auth.uid())",
    );
    let mut alice = user(ALICE);
    alice.subscribe("room", &t);
    let warning =
        alice.wait_for("the warning", |frame| frame.payload["extension"] == "tide.row_security");
    assert_eq!(warning.payload["status"], "ok");
    assert!(warning.text.contains("REPLICA IDENTITY FULL"), "{}", warning.text);

    run(&format!(
        "insert into {t} values (1, '{ALICE}'), (2, '{BOB}');
         update {t} set owner = '{BOB}' where id = 1;
         delete from {t} where id = 1;
         update {t} set owner = '{ALICE}' where id = 2;
         insert into {t} values (3, '{ALICE}')"
    ));

    let changes: Vec<String> = (0..3).map(|_| next(&mut alice)).collect();
    assert_eq!(changes, ["INSERT 1", "UPDATE 2", "INSERT 3"]);
}

#[test]
fn a_policy_may_ask_other_tables() {
    let members = database().fresh_name("members");
    run(&format!(
        "create table {members} (team int, who uuid); grant select on {members} to authenticated;
         insert into {members} values (1, '{ALICE}'), (2, '{BOB}'), (3, '{ALICE}'), (3, '{BOB}')"
    ));
    let t = secured(
        "shared",
        "id int primary key, team int",
        &format!(
            "create policy team on $t using
                 (exists (select from {members} m where m.team = $t.team and m.who = auth.uid()))"
        ),
    );
    let (mut alice, mut bob) = (user(ALICE), user(BOB));
    alice.subscribe("room", &t);
    bob.subscribe("room", &t);

    run(&format!("insert into {t} select n, n % 4 from generate_series(1, 400) as n"));

    let of_alice: Vec<String> = (0..200).map(|_| next(&mut alice)).collect();
    let expected = |teams: [i32; 2]| -> Vec<String> {
        (1..=400).filter(|n| teams.contains(&(n % 4))).map(|n| format!("INSERT {n}")).collect()
    };
    assert_eq!(of_alice, expected([1, 3]));
    let of_bob: Vec<String> = (0..200).map(|_| next(&mut bob)).collect();
    assert_eq!(of_bob, expected([2, 3]));

    // Whoever is no member any more when Postgres is asked, which is never before the change was
    // committed, gets nothing more.
    run(&format!("delete from {members} where who = '{BOB}' and team = 2"));
    run(&format!("insert into {t} values (1002, 2), (1003, 3)"));
    assert_eq!(next(&mut bob), "INSERT 1003");
}

#[test]
fn permissive_policies_add_and_restrictive_ones_take_away() {
    let t = secured(
        "mixed",
        "id int primary key, owner uuid, open bool, hidden bool default false",
        "create policy own on $t using (owner = auth.uid());
         create policy open on $t for select to authenticated using (open);
         create policy others on $t for select to anon using (true);
         create policy writing on $t for update using (true);
         create policy hidden on $t as restrictive using (not hidden)",
    );
    let mut alice = user(ALICE);
    alice.subscribe("room", &t);

    run(&format!(
        "insert into {t} values (1, '{ALICE}', false, false), (2, '{BOB}', false, false),
             (3, '{BOB}', true, false), (4, '{ALICE}', true, true), (5, null, true, false)"
    ));

    let changes: Vec<String> = (0..3).map(|_| next(&mut alice)).collect();
    assert_eq!(changes, ["INSERT 1", "INSERT 3", "INSERT 5"]);
}

#[test]
fn without_a_policy_nothing_is_seen_and_owners_see_all_unless_forced() {
    let t = secured("none", "id int primary key", "");
    let marker = database().table("marker", "id int primary key");
    let role = database().fresh_name("p_owner");
    run(&format!(
        "create role {role} nologin; grant {role} to tide_authenticator;
         grant select on {marker} to {role};
         alter table {t} owner to {role}"
    ));
    let (mut reader, mut owner) = (user(ALICE), database().client_as(&role));
    for client in [&mut reader, &mut owner] {
        client.subscribe("room", &t);
        client.subscribe("marker", &marker);
    }

    run(&format!("insert into {t} values (1); insert into {marker} values (2)"));
    assert_eq!(next(&mut owner), "INSERT 1");
    assert_eq!(next(&mut owner), "INSERT 2");
    assert_eq!(next(&mut reader), "INSERT 2");

    run(&format!("alter table {t} force row level security"));
    run(&format!("insert into {t} values (3); insert into {marker} values (4)"));
    assert_eq!(next(&mut owner), "INSERT 4");

    run(&format!("truncate {t}"));
    let system =
        |frame: &crate::support::client::Frame| frame.payload["extension"] == "tide.truncate";
    reader.wait_for("the truncation, which is the table's", system);
}

#[test]
fn a_policy_that_changes_decides_from_the_next_event_on() {
    let t = secured(
        "changing",
        "id int primary key, owner uuid",
        "create policy own on $t using (owner = auth.uid())",
    );
    let marker = database().table("marker", "id int primary key");
    let mut alice = user(ALICE);
    // On one channel, where the order is that of the commits.
    let binding = |table| json!({ "event": "*", "schema": "public", "table": table });
    alice.join("realtime:room", &json!({ "postgres_changes": [binding(&t), binding(&marker)] }));
    // Policies are today's, so each step waits for the one before.
    let mut step = |ddl: &str, id: i32, expected: &[i32]| {
        run(ddl);
        run(&format!("insert into {t} values ({id}, '{ALICE}'), ({}, '{BOB}')", id + 1));
        run(&format!("insert into {marker} values ({})", id + 2));
        for id in expected.iter().chain([&(id + 2)]) {
            assert_eq!(next(&mut alice), format!("INSERT {id}"), "{ddl}");
        }
    };

    step("select 1", 10, &[10]);
    step(&format!("alter policy own on {t} using (owner <> auth.uid())"), 20, &[21]);
    step(&format!("drop policy own on {t}"), 30, &[]);
    step(&format!("create policy all_rows on {t} using (true)"), 40, &[40, 41]);
    step(&format!("create policy none on {t} as restrictive using (false)"), 50, &[]);
    step(&format!("drop policy none on {t}; alter policy all_rows on {t} to anon"), 60, &[]);
    step(&format!("alter table {t} disable row level security"), 70, &[70, 71]);
}

#[test]
fn a_renewed_token_is_another_client_to_the_policies() {
    let t = secured(
        "renewed",
        "id int primary key, owner uuid",
        "create policy own on $t using (owner = auth.uid() or owner is null)",
    );
    let mut client = user(ALICE);
    client.subscribe("room", &t);
    run(&format!("insert into {t} values (1, '{ALICE}')"));
    assert_eq!(next(&mut client), "INSERT 1");

    let claims = json!({ "sub": BOB }).to_string();
    let token = database().token_with("authenticated", &claims, "1 hour");
    client.push("realtime:room", "access_token", &json!({ "access_token": token }));
    // Rows that everyone sees say when the new token has come to hold.
    let mut round = 1;
    crate::support::wait_until("Bob's rows arrive", || {
        round += 1;
        run(&format!("insert into {t} values ({}, '{BOB}'), ({}, null)", 2 * round, 2 * round + 1));
        let first = next(&mut client);
        let is_bobs = first == format!("INSERT {}", 2 * round);
        if is_bobs {
            assert_eq!(next(&mut client), format!("INSERT {}", 2 * round + 1));
        }
        is_bobs.then_some(())
    });
    run(&format!("insert into {t} values (1000, '{ALICE}'), (1001, '{BOB}')"));
    assert_eq!(next(&mut client), "INSERT 1001");
}

#[test]
fn a_policy_that_fails_costs_only_those_behind_it() {
    let t = secured(
        "failing",
        "id int primary key, n int",
        "create policy odd on $t using (case when true then 10 / n > 0 end)",
    );
    let other = database().table("other", "id int primary key");
    let (mut client, mut bystander) = (user(ALICE), user(BOB));
    client.subscribe("room", &t);
    bystander.subscribe("room", &other);

    run(&format!("insert into {t} values (1, 1), (2, 0), (3, 3)"));
    run(&format!("insert into {other} values (1)"));

    assert_eq!(next(&mut bystander), "INSERT 1");
    assert_eq!(next(&mut client), "INSERT 1");
    let told = client.wait_for("the failure", |frame| frame.payload["extension"] == "tide.policy");
    assert_eq!(told.payload["status"], "ok");
    assert_eq!(told.payload["sqlstate"], "22012");
    assert_eq!(next(&mut client), "INSERT 3");
}

#[test]
fn a_slow_policy_costs_only_those_behind_it() {
    let database =
        Cluster::shared().database_with("slow_policy", &[("tide.policy_timeout", "200ms")]);
    let run = |statements: &str| database.sql().batch_execute(statements).unwrap();
    let slow = database.table("slow", "id int primary key");
    let other = database.table("other", "id int primary key");
    run(&format!(
        "alter table {slow} enable row level security;
         create policy slow on {slow} using (id > 2 or pg_sleep(20) is null)"
    ));
    let (mut client, mut bystander) = (database.client(), database.client());
    client.subscribe("room", &slow);
    bystander.subscribe("room", &other);

    run(&format!("insert into {slow} values (1), (3)"));
    run(&format!("insert into {other} values (1)"));

    assert_eq!(next(&mut bystander), "INSERT 1");
    let told = client.wait_for("the failure", |frame| frame.payload["extension"] == "tide.policy");
    assert_eq!(told.payload["sqlstate"], "57014");
    assert_eq!(next(&mut client), "INSERT 3");
}

#[test]
fn what_is_resumed_goes_through_the_same_policies() {
    let t = secured(
        "resumed",
        "id int primary key, owner uuid",
        "create policy own on $t using (case when true then owner = auth.uid() end)",
    );
    let topic = format!("realtime:tide:table:public.{t}");
    let mut alice = user(ALICE);
    alice.join(&topic, &json!({}));
    run(&format!("insert into {t} values (1, '{ALICE}')"));
    let first = alice.broadcast(&topic);
    run(&format!("insert into {t} values (2, '{BOB}'), (3, '{ALICE}'), (4, '{BOB}')"));

    let mut bob = user(BOB);
    bob.join(&topic, &json!({ "broadcast": { "since": first["meta"]["id"] } }));
    assert_eq!(bob.broadcast(&topic)["payload"]["record"]["id"], 2);
    assert_eq!(bob.broadcast(&topic)["payload"]["record"]["id"], 4);
    run(&format!("insert into {t} values (5, '{BOB}')"));
    assert_eq!(bob.broadcast(&topic)["payload"]["record"]["id"], 5);

    let mut latest = user(ALICE);
    latest.join(&topic, &json!({ "broadcast": { "last": 1 } }));
    assert_eq!(latest.broadcast(&topic)["payload"]["record"]["id"], 3);
}

#[test]
fn a_role_that_loses_a_membership_loses_what_it_gave() {
    let group = database().fresh_name("p_group");
    run(&format!("create role {group} nologin; grant {group} to authenticated"));
    let t = secured(
        "membership",
        "id int primary key",
        &format!("create policy of_group on $t to {group} using (true)"),
    );
    let marker = database().table("marker", "id int primary key");
    let mut client = user(ALICE);
    client.subscribe("room", &t);
    client.subscribe("marker", &marker);

    run(&format!("insert into {t} values (1)"));
    assert_eq!(next(&mut client), "INSERT 1");
    run(&format!("revoke {group} from authenticated"));
    run(&format!("insert into {t} values (2); insert into {marker} values (3)"));
    assert_eq!(next(&mut client), "INSERT 3");
}

#[test]
fn how_a_policy_is_evaluated_can_be_looked_up() {
    let explained = |t: &str| {
        let row = database()
            .sql()
            .query_one(
                &format!("select way, reason, claims, old_rows from tide.explain_policy('{t}', 'authenticated')"),
                &[],
            )
            .unwrap();
        let (way, reason, claims): (String, String, Vec<String>) =
            (row.get(0), row.get(1), row.get(2));
        (way, reason, claims, row.get::<_, bool>(3))
    };
    let columns = "id int primary key, owner uuid, tenant text, open bool, price numeric";

    // The usual forms, the worker's own; its claims are Supabase's.
    for condition in [
        "(select auth.uid()) = owner",
        "auth.uid() = owner or open",
        "tenant = (current_setting('request.jwt.claims', true)::jsonb ->> 'tenant')",
        "tenant = any (array['a', 'b']) and not open",
        "id in (1, 2, 3)",
    ] {
        let t =
            secured("explained", columns, &format!("create policy p on $t using ({condition})"));
        let (way, reason, claims, _) = explained(&t);
        assert_eq!(way, "worker", "{condition}: {reason}");
        assert!(claims.len() <= 1, "{claims:?}");
    }
    for (condition, why) in [
        ("exists (select from pg_roles where rolname = tenant)", "form"),
        ("price = 1", "price"),
        ("tenant like 'a%'", "operator"),
    ] {
        let t =
            secured("explained", columns, &format!("create policy p on $t using ({condition})"));
        let (way, reason, ..) = explained(&t);
        assert_eq!(way, "postgres", "{condition}");
        assert!(reason.contains(why), "{reason}");
    }
    let t = secured("explained", columns, "create policy p on $t using (id > 0)");
    assert!(explained(&t).3);
    run(&format!("drop policy p on {t}"));
    assert_eq!(explained(&t).0, "constant");
    // It is a function that decides, until it is another one.
    run("create function auth.org() returns text language sql stable as $$ select 'a'::text $$");
    let t = secured("explained", columns, "create policy p on $t using (tenant = auth.org())");
    assert_eq!(explained(&t).0, "worker");
    run("create or replace function auth.org() returns text language sql stable
         as $$ select rolname::text from pg_roles limit 1 $$");
    assert_eq!(explained(&t).0, "postgres");
}

#[test]
fn a_function_that_is_too_long_to_be_looked_into_is_put_to_postgres() {
    run("do $$ begin
             execute 'create function long(n int) returns bool language sql stable as '
                 || quote_literal('select n > 1 -- ' || repeat('x', 20 << 20));
         end $$");
    let columns = "id int primary key";
    let t = secured("long_function", columns, "create policy p on $t using (long(id))");
    let mut client = user(ALICE);

    client.subscribe("room", &t);
    run(&format!("insert into {t} values (1), (2)"));

    assert_eq!(next(&mut client), "INSERT 2");
}

#[test]
fn policies_that_are_too_large_to_be_looked_at_fail() {
    let ids = (0..30_000).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
    let policies = [
        format!("create policy p on $t using (id = any (array[{ids}]))"),
        "do $$ begin
             for i in 1..1001 loop execute format('create policy p%s on $t using (true)', i); end loop;
         end $$"
        .to_owned(),
    ];
    for (index, policy) in policies.iter().enumerate() {
        let t = secured(&format!("large_policy_{index}"), "id int primary key", policy);
        let mut client = user(ALICE);
        client.subscribe("room", &t);

        run(&format!("insert into {t} values (1)"));

        let is_told = |frame: &Frame| frame.payload["extension"] == "tide.policy";
        let told = client.wait_for("the failure", is_told);
        assert_eq!(told.payload["sqlstate"], "22P02");
        assert!(client.passed("postgres_changes").is_empty());
    }
}

#[test]
fn rows_with_labels_that_are_too_many_to_be_known_are_put_to_postgres() {
    run("do $$ begin
             execute 'create type crowd as enum ('
                 || (select string_agg(quote_literal('l' || n), ', ') from generate_series(1, 10001) n)
                 || ')';
         end $$");
    let columns = "id int primary key, m crowd";
    let asked = secured("crowded", columns, "create policy p on $t using (m::text = 'l7')");
    let named = secured("crowded", columns, "create policy p on $t using (m = 'l7')");
    let (mut client, mut other) = (user(ALICE), user(BOB));
    client.subscribe("room", &asked);
    other.subscribe("room", &named);

    run(&format!("insert into {asked} values (1, 'l8'), (2, 'l7')"));
    run(&format!("insert into {named} values (1, 'l8'), (2, 'l7')"));

    assert_eq!([next(&mut client), next(&mut other)], ["INSERT 2", "INSERT 2"]);
}

/// Postgres takes what such a function says for a constant when it plans a query.
#[test]
fn a_function_that_is_wrongly_immutable_answers_for_each_client_by_itself() {
    run("create function auth.claimed() returns text language plpgsql immutable as
         $$ begin return current_setting('request.jwt.claims')::jsonb ->> 'name'; end $$");
    let t = secured(
        "folded",
        "id int primary key, name text",
        "create policy own on $t using (case when true then name = auth.claimed() end)",
    );
    let mut clients: Vec<Client> = (1..=12)
        .map(|n| {
            let mut client = with_claims(&json!({ "name": n.to_string() }));
            client.subscribe("room", &t);
            client
        })
        .collect();

    for round in 0..2 {
        run(&format!(
            "insert into {t} select 100 * {round} + n, n from generate_series(1, 12) as n"
        ));
        for (client, n) in clients.iter_mut().zip(1..) {
            assert_eq!(next(client), format!("INSERT {}", 100 * round + n));
        }
    }
}
