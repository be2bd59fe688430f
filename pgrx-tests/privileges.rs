//! Who may do what with each object of pg_tide's schemas, and that each says what it is.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::support::{Cluster, Database};

fn database() -> &'static Database<'static> {
    static DATABASE: LazyLock<Database<'static>> =
        LazyLock::new(|| Cluster::shared().database("privileges"));
    &DATABASE
}

/// Every object, and who besides superusers may use it: `public`; `backend`, a role
/// with the grants that `docs/` names; `monitor`, a member of `pg_monitor`. Tables, views and
/// sequences say what for. A new object has to be put here.
///
/// Internal functions that are open to all are those that open functions, which run with their caller's
/// rights, call.
const EXPECTED: &[(&str, &str)] = &[
    ("internal function add_message_key()", ""),
    ("internal function add_secret()", ""),
    ("internal function adopt_outbox(regclass,boolean)", ""),
    ("internal function announce_ddl()", ""),
    ("internal function announce_drops()", ""),
    ("internal function announce_table(text,oid)", ""),
    ("internal function assert_given(regclass[])", "public"),
    ("internal function assert_name(text,text)", "public"),
    ("internal function assert_place(text,text)", "public"),
    ("internal function assert_publishable(regclass)", "public"),
    ("internal function check_outboxes()", "monitor"),
    ("internal function check_roles()", "public"),
    ("internal function check_server()", "monitor"),
    ("internal function check_tables()", "public"),
    ("internal function client_roles()", "public"),
    ("internal function connections()", "monitor"),
    ("internal function control(jsonb)", ""),
    ("internal function delete_row(regclass,tid)", ""),
    ("internal function drop_if_empty(text,text)", "public"),
    ("internal function estimated_rows(oid,real)", "public"),
    ("internal function failed_messages()", "monitor"),
    ("internal function function_identity(regprocedure)", "public"),
    ("internal function insert_row(regclass,anyelement)", ""),
    ("internal function invalidate(regclass)", ""),
    ("internal function is_announced(oid)", ""),
    ("internal function is_place(text,text)", "public"),
    ("internal function lock_publications()", "public"),
    ("internal function lock_records(text,text,boolean)", "public"),
    ("internal function make_publication()", "public"),
    ("internal function make_record_table(text,text)", "public"),
    ("internal function names(text)", "public"),
    ("internal function outbox_problems(regclass)", "monitor"),
    ("internal function outboxes_changed()", ""),
    ("internal function publication()", "public"),
    ("internal function publish_schema(oid)", "public"),
    ("internal function published_tables()", "public"),
    ("internal function random_secret()", ""),
    ("internal function readers_before(oid,oid)", ""),
    ("internal function recent(integer)", "public"),
    ("internal function record_id(text)", "public"),
    ("internal function record_table(text)", "public"),
    ("internal function refuse_record(text,text,bigint)", "public"),
    ("internal function refuse_reserved_channel()", ""),
    ("internal function restore_policy()", ""),
    ("internal function release_outbox(regclass)", ""),
    ("internal function reload_at_commit()", ""),
    ("internal function require_preload()", ""),
    ("internal function require_record_table(text,text)", "public"),
    ("internal function set_outbox(regclass,boolean,bigint)", ""),
    ("internal function set_callable(regprocedure,boolean)", ""),
    ("internal function set_on_mutate(regclass,regprocedure)", ""),
    ("internal function set_version_column(regclass,text)", ""),
    ("internal function set_write_rule(regclass,text,text)", ""),
    ("internal function skip_known_outbox()", ""),
    ("internal function skip_row()", ""),
    ("internal function sign(text,jsonb,bigint)", ""),
    ("internal function without_replica_identity(oid)", "public"),
    ("internal function worker_status()", ""),
    ("internal function write_schema_change(json)", ""),
    ("function adopt_outbox(regclass,boolean)", ""),
    ("function allow_call(regprocedure,boolean)", "public"),
    ("function check()", "monitor"),
    ("function create_schema(text)", "public"),
    ("function current_position()", "public"),
    ("function destroy_schema(text,boolean)", "public"),
    ("function disconnect(bigint)", "monitor"),
    ("function enqueue(text,text,jsonb,text,jsonb,boolean,boolean)", "backend"),
    ("function explain_policy(regclass,name)", "monitor"),
    ("function forget_clients(interval)", ""),
    ("function on_mutate(regclass,regprocedure)", "public"),
    ("function publish(regclass[])", "public"),
    ("function recent(integer)", "public"),
    ("function record_delete(text,bigint,text,boolean)", "public"),
    ("function record_delete_many(text[],text,boolean)", "public"),
    ("function record_get(text,text)", "public"),
    ("function record_get_many(text[],text)", "public"),
    ("function record_set(text,jsonb,bigint,bigint,text)", "public"),
    ("function record_set_many(text[],jsonb[],bigint[],bigint[],text)", "public"),
    ("function release_outbox(regclass)", ""),
    ("function restart_worker()", ""),
    ("function rotate_jwt_secret()", ""),
    ("function rotate_message_key()", ""),
    ("function schema_overview(text,boolean)", "public"),
    ("function send(text,text,jsonb,boolean)", "backend"),
    ("function set_mutation_id(text)", "public"),
    ("function skip_to(pg_lsn)", ""),
    ("function snapshot_token()", "public"),
    ("function status()", "monitor"),
    ("function token(text,jsonb,interval)", "backend"),
    ("function topic()", "public"),
    ("function unpublish(regclass[])", "public"),
    ("function version_column(regclass,text)", "public"),
    ("schema tide", "public: USAGE"),
    ("schema tide_internal", "public: USAGE"),
    ("sequence message_key_id_seq", ""),
    ("sequence outbox_sequence_id_seq", ""),
    ("sequence secret_id_seq", ""),
    ("table callables", "public: SELECT"),
    ("table channel", "public: SELECT INSERT"),
    ("table channel_policy", "public: SELECT"),
    ("table message_key", ""),
    ("table mutation", ""),
    // Of the columns, `sequence_id` only.
    ("table outbox", "backend: SELECT INSERT"),
    ("table outboxes", "public: SELECT"),
    ("table secret", ""),
    ("table write_rules", "public: SELECT"),
    ("view stat_channels", "monitor: SELECT"),
    ("view stat_connections", "monitor: SELECT"),
];

