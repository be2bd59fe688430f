//! Notifications: what NOTIFY says reaches those who have joined `tide:notify:<channel>`.

use std::sync::LazyLock;

use serde_json::json;

use crate::support::client::Client;
use crate::support::cluster::signal;
use crate::support::{Cluster, Database, http, wait_until};

const SETTINGS: &[(&str, &str)] =
    &[("tide.notify_channels", "jobs,odd*,listen*,burst"), ("tide.public_channels", "on")];

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| Cluster::shared().database_with("notify", SETTINGS));
    &DATABASE
}

fn topic(channel: &str) -> String {
    format!("realtime:tide:notify:{channel}")
}

fn join(client: &mut Client, channel: &str) {
    client.join(&topic(channel), &json!({}));
}

fn notify(database: &Database<'_>, channel: &str, payload: &str) -> i32 {
    let mut sql = database.sql();
    sql.execute("select pg_notify($1, $2)", &[&channel, &payload]).unwrap();
    sql.query_one("select pg_backend_pid()", &[]).unwrap().get(0)
}

#[test]
fn a_notification_reaches_those_who_joined_its_channel_and_nobody_else() {
    let token = database().token("authenticated");
    let mut clients: Vec<Client> = ["1.0.0", "2.0.0"]
        .map(|vsn| database().connect(&format!("apikey={token}&vsn={vsn}")))
        .into();
    clients.iter_mut().for_each(|client| join(client, "jobs"));
    let mut other = database().client();
    join(&mut other, "odd");

    let pid = notify(database(), "jobs", "payload \"ä\" \n");
    notify(database(), "odd", "");

    for client in &mut clients {
        let broadcast = client.broadcast(&topic("jobs"));
        assert_eq!(
            broadcast,
            json!({ "type": "broadcast", "event": "notify", "payload": {
                "channel": "jobs", "payload": "payload \"ä\" \n", "pid": pid,
            } })
        );
    }
    let heard = other.wait_for("a notification", |frame| frame.event == "broadcast");
    assert_eq!(heard.topic, topic("odd"));
    assert_eq!(heard.payload["payload"]["payload"], "");
}

#[test]
fn what_is_said_arrives_whatever_encoding_the_databases_sessions_have() {
    let settings = [
        ("tide.notify_channels", "jobs"),
        ("tide.public_channels", "on"),
        ("client_encoding", "LATIN1"),
    ];
    let database = Cluster::shared().database_with("notified_otherwise", &settings);
    let mut client = database.client();
    join(&mut client, "jobs");

    notify(&database, "jobs", "ä, €");

    let broadcast = client.broadcast(&topic("jobs"));
    assert_eq!(broadcast["payload"]["payload"], "ä, €");
}

#[test]
fn what_is_rolled_back_is_not_said_and_the_rest_in_order_of_commit() {
    let mut client = database().client();
    join(&mut client, "odd order");
    let (mut first, mut second) = (database().sql(), database().sql());

    first.batch_execute("begin; select pg_notify('odd order', 'a')").unwrap();
    second.batch_execute("begin; select pg_notify('odd order', 'b'); rollback").unwrap();
    second.batch_execute("select pg_notify('odd order', 'c')").unwrap();
    first.batch_execute("select pg_notify('odd order', 'd'); commit").unwrap();

    let said: Vec<_> = (0..3)
        .map(|_| client.broadcast(&topic("odd order"))["payload"]["payload"].clone())
        .collect();
    assert_eq!(said, ["c", "a", "d"]);
}

#[test]
fn a_channel_may_have_any_name_of_up_to_63_bytes() {
    let mut client = database().client();
    let longest = format!("odd{}", "ü".repeat(30));
    for channel in ["odd: \"name\" .*", "odd\\,;'$ü", &longest] {
        join(&mut client, channel);
        notify(database(), channel, "x");
        assert_eq!(client.broadcast(&topic(channel))["payload"]["channel"], channel);
    }

    for channel in [format!("{longest}x"), String::new()] {
        let reply = client.try_join(&topic(&channel), &json!({}));
        let reason = reply["response"]["reason"].as_str().unwrap();
        assert!(reason.starts_with("TopicNameInvalid:"), "{reply}");
    }
}

