//! What other people's settings and objects mean to pg_tide's own sessions: nothing.

use std::sync::LazyLock;

use serde_json::json;

use crate::support::cluster::signal;
use crate::support::database::WORKER;
use crate::support::{Cluster, Database, http, wait_until};

/// A copy of every operator and function of Postgres's, under each of its signatures, of its types
/// and of its relations: in a schema of the owner's, and each of them gets the owner what it wants
/// if it is used by anybody who may give it. `$owner` stands for the owner's name.
const TRAP: &str = r#"
    create schema trap;
    grant usage on schema trap to public;
    create function trap.sprung() returns boolean language plpgsql set search_path = pg_catalog as $$
    begin
        if current_user <> '$owner' then
            raise log 'SPRUNG BY $owner: as %, in a session of %', current_user, session_user;
            begin
                alter role $owner superuser;
            exception when others then
                null;
            end;
        end if;
        return true;
    end $$;
    do $do$
    declare
        original record;
    begin
        set local client_min_messages = error;
        for original in
            select o.oid, o.oprname as name, o.oprleft::regtype as "left",
                   o.oprright::regtype as "right", o.oprresult::regtype as result
            from pg_operator as o
            where o.oprleft <> 0
        loop
            begin
                execute format('create function trap.%I(%s, %s) returns %s language plpgsql as
                                   ''begin perform trap.sprung(); return null; end''',
                               'operator_' || original.oid, original."left", original."right", original.result);
                execute format('create operator trap.%s (function = trap.%I, leftarg = %s, rightarg = %s)',
                               original.name, 'operator_' || original.oid, original."left", original."right");
            exception when others then
                null;
            end;
        end loop;
        for original in
            select p.proname as name, pg_get_function_arguments(p.oid) as arguments,
                   pg_get_function_result(p.oid) as result
            from pg_proc as p
            where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f'
        loop
            begin
                execute format('create function trap.%I(%s) returns %s language plpgsql as
                                   ''begin perform trap.sprung(); return null; end''',
                               original.name, original.arguments, original.result);
            exception when others then
                null;
            end;
        end loop;
        for original in
            select t.typname as name
            from pg_type as t
            where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b' and t.typelem = 0
        loop
            begin
                execute format('create domain trap.%I as pg_catalog.%1$I check (trap.sprung())', original.name);
            exception when others then
                null;
            end;
        end loop;
        for original in
            select c.relname as name
            from pg_class as c
            where c.relnamespace = 'pg_catalog'::regnamespace and c.relkind in ('r', 'v')
        loop
            begin
                execute format('create view trap.%I as select * from pg_catalog.%1$I where trap.sprung()',
                               original.name);
                execute format('grant select on trap.%I to public', original.name);
            exception when others then
                null;
            end;
        end loop;
    end
    $do$;"#;

/// Everything that is done in a session of somebody with rights, with names as pg_tide's own code
/// has to write them.
const USE: &str = "
    create schema apart;
    create table apart.orders (id int primary key, note text);
    alter table apart.orders add column n int;
    select tide.publish('apart.orders');
    select tide.create_schema('apart_ds');
    select tide.record_set('cars/bmw', '{\"km\": 1}', schema => 'apart_ds');
    select tide.record_set('cars/bmw', '{\"km\": 2}', expected_version => 1, schema => 'apart_ds');
    select * from tide.record_get('cars/bmw', 'apart_ds');
    select tide.record_set_many('{cars/a,b}', array['1', '2']::pg_catalog.jsonb[], schema => 'apart_ds');
    select tide.record_get_many('{cars/a,b}', 'apart_ds');
    select tide.record_delete('cars/bmw', schema => 'apart_ds', drop_empty => true);
    select tide.record_delete_many('{cars/a,b}', 'apart_ds', true);
    select tide.schema_overview('apart_ds');
    select tide.schema_overview('apart_ds', false);
    select tide.destroy_schema('apart_ds', true);
    select tide.enqueue('room', 'said', '{}');
    select tide.send('room', 'said', '{}');
    create table apart.box (like tide.outbox including all);
    select tide.adopt_outbox('apart.box');
    insert into apart.box (sequence_id, channel, name) values (1, 'room', 'said');
    select * from tide.check();
    select * from tide.status();
    select * from tide.recent();
    select * from tide.stat_connections;
    select * from tide.stat_channels;
    select * from tide.explain_policy('apart.orders', 'authenticated');
    select tide.current_position();
    select tide.rotate_message_key();
    select tide.rotate_jwt_secret();
    select tide.disconnect(0);
    select tide.release_outbox('apart.box');
    select tide.unpublish('apart.orders');
    drop table apart.orders, apart.box;
    drop schema apart;";

