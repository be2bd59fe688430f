//! Unmodified clients: npm's `@supabase/realtime-js` of two generations, PyPI's `realtime`, and a
//! browser with the page. Their tests are in `node/`, `python/` and `browser/`; and clients of our
//! own, `clients/deepstream-storage/`, `clients/python/` and `clients/js/`, with their tests. `make test` installs them all.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::cluster::bin;
use crate::support::{Cluster, Database};

/// Runs a client's tests against a database of their own; its output is shown if they fail.
#[track_caller]
fn run(database: &Database<'_>, command: &mut Command) {
    succeed(
        command
            .env("TIDE_URL", format!("ws://localhost:{}/realtime/v1", database.port))
            .env("TIDE_HTTP", format!("http://localhost:{}", database.port))
            .env("TIDE_PSQL", bin().join("psql"))
            .env("PGHOST", database.cluster.host())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", &database.name),
    );
}

#[track_caller]
fn succeed(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; `make test` installs what it needs"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{command:?}\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{text}");
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn node(folder_name: &str, file: &str) -> Command {
    node_in(&folder(folder_name), file)
}

fn node_in(folder: &Path, file: &str) -> Command {
    assert!(
        folder.join("node_modules").is_dir(),
        "no node_modules in {}: run make test",
        folder.display()
    );
    let mut command = Command::new("node");
    command.args(["--test", "--test-reporter=spec", file]).current_dir(folder);
    command
}

#[test]
fn the_newest_realtime_js() {
    let database = Cluster::shared().database("client_js_2");
    run(&database, &mut node("node", "changes.test.js"));
}

/// Of databases where clients may also talk to each other in public.
const OPEN: [(&str, &str); 2] =
    [("tide.public_channels", "on"), ("tide.public_channels_send", "on")];

#[test]
fn the_newest_realtime_js_on_channels() {
    let database = Cluster::shared().database_with("client_js_channels", &OPEN);
    run(&database, &mut node("node", "channels.test.js"));
}

#[test]
fn the_old_realtime_js() {
    let database = Cluster::shared().database("client_js_1");
    run(&database, &mut node("node", "old.test.js"));
}

#[test]
fn pythons_realtime() {
    let database = Cluster::shared().database("client_python");
    run(&database, &mut python("changes.py"));
}

#[test]
fn pythons_realtime_on_channels() {
    let database = Cluster::shared().database_with("client_python_channels", &OPEN);
    run(&database, &mut python("channels.py"));
}

fn python(file: &str) -> Command {
    let mut command = Command::new(python_with_packages());
    command.arg(folder("python").join(file));
    command
}

fn python_with_packages() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let python = target.join("python/bin/python");
    assert!(python.exists(), "no {}: run make test", python.display());
    python
}

/// Its tests stop and start a cluster of their own.
#[test]
fn our_own_client_for_python() {
    let mut command = Command::new(python_with_packages());
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]);
    succeed(command.arg(folder("../clients/python/tests")));
}

/// As a package that is packed and installed, in Node and in Chromium.
#[test]
fn our_own_client_for_javascript() {
    succeed(&mut Command::new(folder("../clients/js/test/run.sh")));
}

#[test]
fn the_page_in_a_browser() {
    let database = Cluster::shared().database("client_browser");
    run(&database, &mut node("browser", "page.test.js"));
}

fn deepstream_storage(file: &str) -> Command {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../clients/deepstream-storage");
    node_in(&folder, &format!("test/{file}"))
}

#[test]
fn deepstreams_connector() {
    let database = Cluster::shared().database("deepstream_connector");
    run(&database, &mut deepstream_storage("connector.test.mjs"));
}

#[test]
fn the_faults_of_deepstreams_connector() {
    let database = Cluster::shared().database("deepstream_faults");
    run(&database, &mut deepstream_storage("faults.test.mjs"));
}

#[test]
fn deepstreams_server() {
    let database = Cluster::shared().database("deepstream_server");
    run(&database, &mut deepstream_storage("server.test.mjs"));
}
