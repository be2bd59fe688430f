//! Who a client is, and what it may therefore see.

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::{Cluster, Database, token};

fn database() -> &'static Database<'static> {
    static DATABASE: std::sync::LazyLock<Database<'static>> =
        std::sync::LazyLock::new(|| Cluster::shared().database("identity"));
    &DATABASE
}

const SECRET: &str = "a-secret-of-more-than-thirty-two-bytes";

/// A database whose secret the test knows.
fn known_secret() -> &'static Database<'static> {
    static DATABASE: std::sync::LazyLock<Database<'static>> = std::sync::LazyLock::new(|| {
        Cluster::shared().database_with("identity_secret", &[("tide.jwt_secret", SECRET)])
    });
    &DATABASE
}

const FAR: i64 = 4_102_444_800;

fn header(algorithm: &str) -> Value {
    json!({ "alg": algorithm, "typ": "JWT" })
}

fn refused(database: &Database<'_>, token: &str) -> u16 {
    database.try_connect(&format!("apikey={token}&vsn=2.0.0")).unwrap_err().status
}

fn insert(table: &str, values: &str) {
    database().sql().batch_execute(&format!("insert into {table} values ({values})")).unwrap();
}

/// Whether a client with this role gets a subscription to the table.
fn subscribes(client: &mut Client, topic: &str, table: &str) -> bool {
    client.join(
        &format!("realtime:{topic}"),
        &json!({ "postgres_changes": [{ "event": "*", "schema": "public", "table": table }] }),
    );
    let system = client.wait_for("the system frame", |frame| {
        frame.event == "system" && frame.topic == format!("realtime:{topic}")
    });
    system.payload["status"] == "ok"
}

#[test]
fn a_token_of_the_known_secret_is_accepted() {
    let claims = json!({ "role": "authenticated", "exp": FAR });
    let token = token::signed(&header("HS256"), &claims, SECRET.as_bytes());

    known_secret().connect(&format!("apikey={token}&vsn=2.0.0"));
}

#[test]
fn the_extensions_own_tokens_have_role_claims_and_expiry() {
    let made = database().token_with("authenticated", r#"{"sub": "me", "n": 1}"#, "1 hour");

    let claims = token::claims(&made);
    assert_eq!(claims["role"], "authenticated");
    assert_eq!(claims["sub"], "me");
    assert_eq!(claims["n"], 1);
    assert!(claims["exp"].is_i64(), "{claims}");
    database().connect(&format!("apikey={made}&vsn=2.0.0"));
}

#[test]
fn forged_tokens_are_refused() {
    let good = json!({ "role": "authenticated", "exp": FAR });
    let secret = SECRET.as_bytes();
    let signed = token::signed(&header("HS256"), &good, secret);
    let tampered = {
        let parts: Vec<&str> = signed.split('.').collect();
        let other = token::signed(&header("HS256"), &json!({ "role": "anon", "exp": FAR }), secret);
        format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap(), parts[2])
    };
    let cases = [
        ("no algorithm", token::unsigned(&header("none"), &good)),
        ("no algorithm, spelt otherwise", token::unsigned(&header("NoNe"), &good)),
        ("no signature", token::unsigned(&header("HS256"), &good)),
        ("another secret", token::signed(&header("HS256"), &good, b"another")),
        ("an empty secret", token::signed(&header("HS256"), &good, b"")),
        ("RS256 claimed, HMAC signed", token::signed(&header("RS256"), &good, secret)),
        ("HS512 claimed", token::signed(&header("HS512"), &good, secret)),
        ("claims exchanged", tampered),
        (
            "expired",
            token::signed(&header("HS256"), &json!({ "role": "authenticated", "exp": 1 }), secret),
        ),
        ("no expiry", token::signed(&header("HS256"), &json!({ "role": "authenticated" }), secret)),
        ("no role", token::signed(&header("HS256"), &json!({ "exp": FAR }), secret)),
        (
            "a role that is no text",
            token::signed(&header("HS256"), &json!({ "role": 1, "exp": FAR }), secret),
        ),
        ("claims that are no object", token::signed(&header("HS256"), &json!([1]), secret)),
        (
            "an unknown critical header",
            token::signed(&json!({ "alg": "HS256", "crit": ["x"], "x": 1 }), &good, secret),
        ),
    ];
    for (what, token) in cases {
        assert_eq!(refused(known_secret(), &token), 401, "{what}");
    }
}

