//! Postgres as the first process of a PID namespace, as in a container without an init: what loses
//! its parent becomes the postmaster's child, and a child that it does not know and that is ended
//! by a signal is a crash to it, at which it ends every session.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::{
    another_server, children, follow, followed, is_alive, next, postmaster_start_time, server,
};
use crate::support::cluster::{bin, signal};
use crate::support::{Cluster, Database, wait_until};

const UNSHARE: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];

/// A cluster whose postmaster is process 1 where it lives. None of its process ids mean anything
/// out here: signals are sent from inside, by SQL.
struct Contained {
    cluster: Cluster,
    unshare: Child,
    /// As it is called out here.
    postmaster: i32,
}

impl Contained {
    /// `None`, loudly, where this user may not make a namespace.
    fn start() -> Option<Contained> {
        let [program, arguments @ ..] = UNSHARE;
        let tried = Command::new(program).args(arguments).arg("true").output().unwrap();
        if !tried.status.success() {
            let why = String::from_utf8_lossy(&tried.stderr);
            eprintln!("SKIPPED: no PID namespace can be made here, so nothing is tested: {why}");
            return None;
        }
        let cluster = Cluster::stopped();
        let mut unshare = launch(&cluster);
        let starter = i32::try_from(unshare.id()).unwrap();
        wait_until("the contained cluster accepts connections", || {
            if let Ok(Some(status)) = unshare.try_wait() {
                panic!("it did not start: {status}\n{}", cluster.log());
            }
            cluster.try_connect("postgres", "postgres").ok()
        });
        let postmaster = children(starter).pop().unwrap();
        Some(Contained { cluster, unshare, postmaster })
    }

    /// Shuts Postgres down as `pg_ctl stop` does, with the signal of the mode.
    fn stop(&mut self, how: &str) -> ExitStatus {
        signal(how, self.postmaster);
        wait_until("the contained cluster has stopped", || self.unshare.try_wait().unwrap())
    }

    fn assert_no_crash(&self) {
        let log = self.cluster.log();
        for sign in ["was terminated by signal", "terminating any other active", "reinitializing"] {
            assert!(!log.contains(sign), "the log says {sign:?}");
        }
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        // Its end is the postmaster's, and that one's the end of all.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        wait_until("the namespace is gone", || (!is_alive(self.postmaster)).then_some(()));
    }
}

