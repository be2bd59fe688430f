//! Tables and schemas that are made, altered or dropped, as `tide:schema` and
//! `tide:schema:<schema>` tell of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::{Cluster, Database};

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| Cluster::shared().database("schema_events"));
    &DATABASE
}

/// A schema that `authenticated` may use and whose tables it may read, and a client that listens
/// to what happens in it.
struct Stage<'a> {
    database: &'a Database<'a>,
    sql: postgres::Client,
    schema: String,
    client: Client,
}

impl<'a> Stage<'a> {
    fn new(database: &'a Database<'a>, stem: &str) -> Stage<'a> {
        let schema = database.fresh_name(stem);
        let mut sql = database.sql();
        sql.batch_execute(&format!(
            "create schema {schema};
             grant usage on schema {schema} to authenticated;
             alter default privileges in schema {schema} grant select on tables to authenticated;
             set search_path = {schema}"
        ))
        .unwrap();
        let mut client = database.client();
        client.join(&topic(&schema), &json!({}));
        Stage { database, sql, schema, client }
    }

    fn run(&mut self, statements: &str) {
        self.sql.batch_execute(statements).unwrap();
    }

    /// All events since the last call, as operation and payload without the schema's name.
    fn events(&mut self) -> Vec<(String, Value)> {
        let marker = self.database.fresh_name("marker");
        let schema = self.schema.clone();
        let sql = &mut self.database.sql();
        sql.batch_execute(&format!("create table {schema}.{marker} ()")).unwrap();
        let mut events = Vec::new();
        loop {
            let (operation, mut payload) = self.next();
            if payload["table"] == *marker {
                return events;
            }
            let object = payload.as_object_mut().unwrap();
            assert_eq!(object.remove("schema"), Some(json!(schema)));
            events.push((operation, payload));
        }
    }

    fn next(&mut self) -> (String, Value) {
        let broadcast = self.client.broadcast(&topic(&self.schema));
        assert!(broadcast["meta"]["id"].is_string(), "{broadcast}");
        (broadcast["event"].as_str().unwrap().to_owned(), broadcast["payload"].clone())
    }

    /// The events' operations, each with its table.
    fn operations(&mut self) -> Vec<String> {
        let events = self.events();
        let brief = |(operation, payload): (String, Value)| match payload["table"].as_str() {
            Some(table) => format!("{operation} {table}"),
            None => operation,
        };
        events.into_iter().map(brief).collect()
    }
}

fn topic(schema: &str) -> String {
    format!("realtime:tide:schema:{schema}")
}

fn columns(columns: &[(&str, &str)]) -> Value {
    columns.iter().map(|(name, kind)| json!({ "name": name, "type": kind })).collect()
}

#[test]
fn a_table_is_told_of_when_it_is_made_altered_and_dropped() {
    let mut stage = Stage::new(database(), "life");

    let (id, note, remark) = (("id", "int8"), ("note", "varchar"), ("remark", "varchar"));
    for (statement, operation, table, expected) in [
        (
            "create table t (id bigserial primary key, tags text[])",
            "CREATE_TABLE",
            "t",
            &[id, ("tags", "_text")][..],
        ),
        ("alter table t add note varchar(10), drop tags", "ALTER_TABLE", "t", &[id, note]),
        ("alter table t rename note to remark", "ALTER_TABLE", "t", &[id, remark]),
        ("alter table t rename to \"T\"\"x\"", "ALTER_TABLE", "T\"x", &[id, remark]),
    ] {
        stage.run(statement);
        let payload = json!({ "table": table, "columns": columns(expected) });
        assert_eq!(stage.events(), [(operation.to_owned(), payload)], "{statement}");
    }

    stage.run("drop table \"T\"\"x\"");
    assert_eq!(stage.events(), [("DROP_TABLE".to_owned(), json!({ "table": "T\"x" }))]);
}

