//! The SQL functions, and who may call them.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};

use postgres::NoTls;
use postgres::error::DbError;
use serde_json::{Value, json};

use crate::support::cluster::{as_owner, succeed};
use crate::support::{Cluster, Database, wait_until};

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| Cluster::shared().database("sql"));
    &DATABASE
}

#[track_caller]
fn refused(sql: &mut postgres::Client, statement: &str) -> DbError {
    let error = sql.batch_execute(statement).expect_err(statement);
    error.as_db_error().unwrap_or_else(|| panic!("{error}")).clone()
}

/// Rows of tide.check() whose item is this one, as (ok, problem, fix).
fn finding(database: &Database<'_>, item: &str) -> Option<(bool, String, String)> {
    let query =
        "select ok, coalesce(problem, ''), coalesce(fix, '') from tide.check() where item = $1";
    let row = database.sql().query_opt(query, &[&item]).unwrap()?;
    Some((row.get(0), row.get(1), row.get(2)))
}

#[test]
fn what_has_no_changes_cannot_be_published() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create view s_view as select 1 as x;
         create materialized view s_matview as select 1 as x;
         create unlogged table s_unlogged (id int primary key);
         create temporary table s_temporary (id int primary key);
         create sequence s_sequence",
    )
    .unwrap();

    for relation in [
        "s_view",
        "s_matview",
        "s_unlogged",
        "s_temporary",
        "s_sequence",
        "pg_class",
        "tide.secret",
    ] {
        let error = refused(&mut sql, &format!("select tide.publish('{relation}')"));
        assert_eq!(error.code().code(), "42809", "{relation}: {error}");
        assert!(error.message().contains(relation), "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
    assert_eq!(refused(&mut sql, "select tide.publish('s_nowhere')").code().code(), "42P01");
    assert_eq!(refused(&mut sql, "select tide.publish(null)").code().code(), "22004");
}

#[test]
fn publishing_twice_does_no_harm_and_unpublishing_ends_it() {
    let mut sql = database().sql();
    sql.batch_execute("create table \"S \"\"Odd\" (id int primary key)").unwrap();
    let published = |sql: &mut postgres::Client| -> i64 {
        let query = "select count(*) from pg_publication_tables
                     where pubname = 'tide' and tablename = 'S \"Odd'";
        sql.query_one(query, &[]).unwrap().get(0)
    };

    sql.batch_execute("select tide.publish('\"S \"\"Odd\"', '\"S \"\"Odd\"')").unwrap();
    sql.batch_execute("select tide.publish('\"S \"\"Odd\"')").unwrap();
    assert_eq!(published(&mut sql), 1);

    sql.batch_execute("select tide.unpublish('\"S \"\"Odd\"')").unwrap();
    sql.batch_execute("select tide.unpublish('\"S \"\"Odd\"')").unwrap();
    assert_eq!(published(&mut sql), 0);
}

#[test]
fn a_table_whose_updates_would_fail_is_warned_of() {
    let notices = Arc::new(Mutex::new(Vec::<DbError>::new()));
    let heard = Arc::clone(&notices);
    let mut sql = postgres::Config::new()
        .host_path(database().cluster.host())
        .port(5432)
        .user("postgres")
        .dbname(&database().name)
        .notice_callback(move |notice| heard.lock().unwrap().push(notice))
        .connect(NoTls)
        .unwrap();
    sql.batch_execute(
        "create table s_bare (id int);
         create table s_keyed (id int primary key);
         create table s_full (id int); alter table s_full replica identity full;
         create table s_parted (id int) partition by range (id);
         create table s_part partition of s_parted for values from (0) to (9);
         select tide.publish('s_keyed', 's_full', 's_bare', 's_parted')",
    )
    .unwrap();

    let notices = notices.lock().unwrap();
    let warnings: Vec<&str> =
        notices.iter().filter(|n| n.severity() == "WARNING").map(DbError::message).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("public.s_bare"), "{warnings:?}");
    assert!(warnings[1].contains("public.s_part "), "{warnings:?}");
    drop(notices);
    let item = "replica identity of public.s_part";
    let (ok, _, fix) = finding(database(), item).unwrap();
    assert!(!ok);
    sql.batch_execute(&fix).unwrap();
    assert_eq!(finding(database(), item), None);
    // For the tests that look for anything wrong.
    sql.batch_execute("drop table s_bare, s_parted").unwrap();
}

