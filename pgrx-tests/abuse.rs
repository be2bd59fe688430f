//! Clients, tokens and policies that mean no good: each is refused or cut off, everybody else goes
//! on as before, and nothing is left behind.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::client::{Client, Closed};
use crate::support::{Cluster, DEADLINE, Database, http, token, wait_until};

const SECRET: &str = "a-secret-of-more-than-thirty-two-bytes";
const FAR: i64 = 4_102_444_800;

fn database() -> &'static Database<'static> {
    static DATABASE: std::sync::LazyLock<Database<'static>> = std::sync::LazyLock::new(|| {
        let settings = [("tide.jwt_secret", SECRET)];
        let database = Cluster::shared().database_with("abuse", &settings);
        admit_all(&database);
        database
    });
    &DATABASE
}

/// Lets `authenticated` do anything on any channel.
fn admit_all(database: &Database<'_>) {
    let policy = "create policy all_of_them on tide.channel to authenticated using (true)";
    database.sql().batch_execute(policy).unwrap();
}

fn signed(claims: &Value) -> String {
    token::signed(&json!({ "alg": "HS256", "typ": "JWT" }), claims, SECRET.as_bytes())
}

fn good_client() -> Client {
    let token = signed(&json!({ "role": "authenticated", "exp": FAR }));
    database().connect(&format!("apikey={token}&vsn=2.0.0"))
}

fn refused(token: &str) -> u16 {
    database().try_connect(&format!("apikey={token}&vsn=2.0.0")).unwrap_err().status
}

fn private() -> Value {
    json!({ "private": true, "broadcast": { "ack": true, "self": true } })
}

fn say(event: &str) -> Value {
    json!({ "type": "broadcast", "event": event, "payload": { "n": 1 } })
}

/// Sees that two clients can talk to each other.
#[track_caller]
fn is_unharmed(one: &mut Client, other: &mut Client) {
    for client in [&mut *one, &mut *other] {
        client.join("realtime:unharmed", &private());
    }
    assert_eq!(one.call("realtime:unharmed", "broadcast", &say("well"))["status"], "ok");
    assert_eq!(other.broadcast("realtime:unharmed"), say("well"));
}

/// The channels that the database's clients have joined.
fn channels(database: &Database<'_>) -> i64 {
    let query = "select count(*) from tide.stat_channels";
    database.sql().query_one(query, &[]).unwrap().get(0)
}

