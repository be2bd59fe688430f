//! What clients write: each mutation once, whole or not at all, and answered after its own events.

use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::support::mutator::{MUTATIONS, Mutator};
use crate::support::{Cluster, Database, http, wait_until};

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| Cluster::shared().database("mutations"));
    &DATABASE
}

/// A published table that `authenticated` may do anything with.
fn table(name: &str, columns: &str) {
    // Two that grant something on a sequence at once are in each other's way.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    database()
        .sql()
        .batch_execute(&format!(
            "create table {name} ({columns}); grant all on {name} to authenticated;
             grant usage on all sequences in schema public to authenticated;
             select tide.publish('{name}')"
        ))
        .unwrap();
}

/// All rows, in the order of their first column.
fn rows(table: &str) -> Value {
    let query = format!(
        "select coalesce(json_agg(t order by 1), '[]')::text from (select * from {table} order by 1) as t"
    );
    let text: String = database().sql().query_one(&query, &[]).unwrap().get(0);
    serde_json::from_str(&text).unwrap()
}

fn count(query: &str) -> i64 {
    database().sql().query_one(query, &[]).unwrap().get(0)
}

#[test]
fn rows_are_inserted_changed_and_deleted() {
    table("m_rows", "id int primary key, state text default 'new', n numeric");
    let mut client = Mutator::new(database(), "rows");

    client.confirmed(json!([
        { "op": "insert", "table": "public.m_rows", "values": { "id": 1, "n": 1.10 } },
        { "op": "insert", "table": "public.m_rows", "values": { "id": 2, "n": null } },
        { "op": "set", "table": "public.m_rows", "key": { "id": 1 }, "values": { "state": "paid" } },
        { "op": "upsert", "table": "public.m_rows", "values": { "id": 2, "state": "merged" } },
        { "op": "upsert", "table": "public.m_rows", "key": { "id": 3 }, "values": { "n": 3 } },
    ]));
    assert_eq!(
        rows("m_rows"),
        json!([
            { "id": 1, "state": "paid", "n": 1.10 },
            { "id": 2, "state": "merged", "n": null },
            { "id": 3, "state": "new", "n": 3 },
        ])
    );
    client.confirmed(json!([
        { "op": "delete", "table": "public.m_rows", "key": { "id": 1 } },
        // It is as the client wants it.
        { "op": "delete", "table": "public.m_rows", "key": { "id": 1 } },
        { "op": "upsert", "table": "public.m_rows", "key": { "id": 3 } },
        { "op": "set", "table": "public.m_rows", "key": { "id": 3 }, "values": { "id": 4 } },
    ]));
    assert_eq!(
        rows("m_rows"),
        json!([{ "id": 2, "state": "merged", "n": null }, { "id": 4, "state": "new", "n": 3 }])
    );
}

#[test]
fn several_tables_are_written_or_none() {
    table("m_orders", "id serial primary key, total int check (total > 0)");
    table("m_lines", "id serial primary key, order_id int not null references m_orders");
    let mut client = Mutator::new(database(), "several");

    let returning = client.confirmed(json!([
        { "op": "insert", "table": "public.m_orders", "values": { "total": 5 } },
        { "op": "insert", "table": "public.m_lines", "values": { "order_id": { "$new": 0 } } },
        { "op": "insert", "table": "public.m_lines", "values": { "order_id": { "$new": 0, "column": "id" } } },
    ]));
    assert_eq!(returning, json!([{ "id": 1 }, { "id": 1 }, { "id": 2 }]));
    let answer = client.rejected(
        json!([
            { "op": "insert", "table": "public.m_lines", "values": { "order_id": 1 } },
            { "op": "insert", "table": "public.m_orders", "values": { "total": 0 } },
        ]),
        "23514",
    );
    assert_eq!(answer["op"], 1);
    assert_eq!(rows("m_lines").as_array().unwrap().len(), 2);
    client.rejected(
        json!([{ "op": "insert", "table": "public.m_lines", "values": { "order_id": { "$new": 0 } } }]),
        "22023",
    );
}

#[test]
fn a_client_hears_what_it_asks_for() {
    table("m_heard", "id bigserial primary key, a text, at timestamptz default '2026-01-01'");
    let mut client = Mutator::new(database(), "heard");

    let insert = |returning: Value| json!([{ "op": "insert", "table": "public.m_heard", "values": { "a": "x" }, "returning": returning }]);
    assert_eq!(client.confirmed(insert(json!(false))), json!([null]));
    assert_eq!(
        client.confirmed(insert(json!(true))),
        json!([{ "id": 2, "a": "x", "at": "2026-01-01T00:00:00+00:00" }])
    );
    assert_eq!(client.confirmed(insert(json!(["a"]))), json!([{ "a": "x" }]));
    assert_eq!(
        client.confirmed(json!([{ "op": "set", "table": "public.m_heard", "key": { "id": 3 },
                                  "values": { "a": "y" }, "returning": ["a", "id"] }])),
        json!([{ "a": "y", "id": 3 }])
    );
    assert_eq!(
        client.confirmed(json!([{ "op": "delete", "table": "public.m_heard", "key": { "id": 3 },
                                  "returning": ["id"] }])),
        json!([{ "id": 3 }])
    );
    client.rejected(insert(json!(["nothing"])), "42703");
}

#[test]
fn its_own_events_come_before_the_answer() {
    table("m_echo", "id int primary key, n int");
    let mut client = Mutator::new(database(), "echo");
    client.client.join("realtime:tide:table:public.m_echo", &json!({}));
    for n in 1..=50 {
        client.n += 1;
        client.send(
            client.n,
            &json!([{ "op": "upsert", "table": "public.m_echo", "key": { "id": 1 }, "values": { "n": n } }]),
        );
    }
    // The next one's events may come before the answer to this one.
    let (mut events, mut answers) = (Vec::new(), 0);
    while answers < 50 {
        let frame =
            client.client.wait_for("an event or an answer", |frame| frame.event == "broadcast");
        if frame.payload["event"] != "tide:mutation" {
            let meta = &frame.payload["meta"];
            assert_eq!(meta["mutation_id"], format!("echo/{}", events.len() + 1), "{}", frame.text);
            events.push(meta["id"].as_str().unwrap().to_owned());
            continue;
        }
        answers += 1;
        let answer = &frame.payload["payload"];
        assert_eq!(
            (&answer["n"], &answer["status"]),
            (&json!(answers), &json!("confirmed")),
            "{answer}"
        );
        assert_eq!(answer.get("echo"), None);
        let own = events.get(answers - 1).expect("its event comes first");
        assert!(own.as_str() < answer["position"].as_str().unwrap(), "{answer}");
    }
}

