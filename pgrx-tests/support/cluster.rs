//! A Postgres cluster of a test's own, gone when the test is, however it ends.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};

use postgres::NoTls;

use super::{Database, wait_until};

/// Settings of every test cluster. What a test does to its own comes after and wins.
const SETTINGS: &str = "
listen_addresses = ''
shared_preload_libraries = 'pg_tide'
wal_level = logical
max_worker_processes = 200
max_replication_slots = 50
max_wal_senders = 10
max_prepared_transactions = 10
max_connections = 100
shared_buffers = 64MB
fsync = off
full_page_writes = off
autovacuum = off
log_line_prefix = '%m [%p] %b %d '
";

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    Fast,
    Immediate,
}

#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    /// Ends the server and removes the folder once this process lets go of its standard input:
    /// when the cluster is dropped, and also when the test program dies.
    watchdog: Mutex<Child>,
    is_shared: bool,
    /// Limits of open files that the server is started under, as prlimit takes them.
    open_files: Option<&'static str>,
}

impl Cluster {
    /// The cluster that tests share who do nothing to the server as a whole.
    pub fn shared() -> &'static Cluster {
        static SHARED: LazyLock<Cluster> = LazyLock::new(|| {
            let mut cluster = Cluster::start();
            cluster.is_shared = true;
            cluster
        });
        &SHARED
    }

    /// It outlives the tests, so they have to clear up.
    pub(super) fn is_shared(&self) -> bool {
        self.is_shared
    }

    pub fn start() -> Cluster {
        Cluster::with("")
    }

    /// Starts a cluster with further lines in its `postgresql.conf`.
    pub fn with(settings: &str) -> Cluster {
        let cluster = Cluster::stopped();
        cluster.configure(settings);
        cluster.resume();
        cluster
    }

    /// Starts a cluster under other limits of open files, `soft:hard`.
    pub fn with_open_files(limits: &'static str) -> Cluster {
        let mut cluster = Cluster::stopped();
        cluster.open_files = Some(limits);
        cluster.resume();
        cluster
    }

    /// A cluster that has not been started.
    pub fn stopped() -> Cluster {
        let dir = new_folder();
        succeed(Command::new("cp").arg("-a").arg(template()).arg(dir.join("data")));
        Cluster::adopt(dir)
    }

    /// A standby of this cluster, not yet started.
    pub fn standby(&self) -> Cluster {
        let dir = new_folder();
        succeed(
            as_owner("pg_basebackup")
                .arg("--pgdata")
                .arg(dir.join("data"))
                .args(["--write-recovery-conf", "--checkpoint=fast", "--host"])
                .arg(&self.dir)
                .args(["--username", "postgres"]),
        );
        let standby = Cluster::adopt(dir);
        standby.configure(&format!("unix_socket_directories = '{}'", standby.dir.display()));
        standby
    }

    fn adopt(dir: PathBuf) -> Cluster {
        let watchdog = watchdog(&dir);
        let cluster =
            Cluster { dir, watchdog: Mutex::new(watchdog), is_shared: false, open_files: None };
        cluster.configure(&format!("unix_socket_directories = '{}'", cluster.dir.display()));
        cluster
    }

    /// Adds lines to `postgresql.conf`; a running server hears of them at its next reload.
    pub fn configure(&self, settings: &str) {
        let mut file =
            fs::OpenOptions::new().append(true).open(self.data().join("postgresql.conf")).unwrap();
        writeln!(file, "{settings}").unwrap();
    }

    pub fn reload(&self) {
        self.pg_ctl(&["reload"]);
    }

    /// Starts the server again, or for the first time, and waits until it accepts connections.
    pub fn resume(&self) {
        let log = self.dir.join("log");
        let output = self.try_resume();
        assert!(
            output.status.success(),
            "the server did not start:\n{}",
            fs::read_to_string(log).unwrap_or_default()
        );
    }

    pub fn try_resume(&self) -> Output {
        // Output to the log, not to a pipe: the server would keep the pipe open.
        let mut command = match self.open_files {
            Some(limits) => {
                let mut command = by_owner(Command::new("prlimit"));
                command.arg(format!("--nofile={limits}")).arg(bin().join("pg_ctl"));
                command
            }
            None => as_owner("pg_ctl"),
        };
        command.args(["start", "-w", "-t", "60", "-s", "-D"]).arg(self.data());
        command.arg("-l").arg(self.dir.join("log"));
        // As many have it in their environment: what errors say must not depend on it.
        command.env("RUST_BACKTRACE", "1");
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        Output { status, stdout: Vec::new(), stderr: Vec::new() }
    }

    pub fn stop(&self, how: Shutdown) {
        let mode = match how {
            Shutdown::Fast => "fast",
            Shutdown::Immediate => "immediate",
        };
        self.pg_ctl(&["stop", "-w", "-t", "60", "-m", mode]);
    }

    pub fn promote(&self) {
        self.pg_ctl(&["promote", "-w", "-t", "60"]);
    }

    pub fn postmaster(&self) -> i32 {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        pid.lines().next().unwrap().parse().unwrap()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the server's socket is: the `host` of a connection.
    pub fn host(&self) -> &Path {
        &self.dir
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Waits until the log, from byte `since` on, has the text.
    #[track_caller]
    pub fn wait_for_log(&self, since: usize, text: &str) {
        wait_until(&format!("the log says {text:?}"), || {
            self.log().get(since..)?.contains(text).then_some(())
        });
    }

    /// A superuser's session.
    pub fn connect(&self, database: &str) -> postgres::Client {
        self.try_connect(database, "postgres").unwrap()
    }

    pub fn try_connect(
        &self,
        database: &str,
        user: &str,
    ) -> Result<postgres::Client, postgres::Error> {
        postgres::Config::new()
            .host_path(&self.dir)
            .port(5432)
            .user(user)
            .dbname(database)
            .application_name("test")
            .connect(NoTls)
    }

    /// Makes a database with the extension and a port of its own.
    pub fn database(&self, name: &str) -> Database<'_> {
        Database::create(self, name, &[])
    }

    /// The same, with settings of its own, as `("tide.anon_role", "anon")`.
    pub fn database_with(&self, name: &str, settings: &[(&str, &str)]) -> Database<'_> {
        Database::create(self, name, settings)
    }

    fn pg_ctl(&self, arguments: &[&str]) {
        succeed(as_owner("pg_ctl").args(arguments).arg("-s").arg("-D").arg(self.data()));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            for line in tail.iter().rev() {
                eprintln!("server: {line}");
            }
        }
        if let Ok(watchdog) = self.watchdog.get_mut() {
            drop(watchdog.stdin.take());
            let _ = watchdog.wait();
        }
    }
}