#[test]
fn every_way_to_make_or_drop_a_table_is_told_of() {
    let mut stage = Stage::new(database(), "ways");
    for (statements, expected) in [
        ("create table a as select 1 as x", &["CREATE_TABLE a"][..]),
        ("select 1 as x into b", &["CREATE_TABLE b"]),
        ("create table c (like a)", &["CREATE_TABLE c"]),
        ("create unlogged table d ()", &["CREATE_TABLE d"]),
        ("create table if not exists d ()", &[]),
        // A foreign key alters the table that is being made.
        ("create table e (id int primary key, up int references e)", &["CREATE_TABLE e"]),
        ("create table p (id int) partition by range (id)", &["CREATE_TABLE p"]),
        ("create table p1 partition of p for values from (0) to (9)", &["CREATE_TABLE p1"]),
        ("alter table p detach partition p1", &["ALTER_TABLE p"]),
        ("alter table p attach partition p1 for values from (0) to (9)", &["ALTER_TABLE p"]),
        ("alter table a owner to current_user", &["ALTER_TABLE a"]),
        ("do $$ begin execute 'create table f ()'; end $$", &["CREATE_TABLE f"]),
        ("create view v as select * from a; create index on a (x); create sequence s", &[]),
        ("alter view v rename to w; comment on table a is 'x'; truncate a; drop view w", &[]),
        ("alter table a alter x type text", &["ALTER_TABLE a"]),
        ("cluster a using a_x_idx; vacuum full a", &[]),
        ("create materialized view m as select 1 as x; refresh materialized view m", &[]),
        ("create type k as (n int); create table g (id int, k k)", &["CREATE_TABLE g"]),
        ("drop type k cascade", &["ALTER_TABLE g"]),
        ("alter table g drop id", &["ALTER_TABLE g"]),
        ("drop table p", &["DROP_TABLE p", "DROP_TABLE p1"]),
        ("drop table a, b cascade", &["DROP_TABLE a", "DROP_TABLE b"]),
    ] {
        for statement in statements.split_inclusive("; ") {
            // One at a time: VACUUM does not run among others.
            stage.run(if statements.starts_with("do") { statements } else { statement });
            if statements.starts_with("do") {
                break;
            }
        }
        let mut got = stage.operations();
        got.sort();
        assert_eq!(got, expected, "{statements}");
    }
}

#[test]
fn a_table_that_moves_is_told_of_in_its_new_schema() {
    let mut from = Stage::new(database(), "from");
    let mut to = Stage::new(database(), "to");
    from.run("create table t ()");
    from.run("grant select on t to authenticated");

    let statement = format!("alter table t set schema {}", to.schema);
    from.run(&statement);

    assert_eq!(to.operations(), ["ALTER_TABLE t"]);
}

#[test]
fn schemas_are_told_of_and_what_goes_with_them() {
    let schema = database().fresh_name("whole");
    let mut clients = [topic(&schema), "realtime:tide:schema".to_owned()].map(|topic| {
        let mut client = database().client();
        client.join(&topic, &json!({}));
        (client, topic)
    });
    let mut sql = database().sql();

    let mut hear = |statements: &str, last: &str| {
        sql.batch_execute(statements).unwrap();
        clients.each_mut().map(|(client, topic)| {
            let mut got: Vec<String> = Vec::new();
            while got.last().is_none_or(|got| got != last) {
                let broadcast = client.broadcast(topic);
                let payload = &broadcast["payload"];
                if payload["schema"] == *schema {
                    let table = payload["table"].as_str().map(|table| format!(" {table}"));
                    let operation = broadcast["event"].as_str().unwrap();
                    got.push(operation.to_owned() + &table.unwrap_or_default());
                }
            }
            got
        })
    };

    let made = hear(
        &format!(
            "begin;
             create schema {schema} create table t (id int) create table u (id int);
             grant usage on schema {schema} to authenticated;
             grant select on all tables in schema {schema} to authenticated;
             create table {schema}.secret ();
             commit"
        ),
        "CREATE_TABLE u",
    );
    let dropped = hear(&format!("drop schema {schema} cascade"), "DROP_SCHEMA");

    for got in made {
        assert_eq!(got, ["CREATE_SCHEMA", "CREATE_TABLE t", "CREATE_TABLE u"]);
    }
    for mut got in dropped {
        got[..2].sort();
        assert_eq!(got, ["DROP_TABLE t", "DROP_TABLE u", "DROP_SCHEMA"]);
    }
}

