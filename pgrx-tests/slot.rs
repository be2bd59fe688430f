//! The replication slot moves, so that an idle or a silent database never fills the disk.

use serde_json::Value;

use crate::support::cluster::{Shutdown, signal};
use crate::support::{Cluster, Database, http, wait_until};

/// The slot's confirmed position has passed `lsn`.
fn wait_until_confirmed(database: &Database<'_>, lsn: &str) {
    let statement = format!(
        "select confirmed_flush_lsn >= '{lsn}'::pg_lsn from pg_replication_slots
         where database = '{}' and plugin = 'pg_tide'",
        database.name
    );
    wait_until(&format!("the slot has passed {lsn}"), || {
        let row = database.cluster.connect("postgres").query_opt(&statement, &[]).unwrap()?;
        row.get::<_, Option<bool>>(0)?.then_some(())
    });
}

/// Where the WAL is now; what follows is written after it.
fn lsn(database: &Database<'_>) -> String {
    let mut sql = database.cluster.connect("postgres");
    sql.query_one("select pg_current_wal_insert_lsn()::text", &[]).unwrap().get(0)
}

/// A history that lets go at once, so that only decoding holds the slot.
const NO_HISTORY: &[(&str, &str)] = &[("tide.history_retention", "0")];

#[test]
fn it_moves_while_other_databases_write() {
    let cluster = Cluster::start();
    let database = cluster.database_with("quiet", NO_HISTORY);
    let mut other = cluster.connect("postgres");

    other.batch_execute("create table t as select generate_series(1, 10000)").unwrap();
    let written = lsn(&database);

    wait_until_confirmed(&database, &written);
}

#[test]
fn it_moves_while_only_unpublished_tables_are_written() {
    let cluster = Cluster::start();
    let database = cluster.database_with("unpublished", NO_HISTORY);

    database.sql().batch_execute("create table t as select generate_series(1, 10000)").unwrap();
    let written = lsn(&database);

    wait_until_confirmed(&database, &written);
}

#[test]
fn it_moves_while_published_tables_are_written_and_nobody_listens() {
    let cluster = Cluster::start();
    let database = cluster.database_with("published", NO_HISTORY);
    let t = database.table("t", "id int primary key");

    database
        .sql()
        .batch_execute(&format!("insert into {t} select generate_series(1, 10000)"))
        .unwrap();
    let written = lsn(&database);

    wait_until_confirmed(&database, &written);
}

#[test]
fn old_wal_is_removed_as_it_moves() {
    let cluster = Cluster::with("min_wal_size = 32MB\nmax_wal_size = 64MB");
    let database = cluster.database_with("removed", NO_HISTORY);
    let before = database.slot("restart_lsn").unwrap();

    for _ in 0..3 {
        database.sql().batch_execute("select pg_switch_wal()").unwrap();
        database.sql().batch_execute("create table t (id int); drop table t").unwrap();
    }
    let written = lsn(&database);
    wait_until_confirmed(&database, &written);

    // The slot's restart point follows at the next running-xacts record, which a checkpoint makes.
    wait_until("the restart point has moved", || {
        database.sql().batch_execute("checkpoint").unwrap();
        (database.slot("restart_lsn")? != before).then_some(())
    });
}

#[test]
fn it_stays_within_the_limit_whatever_is_kept_for_clients() {
    // The server's own, past which it would invalidate the slot.
    let cluster =
        Cluster::with("max_slot_wal_keep_size = 192MB\nmin_wal_size = 32MB\nmax_wal_size = 64MB");
    let settings = [("tide.history_size", "512MB"), ("tide.history_retention", "1h")];
    let database = cluster.database_with("held", &settings);
    let t = database.table("t", "id int primary key, pad text");
    let slot = database.slot("slot_name");
    let mut sql = database.sql();

    for round in 0..50 {
        sql.batch_execute(&format!(
            "insert into {t} select g, repeat('x', 900) from generate_series({round} * 10000, {round} * 10000 + 9999) g;
             checkpoint"
        ))
        .unwrap();
        // What the decoder has not come to is held back as well, on a busy machine more of it: the
        // next round, 10 MB of WAL, has to have room before the limit, which is one of whole segments.
        wait_until(&format!("all of round {round} is decoded"), || {
            let held = "select retained_wal, behind from tide.status()";
            let held = sql.query_one(held, &[]).unwrap();
            let (retained, behind): (i64, i64) = (held.get(0), held.get(1));
            (behind < 1 << 20 && retained < (192 - 16 - 16) << 20).then_some(())
        });
    }

    assert_eq!(database.slot("slot_name"), slot, "it has not been lost");
    let status = database.slot("wal_status").unwrap();
    assert!(["reserved", "extended"].contains(&&*status), "{status}");
}