#[test]
fn roles_that_clients_may_not_have_are_refused() {
    let mut sql = known_secret().sql();
    sql.batch_execute(
        "create role i_not_granted nologin;
         create role i_super nologin superuser;
         create role i_bypass nologin bypassrls;
         create role i_replication nologin replication;
         grant i_super, i_bypass, i_replication to tide_authenticator;",
    )
    .unwrap();
    for role in [
        "i_not_granted",
        "i_super",
        "i_bypass",
        "i_replication",
        "postgres",
        "no_such_role",
        "tide_authenticator",
        "",
    ] {
        let claims = json!({ "role": role, "exp": FAR });
        let token = token::signed(&header("HS256"), &claims, SECRET.as_bytes());
        let status = refused(known_secret(), &token);
        assert!(status == 401 || status == 403, "{role}: {status}");
    }
}

#[test]
fn the_audience_must_be_the_configured_one() {
    let database = Cluster::shared().database_with(
        "identity_audience",
        &[("tide.jwt_secret", SECRET), ("tide.jwt_audience", "boats")],
    );
    let with = |audience: Value| {
        let claims = json!({ "role": "authenticated", "exp": FAR, "aud": audience });
        token::signed(&header("HS256"), &claims, SECRET.as_bytes())
    };

    database.connect(&format!("apikey={}&vsn=2.0.0", with(json!("boats"))));
    database.connect(&format!("apikey={}&vsn=2.0.0", with(json!(["cars", "boats"]))));
    assert_eq!(refused(&database, &with(json!("cars"))), 401);
    assert_eq!(refused(&database, &with(Value::Null)), 401);
}

#[test]
fn without_a_token_a_client_is_anon_or_refused() {
    let open = Cluster::shared().database_with("identity_anon", &[("tide.anon_role", "anon")]);
    for query in ["vsn=2.0.0", "apikey=anon&vsn=2.0.0", "apikey=sb_publishable_x&vsn=2.0.0"] {
        open.connect(query);
        assert_eq!(database().try_connect(query).unwrap_err().status, 401, "{query}");
    }
    // What looks like a token must be a good one, whatever the anonymous may do.
    assert_eq!(refused(&open, "a.b.c"), 401);
    assert_eq!(refused(&open, "eyJhbGciOiJub25lIn0.e30."), 401);
}

#[test]
fn grant_and_revoke_decide_from_the_next_event_on() {
    let t = database().table("granted", "id int primary key, a text");
    let marker = database().table("marker", "id int primary key");
    let mut client = database().client();
    assert!(subscribes(&mut client, "t", &t));
    assert!(subscribes(&mut client, "m", &marker));
    let mut sql = database().sql();

    // Privileges are today's, so each step waits for the one before.
    let mut next = || {
        let change = client.change();
        let table = if change["table"] == json!(t) { "t" } else { "m" };
        format!("{table} {}", change["record"]["id"])
    };
    insert(&t, "1, 'x'");
    assert_eq!(next(), "t 1");
    sql.batch_execute(&format!("revoke select on {t} from authenticated")).unwrap();
    insert(&t, "2, 'x'");
    insert(&marker, "2");
    assert_eq!(next(), "m 2");
    sql.batch_execute(&format!("grant select on {t} to authenticated")).unwrap();
    insert(&t, "3, 'x'");
    assert_eq!(next(), "t 3");
}

#[test]
fn column_privileges_cut_rows_and_columns() {
    let t = database().fresh_name("columns");
    database()
        .sql()
        .batch_execute(&format!(
            "create table {t} (id int primary key, open text, secret text);
             alter table {t} replica identity full;
             grant select (id, open) on {t} to authenticated;
             select tide.publish('{t}')"
        ))
        .unwrap();
    let mut client = database().client();
    client.subscribe("room", &t);

    insert(&t, "1, 'x', 'hidden'");
    database().sql().batch_execute(&format!("delete from {t}")).unwrap();

    let changes = client.changes(2);
    assert_eq!(changes[0]["record"], json!({ "id": 1, "open": "x" }));
    assert_eq!(changes[0]["columns"].as_array().unwrap().len(), 2);
    assert_eq!(changes[1]["old_record"], json!({ "id": 1, "open": "x" }));
    // Nor can the hidden column be found out by filters or asked for.
    for binding in [
        json!({ "event": "*", "schema": "public", "table": t, "filter": "secret=eq.hidden" }),
        json!({ "event": "*", "schema": "public", "table": t, "select": ["secret"] }),
    ] {
        let mut client = database().client();
        client.join("realtime:room", &json!({ "postgres_changes": [binding] }));
        let system = client.wait_for("the system frame", |frame| frame.event == "system");
        assert_eq!(system.payload["status"], "error", "{}", system.text);
        assert!(!system.text.contains("hidden\" does not"), "{}", system.text);
    }
}