#[test]
fn changes_come_in_order_with_the_rows_of_their_transaction() {
    let mut stage = Stage::new(database(), "rows");
    let schema = stage.schema.clone();
    stage.client.join(&format!("realtime:tide:table:{schema}.*"), &json!({}));

    stage.run("begin");
    stage.run("create table t (id int primary key)");
    stage.run(&format!("select tide.publish('{schema}.t')"));
    stage.run("insert into t values (1)");
    stage.run("alter table t add a int default 7");
    stage.run("insert into t values (2)");
    stage.run("commit");

    let mut got = Vec::new();
    while got.len() < 4 {
        let frame = stage.client.wait_for("an event", |frame| frame.event == "broadcast");
        let id = &frame.payload["payload"]["record"]["id"];
        got.push(format!("{} {id}", frame.payload["event"].as_str().unwrap()));
    }
    assert_eq!(got, ["CREATE_TABLE null", "INSERT 1", "ALTER_TABLE null", "INSERT 2"]);
}

#[test]
fn what_is_rolled_back_never_was() {
    let mut stage = Stage::new(database(), "rolled");

    stage.run("begin; create table never (); rollback");
    stage.run(
        "begin; create table t (); savepoint s; drop table t; create table never ();
         rollback to s; alter table t add a int; commit",
    );

    assert_eq!(stage.operations(), ["CREATE_TABLE t", "ALTER_TABLE t"]);
}

#[test]
fn a_client_that_comes_back_resumes_from_its_position() {
    let mut stage = Stage::new(database(), "resumed");
    stage.run("create table one ()");
    let first = stage.client.broadcast(&topic(&stage.schema));
    stage.run("create table two (); drop table one");

    let since = json!({ "broadcast": { "since": first["meta"]["id"] } });
    stage.client = stage.database.client();
    stage.client.join(&topic(&stage.schema), &since);

    assert_eq!(stage.operations(), ["CREATE_TABLE two", "DROP_TABLE one"]);
}

#[test]
fn temporary_objects_cost_no_record_in_the_wal() {
    let cluster = Cluster::start();
    let database = cluster.database("temporary");
    let mut sql = database.sql();
    sql.batch_execute("select pg_create_logical_replication_slot('peek', 'test_decoding')")
        .unwrap();
    let mut messages = |statements: &str| -> i64 {
        database.sql().batch_execute(statements).unwrap();
        let statement = "select count(*)
             from pg_logical_slot_get_binary_changes('peek', null, null)
             where position('prefix: pg_tide'::bytea in data) > 0";
        sql.query_one(statement, &[]).unwrap().get(0)
    };

    let temporary = messages(
        "create temporary table t (id serial primary key, up int references t);
         alter table t add a text;
         alter table t rename to u;
         create temporary table v as select 1 as x;
         select 1 as x into temporary w;
         begin; create temporary table x () on commit drop; commit;
         create temporary table p (id int) partition by range (id);
         create temporary table p1 partition of p default;
         drop table u, p;
         discard temp",
    );
    // Not for what is not told either.
    let others = messages(
        "create view v as select 1; drop view v; create table tide.t (); drop table tide.t",
    );
    let table = messages("create table t ()");

    assert_eq!((temporary, others, table), (0, 0, 1));
}

#[test]
fn pg_tides_own_and_postgress_own_tables_are_never_told_of() {
    let mut everything = database().client();
    everything.join("realtime:tide:schema", &json!({}));
    let mut sql = database().sql();
    for statements in [
        "create table tide.own (big text);
         grant select on tide.own to authenticated;
         alter table tide.own add a int;
         create temporary table mine (big text);
         grant select on mine to authenticated",
        "drop table tide.own, mine",
    ] {
        let marker = database().fresh_name("marker");
        sql.batch_execute(&format!(
            "begin; {statements};
             create table {marker} (big text);
             grant select on {marker} to authenticated; commit"
        ))
        .unwrap();
        loop {
            let payload = everything.broadcast("realtime:tide:schema")["payload"].clone();
            let schema = payload["schema"].as_str().unwrap();
            assert!(schema != "tide" && !schema.starts_with("pg_"), "{payload}");
            if payload["table"] == *marker {
                break;
            }
        }
    }
}

