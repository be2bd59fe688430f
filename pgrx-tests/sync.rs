//! Channels that begin with the rows that there are: whatever is written meanwhile, the client has in the
//! end what it would select.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::follower::Follower;
use crate::support::{Cluster, Database};

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        // A client that looks at what SQL says of a million rows says nothing for a while.
        LazyLock::new(|| {
            Cluster::shared().database_with("sync", &[("tide.idle_timeout", "10min")])
        });
    &DATABASE
}

/// Writes whatever, to a table that had so many rows, until it is told to stop.
fn write(table: &str, seed: u64, (key, rows): (fn(u64) -> String, u64), stop: &AtomicBool) {
    let mut sql = database().sql();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut new = seed * 1_000_000_000;
    for _ in 0..rows / 20 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut statements = String::from("begin;");
        for _ in 0..=random(3) {
            let (old, n) = (key(random(rows)), random(100));
            new += 1;
            let fresh = key(10_000_000 + new);
            let is_undone = random(4) == 0;
            if is_undone {
                statements += "savepoint s;";
            }
            statements += &match random(6) {
                0 => format!("insert into {table} (id, n, note) values ({fresh}, {n}, 'new');"),
                1 => format!("delete from {table} where id = {old};"),
                2 => format!("update {table} set id = {fresh} where id = {old};"),
                3 => format!(
                    "update {table} set note = (select string_agg(md5(i::text || {n}), '') from generate_series(1, 100) i)
                     where id = {old};"
                ),
                _ => format!("update {table} set n = {n} where id = {old};"),
            };
            if is_undone {
                statements += "rollback to s;";
            }
        }
        statements += &match random(10) {
            0 => "rollback".to_owned(),
            1 => format!("prepare transaction '{table} {seed}'"),
            _ => "commit".to_owned(),
        };
        // Two may be in each other's way.
        if sql.batch_execute(&statements).is_err() {
            let _ = sql.batch_execute("rollback");
        }
        // If there is one, and it was no error.
        let end = ["commit", "rollback"][usize::from(random(4) == 0)];
        let _ = sql.batch_execute(&format!("{end} prepared '{table} {seed}'"));
    }
}

fn number(n: u64) -> String {
    n.to_string()
}

fn word(n: u64) -> String {
    format!("'k{n}'")
}

/// A table, and what its client follows.
struct Case {
    create: &'static str,
    key: fn(u64) -> String,
    options: Value,
    /// What the client is to have in the end.
    condition: &'static str,
}

fn converges(name: &str, case: &Case) {
    converges_with(name, case, 30_000, 3);
}

/// Two clients of a table of so many rows, one of which loses its connection time and again, while so many
/// write.
fn converges_with(name: &str, case: &Case, rows: u64, writers: u64) {
    let mut sql = database().sql();
    let Case { create, key, options, condition } = case;
    sql.batch_execute(&create.replace("$t", name)).unwrap();
    sql.batch_execute(&format!(
        "grant select on {name} to authenticated; select tide.publish('{name}')"
    ))
    .unwrap();
    let expression = match key(0).starts_with('\'') {
        true => "'k' || i",
        false => "i",
    };
    sql.batch_execute(&format!(
        "insert into {name} (id, n, note)
         select {expression}, i % 100, 'old' from generate_series(0, {rows} - 1) as i"
    ))
    .unwrap();
    let (stop, following) = (AtomicBool::new(false), AtomicUsize::new(2));
    // Each of its own, as none may wait for the other.
    let follow = |cuts: usize| {
        let stopped = StopWhenDone(&stop);
        let mut follower = Follower::new(database(), name, options);
        follow_with_cuts(&mut follower, cuts);
        following.fetch_sub(1, Ordering::Relaxed);
        while following.load(Ordering::Relaxed) > 0 && !stop.load(Ordering::Relaxed) {
            follower.take_next();
        }
        drop(stopped);
        follower.equals(name, condition, name);
    };
    std::thread::scope(|scope| {
        for seed in 1..=writers {
            let stop = &stop;
            scope.spawn(move || write(name, seed, (*key, rows), stop));
        }
        for cuts in [0, 4] {
            let follow = &follow;
            scope.spawn(move || follow(cuts));
        }
    });
}