#[test]
fn only_channels_that_the_settings_name_may_be_heard() {
    let closed = Cluster::shared().database_with("unnotified", &SETTINGS[1..]);
    for (database, channel) in [(&closed, "jobs"), (database(), "job"), (database(), "Jobs")] {
        let reply = database.client().try_join(&topic(channel), &json!({}));

        let reason = reply["response"]["reason"].as_str().unwrap();
        let name = format!("tide:notify:{channel}");
        assert!(reason.starts_with("Unauthorized:") && reason.ends_with(&name), "{reply}");
    }
}

#[test]
fn a_join_that_is_neither_private_nor_public_is_refused() {
    let database = Cluster::shared().database_with("private", &SETTINGS[..1]);
    let mut client = database.client();

    let public = client.try_join(&topic("jobs"), &json!({ "private": false }));
    let private = client.try_join(&topic("jobs"), &json!({ "private": true }));

    assert!(public["response"]["reason"].as_str().unwrap().starts_with("PrivateOnly:"), "{public}");
    let reason = private["response"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("Unauthorized:"), "{private}");
}

#[test]
fn notifications_cannot_be_resumed_and_a_join_says_so() {
    let mut client = database().client();

    let reply = client.try_join(&topic("jobs"), &json!({ "broadcast": { "last": 5 } }));

    let reason = reply["response"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("NotSupported:"), "{reply}");
}

/// Whether the database's notifier listens to the channel: what is said to it then stays in the
/// queue for as long as the notifier sleeps. (Alone in its cluster, so that nobody else listens.)
fn is_listening(database: &Database<'_>, channel: &str) -> bool {
    let [notifier] = database.processes("pg_tide notifier")[..] else { return false };
    let mut sql = database.sql();
    signal("STOP", notifier);
    let statement = format!(
        "select pg_notify('{channel}', n || repeat('x', 5000)) from generate_series(1, 20) n"
    );
    sql.batch_execute(&statement).unwrap();
    let usage = usage(&mut sql);
    signal("CONT", notifier);
    usage > 0.0
}

fn usage(sql: &mut postgres::Client) -> f64 {
    sql.query_one("select pg_notification_queue_usage()", &[]).unwrap().get(0)
}

#[test]
fn the_notifier_listens_from_the_first_joiner_to_the_last_leaver() {
    let cluster = Cluster::start();
    let database = cluster.database_with("listener", SETTINGS);
    assert!(!is_listening(&database, "listen here"));
    let (mut one, mut two) = (database.client(), database.client());

    join(&mut one, "listen here");
    assert!(is_listening(&database, "listen here"));
    join(&mut two, "listen here");
    one.call(&topic("listen here"), "phx_leave", &json!({}));
    notify(&database, "listen here", "to the second");
    two.wait_for("the notification", |frame| {
        frame.payload["payload"]["payload"] == "to the second"
    });
    assert!(is_listening(&database, "listen here"));
    // A connection that breaks leaves, too.
    drop(two);

    wait_until("nobody listens", || (!is_listening(&database, "listen here")).then_some(()));
    // And from the start again.
    join(&mut one, "listen here");
    notify(&database, "listen here", "again");
    one.wait_for("the notification", |frame| frame.payload["payload"]["payload"] == "again");
}

#[test]
fn the_notifier_is_kept_while_clients_come_and_go() {
    let cluster = Cluster::start();
    let database = cluster.database_with("flapping", SETTINGS);
    let mut client = database.client();
    join(&mut client, "jobs");
    let notifier = database.processes("pg_tide notifier");
    assert_eq!(notifier.len(), 1);

    for _ in 0..20 {
        client.call(&topic("jobs"), "phx_leave", &json!({}));
        join(&mut client, "jobs");
    }

    notify(&database, "jobs", "still there");
    assert_eq!(client.broadcast(&topic("jobs"))["payload"]["payload"], "still there");
    assert_eq!(database.processes("pg_tide notifier"), notifier);
}

#[test]
fn a_worker_that_is_started_again_listens_again_to_those_who_come_back() {
    let cluster = Cluster::start();
    let database = cluster.database_with("again", SETTINGS);
    let mut client = database.client();
    join(&mut client, "jobs");

    database.restart_worker();

    let mut client = database.client();
    join(&mut client, "jobs");
    notify(&database, "jobs", "x");
    assert_eq!(client.broadcast(&topic("jobs"))["payload"]["payload"], "x");
}

