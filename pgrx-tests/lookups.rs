//! A look-up of the catalogue that fails is not taken for an answer: rows wait, or a resync is
//! told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::{Cluster, Database, wait_until};

/// Two joins that are refused take longer than the catalog worker gives a look-up.
const HANDSHAKE: (&str, &str) = ("tide.handshake_timeout", "6s");

fn run(database: &Database<'_>, statements: &str) {
    database.sql().batch_execute(statements).unwrap();
}

fn id(change: &Value) -> i64 {
    change["record"]["id"].as_i64().unwrap()
}

/// A client that has had the row 1 of the table.
fn subscribed(database: &Database<'_>, table: &str) -> Client {
    let mut client = database.client();
    client.subscribe("room", table);
    run(database, &format!("insert into {table} values (1)"));
    assert_eq!(id(&client.change()), 1);
    client
}

/// What a join of the table is answered with.
fn try_join(mut client: Client, table: &str) -> (String, String) {
    let topic = format!("realtime:tide:table:public.{table}");
    let reply = client.try_join(&topic, &json!({}));
    let reason = reply["response"]["reason"].as_str().unwrap_or_default();
    (reply["status"].as_str().unwrap().to_owned(), reason.to_owned())
}

fn is_told_to_try_again(client: Client, table: &str) {
    let reason = "UnableToConnectToProject: the database is not ready, try again";
    assert_eq!(try_join(client, table), ("error".to_owned(), reason.to_owned()));
}

/// Has a policy on `table` whose verdict depends on a table of its own, `member`.
fn guard_by_members(database: &Database<'_>, table: &str) {
    let sql = format!(
        "create table member (n int); insert into member values (1);
         grant select on member to authenticated;
         alter table {table} enable row level security;
         create policy p on {table} using (exists (select from member where n > 0))"
    );
    run(database, &sql);
}

/// Waits until a process of this type waits for a lock; its pid and when its transaction began.
fn wait_for_lock(
    database: &Database<'_>,
    kind: &str,
    is_meant: impl Fn(i32, &str) -> bool,
) -> (i32, String) {
    let mut sql = database.sql();
    wait_until(&format!("{kind} waits for a lock"), || {
        let query = "select pid, xact_start::text from pg_stat_activity
                     where datname = current_database() and backend_type = $1
                       and wait_event_type = 'Lock'";
        let rows = sql.query(query, &[&kind]).unwrap();
        let mut found = rows.iter().map(|row| (row.get(0), row.get(1)));
        found.find(|(pid, begun): &(i32, String)| is_meant(*pid, begun))
    })
}

#[test]
fn rows_that_come_while_pg_policy_is_locked_arrive_and_joins_are_told_to_try_again() {
    // Of its own: no slot is made in any database while the lock is held.
    let cluster = Cluster::start();
    let database = cluster.database_with("lookups_locked", &[HANDSHAKE]);
    let (t, other) =
        (database.table("t", "id int primary key"), database.table("other", "id int primary key"));
    let (mut client, mut bystander) = (subscribed(&database, &t), subscribed(&database, &other));
    let (mut sql, mut holder) = (database.sql(), database.sql());
    // Tokens are made from a table with row-level security, which nobody can open meanwhile.
    let clients = [database.client(), database.client()];

    holder.batch_execute("begin; lock table pg_policy in access exclusive mode").unwrap();
    sql.batch_execute(&format!("analyze {t}; insert into {t} values (2)")).unwrap();
    wait_for_lock(&database, "pg_tide catalog worker", |_, _| true);
    sql.batch_execute(&format!("insert into {other} values (2)")).unwrap();
    assert_eq!(id(&bystander.change()), 2);
    for (client, table) in clients.into_iter().zip([&t, &other]) {
        is_told_to_try_again(client, table);
    }
    sql.batch_execute(&format!("insert into {t} values (3)")).unwrap();
    holder.batch_execute("rollback").unwrap();

    let ids: Vec<i64> = client.changes(2).iter().map(id).collect();
    assert_eq!(ids, [2, 3]);
    assert_eq!(try_join(database.client(), &t).0, "ok");
}

#[test]
fn rows_whose_policy_reads_a_table_that_waits_to_be_altered_arrive() {
    let cluster = Cluster::start();
    let database = cluster.database_with("lookups_queue", &[HANDSHAKE]);
    let (doc, other) = (
        database.table("doc", "id int primary key"),
        database.table("other", "id int primary key"),
    );
    guard_by_members(&database, &doc);
    let (mut client, mut bystander) = (subscribed(&database, &doc), subscribed(&database, &other));
    let (mut sql, mut reader) = (database.sql(), database.sql());

    reader.batch_execute("begin; select from member").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| run(&database, "alter table member add column m int"));
        wait_for_lock(&database, "client backend", |_, _| true);
        sql.batch_execute(&format!("analyze {doc}; insert into {doc} values (2)")).unwrap();
        sql.batch_execute(&format!("insert into {other} values (2)")).unwrap();
        assert_eq!(id(&bystander.change()), 2);
        is_told_to_try_again(database.client(), &doc);
        is_told_to_try_again(database.client(), &doc);
        // A table that nobody alters can be joined all the while.
        assert_eq!(try_join(database.client(), &other).0, "ok");
        reader.batch_execute("rollback").unwrap();
    });

    assert_eq!(id(&client.change()), 2);
    run(&database, &format!("insert into {doc} values (3)"));
    assert_eq!(id(&client.change()), 3);
}

