//! The servers that are measured, and how a client gets a table's changes out of each.

use std::process::{Child, Stdio};

use super::pgoutput::{Pgoutput, Wal2json};
use super::process;
use super::reader::Reader;
use super::session::Session;
use super::support::cluster::as_owner;
use super::support::{Cluster, Database, wait_until};
use super::websocket::{self, Topic};

/// The same for every server, whoever is measured on it.
const SETTINGS: &str = "
shared_buffers = 256MB
max_wal_size = 16GB
checkpoint_timeout = 1h
wal_sender_timeout = 0
timezone = 'UTC'
tide.max_connections = 20000
tide.idle_timeout = '1h'
";

/// What a server has beside Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    None,
    Tide,
}

/// Whether a commit waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    Fsync,
    PageCache,
}

pub fn start(extension: Extension, durability: Durability) -> Cluster {
    let cluster = Cluster::stopped();
    cluster.configure(SETTINGS);
    if extension == Extension::None {
        cluster.configure("shared_preload_libraries = ''");
    }
    if durability == Durability::Fsync {
        cluster.configure("fsync = on\nfull_page_writes = on");
    }
    let conf = std::fs::read_to_string(cluster.data().join("postgresql.conf")).unwrap();
    if conf.contains("\noutput_plugin_libraries") {
        cluster.configure("output_plugin_libraries = 'pgoutput, test_decoding, wal2json, pg_tide'");
    }
    cluster.resume();
    cluster
}

pub fn database(cluster: &Cluster, extension: Extension) -> Database<'_> {
    match extension {
        Extension::None => Database::without_extension(cluster, "bench", &[]),
        Extension::Tide => cluster.database("bench"),
    }
}

/// Makes a table and has it published by what the server has.
pub fn publish(database: &Database<'_>, extension: Extension, table: &str, columns: &str) {
    let publish = match extension {
        Extension::None => format!(
            "do $$ begin
                 create publication bench;
             exception when duplicate_object then null;
             end $$;
             alter publication bench add table {table}"
        ),
        Extension::Tide => {
            format!("grant select on {table} to authenticated; select tide.publish('{table}')")
        }
    };
    let create = format!("create table if not exists {table} ({columns})");
    database.sql().batch_execute(&format!("{create}; {publish}")).unwrap();
}

/// How the changes get to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Tide(Topic),
    /// `pg_recvlogical` with pgoutput, its output read through a pipe.
    Pgoutput,
    /// The same with wal2json.
    Wal2json,
    /// pgoutput from the walsender's own socket.
    Walsender,
    /// NOTIFY, which the writer has to send.
    Notify,
}

impl Way {
    pub fn extension(self) -> Extension {
        match self {
            Way::Tide(_) => Extension::Tide,
            _ => Extension::None,
        }
    }
}

/// A client that gets changes.
pub struct Attached<'a> {
    pub reader: Reader,
    /// The server's process that works for it.
    pub server: i32,
    /// What runs on the client's side.
    pub clients: Vec<i32>,
    child: Option<Child>,
    slot: Option<&'a Database<'a>>,
}

pub const SLOT: &str = "bench";
pub const CHANNEL: &str = "bench";

impl<'a> Attached<'a> {
    pub fn new(way: Way, database: &'a Database<'a>, table: &str) -> Attached<'a> {
        let clients = vec![process::this()];
        match way {
            Way::Tide(topic) => Attached {
                reader: websocket::reader(database, topic, table),
                server: database.worker(),
                clients,
                child: None,
                slot: None,
            },
            Way::Notify => {
                let session = Session::connect(database, false);
                let server = session.pid;
                let reader = session.listen(CHANNEL);
                Attached { reader, server, clients, child: None, slot: None }
            }
            Way::Walsender => {
                create_slot(database, "pgoutput");
                let session = Session::connect(database, true);
                let server = session.pid;
                let reader = session.stream(SLOT, "bench");
                Attached { reader, server, clients, child: None, slot: Some(database) }
            }
            Way::Pgoutput => Attached::recvlogical(
                database,
                "pgoutput",
                &["proto_version=1", "publication_names=bench"],
                |output| Reader::new(output, Pgoutput),
            ),
            Way::Wal2json => {
                let tables = format!("add-tables=public.{table}");
                let options = ["format-version=2", "include-transaction=false", &tables];
                Attached::recvlogical(
                    database,
                    "wal2json",
                    if table == "*" { &options[..2] } else { &options },
                    |output| Reader::new(output, Wal2json),
                )
            }
        }
    }

    fn recvlogical(
        database: &'a Database<'a>,
        plugin: &str,
        options: &[&str],
        reader: impl FnOnce(std::process::ChildStdout) -> Reader,
    ) -> Attached<'a> {
        create_slot(database, plugin);
        let mut command = as_owner("pg_recvlogical");
        command.arg("--host").arg(database.cluster.host()).args(["--username", "postgres"]);
        command.args(["--dbname", &database.name, "--slot", SLOT, "--start", "--no-loop"]);
        command.args(["--file", "-", "--fsync-interval", "0"]);
        for option in options {
            command.args(["--option", option]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let reader = reader(child.stdout.take().unwrap());
        Attached {
            reader,
            server: wait_until("pg_recvlogical is connected", || active(database)),
            clients: vec![process::this(), child.id() as i32],
            child: Some(child),
            slot: Some(database),
        }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        if let Some(database) = self.slot {
            let mut sql = database.sql();
            // A client that is gone is noticed when something is sent to it.
            let terminate = format!("select pg_terminate_backend({})", self.server);
            sql.batch_execute(&terminate).unwrap();
            wait_until("the slot is free", || active(database).is_none().then_some(()));
            sql.batch_execute(&format!("select pg_drop_replication_slot('{SLOT}')")).unwrap();
        }
    }
}

fn create_slot(database: &Database<'_>, plugin: &str) {
    let create = format!("select pg_create_logical_replication_slot('{SLOT}', '{plugin}')");
    database.sql().batch_execute(&create).unwrap();
}

/// The walsender that uses the slot.
fn active(database: &Database<'_>) -> Option<i32> {
    let select = format!("select active_pid from pg_replication_slots where slot_name = '{SLOT}'");
    database.sql().query_one(&select, &[]).unwrap().get(0)
}