/// Sends a signal to a process, by name: `signal("KILL", pid)`.
pub fn signal(name: &str, pid: i32) {
    succeed(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()));
}

/// A port that nothing listens on; no two calls give the same.
pub fn free_port() -> u16 {
    // Below the range that the system takes ports for outgoing connections from.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 20_000 + (std::process::id() % 100) as u16 * 100;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A program of the Postgres under test, run by a user that Postgres accepts.
pub fn as_owner(program: &str) -> Command {
    by_owner(Command::new(bin().join(program)))
}

/// Any program, run by the user that Postgres is run by.
pub fn by_owner(mut command: Command) -> Command {
    if let Some((uid, gid)) = *OWNER {
        command.uid(uid).gid(gid);
    }
    // Postgres must not be handed this process's folder, which its user may not be able to enter.
    command.current_dir("/tmp").env_remove("PGDATA").env_remove("PGHOST").env_remove("PGPORT");
    command
}

#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The folder of the programs of the Postgres under test, by `PG_CONFIG`.
pub fn bin() -> &'static Path {
    static BIN: LazyLock<PathBuf> = LazyLock::new(|| {
        let config = std::env::var("PG_CONFIG")
            .unwrap_or_else(|_| "/usr/lib/postgresql/15/bin/pg_config".into());
        let output = succeed(Command::new(config).arg("--bindir"));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    });
    &BIN
}

/// User and group to run Postgres as, which refuses to be run by root; `None`: this process's.
static OWNER: LazyLock<Option<(u32, u32)>> = LazyLock::new(|| {
    if id(&["-u"]) != 0 {
        return None;
    }
    Some((id(&["-u", "postgres"]), id(&["-g", "postgres"])))
});

fn id(arguments: &[&str]) -> u32 {
    let output = succeed(Command::new("id").args(arguments));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// A new folder with a short name (a socket's address holds 107 bytes) that the owner can use.
fn new_folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = PathBuf::from(format!("/tmp/pg_tide-test-{}-{number}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    if let Some((uid, gid)) = *OWNER {
        std::os::unix::fs::chown(&dir, Some(uid), Some(gid)).unwrap();
    }
    dir
}

/// A data directory to copy: initdb takes longer than that.
fn template() -> &'static Path {
    static TEMPLATE: LazyLock<(PathBuf, Mutex<Child>)> = LazyLock::new(|| {
        let dir = new_folder();
        let watchdog = watchdog(&dir);
        let data = dir.join("data");
        succeed(as_owner("initdb").arg("--pgdata").arg(&data).args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]));
        let conf = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&conf).unwrap();
        text.push_str(SETTINGS);
        // Only newer minor versions know the list, and the others would not start with it.
        let known = as_owner("postgres")
            .arg("-D")
            .arg(&data)
            .args(["-C", "output_plugin_libraries"])
            .output()
            .unwrap();
        if known.status.success() {
            text.push_str("output_plugin_libraries = 'pgoutput, test_decoding, pg_tide'\n");
        }
        fs::write(conf, text).unwrap();
        (data, Mutex::new(watchdog))
    });
    &TEMPLATE.0
}

/// Starts the shell that cleans up after a cluster; see [`Cluster::watchdog`].
fn watchdog(dir: &Path) -> Child {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        cat >/dev/null
        postmaster=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
        # 1: it is the first process of a PID namespace, whose end is its starter's concern.
        if [ "${postmaster:-1}" -gt 1 ]; then
            kill -QUIT "$postmaster" 2>/dev/null
            for _ in $(seq 100); do
                kill -0 "$postmaster" 2>/dev/null || break
                sleep 0.05
            done
            kill -KILL "$postmaster" 2>/dev/null
        fi
        rm -rf "$1"
    "#;
    Command::new("sh")
        .args(["-c", SCRIPT, "watchdog"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