#[test]
fn what_is_sent_again_has_the_same_answer_and_no_other_effect() {
    table("m_again", "id bigserial primary key, n int unique");
    let mut client = Mutator::new(database(), "again");
    let insert =
        |n: i32| json!([{ "op": "insert", "table": "public.m_again", "values": { "n": n } }]);
    let first = client.mutate(insert(1));
    let second = client.rejected(insert(1), "23505");

    // Also by another connection.
    let mut other = Mutator::new(database(), "again");
    for (n, before) in [(1, &first), (2, &second), (1, &first)] {
        other.send(n, &insert(1));
        let mut again = other.answer();
        again["position"] = before["position"].clone();
        assert_eq!(&again, before);
    }
    other.n = 2;
    assert_eq!(other.confirmed(insert(2)), json!([{ "id": 3 }]));
    other.send(3, &insert(3));
    let answer = other.answer();
    assert_eq!(
        (&answer["status"], &answer["code"]),
        (&json!("error"), &json!("reused")),
        "{answer}"
    );
    other.send(5, &insert(5));
    let answer = other.answer();
    assert_eq!(
        (&answer["code"], &answer["expected"]),
        (&json!("out_of_order"), &json!(4)),
        "{answer}"
    );
    assert_eq!(rows("m_again").as_array().unwrap().len(), 2);

    // It is another client's who has another subject.
    let mut stranger = Mutator::with_claims(database(), "again", &json!({ "sub": "somebody" }));
    stranger.confirmed(insert(9));
}

#[test]
fn what_is_forgotten_is_expired_and_never_done_again() {
    table("m_expired", "id bigserial primary key");
    let mut client = Mutator::new(database(), "expired");
    let insert = json!([{ "op": "insert", "table": "public.m_expired", "values": {} }]);
    for _ in 0..3 {
        client.confirmed(insert.clone());
    }
    // As the cleaner does it, of this client only.
    let forget = "select tide_internal.delete_row('tide.mutation', ctid) from tide.mutation
                  where client_id = 'expired' and n < 3";
    database().sql().batch_execute(forget).unwrap();

    client.send(2, &insert);
    let answer = client.answer();
    assert_eq!(
        (&answer["status"], &answer["code"]),
        (&json!("error"), &json!("expired")),
        "{answer}"
    );
    client.send(3, &insert);
    assert_eq!(client.answer()["status"], "confirmed");
    assert_eq!(rows("m_expired").as_array().unwrap().len(), 3);

    database()
        .sql()
        .batch_execute("set role postgres; select tide.forget_clients('-1 second')")
        .unwrap();
    client.n = 0;
    client.confirmed(insert);
}

#[test]
fn old_outcomes_are_forgotten_but_for_each_clients_newest() {
    let cluster = Cluster::shared();
    let settings = [("tide.mutation_retention", "1s")];
    let database = cluster.database_with("mutations_kept", &settings);
    let mut sql = database.sql();
    sql.batch_execute(
        "create table t (id serial primary key); grant all on t, t_id_seq to authenticated;
         select tide.publish('t')",
    )
    .unwrap();
    let mut client = Mutator::new(&database, "kept");
    for _ in 0..3 {
        client.confirmed(json!([{ "op": "insert", "table": "public.t", "values": {} }]));
    }
    wait_until("the others are forgotten", || {
        let rows = sql.query("select n from tide.mutation", &[]).unwrap();
        (rows.len() == 1 && rows[0].get::<_, i64>(0) == 3).then_some(())
    });
}

#[test]
fn what_is_checked_at_the_end_is_a_rejection_too() {
    table("m_parents", "id int primary key");
    table(
        "m_children",
        "id int primary key, parent int references m_parents deferrable initially deferred",
    );
    let mut client = Mutator::new(database(), "deferred");

    client.confirmed(json!([
        { "op": "insert", "table": "public.m_children", "values": { "id": 1, "parent": 1 } },
        { "op": "insert", "table": "public.m_parents", "values": { "id": 1 } },
    ]));
    let answer = client.rejected(
        json!([{ "op": "insert", "table": "public.m_children", "values": { "id": 2, "parent": 2 } }]),
        "23503",
    );
    assert_eq!(answer["op"], Value::Null);
    assert_eq!(rows("m_children").as_array().unwrap().len(), 1);
    assert_eq!(count("select count(*) from tide.mutation where client_id = 'deferred'"), 2);
}

#[test]
fn what_was_put_off_once_more_is_done_as_the_client() {
    table("m_put_off", "id int primary key");
    database()
        .sql()
        .batch_execute(
            "create table m_put_off_by (who text, claims text, depth int);
             grant all on m_put_off_by to public;
             create function m_put_off_again() returns trigger language plpgsql as $$
             begin
                 insert into m_put_off_by values
                     (current_user, current_setting('request.jwt.claims', true), coalesce(new.depth, 0));
                 return null;
             end $$;
             create function m_put_off() returns trigger language plpgsql as $$
             begin
                 set constraints all deferred;
                 insert into m_put_off_queue values (0);
                 return null;
             end $$;
             create table m_put_off_queue (depth int);
             grant all on m_put_off_queue to public;
             create constraint trigger again after insert on m_put_off_queue deferrable initially deferred
             for each row execute function m_put_off_again();
             create constraint trigger first after insert on m_put_off deferrable initially deferred
             for each row execute function m_put_off()",
        )
        .unwrap();
    let mut client = Mutator::with_claims(database(), "put_off", &json!({ "sub": "me" }));

    client
        .confirmed(json!([{ "op": "insert", "table": "public.m_put_off", "values": { "id": 1 } }]));

    let by = rows("m_put_off_by");
    assert_eq!(by.as_array().unwrap().len(), 1, "{by}");
    assert_eq!(by[0]["who"], "authenticated");
    assert!(by[0]["claims"].as_str().unwrap().contains("\"me\""), "{by}");
}

