//! Crashes of the worker while it decodes, which are crashes of the cluster: what is decoded next is
//! the same WAL. The same place is tried twice, and never a third time.

use serde_json::json;

use crate::support::client::Client;
use crate::support::cluster::{Shutdown, signal};
use crate::support::{Cluster, Database, wait_until};

const TOPIC: &str = "realtime:tide:table:public.t";
const HANGS: &str = "pg_tide: hangs at a change of";
const COUNTED: &str = "the server crashed while the WAL was decoded";

/// A database with a table, and another at whose changes decoding stands still.
fn database<'a>(cluster: &'a Cluster, name: &str) -> Database<'a> {
    let database = cluster.database_with(name, &[("tide.debug_hang_on", "bad")]);
    database
        .sql()
        .batch_execute(
            "create table t (id int primary key);
             create table bad (id int primary key);
             grant select on t to authenticated;
             select tide.publish('t', 'bad')",
        )
        .unwrap();
    database
}

/// The worker that stands still at the bad change, as the `nth` that has done so.
#[track_caller]
fn hanging(cluster: &Cluster, nth: usize) -> i32 {
    wait_until(&format!("hang {nth}"), || {
        let log = cluster.log();
        let hangs: Vec<&str> = log.lines().filter(|line| line.contains(HANGS)).collect();
        let line = hangs.get(nth - 1)?;
        let (_, rest) = line.split_once('[')?;
        rest.split_once(']')?.0.parse().ok()
    })
}

fn counted(cluster: &Cluster) -> usize {
    cluster.log().matches(COUNTED).count()
}

/// A column of `tide.status()`, once there are connections.
fn status(database: &Database<'_>, column: &str) -> Option<String> {
    let mut sql = database.cluster.try_connect(&database.name, "postgres").ok()?;
    sql.query_one(&format!("select {column} from tide.status()"), &[]).ok()?.get(0)
}

/// Why the stream stands still over a crash.
#[track_caller]
fn stalled(database: &Database<'_>) -> String {
    wait_until("the stream stands still", || {
        status(database, "case state when 'stalled' then reason end")
            .filter(|reason| reason.contains("decoding crashed the server"))
    })
}

fn follow(client: &mut Client, since: Option<&str>) {
    let broadcast = since.map_or_else(|| json!({}), |since| json!({ "since": since }));
    client.join(TOPIC, &json!({ "broadcast": broadcast }));
}

/// The next row is this one; its position.
#[track_caller]
fn next(client: &mut Client, id: i64) -> String {
    let payload = client.broadcast(TOPIC);
    assert_eq!(payload["payload"]["record"]["id"], id);
    payload["meta"]["id"].as_str().unwrap().to_owned()
}

/// What `tide.skip_to` says against this address.
fn refusal(database: &Database<'_>, lsn: &str) -> String {
    let error = database.sql().batch_execute(&format!("select tide.skip_to({lsn})")).unwrap_err();
    error.as_db_error().unwrap().message().to_owned()
}

#[test]
fn a_place_that_crashes_the_server_is_tried_twice_and_can_be_skipped() {
    let cluster = Cluster::start();
    let database = database(&cluster, "crashing");
    let mut client = database.client();
    follow(&mut client, None);
    database.sql().batch_execute("insert into t values (0)").unwrap();
    let position = next(&mut client, 0);
    assert!(refusal(&database, "pg_current_wal_lsn()").contains("nothing to skip"));

    database
        .sql()
        .batch_execute("begin; insert into t values (1); insert into bad values (1); commit")
        .unwrap();
    signal("ABRT", hanging(&cluster, 1));
    signal("SEGV", hanging(&cluster, 2));

    let reason = stalled(&database);
    assert!(reason.contains("twice") && reason.contains("change 2 of"), "{reason}");
    // Everything else works, and another worker does not try it either.
    database.sql().batch_execute("insert into t values (2)").unwrap();
    let worker = database.worker();
    signal("TERM", worker);
    wait_until("another worker", || {
        database.processes("pg_tide worker").into_iter().find(|pid| *pid != worker)
    });
    assert_eq!(stalled(&database), reason);
    assert_eq!(cluster.log().matches(HANGS).count(), 2);

    let (bad, end) = places(&reason);
    assert!(refusal(&database, &format!("'{bad}'")).contains("is not after"));
    assert!(refusal(&database, "'FFFF/0'").contains("not been written"));
    database.sql().batch_execute(&format!("select tide.skip_to('{end}')")).unwrap();
    database.wait_until_live();

    let mut client = database.client();
    follow(&mut client, Some(&position));
    let resync = client.wait_for("a resync", |frame| frame.text.contains("tide.resync"));
    assert!(resync.text.contains("skipped"), "{}", resync.text);
    database.sql().batch_execute("insert into t values (3)").unwrap();
    next(&mut client, 3);
    assert!(refusal(&database, "pg_current_wal_lsn()").contains("nothing to skip"));
}