#[test]
fn an_owner_publishes_without_being_superuser() {
    let owned = Cluster::shared().database("sql_owner");
    owned
        .sql()
        .batch_execute(
            "create role s_owner login; grant create on database sql_owner to s_owner;
             create schema authorization s_owner;
             create table not_owned (id int primary key)",
        )
        .unwrap();
    let mut sql = owned.cluster.try_connect("sql_owner", "s_owner").unwrap();

    sql.batch_execute("create table mine (id int primary key); select tide.publish('mine')")
        .unwrap();
    let error = refused(&mut sql, "select tide.publish('not_owned')");

    assert_eq!(error.code().code(), "42501", "{error}");
}

#[test]
fn tokens_are_made_for_roles_that_clients_may_use() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create role s_ungranted;
         create role s_bypass bypassrls; grant s_bypass to tide_authenticator;",
    )
    .unwrap();
    for (arguments, code) in [
        ("'s_nobody'", "42704"),
        ("null", "22004"),
        ("'s_ungranted'", "42501"),
        ("'tide_authenticator'", "42501"),
        ("'s_bypass'", "42501"),
        ("'authenticated', '[]'", "22023"),
        ("'authenticated', null", "22023"),
        ("'authenticated', '{}', '0 seconds'", "22023"),
        ("'authenticated', '{}', null", "22023"),
    ] {
        let error = refused(&mut sql, &format!("select tide.token({arguments})"));
        assert_eq!(error.code().code(), code, "{arguments}: {error}");
    }

    // A hint is what is to be done.
    let hint = refused(&mut sql, "select tide.token('s_ungranted')").hint().unwrap().to_owned();
    sql.batch_execute(&hint).unwrap();
    sql.batch_execute("select tide.token('s_ungranted')").unwrap();
    sql.batch_execute("set tide.allow_privileged_roles = on; select tide.token('s_bypass')")
        .unwrap();
}

#[test]
fn a_rotated_secret_is_good_until_the_next_rotation() {
    let rotated = Cluster::shared().database("sql_rotated");
    let first = rotated.token("authenticated");
    let rotate = || rotated.sql().batch_execute("select tide.rotate_jwt_secret()").unwrap();
    let accepted = |token: &str| rotated.try_connect(&format!("apikey={token}&vsn=2.0.0")).is_ok();

    rotate();
    let second = rotated.token("authenticated");
    wait_until("the new secret counts", || accepted(&second).then_some(()));
    assert!(accepted(&first));

    rotate();
    wait_until("the first secret counts no more", || (!accepted(&first)).then_some(()));
    assert!(accepted(&second));
}

#[test]
fn each_fix_mends_what_check_found() {
    let broken = Cluster::shared().database_with("sql_broken", &[("tide.anon_role", "s_anon")]);
    let mut sql = broken.sql();
    let (_, _, fix) = finding(&broken, "publication").unwrap();
    assert_eq!(fix, "select tide.publish('my_table');");
    sql.batch_execute(
        "create schema closed; create table closed.my_table (id int);
         set search_path to closed; select tide.publish('my_table');
         revoke connect on database sql_broken from public",
    )
    .unwrap();

    for item in [
        "replica identity of closed.my_table",
        "readers of closed.my_table",
        "CONNECT for tide_authenticator",
        "tide.anon_role",
    ] {
        let (ok, problem, fix) = finding(&broken, item).unwrap_or_else(|| panic!("no {item}"));
        assert!(!ok && !problem.is_empty(), "{item}");
        sql.batch_execute(&fix).unwrap_or_else(|error| panic!("{item}: {fix}: {error}"));
        let mended = finding(&broken, item);
        assert!(mended.as_ref().is_none_or(|(ok, ..)| *ok), "{item}: {mended:?}");
    }
}