#[test]
fn a_rejection_has_the_row_as_the_client_may_see_it() {
    table(
        "m_current",
        "id int primary key, owner text, version int not null default 1, secret text",
    );
    database()
        .sql()
        .batch_execute(
            "revoke all on m_current from authenticated;
             grant select (id, owner, version), insert, update, delete on m_current to authenticated;
             alter table m_current enable row level security;
             create policy mine on m_current using (owner = current_setting('request.jwt.claims')::json ->> 'sub');
             create policy read on m_current for select using (owner <> 'hidden');
             insert into m_current values (1, 'me', 7, 's'), (2, 'other', 1, 's'), (3, 'hidden', 1, 's');
             select tide.version_column('m_current', 'version')",
        )
        .unwrap();
    let mut client = Mutator::with_claims(database(), "current", &json!({ "sub": "me" }));
    let set = |id: i32, version: Option<i32>| {
        let mut op = json!({ "op": "set", "table": "public.m_current", "key": { "id": id },
                             "values": { "secret": "new" } });
        version.into_iter().for_each(|version| op["if_version"] = json!(version));
        json!([op])
    };

    let answer = client.rejected(set(1, Some(6)), "TD004");
    assert_eq!(answer["current"], json!({ "id": 1, "owner": "me", "version": 7 }));
    client.confirmed(set(1, Some(7)));
    assert_eq!(count("select version::bigint from m_current where id = 1"), 8);
    let answer = client.rejected(set(2, None), "42501");
    assert_eq!(answer["current"], json!({ "id": 2, "owner": "other", "version": 1 }));
    // A row that is hidden is as one that is not there.
    let hidden = client.rejected(set(3, None), "P0002");
    let missing = client.rejected(set(4, None), "P0002");
    assert_eq!(hidden["current"], Value::Null);
    assert_eq!(hidden["reason"], missing["reason"]);
    let delete =
        |id: i32| json!([{ "op": "delete", "table": "public.m_current", "key": { "id": id } }]);
    assert_eq!(client.rejected(delete(2), "42501")["current"]["id"], 2);
    client.confirmed(delete(3));
    assert_eq!(count("select count(*) from m_current"), 3);
    let insert = json!([{ "op": "insert", "table": "public.m_current",
                          "values": { "id": 1, "owner": "me" } }]);
    assert_eq!(client.rejected(insert, "23505")["current"]["version"], 8);
    // One may not say that a row is somebody else's.
    let theirs = json!([{ "op": "insert", "table": "public.m_current",
                          "values": { "id": 9, "owner": "other" } }]);
    client.rejected(theirs, "42501");
}

#[test]
fn an_upsert_heeds_the_version_too() {
    table("m_versions", "id int primary key, v bigint not null default 1, a text");
    database().sql().batch_execute("select tide.version_column('m_versions', 'v')").unwrap();
    let mut client = Mutator::new(database(), "versions");
    let upsert = |a: &str, version: Option<i64>| {
        let mut op = json!({ "op": "upsert", "table": "public.m_versions", "key": { "id": 1 },
                             "values": { "a": a } });
        version.into_iter().for_each(|version| op["if_version"] = json!(version));
        json!([op])
    };
    // What is gone is of no version.
    client.rejected(upsert("x", Some(5)), "TD004");
    client.confirmed(upsert("made", None));
    client.rejected(upsert("x", Some(5)), "TD004");
    client.confirmed(upsert("changed", Some(1)));
    client.confirmed(upsert("whatever it was", None));
    assert_eq!(rows("m_versions"), json!([{ "id": 1, "v": 3, "a": "whatever it was" }]));
    let none = json!([{ "op": "delete", "table": "public.m_versions", "key": { "id": 1 }, "if_version": 2 }]);
    client.rejected(none, "TD004");
    client.confirmed(
        json!([{ "op": "delete", "table": "public.m_versions", "key": { "id": 1 }, "if_version": 3 }]),
    );
}

#[test]
fn a_tables_own_function_says_what_is_stored() {
    table("m_looked_at", "id int primary key, a int, by text");
    database()
        .sql()
        .batch_execute(
            "create function m_look(old jsonb, new jsonb, context jsonb) returns jsonb language plpgsql as $$
             begin
                 if context ->> 'op' = 'delete' then
                     if (old ->> 'a')::int > 100 then raise exception 'too dear'; end if;
                     return null;
                 end if;
                 if (new ->> 'a')::int < 0 then return null; end if;
                 return new || jsonb_build_object('by', context ->> 'client_id', 'a', greatest((new ->> 'a')::int, (old ->> 'a')::int));
             end $$;
             select tide.on_mutate('m_looked_at', 'm_look(jsonb, jsonb, jsonb)')",
        )
        .unwrap();
    let mut client = Mutator::new(database(), "looker");
    let op = |op: &str, a: i32| match op {
        "insert" => {
            json!([{ "op": op, "table": "public.m_looked_at", "values": { "id": 1, "a": a } }])
        }
        _ => {
            json!([{ "op": op, "table": "public.m_looked_at", "key": { "id": 1 }, "values": { "a": a } }])
        }
    };
    client.confirmed(op("insert", -1));
    assert_eq!(rows("m_looked_at"), json!([]));
    client.confirmed(op("insert", 5));
    client.confirmed(op("set", 3));
    assert_eq!(rows("m_looked_at"), json!([{ "id": 1, "a": 5, "by": "looker" }]));
    client.confirmed(op("upsert", 200));
    client.confirmed(op("set", -1));
    assert_eq!(rows("m_looked_at"), json!([{ "id": 1, "a": 200, "by": "looker" }]));
    let delete = json!([{ "op": "delete", "table": "public.m_looked_at", "key": { "id": 1 } }]);
    let answer = client.rejected(delete.clone(), "P0001");
    assert_eq!((&answer["reason"], &answer["current"]["a"]), (&json!("too dear"), &json!(200)));
    client.confirmed(op("upsert", 300));
    database().sql().batch_execute("select tide.on_mutate('m_looked_at', null)").unwrap();
    client.confirmed(delete);
}