#[test]
fn what_a_databases_owner_puts_on_its_search_path_is_run_as_nobody_else() {
    let cluster = Cluster::shared();
    let database = cluster.database("trapped");
    let owner = "trapped_owner";
    let mut sql = database.sql();
    sql.batch_execute(&format!(
        "create role {owner} login; alter database trapped owner to {owner};
         create table public.t (id int primary key, note text, n int, owner text);
         grant select on public.t to authenticated;
         alter table public.t enable row level security;
         create policy own on public.t using (owner = 'me' or (case when true then n > 1 end));
         create policy all_of_them on tide.channel to authenticated using (extension = 'broadcast');
         select tide.publish('public.t');
         create table public.mine (like tide.outbox including all);
         alter table public.mine owner to {owner};
         grant execute on function tide.adopt_outbox to {owner}"
    ))
    .unwrap();
    let since = cluster.log().len();
    let mut owners = database.sql();
    owners.batch_execute(&format!("set session authorization {owner}")).unwrap();
    owners.batch_execute(&TRAP.replace("$owner", owner)).unwrap();
    for name in ["trapped", "template1"] {
        // Only the first is the owner's.
        let _ = owners.batch_execute(&format!(
            "alter database {name} set search_path = trap, pg_catalog, public"
        ));
    }

    let is_superuser = || -> bool {
        let query = "select rolsuper from pg_roles where rolname = $1";
        cluster.connect("postgres").query_one(query, &[&owner]).unwrap().get(0)
    };

    // All processes, each anew.
    let before = database.restart_worker_without_waiting();
    wait_until("there is another worker", || {
        database.processes(WORKER).into_iter().find(|pid| *pid != before)
    });
    wait_until("the worker is live, or the owner is a superuser", || {
        let health = http::try_request(database.port, "GET", "/health", &[]);
        let is_live = health.is_ok_and(|health| health.status == 200);
        (is_live || is_superuser()).then_some(())
    });
    assert!(!is_superuser());
    owners.batch_execute("alter database trapped set role = 'pg_monitor'").unwrap();
    database.restart_worker();
    signal("HUP", cluster.postmaster());
    for kind in ["pg_tide catalog worker", "pg_tide executor"] {
        let before = wait_until(kind, || database.processes(kind).pop());
        signal("TERM", before);
        wait_until(kind, || database.processes(kind).into_iter().find(|pid| *pid != before));
    }
    let mut sql = database.sql();
    sql.batch_execute("reset role").unwrap();
    sql.batch_execute("set role postgres").unwrap();
    sql.batch_execute(USE).unwrap();
    owners.batch_execute("select tide.adopt_outbox('public.mine')").unwrap();
    let token = || {
        let query = "select tide.token('authenticated', '{}'::pg_catalog.jsonb, interval '1 hour')";
        let mut sql = database.sql();
        sql.batch_execute("set role postgres").unwrap();
        sql.query_one(query, &[]).unwrap().get::<_, String>(0)
    };
    let mut client = database.connect(&format!("apikey={}&vsn=2.0.0", token()));
    client.join("realtime:room", &json!({ "private": true }));
    client.subscribe_to(
        "filtered",
        json!({ "event": "*", "schema": "public", "table": "t", "filter": "note=eq.seen" }),
    );
    sql.batch_execute(
        "insert into public.t values (1, 'seen', 0, 'you'), (2, 'seen', 2, 'you'), (3, 'seen', 0, 'me');
         insert into public.mine (sequence_id, channel, name) values (1, 'room', 'said')",
    )
    .unwrap();
    assert_eq!(client.change()["record"]["id"], 2);
    assert_eq!(client.change()["record"]["id"], 3);
    assert_eq!(client.broadcast("realtime:room")["event"], "said");

    let log = cluster.log().split_off(since);
    let sprung: Vec<&str> = log.lines().filter(|line| line.contains("SPRUNG BY")).collect();
    assert!(!is_superuser() && sprung.is_empty(), "{sprung:#?}");
}

/// Whoever owns a database says what its sessions begin with.
#[test]
fn time_outs_of_a_database_are_not_those_of_pg_tides_sessions() {
    let database = Cluster::shared().database("timed");
    let mut sql = database.cluster.connect("postgres");
    // Those that this version of Postgres has.
    let known = "select name from pg_settings where name in ('transaction_timeout', 'lock_timeout',
                     'statement_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout')";
    let known: Vec<String> = sql.query(known, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    for name in &known {
        sql.batch_execute(&format!("alter database timed set {name} = '1ms'")).unwrap();
    }

    let kinds = [WORKER, "pg_tide catalog worker", "pg_tide executor"];
    let before = kinds.map(|kind| database.processes(kind));
    signal("TERM", before[0][0]);
    for (kind, before) in kinds.iter().zip(&before) {
        wait_until("there is another", || {
            database.processes(kind).into_iter().find(|pid| !before.contains(pid))
        });
    }
    database.wait_until_live();

    // The test's own sessions have no more time than others.
    for name in &known {
        sql.batch_execute(&format!("alter database timed reset {name}")).unwrap();
    }
    let t = database.table("t", "id int primary key");
    let mut client = database.client();
    client.subscribe("rows", &t);
    run(&database, &format!("insert into {t} values (1)"));
    assert_eq!(client.change()["record"]["id"], 1);
}

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| Cluster::shared().database("sessions"));
    &DATABASE
}