/// Until it has all that there was, through so many losses of its connection.
fn follow_with_cuts(follower: &mut Follower<'_>, cuts: usize) {
    let (mut cut, mut had) = (0, 0);
    while !follower.is_up_to_date {
        follower.take_next();
        if cut < cuts && !follower.is_up_to_date && follower.rows.len() >= had + 5_000 {
            cut += 1;
            had = follower.rows.len();
            follower.reconnect();
        }
        assert!(follower.begun < 100, "begun {} times: {}", follower.begun, follower.said);
    }
}

/// So that a test that fails ends.
struct StopWhenDone<'a>(&'a AtomicBool);

impl Drop for StopWhenDone<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const PLAIN: &str = "create table $t (id bigint primary key, n int not null, note text)";

#[test]
fn all_rows_of_a_table() {
    let options = json!({ "snapshot": true });
    converges("sync_plain", &Case { create: PLAIN, key: number, options, condition: "true" });
}

#[test]
fn a_large_table_with_four_writers() {
    // A tenth in CI.
    let rows = std::env::var("TIDE_SYNC_ROWS").map_or(100_000, |rows| rows.parse().unwrap());
    let options = json!({ "snapshot": true });
    let case = Case { create: PLAIN, key: number, options, condition: "true" };
    converges_with("sync_large", &case, rows, 4);
}

#[test]
fn rows_by_a_key_of_text() {
    let options = json!({ "snapshot": true });
    let create = "create table $t (id text primary key, n int not null, note text)";
    converges("sync_text", &Case { create, key: word, options, condition: "true" });
}

#[test]
fn keys_of_types_whose_names_alone_stand_for_one_character() {
    let mut sql = database().sql();
    for (table, kind, key) in [
        ("sync_char", "character(8)", "lpad(i::text, 6, '0')"),
        ("sync_bit", "bit(20)", "i::bit(20)"),
    ] {
        sql.batch_execute(&format!(
            "create table {table} (id {kind} primary key, n int);
             grant select on {table} to authenticated; select tide.publish('{table}');
             insert into {table} select {key}, i from generate_series(1, 25000) as i"
        ))
        .unwrap();

        // More than two chunks.
        Follower::new(database(), table, &json!({ "snapshot": true })).equals(table, "true", table);
    }
}

#[test]
fn rows_by_a_key_of_a_domain_that_clients_cannot_name() {
    let options = json!({ "snapshot": true });
    let create = "create schema hidden; create domain hidden.key as bigint check (value < 1e12);
                  create table $t (id hidden.key primary key, n int not null, note text)";
    converges("sync_domain", &Case { create, key: number, options, condition: "true" });
}

#[test]
fn rows_by_a_key_of_numbers_in_an_array() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create table sync_array (id int[] primary key, n int);
         grant select on sync_array to authenticated; select tide.publish('sync_array');
         insert into sync_array select array[i, i % 7], i % 100 from generate_series(1, 25000) as i",
    )
    .unwrap();
    let options = json!({ "snapshot": true, "filter": "n=lt.50" });
    let mut follower = Follower::new(database(), "sync_array", &options);
    for _ in 0..20 {
        sql.batch_execute(
            "update sync_array set n = (n + 30) % 100 where id[1] % 500 = 3;
             delete from sync_array where id = (select max(id) from sync_array)",
        )
        .unwrap();
        follower.take_next();
    }
    follower.equals("sync_array", "n < 50", "an array");
    assert_eq!(follower.begun, 1);
}

