//! One seed: tables, policies and subscribers; transactions and what they must bring; in between
//! new rules.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::dice::Dice;
use super::outcome::{Access, Change, Outcome, Received, Row};
use super::policy::{Place, Policy};
use super::stage::{self, Stage, VIEWERS};
use super::table::{self, Identity, NAMES};
use crate::support::DEADLINE;
use crate::support::client::{Client, Frame};

/// Ids are few, so that rows meet.
const IDS: i64 = 12;

/// A value of this length is stored outside of the row; see [`table::value`].
const TOASTED: usize = 2_000;

pub struct Play<'s, 'a> {
    seed: u64,
    dice: Dice,
    stage: &'s mut Stage<'a>,
    schema: String,
    tables: Vec<Table>,
    viewers: Vec<Viewer>,
    /// How many transactions have told their end.
    told: i64,
    next_k: i64,
    /// Other frames that subscribers got.
    remarks: Vec<String>,
    /// All that was done, for who has to find out why it went wrong.
    script: Vec<String>,
}

struct Table {
    name: String,
    identity: Identity,
    policies: Vec<Policy>,
}

struct Viewer {
    claims: Value,
    /// One of `postgres_changes`, one of `tide:table:`.
    topics: [String; 2],
}

/// All rows, and what each subscriber may see of them, by table and id.
#[derive(Clone)]
struct Snapshot {
    rows: Vec<BTreeMap<i64, Row>>,
    /// By subscriber.
    seen: Vec<Vec<BTreeMap<i64, Row>>>,
}

/// A transaction in the making.
struct Transaction {
    access: Vec<Vec<Access>>,
    now: Snapshot,
    /// The changes of each statement, which may come in any order.
    statements: Vec<Vec<Change>>,
}

impl Drop for Play<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.story());
        }
    }
}

impl<'s, 'a> Play<'s, 'a> {
    pub fn new(stage: &'s mut Stage<'a>, seed: u64) -> Play<'s, 'a> {
        Play {
            seed,
            dice: Dice::new(seed),
            stage,
            schema: format!("s{seed}"),
            tables: Vec::new(),
            viewers: Vec::new(),
            told: 0,
            next_k: 0,
            remarks: Vec::new(),
            script: Vec::new(),
        }
    }

    /// The first thing that went otherwise than Postgres says.
    pub fn run(mut self) -> Result<(), String> {
        self.set_up();
        for viewer in 0..VIEWERS {
            self.subscribe(viewer);
        }
        for _ in 0..self.dice.between(3, 6) {
            self.transact()?;
            if self.dice.percent(60) {
                self.change_the_rules();
            }
        }
        for viewer in 0..VIEWERS {
            for topic in self.viewers[viewer].topics.clone() {
                self.stage.connections[viewer].call(&topic, "phx_leave", &json!({}));
            }
        }
        self.act(format!("drop schema {} cascade", self.schema));
        Ok(())
    }

