//! Old rows are read as the catalogue was when they were written, however it has changed since.

use serde_json::json;

use crate::support::cluster::signal;
use crate::support::{Cluster, wait_until};

#[test]
fn rows_from_before_a_rewrite_are_decoded_with_the_catalogue_of_their_time() {
    let cluster = Cluster::start();
    let database = cluster.database("historic");
    let t = database.table("t", "id int primary key, a int, b text, c int[], e float8");
    let other = database.table("other", "id int primary key");
    let mut early = database.client();
    early.subscribe("early", &t);
    let mut late = database.client();
    let postmaster = cluster.postmaster();
    let worker = database.worker();
    let mut sql = database.sql();

    signal("STOP", worker);
    let write =
        |sql: &mut postgres::Client, statements: &str| sql.batch_execute(statements).unwrap();
    write(&mut sql, &format!("insert into {t} values (1, 11, 'one', '{{1,2}}', 1.5)"));
    write(
        &mut sql,
        &format!(
            "alter table {t} alter a type text using 'was ' || a, alter b type jsonb using to_jsonb(b),
                 alter c type text using c::text, alter e type bool using e > 1"
        ),
    );
    write(&mut sql, &format!("insert into {t} values (2, 'text', '{{\"k\": 1}}', 'plain', true)"));
    write(&mut sql, &format!("alter table {t} drop b; alter table {t} add d numeric default 1.5"));
    write(&mut sql, &format!("insert into {t} values (3, 'x', 'y', false, 2.50)"));
    write(&mut sql, &format!("alter table {t} rename to {t}_renamed; drop table {other}"));

    // Joins wait in the socket, and are checked against today's catalogue while the worker has yet
    // to read with the old one.
    let topic = "realtime:late";
    let join = late.push(
        topic,
        "phx_join",
        &json!({ "config": { "postgres_changes": [
            { "event": "*", "schema": "public", "table": format!("{t}_renamed") },
        ] } }),
    );
    signal("CONT", worker);
    assert_eq!(late.reply(&join)["status"], "ok");
    late.wait_for("the system frame", |frame| frame.event == "system" && frame.topic == topic);
    write(&mut sql, &format!("insert into {t}_renamed values (4, 'after', 'z', true, 3)"));

    // Nobody can say any more who may see column b, which is gone: it may be left out.
    let records: Vec<_> = early
        .changes(3)
        .iter()
        .map(|change| {
            let mut record = change["record"].clone();
            record.as_object_mut().unwrap().remove("b");
            record
        })
        .collect();
    assert_eq!(
        records,
        [
            json!({ "id": 1, "a": 11, "c": [1, 2], "e": 1.5 }),
            json!({ "id": 2, "a": "text", "c": "plain", "e": true }),
            json!({ "id": 3, "a": "x", "c": "y", "e": false, "d": 2.50 }),
        ]
    );
    // The table that it names is not there any more.
    early.wait_for("the end", |frame| frame.event == "phx_error");
    let last = late.wait_for("the newest row", |frame| {
        frame.event == "postgres_changes" && frame.payload["data"]["record"]["id"] == 4
    });
    assert_eq!(last.payload["data"]["table"], json!(format!("{t}_renamed")));
    assert_eq!(database.worker(), worker, "the worker has been restarted");
    assert_eq!(cluster.postmaster(), postmaster);
    assert!(!cluster.log().contains("terminated by signal"));
}

#[test]
fn a_table_dropped_before_its_rows_were_read_is_survived() {
    let cluster = Cluster::start();
    let database = cluster.database("dropped");
    let t = database.table("t", "id int primary key, mood text");
    let keep = database.table("keep", "id int primary key");
    let mut client = database.client();
    client.subscribe("keep", &keep);
    let worker = database.worker();

    signal("STOP", worker);
    let mut sql = database.sql();
    sql.batch_execute(&format!("insert into {t} values (1, 'fine')")).unwrap();
    sql.batch_execute(&format!("drop table {t}; create schema {t}; drop schema {t}")).unwrap();
    sql.batch_execute(&format!("insert into {keep} values (1)")).unwrap();
    signal("CONT", worker);

    let change = wait_until("the row of the other table", || {
        let change = client.change();
        (change["table"] == json!(keep)).then_some(change)
    });
    assert_eq!(change["record"]["id"], 1);
    assert_eq!(database.worker(), worker, "the worker has been restarted");
}