#[test]
fn a_policy_that_waits_for_a_lock_is_asked_again() {
    let database = Cluster::shared().database("lookups_judged");
    let doc = database.table("doc", "id int primary key");
    guard_by_members(&database, &doc);
    let mut client = subscribed(&database, &doc);
    let mut holder = database.sql();

    holder.batch_execute("begin; lock table member in access exclusive mode").unwrap();
    run(&database, &format!("insert into {doc} values (2)"));
    let (_, first) = wait_for_lock(&database, "pg_tide executor", |_, _| true);
    wait_for_lock(&database, "pg_tide executor", |_, begun| begun != first);
    holder.batch_execute("rollback").unwrap();

    assert_eq!(id(&client.change()), 2);
    let told = |frame: &&crate::support::client::Frame| frame.payload["extension"] == "tide.policy";
    assert_eq!(client.passed("system").into_iter().filter(told).count(), 0);
}

#[test]
fn slow_policies_of_rows_keep_nobody_from_private_channels_and_filters() {
    const TABLES: usize = 4;
    let cluster = Cluster::start();
    // They would not be answered within the test.
    let database = cluster.database_with("lookups_slow", &[("tide.policy_timeout", "1h")]);
    run(&database, "create policy p on tide.channel for select to authenticated using (true)");
    let (mut client, mut bystander) = (database.client(), database.client());
    for _ in 0..TABLES {
        let slow = database.table("slow", "id int primary key");
        run(
            &database,
            &format!(
                "alter table {slow} enable row level security;
                 create policy p on {slow} using (id is null or pg_sleep(3600) is null)"
            ),
        );
        client.subscribe(&slow, &slow);
        run(&database, &format!("insert into {slow} values (1)"));
    }
    let mut sql = database.sql();
    wait_until("a policy sleeps", || {
        let query = "select from pg_stat_activity where datname = current_database()
                     and backend_type = 'pg_tide executor' and wait_event = 'PgSleep'";
        (!sql.query(query, &[]).unwrap().is_empty()).then_some(())
    });

    bystander.join("realtime:private", &json!({ "private": true }));
    let other = database.table("other", "id int primary key");
    let filter = json!({ "event": "*", "schema": "public", "table": other, "filter": "id=gt.1" });
    bystander.subscribe_to("filtered", filter);
    run(&database, &format!("insert into {other} values (1), (2)"));

    assert_eq!(id(&bystander.change()), 2);
}

#[test]
fn rows_arrive_though_the_catalog_worker_is_ended_in_the_midst_of_a_look_up() {
    let database = Cluster::shared().database("lookups_ended");
    let t = database.table("t", "id int primary key");
    let mut client = subscribed(&database, &t);
    let (mut sql, mut holder) = (database.sql(), database.sql());

    holder.batch_execute("begin; lock table pg_policy in access exclusive mode").unwrap();
    sql.batch_execute(&format!("analyze {t}; insert into {t} values (2)")).unwrap();
    let mut ended = BTreeSet::new();
    for _ in 0..3 {
        let (pid, _) =
            wait_for_lock(&database, "pg_tide catalog worker", |pid, _| !ended.contains(&pid));
        sql.execute("select pg_terminate_backend($1)", &[&pid]).unwrap();
        ended.insert(pid);
    }
    sql.batch_execute(&format!("insert into {t} values (3)")).unwrap();
    holder.batch_execute("rollback").unwrap();

    let ids: Vec<i64> = client.changes(2).iter().map(id).collect();
    assert_eq!(ids, [2, 3]);
}

#[test]
fn every_row_arrives_of_a_table_that_is_altered_all_the_time() {
    const CHANGES: usize = 300;
    let database = Cluster::shared().database("lookups_storm");
    let t = database.table("t", "id bigint primary key, n int");
    run(
        &database,
        &format!(
            "alter table {t} enable row level security;
             create policy p on {t} using (n is null or id > 0)"
        ),
    );
    let mut client = database.client();
    client.subscribe("room", &t);

    let is_over = AtomicBool::new(false);
    let committed: BTreeSet<i64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2_i64)
            .map(|writer| {
                let (database, t, is_over) = (&database, &t, &is_over);
                scope.spawn(move || {
                    let mut sql = database.sql();
                    let mut ids = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        let id = 1 + 2 * ids.len() as i64 + writer;
                        sql.batch_execute(&format!("insert into {t} (id) values ({id})")).unwrap();
                        ids.push(id);
                    }
                    ids
                })
            })
            .collect();
        let mut sql = database.sql();
        for n in 0..CHANGES {
            sql.batch_execute(&match n % 4 {
                0 => format!("alter table {t} add column c int"),
                1 => format!("alter policy p on {t} using (n is null or id > {n})"),
                2 => format!("alter table {t} drop column c"),
                _ => format!("revoke select on {t} from public"),
            })
            .unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });

    let arrived: BTreeSet<i64> = client.changes(committed.len()).iter().map(id).collect();
    assert_eq!(arrived, committed);
}