    fn set_up(&mut self) {
        let s = self.schema.clone();
        let prefix = self.stage.prefix.clone();
        self.act(format!(
            "grant {prefix}_group to {prefix}_member;
             revoke {prefix}_group from {prefix}_plain;
             create schema {s};
             grant usage on schema {s} to public;
             create table {s}.sentinel (n bigint primary key);
             grant select on {s}.sentinel to public;
             create table {s}.members (tenant int, person uuid);
             grant select on {s}.members to public;
             create function {s}.is_mine(n int) returns boolean language sql stable as
                 $$ select n = (auth.jwt() ->> 'tenant')::int $$;
             create function {s}.may_see(o uuid, f boolean) returns boolean language plpgsql stable as
                 $$ begin return f or o = auth.uid(); end $$;
             create function {s}.knows(n int) returns boolean language sql stable security definer as
                 $$ select exists (select from {s}.members where tenant = n and person = auth.uid()) $$"
        ));
        for _ in 0..self.dice.below(5) {
            self.add_member();
        }
        if self.dice.percent(30) {
            self.act(format!(
                "alter table {s}.members enable row level security;
                 create policy own on {s}.members using (person = auth.uid())"
            ));
        }
        for number in 1..=self.dice.between(1, 3) {
            self.add_table(format!("t{number}"));
        }
        let published: Vec<String> =
            self.tables.iter().map(|table| format!("'{s}.{}'", table.name)).collect();
        self.act(format!("select tide.publish('{s}.sentinel', {})", published.join(", ")));
        for viewer in 0..VIEWERS {
            // Some come twice, as two tabs of one person do.
            let claims = match viewer {
                1.. if self.dice.percent(15) => self.viewers[viewer - 1].claims.clone(),
                _ => stage::claims(&mut self.dice, &prefix),
            };
            let topics = [format!("realtime:room{viewer}"), format!("realtime:tide:table:{s}.*")];
            self.viewers.push(Viewer { claims, topics });
        }
    }

    fn add_table(&mut self, name: String) {
        let s = self.schema.clone();
        let create = table::create(&mut self.dice, &s, &name);
        self.act(create);
        let owner = self.dice.percent(50).then(|| format!("{}_owner", self.stage.prefix));
        if let Some(owner) = owner {
            self.act(format!("alter table {s}.{name} owner to {owner}"));
        }
        let identity = Identity::any(&mut self.dice);
        self.act(identity.sql(&s, &name));
        if self.dice.percent(90) {
            self.act(format!("alter table {s}.{name} enable row level security"));
        }
        if self.dice.percent(30) {
            self.act(format!("alter table {s}.{name} force row level security"));
        }
        self.tables.push(Table { name, identity, policies: Vec::new() });
        let table = self.tables.len() - 1;
        for role in ["plain", "member", "stranger", "owner", "heir", "bypass"] {
            self.grant(table, role);
        }
        for number in 0..self.dice.below(4) {
            self.add_policy(table, number);
        }
    }

    /// The whole table, or some of its columns, or nothing; the keys are among them.
    fn grant(&mut self, table: usize, role: &str) {
        let target = self.target(table);
        let role = format!("{}_{role}", self.stage.prefix);
        self.act(format!("revoke all on {target} from {role}"));
        match self.dice.below(10) {
            0..6 => self.act(format!("grant select on {target} to {role}")),
            6..9 => {
                let mut columns = vec!["id", "k"];
                columns.extend(table::payload_columns().filter(|_| self.dice.percent(60)));
                self.act(format!("grant select ({}) on {target} to {role}", columns.join(", ")));
            }
            _ => {}
        }
    }

    fn add_policy(&mut self, table: usize, number: usize) {
        let name = format!("p{number}");
        let policies = &self.tables[table].policies;
        if policies.iter().any(|policy| policy.name == name) {
            return;
        }
        let (schema, prefix, within) =
            (self.schema.clone(), self.stage.prefix.clone(), self.tables[table].name.clone());
        let place = Place { schema: &schema, table: &within, prefix: &prefix };
        let policy = Policy::any(&mut self.dice, &name, &place);
        self.act(policy.sql.clone());
        self.tables[table].policies.push(policy);
    }

    fn add_member(&mut self) {
        let (tenant, person) = (self.dice.between(1, 3), *self.dice.pick(&table::USERS));
        self.act(format!("insert into {}.members values ({tenant}, '{person}')", self.schema));
    }