#[test]
fn rows_by_a_key_whose_index_has_a_collation_of_its_own() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         create table sync_collated (id text collate nocase not null, n int);
         create unique index sync_collated_id on sync_collated (id collate \"C\");
         alter table sync_collated replica identity using index sync_collated_id;
         grant select on sync_collated to authenticated; select tide.publish('sync_collated');
         insert into sync_collated select case i % 2 when 0 then 'k' else 'K' end || i / 2, i
         from generate_series(1, 25000) as i",
    )
    .unwrap();

    // Pairs that the column cannot tell apart, and the index does.
    let mut follower = Follower::new(database(), "sync_collated", &json!({ "snapshot": true }));
    follower.equals("sync_collated", "true", "a collation");
}

#[test]
fn rows_that_a_filter_admits() {
    let options = json!({ "snapshot": true, "filter": "n=lt.50" });
    converges("sync_filter", &Case { create: PLAIN, key: number, options, condition: "n < 50" });
}

#[test]
fn rows_that_policies_admit() {
    let options = json!({ "snapshot": true });
    let create = "create table $t (id bigint primary key, n int not null, note text);
                  alter table $t enable row level security;
                  create policy p on $t using (n > 20 and exists (select from pg_class where n < 80))";
    let condition = "n > 20 and n < 80";
    converges("sync_policy", &Case { create, key: number, options, condition });
}

#[test]
fn rows_of_a_partitioned_table() {
    let options = json!({ "snapshot": true, "filter": "n=gte.30" });
    let create =
        "create table $t (id bigint primary key, n int not null, note text) partition by hash (id);
                  create table $t_0 partition of $t for values with (modulus 2, remainder 0);
                  create table $t_1 partition of $t for values with (modulus 2, remainder 1)";
    converges("sync_parts", &Case { create, key: number, options, condition: "n >= 30" });
}

#[test]
fn rows_with_another_replica_identity() {
    for (name, identity) in [("sync_full", "full"), ("sync_index", "using index sync_index_id")] {
        let create: &'static str = Box::leak(
            format!(
                "create table $t (id bigint not null, pk serial primary key, n int not null, note text);
                 create unique index $t_id on $t (id); alter table $t replica identity {identity}"
            )
            .into_boxed_str(),
        );
        let options = json!({ "snapshot": true, "filter": "n=lt.50" });
        converges(name, &Case { create, key: number, options, condition: "n < 50" });
    }
}

#[test]
fn where_the_stream_alone_goes_on_nothing_is_read_again() {
    let mut sql = database().sql();
    sql.batch_execute(&format!(
        "{}; grant select on sync_since to authenticated; select tide.publish('sync_since');
         insert into sync_since values (1, 1, 'a')",
        PLAIN.replace("$t", "sync_since")
    ))
    .unwrap();
    let topic = "realtime:tide:table:public.sync_since";
    let mut client = database().client();
    let joined = client.join(topic, &json!({ "broadcast": { "snapshot": true } }));
    let mut seen = Vec::new();
    let meta = loop {
        let broadcast = client.broadcast(topic);
        seen.push(broadcast["event"].clone());
        if broadcast["event"] == "up_to_date" {
            assert_eq!(broadcast["payload"]["rows"], 1);
            break broadcast["meta"].clone();
        }
    };
    assert_eq!(seen, ["SNAPSHOT", "up_to_date"]);
    drop(client);
    sql.batch_execute("insert into sync_since values (2, 2, 'b')").unwrap();

    let (since, resume) = (&meta["id"], &meta["resume"]);
    for (options, expected) in [
        (json!({ "since": since, "resume": resume }), "INSERT"),
        (json!({ "since": joined["position"], "resume": resume }), "INSERT"),
        // That it has had all rows, nobody but the server can say.
        (json!({ "since": since }), "SNAPSHOT"),
        (json!({ "since": joined["position"] }), "SNAPSHOT"),
        (json!({ "since": since, "resume": resume, "filter": "n=gt.0" }), "SNAPSHOT"),
        (json!({ "since": since, "resume": resume, "select": ["n"] }), "SNAPSHOT"),
    ] {
        let mut client = database().client();
        let mut options = options;
        options["snapshot"] = json!(true);
        client.join(topic, &json!({ "broadcast": options }));
        assert_eq!(client.broadcast(topic)["event"], expected, "{options}");
    }
}

