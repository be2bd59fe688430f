//! The promise of sync, held against Postgres itself: clients of several roles and claims follow a table with
//! policies, go away and come back, and write; others write by SQL; processes are killed. When all is quiet each
//! client's rows are what SELECT shows it, and each of its mutations has had one effect and one answer.
//!
//! `TIDE_SEED` runs one seed again, `TIDE_CONVERGENCE_SEEDS` so many.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::cluster::signal;
use crate::support::follower::Follower;
use crate::support::{Cluster, DEADLINE, Database};

const STEPS: usize = 60;
/// Documents that there are at first.
const ROWS: u64 = 300;
/// Who follows: a role, and who it is by its token.
const CLIENTS: [(&str, &str); 4] = [
    ("authenticated", "ann"),
    ("authenticated", "bob"),
    ("authenticated", "ann"),
    ("reader", "cy"),
];

struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }
}

#[test]
fn clients_come_to_what_they_would_select() {
    let seeds: Vec<u64> = match std::env::var("TIDE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => {
            let count = std::env::var("TIDE_CONVERGENCE_SEEDS");
            (1..=count.map_or(30, |count| count.parse().unwrap())).collect()
        }
    };
    let cluster = Cluster::with("restart_after_crash = on");
    let database = cluster.database("convergence");
    database
        .sql()
        .batch_execute(
            "create role reader; grant reader to tide_authenticator;
             create function me() returns text language sql stable as
             $$ select current_setting('request.jwt.claims', true)::json ->> 'sub' $$",
        )
        .unwrap();
    for seed in seeds {
        eprintln!("TIDE_SEED={seed}");
        World::new(&database, seed).run();
    }
}

struct World<'a> {
    database: &'a Database<'a>,
    seed: u64,
    random: Random,
    table: String,
    sql: Option<postgres::Client>,
    clients: Vec<Writer<'a>>,
}

/// A client that follows, and writes.
struct Writer<'a> {
    name: String,
    follower: Follower<'a>,
    is_online: bool,
    /// All that it has asked for, by number.
    asked: BTreeMap<u64, Value>,
    answered: BTreeMap<u64, Value>,
    /// What was sent on this connection up to here.
    sent: u64,
    /// The last that was no outcome.
    error: Value,
}