    fn subscribe(&mut self, viewer: usize) {
        let token = stage::sign(&self.viewers[viewer].claims);
        let bindings = self.bindings(viewer);
        let configs = [json!({ "postgres_changes": bindings }), json!({})];
        for (topic, config) in self.viewers[viewer].topics.clone().iter().zip(configs) {
            let connection = &mut self.stage.connections[viewer];
            let join = json!({ "config": config, "access_token": token });
            let reply = connection.call(topic, "phx_join", &join);
            assert_eq!(reply["status"], "ok", "{reply}");
            if topic.starts_with("realtime:room") {
                let subscribed = connection.wait_for("the system frame", |frame| {
                    frame.event == "system" && frame.payload["extension"] == "postgres_changes"
                });
                assert_eq!(subscribed.payload["status"], "ok", "{}", subscribed.text);
            }
        }
    }

    /// Each table by name, or all of them; who may not read a table cannot name it.
    fn bindings(&mut self, viewer: usize) -> Value {
        let s = self.schema.clone();
        let access = self.survey().swap_remove(viewer);
        if self.dice.percent(50) || access.iter().any(|access| access.readable.is_empty()) {
            return json!([{ "event": "*", "schema": s }]);
        }
        let names = self.tables.iter().map(|table| table.name.as_str());
        names
            .chain(["sentinel"])
            .map(|name| json!({ "event": "*", "schema": s, "table": name }))
            .collect()
    }

    fn change_the_rules(&mut self) {
        let table = self.dice.below(self.tables.len());
        let (s, target) = (self.schema.clone(), self.target(table));
        let prefix = self.stage.prefix.clone();
        let number = self.dice.below(4);
        let count = self.tables[table].policies.len();
        match self.dice.below(13) {
            0..3 => {
                let role = *self
                    .dice
                    .pick(&["plain", "plain", "member", "stranger", "owner", "heir", "bypass"]);
                self.grant(table, role);
            }
            3 | 4 => self.add_policy(table, number),
            5 if count > 0 => {
                let gone = self.tables[table].policies.remove(number % count);
                self.act(format!("drop policy {} on {target}", gone.name));
            }
            6 if count > 0 => {
                let within = self.tables[table].name.clone();
                let place = Place { schema: &s, table: &within, prefix: &prefix };
                let alter =
                    self.tables[table].policies[number % count].alter(&mut self.dice, &place);
                self.act(alter);
            }
            7 => {
                let what = *self.dice.pick(&["enable", "disable", "force", "no force"]);
                self.act(format!("alter table {target} {what} row level security"));
            }
            8 => {
                let identity = Identity::any(&mut self.dice);
                self.act(identity.sql(&s, &self.tables[table].name));
                self.tables[table].identity = identity;
            }
            9 => self.add_member(),
            10 => {
                let tenant = self.dice.between(1, 3);
                self.act(format!("delete from {s}.members where tenant = {tenant}"));
            }
            11 => {
                let body = *self.dice.pick(&["n = 1", "n is not null", "false"]);
                self.act(format!(
                    "create or replace function {s}.is_mine(n int) returns boolean
                     language sql stable as $$ select {body} $$"
                ));
            }
            _ => {
                let what = if self.dice.percent(50) { ("grant", "to") } else { ("revoke", "from") };
                let role = *self.dice.pick(&["plain", "member"]);
                self.act(format!("{} {prefix}_group {} {prefix}_{role}", what.0, what.1));
            }
        }
    }

    /// A transaction, and the comparison of what it brought with what Postgres says.
    fn transact(&mut self) -> Result<(), String> {
        let access = self.survey();
        self.act("begin".to_owned());
        let now = self.look(&access);
        let before = now.clone();
        let mut transaction = Transaction { access, now, statements: Vec::new() };
        for _ in 0..self.dice.between(1, 5) {
            if self.dice.percent(80) {
                self.change(&mut transaction);
            } else {
                self.change_in_a_subtransaction(&mut transaction);
            }
        }
        if self.dice.percent(10) {
            self.act("rollback".to_owned());
            return Ok(());
        }
        self.told += 1;
        self.act(format!("insert into {}.sentinel values ({})", self.schema, self.told));
        self.act("commit".to_owned());
        for viewer in 0..VIEWERS {
            let [changes, broadcasts] = self.receive(viewer);
            self.compare(viewer, &transaction, &before, &changes)?;
            self.compare(viewer, &transaction, &before, &broadcasts)?;
        }
        Ok(())
    }