/// Starts Postgres in a namespace of its own, by the owner of the data directory. All of it ends
/// with the thread of the test.
fn launch(cluster: &Cluster) -> Child {
    let owner = std::fs::metadata(cluster.data()).unwrap();
    let log = File::create(cluster.host().join("log")).unwrap();
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .args(UNSHARE)
        .args(["setpriv", "--clear-groups", "--pdeathsig", "KILL"])
        .args(["--reuid", &owner.uid().to_string(), "--regid", &owner.gid().to_string()])
        .arg(bin().join("postgres"))
        .arg("-D")
        .arg(cluster.data())
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Sends a signal inside the namespace. The session may end with what it does.
fn signal_inside(database: &Database<'_>, how: &str, pid: i32) {
    let program = format!("cat >/dev/null; kill -{how} {pid}");
    let _ = database.sql().batch_execute(&format!("copy (select 1) to program '{program}'"));
}

fn is_alive_inside(database: &Database<'_>, pid: i32) -> bool {
    let found = format!("select pg_stat_file('/proc/{pid}/stat', true) is not null");
    database.cluster.connect("postgres").query_one(&found, &[]).unwrap().get(0)
}

fn terminate(database: &Database<'_>, worker: i32) {
    database.sql().execute("select pg_terminate_backend($1)", &[&worker]).unwrap();
}

/// A session that a crash of Postgres would end.
struct Bystander {
    sql: postgres::Client,
    started: String,
}

impl Bystander {
    fn of(database: &Database<'_>) -> Bystander {
        let mut sql = database.cluster.connect("postgres");
        sql.batch_execute("create temp table mine as select 1").unwrap();
        Bystander { sql, started: postmaster_start_time(database) }
    }

    #[track_caller]
    fn assert_unharmed(&mut self) {
        let time = "select pg_postmaster_start_time()::text from mine";
        assert_eq!(self.sql.query_one(time, &[]).unwrap().get::<_, String>(0), self.started);
    }
}

#[test]
fn a_worker_that_is_terminated_is_no_crash() {
    let Some(contained) = Contained::start() else { return };
    let (database, _client, _) = followed(&contained.cluster, "contained");
    let mut bystander = Bystander::of(&database);

    // A server that is well, and one that can neither be told nor say anything.
    for is_stopped in [false, true] {
        let (worker, before) = (database.worker(), server(&database).unwrap());
        if is_stopped {
            signal_inside(&database, "STOP", before);
        }
        terminate(&database, worker);
        database.wait_for_another_worker(worker);
        assert!(!is_alive_inside(&database, before), "stopped: {is_stopped}");
    }

    bystander.assert_unharmed();
    contained.assert_no_crash();
    database.delivers();
}

#[test]
fn a_worker_that_is_terminated_while_it_decodes_is_no_crash() {
    let Some(contained) = Contained::start() else { return };
    let database = contained.cluster.database("decoding");
    let mut bystander = Bystander::of(&database);
    let _client = database.in_the_middle_of_a_large_transaction();
    let (worker, before) = (database.worker(), server(&database).unwrap());

    // So that the worker waits for room in the link, within the decoder.
    signal_inside(&database, "STOP", before);
    terminate(&database, worker);
    database.wait_for_another_worker(worker);

    assert!(!is_alive_inside(&database, before));
    bystander.assert_unharmed();
    contained.assert_no_crash();
}

#[test]
fn a_database_that_is_dropped_under_its_clients_is_no_crash() {
    let Some(contained) = Contained::start() else { return };
    let (database, mut client, _) = followed(&contained.cluster, "dropped");
    let mut bystander = Bystander::of(&database);
    let before = server(&database).unwrap();

    bystander.sql.batch_execute("drop database dropped with (force)").unwrap();

    client.wait_until_closed();
    database.wait_until_gone();
    // Whoever it is a child of by then has taken note of its end.
    wait_until("its server is gone", || (!is_alive_inside(&database, before)).then_some(()));
    bystander.assert_unharmed();
    contained.assert_no_crash();
}

#[test]
fn a_server_that_is_killed_is_no_crash() {
    let Some(contained) = Contained::start() else { return };
    let (database, _client, _) = followed(&contained.cluster, "killed_inside");
    let mut bystander = Bystander::of(&database);
    let (worker, before) = (database.worker(), server(&database).unwrap());

    signal_inside(&database, "KILL", before);
    another_server(&database, before);

    assert_eq!(database.worker(), worker);
    bystander.assert_unharmed();
    contained.assert_no_crash();
    database.delivers();
}

#[test]
fn a_fast_shutdown_under_clients_is_no_crash() {
    let Some(mut contained) = Contained::start() else { return };
    let (database, mut client, _) = followed(&contained.cluster, "shut_down");
    let port = database.port;
    drop(database);

    let status = contained.stop("INT");

    assert!(status.success(), "{status}");
    let closed = client.wait_until_closed();
    assert_eq!(closed.0.map(|(code, _)| code), Some(1012), "a service restart");
    contained.assert_no_crash();
    assert!(contained.cluster.log().contains("database system is shut down"));
    std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn a_worker_that_crashes_is_recovered_from_with_its_server() {
    let Some(contained) = Contained::start() else { return };
    let (database, mut client, position) = followed(&contained.cluster, "crashed");
    let worker = database.worker();

    // The orphan becomes the postmaster's child, and is ended by a signal as well.
    signal_inside(&database, "KILL", worker);
    client.wait_until_closed();
    wait_until("another worker", || {
        let pid = "select pid from pg_stat_activity where backend_type = 'pg_tide worker'";
        let mut sql = contained.cluster.try_connect("crashed", "postgres").ok()?;
        let pid: i32 = sql.query_opt(pid, &[]).ok()??.get(0);
        (pid != worker).then_some(())
    });
    database.wait_until_live();

    database.sql().batch_execute("insert into t values (1)").unwrap();
    let mut client = database.client();
    follow(&mut client, Some(&position));
    next(&mut client, 1);
}

#[test]
fn an_immediate_shutdown_leaves_nothing_behind() {
    let Some(mut contained) = Contained::start() else { return };
    let (database, mut client, _) = followed(&contained.cluster, "cut_off");
    let port = database.port;
    drop(database);

    contained.stop("QUIT");

    client.wait_until_closed();
    std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
}