#[test]
fn functions_are_called_that_are_allowed() {
    database()
        .sql()
        .batch_execute(
            "create table m_called (n int, note text);
             create function m_call(n int, note text default 'none') returns int language sql security definer
             as 'insert into m_called values ($1, $2) returning n * 2';
             create function m_list(until int) returns setof int language sql as 'select generate_series(1, until)';
             create function m_nothing() returns void language sql as '';
             create function m_refuses(\"A b\" jsonb) returns jsonb language plpgsql as
             $$ begin raise exception 'not %', $1 using errcode = 'P0042'; end $$;
             create function m_not_allowed() returns int language sql as 'select 1';
             create function m_unnamed(int) returns int language sql as 'select 1';
             select tide.allow_call('m_call(int, text)'), tide.allow_call('m_list(int)'),
                    tide.allow_call('m_nothing()'), tide.allow_call('m_refuses(jsonb)')",
        )
        .unwrap();
    let mut client = Mutator::new(database(), "caller");
    let call = |name: &str, args: Value| json!([{ "op": "call", "function": name, "args": args }]);

    assert_eq!(client.confirmed(call("public.m_call", json!({ "n": 4 }))), json!([8]));
    assert_eq!(
        client.confirmed(call("public.m_call", json!({ "n": 5, "note": "x" }))),
        json!([10])
    );
    assert_eq!(client.confirmed(call("public.m_list", json!({ "until": 3 }))), json!([[1, 2, 3]]));
    assert_eq!(client.confirmed(call("public.m_nothing", json!({}))).as_array().unwrap().len(), 1);
    let answer = client.rejected(call("public.m_refuses", json!({ "A b": [1] })), "P0042");
    assert_eq!(answer["reason"], "not [1]");
    for (name, args) in [
        ("public.m_not_allowed", json!({})),
        ("public.m_call", json!({})),
        ("public.m_call", json!({ "n": 1, "other": 2 })),
        ("public.m_missing", json!({})),
        ("pg_catalog.pg_sleep", json!({})),
    ] {
        client.rejected(call(name, args), "42883");
    }
    assert_eq!(rows("m_called").as_array().unwrap().len(), 2);
    // Who may not execute it may not by this way either.
    database().sql().batch_execute("revoke execute on function m_call from public").unwrap();
    client.rejected(call("public.m_call", json!({ "n": 6 })), "42501");
    let mut sql = database().sql();
    for refused in ["m_unnamed(int)", "concat(\"any\")", "tide_internal.outboxes_changed()"] {
        let allow = format!("select tide.allow_call('{refused}')");
        assert!(sql.batch_execute(&allow).is_err(), "{refused}");
    }
    sql.batch_execute("select tide.allow_call('m_list(int)', false)").unwrap();
    client.rejected(call("public.m_list", json!({ "until": 3 })), "42883");
}

#[test]
fn values_of_every_kind_are_read_as_they_are_told() {
    database()
        .sql()
        .batch_execute(
            "create schema m_hidden;
             create type m_hidden.mood as enum ('good', 'bad');
             create type m_pair as (x int, y text)",
        )
        .unwrap();
    table(
        "m_kinds",
        "id uuid primary key, a int[], b bytea, c m_pair, d date, e m_hidden.mood,
         f double precision, g jsonb, h numeric, i int4range, j text, k char(4), l timestamptz, m bit(3), n bigint generated always as identity",
    );
    let mut client = Mutator::new(database(), "kinds");
    let values = json!({
        "id": "6d7c7ef0-8d3c-4f5e-9c3f-7c1f1f3b1c11", "a": [1, null, 3], "b": "\\x00ff",
        "c": { "x": 1, "y": "(" }, "d": "2026-12-01", "e": "bad", "f": "Infinity", "g": { "$new": "x" },
        "h": "12345678901234567890.12345", "i": "[1,5)", "j": "'; drop table m_kinds; --\\ \u{1F980}",
        "k": "ab", "l": "2026-12-01T00:00:00Z", "m": "101",
    });

    let insert =
        json!([{ "op": "insert", "table": "public.m_kinds", "values": values, "returning": true }]);
    let returned = client.confirmed(insert);

    let row = &rows("m_kinds")[0];
    let mut expected = values.clone();
    let also = [("n", json!(1)), ("k", json!("ab  "))];
    for (name, value) in also {
        expected[name] = value;
    }
    expected["h"] = row["h"].clone();
    expected["l"] = json!("2026-12-01T00:00:00+00:00");
    assert_eq!(returned[0], expected);
    assert_eq!(count("select count(*) from m_kinds where h = 12345678901234567890.12345"), 1);
    for (name, value, sqlstate) in [
        ("a", json!("x"), "22P02"),
        ("j", json!("a\u{0}b"), "22P05"),
        ("n", json!(7), "428C9"),
        ("no such", json!(7), "42703"),
        ("k", json!("abcde"), "22001"),
    ] {
        let set = json!([{ "op": "set", "table": "public.m_kinds", "key": { "id": values["id"] },
                           "values": { name: value } }]);
        client.rejected(set, sqlstate);
    }
}

#[test]
fn a_domain_that_takes_no_null_need_not_be_given() {
    database()
        .sql()
        .batch_execute("create domain m_strict as int not null check (value > 0)")
        .unwrap();
    table("m_strictly", "id int primary key, strict m_strict default 5, a int[]");
    let mut client = Mutator::new(database(), "strict");
    client.confirmed(json!([
        { "op": "insert", "table": "public.m_strictly", "values": { "id": 1, "a": [1] } },
        { "op": "set", "table": "public.m_strictly", "key": { "id": 1 }, "values": { "a": [1, 2] } },
    ]));
    assert_eq!(rows("m_strictly"), json!([{ "id": 1, "strict": 5, "a": [1, 2] }]));
    for (value, sqlstate) in [(json!(-1), "23514"), (json!(null), "23502")] {
        let set = json!([{ "op": "set", "table": "public.m_strictly", "key": { "id": 1 },
                           "values": { "strict": value } }]);
        client.rejected(set, sqlstate);
    }
}

#[test]
fn keys_are_given_whole() {
    table("m_keys", "\"A.b\" int, c text, d int, primary key (\"A.b\", c)");
    table("m_keyless", "a int");
    let mut client = Mutator::new(database(), "keys");
    client.confirmed(json!([
        { "op": "insert", "table": "public.m_keys", "values": { "A.b": 1, "c": "x", "d": 1 } },
        { "op": "set", "table": "public.m_keys", "key": { "A.b": 1, "c": "x" }, "values": { "d": 2 } },
    ]));
    for key in [json!({ "A.b": 1 }), json!({ "A.b": 1, "c": "x", "d": 2 }), json!({ "d": 2 })] {
        let set =
            json!([{ "op": "set", "table": "public.m_keys", "key": key, "values": { "d": 3 } }]);
        let answer = client.rejected(set, "22023");
        assert_eq!(answer["reason"], "a row's key is its (A.b, c)");
    }
    client
        .confirmed(json!([{ "op": "insert", "table": "public.m_keyless", "values": { "a": 1 } }]));
    client.rejected(
        json!([{ "op": "delete", "table": "public.m_keyless", "key": { "a": 1 } }]),
        "55000",
    );
    assert_eq!(rows("m_keys")[0]["d"], 2);
}

#[test]
fn tables_that_may_not_be_written_look_as_if_there_were_none() {
    database()
        .sql()
        .batch_execute(
            "create table m_unpublished (id int primary key); grant all on m_unpublished to authenticated;
             create table m_closed (id int primary key); select tide.publish('m_closed');
             create view m_view as select 1 as id; grant all on m_view to authenticated",
        )
        .unwrap();
    table("m_open", "id int primary key");
    let mut client = Mutator::new(database(), "closed");
    let insert = |table: &str| json!([{ "op": "insert", "table": table, "values": { "id": 1 } }]);
    for table in ["m_unpublished", "m_closed", "m_view", "m_missing"] {
        let table = format!("public.{table}");
        let answer = client.rejected(insert(&table), "42P01");
        let reason = format!("there is no published table {table} that the role may use");
        assert_eq!(answer["reason"], reason);
    }
    client.rejected(insert("pg_catalog.pg_class"), "42P01");
    client.rejected(insert("tide.mutation"), "42P01");
    client.rejected(insert("m_open"), "42602");
    client.confirmed(insert("public.m_open"));
}

#[test]
fn who_may_write_nothing_is_remembered_for_nothing() {
    let database = Cluster::shared().database("mutations_readers");
    let mut sql = database.sql();
    sql.batch_execute(
        "create role m_reader; grant m_reader to tide_authenticator;
         create table t (id int primary key); select tide.publish('t'); grant select on t to m_reader",
    )
    .unwrap();
    let mut client = Mutator::with(database.client_as("m_reader"), "reader");
    let insert = json!([{ "op": "insert", "table": "public.t", "values": { "id": 1 } }]);

    let answer = client.mutate(insert.clone());

    assert_eq!(
        (&answer["status"], &answer["code"]),
        (&json!("error"), &json!("refused")),
        "{answer}"
    );
    assert_eq!(answer["sqlstate"], "42501");
    assert!(sql.query("select from tide.mutation", &[]).unwrap().is_empty());
    sql.batch_execute("grant insert on t to m_reader").unwrap();
    client.n = 0;
    client.confirmed(insert);
}

#[test]
fn deadlocks_are_tried_again_and_never_answered() {
    let settings = [("deadlock_timeout", "5ms")];
    let database = &Cluster::shared().database_with("mutations_deadlock", &settings);
    let mut sql = database.sql();
    sql.batch_execute(
        "create table t (id int primary key, n int not null default 0); grant all on t to authenticated;
         select tide.publish('t'); insert into t values (1), (2);
         create function pause() returns void language sql as 'select pg_sleep(0.02)';
         select tide.allow_call('pause()')",
    )
    .unwrap();
    let add = |first: i32, second: i32, n: u64| {
        json!([
            { "op": "set", "table": "public.t", "key": { "id": first }, "values": { "n": n } },
            { "op": "call", "function": "public.pause", "args": {} },
            { "op": "set", "table": "public.t", "key": { "id": second }, "values": { "n": n } },
        ])
    };
    std::thread::scope(|scope| {
        for (first, second) in [(1, 2), (2, 1)] {
            scope.spawn(move || {
                let claims = json!({ "sub": first });
                let mut client = Mutator::with_claims(database, "deadlock", &claims);
                for n in 1..=10 {
                    client.confirmed(add(first, second, n));
                }
            });
        }
    });
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    wait_until("they have been in each other's way", || {
        let count: i64 = sql.query_one(deadlocks, &[]).unwrap().get(0);
        (count > 0).then_some(())
    });
}

#[test]
fn one_that_takes_too_long_is_undone_and_said_to_have_been() {
    let cluster = Cluster::shared();
    let settings = [("tide.write_timeout", "200ms")];
    let database = cluster.database_with("mutations_slow", &settings);
    let mut sql = database.sql();
    sql.batch_execute(
        "create table t (id int primary key); grant all on t to authenticated; select tide.publish('t');
         create function slow() returns void language sql as 'select pg_sleep(60)';
         select tide.allow_call('slow()')",
    )
    .unwrap();
    let mut client = Mutator::new(&database, "slow");
    let answer = client.mutate(json!([
        { "op": "insert", "table": "public.t", "values": { "id": 1 } },
        { "op": "call", "function": "public.slow" },
    ]));
    assert_eq!(
        (&answer["status"], &answer["code"]),
        (&json!("error"), &json!("timeout")),
        "{answer}"
    );
    // Nothing was remembered: it is the client's next as before.
    client.n = 0;
    client.confirmed(json!([{ "op": "insert", "table": "public.t", "values": { "id": 1 } }]));
}

#[test]
fn over_http_it_is_the_same() {
    table("m_http", "id int primary key, n int");
    let token = database().token("authenticated");
    let bearer = format!("Bearer {token}");
    let post = |body: &Value| {
        let response = http::post_json(
            database().port,
            "/realtime/v1/mutate",
            &[("authorization", &bearer)],
            &body.to_string(),
        );
        (response.status, serde_json::from_str::<Value>(&response.body).unwrap())
    };
    let body =
        |n: u64, ops: Value| json!({ "mutation_id": "h", "client_id": "http", "n": n, "ops": ops });
    let insert = json!([{ "op": "insert", "table": "public.m_http", "values": { "id": 1 }, "returning": true }]);

    let (status, first) = post(&body(1, insert.clone()));
    assert_eq!((status, &first["status"]), (200, &json!("confirmed")), "{first}");
    assert_eq!(first["returning"], json!([{ "id": 1, "n": null }]));
    let (status, again) = post(&body(1, insert.clone()));
    assert_eq!((status, &again["returning"]), (200, &first["returning"]));
    let (status, twice) = post(&body(2, insert.clone()));
    assert_eq!((status, &twice["sqlstate"]), (409, &json!("23505")), "{twice}");
    let (status, gap) = post(&body(4, insert.clone()));
    assert_eq!((status, &gap["expected"]), (409, &json!(3)), "{gap}");
    let (status, malformed) = post(&json!({ "ops": [] }));
    assert_eq!((status, &malformed["code"]), (400, &json!("malformed")), "{malformed}");
    let nobody = http::post_json(database().port, "/realtime/v1/mutate", &[], "{}");
    assert_eq!(nobody.status, 401, "{nobody:?}");
}

#[test]
fn its_events_are_stamped_whatever_its_triggers_do() {
    table("m_stamped", "id int primary key");
    table("m_stamped_log", "id serial primary key, of int");
    database()
        .sql()
        .batch_execute(
            "create function m_stamped_log() returns trigger language plpgsql as $$
             begin insert into m_stamped_log (of) values (new.id); return new; end $$;
             create trigger log after insert on m_stamped for each row execute function m_stamped_log()",
        )
        .unwrap();
    let mut other = database().client();
    other.join("realtime:tide:table:public.m_stamped_log", &json!({}));
    let mut client = Mutator::new(database(), "stamped");

    client
        .confirmed(json!([{ "op": "insert", "table": "public.m_stamped", "values": { "id": 1 } }]));

    let event = other.broadcast("realtime:tide:table:public.m_stamped_log");
    assert_eq!(event["meta"]["mutation_id"], "stamped/1");
}

#[test]
fn a_subscriber_to_all_tables_is_told_nothing_of_what_is_remembered() {
    let cluster = Cluster::shared();
    let database = cluster.database("mutations_all");
    let mut sql = database.sql();
    sql.batch_execute(
        "create table t (id int primary key); grant all on t to authenticated; select tide.publish('t');
         create publication all_of_them for all tables",
    )
    .unwrap();
    sql.batch_execute("select pg_create_logical_replication_slot('mutations_all', 'pgoutput')")
        .unwrap();
    let mut client = Mutator::new(&database, "all");
    client.confirmed(json!([{ "op": "insert", "table": "public.t", "values": { "id": 1 } }]));
    client
        .rejected(json!([{ "op": "insert", "table": "public.t", "values": { "id": 1 } }]), "23505");
    sql.batch_execute("select tide.forget_clients('-1 s')").unwrap();

    let changes =
        "select count(*) from pg_logical_slot_get_binary_changes('mutations_all', null, null,
                   'proto_version', '1', 'publication_names', 'all_of_them')
                   where get_byte(data, 0) in (ascii('I'), ascii('U'), ascii('D'))";
    let changes: i64 = sql.query_one(changes, &[]).unwrap().get(0);
    sql.batch_execute("select pg_drop_replication_slot('mutations_all')").unwrap();
    assert_eq!(changes, 1, "the row of t");
}