    fn change_in_a_subtransaction(&mut self, transaction: &mut Transaction) {
        let (now, count) = (transaction.now.clone(), transaction.statements.len());
        self.act("savepoint s".to_owned());
        for _ in 0..self.dice.between(1, 2) {
            self.change(transaction);
        }
        if self.dice.percent(50) {
            self.act("rollback to s".to_owned());
            transaction.now = now;
            transaction.statements.truncate(count);
        } else {
            self.act("release s".to_owned());
        }
    }

    /// One statement, and a look at what everyone sees after it.
    fn change(&mut self, transaction: &mut Transaction) {
        let table = self.dice.below(self.tables.len());
        let ids: Vec<i64> = transaction.now.rows[table].keys().copied().collect();
        let free: Vec<i64> = (1..=IDS).filter(|id| !ids.contains(id)).collect();
        let some = |dice: &mut Dice, from: &[i64], most: usize| {
            let mut some = from.to_vec();
            dice.shuffle(&mut some);
            some.truncate(dice.between(1, most));
            some
        };
        // Of each row its id before and after; and the columns that are set.
        let (moves, set) = match self.dice.below(10) {
            kind if free.len() as i64 == IDS || (kind < 3 && !free.is_empty()) => {
                let ids = some(&mut self.dice, &free, 3);
                self.insert(table, &ids);
                (ids.iter().map(|id| (None, Some(*id))).collect(), Vec::new())
            }
            3 | 4 => {
                let ids = some(&mut self.dice, &ids, 2);
                self.act(format!(
                    "delete from {} where id in ({})",
                    self.target(table),
                    list(&ids)
                ));
                (ids.iter().map(|id| (Some(*id), None)).collect(), Vec::new())
            }
            5 if !free.is_empty() => {
                let (id, new) = (*self.dice.pick(&ids), *self.dice.pick(&free));
                let set = self.update(table, &[id], Some(new));
                (vec![(Some(id), Some(new))], set)
            }
            _ => {
                let ids = some(&mut self.dice, &ids, 3);
                let set = self.update(table, &ids, None);
                (ids.iter().map(|id| (Some(*id), Some(*id))).collect::<Vec<_>>(), set)
            }
        };
        let next = self.look(&transaction.access);
        let changes = moves
            .iter()
            .map(|(from, to)| self.describe(table, *from, *to, &set, &transaction.now, &next))
            .collect();
        transaction.statements.push(changes);
        transaction.now = next;
    }

    fn insert(&mut self, table: usize, ids: &[i64]) {
        let rows: Vec<String> = ids
            .iter()
            .map(|id| {
                let mut values = vec![id.to_string(), self.k()];
                values.extend(
                    table::payload_columns().map(|name| table::value(&mut self.dice, name)),
                );
                format!("({})", values.join(", "))
            })
            .collect();
        let (target, rows) = (self.target(table), rows.join(", "));
        self.act(format!("insert into {target} ({}) values {rows}", NAMES.join(", ")));
    }