impl<'a> World<'a> {
    fn new(database: &'a Database<'a>, seed: u64) -> World<'a> {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let table = format!("doc_{seed}");
        let identity = random.pick(&["default", "full"]);
        let mut sql = database.sql();
        sql.batch_execute(&format!(
            "create table {table} (id bigint primary key, owner text not null, n int not null, note text);
             create table {table}_log (client text, n bigint);
             alter table {table} replica identity {identity};
             alter table {table} enable row level security;
             create policy seen on {table} for select using (owner = me() or owner = 'all');
             create policy own on {table} to authenticated using (owner = me() or owner = 'all')
                 with check (owner in (me(), 'all') and n >= 0);
             grant select on {table} to reader; grant all on {table}, {table}_log to authenticated;
             insert into {table} select i, (array['ann', 'bob', 'all', 'nobody'])[1 + i % 4], i % 100, 'old'
             from generate_series(1, {ROWS}) as i;
             select tide.publish('{table}', '{table}_log')"
        ))
        .unwrap();
        let clients = (0..).zip(CLIENTS).map(|(number, (role, sub))| {
            let claims = json!({ "sub": sub }).to_string();
            let token = database.token_with(role, &claims, "1 hour");
            let options = json!({ "snapshot": true });
            let mut follower = Follower::with_token(database, token, &table, &options);
            follower.seen_under(&format!(
                "select set_config('request.jwt.claims', '{claims}', false); set role {role}"
            ));
            let name = format!("{seed}/{number}");
            let (asked, answered) = (BTreeMap::new(), BTreeMap::new());
            Writer { name, follower, is_online: true, asked, answered, sent: 0, error: json!(null) }
        });
        let clients = clients.collect();
        World { database, seed, random, table, sql: Some(sql), clients }
    }

    fn run(mut self) {
        for step in 0..STEPS {
            match self.random.below(12) {
                0..=4 => self.write_by_sql(),
                5..=8 => self.ask(),
                9 => self.go_offline(),
                10 => self.come_back(),
                _ if step % 4 == 0 => self.kill(),
                _ => {}
            }
            self.follow();
        }
        self.settle();
    }

    /// Any statement may fail, if somebody is being killed.
    fn write_by_sql(&mut self) {
        let mut statements = String::from("begin;");
        for _ in 0..=self.random.below(3) {
            let (id, n) = (1 + self.random.below(ROWS + 50), self.random.below(100));
            let owner = self.random.pick(&["ann", "bob", "all", "nobody"]);
            let table = &self.table;
            let is_undone = self.random.below(5) == 0;
            statements += if is_undone { "savepoint s;" } else { "" };
            statements += &match self.random.below(6) {
                0 => format!("delete from {table} where id = {id};"),
                1 => format!("update {table} set owner = '{owner}' where id = {id};"),
                2 => format!("update {table} set id = {id} + 1000 where id = {id};"),
                3 => format!("update {table} set note = repeat(md5('{n}'), 100) where id = {id};"),
                4 => format!(
                    "insert into {table} values ({id}, '{owner}', {n}, 'sql') on conflict do nothing;"
                ),
                _ => format!("update {table} set n = {n} where id = {id};"),
            };
            statements += if is_undone { "rollback to s;" } else { "" };
        }
        statements += if self.random.below(8) == 0 { "rollback" } else { "commit" };
        let sql = self
            .sql
            .take()
            .or_else(|| self.database.cluster.try_connect(&self.database.name, "postgres").ok());
        let Some(mut sql) = sql else { return };
        if sql.batch_execute(&statements).is_ok() || sql.batch_execute("rollback").is_ok() {
            self.sql = Some(sql);
        }
    }

    /// One of the clients asks for a mutation, online or not.
    fn ask(&mut self) {
        let (id, n) = (1 + self.random.below(ROWS + 50), self.random.below(110) as i64 - 10);
        let owner = self.random.pick(&["ann", "bob", "all"]);
        let verb = self.random.pick(&["set", "upsert", "delete", "insert"]);
        let which = self.random.below(self.clients.len() as u64) as usize;
        let table = format!("public.{}", self.table);
        let op = match verb {
            "delete" => json!({ "op": verb, "table": table, "key": { "id": id } }),
            "insert" => {
                let values = json!({ "id": id, "owner": owner, "n": n });
                json!({ "op": verb, "table": table, "values": values })
            }
            "upsert" => {
                let values = json!({ "owner": owner, "n": n });
                json!({ "op": verb, "table": table, "key": { "id": id }, "values": values })
            }
            _ => json!({ "op": verb, "table": table, "key": { "id": id }, "values": { "n": n } }),
        };
        let log = format!("{table}_log");
        let client = &mut self.clients[which];
        let number = client.asked.len() as u64 + 1;
        let row = json!({ "client": client.name, "n": number });
        let ops = json!([{ "op": "insert", "table": log, "values": row }, op]);
        client.asked.insert(number, ops);
    }

    fn go_offline(&mut self) {
        let which = self.random.below(self.clients.len() as u64) as usize;
        let client = &mut self.clients[which];
        client.follower.client.send_raw(&[0xff; 16]);
        client.is_online = false;
    }

    fn come_back(&mut self) {
        self.clients.iter_mut().for_each(Writer::come_back);
    }

    fn kill(&mut self) {
        let whom = self.random.pick(&["writer", "worker", "server", "backend"]);
        let pid = match whom {
            "server" => "select server_pid from tide.status()".to_owned(),
            "backend" => {
                "select pid from pg_stat_activity where backend_type = 'pg_tide reader'".into()
            }
            kind => {
                format!("select pid from pg_stat_activity where backend_type = 'pg_tide {kind}'")
            }
        };
        let Ok(mut sql) = self.database.cluster.try_connect(&self.database.name, "postgres") else {
            return;
        };
        let pid = sql.query_opt(&format!("{pid} limit 1"), &[]).ok().flatten();
        let Some(pid) = pid.and_then(|row| row.get::<_, Option<i32>>(0)) else { return };
        if std::path::Path::new(&format!("/proc/{pid}")).exists() {
            signal(if whom == "server" { "KILL" } else { "TERM" }, pid);
        }
    }

    fn follow(&mut self) {
        self.clients.iter_mut().for_each(Writer::follow);
    }

    /// Until all have what they are to have.
    fn settle(mut self) {
        self.database.wait_until_live();
        let seed = self.seed;
        let deadline = Instant::now() + 2 * DEADLINE;
        while let Some(waiting) = self.clients.iter().find(|client| client.is_waiting()) {
            assert!(Instant::now() < deadline, "TIDE_SEED={seed}: {}", waiting.describe());
            self.come_back();
            self.follow();
        }
        for client in &mut self.clients {
            client.follower.equals(
                &self.table,
                "true",
                &format!("{} of TIDE_SEED={seed}", client.name),
            );
        }
        let mut sql = self.database.sql();
        for client in &self.clients {
            let query = format!("select n from {}_log where client = $1 order by n", self.table);
            let rows = sql.query(&query, &[&client.name]).unwrap();
            let done: Vec<u64> = rows.iter().map(|row| row.get::<_, i64>(0) as u64).collect();
            let confirmed =
                client.answered.iter().filter(|(_, said)| said["status"] == "confirmed");
            let confirmed: Vec<u64> = confirmed.map(|(n, _)| *n).collect();
            assert_eq!(done, confirmed, "{}", client.name);
        }
        let table = &self.table;
        sql.batch_execute(&format!("drop table {table}, {table}_log")).unwrap();
    }
}