/// A transaction of SQL's that holds on to what it has done.
fn held(statements: &str) -> postgres::Client {
    let mut sql = database().sql();
    sql.batch_execute(&format!("begin; {statements}")).unwrap();
    sql
}

/// Waits until a writer waits for a lock.
fn wait_for_a_writer_in_wait() {
    wait_until("a writer waits", || {
        let waiting = "select count(*) from pg_stat_activity
                       where datname = current_database() and backend_type = 'pg_tide writer' and wait_event_type = 'Lock'";
        (count(waiting) > 0).then_some(())
    });
}

#[test]
fn a_mutation_sent_twice_at_once_has_one_answer() {
    table("m_twice", "id int primary key, n int");
    database().sql().batch_execute("insert into m_twice values (1, 0)").unwrap();
    let claims = json!({ "sub": "twice" });
    let mut one = Mutator::with_claims(database(), "twice", &claims);
    let mut other = Mutator::with_claims(database(), "twice", &claims);
    for n in 1..=20 {
        let set = json!([{ "op": "set", "table": "public.m_twice", "key": { "id": 1 }, "values": { "n": n },
                           "returning": true }]);
        one.send(n, &set);
        other.send(n, &set);
        let (mut first, mut second) = (one.answer(), other.answer());
        assert_eq!(first["status"], "confirmed", "{first}");
        first["position"] = Value::Null;
        second["position"] = Value::Null;
        assert_eq!(first, second);
    }
}

