//! Each question to the database fails in each way: whoever is subscribed gets the rows or is told, and
//! whoever comes is let in or told to try again.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::proxy::{Failure, Proxy};
use crate::support::{Cluster, Database, wait_until};

/// A lock, a time-out, no memory, and a process that ends.
const WAYS: [Failure; 4] =
    [Failure::Refusal("55P03"), Failure::Refusal("57014"), Failure::Refusal("53200"), Failure::End];

/// As many as a question is tried again at once, and one more.
const FEW: u32 = 2;

const CLAIMS: &str = r#"{"sub": "a"}"#;

struct World<'a> {
    database: Database<'a>,
    sql: postgres::Client,
    proxy: Proxy,
    subscriber: Client,
    next: i32,
}

impl World<'_> {
    fn new(cluster: &Cluster) -> World<'_> {
        let settings = [
            ("tide.public_channels", "on"),
            ("tide.handshake_timeout", "1s"),
            ("tide.policy_timeout", "1s"),
        ];
        let database = cluster.database_with("failing", &settings);
        let mut sql = database.sql();
        sql.batch_execute(
            "create table member (n int); grant select on member to authenticated; insert into member values (1);
             create table asked (id int primary key, n int);
             create table formula (id int primary key, owner text);
             grant select on asked, formula to authenticated;
             alter table asked enable row level security;
             alter table formula enable row level security;
             create policy judged on asked using (exists (select from member as m where m.n = asked.n));
             create policy judged on formula
                 using (owner = current_setting('request.jwt.claims')::json->>'sub');
             create policy rooms on tide.channel to authenticated using (topic like 'private%');
             select tide.publish('asked'), tide.publish('formula')",
        )
        .unwrap();
        let proxy = Proxy::before(&database);
        let mut subscriber = client(&database);
        for table in ["asked", "formula"] {
            subscriber.subscribe(table, table);
        }
        subscriber.join("realtime:said", &json!({}));
        World { database, sql, proxy, subscriber, next: 0 }
    }

    /// Has questions of all kinds asked while those of one kind fail.
    fn survives(&mut self, kind: &'static str, way: Failure) {
        let what = format!("{kind}, {way:?}");
        self.next += 10;
        let id = self.next;
        // What is known has to be asked anew; also what the claims of a client are worth.
        self.sql
            .batch_execute(&format!(
                "create function f_{id}() returns int language sql as 'select 1'"
            ))
            .unwrap();
        self.proxy.arm(kind, way, FEW);
        self.sql
            .batch_execute(&format!(
                "insert into asked values ({id}, 2), ({id} + 1, 1);
                 insert into formula values ({id}, 'b'), ({id} + 1, 'a');
                 select tide.enqueue('said', '{id}', '{{}}', private => false)"
            ))
            .unwrap();
        if kind == "secrets" {
            self.sql.batch_execute("select tide.rotate_jwt_secret()").unwrap();
        }
        self.newcomer(&what);
        wait_until(&format!("{what}: asked"), || self.proxy.has_fired().then_some(()));
        self.proxy.disarm();
        self.subscriber_has(id, &what);
        wait_until(&format!("{what}: the message is retired"), || {
            let left = self.sql.query_one("select count(*) from tide.outbox", &[]);
            (left.unwrap().get::<_, i64>(0) <= 1).then_some(())
        });
    }

    /// Somebody who is told to try again, if anything, and does so.
    fn newcomer(&self, what: &str) {
        let filter =
            json!({ "event": "*", "schema": "public", "table": "asked", "filter": "n=gt.0" });
        wait_until(&format!("{what}: a newcomer is let in"), || {
            let token = self.database.token_with("authenticated", CLAIMS, "1 hour");
            let mut client = match self.database.try_connect(&format!("apikey={token}&vsn=2.0.0")) {
                Ok(client) => client,
                Err(refusal) => {
                    // A secret that has just been made is not known everywhere at once.
                    assert!(
                        refusal.status == 503 || what.starts_with("secrets"),
                        "{what}: {refusal:?}"
                    );
                    return None;
                }
            };
            let topics = [
                ("realtime:rows", json!({ "postgres_changes": [filter] })),
                ("realtime:private", json!({ "private": true })),
                (
                    "realtime:tide:table:public.formula",
                    json!({ "broadcast": { "filter": "owner=eq.a" } }),
                ),
            ];
            topics
                .iter()
                .all(|(topic, config)| is_let_in(&mut client, topic, config, what))
                .then_some(())
        });
    }

    /// It has been told of the rows, or that it was not.
    fn subscriber_has(&mut self, id: i32, what: &str) {
        let mut missing =
            BTreeSet::from(["asked".to_owned(), "formula".to_owned(), "said".to_owned()]);
        let name = id.to_string();
        while !missing.is_empty() {
            let frame = self.subscriber.wait_for(&format!("{what}: {missing:?}"), |frame| {
                matches!(&*frame.event, "postgres_changes" | "broadcast" | "system")
            });
            let topic = frame.topic.trim_start_matches("realtime:");
            let record = &frame.payload["data"]["record"];
            match &*frame.event {
                "postgres_changes" => {
                    assert_ne!(record["id"], id, "{what}: what is hidden is told");
                    if record["id"] == id + 1 {
                        missing.remove(topic);
                    }
                }
                "broadcast" if frame.payload["event"] == name => {
                    missing.remove(topic);
                }
                "system" if frame.payload["extension"] == "tide.policy" => {
                    // Once for as long as it fails: what can be seen again is told again.
                    missing.remove(topic);
                }
                _ => {}
            }
        }
    }
}

fn client(database: &Database<'_>) -> Client {
    let token = database.token_with("authenticated", CLAIMS, "1 hour");
    database.connect(&format!("apikey={token}&vsn=2.0.0"))
}

/// Whether the join is answered with ok; what else it is answered with is to try again.
fn is_let_in(client: &mut Client, topic: &str, config: &Value, what: &str) -> bool {
    let reply = client.try_join(topic, config);
    if reply["status"] == "ok" {
        return topic != "realtime:rows"
            || client
                .wait_for("the system frame", |frame| {
                    frame.event == "system" && frame.topic == topic
                })
                .payload["status"]
                == "ok";
    }
    let reason = reply["response"]["reason"].as_str().unwrap();
    assert!(reason.contains("try again"), "{what}: {topic}: {reason}");
    false
}

#[test]
fn each_question_may_fail_in_each_way() {
    let cluster = Cluster::start();
    let mut world = World::new(&cluster);
    for kind in [
        "role",
        "tables",
        "changes",
        "cast",
        "evaluate_policy",
        "evaluate_claims",
        "channel",
        "retire",
        "secrets",
    ] {
        for way in WAYS {
            world.survives(kind, way);
        }
    }
}
