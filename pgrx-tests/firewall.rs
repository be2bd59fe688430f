//! The firewall: whatever becomes of tide-server costs its connections, and nothing else. Postgres,
//! its sessions and the worker do not notice; clients come back and have missed nothing.

mod faults;
mod first_process;
mod walls;

use serde_json::json;

use crate::memory::peak_kib;
use crate::support::client::Client;
use crate::support::cluster::{Shutdown, signal};
use crate::support::database::LARGE;
use crate::support::{Cluster, DEADLINE, Database, wait_until};

const TOPIC: &str = "realtime:tide:table:public.t";

/// The process id of the database's server.
fn server(database: &Database<'_>) -> Option<i32> {
    let mut sql = database.cluster.try_connect(&database.name, "postgres").ok()?;
    sql.query_one("select server_pid from tide.status()", &[]).ok()?.get(0)
}

/// Waits for a server that is another than this one, and lets clients in.
#[track_caller]
fn another_server(database: &Database<'_>, before: i32) -> i32 {
    let pid = wait_until("another server", || server(database).filter(|pid| *pid != before));
    database.wait_until_live();
    pid
}

fn postmaster_start_time(database: &Database<'_>) -> String {
    let time = "select pg_postmaster_start_time()::text";
    database.sql().query_one(time, &[]).unwrap().get(0)
}

/// What `tide.status()` says of how the newest server that ended did so.
fn last_failure(database: &Database<'_>) -> String {
    let failure = "select last_server_failure from tide.status()";
    database.sql().query_one(failure, &[]).unwrap().get(0)
}

/// How often the log says that the server of this database failed.
fn failures(database: &Database<'_>) -> usize {
    let line = format!("the server of database \"{}\" is to be started again", database.name);
    database.cluster.log().matches(&line).count()
}

fn is_alive(pid: i32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

const SIGSEGV: u32 = 11;

/// Whether the process has a handler for the signal.
fn catches(pid: i32, signal: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Joins and says from where on it is live.
fn follow(client: &mut Client, since: Option<&str>) {
    let broadcast = since.map_or_else(|| json!({}), |since| json!({ "since": since }));
    client.join(TOPIC, &json!({ "broadcast": broadcast }));
}

/// A table, and a client that has seen its first row; and the position of that.
fn followed<'a>(cluster: &'a Cluster, name: &str) -> (Database<'a>, Client, String) {
    followed_with(cluster, name, &[])
}

/// The same, with settings of the database's own.
fn followed_with<'a>(
    cluster: &'a Cluster,
    name: &str,
    settings: &[(&str, &str)],
) -> (Database<'a>, Client, String) {
    let database = cluster.database_with(name, settings);
    database
        .sql()
        .batch_execute(
            "create table t (id int primary key);
             grant select on t to authenticated;
             select tide.publish('t')",
        )
        .unwrap();
    let mut client = database.client();
    follow(&mut client, None);
    database.sql().batch_execute("insert into t values (0)").unwrap();
    let position = next(&mut client, 0);
    (database, client, position)
}

/// The next row is this one; its position.
#[track_caller]
fn next(client: &mut Client, id: i64) -> String {
    let payload = client.broadcast(TOPIC);
    assert_eq!(payload["payload"]["record"]["id"], id);
    payload["meta"]["id"].as_str().unwrap().to_owned()
}

#[test]
fn whatever_ends_the_server_ends_nothing_else() {
    let cluster = Cluster::start();
    let (database, mut client, mut position) = followed(&cluster, "ended");
    let mut bystander = database.sql();
    bystander.batch_execute("create temp table mine as select 1").unwrap();
    let (worker, started) = (database.worker(), postmaster_start_time(&database));
    let mut id = 0;

    for how in ["KILL", "SEGV", "ABRT", "STOP", "TERM"] {
        let before = server(&database).unwrap();
        signal(how, before);
        if how == "SEGV" {
            // The first that comes from outside is taken for a stack overflow and found to be none.
            wait_until("it has been taken in", || (!catches(before, SIGSEGV)).then_some(()));
            signal(how, before);
        }
        id += 1;
        database.sql().batch_execute(&format!("insert into t values ({id})")).unwrap();

        another_server(&database, before);
        assert!(!is_alive(before), "after {how}");
        client = database.client();
        follow(&mut client, Some(&position));
        next(&mut client, id);
        // What the server was told before counts as dealt with once this one has arrived.
        id += 1;
        database.sql().batch_execute(&format!("insert into t values ({id})")).unwrap();
        position = next(&mut client, id);
        let reason = last_failure(&database);
        assert!(reason.contains("signal") || reason.contains("status"), "{how}: {reason}");
    }

    assert_eq!(database.worker(), worker);
    assert_eq!(postmaster_start_time(&database), started);
    bystander.batch_execute("select * from mine").unwrap();
    drop(client);
}