impl Writer<'_> {
    fn is_waiting(&self) -> bool {
        !self.is_online || self.answered.len() < self.asked.len()
    }

    fn describe(&self) -> String {
        let Writer { name, is_online, asked, answered, sent, error, .. } = self;
        let (asked, answered) = (asked.len(), answered.len());
        format!("{name} (online: {is_online}): {answered} of {asked}, sent {sent}; {error}")
    }

    fn come_back(&mut self) {
        if !self.is_online {
            self.is_online = self.follower.try_reconnect();
            self.sent = self.answered.len() as u64;
        }
    }

    fn follow(&mut self) {
        if !self.is_online {
            return;
        }
        self.send();
        loop {
            match self.follower.try_next() {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => {
                    self.is_online = false;
                    break;
                }
            }
        }
        for answer in std::mem::take(&mut self.follower.answers) {
            self.take(answer);
        }
    }

    fn send(&mut self) {
        for (n, ops) in self.asked.range(self.sent + 1..) {
            let mutation = json!({
                "mutation_id": format!("{}/{n}", self.name), "client_id": self.name, "n": n, "ops": ops,
            });
            let payload =
                json!({ "type": "broadcast", "event": "tide:mutate", "payload": mutation });
            let push = json!([null, n.to_string(), self.follower.topic, "broadcast", payload]);
            self.follower.client.send_text_if_open(&push.to_string());
            self.sent = *n;
        }
    }

    fn take(&mut self, mut answer: Value) {
        let n = answer["n"].as_u64().unwrap();
        // A role that may write nothing is told so, and nothing else.
        let is_refused = answer["code"] == "refused";
        if answer["status"] == "error" && !is_refused {
            self.sent = self.sent.min(n - 1).max(self.answered.len() as u64);
            self.error = answer;
            return;
        }
        for member in ["position", "echo"] {
            answer.as_object_mut().unwrap().remove(member);
        }
        match self.answered.get(&n) {
            Some(before) => assert_eq!(before, &answer, "two answers"),
            None => {
                assert!(is_refused || n == self.answered.len() as u64 + 1, "in order: {answer}");
                self.answered.insert(n, answer);
            }
        }
    }
}