#[test]
fn a_row_that_is_made_anew_meanwhile_is_written() {
    table("m_anew", "id int primary key, n int");
    database().sql().batch_execute("insert into m_anew values (1, 0)").unwrap();
    let mut client = Mutator::new(database(), "anew");
    for op in ["set", "delete"] {
        let mut sql = held("delete from m_anew where id = 1; insert into m_anew values (1, 1)");
        let values = if op == "set" { json!({ "n": 2 }) } else { Value::Null };
        let mut ops =
            json!([{ "op": op, "table": "public.m_anew", "key": { "id": 1 }, "values": values }]);
        if op == "delete" {
            ops[0].as_object_mut().unwrap().remove("values");
        }
        client.n += 1;
        client.send(client.n, &ops);
        wait_for_a_writer_in_wait();
        sql.batch_execute("commit").unwrap();
        let answer = client.answer();
        assert_eq!(answer["status"], "confirmed", "{op}: {answer}");
    }
    assert_eq!(rows("m_anew"), json!([]));
}

#[test]
fn a_tables_function_is_asked_about_the_row_that_is_written() {
    table("m_judged", "id int primary key, state text");
    database()
        .sql()
        .batch_execute(
            "create function m_judge(old jsonb, new jsonb, context jsonb) returns jsonb language plpgsql as $$
             begin
                 if old ->> 'state' = 'paid' then raise exception 'a paid order stays'; end if;
                 return new;
             end $$;
             select tide.on_mutate('m_judged', 'm_judge(jsonb, jsonb, jsonb)');
             insert into m_judged values (1, 'new')",
        )
        .unwrap();
    let mut client = Mutator::new(database(), "judged");
    let cases = [
        ("upsert", 9, "insert into m_judged values (9, 'paid')"),
        ("delete", 1, "update m_judged set state = 'paid' where id = 1"),
    ];
    for (op, id, meanwhile) in cases {
        let mut sql = held(meanwhile);
        let mut ops = json!([{ "op": op, "table": "public.m_judged", "key": { "id": id } }]);
        if op == "upsert" {
            ops[0]["values"] = json!({ "state": "mine" });
        }
        client.n += 1;
        client.send(client.n, &ops);
        wait_for_a_writer_in_wait();
        sql.batch_execute("commit").unwrap();
        let answer = client.answer();
        assert_eq!(answer["reason"], "a paid order stays", "{op}: {answer}");
    }
    assert_eq!(
        rows("m_judged"),
        json!([{ "id": 1, "state": "paid" }, { "id": 9, "state": "paid" }])
    );
}