#[test]
fn with_a_stalled_client_all_others_get_a_hundred_thousand_in_order_and_the_queue_empties() {
    const COUNT: usize = 100_000;
    let cluster = Cluster::start();
    let database = cluster.database_with("burst", SETTINGS);
    let t = database.table("t", "id int primary key");
    let mut stalled = database.client();
    join(&mut stalled, "burst");
    let token = database.token("authenticated");
    let reading: Vec<_> = ["1.0.0", "2.0.0"]
        .into_iter()
        .map(|vsn| {
            let mut client = database.connect(&format!("apikey={token}&vsn={vsn}"));
            join(&mut client, "burst");
            std::thread::spawn(move || {
                for n in 0..COUNT {
                    let broadcast = client.broadcast(&topic("burst"));
                    let payload = broadcast["payload"]["payload"].as_str().unwrap();
                    let number: usize = payload.split(' ').next().unwrap().parse().unwrap();
                    assert_eq!(number, n, "one is missing, twice or in the wrong place");
                }
            })
        })
        .collect();
    let mut other = database.client();
    other.subscribe("rows", &t);

    let mut sql = database.sql();
    for part in 0..10 {
        let (from, to) = (part * COUNT / 10, (part + 1) * COUNT / 10 - 1);
        sql.batch_execute(&format!(
            "select pg_notify('burst', n || ' ' || repeat('x', 100)) from generate_series({from}, {to}) n"
        ))
        .unwrap();
    }
    sql.batch_execute(&format!("insert into {t} values (1)")).unwrap();

    wait_until("the queue is empty", || (usage(&mut sql) == 0.0).then_some(()));
    for client in reading {
        client.join().expect("every notification arrives");
    }
    assert_eq!(other.change()["record"]["id"], 1);
    // It has not been cut off, and whoever joins now is served.
    let mut late = database.client();
    join(&mut late, "burst");
    notify(&database, "burst", "last");
    assert_eq!(late.broadcast(&topic("burst"))["payload"]["payload"], "last");
    stalled.call("phoenix", "heartbeat", &json!({}));
    let metrics = http::get(database.port, "/metrics").body;
    let slow = metrics.lines().find(|line| line.starts_with("pg_tide_slow_clients_total"));
    assert_eq!(slow, Some("pg_tide_slow_clients_total 0"));
}

/// Whatever the encoding, reading the queue leaves nothing of today's catalogue behind that rows of
/// the past would be read with.
#[test]
fn rows_from_before_a_rewrite_are_read_right_though_notifications_came_between() {
    let cluster = Cluster::start();
    for (name, options) in [
        ("notified_utf8", ""),
        ("notified_latin1", "encoding 'LATIN1' locale 'C' template template0"),
    ] {
        let database = Database::without_extension_with(&cluster, name, options, SETTINGS);
        database
            .sql()
            .batch_execute("create extension pg_tide; grant authenticated to tide_authenticator")
            .unwrap();
        database.wait_until_live();
        let t = database.table("t", "id int primary key, a int, b text");
        let mut client = database.client();
        client.subscribe("rows", &t);
        join(&mut client, "odd größe");
        let (mut sql, worker) = (database.sql(), database.worker());

        signal("STOP", worker);
        for statement in [
            format!("insert into {t} values (1, 11, 'one')"),
            "select pg_notify('odd größe', 'süß')".to_owned(),
            format!("alter table {t} alter a type text using 'was ' || a, drop b"),
            format!("insert into {t} values (2, 'two')"),
        ] {
            sql.batch_execute(&statement).unwrap();
        }
        signal("CONT", worker);

        let changes = client.changes(2);
        assert_eq!(changes[0]["record"]["a"], 11, "{changes:?}");
        assert_eq!(changes[1]["record"], json!({ "id": 2, "a": "two" }));
        assert_eq!(client.broadcast(&topic("odd größe"))["payload"]["payload"], "süß");
        assert_eq!(database.worker(), worker, "the worker has been restarted");
    }
}