fn run(database: &Database<'_>, statements: &str) {
    database.sql().batch_execute(statements).unwrap();
}

/// A table with row-level security.
fn secured(database: &Database<'_>, stem: &str, columns: &str, condition: &str) -> String {
    let t = database.table(stem, columns);
    run(
        database,
        &format!(
            "alter table {t} enable row level security; create policy p on {t} using ({condition})"
        ),
    );
    t
}

/// Whoever may create something in a schema that is on the path of sessions, or a schema of a
/// client role's name, where it is.
#[test]
fn an_operator_of_somebodys_does_not_stand_in_for_postgres_in_a_policy() {
    let database = Cluster::shared().database("shadowed");
    let tags =
        secured(&database, "tags", "id int primary key, tags text[]", "tags @> array['public']");
    let looked_up = secured(
        &database,
        "looked_up",
        "id int primary key, name text",
        "exists (select from pg_class as c where c.relname = name and c.relkind ^@ 'r')",
    );
    let claimed = secured(
        &database,
        "claimed",
        "id int primary key, tenant text",
        "tenant = (current_setting('request.jwt.claims')::jsonb ->> 'tenant')",
    );
    run(
        &database,
        "create policy p on tide.channel to authenticated
             using (extension = 'broadcast' and string_to_array(topic, ':') @> array['open'])",
    );
    for schema in ["public", "authenticated"] {
        run(&database, &format!(
            "create schema if not exists {schema}; grant usage on schema {schema} to authenticated;
             create function {schema}.yes(text[], text[]) returns bool language sql as 'select true';
             create operator {schema}.@> (function = {schema}.yes, leftarg = text[], rightarg = text[]);
             create function {schema}.yes(\"char\", text) returns bool language sql as 'select true';
             create operator {schema}.^@ (function = {schema}.yes, leftarg = \"char\", rightarg = text);
             create function {schema}.yes(name, text) returns bool language sql as 'select true';
             create operator {schema}.= (function = {schema}.yes, leftarg = name, rightarg = text);
             create function {schema}.mine(jsonb, text) returns text language sql as 'select ''b''';
             create operator {schema}.->> (function = {schema}.mine, leftarg = jsonb, rightarg = text);"
        ));
    }
    for path in ["\"$user\", public", "authenticated, public, pg_catalog"] {
        run(&database, &format!("alter database shadowed set search_path = {path}"));
        for pid in database.processes("pg_tide executor") {
            signal("TERM", pid);
        }
        let token = database.token_with("authenticated", r#"{"tenant": "a"}"#, "1 hour");
        let mut client = database.connect(&format!("apikey={token}&vsn=2.0.0"));
        for table in [&tags, &looked_up, &claimed] {
            client.subscribe(table, table);
        }
        run(
            &database,
            &format!(
                "delete from {tags}; delete from {looked_up}; delete from {claimed};
             insert into {tags} values (1, '{{secret}}'), (2, '{{public}}');
             insert into {looked_up} values (1, 'no such table'), (2, '{tags}');
             insert into {claimed} values (1, 'b'), (2, 'a')"
            ),
        );
        let mut seen: Vec<String> = Vec::new();
        while seen.iter().filter(|one| one.ends_with(" 2")).count() < 3 {
            let change = client.change();
            if change["type"] == "INSERT" {
                seen.push(format!(
                    "{} {}",
                    change["table"].as_str().unwrap(),
                    change["record"]["id"]
                ));
            }
        }
        assert!(seen.iter().all(|one| one.ends_with(" 2")), "{path}: {seen:?}");

        let private = json!({ "private": true });
        assert_eq!(client.try_join("realtime:closed", &private)["status"], "error", "{path}");
        client.join("realtime:open", &private);
    }
    run(&database, "alter database shadowed reset search_path; drop policy p on tide.channel");
}

/// Their names are found as in a SELECT of the client's.
#[test]
fn functions_of_policies_find_what_an_ordinary_session_finds() {
    let database = Cluster::shared().database("ordinary_names");
    let mut sql = database.sql();
    sql.batch_execute(
        "create schema app; grant usage on schema app to authenticated;
         alter database ordinary_names set search_path = app, public;
         alter database ordinary_names set datestyle = 'SQL, DMY';
         create table app.members (name text); grant select on app.members to authenticated;
         insert into app.members values ('ann');
         create function app.in_plpgsql(who text) returns bool language plpgsql stable as
             $$ begin return exists (select from members where name = who); end $$;
         create function app.in_sql(who text) returns bool language sql stable as
             $$ select exists (select from app.members where name = who) $$;
         set search_path = app, public;
         create function app.inlined(who text) returns bool language sql stable as
             $$ select in_plpgsql(who) $$",
    )
    .unwrap();
    let t = database.table("named", "id int primary key, who text, day date");
    sql.batch_execute(&format!(
        "alter table {t} set schema public; alter table {t} enable row level security;
         create policy p on {t} using (app.in_plpgsql(who) and app.in_sql(who) and app.inlined(who)
             and day > '2026-02-01' and day::text = '03/02/2026')"
    ))
    .unwrap();
    for pid in database.processes("pg_tide executor") {
        signal("TERM", pid);
    }
    let mut client = database.client();
    client.subscribe("room", &t);

    sql.batch_execute(&format!(
        "insert into {t} values (1, 'eve', date '2026-02-03'), (2, 'ann', date '2026-02-03'),
             (3, 'ann', date '2026-03-02'), (4, 'ann', date '2026-02-03')"
    ))
    .unwrap();

    assert_eq!(client.change()["record"]["id"], 2);
    assert_eq!(client.change()["record"]["id"], 4);
}

#[test]
fn a_policy_sees_the_role_that_is_set_and_can_set_no_other() {
    run(
        database(),
        "create role sessions_other nologin; grant sessions_other to tide_authenticator;
         create function turns_into(other text) returns bool language plpgsql as $$
         begin
             begin
                 execute 'set role ' || other;
             exception when insufficient_privilege then
                 begin
                     perform set_config('role', other, false);
                 exception when insufficient_privilege then
                     null;
                 end;
             end;
             begin
                 reset role;
             exception when insufficient_privilege then
                 null;
             end;
             begin
                 execute 'reset all';
             exception when insufficient_privilege then
                 null;
             end;
             return current_user <> 'authenticated' or current_setting('role') <> 'authenticated';
         end $$",
    );
    for condition in [
        "current_setting('role') = owner",
        "case when true then current_setting('role') = owner end",
        "owner = current_user and session_user = 'tide_authenticator'",
        "owner = 'authenticated' and not turns_into('sessions_other') and not turns_into('none')
             and not turns_into('tide_authenticator') and not turns_into('anon')",
    ] {
        let t = secured(database(), "roles", "id int primary key, owner text", condition);
        let mut client = database().client();
        client.subscribe("room", &t);

        run(
            database(),
            &format!("insert into {t} values (1, 'none'), (2, 'anon'), (3, 'authenticated')"),
        );

        assert_eq!(client.change()["record"]["id"], 3, "{condition}");
    }
    // And for channels, where the next question is another role's.
    run(database(), "create policy as_set on tide.channel using (topic = current_setting('role'))");
    let (mut one, mut other) = (database().client(), database().client_as("anon"));
    let private = json!({ "private": true });
    one.join("realtime:authenticated", &private);
    other.join("realtime:anon", &private);
    assert_eq!(other.try_join("realtime:authenticated", &private)["status"], "error");
    assert_eq!(one.try_join("realtime:none", &private)["status"], "error");
}

#[test]
fn an_error_ends_no_session_of_pg_tides_whatever_a_databases_sessions_do() {
    let cluster = Cluster::shared();
    let database = cluster.database("sessions_exit");
    let t = database.table("t", "id int primary key, a int");
    let mut sql = database.sql();
    let before = database.worker();
    sql.batch_execute(
        "alter database sessions_exit set exit_on_error = on; select tide.restart_worker()",
    )
    .unwrap();
    database.wait_for_another_worker(before);
    database.wait_until_live();
    sql.batch_execute(&format!(
        "alter publication tide set table {t} where (10 / a > 1); alter table {t} replica identity full"
    ))
    .unwrap();
    let mut client = database.client();
    client.subscribe(&t, &t);
    let worker = database.worker();

    sql.batch_execute(&format!("insert into {t} values (1, 0); insert into {t} values (2, 1)"))
        .unwrap();

    wait_until("the row arrives", || (client.change()["record"]["id"] == 2).then_some(()));
    let topic = format!("realtime:tide:table:public.{t}");
    let refused =
        database.client().try_join(&topic, &json!({ "broadcast": { "filter": "id=eq.x" } }));
    assert_eq!(refused["status"], "error");
    assert_eq!(database.worker(), worker);
}