#[test]
fn a_table_that_has_another_name_by_then_is_not_written() {
    table("m_old_name", "id int primary key, a int, b int");
    table("m_new_name", "id int primary key, a int, b int");
    let mut client = Mutator::new(database(), "names");
    let upsert = |n: i32| json!([{ "op": "upsert", "table": "public.m_old_name", "key": { "id": 1 }, "values": { "a": n } }]);
    client.confirmed(upsert(0));
    let mut sql = held(
        "alter table m_old_name rename to m_gone; alter table m_new_name rename to m_old_name;
         alter table m_old_name rename a to c; alter table m_old_name rename b to a",
    );
    client.n += 1;
    client.send(client.n, &upsert(1));
    wait_for_a_writer_in_wait();
    sql.batch_execute("commit").unwrap();
    assert_eq!(client.answer()["status"], "confirmed");
    assert_eq!(rows("m_old_name"), json!([{ "id": 1, "c": null, "a": 1 }]));
    assert_eq!(rows("m_gone")[0]["a"], 0);
}

#[test]
fn policies_that_come_later_bind_those_who_wrote_before() {
    table("m_late", "id int primary key, who text, n int");
    database()
        .sql()
        .batch_execute(
            // As somebody has declared it who should not have.
            "create function m_uid() returns text language sql immutable as
             $$ select current_setting('request.jwt.claims', true)::json ->> 'sub' $$;
             create table m_late_log (who text, n int); grant all on m_late_log to authenticated;
             insert into m_late values (1, 'ann', 0), (2, 'bob', 0)",
        )
        .unwrap();
    let [mut ann, mut bob] = ["ann", "bob"]
        .map(|name| Mutator::with_claims(database(), "late", &json!({ "sub": name })));
    let set = |id: i32| json!([{ "op": "set", "table": "public.m_late", "key": { "id": id }, "values": { "n": 1 } }]);
    ann.confirmed(set(1));
    let policies = "create policy own on m_late using (who = m_uid()); alter table m_late enable row level security";
    database().sql().batch_execute(policies).unwrap();
    for _ in 0..8 {
        ann.confirmed(set(1));
        bob.rejected(set(1), "P0002");
        bob.confirmed(set(2));
    }
    let rule = "alter table m_late disable row level security;
                create rule also as on update to m_late do also insert into m_late_log values (m_uid(), new.id)";
    database().sql().batch_execute(rule).unwrap();
    for _ in 0..8 {
        ann.confirmed(set(1));
        bob.confirmed(set(2));
    }
    assert_eq!(
        count("select count(*) from m_late_log where (who, n) in (('ann', 1), ('bob', 2))"),
        16
    );
}

#[test]
fn a_row_that_its_owner_diverts_is_no_refusal() {
    table("m_soft", "id int primary key, gone boolean not null default false");
    database()
        .sql()
        .batch_execute(
            "create function m_soften() returns trigger language plpgsql as
             $$ begin update m_soft set gone = true where id = old.id; return null; end $$;
             create trigger soften before delete on m_soft for each row execute function m_soften();
             insert into m_soft values (1)",
        )
        .unwrap();
    let mut client = Mutator::new(database(), "soft");

    client.confirmed(json!([{ "op": "delete", "table": "public.m_soft", "key": { "id": 1 } }]));

    assert_eq!(rows("m_soft"), json!([{ "id": 1, "gone": true }]));
}

/// Most tables have such a trigger.
#[test]
fn a_trigger_that_diverts_nothing_hides_no_refusal() {
    table("m_touched", "id int primary key, owner text, v int not null default 1, at int");
    database()
        .sql()
        .batch_execute(
            "create function m_touch() returns trigger language plpgsql as
             $$ begin if tg_op = 'DELETE' then return old; end if; new.at := 1; return new; end $$;
             create trigger touch before update or delete on m_touched for each row execute function m_touch();
             select tide.version_column('m_touched', 'v');
             insert into m_touched values (1, 'ann'), (2, 'bob');
             alter table m_touched enable row level security;
             create policy seen on m_touched for select using (true);
             create policy own on m_touched using (owner = 'ann')",
        )
        .unwrap();
    let mut client = Mutator::new(database(), "touched");
    let op = |op: &str, id: i32, version: i32| {
        let mut op = json!({ "op": op, "table": "public.m_touched", "key": { "id": id }, "if_version": version });
        if op["op"] != "delete" {
            op["values"] = json!({ "owner": "ann" });
        }
        json!([op])
    };
    for verb in ["set", "upsert", "delete"] {
        client.rejected(op(verb, 1, 7), "TD004");
        client.rejected(op(verb, 2, 1), "42501");
        client.rejected(op(verb, 3, 1), "TD004");
    }
    client.confirmed(op("set", 1, 1));
    let soften = "create or replace function m_touch() returns trigger language plpgsql as
                  $$ begin if tg_op = 'DELETE' then update m_touched set at = 9 where id = old.id; return null; end if; return new; end $$";
    database().sql().batch_execute(soften).unwrap();
    client.confirmed(op("delete", 1, 2));
    client.rejected(op("delete", 2, 1), "42501");
    assert_eq!(count("select at::bigint from m_touched where id = 1"), 9);
}

