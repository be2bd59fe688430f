//! Clients and their code in the sessions of writers: they never have a right that their role has not, and
//! leave nothing behind.

use serde_json::json;

use crate::support::mutator::Mutator;
use crate::support::{Cluster, Database};

/// A database whose clients may call `attempt`, which runs a statement as they would.
fn database<'a>(cluster: &'a Cluster, name: &str) -> Database<'a> {
    // One writer, so that what is left behind is found.
    let database = cluster.database(name);
    database
        .sql()
        .batch_execute(
            "create table t (id serial primary key, n int);
             create table target (n int);
             create sequence numbers;
             grant all on t, t_id_seq, target, numbers to authenticated;
             select tide.publish('t');
             grant create on schema public to authenticated;
             create function attempt(statement text) returns void language plpgsql as
             $$ begin execute statement; end $$;
             -- What the session of the process is like, and always has to be.
             create function problems() returns text language sql as $$
                 select concat_ws(', ',
                     case when session_user <> 'tide_authenticator' then 'session user' end,
                     case when current_user <> 'authenticated' then 'current user' end,
                     case when exists (select from pg_prepared_statements) then 'prepared' end,
                     case when exists (select from pg_listening_channels()) then 'listens' end,
                     case when exists (select from pg_cursors where is_holdable) then 'cursor' end,
                     case when (select count(*) from pg_locks where pid = pg_backend_pid()
                                and locktype = 'advisory') > 1 then 'locks' end,
                     case when exists (select from pg_class where relname = 'left_temp') then 'temp' end,
                     case when coalesce(current_setting('abuse.left', true), '') <> '' then 'setting' end,
                     case when coalesce(current_setting('request.jwt.claim.evil', true), '') <> '' then 'claim' end,
                     case when current_setting('search_path') <> '\"$user\", public' then 'path' end,
                     case when current_setting('statement_timeout') <> '0' then 'timeout' end,
                     case when current_setting('session_replication_role') <> 'origin' then 'replica' end,
                     case when current_setting('transaction_read_only') <> 'off' then 'read only' end,
                     case when current_setting('synchronous_commit') <> 'on' then 'commit' end)
             $$;
             select tide.allow_call('attempt(text)'), tide.allow_call('problems()')",
        )
        .unwrap();
    database
}

fn attempt(statement: &str) -> serde_json::Value {
    json!([{ "op": "call", "function": "public.attempt", "args": { "statement": statement } }])
}

#[test]
fn code_that_wants_to_be_somebody_else_or_to_leave_something() {
    let cluster = Cluster::with("tide.writers = 1");
    let database = database(&cluster, "writers");
    let mut client = Mutator::new(&database, "abuse");
    let problems = json!([{ "op": "call", "function": "public.problems" }]);
    assert_eq!(client.confirmed(problems.clone()), json!([""]));
    for (statement, is_refused) in [
        ("reset role", true),
        ("set role postgres", true),
        ("set role tide_authenticator", true),
        ("set local role none", true),
        ("reset session authorization", true),
        ("set session authorization postgres", true),
        ("set local session authorization default", true),
        ("select set_config('role', 'postgres', false)", true),
        ("select set_config('role', 'none', true)", true),
        ("set session_replication_role = replica", true),
        ("copy target to program 'true'", true),
        ("copy target from '/etc/passwd'", true),
        ("alter role current_user superuser", true),
        ("alter table t disable trigger all", true),
        ("commit", true),
        ("rollback", true),
        ("savepoint x", true),
        ("prepare transaction 'x'", true),
        ("select * from tide.secret", true),
        ("select * from tide.mutation", true),
        ("delete from tide.mutation", true),
        ("select tide_internal.insert_row('tide.callables', row('x')::tide.callables)", true),
        ("select tide.allow_call('pg_catalog.pg_read_file(text)')", true),
        ("select pg_read_file('/etc/passwd')", true),
        ("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres'", true),
        ("select tide.set_mutation_id('another')", true),
        ("do $x$ begin raise exception 'by %', session_user; end $x$", true),
        // Whoever has a session of the role's may do these; the next must not notice.
        ("create temp table left_temp (n int); insert into left_temp values (1)", false),
        ("listen left_behind", false),
        ("prepare left_behind as select 1", false),
        ("declare left_behind cursor with hold for select 1", false),
        ("select pg_advisory_lock(1)", false),
        ("select pg_advisory_lock_shared(2)", false),
        ("select set_config('abuse.left', 'behind', false)", false),
        ("set session abuse.left = 'behind'", false),
        ("select set_config('request.jwt.claim.evil', 'behind', false)", false),
        ("set session statement_timeout = 1", false),
        ("set session search_path = pg_temp", false),
        ("set session synchronous_commit = off", false),
        ("set transaction read only", false),
        ("set session characteristics as transaction read only", false),
        ("select nextval('numbers')", false),
        ("notify left_behind", false),
        ("set constraints all deferred", false),
        ("reset all", false),
        ("discard plans", false),
        ("insert into target values (1)", false),
    ] {
        let answer = client.mutate(attempt(statement));
        let expected = if is_refused { "rejected" } else { "confirmed" };
        // Some are refused inside of functions by some versions.
        if is_refused {
            assert_eq!(answer["status"], expected, "{statement}: {answer}");
        }
        assert_eq!(client.confirmed(problems.clone()), json!([""]), "after {statement}: {answer}");
    }
    // What sequences gave is forgotten, too.
    client.rejected(attempt("select currval('numbers')"), "55000");
    client.rejected(attempt("select lastval()"), "55000");
    let left = "select (select count(*) from pg_class where relname = 'left_temp')
                     + (select count(*) from pg_locks where locktype = 'advisory')";
    assert_eq!(database.sql().query_one(left, &[]).unwrap().get::<_, i64>(0), 0);
}