#[test]
fn a_commit_that_hangs_is_told_once() {
    // Commits wait for a standby that does not exist, where the session says so.
    let cluster = Cluster::with("synchronous_standby_names = 'nobody'\nsynchronous_commit = local");
    let database = cluster.database("sync_hanging");
    let t = database.table("t", "id int primary key");
    let mut sql = database.sql();
    sql.batch_execute(&format!("insert into {t} select generate_series(1, 15000)")).unwrap();
    let hanging = std::thread::spawn({
        let mut session = database.sql();
        let insert = format!("set synchronous_commit = on; insert into {t} values (20000)");
        move || session.batch_execute(&insert)
    });
    crate::support::wait_until("it hangs", || {
        let query = "select from pg_stat_activity where wait_event = 'SyncRep'";
        sql.query_opt(query, &[]).unwrap()
    });
    let mut client = database.client();
    let topic = format!("realtime:tide:table:public.{t}");
    client.join(&topic, &json!({ "broadcast": { "snapshot": true } }));
    // The stream does not pass it, and no chunk is told, before it can be seen.
    let cancel = "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'";
    sql.query(cancel, &[]).unwrap();
    hanging.join().unwrap().unwrap();

    let mut ids: Vec<i64> = Vec::new();
    loop {
        let broadcast = client.broadcast(&topic);
        match broadcast["event"].as_str().unwrap() {
            "SNAPSHOT" => {
                let rows = broadcast["payload"]["rows"].as_array().unwrap();
                ids.extend(rows.iter().map(|row| row["id"].as_i64().unwrap()));
            }
            "INSERT" => ids.extend(broadcast["payload"]["record"]["id"].as_i64()),
            _ => {}
        }
        if ids.len() >= 15_001 && ids.contains(&20_000) {
            break;
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=15_000).chain([20_000]).collect::<Vec<_>>());
}

#[test]
fn after_a_truncate_or_another_policy_it_begins_anew() {
    let mut sql = database().sql();
    sql.batch_execute(&format!(
        "{}; grant select on sync_anew to authenticated; select tide.publish('sync_anew');
         insert into sync_anew select i, i % 100, 'a' from generate_series(1, 300) as i",
        PLAIN.replace("$t", "sync_anew")
    ))
    .unwrap();
    let mut follower = Follower::new(database(), "sync_anew", &json!({ "snapshot": true }));
    follower.equals("sync_anew", "true", "at first");

    sql.batch_execute("truncate sync_anew; insert into sync_anew values (1, 1, 'b')").unwrap();
    follower.equals("sync_anew", "true", "after a TRUNCATE");
    sql.batch_execute(
        "create policy p on sync_anew using (n > 50); alter table sync_anew enable row level security;
         insert into sync_anew values (2, 2, 'c'), (3, 60, 'd')",
    )
    .unwrap();
    follower.equals("sync_anew", "n > 50", "under a policy");

    assert_eq!(follower.begun, 3);
}

#[test]
fn who_was_away_while_its_table_was_emptied_begins_anew() {
    let mut sql = database().sql();
    sql.batch_execute(&format!(
        "{}; grant select on sync_away to authenticated; select tide.publish('sync_away');
         insert into sync_away select i, i, 'a' from generate_series(1, 300) as i",
        PLAIN.replace("$t", "sync_away")
    ))
    .unwrap();
    let mut follower = Follower::new(database(), "sync_away", &json!({ "snapshot": true }));
    follower.equals("sync_away", "true", "at first");

    sql.batch_execute("truncate sync_away; insert into sync_away values (1, 1, 'b')").unwrap();
    follower.reconnect();

    // What it would go on from has the TRUNCATE after it, each time that it joins again.
    follower.equals("sync_away", "true", "after it came back");
    assert_eq!(follower.begun, 2);
}
