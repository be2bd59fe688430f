//! A database with the extension, and how to reach it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::client::{Client, Refusal};
use super::cluster::{Cluster, free_port, signal};
use super::{http, wait_until};

/// Background workers of a database, by what they are.
pub const WORKER: &str = "pg_tide worker";
pub const CATALOG_WORKER: &str = "pg_tide catalog worker";
pub const EXECUTOR: &str = "pg_tide executor";

/// Rows of a transaction that takes long enough to be interrupted in its middle.
pub const LARGE: usize = 300_000;

#[derive(Debug)]
pub struct Database<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
    /// Where its listener is.
    pub port: u16,
}

impl<'a> Database<'a> {
    pub(super) fn create(
        cluster: &'a Cluster,
        name: &str,
        settings: &[(&str, &str)],
    ) -> Database<'a> {
        let database = Database::without_extension(cluster, name, settings);
        let mut sql = database.sql();
        sql.batch_execute(
            "create extension pg_tide;
             grant anon, authenticated to tide_authenticator;",
        )
        .unwrap();
        database.wait_until_live();
        database
    }

    /// The same without `CREATE EXTENSION`.
    pub fn without_extension(
        cluster: &'a Cluster,
        name: &str,
        settings: &[(&str, &str)],
    ) -> Database<'a> {
        Database::without_extension_with(cluster, name, "", settings)
    }

    /// The same with options of `CREATE DATABASE`.
    pub fn without_extension_with(
        cluster: &'a Cluster,
        name: &str,
        options: &str,
        settings: &[(&str, &str)],
    ) -> Database<'a> {
        let port = free_port();
        let mut sql = cluster.connect("postgres");
        sql.batch_execute(&format!("create database {name} {options}")).unwrap();
        sql.batch_execute(&format!("alter database {name} set tide.port = {port}")).unwrap();
        for (setting, value) in settings {
            sql.batch_execute(&format!("alter database {name} set {setting} = '{value}'")).unwrap();
        }
        create_roles(&mut sql);
        Database { cluster, name: name.to_owned(), port }
    }

    /// A copy of another database; the extension comes with it.
    pub fn template(cluster: &'a Cluster, name: &str, original: &str) -> Database<'a> {
        let port = free_port();
        let mut sql = cluster.connect("postgres");
        sql.batch_execute(&format!("create database {name} template {original}")).unwrap();
        sql.batch_execute(&format!("alter database {name} set tide.port = {port}")).unwrap();
        cluster.reload();
        Database { cluster, name: name.to_owned(), port }
    }

    /// A superuser's session.
    pub fn sql(&self) -> postgres::Client {
        self.cluster.connect(&self.name)
    }

    /// A name for a table, not used before.
    pub fn fresh_name(&self, stem: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("{stem}_{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a table, publishes it and lets `authenticated` read it. Returns its name.
    pub fn table(&self, stem: &str, columns: &str) -> String {
        let name = self.fresh_name(stem);
        self.sql()
            .batch_execute(&format!(
                "create table {name} ({columns});
                 grant select on {name} to authenticated;
                 select tide.publish('{name}');"
            ))
            .unwrap();
        name
    }

    /// A token of the extension's making.
    pub fn token(&self, role: &str) -> String {
        self.token_with(role, "{}", "1 hour")
    }

    pub fn token_with(&self, role: &str, claims: &str, lifetime: &str) -> String {
        let statement = format!("select tide.token('{role}', '{claims}', interval '{lifetime}')");
        self.sql().query_one(&statement, &[]).unwrap().get(0)
    }

    /// A websocket client with `authenticated`'s token, protocol version 2.
    pub fn client(&self) -> Client {
        self.client_as("authenticated")
    }

    pub fn client_as(&self, role: &str) -> Client {
        let token = self.token(role);
        self.connect(&format!("apikey={token}&vsn=2.0.0"))
    }

    /// A websocket client with any query string.
    pub fn connect(&self, query: &str) -> Client {
        self.try_connect(query).unwrap()
    }

    pub fn try_connect(&self, query: &str) -> Result<Client, Refusal> {
        Client::connect(self.port, &format!("/realtime/v1/websocket?{query}"))
    }

    /// Waits until the listener answers and the stream is live.
    #[track_caller]
    pub fn wait_until_live(&self) {
        wait_until(&format!("{} is live", self.name), || {
            let health = http::try_request(self.port, "GET", "/health", &[]).ok()?;
            (health.status == 200).then_some(())
        });
    }

    /// Waits until all helpers are connected to the server.
    #[track_caller]
    pub fn wait_for_helpers(&self) {
        let are_connected =
            "select catalog_worker and executors = current_setting('tide.executors')::int
                             from tide.status()";
        wait_until(&format!("{} has its helpers", self.name), || {
            self.sql().query_one(are_connected, &[]).unwrap().get::<_, bool>(0).then_some(())
        });
    }

    /// The process that decodes this database's WAL, once there is one.
    pub fn worker(&self) -> i32 {
        wait_until(&format!("{} has a worker", self.name), || self.processes(WORKER).pop())
    }

    /// A file of its worker's own.
    pub fn own_file(&self, what: &str) -> PathBuf {
        let oid = "select oid from pg_database where datname = current_database()";
        let oid: u32 = self.sql().query_one(oid, &[]).unwrap().get(0);
        self.cluster.data().join(format!("pg_stat_tmp/pg_tide.{oid}.{what}"))
    }

    /// The socket that SQL functions and helpers connect to, which is nobody's from now on.
    pub fn vacant_socket(&self) -> PathBuf {
        // Those that are not connected would come to whoever takes it.
        self.wait_for_helpers();
        let path = self.own_file("sock");
        std::fs::remove_file(&path).unwrap();
        path
    }

    /// The release of Postgres: 150000 and more for 15.
    pub fn server_version(&self) -> i32 {
        let version = "select current_setting('server_version_num')::int";
        self.sql().query_one(version, &[]).unwrap().get(0)
    }

    /// This database's background workers whose type begins so.
    pub fn processes(&self, backend_type: &str) -> Vec<i32> {
        let mut sql = self.cluster.connect("postgres");
        sql.query(
            "select pid from pg_stat_activity
             where datname = $1 and backend_type like $2 || '%' order by backend_start",
            &[&self.name, &backend_type],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
    }

    /// Publishes a new table, subscribes to it, and sees a row arrive.
    #[track_caller]
    pub fn delivers(&self) {
        let t = self.table("delivered", "id int primary key");
        let mut client = self.client();
        client.subscribe("room", &t);
        self.sql().batch_execute(&format!("insert into {t} values (1)")).unwrap();
        assert_eq!(client.change()["record"]["id"], 1);
    }

    /// Has a transaction of [`LARGE`] rows begin to arrive at the client that is returned, which has
    /// read the first of them.
    pub fn in_the_middle_of_a_large_transaction(&self) -> Client {
        let t = self.table("large", "id int primary key, pad text");
        let mut client = self.client();
        client.subscribe("room", &t);
        let rows = format!("select g, repeat('x', 200) from generate_series(1, {LARGE}) g");
        self.sql().batch_execute(&format!("insert into {t} {rows}")).unwrap();
        client.change();
        client
    }

    /// Waits until none of the extension's processes serves the database any more.
    #[track_caller]
    pub fn wait_until_gone(&self) {
        wait_until("no process is left", || self.processes("pg_tide").is_empty().then_some(()));
    }

    /// Terminates the worker and waits until another one is live.
    pub fn restart_worker(&self) {
        let before = self.restart_worker_without_waiting();
        self.wait_for_another_worker(before);
    }

    /// Terminates the worker, whose pid is returned.
    pub fn restart_worker_without_waiting(&self) -> i32 {
        let before = self.worker();
        signal("TERM", before);
        before
    }

    /// Waits until a worker other than the one with this pid is live.
    #[track_caller]
    pub fn wait_for_another_worker(&self, before: i32) {
        wait_until(&format!("{} has another worker", self.name), || {
            self.processes(WORKER).into_iter().find(|pid| *pid != before)
        });
        self.wait_until_live();
    }

    /// Drops the worker's slot, and does this in the same transaction: what it inserts is there as
    /// soon as the slot is not. The worker may make another at any moment.
    #[track_caller]
    pub fn lose_slot(&self, statement: &str) {
        let slot = self.slot("slot_name").unwrap();
        let mut sql = self.sql();
        let lose = format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots
             where slot_name = '{slot}';
             select pg_drop_replication_slot('{slot}'); {statement}"
        );
        // Until the worker has let go of it.
        wait_until("the slot is dropped", || sql.batch_execute(&lose).ok());
    }

    /// A slot's column as text: that of this database's worker.
    pub fn slot(&self, column: &str) -> Option<String> {
        let statement = format!(
            "select {column}::text from pg_replication_slots
             where database = '{}' and plugin = 'pg_tide' order by slot_name limit 1",
            self.name
        );
        self.cluster.connect("postgres").query_opt(&statement, &[]).unwrap()?.get(0)
    }

    /// One JSON value from SQL.
    pub fn json(&self, statement: &str) -> Value {
        let text: String = self.sql().query_one(statement, &[]).unwrap().get(0);
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Database<'_> {
    /// Makes room for other tests' databases: a cluster has so many workers, slots and places.
    fn drop(&mut self) {
        if self.cluster.is_shared() && !std::thread::panicking() {
            let mut sql = self.cluster.connect("postgres");
            let name = &self.name;
            sql.batch_execute(&format!("drop database if exists \"{name}\" with (force)")).unwrap();
        }
    }
}

/// The roles that clients come as; they are the cluster's, so another test may have made them.
fn create_roles(sql: &mut postgres::Client) {
    for role in ["anon", "authenticated"] {
        sql.batch_execute(&format!(
            "do $$ begin
                 create role {role} nologin;
             exception when duplicate_object or unique_violation then null;
             end $$"
        ))
        .unwrap();
    }
}