/// The grants that `docs/` gives a backend's role, to this one.
fn backend_grants(role: &str) -> String {
    const PAGES: [&str; 2] = [include_str!("../docs/sql.md"), include_str!("../docs/outbox.md")];
    let lines = PAGES.iter().flat_map(|page| page.lines());
    let grants = lines.filter(|line| line.starts_with("grant ") && line.contains("tide."));
    let grants = grants.map(|line| line.split("--").next().unwrap_or(line));
    let own = grants.filter(|line| line.contains(" to backend"));
    own.map(|line| line.replace(" to backend", &format!(" to {role}"))).collect()
}

#[test]
fn everyone_may_do_with_each_object_what_is_written_here() {
    let mut sql = database().sql();
    sql.batch_execute(&format!(
        "create role p_nobody; create role p_backend; create role p_monitor in role pg_monitor; {}",
        backend_grants("p_backend")
    ))
    .unwrap();

    let found: BTreeMap<String, String> = sql
        .query(include_str!("privileges.sql"), &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let expected: BTreeMap<String, String> =
        EXPECTED.iter().map(|(object, who)| ((*object).into(), (*who).into())).collect();

    let differ = |object: &&String| found.get(*object) != expected.get(*object);
    let differences: Vec<String> = (found.keys().chain(expected.keys()).filter(differ))
        .map(|object| format!("{object}: {:?}, not {:?}", found.get(object), expected.get(object)))
        .collect();
    assert_eq!(differences, Vec::<String>::new());
}

#[test]
fn a_backend_is_told_the_id_of_what_it_inserts_and_reads_no_message() {
    let mut sql = database().sql();
    let grants = backend_grants("p_orm");
    sql.batch_execute(&format!("create role p_orm; {grants}; set role p_orm")).unwrap();

    let insert = "insert into tide.outbox (channel, name) values ('a', 'b') returning";
    let id: i64 = sql.query_one(&format!("{insert} sequence_id"), &[]).unwrap().get(0);
    let all = sql.query(&format!("{insert} data"), &[]).unwrap_err();

    assert!(id > 0);
    assert_eq!(all.code(), Some(&postgres::error::SqlState::INSUFFICIENT_PRIVILEGE));
}

#[test]
fn everything_in_the_schema_is_described_and_pinned() {
    let faults: Vec<String> = database()
        .sql()
        .query(include_str!("documentation.sql"), &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();

    assert_eq!(faults, Vec::<String>::new());
}