#[test]
fn a_worker_that_ends_leaves_no_server_and_no_taken_port() {
    let cluster = Cluster::start();
    let (database, _client, _) = followed(&cluster, "leftover");
    for how in ["TERM", "KILL"] {
        let (worker, before) = (database.worker(), server(&database).unwrap());
        signal(how, worker);
        wait_until(&format!("the server is gone after {how}"), || {
            (!is_alive(before)).then_some(())
        });
        if how == "TERM" {
            database.wait_for_another_worker(worker);
        }
    }
    // A crash restart of the cluster, as for any process of Postgres's that is killed.
    wait_until("the cluster is back", || cluster.try_connect("leftover", "postgres").ok());
    database.wait_until_live();
}

#[test]
fn the_postmaster_takes_its_servers_with_it() {
    let cluster = Cluster::start();
    let (database, _client, _) = followed(&cluster, "orphaned");
    let before = server(&database).unwrap();

    signal("KILL", cluster.postmaster());

    wait_until("the server is gone", || (!is_alive(before)).then_some(()));
    wait_until("the port is free", || {
        std::net::TcpListener::bind(("127.0.0.1", database.port)).ok().map(drop)
    });
}

#[test]
fn a_stop_of_postgres_takes_leave_of_the_clients() {
    let cluster = Cluster::start();
    let (database, mut client, _) = followed(&cluster, "taking_leave");
    let before = server(&database).unwrap();

    cluster.stop(Shutdown::Fast);

    let closed = client.wait_until_closed();
    assert_eq!(closed.0.map(|(code, _)| code), Some(1012), "a service restart");
    assert!(!is_alive(before));
    drop(database);
}

/// The worker is waiting for it to read on then.
#[test]
fn a_server_that_is_stopped_in_the_middle_of_a_large_transaction_is_replaced() {
    let cluster = Cluster::start();
    let database = cluster.database("halted");
    let (worker, started) = (database.worker(), postmaster_start_time(&database));
    let before = server(&database).unwrap();
    let client = database.in_the_middle_of_a_large_transaction();

    signal("STOP", before);

    another_server(&database, before);
    drop(client);
    database.delivers();
    assert_eq!(database.worker(), worker);
    assert_eq!(postmaster_start_time(&database), started);
}

#[test]
fn a_fast_shutdown_in_the_middle_of_a_large_transaction_leaves_nothing_behind() {
    let cluster = Cluster::start();
    let database = cluster.database("left_behind");
    let mut client = database.in_the_middle_of_a_large_transaction();
    let before = server(&database).unwrap();

    cluster.stop(Shutdown::Fast);

    // At once: whoever starts Postgres again does not wait.
    assert!(!is_alive(before));
    std::net::TcpListener::bind(("127.0.0.1", database.port)).unwrap();
    let rest = std::iter::from_fn(|| client.read(DEADLINE).ok().flatten()).count();
    assert!(rest < LARGE, "it was stopped in the middle, not after all {LARGE} rows");
}

#[test]
fn a_past_that_the_server_fails_over_twice_is_given_up() {
    let cluster = Cluster::start();
    let (database, mut client, position) = followed(&cluster, "poisoned");
    let first = server(&database).unwrap();
    database.sql().batch_execute("insert into t values (1)").unwrap();
    next(&mut client, 1);

    // The next one fails before it has got over the past, which is what it would die of if there
    // were something in it.
    let obstacle = keep_from_starting(&database);
    signal("KILL", first);
    wait_until("it has failed twice", || (failures(&database) >= 2).then_some(()));
    std::fs::remove_dir(obstacle).unwrap();
    another_server(&database, first);

    let mut client = database.client();
    follow(&mut client, Some(&position));
    let resync = client.wait_for("a resync", |frame| frame.text.contains("tide.resync"));
    assert!(resync.text.contains("server_failed"), "{}", resync.text);
    database.sql().batch_execute("insert into t values (2)").unwrap();
    next(&mut client, 2);
}

