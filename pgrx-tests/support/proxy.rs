//! Stands between the server and the helpers, and has questions fail.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::database::{CATALOG_WORKER, Database, EXECUTOR};
use super::wait::wait_until;

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An error with this SQLSTATE.
    Refusal(&'static str),
    /// Whoever has it goes away.
    End,
}

#[derive(Clone, Debug, Default)]
pub struct Proxy {
    armed: Arc<Mutex<Option<Armed>>>,
}

#[derive(Debug)]
struct Armed {
    kind: &'static str,
    failure: Failure,
    left: u32,
}

impl Proxy {
    /// Has all helpers of the database connect to it.
    pub fn before(database: &Database<'_>) -> Proxy {
        let proxy = Proxy::default();
        database.wait_for_helpers();
        let path = database.own_file("sock");
        let real = path.with_extension("real");
        std::fs::rename(&path, &real).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        let own = proxy.clone();
        std::thread::spawn(move || own.accept(&listener, &real));
        let helpers = || [CATALOG_WORKER, EXECUTOR].map(|kind| database.processes(kind)).concat();
        let before = helpers();
        for pid in &before {
            database.sql().execute("select pg_terminate_backend($1)", &[pid]).unwrap();
        }
        wait_until("the helpers are others", || {
            helpers().iter().all(|pid| !before.contains(pid)).then_some(())
        });
        database.wait_for_helpers();
        proxy
    }

    /// The next `count` questions of this kind fail.
    pub fn arm(&self, kind: &'static str, failure: Failure, count: u32) {
        *self.armed.lock().unwrap() = Some(Armed { kind, failure, left: count });
    }

    /// Whether all that were to fail have failed.
    pub fn has_fired(&self) -> bool {
        self.armed.lock().unwrap().as_ref().is_none_or(|armed| armed.left == 0)
    }

    /// No more of them fail.
    pub fn disarm(&self) {
        *self.armed.lock().unwrap() = None;
    }

    fn accept(&self, listener: &UnixListener, real: &Path) {
        for helper in listener.incoming().flatten() {
            let (own, real): (Proxy, PathBuf) = (self.clone(), real.to_owned());
            // Ends when one of the two does.
            std::thread::spawn(move || own.stand_between(helper, &real));
        }
    }

    fn stand_between(&self, mut helper: UnixStream, real: &Path) -> io::Result<()> {
        let mut server = UnixStream::connect(real)?;
        let hello = read(&mut helper)?;
        write(&mut server, &hello)?;
        if !["\"catalog_worker\"", "\"executor\""].contains(&&*String::from_utf8_lossy(&hello)) {
            let (mut to, mut from) = (server.try_clone()?, helper.try_clone()?);
            std::thread::spawn(move || io::copy(&mut from, &mut to));
            io::copy(&mut server, &mut helper)?;
            return Ok(());
        }
        loop {
            let question = read(&mut server)?;
            let parsed: Value = serde_json::from_slice(&question)?;
            let answer = match self.failure(parsed["op"].as_str().unwrap_or_default()) {
                Some(Failure::End) => return Ok(()),
                Some(Failure::Refusal(sqlstate)) => {
                    let error = json!({ "error": { "sqlstate": sqlstate, "message": "no" } });
                    error.to_string().into_bytes()
                }
                None => {
                    write(&mut helper, &question)?;
                    read(&mut helper)?
                }
            };
            write(&mut server, &answer)?;
        }
    }

    fn failure(&self, kind: &str) -> Option<Failure> {
        let mut armed = self.armed.lock().unwrap();
        let armed = armed.as_mut().filter(|armed| armed.kind == kind && armed.left > 0)?;
        armed.left -= 1;
        Some(armed.failure)
    }
}

fn read(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn write(stream: &mut UnixStream, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(body)
}