    /// Sets some columns, which are returned.
    fn update(&mut self, table: usize, ids: &[i64], new: Option<i64>) -> Vec<&'static str> {
        let mut columns: Vec<&str> = table::payload_columns().collect();
        self.dice.shuffle(&mut columns);
        columns.truncate(self.dice.between(1, 4));
        let mut set: Vec<String> = columns
            .iter()
            .map(|name| format!("{name} = {}", table::value(&mut self.dice, name)))
            .collect();
        if let Some(new) = new {
            set.push(format!("id = {new}"));
            columns.push("id");
        }
        if ids.len() == 1 && self.dice.percent(20) {
            set.push(format!("k = {}", self.k()));
            columns.push("k");
        }
        let (target, set) = (self.target(table), set.join(", "));
        self.act(format!("update {target} set {set} where id in ({})", list(ids)));
        columns
    }

    fn k(&mut self) -> String {
        self.next_k += 1;
        self.next_k.to_string()
    }

    fn describe(
        &self,
        table: usize,
        from: Option<i64>,
        to: Option<i64>,
        set: &[&'static str],
        before: &Snapshot,
        after: &Snapshot,
    ) -> Change {
        let identity = self.tables[table].identity;
        let old = from.map(|id| before.rows[table][&id].clone());
        let new = to.map(|id| after.rows[table][&id].clone());
        let old_known = match (identity, &old, &new) {
            (_, None, _) => vec![],
            (Identity::Full, ..) => NAMES.to_vec(),
            (_, _, Some(_)) if !set.contains(&identity.column()) => vec![],
            _ => vec![identity.column()],
        };
        let left_alone = |name: &str| {
            let value = old.as_ref().and_then(|old| old[name].as_str());
            !set.contains(&name) && value.is_some_and(|value| value.len() > TOASTED)
        };
        let unchanged = |name: &str| identity != Identity::Full && left_alone(name);
        let new_known = NAMES.into_iter().filter(|name| !unchanged(name)).collect();
        let sees = |snapshot: &Snapshot, id: Option<i64>| {
            let seen = |viewer: &Vec<BTreeMap<i64, Row>>| {
                id.is_some_and(|id| viewer[table].contains_key(&id))
            };
            snapshot.seen.iter().map(seen).collect()
        };
        let (before, after) = (sees(before, from), sees(after, to));
        Change { table, identity, old, new, old_known, new_known, before, after }
    }

    /// What Postgres says of each table to each subscriber.
    fn survey(&mut self) -> Vec<Vec<Access>> {
        let mut statements = "begin;".to_owned();
        for viewer in 0..VIEWERS {
            statements.push_str(&self.assume(viewer));
            statements.push_str(&format!(
                "select row_security_active(c.oid),
                        coalesce((select json_agg(p.polname) from pg_policy p
                                  where p.polrelid = c.oid and p.polcmd in ('r', '*')
                                    and (p.polroles = '{{0}}' or exists (
                                         select from unnest(p.polroles) r where pg_has_role(r, 'usage')))),
                                 '[]'),
                        coalesce((select json_agg(a.attname) from pg_attribute a
                                  where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                                    and has_column_privilege(c.oid, a.attnum, 'select')),
                                 '[]')
                 from pg_class c
                 where c.relnamespace = '{}'::regnamespace and c.relname ~ '^t[0-9]$'
                 order by c.relname;
                 reset role;",
                self.schema
            ));
        }
        statements.push_str("commit");
        let rows = self.stage.rows(&statements);
        let access: Vec<Access> = rows
            .iter()
            .filter(|row| row.len() == 3)
            .enumerate()
            .map(|(index, row)| Access {
                row_security: row[0] == "t",
                policies: serde_json::from_str(&row[1]).unwrap(),
                readable: serde_json::from_str(&row[2]).unwrap(),
                claims: self.viewers[index / self.tables.len()].claims.clone(),
            })
            .collect();
        assert_eq!(access.len(), VIEWERS * self.tables.len());
        access.chunks(self.tables.len()).map(<[Access]>::to_vec).collect()
    }

    /// Selects everything, and again as each subscriber; in the open transaction.
    fn look(&mut self, access: &[Vec<Access>]) -> Snapshot {
        let mut statements = String::new();
        for (number, table) in self.tables.iter().enumerate() {
            let s = &self.schema;
            statements.push_str(&format!(
                "select -1, {number}, x.id, to_jsonb(x) from {s}.{} x;",
                table.name
            ));
        }
        for (viewer, access) in access.iter().enumerate() {
            statements.push_str(&self.assume(viewer));
            for (number, (table, access)) in self.tables.iter().zip(access).enumerate() {
                if !access.readable.is_empty() {
                    statements.push_str(&format!(
                        "select {viewer}, {number}, x.id, to_jsonb(x)
                         from (select {} from {}.{}) x;",
                        access.readable.join(", "),
                        self.schema,
                        table.name
                    ));
                }
            }
            statements.push_str("reset role;");
        }
        let rows = self.stage.rows(&statements);
        let none = vec![BTreeMap::new(); self.tables.len()];
        let mut snapshot = Snapshot { rows: none.clone(), seen: vec![none; VIEWERS] };
        for row in rows.iter().filter(|row| row.len() == 4) {
            let table: usize = row[1].parse().unwrap();
            let tables = match row[0].parse::<usize>() {
                Ok(viewer) => &mut snapshot.seen[viewer],
                Err(_) => &mut snapshot.rows,
            };
            tables[table].insert(row[2].parse().unwrap(), serde_json::from_str(&row[3]).unwrap());
        }
        snapshot
    }

    /// SQL that takes on a subscriber's role and claims, until the end of the transaction.
    fn assume(&self, viewer: usize) -> String {
        let claims = &self.viewers[viewer].claims;
        format!(
            "set local role {}; select set_config('request.jwt.claims', $claims${claims}$claims$, true);",
            claims["role"].as_str().unwrap()
        )
    }

    /// What came on each of a subscriber's topics, up to the end of the transaction.
    fn receive(&mut self, viewer: usize) -> [Vec<Received>; 2] {
        let topics = self.viewers[viewer].topics.clone();
        let told = self.told;
        let mut received = [Vec::new(), Vec::new()];
        let mut complete = [false; 2];
        while complete != [true; 2] {
            let frame = next(&mut self.stage.connections[viewer]);
            let Some(index) = topics.iter().position(|topic| *topic == frame.topic) else {
                continue;
            };
            match received_from(&frame) {
                Some(change) if change.table == "sentinel" => {
                    assert_eq!(change.record["n"], told, "an end is missing: {}", frame.text);
                    complete[index] = true;
                }
                Some(change) => {
                    assert!(
                        !complete[index],
                        "a change after its transaction's end: {}",
                        frame.text
                    );
                    received[index].push(change);
                }
                None => self.remarks.push(frame.text),
            }
        }
        received
    }

    fn compare(
        &self,
        viewer: usize,
        transaction: &Transaction,
        before: &Snapshot,
        received: &[Received],
    ) -> Result<(), String> {
        let fault = match self.match_outcomes(viewer, transaction, received) {
            Ok(()) => self.net_effect(viewer, transaction, before, received),
            fault => fault,
        };
        fault.map_err(|fault| {
            let got: String = received.iter().map(|change| format!("\n  {change:?}")).collect();
            format!(
                "{}\nsubscriber {viewer} with {}:\n{fault}\ngot:{got}\ntold: {:#?}",
                self.story(),
                self.viewers[viewer].claims,
                self.remarks
            )
        })
    }

    /// Change by change: that each of them has one of its outcomes, and nothing else came.
    fn match_outcomes(
        &self,
        viewer: usize,
        transaction: &Transaction,
        received: &[Received],
    ) -> Result<(), String> {
        let mut received = received.iter().peekable();
        for statement in &transaction.statements {
            let mut due: Vec<(&Change, Vec<Outcome>)> = statement
                .iter()
                .map(|change| {
                    let access = &transaction.access[viewer][change.table];
                    let policies = &self.tables[change.table].policies;
                    (change, access.outcomes(change, policies, viewer))
                })
                .collect();
            while let Some(next) = received.peek() {
                let fits = |(change, outcomes): &(&Change, Vec<Outcome>)| {
                    let readable = &transaction.access[viewer][change.table].readable;
                    next.table == self.tables[change.table].name
                        && outcomes.iter().any(|outcome| next.is(*outcome, change, readable))
                };
                let Some(index) = due.iter().position(fits) else { break };
                due.remove(index);
                received.next();
            }
            for (change, outcomes) in due {
                if !outcomes.contains(&Outcome::Nothing) {
                    let next = received.peek();
                    return Err(format!(
                        "{outcomes:?} of this is missing, next is {next:?}: {change:?}"
                    ));
                }
            }
        }
        match received.next() {
            Some(surplus) => Err(format!("this should not have come: {surplus:?}")),
            None => Ok(()),
        }
    }

    /// Where the whole old image is known: what the subscriber saw, with the changes applied, is
    /// what it sees now.
    fn net_effect(
        &self,
        viewer: usize,
        transaction: &Transaction,
        before: &Snapshot,
        received: &[Received],
    ) -> Result<(), String> {
        let whole = |table: &&Table| table.identity == Identity::Full;
        for (number, table) in self.tables.iter().enumerate().filter(|(_, table)| whole(table)) {
            let mut rows = before.seen[viewer][number].clone();
            for change in received.iter().filter(|change| change.table == table.name) {
                if let Some(id) = change.old_record.get("id").and_then(Value::as_i64)
                    && rows.remove(&id).is_none()
                {
                    return Err(format!("{} {id} was not there", change.operation));
                }
                if let Some(id) = change.record.get("id").and_then(Value::as_i64)
                    && rows.insert(id, change.record.clone()).is_some()
                {
                    return Err(format!("{} {id} was there already", change.operation));
                }
            }
            let now = &transaction.now.seen[viewer][number];
            if rows != *now {
                return Err(format!(
                    "of {} it now has {rows:?}\nbut a SELECT gives {now:?}",
                    table.name
                ));
            }
        }
        Ok(())
    }

    fn target(&self, table: usize) -> String {
        format!("{}.{}", self.schema, self.tables[table].name)
    }

    /// Executes statements, and writes them down.
    #[track_caller]
    fn act(&mut self, statements: String) {
        let result = self.stage.sql.batch_execute(&statements);
        self.script.push(statements);
        if let Err(error) = result {
            panic!("{error:?}");
        }
    }

    fn story(&self) -> String {
        format!(
            "seed {} (TIDE_SEED={} plays it again), in which this was done:\n{};",
            self.seed,
            self.seed,
            self.script.join(";\n")
        )
    }
}