#[test]
fn a_table_without_grants_is_not_delivered_by_wildcards() {
    let open = database().table("open", "id int primary key");
    database()
        .sql()
        .batch_execute(
            "create table i_closed (id int primary key); select tide.publish('i_closed')",
        )
        .unwrap();
    let mut client = database().client();
    client.subscribe_to("room", json!({ "event": "*", "schema": "public" }));

    insert("i_closed", "1");
    insert(&open, "7");

    let change = client.wait_for("the open row", |frame| {
        assert!(!frame.text.contains("i_closed"), "{}", frame.text);
        frame.event == "postgres_changes" && frame.payload["data"]["table"] == json!(open)
    });
    assert_eq!(change.payload["data"]["record"]["id"], 7);
}

#[test]
fn a_renewed_token_changes_what_is_seen() {
    let t = database().fresh_name("renewed");
    let mut sql = database().sql();
    sql.batch_execute(&format!(
        "create table {t} (id int primary key); grant select on {t} to anon; select tide.publish('{t}')"
    ))
    .unwrap();
    let marker = database().table("marker", "id int primary key");
    sql.batch_execute(&format!("grant select on {marker} to anon")).unwrap();
    let mut client = database().client_as("anon");
    client.subscribe_to("room", json!({ "event": "*", "schema": "public" }));
    insert(&t, "1");
    client.wait_for("the first row", |frame| frame.payload["data"]["table"] == json!(t));

    let renewed = database().token("authenticated");
    client.push("realtime:room", "access_token", &json!({ "access_token": renewed }));
    // A heartbeat behind it: its answer means that the token has been read, not yet that it holds.
    client.call("phoenix", "heartbeat", &json!({}));
    let mut round = 1;
    crate::support::wait_until("the new role's privileges hold", || {
        round += 1;
        insert(&t, &round.to_string());
        insert(&marker, &round.to_string());
        let frame = client.wait_for("a row", |frame| {
            let data = &frame.payload["data"];
            (data["table"] == json!(t) || data["table"] == json!(marker))
                && data["record"]["id"] == round
        });
        (frame.payload["data"]["table"] == json!(marker)).then_some(())
    });
}

#[test]
fn a_bad_token_closes_the_channel() {
    let t = database().table("bad_token", "id int primary key");
    let mut client = database().client();
    client.subscribe("room", &t);

    client.push(
        "realtime:room",
        "access_token",
        &json!({ "access_token": "eyJhbGciOiJub25lIn0.e30." }),
    );

    let system = client.wait_for("the reason", |frame| {
        frame.event == "system" && frame.payload["status"] == "error"
    });
    assert_eq!(system.topic, "realtime:room");
    client.wait_for("the end of the channel", |frame| frame.event == "phx_close");
}

#[test]
fn an_expired_token_closes_the_channel() {
    let t = database().table("expiring", "id int primary key");
    let token = database().token_with("authenticated", "{}", "3 seconds");
    let mut client = database().connect(&format!("apikey={token}&vsn=2.0.0"));
    client.subscribe("room", &t);

    let system = client.wait_for("the reason", |frame| {
        frame.event == "system" && frame.payload["status"] == "error"
    });
    assert!(system.payload["message"].as_str().unwrap().contains("expired"), "{}", system.text);
    client.wait_for("the end of the channel", |frame| frame.event == "phx_close");
}

#[test]
fn a_join_may_bring_a_token_of_its_own() {
    let t = database().table("own_token", "id int primary key");
    let mut client = database().client_as("anon");
    let token = database().token("authenticated");

    let reply = client.call(
        "realtime:room",
        "phx_join",
        &json!({
            "config": { "postgres_changes": [{ "event": "*", "schema": "public", "table": t }] },
            "access_token": token,
        }),
    );
    assert_eq!(reply["status"], "ok");
    client.wait_for("the system frame", |frame| {
        frame.event == "system" && frame.payload["status"] == "ok"
    });
    insert(&t, "1");
    assert_eq!(client.change()["record"]["id"], 1);
}

#[test]
fn ordinary_users_cannot_make_tokens_or_read_the_secret() {
    let mut superuser = database().sql();
    superuser.batch_execute("create role i_nobody login").unwrap();
    let mut sql = database().cluster.try_connect(&database().name, "i_nobody").unwrap();

    for statement in [
        "select tide.token('authenticated', '{}', interval '1 hour')",
        "select * from tide.secret",
        "select tide.publish('pg_class')",
    ] {
        assert!(sql.batch_execute(statement).is_err(), "{statement}");
    }
    // Every table in the schema that holds a secret is closed to the public.
    let open: Vec<String> = superuser
        .query(
            "select relname::text from pg_class
             where relnamespace = 'tide'::regnamespace and relkind = 'r'
               and relname ~ 'secret|key' and has_table_privilege('i_nobody', oid, 'select')",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(open, Vec::<String>::new());
}
