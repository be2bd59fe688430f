//! Labels of enums that are renamed while rows with them are on their way: policies are about the
//! label, whatever it is called.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::{Cluster, Database};

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| Cluster::shared().database("enums"));
    &DATABASE
}

fn run(statements: &str) {
    database().sql().batch_execute(statements).unwrap();
}

/// The ids of the rows that come, up to this one. Hidden rows have odd ones.
fn ids_up_to(last: i64, mut next: impl FnMut() -> Value) -> Vec<i64> {
    let mut ids = Vec::new();
    while ids.last() != Some(&last) {
        let record = next();
        let id = record["id"].as_i64().unwrap();
        assert!(id % 2 == 0, "a hidden row was sent: {record}");
        ids.push(id);
    }
    ids
}

/// A table whose rows with the label that is `secret` at first, and then has other names, while
/// `secret` becomes another's, are hidden. What clients get that were there, and somebody who reads
/// it all afterwards. `$label` stands for a value with that label, and `$type` for the type.
fn seen(columns: &str, policy: &str, value: &str) -> (Vec<Vec<i64>>, Vec<i64>) {
    let label = database().fresh_name("label");
    let of_type = |text: &str| text.replace("$type", &label);
    run(&format!(
        "create type {label} as enum ('secret', 'public', 'other');
         create type {label}_pair as (label {label}, n int)"
    ));
    let t = database().table("labelled", &of_type(columns));
    run(&format!(
        "alter table {t} enable row level security; create policy p on {t} using ({})",
        of_type(policy)
    ));
    let mut clients: Vec<Client> = (0..3)
        .map(|n| {
            let claims = json!({ "sub": n.to_string() }).to_string();
            let token = database().token_with("authenticated", &claims, "1 hour");
            let mut client = database().connect(&format!("apikey={token}&vsn=2.0.0"));
            client.subscribe("room", &t);
            client
        })
        .collect();
    let insert = |id: i64, label: &str| {
        let value = of_type(value).replace("$label", label);
        format!("insert into {t} values ({id}, {value});")
    };
    let rename = |from, to| format!("alter type {label} rename value '{from}' to '{to}';");
    let mut ids: Vec<Vec<i64>> = vec![Vec::new(); clients.len()];
    let mut follow = |last: i64| {
        for (client, ids) in clients.iter_mut().zip(&mut ids) {
            ids.extend(ids_up_to(last, || client.change()["record"].clone()));
        }
    };

    let mut all = database().client();
    let topic = format!("realtime:tide:table:public.{t}");
    all.join(&topic, &json!({}));
    run(&insert(0, "public"));
    let since = all.broadcast(&topic)["meta"]["id"].clone();
    run(&[insert(1, "secret"), insert(2, "public")].concat());
    follow(2);
    run(&rename("secret", "x"));
    run(&[insert(3, "x"), insert(4, "public")].concat());
    follow(4);
    // Each in a transaction of its own.
    run(&rename("public", "secret"));
    run(&[insert(5, "x"), insert(6, "secret")].concat());
    follow(6);
    let rows = [insert(7, "x"), insert(8, "secret"), rename("x", "public")].concat();
    run(&format!("begin; {rows} {} {} commit", insert(9, "public"), insert(10, "secret")));
    follow(10);
    let mut slow = database().sql();
    slow.batch_execute(&format!("begin; {} {}", insert(11, "public"), insert(12, "secret")))
        .unwrap();
    run(&rename("public", "y"));
    slow.batch_execute(&format!("{} {} commit", insert(13, "y"), insert(14, "secret"))).unwrap();
    follow(14);

    let mut late = database().client();
    late.join(&topic, &json!({ "broadcast": { "since": since } }));
    let later = ids_up_to(14, || late.broadcast(&topic)["payload"]["record"].clone());
    (ids, later)
}

#[test]
fn rows_that_postgres_hides_stay_hidden_when_their_label_is_renamed() {
    for policy in [
        // Decided by the worker itself, and asked of Postgres.
        "s <> 'secret'",
        "s = 'public'",
        "s in ('public', 'other')",
        "not s = any (array['secret', 'other']::$type[])",
        "case when true then s <> 'secret' end",
        "case when true then s = 'public' end",
        "current_setting('request.jwt.claims') is not null and s::text <> ('secret'::$type)::text",
    ] {
        let (ids, later) = seen("id int primary key, s $type", policy, "'$label'");
        let expected = [2, 4, 6, 8, 10, 12, 14];
        for ids in ids {
            assert_eq!(ids[1..], expected, "{policy}");
        }
        assert_eq!(later, expected, "{policy}");
    }
}

/// In other values labels are texts: when these cannot be told apart any more, the row is hidden.
#[test]
fn rows_with_renamed_labels_within_their_values_are_not_taken_for_others() {
    for (columns, policy, value) in [
        (
            "id int primary key, s $type[]",
            "not s @> array['secret']::$type[]",
            "array['$label']::$type[]",
        ),
        ("id int primary key, s $type[]", "s = array['public']::$type[]", "'{$label}'"),
        (
            "id int primary key, s $type_pair",
            "case when true then (s).label <> 'secret' end",
            "row('$label', 1)",
        ),
    ] {
        let (ids, _) = seen(columns, policy, value);
        for ids in ids {
            assert!([2, 4, 6, 10, 14].iter().all(|id| ids.contains(id)), "{policy}: {ids:?}");
        }
    }
}
