//! What a newcomer does: create the extension, publish a table, connect, insert a row.

use serde_json::{Value, json};

use crate::support::{Cluster, Database, http};

fn database() -> &'static Database<'static> {
    static DATABASE: std::sync::LazyLock<Database<'static>> =
        std::sync::LazyLock::new(|| Cluster::shared().database("first_minute"));
    &DATABASE
}

#[test]
fn an_inserted_row_reaches_a_subscriber() {
    let database = database();
    let orders = database.table("orders", "id int primary key, item text");
    let mut client = database.client();
    let id = client.subscribe("room", &orders);

    database.sql().batch_execute(&format!("insert into {orders} values (1, 'a boat')")).unwrap();

    let frame = client.wait_for("the change", |frame| frame.event == "postgres_changes");
    assert_eq!(frame.topic, "realtime:room");
    assert_eq!(frame.payload["ids"], json!([id]));
    let data = &frame.payload["data"];
    assert_eq!(data["type"], "INSERT");
    assert_eq!(data["schema"], "public");
    assert_eq!(data["table"], json!(orders));
    assert_eq!(data["record"], json!({ "id": 1, "item": "a boat" }));
    assert_eq!(
        data["columns"],
        json!([{ "name": "id", "type": "int4" }, { "name": "item", "type": "text" }])
    );
    assert_eq!(data["errors"], Value::Null);
    assert!(data["commit_timestamp"].as_str().unwrap().ends_with('Z'), "{data}");
    assert_eq!(data.get("old_record"), None);
}

#[test]
fn what_is_rolled_back_never_arrives() {
    let database = database();
    let orders = database.table("orders", "id int primary key");
    let mut client = database.client();
    client.subscribe("room", &orders);

    database
        .sql()
        .batch_execute(&format!(
            "begin; insert into {orders} values (1); rollback;
             insert into {orders} values (2)"
        ))
        .unwrap();

    assert_eq!(client.change()["record"]["id"], 2);
}

#[test]
fn check_finds_nothing_wrong() {
    let database = database();
    database.table("orders", "id int primary key");
    database.wait_for_helpers();

    let rows =
        database.sql().query("select item, ok, problem, fix from tide.check()", &[]).unwrap();

    assert!(!rows.is_empty());
    for row in rows {
        let (item, ok): (String, Option<bool>) = (row.get(0), row.get(1));
        let problem: Option<String> = row.get(2);
        assert_ne!(ok, Some(false), "{item}: {problem:?}");
    }
}

#[test]
fn recent_shows_the_last_events() {
    let database = database();
    let orders = database.table("orders", "id int primary key, item text");
    let mut client = database.client();
    client.subscribe("room", &orders);
    database
        .sql()
        .batch_execute(&format!("insert into {orders} values (1, 'x'); delete from {orders}"))
        .unwrap();
    client.changes(2);

    let recent = database
        .json("select coalesce(jsonb_agg(to_jsonb(r)), '[]')::text from tide.recent(100) r");

    let events: Vec<&Value> = recent
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event.to_string().contains(&orders))
        .collect();
    let operations: Vec<&Value> = events.iter().map(|event| &event["operation"]).collect();
    assert_eq!(operations, ["CREATE_TABLE", "INSERT", "DELETE"], "{recent:#}");
}

#[test]
fn create_extension_ends_with_the_url_and_the_next_step() {
    let database = Database::without_extension(Cluster::shared(), "first_minute_notice", &[]);

    let notice = create_extension(&database);

    assert!(notice.contains("NOTICE"), "{notice}");
    assert!(notice.contains(&format!("http://localhost:{}", database.port)), "{notice}");
    assert!(notice.contains("tide.publish"), "{notice}");
}

/// What psql shows of it.
fn create_extension(database: &Database<'_>) -> String {
    let create = ["-d", &database.name, "-c", "create extension pg_tide"];
    let output = crate::support::cluster::as_owner("psql")
        .args(["-X", "-U", "postgres", "-h"])
        .arg(database.cluster.host())
        .args(create)
        .output()
        .unwrap();
    let notice = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{notice}");
    notice
}

#[test]
fn create_extension_does_not_name_a_port_that_somebody_else_has() {
    let database = Database::without_extension(Cluster::shared(), "first_minute_taken", &[]);
    let port = database.port;
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();

    let notice = create_extension(&database);

    assert!(notice.contains(&format!("something else listens on port {port} already")), "{notice}");
    assert!(notice.contains("alter database first_minute_taken set tide.port = "), "{notice}");
    assert!(!notice.contains("http://"), "{notice}");
    drop(taken);
}

#[test]
fn an_error_has_no_backtrace_whatever_the_server_is_told() {
    // All servers of the tests have RUST_BACKTRACE set.
    let database = Cluster::shared().database("first_minute_backtrace");
    let mut sql = database.sql();
    sql.batch_execute("create table t (id int primary key); select tide.create_schema('ds')")
        .unwrap();
    let mut detail = |statement: &str| {
        let error = sql.batch_execute(statement).unwrap_err();
        error.as_db_error().unwrap().detail().unwrap_or_default().to_owned()
    };

    let no_outbox = detail("select tide.adopt_outbox('t')");
    let denied = detail("set role anon; select tide.record_set('a/b', '1')");

    assert!(no_outbox.contains("column \"channel\" is missing"), "{no_outbox}");
    assert!(!no_outbox.contains('\n'), "{no_outbox}");
    assert_eq!(denied, "");
}

#[test]
fn an_owner_who_may_not_publish_is_told_what_lets_it() {
    let database = Cluster::shared().database("first_minute_owner");
    let mut sql = database.sql();
    sql.batch_execute(
        "create table public.first (id int primary key); select tide.publish('first')",
    )
    .unwrap();
    sql.batch_execute(
        "create role shopkeeper; create schema authorization shopkeeper;
         set role shopkeeper; create table shopkeeper.goods (id int primary key)",
    )
    .unwrap();

    let error = sql.batch_execute("select tide.publish('shopkeeper.goods')").unwrap_err();

    let error = error.as_db_error().unwrap().clone();
    assert_eq!(error.code().code(), "42501");
    sql.batch_execute("reset role").unwrap();
    let (_, hint) = error.hint().unwrap().split_once("from now on: ").unwrap();
    sql.batch_execute(hint).unwrap();
    sql.batch_execute("set role shopkeeper; select tide.publish('shopkeeper.goods'); reset role")
        .unwrap();
}

#[test]
fn without_preloading_create_extension_names_the_line_to_add() {
    let cluster = Cluster::with("shared_preload_libraries = ''");

    let error = cluster.connect("postgres").batch_execute("create extension pg_tide").unwrap_err();

    let error = error.as_db_error().unwrap();
    let text = format!("{} {}", error.message(), error.hint().unwrap_or_default());
    assert!(text.contains("shared_preload_libraries = 'pg_tide'"), "{text}");
}

#[test]
fn the_page_is_one_file_that_needs_nothing_else() {
    let page = http::get(database().port, "/");

    assert_eq!(page.status, 200, "{}", page.head);
    assert!(page.head.to_ascii_lowercase().contains("content-type: text/html"), "{}", page.head);
    for foreign in ["src=\"http", "href=\"http", "src=\"//", "@import"] {
        assert!(!page.body.contains(foreign), "the page loads {foreign}");
    }
}