#[test]
fn events_are_shown_to_owners_and_monitors_only() {
    let database = database();
    let table = database.table("s_recent", "id int primary key");
    let mut sql = database.sql();
    sql.batch_execute(&format!(
        "create role s_stranger login; create role s_monitor login in role pg_monitor;
         create role s_recent_owner login; alter table {table} owner to s_recent_owner;
         grant select on {table} to s_stranger;
         insert into {table} values (9007199254740993 % 1000000007)"
    ))
    .unwrap();
    let seen = |user: &str| -> i64 {
        let mut sql = database.cluster.try_connect(&database.name, user).unwrap();
        let query = "select count(*) from tide.recent(10000)
                     where \"table\" = $1 and operation = 'INSERT'";
        sql.query_one(query, &[&table]).unwrap().get(0)
    };

    wait_until("the event is decoded", || (seen("postgres") == 1).then_some(()));

    assert_eq!(seen("s_recent_owner"), 1);
    assert_eq!(seen("s_monitor"), 1);
    assert_eq!(seen("s_stranger"), 0);
}

#[test]
fn a_publication_for_all_tables_does_not_stream_the_secrets() {
    let all = Cluster::shared().database("sql_all_tables");
    let mut sql = all.sql();
    sql.batch_execute(
        "create publication tide for all tables; create table plain (id int primary key);
         select tide.rotate_jwt_secret(); insert into plain values (1)",
    )
    .unwrap();

    let tables = wait_until("the row has been decoded", || {
        let query = "select schema || '.' || \"table\" from tide.recent(100)
                     where operation <> 'CREATE_TABLE'";
        let rows = sql.query(query, &[]).unwrap();
        let tables: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        tables.iter().any(|table| table == "public.plain").then_some(tables)
    });

    assert_eq!(tables, ["public.plain"]);
}

#[test]
fn somebodys_publication_for_all_tables_has_nothing_of_pg_tides_own() {
    let cluster = Cluster::start();
    let database = Database::without_extension(&cluster, "sql_others", &[]);
    let mut sql = database.sql();
    sql.batch_execute("create publication everything for all tables").unwrap();
    sql.batch_execute("select pg_create_logical_replication_slot('theirs', 'pgoutput')").unwrap();
    sql.batch_execute(
        "create extension pg_tide;
         create table ob (like tide.outbox including all); create table plain (id int primary key);
         select tide.adopt_outbox('ob'); select tide.adopt_outbox('ob', false);",
    )
    .unwrap();
    for _ in 0..3 {
        sql.batch_execute("select tide.rotate_jwt_secret(), tide.rotate_message_key()").unwrap();
    }
    sql.batch_execute("select tide.release_outbox('ob'); insert into plain values (1)").unwrap();
    let changes = "select data from pg_logical_slot_get_binary_changes(
                       'theirs', null, null, 'proto_version', '1', 'publication_names', 'everything')";
    let stream: Vec<Vec<u8>> =
        sql.query(changes, &[]).unwrap().iter().map(|row| row.get(0)).collect();

    let has = |wanted: &[u8]| {
        stream.iter().any(|message| message.windows(wanted.len()).any(|part| part == wanted))
    };
    assert!(has(b"plain"));
    for own in ["tide\0secret", "tide\0message_key", "tide\0outboxes"] {
        assert!(!has(own.as_bytes()), "{own:?}");
    }
    let secrets = "select secret from tide.secret
                   union all select convert_from(key, 'UTF8') from tide.message_key";
    let secrets = sql.query(secrets, &[]).unwrap();
    assert_eq!(secrets.len(), 4);
    assert!(!secrets.iter().any(|row| has(row.get::<_, &str>(0).as_bytes())));
}

