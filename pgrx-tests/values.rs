//! Every value arrives as `to_jsonb` of the row would print it.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::support::{Cluster, Database, json};

fn database() -> &'static Database<'static> {
    static DATABASE: std::sync::LazyLock<Database<'static>> =
        std::sync::LazyLock::new(|| Cluster::shared().database("sent_values"));
    &DATABASE
}

/// Column types with the values to try, as SQL expressions. NULL is tried with every one.
const TYPES: &[(&str, &[&str])] = &[
    ("boolean", &["true", "false"]),
    ("smallint", &["0", "-32768", "32767"]),
    ("integer", &["0", "-2147483648", "2147483647"]),
    ("bigint", &["0", "9223372036854775807", "-9223372036854775808", "9007199254740993"]),
    ("oid", &["0", "4294967295"]),
    (
        "real",
        &["0", "'-0'", "1.5", "'1e-40'", "'3.4028235e38'", "'NaN'", "'Infinity'", "'-Infinity'"],
    ),
    (
        "double precision",
        &[
            "0",
            "'-0'",
            "0.1",
            "1e20",
            "1e300",
            "5e-324",
            "123456789.123456789",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
        ],
    ),
    (
        "numeric",
        &[
            "0",
            "0.10",
            "-12345678901234567890.123456789012345678901234567890",
            "1e100",
            "1e-100",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
        ],
    ),
    ("numeric(10, 2)", &["12.3", "-0.01"]),
    ("money", &["'$12.34'", "'-$1.00'"]),
    (
        "text",
        &[
            "''",
            "'plain'",
            r#"'quotes " '' ` and \ backslash'"#,
            "E'tab\\t newline\\n return\\r bell\\x07 escape\\x1b delete\\x7f unit\\x1f'",
            "'\u{e4}\u{4e16}\u{1f30a}\u{200d}\u{301}'",
            "U&'line\\2028 paragraph\\2029'",
            "'{\"not\": [\"json\"]}'",
            "'null'",
            "repeat('long \u{4e16} ', 5000)",
        ],
    ),
    ("varchar(10)", &["'abc'", "''"]),
    ("char(5)", &["'ab'", "''"]),
    ("\"char\"", &["'x'", "''"]),
    ("name", &["'a name'"]),
    ("bytea", &["''", "'\\x00ff10'", "'\\xdeadbeef'"]),
    (
        "date",
        &[
            "'2024-02-29'",
            "'0044-03-15 BC'",
            "'infinity'",
            "'-infinity'",
            "'12345-06-07'",
            "'0001-01-01'",
        ],
    ),
    ("time", &["'00:00'", "'24:00'", "'12:34:56.789'"]),
    ("timetz", &["'12:34:56+02'", "'00:00:00.000001-12:30'"]),
    (
        "timestamp",
        &[
            "'2024-02-29 12:34:56.789'",
            "'0044-03-15 12:00 BC'",
            "'infinity'",
            "'-infinity'",
            "'294276-12-31 23:59:59.999999'",
            "'2000-01-01'",
        ],
    ),
    (
        "timestamptz",
        &[
            "'2024-02-29 12:34:56.789+02'",
            "'0044-03-15 12:00+00 BC'",
            "'infinity'",
            "'-infinity'",
            "'1999-12-31 23:59:59.999999+00'",
        ],
    ),
    ("interval", &["'1 year 2 mons -3 days 04:05:06.789'", "'0'", "'-1 second'"]),
    ("uuid", &["'00000000-0000-0000-0000-000000000000'", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"]),
    (
        "json",
        &[
            r#"'{"b": 1, "a": [null, true, "x\u00e4\n"]}'"#,
            "'null'",
            "'12.50'",
            "'  [ ]  '",
            r#"'"text"'"#,
        ],
    ),
    (
        "jsonb",
        &[
            r#"'{"b": 1, "a": [null, true, "x\u00e4\n"], "n": 12345678901234567890.5}'"#,
            "'null'",
            "'\"text\"'",
            "'[]'",
            "'{}'",
        ],
    ),
    ("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
    ("xml", &["'<a b=\"c\">d</a>'"]),
    ("inet", &["'192.168.0.1'", "'10.0.0.0/8'", "'::1'"]),
    ("cidr", &["'10.0.0.0/8'", "'2001:db8::/32'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit(4)", &["B'1010'"]),
    ("bit varying", &["B''", "B'101'"]),
    ("point", &["'(1.5,-2)'"]),
    ("line", &["'{1,2,3}'"]),
    ("lseg", &["'[(0,0),(1,1)]'"]),
    ("box", &["'((0,0),(1,1))'"]),
    ("path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"]),
    ("polygon", &["'((0,0),(1,1),(1,0))'"]),
    ("circle", &["'<(1,2),3>'"]),
    ("tsvector", &["'fat:2 cat:3'", "''"]),
    ("tsquery", &["'fat & (rat | ! cat)'"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("txid_snapshot", &["'10:20:10,14,15'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("tid", &["'(1,2)'"]),
    ("regtype", &["'integer'"]),
    ("regclass", &["'pg_class'"]),
    ("regproc", &["'now'"]),
    ("regrole", &["'postgres'"]),
    ("regnamespace", &["'pg_catalog'"]),
    ("int4range", &["'[1,10)'", "'empty'", "'(,5]'"]),
    ("int8range", &["'[1,)'"]),
    ("numrange", &["'[1.5,2.5]'"]),
    ("tsrange", &["'[2024-01-01 10:00,2024-01-02)'"]),
    ("tstzrange", &["'[2024-01-01 10:00+00,)'"]),
    ("daterange", &["'[2024-01-01,2024-02-01]'"]),
    ("int4multirange", &["'{[1,3),[5,8)}'", "'{}'"]),
    ("integer[]", &["'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[0:1]={7,8}'"]),
    ("bigint[]", &["'{9223372036854775807}'"]),
    ("text[]", &["'{}'", r#"'{a,"b,c","d\"e",NULL,"NULL",""}'"#]),
    ("boolean[]", &["'{t,f,NULL}'"]),
    ("double precision[]", &["'{NaN,Infinity,1.5}'"]),
    ("numeric[]", &["'{NaN,1.10}'"]),
    ("timestamptz[]", &["'{2024-01-01 00:00+00,infinity}'"]),
    ("date[]", &["'{2024-01-01,-infinity}'"]),
    ("jsonb[]", &[r#"array['{"a": 1}', 'null', null]::jsonb[]"#]),
    ("uuid[]", &["'{00000000-0000-0000-0000-000000000000}'"]),
    ("bytea[]", &[r#"array['\x00ff'::bytea]"#]),
    ("int4range[]", &[r#"'{"[1,2)"}'"#]),
    ("v_mood", &["'happy'", "'so \"so\"'"]),
    ("v_mood[]", &["'{happy,sad}'"]),
    ("v_positive", &["1"]),
    ("v_tags", &["'{a,b}'"]),
    ("v_document", &[r#"'{"a": 1}'"#]),
    (
        "v_address",
        &[
            r#"row('Main "St"', 12, '{1,2}', 'happy', '{"k": [1]}')"#,
            "row(null, null, null, null, null)",
        ],
    ),
    ("v_address[]", &["array[row('x', 1, '{}', 'sad', 'null')::v_address, null]"]),
    ("v_nested", &["row(1, row('x', 2, null, 'sad', '1'))"]),
    ("v_home", &["row('x', 1, '{}', 'sad', 'null')"]),
    ("v_span", &["'[1.5,2]'"]),
    ("citext", &["'MiXed'"]),
];

const DEFINITIONS: &str = r#"
    create extension citext;
    create type v_mood as enum ('sad', 'happy', 'so "so"');
    create domain v_positive as int check (value > 0);
    create domain v_tags as text[];
    create domain v_document as jsonb;
    create type v_address as (street text, number int, codes int[], mood v_mood, extra jsonb);
    create type v_nested as (id bigint, home v_address);
    create domain v_home as v_address;
    create type v_span as range (subtype = float8);
"#;

#[test]
fn every_type_arrives_as_to_jsonb_prints_it() {
    let database = database();
    let mut sql = database.sql();
    sql.batch_execute(DEFINITIONS).unwrap();
    // The server decodes with settings of its own, so the answer must not depend on the writer's.
    sql.batch_execute("set time zone 'UTC'; set extra_float_digits = 1").unwrap();
    let columns: Vec<String> =
        TYPES.iter().enumerate().map(|(n, (name, _))| format!("c{n} {name}")).collect();
    let table =
        database.table("everything", &format!("id int primary key, {}", columns.join(", ")));
    let mut client = database.client();
    client.subscribe("room", &table);
    let topic = format!("realtime:tide:table:public.{table}");
    client.join(&topic, &serde_json::json!({}));

    let most = TYPES.iter().map(|(_, values)| values.len()).max().unwrap();
    for row in 0..=most {
        let values: Vec<String> = TYPES
            .iter()
            .map(|(name, values)| match values.get(row) {
                Some(value) => format!("cast({value} as {name})"),
                None => "null".to_owned(),
            })
            .collect();
        sql.batch_execute(&format!("insert into {table} values ({row}, {})", values.join(", ")))
            .unwrap();
    }

    let mut wrong = Vec::new();
    for row in 0..=most {
        let statement = format!("select to_jsonb(t)::text from {table} t where id = {row}");
        let expected: String = sql.query_one(&statement, &[]).unwrap().get(0);
        let frame = client.wait_for("a row", |frame| frame.event == "broadcast");
        compare("table topic", &expected, record(&frame.text, "payload").get(), &mut wrong);
        let frame = client.wait_for("a row", |frame| frame.event == "postgres_changes");
        // Supabase's form of bytea has no \\x, and `postgres_changes` are as Supabase sends them.
        let expected = expected.replace(r#": "\\x"#, r#": ""#);
        compare("changes", &expected, record(&frame.text, "data").get(), &mut wrong);
    }
    assert!(wrong.is_empty(), "{} values differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_users_cast_to_json_is_not_run() {
    let database = database();
    let mut sql = database.sql();
    sql.batch_execute(
        "create table v_ran (whose text);
         create type v_secret as (a int);
         create function v_secret_json(v_secret) returns json language plpgsql as $$
         begin
             insert into v_ran values (current_user);
             return '\"from the cast\"'::json;
         end $$;
         create cast (v_secret as json) with function v_secret_json(v_secret);
         create type v_colour as enum ('red');
         create function v_colour_json(v_colour) returns json language sql
             as $$ select '\"from the cast\"'::json $$;
         create cast (v_colour as json) with function v_colour_json(v_colour);",
    )
    .unwrap();
    let table = database.table("casted", "id int primary key, s v_secret, c v_colour");
    let mut client = database.client();
    client.subscribe("room", &table);

    sql.batch_execute(&format!("insert into {table} values (1, row(7), 'red')")).unwrap();

    let record = client.change()["record"].clone();
    assert!(!record.to_string().contains("from the cast"), "{record}");
    assert_eq!(record["c"], "red");
    let runs: i64 = sql.query_one("select count(*) from v_ran", &[]).unwrap().get(0);
    assert_eq!(runs, 0);
}

#[test]
fn settings_of_the_writer_do_not_show() {
    let database = database();
    let table = database.table(
        "settings",
        "id int primary key, t timestamptz, d date, f float8, i interval, b bytea",
    );
    let mut client = database.client();
    client.subscribe("room", &table);

    database
        .sql()
        .batch_execute(&format!(
            "set time zone 'Asia/Kathmandu'; set datestyle = 'German'; set intervalstyle = 'sql_standard';
             set extra_float_digits = -5; set bytea_output = 'escape';
             insert into {table}
             values (1, '2024-01-02 03:04:05+00', '2024-01-02', 0.1::float8 + 0.2::float8,
                     interval '1 day 02:00', decode('00ff', 'hex'))"
        ))
        .unwrap();

    let record = client.change()["record"].clone();
    assert_eq!(record["t"], "2024-01-02T03:04:05+00:00");
    assert_eq!(record["d"], "2024-01-02");
    assert_eq!(record["f"].to_string(), "0.30000000000000004");
    assert_eq!(record["i"], "1 day 02:00:00");
    assert_eq!(record["b"], "00ff");
}

/// The `record` in a member of a frame's payload, as its own text.
fn record(frame: &str, member: &str) -> Box<RawValue> {
    let [_, _, _, _, payload]: [&RawValue; 5] = serde_json::from_str(frame).unwrap();
    let payload = json::members(payload.get());
    let data = json::members(payload[member].get());
    data["record"].to_owned()
}

fn compare(place: &str, expected: &str, record: &str, wrong: &mut Vec<String>) {
    let (expected, record) = (json::members(expected), json::members(record));
    let names: Vec<&String> = expected.keys().collect();
    assert_eq!(names, record.keys().collect::<Vec<_>>());
    for (name, value) in &expected {
        let sent = record[name].get();
        if json::canonical(sent) != json::canonical(value.get()) {
            wrong.push(format!(
                "{place}, {}: sent {sent}, to_jsonb {}",
                type_of(name),
                value.get()
            ));
        }
    }
}

fn type_of(column: &str) -> &str {
    let index = column.strip_prefix('c').and_then(|index| index.parse::<usize>().ok());
    index.and_then(|index| TYPES.get(index)).map_or(column, |(name, _)| name)
}

#[test]
fn the_list_has_every_built_in_type_that_a_column_can_have() {
    let mut sql = database().sql();
    let listed: BTreeMap<u32, ()> = TYPES
        .iter()
        .filter(|(name, _)| !name.starts_with("v_") && *name != "citext")
        .map(|(name, _)| {
            let statement = format!("select '{name}'::regtype::oid");
            (sql.query_one(&statement, &[]).unwrap().get(0), ())
        })
        .collect();

    let all = sql
        .query(
            "select oid, typname::text from pg_type
             where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r', 'm')
               and typcategory <> 'A' and typrelid = 0
               and typname !~ '^(reg|pg_(node_tree|ndistinct|dependencies|mcv_list|brin|ddl))'
               and typname not in ('gtsvector', 'aclitem', 'int2vector', 'oidvector', 'refcursor',
                                   'xid', 'cid')
               and typname !~ 'multirange$'",
            &[],
        )
        .unwrap();

    let missing: Vec<String> = all
        .iter()
        .filter(|row| !listed.contains_key(&row.get::<_, u32>(0)))
        .map(|row| row.get(1))
        .collect();
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn null_is_told_from_a_json_null() {
    let database = database();
    let table = database.table("nulls", "id int primary key, a jsonb, b jsonb");
    let mut client = database.client();
    client.subscribe("room", &table);

    database.sql().batch_execute(&format!("insert into {table} values (1, null, 'null')")).unwrap();

    // Both are `null` in the record; what matters is that both columns are there.
    let record = client.change()["record"].clone();
    assert_eq!(record.get("a"), Some(&Value::Null));
    assert_eq!(record.get("b"), Some(&Value::Null));
}
