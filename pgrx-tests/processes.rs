//! The processes around the worker: who may send it away, what brings it back, and that nobody
//! else notices.

use crate::support::cluster::signal;
use crate::support::database::WORKER;
use crate::support::{Cluster, Database, wait_until};

#[test]
fn a_catalog_worker_that_ends_while_everybody_waits_for_it_is_replaced() {
    const ROWS: i64 = 50_000;
    let cluster = Cluster::start();
    let database = cluster.database("waiting");
    let t = database.table("t", "id int primary key, pad text default repeat('x', 100)");
    let mut client = database.client();
    client.subscribe("room", &t);
    let [catalog_worker] = database.processes("pg_tide catalog worker")[..] else {
        panic!("one catalog worker")
    };

    // The hub asks it about the first event, and the decoder waits for the hub.
    signal("STOP", catalog_worker);
    let insert = format!("insert into {t} select generate_series(1, {ROWS})");
    database.sql().batch_execute(&insert).unwrap();
    signal("TERM", catalog_worker);
    signal("CONT", catalog_worker);

    for id in 1..=ROWS {
        assert_eq!(client.change()["record"]["id"], id);
    }
}

#[test]
fn every_kind_of_commit_wakes_the_worker() {
    let cluster = Cluster::start();
    let database = cluster.database("committed");
    let t = database.table("t", "id int primary key");
    let mut client = database.client();
    client.subscribe("room", &t);
    let mut sql = database.sql();

    for (id, statements) in [
        (1, "insert into t values (1)"),
        (2, "set synchronous_commit = off; insert into t values (2); reset synchronous_commit"),
        (3, "do $$ begin insert into t values (3); exception when others then null; end $$"),
        (4, "do $$ begin insert into t values (4); commit; end $$"),
        (5, "create temp table s as select 5 as id; insert into t select id from s"),
    ] {
        sql.batch_execute(&statements.replace("into t ", &format!("into {t} "))).unwrap();
        assert_eq!(client.change()["record"]["id"], id);
    }
    sql.batch_execute(&format!("begin; insert into {t} values (6); prepare transaction 'six'"))
        .unwrap();
    sql.batch_execute("commit prepared 'six'").unwrap();
    assert_eq!(client.change()["record"]["id"], 6);
}

#[test]
fn a_prepared_drop_counts_once_it_is_committed() {
    let cluster = Cluster::start();
    let database = cluster.database("prepared");
    let worker = database.worker();

    let mut sql = database.sql();
    sql.batch_execute("begin; drop extension pg_tide; prepare transaction 'dropped'").unwrap();
    assert_eq!(database.worker(), worker);

    sql.batch_execute("commit prepared 'dropped'").unwrap();
    database.wait_until_gone();
    wait_until("the slot is dropped", || database.slot("slot_name").is_none().then_some(()));
}

#[test]
fn a_database_can_be_moved_to_another_tablespace() {
    let cluster = Cluster::with("allow_in_place_tablespaces = on");
    let database = cluster.database("moved");
    database.delivers();
    let mut sql = cluster.connect("postgres");

    sql.batch_execute("create tablespace elsewhere location ''").unwrap();
    sql.batch_execute("alter database moved set tablespace elsewhere").unwrap();

    database.worker();
    database.wait_until_live();
    database.delivers();
}

#[test]
fn a_template_is_not_served_but_what_is_made_of_it_is() {
    let cluster = Cluster::start();
    let mould = cluster.database("mould");
    let mut sql = cluster.connect("postgres");

    sql.batch_execute("alter database mould is_template true").unwrap();
    mould.wait_until_gone();
    wait_until("the slot is dropped", || mould.slot("slot_name").is_none().then_some(()));

    let cast = Database::template(&cluster, "casting", "mould");
    cast.worker();
    cast.wait_until_live();
    cast.delivers();

    sql.batch_execute("alter database mould is_template false").unwrap();
    mould.worker();
    mould.wait_until_live();
    mould.delivers();
}