#[test]
fn who_may_read_all_data_may_not_read_secrets() {
    let mut sql = database().sql();
    sql.batch_execute("create role reads_all; grant pg_read_all_data to reads_all").unwrap();
    for _ in 0..2 {
        sql.batch_execute("select tide.rotate_jwt_secret(), tide.rotate_message_key()").unwrap();
    }
    sql.batch_execute("analyze tide.secret; analyze tide.message_key").unwrap();
    let all = "select (select count(*) from tide.secret) + (select count(*) from tide.message_key)";
    assert!(sql.query_one(all, &[]).unwrap().get::<_, i64>(0) >= 2);
    let secrets = "select secret from tide.secret
                   union all select convert_from(key, 'UTF8') from tide.message_key";
    let secrets: Vec<String> =
        sql.query(secrets, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    sql.batch_execute("set role reads_all").unwrap();

    assert_eq!(sql.query_one(all, &[]).unwrap().get::<_, i64>(0), 0);
    let statistics = "select s::text from pg_statistic as s
                      where starelid in ('tide.secret'::regclass, 'tide.message_key'::regclass)";
    let statistics = sql.query(statistics, &[]).unwrap();
    assert!(!statistics.is_empty());
    for secret in &secrets {
        assert!(!statistics.iter().any(|row| row.get::<_, &str>(0).contains(secret.as_str())));
        let bytes: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!statistics.iter().any(|row| row.get::<_, &str>(0).contains(&bytes)));
    }
}

#[test]
fn who_subscribes_to_all_tables_gets_no_secret_and_keeps_its_own() {
    let cluster = Cluster::start();
    let [publisher, subscriber] = ["sql_publisher", "sql_subscriber"].map(|name| {
        let database = cluster.database(name);
        database.sql().batch_execute("create table plain (id int primary key)").unwrap();
        database
    });
    let own = "select array(select secret from tide.secret order by 1)
                      || array(select encode(key, 'hex') from tide.message_key order by 1)
                      || array(select relation::text from tide.outboxes order by 1)";
    let own = || subscriber.sql().query_one(own, &[]).unwrap().get::<_, Vec<String>>(0);
    let before = own();
    publisher
        .sql()
        .batch_execute("insert into plain values (1); create publication everything for all tables")
        .unwrap();
    publisher
        .sql()
        .batch_execute("select pg_create_logical_replication_slot('theirs', 'pgoutput')")
        .unwrap();

    let source = format!("host={} user=postgres dbname=sql_publisher", cluster.host().display());
    subscriber
        .sql()
        .batch_execute(&format!(
            "create subscription theirs connection '{source}' publication everything
             with (create_slot = false, slot_name = 'theirs')"
        ))
        .unwrap();

    wait_until("all has been copied", || {
        let ready = "select bool_and(srsubstate = 'r') from pg_subscription_rel";
        let ready = subscriber.sql().query_one(ready, &[]).unwrap().get::<_, Option<bool>>(0);
        (ready == Some(true)).then_some(())
    });
    let plain = "select count(*) from plain";
    assert_eq!(subscriber.sql().query_one(plain, &[]).unwrap().get::<_, i64>(0), 1);
    assert_eq!(own(), before);
    subscriber.sql().batch_execute("drop subscription theirs").unwrap();
}

