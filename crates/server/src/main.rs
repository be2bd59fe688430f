//! tide-server: started by pg_tide's worker, with the link to it as standard input, and the read
//! end of a pipe that ends with the postmaster as standard output.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use tide_server::{confinement, service};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The worker reads it, and says why.
            eprintln!("pg_tide: tide-server ends: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let Some(worker) = std::env::args().nth(1).and_then(|pid| pid.parse().ok()) else {
        let what = "tide-server is started by pg_tide's worker, and of no use by itself";
        return Err(io::Error::other(what));
    };
    confinement::die_with(worker)?;
    let link = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let postmaster = io::stdout().as_fd().try_clone_to_owned()?;
    service::run(link, postmaster)
}
