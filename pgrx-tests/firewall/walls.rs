//! What the server has of the machine and of Postgres: its limits, its descriptors, its memory.

use std::path::PathBuf;

use super::{children, followed, server};
use crate::support::{Cluster, Database, http};

/// Twice the default of `tide.memory_limit`, and what a process needs besides.
const MOST_DATA: u64 = (2 * 512 + 256) << 20;

/// A file of `/proc` about a process.
fn about(pid: i32, what: &str) -> String {
    let path = format!("/proc/{pid}/{what}");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Soft and hard limit, by the name that `/proc` has for it.
fn limits(pid: i32, name: &str) -> (String, String) {
    let limits = about(pid, "limits");
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let mut values = line.split_whitespace().map(str::to_owned);
    (values.next().unwrap(), values.next().unwrap())
}

/// What the descriptors of a process lead to.
fn open_files(pid: i32) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    folder.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).collect()
}

/// Whether a line of `/proc/<pid>/maps` is of memory that Postgres's processes share.
fn is_shared_memory(line: &str) -> bool {
    ["/dev/zero", "/SYSV", "/dev/shm/", "/memfd:"].iter().any(|place| line.contains(place))
}

/// A database whose server and worker have had something to do.
fn at_work<'a>(cluster: &'a Cluster, name: &str) -> (Database<'a>, i32, i32) {
    let (database, client, _) = followed(cluster, name);
    drop(client);
    let (server, worker) = (server(&database).unwrap(), database.worker());
    (database, server, worker)
}

#[test]
fn the_server_is_limited_in_memory_but_not_in_descriptors() {
    // The usual soft limit, at which Postgres leaves processes that it starts.
    let cluster = Cluster::with_open_files("1024:4096");
    let (_database, server, worker) = at_work(&cluster, "limited");

    assert_eq!(limits(server, "Max data size").0, MOST_DATA.to_string());
    assert_eq!(limits(server, "Max open files"), ("4096".to_owned(), "4096".to_owned()));
    assert_eq!(about(server, "oom_score_adj").trim(), "500");
    // Of the worker's own nothing has changed.
    assert_ne!(limits(worker, "Max data size").0, MOST_DATA.to_string());
    assert_eq!(limits(worker, "Max open files"), ("1024".to_owned(), "4096".to_owned()));
}

#[test]
fn the_server_has_nothing_of_postgres() {
    let cluster = Cluster::start();
    let (_database, server, worker) = at_work(&cluster, "apart");
    let data = cluster.data();
    let inside = |pid| open_files(pid).into_iter().filter(|file| file.starts_with(&data)).count();
    let shared = |pid| about(pid, "maps").lines().filter(|line| is_shared_memory(line)).count();

    // What is looked for is there to be found: the worker has it.
    assert!(inside(worker) > 0 && shared(worker) > 0);
    assert_eq!(inside(server), 0, "{:?}", open_files(server));
    assert_eq!(shared(server), 0, "{}", about(server, "maps"));
    assert!(!about(server, "maps").contains("pg_tide.so"));
    assert_eq!(about(server, "environ"), "", "its environment may hold secrets");
    let log = |pid: i32| std::fs::read_link(format!("/proc/{pid}/fd/2")).unwrap();
    assert_ne!(log(server), log(worker), "whoever has the log's end can fill it");
}

#[test]
fn no_thread_of_the_server_can_reach_what_it_has_no_use_for() {
    let cluster = Cluster::with("tide.network_threads = 3");
    let (database, _client, _) = followed(&cluster, "confined_by");
    let server = server(&database).unwrap();

    let threads = std::fs::read_dir(format!("/proc/{server}/task")).unwrap();
    let threads: Vec<String> =
        threads.map(|thread| thread.unwrap().file_name().into_string().unwrap()).collect();
    assert!(threads.len() >= 3, "{threads:?}");
    for thread in threads {
        let status = about(server, &format!("task/{thread}/status"));
        let said = |name: &str| status.lines().find_map(|l| Some(l.strip_prefix(name)?.trim()));
        assert_eq!((said("Seccomp:"), said("NoNewPrivs:")), (Some("2"), Some("1")), "{status}");
    }
    let confined_by = "select server_confined_by from tide.status()";
    let confined_by: Vec<String> = database.sql().query_one(confined_by, &[]).unwrap().get(0);
    // Landlock is up to the kernel; this is not.
    assert!(confined_by.iter().any(|what| what == "seccomp"), "{confined_by:?}");
    let health = http::get(database.port, "/health").body;
    let health: serde_json::Value = serde_json::from_str(&health).unwrap();
    assert_eq!(health["confined_by"], serde_json::json!(confined_by));
}

#[test]
fn the_server_is_the_workers_and_in_no_other_group() {
    let cluster = Cluster::start();
    let (_database, server, worker) = at_work(&cluster, "its_own");

    assert_eq!(children(worker), [server]);
    // After the name: state, parent, process group.
    let stat = about(server, "stat");
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split_whitespace().collect();
    assert_eq!(fields[1], worker.to_string());
    assert_eq!(fields[2], server.to_string(), "what is sent to Postgres's group is not its own");
}