#[test]
fn a_role_for_clients_that_others_can_become_is_refused_and_found() {
    let cluster = Cluster::start();
    let database = Database::without_extension(&cluster, "sql_precreated", &[]);
    let mut sql = database.sql();
    let refused = |sql: &mut postgres::Client| {
        let error = sql.batch_execute("create extension pg_tide").unwrap_err();
        let error = error.as_db_error().unwrap();
        (error.code().code().to_owned(), error.hint().unwrap().to_owned())
    };

    sql.batch_execute(
        "create role mallory; create role tide_authenticator login noinherit password 'x'",
    )
    .unwrap();
    let hint = "alter role tide_authenticator password null;";
    assert_eq!(refused(&mut sql), ("0P000".into(), hint.into()));
    sql.batch_execute(hint).unwrap();
    sql.batch_execute("grant tide_authenticator to mallory").unwrap();
    let hint = "revoke tide_authenticator from mallory;";
    assert_eq!(refused(&mut sql), ("0P000".into(), hint.into()));
    sql.batch_execute(hint).unwrap();
    sql.batch_execute("create extension pg_tide; grant tide_authenticator to mallory").unwrap();

    let found =
        "select fix from tide.check() where item = 'members of tide_authenticator' and not ok";
    assert_eq!(sql.query_one(found, &[]).unwrap().get::<_, &str>(0), hint);
}

#[test]
fn who_may_not_publish_keeps_nobody_from_it() {
    let database = Cluster::shared().database("sql_lockers");
    let mut sql = database.sql();
    sql.batch_execute("create role locker; create table wanted (id int primary key)").unwrap();
    let mut locker = database.sql();
    locker
        .batch_execute("set role locker; begin; select tide_internal.lock_publications()")
        .unwrap();

    sql.batch_execute("set lock_timeout = '10s'; select tide.publish('wanted')").unwrap();
}

#[test]
fn connections_are_listed_and_can_be_ended() {
    let database = database();
    let table = database.table("s_connected", "id int primary key");
    let topic = format!("realtime:{table}");
    let mut client = database.client();
    client.subscribe(&table, &table);
    let mut sql = database.sql();

    let query = "select c.connection, c.role, c.bindings, s.channels::int8, s.address
                 from tide.stat_channels c join tide.stat_connections s on s.id = c.connection
                 where c.topic = $1";
    let row = sql.query_one(query, &[&topic]).unwrap();
    assert_eq!(row.get::<_, &str>(1), "authenticated");
    assert_eq!(row.get::<_, i32>(2), 1);
    assert_eq!(row.get::<_, i64>(3), 1);
    assert!(row.get::<_, &str>(4).starts_with("127.0.0.1:"));

    let id: i64 = row.get(0);
    let found: bool = sql.query_one("select tide.disconnect($1)", &[&id]).unwrap().get(0);
    assert!(found);
    wait_until("the connection is gone", || {
        sql.query_opt(query, &[&topic]).unwrap().is_none().then_some(())
    });
    let found: bool = sql.query_one("select tide.disconnect($1)", &[&id]).unwrap().get(0);
    assert!(!found);
}

#[test]
fn a_channel_that_does_not_keep_up_shows_by_how_much() {
    let slow = Cluster::shared().database_with("sql_slow", &[("tide.send_queue_size", "64kB")]);
    let table = slow.table("s_slow", "id int, filling text");
    slow.sql().batch_execute(&format!("alter table {table} replica identity full")).unwrap();
    let token = slow.token_with("authenticated", r#"{"sub": "alice"}"#, "1 hour");
    let mut client = slow.connect(&format!("apikey={token}&vsn=2.0.0"));
    client.subscribe(&table, &table);
    let mut sql = slow.sql();
    let query =
        "select c.role, c.private, c.joined_at between s.connected_at and clock_timestamp(),
                        c.lag, s.lag, s.lagging, c.subject
                 from tide.stat_channels c join tide.stat_connections s on s.id = c.connection";
    let row = sql.query_one(query, &[]).unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("authenticated", false, true));
    assert_eq!((row.get(3), row.get(4), row.get(5)), (0_i64, 0_i64, false));
    assert_eq!(row.get::<_, &str>(6), "alice");

    // More than its queue and the sockets between hold.
    let fill =
        format!("insert into {table} select i, repeat('x', 10000) from generate_series(1, 2000) i");
    sql.batch_execute(&fill).unwrap();

    wait_until("it lags", || {
        // Each view asks the worker by itself.
        let row = sql.query_one(query, &[]).unwrap();
        (row.get::<_, i64>(3) > 0 && row.get::<_, i64>(4) > 0 && row.get(5)).then_some(())
    });
    client.changes(2000);
    wait_until("it has caught up", || {
        let row = sql.query_one(query, &[]).unwrap();
        (row.get::<_, i64>(3) == 0 && !row.get::<_, bool>(5)).then_some(())
    });
}