#[test]
fn triggers_of_a_table_run_as_the_client() {
    let cluster = Cluster::shared();
    let database = database(cluster, "writers_triggers");
    let mut sql = database.sql();
    sql.batch_execute(
        "create function trap() returns trigger language plpgsql as $$
         begin
             new.n := (select count(*) from pg_roles where pg_has_role(session_user, oid, 'USAGE')
                       and rolname = current_user and rolname = 'authenticated');
             perform set_config('role', 'none', false);
             return new;
         exception when others then
             new.n := -1;
             return new;
         end $$;
         create trigger trap before insert on t for each row execute function trap()",
    )
    .unwrap();
    let mut client = Mutator::new(&database, "trap");

    client.confirmed(json!([{ "op": "insert", "table": "public.t", "values": {} }]));

    // It was caught: the role cannot be set.
    let n: i32 = sql.query_one("select n from t", &[]).unwrap().get(0);
    assert_eq!(n, -1);
}

#[test]
fn names_in_other_schemas_do_not_lead_a_write_astray() {
    let cluster = Cluster::shared();
    let database = database(cluster, "writers_shadowed");
    let mut sql = database.sql();
    // As anybody may who can create something in a schema that is looked through first.
    sql.batch_execute(
        "alter database writers_shadowed set search_path = public, pg_catalog;
         create function public.json_populate_record(anyelement, json, boolean default false) returns anyelement
         language plpgsql as $$ begin raise exception 'led astray'; end $$;
         create function public.eq(int, int) returns boolean language plpgsql as $$ begin raise exception 'led astray'; end $$;
         create operator public.= (leftarg = int, rightarg = int, function = public.eq);
         create function public.plus(int, smallint) returns int language plpgsql as $$ begin raise exception 'led astray'; end $$;
         create operator public.+ (leftarg = int, rightarg = smallint, function = public.plus);
         create domain public.json as text check (value = 'never');
         create function public.jsonb_each(jsonb) returns void language plpgsql as $$ begin raise exception 'led astray'; end $$;
         create table public.mutation (n int);
         select tide.version_column('t', 'n');
         create function looked(old jsonb, new jsonb, context jsonb) returns jsonb language sql as 'select new';
         select tide.on_mutate('t', 'looked(jsonb, jsonb, jsonb)')",
    )
    .unwrap();
    let mut client = Mutator::new(&database, "shadowed");

    client
        .confirmed(json!([{ "op": "insert", "table": "public.t", "values": { "id": 1, "n": 1 } }]));
    client.confirmed(
        json!([{ "op": "set", "table": "public.t", "key": { "id": 1 }, "values": { "id": 2 }, "if_version": 1 }]),
    );
    client.confirmed(
        json!([{ "op": "upsert", "table": "public.t", "key": { "id": 2 }, "values": { "n": 5 } }]),
    );
    client.confirmed(json!([{ "op": "delete", "table": "public.t", "key": { "id": 2 } }]));
}