/// A line of the metrics.
fn metric(database: &Database<'_>, name: &str) -> u64 {
    let text = http::get(database.port, "/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("pg_tide_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
fn a_role_that_clients_may_not_have() {
    let mut sql = database().sql();
    sql.batch_execute("create role abuse_ungranted login").unwrap();
    let ungranted = signed(&json!({ "role": "abuse_ungranted", "exp": FAR }));
    assert_eq!(refused(&ungranted), 403);

    // Nor by way of a join, a renewal, or HTTP.
    let mut client = good_client();
    let join = json!({ "config": private(), "access_token": ungranted });
    let reply = client.call("realtime:a", "phx_join", &join);
    assert!(reply["response"]["reason"].as_str().unwrap().starts_with("Unauthorized"), "{reply}");
    client.join("realtime:a", &private());
    client.push("realtime:a", "access_token", &json!({ "access_token": ungranted }));
    client.wait_for("the end of the channel", |frame| frame.event == "phx_close");
    assert_eq!(post(&ungranted, "/realtime/v1/api/broadcast/a/events/e?private=true", "{}"), 403);
}

#[test]
fn a_privileged_role_in_a_token() {
    let mut sql = database().sql();
    sql.batch_execute(
        "create role abuse_super superuser nologin; create role abuse_bypass bypassrls nologin;
         create role abuse_replication replication nologin;
         grant abuse_super, abuse_bypass, abuse_replication to tide_authenticator",
    )
    .unwrap();
    for role in [
        "abuse_super",
        "abuse_bypass",
        "abuse_replication",
        "postgres",
        "tide_authenticator",
        "pg_monitor",
        "pg_read_all_data",
        "none",
        "public",
    ] {
        assert_eq!(refused(&signed(&json!({ "role": role, "exp": FAR }))), 403, "{role}");
    }
    sql.batch_execute(
        "revoke abuse_super, abuse_bypass, abuse_replication from tide_authenticator",
    )
    .unwrap();
}

#[test]
fn a_megabyte_of_claims() {
    let huge = signed(&json!({ "role": "authenticated", "exp": FAR, "x": "x".repeat(1 << 20) }));
    let large = signed(&json!({ "role": "authenticated", "exp": FAR, "x": "x".repeat(500_000) }));
    // More than a request's head may have.
    let status = http_status(&format!(
        "GET /realtime/v1/websocket?apikey={huge} HTTP/1.1\r\nhost: localhost\r\n\r\n"
    ));
    assert!(matches!(status, Some(414 | 431) | None), "{status:?}");
    let mut client = good_client();
    let reply = client.call(
        "realtime:a",
        "phx_join",
        &json!({ "config": private(), "access_token": large }),
    );
    assert_eq!(reply["status"], "error");
    is_unharmed(&mut client, &mut good_client());
}

#[test]
fn an_expiry_at_the_end_of_time() {
    for exp in [json!(9_223_372_036_854_775_808_u64), json!(u64::MAX), json!(i64::MAX)] {
        let token = signed(&json!({ "role": "authenticated", "exp": exp }));
        let mut client = database().connect(&format!("apikey={token}&vsn=2.0.0"));
        client.join("realtime:a", &private());
        assert_eq!(client.call("realtime:a", "broadcast", &say("e"))["status"], "ok");
    }
    for exp in [json!(i64::MIN), json!(-1), json!(1e300), json!("9999999999"), json!([FAR])] {
        let token = signed(&json!({ "role": "authenticated", "exp": exp }));
        assert_eq!(refused(&token), 401, "{exp}");
    }
}

#[test]
fn ten_thousand_joins_at_once() {
    let quiet = Cluster::shared().database("abuse_joins");
    admit_all(&quiet);
    let (mut flood, mut one, mut other) = (quiet.client(), quiet.client(), quiet.client());

    for n in 0..10_000 {
        let frame = json!([n.to_string(), n.to_string(), format!("realtime:{n}"), "phx_join",
            { "config": private() }]);
        flood.send_text_if_open(&frame.to_string());
    }

    let Closed(reason) = flood.wait_until_closed();
    // The client may find the connection gone before it has read the reason.
    assert!(reason.is_none_or(|(code, _)| code == 1008));
    wait_until("its channels are gone", || (channels(&quiet) == 0).then_some(()));
    assert!(metric(&quiet, "refused_joins_total{reason=\"rate\"}") >= 1);
    is_unharmed(&mut one, &mut other);
}

#[test]
fn topics_of_every_kind_of_character() {
    let mut client = good_client();
    let mut names: Vec<String> = (1..=0x7Fu8).map(|byte| char::from(byte).to_string()).collect();
    names.extend(
        [
            "é",
            "日本",
            "🙂",
            "\u{202e}drawkcab",
            "\u{200b}",
            "\u{feff}",
            "\u{fffd}",
            "\u{7f}\u{80}",
            "a\"b'c\\d",
            "$$",
            "$1",
            "%s%n",
            "{{x}}",
            "../..",
            "a,b;c",
            "-- x",
            "/* x",
            "null",
            "*",
            "\r\nSet-Cookie: a=b",
            "<script>",
            "tide",
            "Tide:x",
            " tide:x",
            "realtime:x",
        ]
        .map(str::to_owned),
    );
    names.push("x".repeat(246));
    for (index, name) in names.into_iter().enumerate() {
        let topic = format!("realtime:{name}");
        // One connection may join so often only.
        if index % 50 == 49 {
            client = good_client();
        }

        client.join(&topic, &private());
        assert_eq!(client.call(&topic, "broadcast", &say(&name))["status"], "ok", "{name:?}");
        assert_eq!(client.broadcast(&topic), say(&name), "{name:?}");
        client.call(&topic, "phx_leave", &json!({}));
    }
    for name in ["\0", "den\0x", &"x".repeat(247), ""] {
        let reply = client.try_join(&format!("realtime:{name}"), &private());
        assert_eq!(reply["status"], "error", "{name:?}");
    }
}

#[test]
fn requests_of_other_origins() {
    let origins = [("tide.allowed_origins", "https://app.example"), ("tide.anon_role", "anon")];
    let database = Cluster::shared().database_with("abuse_origins", &origins);
    let upgrade = |origin: &str| {
        let request = format!(
            "GET /realtime/v1/websocket?apikey=anon HTTP/1.1\r\nhost: localhost\r\n{origin}\
             connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        status(database.port, &request)
    };
    assert_eq!(upgrade(""), Some(101));
    assert_eq!(upgrade("origin: https://app.example\r\n"), Some(101));
    for origin in [
        "https://evil.example",
        "null",
        "http://app.example",
        "https://app.example.evil.example",
        "https://evil.example/https://app.example",
        "https://app.example:444",
        "",
    ] {
        assert_eq!(upgrade(&format!("origin: {origin}\r\n")), Some(403), "{origin}");
        let headers = [("origin", origin), ("content-type", "application/json")];
        let answer = http::request(database.port, "POST", "/api/broadcast?apikey=anon", &headers);
        assert_eq!(answer.status, 403, "{origin}");
    }
}

#[test]
fn headers_that_would_be_more_than_one() {
    let token = signed(&json!({ "role": "authenticated", "exp": FAR }));
    for path in [
        "/api/broadcast/a%0d%0aX-Injected:%20yes/events/e?private=true",
        "/api/broadcast/a/events/%0d%0aX-Injected:%20yes?private=true",
        "/realtime/v1/websocket?apikey=%0d%0aX-Injected:%20yes&vsn=%0d%0aX-Injected:%20yes",
        "/%0d%0aX-Injected:%20yes",
    ] {
        let bearer = format!("Bearer {token}");
        let method = if path.starts_with("/api") { "POST" } else { "GET" };
        let answer = http::request(database().port, method, path, &[("authorization", &bearer)]);
        assert!(!answer.head.to_lowercase().contains("x-injected"), "{path}: {}", answer.head);
    }
    // Two lengths, or a length and chunks: what a proxy may read otherwise is not read at all.
    for headers in [
        "content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        "content-length: -1\r\n\r\n",
        "content-length: 2, 3\r\n\r\n{}",
        "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "bad header: x\r\n\r\n",
        "x: a\0b\r\n\r\n",
        "x\r\n y: folded\r\n\r\n",
    ] {
        let request = format!(
            "POST /api/broadcast HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}"
        );
        assert_eq!(http_status(&request), Some(400), "{headers:?}");
    }
    is_unharmed(&mut good_client(), &mut good_client());
}

#[test]
fn paths_that_lead_elsewhere() {
    for path in [
        "//",
        "/..",
        "/../",
        "/./health",
        "//health",
        "/health/",
        "/health//",
        "/health/..",
        "/%2e%2e/health",
        "/%68ealth",
        "/health%00",
        "/health;x",
        "/Health",
        "/realtime//v1/websocket",
        "/realtime/v1/../v1/websocket",
        "/realtime%2Fv1%2Fwebsocket",
        "/realtime/v1/websocket/",
        "/socket/websocket/x",
        "/api//broadcast",
        "/api/broadcast/",
        "/api/broadcast/../../etc/passwd",
        "/api/broadcast/a/events/",
        "/api/broadcast//events/e",
        "/api/broadcast/a/events/e/..",
        "/etc/passwd",
        "\\",
        "/pg_tide.sock",
    ] {
        for method in ["GET", "POST"] {
            let answer = http::request(database().port, method, path, &[]);
            assert!(matches!(answer.status, 400 | 404), "{method} {path}: {}", answer.head);
        }
    }
    // An absolute address is what a proxy would be asked for.
    let answer = http_status("GET http://other.example/metrics HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(matches!(answer, Some(400 | 403 | 404)), "{answer:?}");
    assert_eq!(http_status("CONNECT other:80 HTTP/1.1\r\nhost: x\r\n\r\n"), Some(404));
}

#[test]
fn sql_in_every_string() {
    let t = database().table("victim", "id int primary key, note text");
    let mut sql = database().sql();
    sql.batch_execute(&format!("insert into {t} values (1, 'there')")).unwrap();
    let since = database().cluster.log().len();
    for evil in [
        format!("'; drop table {t}; --"),
        format!("\"; drop table {t}; --"),
        format!("$$; drop table {t}; --"),
        format!("\\'; drop table {t}; --"),
        format!("') or (delete from {t}) is null --"),
        format!("/*'*/; drop table {t}"),
    ] {
        let claims =
            json!({ "role": "authenticated", "exp": FAR, "sub": evil, "x": { &evil: evil } });
        let mut client =
            database().connect(&format!("apikey={}&vsn=2.0.0&evil={}", signed(&claims), "x"));
        let topic = format!("realtime:{evil}");
        client.join(
            &topic,
            &json!({
                "private": true, "presence": { "key": evil, "enabled": true },
                "broadcast": { "ack": true },
            }),
        );
        client.call(&topic, "broadcast", &say(&evil));
        client.call(&topic, "presence", &json!({ "event": "track", "payload": { &evil: evil } }));
        client.call(&topic, &evil, &json!({ &evil: evil }));
        for binding in [
            json!({ "event": "*", "schema": evil, "table": t }),
            json!({ "event": "*", "schema": "public", "table": evil }),
            json!({ "event": evil, "schema": "public", "table": t }),
            json!({ "event": "*", "schema": "public", "table": t, "filter": format!("note=eq.{evil}") }),
            json!({ "event": "*", "schema": "public", "table": t, "filter": format!("id=eq.{evil}") }),
            json!({ "event": "*", "schema": "public", "table": t, "filter": format!("{evil}=eq.1") }),
            json!({ "event": "*", "schema": "public", "table": t, "filter": format!("id=in.({evil})") }),
            json!({ "event": "*", "schema": "public", "table": t, "filter": format!("note=match.{evil}") }),
            json!({ "event": "*", "schema": "public", "table": t, "select": [evil] }),
        ] {
            client.try_join("realtime:bound", &json!({ "postgres_changes": [binding] }));
        }
        for config in
            [json!({ "since": evil }), json!({ "filter": evil }), json!({ "select": [evil] })]
        {
            client.try_join(
                &format!("realtime:tide:table:public.{t}"),
                &json!({ "broadcast": config }),
            );
        }
        client.try_join(&format!("realtime:tide:table:public.{evil}"), &json!({}));
        client.try_join(&format!("realtime:tide:table:{evil}.t"), &json!({}));
        let body = json!({ "messages": [
            { "topic": evil, "event": evil, "payload": { &evil: evil }, "private": true }] });
        assert_eq!(
            post(&signed(&claims), "/realtime/v1/api/broadcast", &body.to_string()),
            202,
            "{evil}"
        );
        assert_eq!(refused(&signed(&json!({ "role": evil, "exp": FAR }))), 403, "{evil}");
    }
    let notes: String = sql.query_one(&format!("select note from {t}"), &[]).unwrap().get(0);
    assert_eq!(notes, "there");
    let log = &database().cluster.log()[since..];
    assert!(!log.contains("syntax error"), "{log}");
}

/// Code that belongs to others runs in executors. Whatever it tries, the session stays as it was.
#[test]
fn policies_that_want_to_be_somebody_else_or_to_leave_something() {
    let database = Cluster::shared().database("abuse_policies");
    let mut sql = database.sql();
    sql.batch_execute(
        "create table attempts (topic text primary key, statement text);
         create table target (n int);
         create sequence numbers;
         grant select on attempts to public;
         grant all on target, numbers to public;
         grant create on schema public to public;
         create function try() returns boolean language plpgsql as $$
         begin
             execute (select statement from attempts as a where a.topic = tide.topic());
             return true;
         end $$;
         -- What the session of the process is like, and always has to be.
         create function is_as_before() returns boolean language sql stable as $$
             select session_user = 'tide_authenticator'
                and current_user = 'authenticated'
                and not exists (select from pg_prepared_statements)
                and not exists (select from pg_listening_channels())
                and not exists (select from pg_cursors where is_holdable)
                and not exists (select from pg_locks where pid = pg_backend_pid()
                                                       and locktype = 'advisory')
                and pg_my_temp_schema() = 0
                and coalesce(current_setting('abuse.left', true), '') = ''
                and coalesce(current_setting('request.other', true), '') = ''
                and current_setting('transaction_read_only') = 'on'
         $$;
         create policy p on tide.channel for select
             using (case when topic = 'before' then is_as_before() else try() end);
         -- No row is ever inserted, so it never fires.
         create function trap() returns trigger language plpgsql as $$
         begin
             execute 'reset role';
             return new;
         end $$;
         create trigger trap before insert on tide.channel execute function trap();",
    )
    .unwrap();
    let mut client = database.client();
    for (n, (statement, is_refused)) in [
        ("reset role", true),
        ("set role postgres", true),
        ("set role tide_authenticator", true),
        ("set local role none", true),
        ("reset session authorization", true),
        ("set session authorization postgres", true),
        ("set local session authorization default", true),
        ("select set_config('role', 'postgres', false)", true),
        ("create temp table left_behind (n int)", true),
        ("create table left_behind (n int)", true),
        ("select 1 into temp left_behind", true),
        ("insert into target values (1)", true),
        ("select nextval('numbers')", true),
        ("listen left_behind", true),
        ("unlisten *", true),
        ("prepare left_behind as select 1", true),
        ("deallocate all", true),
        ("discard all", true),
        ("declare left_behind cursor with hold for select 1", true),
        ("copy target to program 'true'", true),
        ("copy target from '/etc/passwd'", true),
        ("alter role current_user superuser", true),
        ("alter table tide.channel disable row level security", true),
        ("set transaction read write", true),
        ("commit", true),
        ("rollback", true),
        ("load 'plpgsql'", true),
        ("select * from tide.secret", true),
        ("select pg_read_file('/etc/passwd')", true),
        ("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres'", true),
        ("do $x$ begin raise exception 'by %', session_user; end $x$", true),
        ("select pg_sleep(3600)", true),
        // These may succeed, for the moment.
        // Before version 16, that is.
        ("select lo_create(0)", false),
        ("select pg_advisory_lock(1)", false),
        ("select set_config('abuse.left', 'behind', false)", false),
        ("set session abuse.left = 'behind'", false),
        ("select set_config('request.other', 'behind', false)", false),
        ("set session statement_timeout = 0", false),
        ("notify left_behind", false),
    ]
    .into_iter()
    .enumerate()
    {
        let topic = format!("attempt {n}");
        let insert = "insert into attempts values ($1, $2)";
        sql.execute(insert, &[&topic, &statement]).unwrap();

        let reply = client.try_join(&format!("realtime:{topic}"), &private());
        if is_refused {
            assert_eq!(reply["status"], "error", "{statement}: {reply}");
        }
        client.join("realtime:before", &private());
        client.call("realtime:before", "phx_leave", &json!({}));
    }
    let left: i64 = sql
        .query_one(
            "select (select count(*) from target) + (select count(*) from tide.channel)
                  + (select count(*) from pg_class where relname = 'left_behind')
                  + (select count(*) from pg_largeobject_metadata)
                  + (select last_value from numbers) - 1
                  + (select count(*) from pg_locks where locktype = 'advisory')",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
}

#[test]
fn a_flood_of_broadcasts() {
    let quiet = Cluster::shared().database("abuse_broadcasts");
    admit_all(&quiet);
    let (mut flood, mut one, mut other) = (quiet.client(), quiet.client(), quiet.client());
    for client in [&mut flood, &mut one] {
        client.join("realtime:flooded", &json!({ "private": true }));
    }

    for _ in 0..2_000 {
        flood.push("realtime:flooded", "broadcast", &say("flood"));
    }

    let told = flood.wait_for("the reason", |frame| frame.event == "system");
    assert_eq!(told.payload["message"], "Too many messages per second");
    flood.wait_for("the end of the channel", |frame| frame.event == "phx_close");
    assert!(metric(&quiet, "refused_broadcasts_total{reason=\"rate\"}") >= 1);
    is_unharmed(&mut one, &mut other);
}

#[test]
fn a_flood_of_presence() {
    let quiet = Cluster::shared().database("abuse_presence");
    admit_all(&quiet);
    let (mut flood, mut one, mut other) = (quiet.client(), quiet.client(), quiet.client());
    let watching =
        |key: &str| json!({ "private": true, "presence": { "key": key, "enabled": true } });
    flood.join("realtime:flooded", &watching("flood"));
    one.join("realtime:flooded", &watching("one"));

    for n in 0..2_000 {
        let track = json!({ "type": "presence", "event": "track", "payload": { "n": n } });
        flood.push("realtime:flooded", "presence", &track);
    }

    let told = flood.wait_for("the reason", |frame| frame.event == "system");
    assert_eq!(told.payload["message"], "Client presence rate limit exceeded");
    flood.wait_for("the end of the channel", |frame| frame.event == "phx_close");
    // It is not present any more.
    other.join("realtime:flooded", &watching("other"));
    let state = other.wait_for("who is there", |frame| frame.event == "presence_state");
    assert_eq!(state.payload, json!({}));
    assert!(metric(&quiet, "refused_presence_total{reason=\"rate\"}") >= 1);
    is_unharmed(&mut one, &mut other);
}

/// Messages that never become complete, far more than the worker may use for them.
#[test]
fn a_memory_limit_that_is_reached() {
    let cluster = Cluster::with("tide.memory_limit = '64MB'\n");
    let database = cluster.database("abuse_memory");
    admit_all(&database);
    let (mut one, mut other) = (database.client(), database.client());
    let token = database.token("authenticated");
    let header = {
        // A masked text frame of 1,000,000 bytes.
        let mut header = vec![0x81, 0x80 | 127];
        header.extend_from_slice(&1_000_000u64.to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        header
    };
    let part = vec![b'x'; 900_000];

    let hoarders: Vec<Client> = (0..40)
        .map(|_| {
            let mut client = database.connect(&format!("apikey={token}&vsn=2.0.0"));
            client.send_raw(&header);
            client.send_raw(&part);
            client
        })
        .collect();

    wait_until("those past the limit are cut off", || {
        let query = "select count(*) from tide.stat_connections";
        let left: i64 = database.sql().query_one(query, &[]).unwrap().get(0);
        (left < 22).then_some(())
    });
    is_unharmed(&mut one, &mut other);
    drop(hoarders);
    wait_until("the others go as well", || {
        let query = "select count(*) from tide.stat_connections";
        let left: i64 = database.sql().query_one(query, &[]).unwrap().get(0);
        (left == 2).then_some(())
    });
    // There is room again.
    let mut client = database.client();
    client.join("realtime:again", &private());
    let large = json!({ "event": "large", "payload": { "x": "x".repeat(200_000) } });
    assert_eq!(client.call("realtime:again", "broadcast", &large)["status"], "ok");
}

fn post(token: &str, path: &str, body: &str) -> u16 {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\nauthorization: Bearer {token}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    http_status(&request).unwrap()
}

fn http_status(request: &str) -> Option<u16> {
    status(database().port, request)
}

/// The status that a request is answered with, whatever it is; `None`: with the end of the
/// connection.
fn status(port: u16, request: &str) -> Option<u16> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    // The server may refuse it before it has read all.
    let _ = socket.write_all(request.as_bytes());
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).ok()?;
    str::from_utf8(&answer).ok()?.split(' ').nth(1)?.parse().ok()
}