fn next(connection: &mut Client) -> Frame {
    if let Some(frame) = connection.pop_passed() {
        return frame;
    }
    connection.read(DEADLINE).expect("the connection is open").expect("the end of the transaction")
}

/// The change in a frame of either form.
fn received_from(frame: &Frame) -> Option<Received> {
    let row = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let names = |value: &Value| -> Vec<String> {
        let names = value.as_array().into_iter().flatten();
        names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let (body, operation, unchanged, columns) = match frame.event.as_str() {
        "postgres_changes" => {
            let data = &frame.payload["data"];
            assert_eq!(data["errors"], Value::Null, "{}", frame.text);
            let columns = data["columns"].as_array().into_iter().flatten();
            let columns = columns.map(|column| column["name"].clone()).collect();
            (data, &data["type"], None, Some(names(&columns)))
        }
        "broadcast" => {
            let payload = &frame.payload["payload"];
            let unchanged = names(&frame.payload["meta"]["unchanged"]);
            assert_eq!(frame.payload["event"], payload["operation"], "{}", frame.text);
            (payload, &payload["operation"], Some(unchanged), None)
        }
        _ => return None,
    };
    Some(Received {
        table: body["table"].as_str().unwrap().to_owned(),
        operation: operation.as_str().unwrap().to_owned(),
        record: row(&body["record"]),
        old_record: row(&body["old_record"]),
        unchanged,
        columns,
    })
}

fn list(ids: &[i64]) -> String {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    ids.join(", ")
}