#[test]
fn a_smaller_limit_of_the_servers_own_holds_from_a_reload_on_and_cuts_nobody_off() {
    let cluster = Cluster::start();
    let settings = [("tide.history_size", "1MB"), ("tide.history_retention", "1h")];
    let database = cluster.database_with("smaller", &settings);
    let t = database.table("t", "id int primary key");
    let (mut sql, worker) = (database.sql(), database.worker());
    let kept = |sql: &mut postgres::Client| {
        let inserted = "select count(*) from tide.recent() where operation = 'INSERT'";
        let count = sql.query_one(inserted, &[]).unwrap();
        count.get::<_, i64>(0)
    };
    sql.batch_execute(&format!("insert into {t} values (1)")).unwrap();
    sql.batch_execute("create table u as select repeat('x', 1000) from generate_series(1, 30000)")
        .unwrap();
    let written = lsn(&database);
    wait_until("all is decoded", || {
        let decoded = "select decoded_lsn >= $1::text::pg_lsn from tide.status()";
        sql.query_one(decoded, &[&written]).unwrap().get::<_, Option<bool>>(0)?.then_some(())
    });
    assert_eq!(kept(&mut sql), 1);

    cluster.configure("max_slot_wal_keep_size = 30MB");
    cluster.reload();

    wait_until("what is too far back is given up", || (kept(&mut sql) == 0).then_some(()));
    assert_eq!(database.worker(), worker);
}

#[test]
fn how_far_it_is_behind_is_said() {
    let cluster = Cluster::start();
    let database = cluster.database("behind");
    let t = database.table("t", "id int primary key, pad text");
    let mut sql = database.sql();
    let behind = |sql: &mut postgres::Client| {
        sql.query_one("select behind from tide.status()", &[]).unwrap().get::<_, Option<i64>>(0)
    };

    let worker = database.worker();
    signal("STOP", worker);
    let rows = "select g, repeat('x', 1000) from generate_series(1, 10000) g";
    sql.batch_execute(&format!("insert into {t} {rows}")).unwrap();
    assert!(behind(&mut sql).unwrap() > 8 << 20);
    signal("CONT", worker);

    wait_until("it has caught up", || (behind(&mut sql)? < 1 << 20).then_some(()));
    let health: Value = serde_json::from_str(&http::get(database.port, "/health").body).unwrap();
    assert!(health["behind"].as_u64().unwrap() < 1 << 20, "{health}");
}

#[test]
fn it_stays_while_nobody_may_connect_and_the_stream_goes_on_from_there() {
    let cluster = Cluster::start();
    let database = cluster.database("shut");
    let t = database.table("t", "id int primary key");
    let token = database.token("authenticated");
    let slot = database.slot("slot_name").unwrap();
    let mut sql = database.sql();
    let since: String = sql.query_one("select tide.current_position()", &[]).unwrap().get(0);
    let mut admin = cluster.connect("postgres");

    admin.batch_execute("alter database shut allow_connections false").unwrap();
    database.wait_until_gone();
    sql.batch_execute(&format!("insert into {t} values (1)")).unwrap();
    let named = "select from pg_replication_slots where slot_name = $1";
    assert!(admin.query_opt(named, &[&slot]).unwrap().is_some());
    admin.batch_execute("alter database shut allow_connections true").unwrap();
    database.wait_until_live();

    assert_eq!(database.slot("slot_name"), Some(slot), "{}", cluster.log());
    let mut client = database.connect(&format!("apikey={token}&vsn=2.0.0"));
    let topic = format!("realtime:tide:table:public.{t}");
    client.join(&topic, &serde_json::json!({ "broadcast": { "since": since } }));
    assert_eq!(client.broadcast(&topic)["payload"]["record"]["id"], 1);
}

#[test]
fn it_goes_where_it_holds_too_much_and_there_is_no_worker() {
    let cluster = Cluster::with("tide.max_slot_wal_keep_size = 2MB\nmin_wal_size = 32MB");
    let database = cluster.database("crowded_out");
    let slot = database.slot("slot_name").unwrap();
    cluster.stop(Shutdown::Fast);
    // One for Postgres's own launcher, one for pg_tide's.
    cluster.configure("max_worker_processes = 2");
    cluster.resume();

    let mut sql = database.sql();
    sql.batch_execute(
        "create table filling as select repeat('x', 1000) from generate_series(1, 5000)",
    )
    .unwrap();

    let mut admin = cluster.connect("postgres");
    let named = "select from pg_replication_slots where slot_name = $1";
    wait_until("the slot is gone", || {
        admin.query_opt(named, &[&slot]).unwrap().is_none().then_some(())
    });
}