/// Makes every server of this database fail as soon as it starts, until the folder that is returned
/// is removed: it is in the way of the socket that the server listens on.
fn keep_from_starting(database: &Database<'_>) -> std::path::PathBuf {
    let socket = database.own_file("sock");
    std::fs::remove_file(&socket).unwrap();
    std::fs::create_dir(&socket).unwrap();
    socket
}

/// Processes that this one has started.
fn children(parent: i32) -> Vec<i32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn a_reload_exchanges_secrets_and_cuts_nobody_off() {
    let cluster = Cluster::start();
    let secret = cluster.data().join("secret");
    std::fs::write(&secret, "the first secret, which is long enough").unwrap();
    let path = secret.display().to_string();
    cluster.configure(&format!("tide.jwt_secret_file = '{path}'"));
    cluster.reload();
    let (database, mut client, _) = followed(&cluster, "reloaded");
    let (before, first) = (server(&database), database.token("authenticated"));

    std::fs::write(&secret, "the second secret, which is long enough").unwrap();
    cluster.reload();

    // Signed with what is in the file now.
    let second = database.token("authenticated");
    wait_until("the second secret counts", || {
        database.try_connect(&format!("apikey={second}&vsn=2.0.0")).ok()
    });
    assert_eq!(database.try_connect(&format!("apikey={first}&vsn=2.0.0")).unwrap_err().status, 401);
    database.sql().batch_execute("insert into t values (1)").unwrap();
    next(&mut client, 1);
    assert_eq!(server(&database), before);
}

#[test]
fn a_reload_changes_what_clients_may_do_and_cuts_nobody_off() {
    let cluster = Cluster::start();
    let (database, mut client, _) = followed(&cluster, "loosened");
    let (worker, first) = (database.worker(), server(&database).unwrap());
    let anonymous = || database.try_connect("vsn=2.0.0").ok();
    assert!(anonymous().is_none());

    // Of the database's own, and of the configuration file.
    database.sql().batch_execute("alter database loosened set tide.anon_role = 'anon'").unwrap();
    cluster.configure("tide.max_channels_per_connection = 1");
    cluster.reload();

    wait_until("who has no token is let in", anonymous);
    client.push("realtime:another", "phx_join", &json!({ "config": {} }));
    let refused = client.wait_for("an answer", |frame| frame.topic == "realtime:another");
    assert!(refused.text.contains("ChannelRateLimitReached"), "{}", refused.text);
    database.sql().batch_execute("insert into t values (1)").unwrap();
    next(&mut client, 1);
    assert_eq!((database.worker(), server(&database)), (worker, Some(first)));

    // The next server has been told as well.
    signal("KILL", first);
    another_server(&database, first);
    wait_until("who has no token is let in again", anonymous);
    assert_eq!(database.worker(), worker);
}

#[test]
fn a_decoder_that_is_given_up_leaves_no_memory_behind() {
    const RECORD: u64 = 30_000_000;
    let cluster = Cluster::start();
    let (database, mut client, _) = followed(&cluster, "given_up");
    // The row before it is in the history: so the record is read again each time.
    let large = format!("select pg_logical_emit_message(true, 'x', repeat('y', {RECORD}))");
    database.sql().batch_execute(&large).unwrap();
    let mut peaks = Vec::new();

    for id in 1..=5 {
        database.sql().batch_execute(&format!("insert into t values ({id})")).unwrap();
        let position = next(&mut client, id);
        peaks.push(peak_kib(database.worker()));
        let before = server(&database).unwrap();
        signal("KILL", before);
        another_server(&database, before);
        client = database.client();
        follow(&mut client, Some(&position));
    }

    // The first time it is read, and the second, while the first is still there.
    let grown = peaks[4].saturating_sub(peaks[1]);
    assert!(grown < RECORD / 1024, "{peaks:?}");
}

#[test]
fn a_server_whose_settings_are_longer_than_its_socket_starts_at_once() {
    let cluster = Cluster::start();
    let secret = cluster.data().join("secret");
    std::fs::write(&secret, "x".repeat(3 << 20)).unwrap();
    let path = secret.display().to_string();

    let (database, mut client, _) =
        followed_with(&cluster, "long", &[("tide.jwt_secret_file", path.as_str())]);

    database.sql().batch_execute("insert into t values (1)").unwrap();
    next(&mut client, 1);
    assert_eq!(failures(&database), 0);
    assert_eq!(children(database.worker()), [server(&database).unwrap()]);
}