#[test]
fn little_is_remembered_of_what_is_large() {
    table("m_wide", "id int primary key, a text, n int");
    database()
        .sql()
        .batch_execute("insert into m_wide values (1, repeat('x', 200000), 0)")
        .unwrap();
    let mut client = Mutator::new(database(), "wide");
    let set = |n: Value| json!([{ "op": "set", "table": "public.m_wide", "key": { "id": 1 }, "values": { "n": n }, "returning": ["a"] }]);
    client.rejected(set(json!(1)), "54000");
    assert_eq!(client.rejected(set(json!("x")), "22P02")["current"], Value::Null);
    assert!(
        count(
            "select max(length(outcome::text))::bigint from tide.mutation where client_id = 'wide'"
        ) < 1000
    );
}

#[test]
fn keys_that_only_postgres_makes_are_for_rows_that_are_there() {
    table("m_always", "id bigint generated always as identity primary key, n int");
    let mut client = Mutator::new(database(), "always");
    client.confirmed(json!([{ "op": "insert", "table": "public.m_always", "values": { "n": 1 } }]));
    let upsert = |id: i32| json!([{ "op": "upsert", "table": "public.m_always", "key": { "id": id }, "values": { "n": 2 } }]);
    client.confirmed(upsert(1));
    client.rejected(upsert(2), "P0002");
    assert_eq!(rows("m_always"), json!([{ "id": 1, "n": 2 }]));
}

#[test]
fn texts_of_errors_are_of_the_databases_encoding() {
    let cluster = Cluster::shared();
    let latin1 = "encoding 'LATIN1' locale 'C' template template0";
    let database = Database::without_extension_with(cluster, "mutations_latin1", latin1, &[]);
    let mut sql = database.sql();
    sql.batch_execute("create extension pg_tide; grant authenticated to tide_authenticator")
        .unwrap();
    database.wait_until_live();
    sql.batch_execute(
        "create table t (id int primary key); grant all on t to authenticated; select tide.publish('t')",
    )
    .unwrap();
    let mut client = Mutator::new(&database, "latin1");
    let insert =
        |id: Value| json!([{ "op": "insert", "table": "public.t", "values": { "id": id } }]);

    let answer = client.rejected(insert(json!("\u{e9}")), "22P02");

    assert!(answer["reason"].as_str().unwrap().ends_with("\"\u{e9}\""), "{answer}");
    client.rejected(insert(json!("\u{20ac}")), "22P05");
    client.confirmed(insert(json!(1)));
}

#[test]
fn transactions_are_as_the_database_has_them() {
    let cluster = Cluster::shared();
    let database = cluster.database("mutations_defaults");
    let mut sql = database.sql();
    sql.batch_execute(
        "create table t (id int primary key, isolation text default current_setting('transaction_isolation'));
         grant all on t to authenticated; select tide.publish('t')",
    )
    .unwrap();
    let mut client = Mutator::new(&database, "defaults");
    let insert = |id: i32| json!([{ "op": "insert", "table": "public.t", "values": { "id": id }, "returning": true }]);
    assert_eq!(client.confirmed(insert(1))[0]["isolation"], "read committed");
    let set = "alter database mutations_defaults set default_transaction_isolation = serializable";
    sql.batch_execute(set).unwrap();
    assert_eq!(client.confirmed(insert(2))[0]["isolation"], "serializable");
    client.rejected(insert(2), "23505");
    sql.batch_execute("alter database mutations_defaults set default_transaction_read_only = on")
        .unwrap();
    let answer = client.mutate(insert(3));
    assert_eq!(
        (&answer["code"], &answer["sqlstate"]),
        (&json!("refused"), &json!("25006")),
        "{answer}"
    );
    sql.batch_execute("set default_transaction_read_only = off; alter database mutations_defaults reset default_transaction_read_only")
        .unwrap();
    client.n -= 1;
    client.confirmed(insert(3));
}

#[test]
fn a_rule_of_a_table_goes_with_it_and_there_is_one() {
    table("m_ruled", "id int primary key, v int");
    let mut one = database().sql();
    one.batch_execute("begin isolation level repeatable read; select 1").unwrap();
    database().sql().batch_execute("select tide.version_column('m_ruled', 'v')").unwrap();
    let function = "create function m_rule(a jsonb, b jsonb, c jsonb) returns jsonb language sql as 'select b'";
    database().sql().batch_execute(function).unwrap();
    // It cannot see the other's.
    assert!(
        one.batch_execute("select tide.on_mutate('m_ruled', 'm_rule(jsonb, jsonb, jsonb)')")
            .is_err()
    );
    one.batch_execute("rollback; select tide.on_mutate('m_ruled', 'm_rule(jsonb, jsonb, jsonb)')")
        .unwrap();
    let rules = "select count(*) from tide.write_rules where relation::oid not in (select oid from pg_class)
                 or version_column = 'v' and on_mutate = 'public.m_rule'";
    assert_eq!(count(rules), 1);
    one.batch_execute("drop table m_ruled").unwrap();
    assert_eq!(count(rules), 0);
}

/// As clients do by themselves where a table was altered.
#[test]
fn a_channel_that_is_joined_anew_has_answers_to_all_that_it_asked_for() {
    table("m_rejoined", "id int primary key");
    let mut client = Mutator::new(database(), "rejoined");
    for n in 1..=20 {
        client.send(
            n,
            &json!([{ "op": "insert", "table": "public.m_rejoined", "values": { "id": n } }]),
        );
    }
    client.client.join(MUTATIONS, &json!({}));
    for n in 1..=20 {
        let answer = client.answer();
        assert_eq!((&answer["n"], &answer["status"]), (&json!(n), &json!("confirmed")), "{answer}");
    }
}