#[test]
fn only_those_hear_of_a_table_who_may_select_from_it() {
    let mut stage = Stage::new(database(), "seen");
    stage.run("create table t (id int, a int, b int)");
    assert_eq!(stage.operations(), ["CREATE_TABLE t"]);

    stage.run("revoke select on t from authenticated; alter table t add c int");
    assert_eq!(stage.operations(), [""; 0]);

    // Of the columns only those that it may read are named.
    stage.run("grant select (id, b) on t to authenticated; alter table t add d int");
    let shown = json!({ "table": "t", "columns": columns(&[("id", "int4"), ("b", "int4")]) });
    assert_eq!(stage.events(), [("ALTER_TABLE".to_owned(), shown)]);

    let schema = stage.schema.clone();
    stage.run("alter table t drop d");
    stage.run(&format!(
        "begin; revoke usage on schema {schema} from authenticated;
         alter table t add e int; create table u (); drop table u; commit"
    ));
    // Told before the revoke has been asked about, or not at all; never after it.
    stage.run(&format!("grant usage on schema {schema} to authenticated"));
    let operations = stage.operations();
    assert!(!operations.iter().any(|operation| operation.ends_with("DROP_TABLE u")));
}

#[test]
fn a_schema_is_told_of_to_those_who_may_use_it() {
    let mut client = database().client();
    client.join("realtime:tide:schema", &json!({}));
    let [open, closed] = ["open", "closed"].map(|stem| database().fresh_name(stem));
    let mut sql = database().sql();

    for (statements, expected) in [
        (
            format!(
                "create schema {closed};
                 begin; create schema {open}; grant usage on schema {open} to authenticated; commit"
            ),
            "CREATE_SCHEMA",
        ),
        (format!("drop schema {closed}; drop schema {open}"), "DROP_SCHEMA"),
    ] {
        sql.batch_execute(&statements).unwrap();
        loop {
            let broadcast = client.broadcast("realtime:tide:schema");
            let schema = broadcast["payload"]["schema"].as_str().unwrap();
            assert_ne!(schema, closed, "{broadcast}");
            if schema == open {
                assert_eq!(broadcast["event"], expected);
                break;
            }
        }
    }
}

#[test]
fn a_drop_is_told_to_those_who_could_see_the_table_until_then() {
    let mut stage = Stage::new(database(), "dropped");
    stage.run("create table seen (); create table hidden (); create table late (); create table col (id int, a int)");
    assert_eq!(
        stage.operations(),
        ["CREATE_TABLE seen", "CREATE_TABLE hidden", "CREATE_TABLE late", "CREATE_TABLE col"]
    );
    stage.run("revoke select on hidden, late, col from authenticated");
    stage.run("grant select (a) on col to authenticated; grant select on hidden to anon");

    stage.run("drop table seen, hidden");
    stage.run("begin; grant select on late to authenticated; drop table late; commit");
    stage.run("drop table col");
    assert_eq!(stage.operations(), ["DROP_TABLE seen", "DROP_TABLE late", "DROP_TABLE col"]);

    stage.run("create table fickle ()");
    assert_eq!(stage.operations(), ["CREATE_TABLE fickle"]);
    stage.run("begin; revoke select on fickle from authenticated; drop table fickle; commit");
    assert_eq!(stage.operations(), [""; 0]);
}

#[test]
fn ddl_works_for_a_role_that_has_no_rights_on_pg_tide() {
    let cluster = Cluster::start();
    let database = cluster.database("strangers");
    let mut sql = database.sql();
    sql.batch_execute(
        "revoke all on schema tide from public;
         create role stranger login;
         create schema theirs authorization stranger;
         grant usage on schema theirs to authenticated",
    )
    .unwrap();
    let mut client = database.client();
    client.join(&topic("theirs"), &json!({}));
    let since = cluster.log().len();

    let mut stranger = cluster.try_connect("strangers", "stranger").unwrap();
    for (statements, expected) in [
        (
            "begin; create table theirs.t (id int);
             grant select on theirs.t to authenticated; commit",
            "CREATE_TABLE",
        ),
        ("alter table theirs.t add a int", "ALTER_TABLE"),
        ("drop table theirs.t", "DROP_TABLE"),
    ] {
        stranger.batch_execute(statements).unwrap();
        assert_eq!(client.broadcast(&topic("theirs"))["event"], expected);
    }
    assert!(!cluster.log()[since..].contains("WARNING"), "{}", &cluster.log()[since..]);
}