/// Where the record is that crashes, and the address to skip to.
fn places(reason: &str) -> (&str, &str) {
    let after = |text: &str| reason.split_once(text).unwrap().1;
    let bad = after("twice at ").split_once(',').unwrap().0;
    (bad, after("skip_to('").split_once('\'').unwrap().0)
}

#[test]
fn a_crash_of_anybody_else_in_the_middle_of_decoding_is_not_counted() {
    let cluster = Cluster::start();
    let database = database(&cluster, "bystander");
    database.sql().batch_execute("insert into bad values (1)").unwrap();
    let mut hangs = 1;

    // The same place each time.
    for how in ["sibling", "immediate", "terminated"] {
        for _ in 0..3 {
            let worker = hanging(&cluster, hangs);
            match how {
                "sibling" => {
                    let mut sibling = database.sql();
                    let pid = sibling.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
                    signal("KILL", pid);
                }
                "immediate" => {
                    cluster.stop(Shutdown::Immediate);
                    cluster.resume();
                }
                _ => signal("TERM", worker),
            }
            hangs += 1;
        }
    }

    hanging(&cluster, hangs);
    assert_eq!(counted(&cluster), 0);
}

#[test]
fn a_kill_of_an_idle_worker_is_not_counted() {
    let cluster = Cluster::start();
    let database = cluster.database("idle");
    for _ in 0..3 {
        database.delivers();
        let worker = database.worker();
        let decoded = "select decoded_lsn >= pg_current_wal_flush_lsn() from tide.status()";
        wait_until("all is decoded", || {
            let idle: Option<bool> = database.sql().query_one(decoded, &[]).unwrap().get(0);
            idle?.then_some(())
        });
        signal("KILL", worker);
        wait_until("another worker", || {
            let pid: i32 = cluster
                .try_connect("idle", "postgres")
                .ok()?
                .query_one("select pid from tide.status()", &[])
                .ok()?
                .try_get(0)
                .ok()?;
            (pid != worker).then_some(())
        });
        database.wait_until_live();
    }

    database.delivers();
    assert_eq!(counted(&cluster), 0);
}

#[test]
fn the_page_goes_with_the_extension_and_with_the_database() {
    let cluster = Cluster::start();
    for what in ["extension pg_tide", "database page"] {
        let database = cluster.database("page");
        let page = database.own_file("crash");
        assert!(page.exists());

        if what.starts_with("extension") {
            database.sql().batch_execute("drop extension pg_tide").unwrap();
        } else {
            cluster.connect("postgres").batch_execute("drop database page").unwrap();
        }

        wait_until(&format!("the page is gone with the {what}"), || (!page.exists()).then_some(()));
        cluster.connect("postgres").batch_execute("drop database if exists page").unwrap();
    }
}

/// As it is where a file system writes to a new place each time, and has none left.
#[test]
fn a_page_that_cannot_be_written_crashes_nobody() {
    let cluster = Cluster::start();
    let database = cluster.database("cut_off");
    let page = database.own_file("crash");
    let worker = database.worker();

    std::fs::OpenOptions::new().write(true).open(page).unwrap().set_len(0).unwrap();

    database.delivers();
    assert_eq!(database.worker(), worker);
}
