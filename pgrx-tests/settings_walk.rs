//! Every setting that a database's owner, or a superuser, can give to its sessions is something else than it
//! usually is: pg_tide goes on.
//!
//! All at once, at one end of what is possible and at the other; `TIDE_SETTINGS=each` has each of them tried
//! by itself as well, or the one that it names.

use std::panic::AssertUnwindSafe;

use serde_json::json;

use crate::support::database::WORKER;
use crate::support::{Cluster, Database, wait_until};

#[derive(Clone, Copy, Debug)]
enum End {
    Low,
    High,
}

/// What texts are tried for settings that take a text.
const TEXTS: &[&str] =
    &["nowhere", "LATIN1", "SQL, DMY", "America/Caracas", "pg_catalog.simple", "C", "all", "1", ""];

/// What cannot be a setting of a database, or is there to forbid what pg_tide does.
const LEFT_OUT: &str =
    "'session_authorization', 'role', 'transaction_isolation', 'transaction_read_only',
     'transaction_deferrable', 'seed', 'is_superuser', 'output_plugin_libraries'";

/// Settings with values that Postgres takes for the database.
fn settings(database: &Database<'_>, end: End) -> Vec<(String, String)> {
    let mut sql = database.sql();
    let query = format!(
        "select name, vartype, setting, min_val, max_val, enumvals
         from pg_settings
         where context in ('user', 'superuser') and name not like 'tide.%' and name not in ({LEFT_OUT})
         order by name"
    );
    let mut found = Vec::new();
    for row in sql.query(&query, &[]).unwrap() {
        let (name, kind, now): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let number = |column| row.get::<_, Option<String>>(column).unwrap();
        let choices: Vec<String> = match (kind.as_str(), end) {
            ("bool", _) => vec![if now == "on" { "off".into() } else { "on".into() }],
            // 0 is often none: as little as there can be is more.
            ("integer" | "real", End::Low) if number(3) == "0" => vec!["1".into(), "0".into()],
            ("integer" | "real", End::Low) => vec![number(3)],
            ("integer" | "real", End::High) => vec![number(4), "1000000".into()],
            ("enum", end) => {
                let mut values: Vec<String> = row.get(5);
                values.retain(|value| *value != now);
                if matches!(end, End::High) {
                    values.reverse();
                }
                values
            }
            _ => TEXTS.iter().filter(|text| **text != now).map(|text| (*text).into()).collect(),
        };
        let set = |value: &String| {
            let name = name.replace('"', "\"\"");
            let value = value.replace('\'', "''");
            format!("alter database {} set \"{name}\" = '{value}'", database.name)
        };
        let mut admin = database.cluster.connect("postgres");
        if let Some(value) = choices.into_iter().find(|v| admin.batch_execute(&set(v)).is_ok()) {
            admin
                .batch_execute(&format!("alter database {} reset \"{name}\"", database.name))
                .unwrap();
            found.push((name, value));
        }
    }
    found
}

/// A database with a session, and a token, from before its sessions have odd settings.
struct Walk<'a> {
    database: Database<'a>,
    sql: postgres::Client,
    token: String,
    next: i32,
}