#[test]
fn ddl_goes_on_when_clients_cannot_be_told() {
    let cluster = Cluster::start();
    let database = cluster.database("untold");
    let mut sql = database.sql();
    let since = cluster.log().len();

    sql.batch_execute(
        "delete from tide.message_key; select tide_internal.invalidate('tide.message_key')",
    )
    .unwrap();
    sql.batch_execute("create table t (id int)").unwrap();
    sql.batch_execute("alter table t add a int").unwrap();
    sql.batch_execute("create schema s create table u ()").unwrap();
    sql.batch_execute("drop schema s cascade").unwrap();

    let told = cluster.log()[since..].matches("WARNING:  pg_tide could not tell clients").count();
    assert_eq!(told, 4);
    let columns: i64 = sql
        .query_one(
            "select count(*) from pg_attribute where attrelid = 't'::regclass and attnum > 0",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(columns, 2);
}

#[test]
fn a_cancelled_ddl_is_cancelled_and_any_other_trouble_of_ours_is_not_its_own() {
    let cluster = Cluster::start();
    let database = cluster.database("cancelled");
    let mut holder = database.sql();
    holder.batch_execute("begin; lock table tide.message_key in access exclusive mode").unwrap();

    let mut sql = database.sql();
    sql.batch_execute("set lock_timeout = '50ms'; create table unlucky ()").unwrap();
    sql.batch_execute("set lock_timeout = 0; set statement_timeout = '200ms'").unwrap();
    let error = sql.batch_execute("create table cancelled ()").unwrap_err();

    assert_eq!(error.code().map(postgres::error::SqlState::code), Some("57014"));
    let made: Option<String> = sql
        .query_one("select concat(to_regclass('unlucky'), to_regclass('cancelled'))", &[])
        .unwrap()
        .get(0);
    assert_eq!(made.as_deref(), Some("unlucky"));
}

#[test]
fn tables_that_an_extension_makes_are_told_of() {
    let cluster = Cluster::start();
    let database = cluster.database("extended");
    let _files = Extension::install(
        "tide_test_tables",
        "create table made (id int); grant select on made to authenticated;
         alter table made add a int;",
    );
    let mut client = database.client();
    client.join("realtime:tide:schema", &json!({}));
    let mut sql = database.sql();

    sql.batch_execute("create extension tide_test_tables schema public").unwrap();
    let operation = |client: &mut Client| {
        let broadcast = client.broadcast("realtime:tide:schema");
        assert_eq!(broadcast["payload"]["table"], "made");
        broadcast["event"].clone()
    };
    assert_eq!([operation(&mut client), operation(&mut client)], ["CREATE_TABLE", "ALTER_TABLE"]);
    sql.batch_execute("drop extension tide_test_tables").unwrap();

    assert_eq!(operation(&mut client), "DROP_TABLE");
}

#[test]
fn the_extension_can_be_dropped_and_made_again() {
    let cluster = Cluster::start();
    let database = cluster.database("again");
    let mut sql = database.sql();
    let since = cluster.log().len();

    sql.batch_execute("drop extension pg_tide").unwrap();
    sql.batch_execute("create table t (); drop table t").unwrap();
    database.wait_until_gone();
    sql.batch_execute("create extension pg_tide").unwrap();
    database.wait_until_live();

    assert!(!cluster.log()[since..].contains("could not tell"), "{}", &cluster.log()[since..]);
    let mut stage = Stage::new(&database, "again");
    stage.run("create table t ()");
    assert_eq!(stage.operations(), ["CREATE_TABLE t"]);
}

/// An extension of the test's own, where Postgres looks for them.
struct Extension {
    files: [PathBuf; 2],
}

impl Extension {
    fn install(name: &str, script: &str) -> Extension {
        let config = std::env::var("PG_CONFIG").unwrap();
        let folder = Command::new(config).arg("--sharedir").output().unwrap().stdout;
        let folder = Path::new(String::from_utf8(folder).unwrap().trim()).join("extension");
        let files = [folder.join(format!("{name}.control")), folder.join(format!("{name}--1.sql"))];
        let contents = ["default_version = '1'\n", script];
        let source = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        for (file, content) in files.iter().zip(contents) {
            std::fs::write(&source, content).unwrap();
            as_root(Command::new("install").args(["-m", "644"]).arg(&source).arg(file));
        }
        std::fs::remove_file(source).unwrap();
        Extension { files }
    }
}

impl Drop for Extension {
    fn drop(&mut self) {
        as_root(Command::new("rm").arg("-f").args(&self.files));
    }
}

/// As `make install` does what only root may.
fn as_root(command: &mut Command) {
    if !command.status().unwrap().success() {
        let mut sudo = Command::new("sudo");
        sudo.arg(command.get_program()).args(command.get_args());
        assert!(sudo.status().unwrap().success(), "{command:?}");
    }
}
