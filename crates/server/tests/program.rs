//! The program by itself: it serves nobody but the worker that started it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic where it stands")]

use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};

/// Runs it with these arguments, and a link whose other end is closed.
fn run(arguments: &[&str]) -> Output {
    let (near, far) = UnixStream::pair().unwrap();
    drop(near);
    Command::new(env!("CARGO_BIN_EXE_tide-server"))
        .args(arguments)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(far)))
        .output()
        .unwrap()
}

#[test]
fn nobody_starts_it_by_hand() {
    for arguments in [&[][..], &["--help"]] {
        let output = run(arguments);

        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("started by pg_tide's worker"), "{said}");
    }
}

#[test]
fn it_does_not_outlive_the_worker_that_started_it() {
    // The first process of the system is not the one that runs this test.
    let output = run(&["1"]);

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the worker has ended"), "{said}");
}

#[test]
fn it_ends_with_its_link() {
    let output = run(&[&std::process::id().to_string()]);

    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
