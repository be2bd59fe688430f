//! The worker lives as long as its extension does, through everything that happens to databases
//! and servers.

use serde_json::json;

use crate::support::cluster::{Shutdown, as_owner, bin, signal, succeed};
use crate::support::database::{LARGE, WORKER};
use crate::support::{Cluster, DEADLINE, Database, wait_until};

fn slots(cluster: &Cluster) -> Vec<String> {
    cluster
        .connect("postgres")
        .query("select slot_name::text from pg_replication_slots order by 1", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

#[test]
fn two_databases_are_served_each_its_own_rows() {
    let cluster = Cluster::start();
    let (one, two) = (cluster.database("one"), cluster.database("two"));
    for database in [&one, &two] {
        database
            .sql()
            .batch_execute(
                "create table t (whose text primary key); grant select on t to authenticated;
                 select tide.publish('t')",
            )
            .unwrap();
    }
    let (mut first, mut second) = (one.client(), two.client());
    first.subscribe("room", "t");
    second.subscribe("room", "t");

    two.sql().batch_execute("insert into t values ('two')").unwrap();
    one.sql().batch_execute("insert into t values ('one')").unwrap();

    assert_eq!(first.change()["record"]["whose"], "one");
    assert_eq!(second.change()["record"]["whose"], "two");
    // Nor does a token of one database open the other.
    let token = one.token("authenticated");
    assert_eq!(two.try_connect(&format!("apikey={token}")).unwrap_err().status, 401);
}

#[test]
fn a_dropped_extension_leaves_nothing_and_can_be_created_again() {
    let cluster = Cluster::start();
    let database = cluster.database("again");
    database.delivers();
    let before = slots(&cluster);
    assert_eq!(before.len(), 1);

    database.sql().batch_execute("drop extension pg_tide").unwrap();
    database.wait_until_gone();
    wait_until("the slot is dropped", || slots(&cluster).is_empty().then_some(()));

    database.sql().batch_execute("create extension pg_tide").unwrap();
    database.wait_until_live();
    database.delivers();
    assert_ne!(slots(&cluster), before);
}

#[test]
fn drop_and_create_in_one_transaction_is_one_extension() {
    let cluster = Cluster::start();
    let database = cluster.database("at_once");
    let t = database.table("t", "id int primary key");
    let (before, slot) = (database.worker(), slots(&cluster));
    let mut sql = database.sql();
    sql.batch_execute(&format!("insert into {t} values (1)")).unwrap();

    sql.batch_execute("begin; drop extension pg_tide; create extension pg_tide; commit").unwrap();

    // Another extension, other secrets and keys: another worker, and another history.
    database.wait_for_another_worker(before);
    assert_eq!(slots(&cluster).len(), 1);
    assert_ne!(slots(&cluster), slot);
    database.delivers();
    let failed = "select count(*) from tide.recent(100) where operation = 'ERROR'";
    assert_eq!(sql.query_one(failed, &[]).unwrap().get::<_, i64>(0), 0);
}

#[test]
fn what_is_rolled_back_changes_nothing() {
    let cluster = Cluster::start();
    let database = cluster.database("rolled_back");
    let worker = database.worker();
    let other = Database::without_extension(&cluster, "never", &[]);

    database.sql().batch_execute("begin; drop extension pg_tide; rollback").unwrap();
    other.sql().batch_execute("begin; create extension pg_tide; rollback").unwrap();

    database.delivers();
    assert_eq!(database.worker(), worker);
    assert!(other.processes("pg_tide").is_empty());
    assert_eq!(slots(&cluster).len(), 1);
}

#[test]
fn a_database_with_the_extension_can_be_dropped() {
    let cluster = Cluster::start();
    let database = cluster.database("doomed");

    cluster.connect("postgres").batch_execute("drop database doomed").unwrap();

    database.wait_until_gone();
    assert_eq!(slots(&cluster), Vec::<String>::new());
}

#[test]
fn a_database_that_could_not_be_dropped_is_served_again() {
    let cluster = Cluster::start();
    let database = cluster.database("kept");
    let mut holder = database.sql();
    holder.batch_execute("begin; select 1").unwrap();

    let error = cluster.connect("postgres").batch_execute("drop database kept").unwrap_err();

    assert_eq!(error.code().map(postgres::error::SqlState::code), Some("55006"));
    drop(holder);
    database.worker();
    database.wait_until_live();
    database.delivers();
}

#[test]
fn a_renamed_database_is_served_under_its_new_name() {
    let cluster = Cluster::start();
    let mut database = cluster.database("old_name");
    database.delivers();

    cluster
        .connect("postgres")
        .batch_execute("alter database old_name rename to new_name")
        .unwrap();

    database.name = "new_name".to_owned();
    database.worker();
    database.wait_until_live();
    database.delivers();
    assert_eq!(slots(&cluster).len(), 1);
}

#[test]
fn a_database_can_be_copied_and_original_and_copy_are_served() {
    let cluster = Cluster::start();
    let original = cluster.database("original");
    original.delivers();

    let copy = Database::template(&cluster, "copied", "original");

    original.worker();
    original.wait_until_live();
    original.delivers();
    copy.worker();
    copy.wait_until_live();
    copy.delivers();
    assert_eq!(slots(&cluster).len(), 2);
}

#[test]
fn terminated_processes_come_back() {
    let cluster = Cluster::start();
    let database = cluster.database("terminated");
    database.delivers();

    for kind in ["pg_tide worker", "pg_tide catalog worker", "pg_tide executor", "pg_tide launcher"]
    {
        let mut sql = cluster.connect("postgres");
        let pids = |sql: &mut postgres::Client| -> Vec<i32> {
            sql.query(
                "select pid from pg_stat_activity
                 where backend_type = $1 and (datname = 'terminated' or $1 = 'pg_tide launcher')",
                &[&kind],
            )
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect()
        };
        let before = wait_until(&format!("there is a {kind}"), || {
            let pids = pids(&mut sql);
            (!pids.is_empty()).then_some(pids)
        });
        for pid in &before {
            sql.execute("select pg_terminate_backend($1)", &[pid]).unwrap();
        }
        wait_until(&format!("every {kind} is back"), || {
            let now = pids(&mut sql);
            (now.len() == before.len() && now.iter().all(|pid| !before.contains(pid))).then_some(())
        });
        database.wait_until_live();
        database.delivers();
    }
}

#[test]
fn a_killed_worker_comes_back_with_the_server() {
    let cluster = Cluster::start();
    let database = cluster.database("killed_once");
    database.delivers();
    let worker = database.worker();

    signal("KILL", worker);

    wait_until("another worker", || {
        let mut sql = cluster.try_connect("postgres", "postgres").ok()?;
        let row = sql
            .query_opt("select pid from pg_stat_activity where backend_type = $1", &[&WORKER])
            .ok()??;
        (row.get::<_, i32>(0) != worker).then_some(())
    });
    database.wait_until_live();
    database.delivers();
    assert_eq!(slots(&cluster).len(), 1);
}

#[test]
fn it_survives_every_kind_of_shutdown() {
    let cluster = Cluster::start();
    let database = cluster.database("restarted");
    let t = database.table("kept", "id int primary key");
    let before = slots(&cluster);

    for how in [Shutdown::Fast, Shutdown::Immediate] {
        let mut client = database.client();
        client.subscribe("room", &t);
        cluster.stop(how);
        client.wait_until_closed();
        cluster.resume();
        database.wait_until_live();
        database.delivers();
        assert_eq!(slots(&cluster), before);
    }
}

#[test]
fn a_fast_shutdown_in_the_middle_of_a_large_transaction_does_not_wait_for_it() {
    let cluster = Cluster::start();
    let database = cluster.database("in_the_middle");
    let mut client = database.in_the_middle_of_a_large_transaction();

    cluster.stop(Shutdown::Fast);

    let rest = std::iter::from_fn(|| client.read(DEADLINE).ok().flatten()).count();
    assert!(rest < LARGE, "it was stopped in the middle, not after all {LARGE} rows");
    cluster.resume();
    database.wait_until_live();
    database.delivers();
}

#[test]
fn nothing_outlives_the_postmaster() {
    let cluster = Cluster::start();
    let database = cluster.database("orphaned");
    database.delivers();
    let pids = database.processes("pg_tide");
    assert!(pids.len() >= 3, "{pids:?}");

    signal("KILL", cluster.postmaster());

    wait_until("every process is gone", || pids.iter().all(|pid| !is_running(*pid)).then_some(()));
}

/// Whether a process is there and no zombie.
fn is_running(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

#[test]
fn settings_of_the_database_take_hold_at_a_reload() {
    let cluster = Cluster::start();
    let database = cluster.database("reloaded");
    assert_eq!(database.try_connect("vsn=2.0.0").unwrap_err().status, 401);

    database.sql().batch_execute("alter database reloaded set tide.anon_role = 'anon'").unwrap();
    cluster.reload();

    wait_until("the anonymous may connect", || database.try_connect("vsn=2.0.0").ok());
    database.delivers();
}

#[test]
fn without_permission_to_decode_it_says_what_to_add_and_goes_on_when_it_is_added() {
    let known = Cluster::shared()
        .connect("postgres")
        .query_opt("select 1 from pg_settings where name = 'output_plugin_libraries'", &[])
        .unwrap();
    if known.is_none() {
        eprintln!("this Postgres has no output_plugin_libraries: nothing to test");
        return;
    }
    let cluster = Cluster::with("output_plugin_libraries = 'pgoutput'");
    let database = Database::without_extension(&cluster, "forbidden", &[]);
    database
        .sql()
        .batch_execute("create extension pg_tide; grant authenticated to tide_authenticator")
        .unwrap();

    cluster.wait_for_log(0, "output_plugin_libraries");
    let findings = database.json(
        "select coalesce(jsonb_agg(to_jsonb(c)), '[]')::text from tide.check() c where not ok",
    );
    assert!(findings.to_string().contains("output_plugin_libraries"), "{findings:#}");
    assert!(findings.to_string().contains("pg_tide"), "{findings:#}");

    cluster.configure("output_plugin_libraries = 'pgoutput, test_decoding, pg_tide'");
    cluster.reload();

    database.wait_until_live();
    database.delivers();
    let complaints = cluster.log().matches("may not be used as an output plugin").count();
    assert!(complaints < 20, "{complaints} complaints: a hot loop");
}

#[test]
fn permission_to_decode_taken_away_and_given_back() {
    let cluster = Cluster::start();
    let database = cluster.database("withdrawn");
    let mut sql = database.sql();
    if sql
        .query_opt("select 1 from pg_settings where name = 'output_plugin_libraries'", &[])
        .unwrap()
        .is_none()
    {
        eprintln!("this Postgres has no output_plugin_libraries: nothing to test");
        return;
    }
    database.delivers();

    cluster.configure("output_plugin_libraries = 'pgoutput'");
    cluster.reload();
    database.restart_worker_without_waiting();
    cluster.wait_for_log(0, "may not be used as an output plugin");
    cluster.configure("output_plugin_libraries = 'pgoutput, test_decoding, pg_tide'");
    cluster.reload();

    database.wait_until_live();
    database.delivers();
}

#[test]
fn a_stream_that_cannot_go_on_holds_no_more_wal_than_it_may() {
    let cluster = Cluster::start();
    let settings = [("tide.max_slot_wal_keep_size", "16MB"), ("tide.history_size", "1MB")];
    let database = cluster.database_with("withheld", &settings);
    let mut sql = database.sql();
    let setting = "select 1 from pg_settings where name = 'output_plugin_libraries'";
    if sql.query_opt(setting, &[]).unwrap().is_none() {
        eprintln!("this Postgres has no output_plugin_libraries: nothing to test");
        return;
    }
    let t = database.table("t", "id int primary key");
    let mut client = database.client();
    client.join(&format!("realtime:tide:table:public.{t}"), &json!({}));
    sql.batch_execute(&format!("insert into {t} values (1)")).unwrap();
    let event = client.broadcast(&format!("realtime:tide:table:public.{t}"));

    cluster.configure("output_plugin_libraries = 'pgoutput'");
    cluster.reload();
    database.restart_worker_without_waiting();
    cluster.wait_for_log(0, "may not be used as an output plugin");
    sql.batch_execute("create table wide (x text); alter table wide alter x set storage external")
        .unwrap();
    sql.batch_execute("insert into wide select repeat('x', 1000000) from generate_series(1, 40)")
        .unwrap();
    cluster.wait_for_log(0, "it held more than tide.max_slot_wal_keep_size");
    cluster.configure("output_plugin_libraries = 'pgoutput, test_decoding, pg_tide'");
    cluster.reload();

    database.wait_until_live();
    let mut client = database.client();
    let since = json!({ "broadcast": { "since": event["meta"]["id"] } });
    client.join(&format!("realtime:tide:table:public.{t}"), &since);
    let resync = client.wait_for("a resync", |frame| frame.text.contains("tide.resync"));
    assert!(resync.text.contains("wal_limit"), "{}", resync.text);
}

#[test]
fn a_slot_of_another_name_is_dropped() {
    let cluster = Cluster::start();
    let database = cluster.database("renamed_slot");
    let before = slots(&cluster);
    assert_eq!(before.len(), 1);

    database
        .sql()
        .batch_execute("alter database renamed_slot set tide.slot_name = 'mine'")
        .unwrap();
    database.restart_worker();

    let only_mine = |slots: &Vec<String>| slots.len() == 1 && slots[0].starts_with("mine_");
    wait_until("the other slot is gone", || Some(slots(&cluster)).filter(only_mine));
    database.delivers();
}

#[test]
fn an_invalidated_slot_is_replaced() {
    let cluster = Cluster::with("min_wal_size = 32MB\nmax_wal_size = 32MB");
    let database = cluster.database("invalidated");
    database.delivers();
    let before = slots(&cluster);
    let worker = database.worker();
    let mut sql = database.sql();

    // A worker that stands still, and a server that keeps next to no WAL for it.
    signal("STOP", worker);
    cluster.configure("max_slot_wal_keep_size = 1MB");
    cluster.reload();
    for _ in 0..6 {
        sql.batch_execute("create table w (id int); drop table w").unwrap();
        sql.batch_execute("select pg_switch_wal()").unwrap();
    }
    let mut config = postgres::Config::new();
    config.host_path(cluster.host()).user("postgres").dbname("postgres");
    let checkpoint = std::thread::spawn(move || {
        config.connect(postgres::NoTls).unwrap().batch_execute("checkpoint").unwrap();
    });
    cluster.wait_for_log(0, "terminating process");
    signal("CONT", worker);
    checkpoint.join().unwrap();

    wait_until("a new slot", || {
        let now = slots(&cluster);
        (now.len() == 1 && now != before).then_some(())
    });
    database.wait_until_live();
    database.delivers();
}

#[test]
fn a_standby_does_nothing_until_it_is_promoted() {
    let primary = Cluster::with("wal_keep_size = 64MB\nhot_standby = on");
    let database = primary.database("replicated");
    let t = database.table("t", "id int primary key");
    let standby = primary.standby();
    standby.resume();
    let mut sql = standby.connect("replicated");
    let row = sql
        .query_one(
            "select count(*) from pg_stat_activity where backend_type like 'pg_tide worker%'",
            &[],
        )
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);

    primary.stop(Shutdown::Fast);
    standby.promote();

    let promoted = Database { cluster: &standby, name: database.name.clone(), port: database.port };
    promoted.wait_until_live();
    let mut client = promoted.client();
    client.subscribe("room", &t);
    promoted.sql().batch_execute(&format!("insert into {t} values (1)")).unwrap();
    assert_eq!(client.change()["record"], json!({ "id": 1 }));
}

#[test]
fn dropped_publications_and_tables_are_survived() {
    let cluster = Cluster::start();
    let database = cluster.database("publication");
    let t = database.table("t", "id int primary key");
    let mut client = database.client();
    client.subscribe("room", &t);

    let mut sql = database.sql();
    sql.batch_execute("drop publication tide").unwrap();
    sql.batch_execute(&format!("insert into {t} values (1)")).unwrap();
    sql.batch_execute(&format!("select tide.publish('{t}')")).unwrap();
    sql.batch_execute(&format!("insert into {t} values (2)")).unwrap();

    assert_eq!(client.change()["record"]["id"], 2);
    sql.batch_execute(&format!("drop table {t}")).unwrap();
    database.delivers();
}

#[test]
fn a_primary_that_was_failed_over_from_can_be_rewound() {
    let primary = Cluster::with(
        "wal_keep_size = 64MB\nhot_standby = on\nwal_log_hints = on\nfull_page_writes = on",
    );
    let database = primary.database("rewound");
    let standby = primary.standby();
    standby.resume();
    standby.promote();
    let promoted = Database { cluster: &standby, name: database.name.clone(), port: database.port };
    // What is told apart by is written by a checkpoint.
    promoted.sql().batch_execute("checkpoint").unwrap();
    database.sql().batch_execute("create table lost (id int)").unwrap();
    primary.stop(Shutdown::Fast);
    promoted.wait_until_live();

    let source = format!("host={} user=postgres dbname=postgres", standby.host().display());
    succeed(
        as_owner("pg_rewind")
            .arg("--target-pgdata")
            .arg(primary.data())
            .args(["--source-server", &source]),
    );

    promoted.delivers();
}

#[test]
fn a_stream_that_begins_after_a_prepared_transaction_says_so() {
    let cluster = Cluster::start();
    let prepare = "create table held (id int);
                   begin; insert into held values (1); prepare transaction 'held'";
    cluster.connect("postgres").batch_execute(prepare).unwrap();
    let database = Database::without_extension(&cluster, "behind", &[]);
    database.sql().batch_execute("create extension pg_tide").unwrap();

    let reason = "select reason from tide.status() where reason like '%prepared%'";
    wait_until("the reason is said", || database.sql().query_opt(reason, &[]).unwrap());
    cluster.connect("postgres").batch_execute("commit prepared 'held'").unwrap();

    database.wait_until_live();
}

/// From 17 on it makes the slots of the old cluster anew, as its last steps, when the files have been
/// moved: what fails then cannot be gone back from.
#[test]
fn pg_upgrade_takes_the_slot_along() {
    let old = Cluster::with("tide.history_retention = '1s'");
    let database = old.database("upgraded");
    if database.server_version() < 170_000 {
        return;
    }
    database.delivers();
    // The slot has to be at the end.
    let is_empty = "select history_events = 0 from tide.status()";
    wait_until("the history is empty", || {
        database.sql().query_one(is_empty, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    old.stop(Shutdown::Fast);
    let new = Cluster::stopped();

    succeed(
        as_owner("pg_upgrade")
            .args(["--username", "postgres", "--no-sync"])
            .arg("--old-bindir")
            .arg(bin())
            .arg("--new-bindir")
            .arg(bin())
            .arg("--old-datadir")
            .arg(old.data())
            .arg("--new-datadir")
            .arg(new.data())
            .arg("--socketdir")
            .arg(new.host()),
    );
    new.resume();

    let upgraded = Database { cluster: &new, name: database.name.clone(), port: database.port };
    upgraded.wait_until_live();
    upgraded.delivers();
}
