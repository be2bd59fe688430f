//! The listener speaks TLS with the server's own certificate, and with another if it is named.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::support::{Cluster, DEADLINE, Database};

type Socket = WebSocket<StreamOwned<ClientConnection, TcpStream>>;

#[test]
fn the_servers_own_certificate_serves_until_another_is_named() {
    let cluster = Cluster::stopped();
    let own = certificate(&cluster, "server");
    let other = certificate(&cluster, "other");
    cluster.configure("ssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'");
    cluster.resume();
    let database = Database::without_extension(&cluster, "encrypted", &[("tide.ssl", "on")]);
    let mut sql = database.sql();
    sql.batch_execute(
        "create extension pg_tide;
         grant authenticated to tide_authenticator;
         create table t (id int primary key);
         grant select on t to authenticated;
         select tide.publish('t')",
    )
    .unwrap();

    receives_a_row(&database, &own, 1);
    let token = database.token("authenticated");
    assert!(connect(&database, &other, &token).is_none(), "a certificate not yet named was shown");

    sql.batch_execute(
        "alter database encrypted set tide.ssl_cert_file = 'other.crt';
         alter database encrypted set tide.ssl_key_file = 'other.key'",
    )
    .unwrap();
    cluster.reload();
    receives_a_row(&database, &other, 2);
}

#[test]
fn files_that_cannot_be_read_are_what_check_names() {
    let cluster = Cluster::stopped();
    let own = certificate(&cluster, "server");
    cluster.configure("ssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'");
    cluster.resume();
    let settings = [("tide.ssl", "on"), ("tide.ssl_cert_file", "missing.crt")];
    let database = Database::without_extension(&cluster, "unreadable", &settings);
    let mut sql = database.sql();
    sql.batch_execute("create extension pg_tide; grant authenticated to tide_authenticator")
        .unwrap();
    let mut named = |what: &str| {
        crate::support::wait_until(what, || {
            let listener = "select problem, fix from tide.check() where item = 'listener'";
            let row = sql.query_opt(listener, &[]).unwrap()?;
            let (problem, fix): (Option<String>, Option<String>) = (row.get(0), row.get(1));
            let (problem, fix) = (problem.unwrap_or_default(), fix.unwrap_or_default());
            (problem.contains(what) && fix.contains("pg_reload_conf")).then_some(problem)
        })
    };

    let certificate_missing = named("missing.crt");
    let mut sql = database.sql();
    sql.batch_execute(
        "alter database unreadable reset tide.ssl_cert_file;
         alter database unreadable set tide.jwks_file = 'missing.jwks'",
    )
    .unwrap();
    cluster.reload();
    named("missing.jwks");
    sql.batch_execute("alter database unreadable reset tide.jwks_file").unwrap();
    cluster.reload();

    assert!(certificate_missing.starts_with("no client can connect: "), "{certificate_missing}");
    crate::support::wait_until("clients are let in", || {
        connect(&database, &own, &database.token("authenticated"))
    });
}

/// Joins over TLS, as soon as that is possible with the certificate, and sees a row arrive.
fn receives_a_row(database: &Database<'_>, certificate: &CertificateDer<'static>, id: i64) {
    let token = database.token("authenticated");
    let mut socket = crate::support::wait_until("the listener has the certificate", || {
        connect(database, certificate, &token)
    });
    let binding = json!({ "event": "*", "schema": "public", "table": "t" });
    let join = json!(["1", "1", "realtime:room", "phx_join",
                      { "config": { "postgres_changes": [binding] } }]);
    socket.send(Message::text(join.to_string())).unwrap();
    read_until(&mut socket, "system");

    database.sql().batch_execute(&format!("insert into t values ({id})")).unwrap();

    assert_eq!(read_until(&mut socket, "postgres_changes")["data"]["record"]["id"], id);
}

/// The payload of the next frame with this event.
fn read_until(socket: &mut Socket, event: &str) -> Value {
    loop {
        let Message::Text(text) = socket.read().unwrap() else { continue };
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame[3] == event {
            return frame[4].clone();
        }
    }
}

/// A websocket to a server that must show this certificate.
fn connect(
    database: &Database<'_>,
    certificate: &CertificateDer<'static>,
    token: &str,
) -> Option<Socket> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", database.port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let url =
        format!("ws://localhost:{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0", database.port);
    tungstenite::client(url, StreamOwned::new(tls, stream)).ok().map(|(socket, _)| socket)
}

/// Puts a certificate for "localhost" and its key into the data directory.
fn certificate(cluster: &Cluster, name: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let owner = fs::metadata(cluster.data()).unwrap();
    for (ending, text) in [("crt", made.cert.pem()), ("key", made.signing_key.serialize_pem())] {
        let path = cluster.data().join(format!("{name}.{ending}"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    made.cert.der().clone()
}