#[test]
fn status_says_where_the_stream_is() {
    let status = database().json("select to_jsonb(s)::text from tide.status() s");

    assert_eq!(status["state"], "live", "{status:#}");
    assert_eq!(status["pid"], json!(database().worker()));
    assert_eq!(status["url"], json!(format!("http://localhost:{}", database().port)));
    for present in
        ["slot", "epoch", "decoded_lsn", "confirmed_lsn", "retained_wal", "behind", "started_at"]
    {
        assert_ne!(status[present], Value::Null, "{present}: {status:#}");
    }
}

#[test]
fn a_dump_has_no_secrets_and_restores() {
    let mut dump = as_owner("pg_dump");
    dump.arg("-h").arg(database().cluster.host()).args(["-U", "postgres", &database().name]);
    let dump = String::from_utf8(succeed(&mut dump).stdout).unwrap();

    assert!(dump.to_ascii_lowercase().contains("create extension if not exists pg_tide"));
    let secret: String =
        database().sql().query_one("select secret from tide.secret", &[]).unwrap().get(0);
    assert!(!dump.contains(&secret));
    assert!(!dump.contains("tide.secret"));
}

/// Runs a program that reads this, and has to succeed.
fn feed(command: &mut Command, input: &[u8]) {
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The policies of `tide.channel`.
fn channel_policies(sql: &mut postgres::Client) -> Vec<String> {
    let query = "select (p.*)::text from pg_policies as p
                 where schemaname = 'tide' and tablename = 'channel' order by policyname";
    sql.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

#[test]
fn a_dump_has_the_policies_of_channels_and_a_reader_can_make_it() {
    let cluster = Cluster::start();
    let original = cluster.database("dumped");
    let mut sql = original.sql();
    sql.batch_execute(
        "create role dump_reader login in role pg_read_all_data;
         create role \"odd \"\"role\"; create role dump_gone;
         create schema \"Odd\";
         create function \"Odd\".is_open(text) returns boolean language sql as 'select true';
         create policy readers on tide.channel for select to authenticated, \"odd \"\"role\"
             using (\"Odd\".is_open(topic) and extension = 'it''s');
         create policy \"The writers\" on tide.channel for insert with check (topic <> 'x');
         create policy fewer on tide.channel as restrictive using (topic <> 'y') with check (true);
         select tide.enqueue('room', 'waits', '{}')",
    )
    .unwrap();
    let policies = channel_policies(&mut sql);
    assert_eq!(policies.len(), 3);

    for (number, user, options) in [
        (1, "postgres", &[][..]),
        (2, "dump_reader", &["--inserts"][..]),
        (3, "postgres", &["--clean", "--if-exists"][..]),
    ] {
        let mut dump = as_owner("pg_dump");
        dump.arg("-h").arg(cluster.host()).args(["-U", user, "dumped"]).args(options);
        let dump = succeed(&mut dump).stdout;
        let into = if number == 3 { "dumped".to_owned() } else { format!("restored_{number}") };
        let mut admin = cluster.connect("postgres");
        if number != 3 {
            admin.batch_execute(&format!("create database {into}")).unwrap();
            admin.batch_execute(&format!("alter database {into} set tide.port = 0")).unwrap();
        }
        let mut restore = as_owner("psql");
        restore.arg("-h").arg(cluster.host()).args(["-U", "postgres", "-q", &into]);
        if number != 3 {
            // A function that a policy needs cannot be dropped before it: pg_dump does not know of that.
            restore.args(["-v", "ON_ERROR_STOP=1"]);
        }
        feed(&mut restore, &dump);

        let mut restored = cluster.connect(&into);
        assert_eq!(channel_policies(&mut restored), policies, "{options:?}");
        let left: i64 =
            restored.query_one("select count(*) from tide.channel_policy", &[]).unwrap().get(0);
        assert_eq!(left, 0);
    }
}

#[test]
fn a_policy_of_channels_whose_role_is_not_there_keeps_no_other_from_being_restored() {
    let mut sql = database().sql();
    let mut transaction = sql.transaction().unwrap();
    transaction
        .batch_execute(
            "insert into tide.channel_policy values
                 ('s_lost', true, 'SELECT', '{s_nobody}', 'true', null),
                 ('s_kept', true, 'SELECT', '{public}', 'true', null)",
        )
        .unwrap();
    let query = "select policyname::text from pg_policies where tablename = 'channel' and policyname like 's\\_%'";
    let names: Vec<String> =
        transaction.query(query, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(names, ["s_kept"]);
}

/// A filter's value is cast by the column's type, whose domain check is code of whoever owns it.
#[test]
fn what_a_filter_runs_can_neither_change_its_role_nor_stay() {
    let database = database();
    let mut sql = database.sql();
    sql.batch_execute(
        "create table s_loot (who text);
         grant insert on s_loot to public;
         create function s_check(value int) returns boolean language plpgsql as $$
         begin
             perform pg_advisory_lock(4711);
             begin perform set_config('role', 'postgres', false); return false;
             exception when others then null; end;
             begin execute 'reset session authorization'; return false;
             exception when others then null; end;
             begin insert into s_loot values (current_user); return false;
             exception when others then null; end;
             begin execute 'listen s_channel'; return false;
             exception when others then null; end;
             begin execute 'create temp table s_left (id int)'; return false;
             exception when others then null; end;
             return current_user = 'authenticated' and session_user = 'tide_authenticator';
         end $$;",
    )
    .unwrap();
    let table = database.table("s_guarded", "id int primary key");
    sql.batch_execute(&format!(
        "create domain s_domain as int check (s_check(value));
         alter table {table} add column value s_domain"
    ))
    .unwrap();
    let mut client = database.client();

    let binding = json!({
        "event": "*", "schema": "public", "table": table, "filter": "value=eq.1",
    });
    client.subscribe_to("guarded", binding);

    let left: i64 = sql
        .query_one("select count(*) from pg_locks where locktype = 'advisory'", &[])
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
    let loot: i64 = sql.query_one("select count(*) from s_loot", &[]).unwrap().get(0);
    assert_eq!(loot, 0);
}

#[test]
fn nobody_is_shown_the_secret_that_was_set() {
    let mut sql = database().sql();
    sql.batch_execute("set tide.jwt_secret = 'a secret of at least thirty-two bytes'").unwrap();

    let shown: String = sql.query_one("show tide.jwt_secret", &[]).unwrap().get(0);

    assert_eq!(shown, "********");
}

#[test]
fn a_client_resumes_from_the_position_that_sql_gave() {
    let database = database();
    let table = database.table("s_since", "id int primary key");
    let mut sql = database.sql();
    sql.batch_execute(&format!("insert into {table} values (1)")).unwrap();
    let position: String = sql.query_one("select tide.current_position()", &[]).unwrap().get(0);
    sql.batch_execute(&format!("insert into {table} values (2)")).unwrap();
    let topic = format!("realtime:tide:table:public.{table}");
    let mut client = database.client();

    client.join(&topic, &json!({ "broadcast": { "since": position } }));

    assert_eq!(client.broadcast(&topic)["payload"]["record"]["id"], 2);
}