impl Walk<'_> {
    fn new(cluster: &Cluster) -> Walk<'_> {
        let channels = ("tide.public_channels", "on");
        let database =
            cluster.database_with("walked", &[channels, ("tide.notify_channels", "news")]);
        let mut sql = database.sql();
        sql.batch_execute(
            "create table member (n int); grant select on member to authenticated;
             insert into member values (1);
             create table walked (id int primary key, n int, a text[], t timestamptz);
             grant select on walked to authenticated;
             alter table walked enable row level security;
             create policy judged on walked using (a[1] = 'x' and exists (select from member as m where m.n = walked.n));
             create policy rooms on tide.channel to authenticated using (topic = 'private');
             select tide.publish('walked')",
        )
        .unwrap();
        let token = database.token("authenticated");
        Walk { database, sql, token, next: 0 }
    }

    fn restart(&mut self) {
        let pid = |sql: &mut postgres::Client| -> Option<i32> {
            let query =
                "select pid from pg_stat_activity where datname = 'walked' and backend_type = $1";
            sql.query_opt(query, &[&WORKER]).unwrap().map(|row| row.get(0))
        };
        let before = pid(&mut self.sql);
        self.sql.batch_execute("select tide.restart_worker()").unwrap();
        wait_until("another worker", || pid(&mut self.sql).filter(|now| Some(*now) != before));
        let mut why = String::new();
        let is_live = std::panic::catch_unwind(AssertUnwindSafe(|| {
            wait_until("it is live", || {
                let query = "select state, coalesce(reason, '') from tide.status()";
                let row = self.sql.query_one(query, &[]).unwrap();
                why = row.get(1);
                (row.get::<_, &str>(0) == "live").then_some(())
            });
        }));
        assert!(is_live.is_ok(), "it does not go live: {why}\n{}", self.database.cluster.log());
        self.database.wait_until_live();
    }

    fn set(&mut self, settings: &[(String, String)], is_set: bool) {
        let mut admin = self.database.cluster.connect("postgres");
        for (name, value) in settings {
            let value = value.replace('\'', "''");
            let how = if is_set {
                format!("set \"{name}\" = '{value}'")
            } else {
                format!("reset \"{name}\"")
            };
            admin.batch_execute(&format!("alter database walked {how}")).unwrap();
        }
        self.restart();
    }

    /// Rows by a policy and a filter, messages from an outbox and from SQL, notifications, who is there, a
    /// private channel, schema changes, and what SQL functions say.
    fn works(&mut self, what: &str) {
        self.next += 10;
        let id = self.next;
        let mut client = self.database.connect(&format!("apikey={}&vsn=2.0.0", self.token));
        let filter = json!({ "event": "*", "schema": "public", "table": "walked", "filter": "t=gt.2020-01-02" });
        client.subscribe_to("rows", filter);
        client.join("realtime:said", &json!({}));
        client.join("realtime:private", &json!({ "private": true }));
        client.join("realtime:tide:notify:news", &json!({}));

        self.sql
            .batch_execute(&format!(
                "insert into walked values ({id}, 2, '{{x}}', '2020-02-03'), ({id} + 1, 1, '{{x}}', '2020-01-01'),
                                           ({id} + 2, 1, '{{x}}', '2020-02-03');
                 select tide.enqueue('said', 'queued', '{{}}', private => false);
                 select tide.send('said', 'sent', '{{}}', false);
                 notify news, '{id}'"
            ))
            .unwrap();

        assert_eq!(client.change()["record"]["id"], id + 2, "{what}");
        let mut said = [(); 2].map(|()| client.broadcast("realtime:said")["event"].clone());
        said.sort_by_key(ToString::to_string);
        assert_eq!(said, ["queued", "sent"], "{what}");
        assert_eq!(
            client.broadcast("realtime:tide:notify:news")["payload"]["payload"],
            id.to_string(),
            "{what}"
        );
        wait_until("the message is retired", || {
            let row = self.sql.query_one("select count(*) from tide.outbox", &[]);
            (row.unwrap().get::<_, i64>(0) <= 1).then_some(())
        });
        let status = self.sql.query_one("select state from tide.status()", &[]).unwrap();
        assert_eq!(status.get::<_, String>(0), "live", "{what}");
    }
}

#[test]
fn pg_tide_goes_on_whatever_a_databases_sessions_have() {
    let cluster = Cluster::start();
    let mut walk = Walk::new(&cluster);
    walk.restart();
    walk.works("nothing is set");
    for end in [End::Low, End::High] {
        let all = settings(&walk.database, end);
        assert!(all.len() > 100, "{end:?}: only {}", all.len());
        if let Ok(how) = std::env::var("TIDE_SETTINGS") {
            let mut failed = Vec::new();
            for one in all.iter().filter(|(name, _)| how == "each" || how == *name) {
                let tried = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    walk.set(std::slice::from_ref(one), true);
                    walk.works(&format!("{one:?}"));
                }));
                if tried.is_err() {
                    failed.push(one);
                }
                walk.set(std::slice::from_ref(one), false);
            }
            assert!(failed.is_empty(), "{end:?}: {failed:?}");
        }
        walk.set(&all, true);
        walk.works(&format!("{end:?}"));
        walk.set(&all, false);
    }
}