#[test]
fn those_who_may_not_touch_a_database_do_not_disturb_its_worker() {
    let cluster = Cluster::start();
    let database = cluster.database("theirs");
    let worker = database.worker();
    cluster.connect("postgres").batch_execute("create role guest login createdb").unwrap();
    let mut guest = cluster.try_connect("postgres", "guest").unwrap();

    for statement in [
        "drop database theirs",
        "alter database theirs rename to mine",
        "alter database theirs set tablespace pg_default",
        "create database mine template theirs",
    ] {
        let error = guest.batch_execute(statement).unwrap_err();
        assert_eq!(error.code().map(postgres::error::SqlState::code), Some("42501"), "{statement}");
    }

    assert_eq!(database.worker(), worker);
    database.delivers();
}

#[test]
fn errors_of_utility_statements_reach_the_client_whole() {
    let mut sql = Cluster::shared().connect("postgres");
    sql.batch_execute("create table whole (id int); insert into whole values (1)").unwrap();

    let error = sql.batch_execute("alter table whole add constraint few check (id > 1)");

    let error = error.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!(error.code().code(), "23514");
    assert_eq!((error.table(), error.constraint()), (Some("whole"), Some("few")));
    assert_eq!(error.detail(), None);
    assert!(error.file().unwrap().ends_with(".c"), "{error:?}");
}

#[test]
fn there_is_nothing_to_cancel_in_a_worker() {
    let cluster = Cluster::start();
    let database = cluster.database("cancelled");
    let worker = database.worker();

    database.sql().execute("select pg_cancel_backend($1)", &[&worker]).unwrap();

    database.delivers();
    assert_eq!(database.worker(), worker);
}

#[test]
fn asked_to_it_starts_again() {
    let cluster = Cluster::start();
    let database = cluster.database("asked");
    let worker = database.worker();

    database.sql().batch_execute("select tide.restart_worker()").unwrap();

    database.wait_for_another_worker(worker);
    database.delivers();
}

#[test]
fn a_statement_in_its_way_ends_a_worker_in_the_middle_of_a_transaction() {
    let cluster = Cluster::start();
    let mut database = cluster.database("busy");
    let _client = database.in_the_middle_of_a_large_transaction();

    cluster.connect("postgres").batch_execute("alter database busy rename to busier").unwrap();

    database.name = "busier".to_owned();
    database.worker();
    database.wait_until_live();
    database.delivers();
}

#[test]
fn without_places_for_background_workers_it_says_so_and_waits() {
    // One for Postgres's own launcher, one for pg_tide's.
    let cluster = Cluster::with("max_worker_processes = 2");
    let database = Database::without_extension(&cluster, "crowded", &[]);

    database.sql().batch_execute("create extension pg_tide").unwrap();

    cluster.wait_for_log(0, "no place left for a background worker");
    cluster.wait_for_log(0, "Raise max_worker_processes");
    assert!(database.processes(WORKER).is_empty());
    let complaints = cluster.log().matches("no place left for a background worker").count();
    assert!(complaints < 5, "{complaints} complaints: a hot loop");
}

#[test]
fn a_worker_that_finds_its_port_taken_says_so_and_takes_it_when_it_is_free() {
    let cluster = Cluster::start();
    let first = cluster.database("first");
    let port = first.port.to_string();
    let mut second =
        Database::without_extension(&cluster, "second", &[("tide.port", port.as_str())]);
    second.port = first.port;

    let since = cluster.log().len();
    second
        .sql()
        .batch_execute("create extension pg_tide; grant authenticated to tide_authenticator")
        .unwrap();
    cluster.wait_for_log(since, &format!("could not bind 127.0.0.1:{port}"));
    let worker = second.worker();

    first.sql().batch_execute("drop extension pg_tide").unwrap();
    first.wait_until_gone();

    second.wait_until_live();
    second.delivers();
    assert_eq!(second.worker(), worker);
}
