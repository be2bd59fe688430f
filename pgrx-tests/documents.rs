//! What the README and the pages in `docs/` show is run as a reader would, a page from top to
//! bottom, and what they say of the settings is what Postgres says of them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::cluster::as_owner;
use crate::support::wait::DEADLINE;
use crate::support::{Cluster, Database, wait_until};

const README: &str = include_str!("../README.md");
const CLIENTS: &str = include_str!("../docs/clients.md");
const OUTBOX: &str = include_str!("../docs/outbox.md");
const PRIVATE_CHANNELS: &str = include_str!("../docs/private-channels.md");
const RECORDS: &str = include_str!("../docs/records.md");
const SETTINGS: &str = include_str!("../docs/settings.md");
const SQL: &str = include_str!("../docs/sql.md");

/// Where a page's clients connect.
const ADDRESS: &str = "ws://localhost:4000/realtime/v1";

/// Claims that the policies of the page on private channels ask for.
const CLAIMS: &str = r#"{"sub": "5f0c9f5e-8b1c-4d2e-9f57-0e1d2c3b4a59"}"#;

#[test]
fn the_table_of_settings_is_that_of_the_server() {
    let mut sql = Cluster::shared().connect("postgres");
    // A preloaded library's settings are known in every session.
    let rows = sql.query(include_str!("settings.sql"), &[]).unwrap();
    let served: Vec<String> = rows.iter().map(|row| row.get(0)).collect();

    let written: Vec<&str> = SETTINGS.lines().filter(|line| line.starts_with("| `tide.")).collect();

    assert_eq!(written, served);
}

#[test]
fn the_readme_leaves_nothing_to_mend() {
    let cluster = Cluster::start();
    let database = installed(&cluster);
    database.wait_for_helpers();

    let wrong = database
        .json("select coalesce(jsonb_agg(c), '[]')::text from tide.check() as c where not c.ok");

    assert_eq!(wrong, json!([]));
}

#[test]
fn the_examples_of_each_page_run() {
    let cluster = Cluster::start();
    // The README's install block has been run before each of them.
    let readme = README.split("## Install").next().unwrap();
    for page in [readme, CLIENTS, OUTBOX, PRIVATE_CHANNELS, RECORDS, SQL] {
        let title = page.lines().next().unwrap();
        let database = installed(&cluster);
        database.sql().batch_execute("create role backend; create role dashboard").unwrap();

        psql(&database, &blocks(page, "sql"));
        database.wait_until_live();
        follow(&database, title, &blocks(page, "js"));

        uninstall(&cluster, database);
    }
}

/// A page's JavaScript, run until it has shown what it is to show.
fn follow(database: &Database<'_>, title: &str, script: &str) {
    let shows: &[&str] = match title {
        "# pg_tide" => &["eventType: 'INSERT'", " INSERT {", "event: 'edit'", "name: 'ann'"],
        "# What clients speak" => &["item: 'a boat'"],
        "# Private channels" => &["line: 7", "name: 'ann'"],
        _ => return assert_eq!(script, "", "{title}: nobody looks what it does"),
    };
    // Where a page does not make a client, it is that of the page on clients.
    let client = if script.contains("new RealtimeClient") { "" } else { &*first_block(CLIENTS) };
    let program = Program::start(database, &format!("{client}\n{script}"));
    let mut sql = database.sql();
    let began = Instant::now();
    let mut last = began;
    wait_until("a page's examples have shown what they are to show", || {
        // What it asks for is there some time after it began, nobody knows when.
        if last.elapsed() > Duration::from_millis(300) {
            last = Instant::now();
            sql.batch_execute(
                "insert into orders (item) values ('a boat');
                 select tide.send(room, 'edit', '{\"line\": 7}')
                 from unnest(array['room1', 'room-1']) as room",
            )
            .unwrap();
        }
        let output = program.output();
        let goes_on = began.elapsed() < DEADLINE / 2 && !output.contains("Error");
        assert!(goes_on, "{title}: not {shows:?}, but {output}");
        shows.iter().all(|text| output.contains(text)).then_some(())
    });
}

fn first_block(page: &str) -> String {
    let (_, rest) = page.split_once("```js\n").unwrap();
    rest.split("```").next().unwrap().to_owned()
}

/// A node that runs a script.
struct Program {
    node: Child,
    output: Arc<Mutex<String>>,
}

impl Program {
    fn start(database: &Database<'_>, script: &str) -> Program {
        assert!(script.contains(ADDRESS), "{script}");
        let address = format!("ws://localhost:{}/realtime/v1", database.port);
        let token = database.token_with("authenticated", CLAIMS, "1 hour");
        let script = script.replace(ADDRESS, &address).replace("TOKEN", &format!("'{token}'"));
        let mut node = Command::new("node")
            .args(["--input-type=module", "-"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("node"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        // What a page leaves to its reader.
        let reader = "const apply = console.log;\n";
        let mut stdin = node.stdin.take().unwrap();
        stdin.write_all(format!("{reader}{script}").as_bytes()).unwrap();
        drop(stdin);
        let output = Arc::<Mutex<String>>::default();
        let (lines, into) = (BufReader::new(node.stdout.take().unwrap()), Arc::clone(&output));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut output = into.lock().unwrap_or_else(PoisonError::into_inner);
                output.push_str(&line);
                output.push('\n');
            }
        });
        Program { node, output }
    }

    fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

/// A database in which the README's install block has been run.
fn installed(cluster: &Cluster) -> Database<'_> {
    let database = Database::without_extension(cluster, "app", &[]);
    database.sql().batch_execute("drop role anon; drop role authenticated").unwrap();
    psql(&database, &install_block());
    database.wait_until_live();
    database
}

fn install_block() -> String {
    let (_, install) = README.split_once("## Install").unwrap();
    let block = blocks(install, "sql");
    assert!(block.starts_with("create extension pg_tide;"), "{block}");
    block
}

fn uninstall(cluster: &Cluster, database: Database<'_>) {
    drop(database);
    let mut sql = cluster.connect("postgres");
    sql.batch_execute("drop database app with (force)").unwrap();
    sql.batch_execute("drop role if exists authenticated, backend, dashboard, shop").unwrap();
}

/// Each statement by itself, as a reader has them run.
#[track_caller]
fn psql(database: &Database<'_>, statements: &str) {
    let mut psql = as_owner("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", &database.name, "-h"])
        .arg(database.cluster.host())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(statements.as_bytes()).unwrap();
    let output = psql.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{statements}");
}

/// The blocks of a page in one language, one after the other.
fn blocks(page: &str, language: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for line in page.lines() {
        if let Some(fence) = line.strip_prefix("```") {
            inside = fence == language;
        } else if inside {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}