#[test]
fn a_database_whose_clients_write_nothing() {
    let cluster = Cluster::with("tide.writers = 0");
    let database = database(&cluster, "writers_none");
    let mut client = Mutator::new(&database, "none");

    let answer = client.mutate(json!([{ "op": "insert", "table": "public.t", "values": {} }]));

    assert_eq!(
        (&answer["status"], &answer["code"]),
        (&json!("error"), &json!("disabled")),
        "{answer}"
    );
}

#[test]
fn settings_that_change_are_a_writers_too() {
    let cluster = Cluster::shared();
    let database = database(cluster, "writers_settings");
    let mut sql = database.sql();
    sql.batch_execute(
        "create function zone() returns text language sql as $$ select current_setting('timezone') $$;
         select tide.allow_call('zone()')",
    )
    .unwrap();
    let mut client = Mutator::new(&database, "settings");
    let zone = json!([{ "op": "call", "function": "public.zone" }]);
    client.confirmed(zone.clone());
    for place in ["Europe/Berlin", "Asia/Tokyo"] {
        sql.batch_execute(&format!("alter database writers_settings set timezone = '{place}'"))
            .unwrap();
        assert_eq!(client.confirmed(zone.clone()), json!([place]));
    }
}

/// A cursor WITH HOLD is run at the very end of its transaction, where no role is set any more.
#[test]
fn cursors_that_are_to_outlive_a_transaction_are_not_run() {
    let cluster = Cluster::with("tide.writers = 1");
    let database = database(&cluster, "writers_cursors");
    let mut sql = database.sql();
    sql.batch_execute(
        "create table ran (who text, path text); grant all on ran to public;
         create function poison() returns text language plpgsql as $$
         begin
             perform set_config('search_path', 'public, pg_catalog', false);
             insert into ran values (current_user, current_setting('search_path'));
             return 'x';
         end $$;
         create table queue (n int); grant all on queue to public;
         create function again() returns trigger language plpgsql as $$
         begin
             execute 'declare late cursor with hold for select poison()';
             return null;
         end $$;
         create constraint trigger again after insert on queue deferrable initially deferred
         for each row execute function again()",
    )
    .unwrap();
    let mut client = Mutator::new(&database, "cursors");
    for statement in [
        "declare evil cursor with hold for select poison()",
        "declare slow cursor with hold for select pg_sleep(1000000)",
        "insert into queue values (1)",
        "set constraints all deferred; insert into queue values (1)",
    ] {
        client.confirmed(attempt(statement));
        let problems = json!([{ "op": "call", "function": "public.problems" }]);
        assert_eq!(client.confirmed(problems), json!([""]), "after {statement}");
    }
    // Also of a policy of the row that a rejection tells.
    sql.batch_execute(
        "create function watch() returns boolean language plpgsql as $$
         begin
             execute 'declare watched cursor with hold for select poison()';
             return true;
         exception when duplicate_cursor then
             return true;
         end $$;
         insert into t values (1, 0); alter table t enable row level security;
         create policy watched on t using (watch())",
    )
    .unwrap();
    let insert = json!([{ "op": "insert", "table": "public.t", "values": { "id": 1 } }]);
    let answer = client.rejected(insert, "23505");
    assert_eq!(answer["current"]["id"], 1);
    let problems = json!([{ "op": "call", "function": "public.problems" }]);
    assert_eq!(client.confirmed(problems), json!([""]));
    let ran: i64 = sql.query_one("select count(*) from ran", &[]).unwrap().get(0);
    assert_eq!(ran, 0);
}

#[test]
fn one_who_holds_a_row_does_not_hold_up_everybody() {
    let cluster = Cluster::shared();
    let database = database(cluster, "writers_hot");
    let mut sql = database.sql();
    sql.batch_execute("insert into t values (1, 0), (2, 0)").unwrap();
    sql.batch_execute("begin; update t set n = 1 where id = 1").unwrap();
    let set = |id: i32| json!([{ "op": "set", "table": "public.t", "key": { "id": id }, "values": { "n": 2 } }]);
    let mut waiting: Vec<Mutator> =
        (0..6).map(|sub| Mutator::with_claims(&database, "hot", &json!({ "sub": sub }))).collect();
    for client in &mut waiting {
        client.send(1, &set(1));
    }
    let mut other = Mutator::new(&database, "other");
    for _ in 0..5 {
        other.confirmed(set(2));
    }
    sql.batch_execute("commit").unwrap();
    for client in &mut waiting {
        assert_eq!(client.answer()["status"], "confirmed");
    }
}
