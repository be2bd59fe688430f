//! Where clients connect: the addresses and port of the settings, bound as soon as they are free.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tide_feed::config::Config;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

/// Connections that may wait to be accepted; the kernel caps it at `somaxconn`.
const BACKLOG: u32 = 4096;

/// Pause before a port that was taken is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What became of binding, for `tide.status()`.
#[derive(Debug, Default)]
pub struct Listener {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    url: Option<String>,
    error: Option<String>,
    obstacle: Option<String>,
}

impl Listener {
    /// Base URL of the listener, once there is one.
    pub fn url(&self) -> Option<String> {
        self.lock().url.clone()
    }

    /// Why there is none, or not on every address, or not as the settings say.
    pub fn error(&self) -> Option<String> {
        let state = self.lock();
        let problems: Vec<&str> =
            [&state.obstacle, &state.error].into_iter().flatten().map(String::as_str).collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    /// What keeps clients out, or the secrets, keys and certificates that the settings name from
    /// being used. Told in the log when it is new.
    pub fn set_obstacle(&self, obstacle: Option<String>) {
        let mut state = self.lock();
        if let Some(obstacle) = &obstacle
            && state.obstacle.as_ref() != Some(obstacle)
        {
            log::warn!("{obstacle}");
        }
        state.obstacle = obstacle;
    }

    /// Waits until at least one address can be bound.
    pub async fn bind(&self, config: &Config) -> Vec<TcpListener> {
        loop {
            let (listeners, errors) = bind_all(config).await;
            let error = (!errors.is_empty()).then(|| errors.join("; "));
            if let Some(error) = &error
                && self.lock().error.as_ref() != Some(error)
            {
                log::warn!("{error}; another tide.port or tide.listen_addresses may help");
            }
            let bound = !listeners.is_empty();
            {
                let mut state = self.lock();
                state.url = bound.then(|| url(config));
                state.error = error;
            }
            if bound {
                return listeners;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn bind_all(config: &Config) -> (Vec<TcpListener>, Vec<String>) {
    let (mut listeners, mut errors) = (Vec::new(), Vec::new());
    for name in &config.listen_addresses {
        let name = if name == "*" { "0.0.0.0" } else { name };
        match resolve(name, config.port).await {
            Ok(addresses) => {
                for address in addresses {
                    match bind(address) {
                        Ok(listener) => listeners.push(listener),
                        Err(error) => errors.push(format!("could not bind {address}: {error}")),
                    }
                }
            }
            Err(error) => errors.push(format!("could not resolve \"{name}\": {error}")),
        }
    }
    // "localhost" often names an IPv6 address that the machine does not have.
    if !listeners.is_empty() {
        errors.retain(|error| !error.contains("[::1]"));
    }
    (listeners, errors)
}

/// In a thread of its own, which is gone afterwards. One that is lent would be used again, with all
/// the rights that this one needs.
async fn resolve(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let (sender, resolved) = oneshot::channel();
    let name = name.to_owned();
    thread::Builder::new().name("tide resolver".into()).spawn(move || {
        // The server may have stopped.
        let _ = sender.send((name.as_str(), port).to_socket_addrs().map(Iterator::collect));
    })?;
    resolved.await.map_err(io::Error::other)?
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn url(config: &Config) -> String {
    let scheme = if config.ssl { "https" } else { "http" };
    let first = config.listen_addresses.first().map_or("localhost", String::as_str);
    let host = match first {
        "*" | "0.0.0.0" | "::" => "localhost",
        host => host,
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("{scheme}://{host}:{}", config.port)
}
