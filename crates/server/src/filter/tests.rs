//! Filters from their text to their verdict, over every operator and kind.

use proptest::prelude::*;
use tide_feed::catalog::{ColumnAccess, TableAccess};
use tide_feed::event::{Datum, Kind};

use super::*;

/// Column name, `typname`, kind. The attribute number is the place in this list, from 1 on.
const COLUMNS: &[(&str, &str, Kind)] = &[
    ("bool", "bool", Kind::Bool),
    ("int", "int8", Kind::Int),
    ("float", "float8", Kind::Float),
    ("numeric", "numeric", Kind::Numeric),
    ("text", "text", Kind::Text),
    ("char", "bpchar", Kind::Text),
    ("uuid", "uuid", Kind::Uuid),
    ("date", "date", Kind::Date),
    ("timestamp", "timestamp", Kind::Timestamp),
    ("timestamptz", "timestamptz", Kind::Timestamptz),
    ("enum", "mood", Kind::Enum),
    ("json", "jsonb", Kind::Json),
    ("other", "citext", Kind::Other),
    ("secret", "text", Kind::Text),
];

fn table() -> TableAccess {
    let column = |(index, (name, type_name, kind)): (usize, &(&str, &str, Kind))| ColumnAccess {
        attnum: index as i16 + 1,
        name: (*name).into(),
        type_name: (*type_name).into(),
        type_sql: (*type_name).into(),
        kind: *kind,
        readable: *name != "secret",
        primary_key: false,
        labels: if *kind == Kind::Enum {
            [(1, "sad"), (2, "ok"), (3, "happy")].map(|(oid, label)| (oid, label.into())).into()
        } else {
            Vec::new()
        },
    };
    TableAccess {
        oid: 1,
        schema: "public".into(),
        table: "t".into(),
        row_security: None,
        columns: COLUMNS.iter().enumerate().map(column).collect(),
    }
}

/// What `to_jsonb` makes of a value whose text is already as the type prints it.
fn to_jsonb(type_sql: &str, value: &str) -> String {
    let special = value.contains("Infinity") || value == "NaN";
    match type_sql {
        "bool" | "int8" | "jsonb" => value.into(),
        "float8" | "numeric" if !special => value.into(),
        _ => serde_json::Value::from(value).to_string(),
    }
}

fn compiled(text: &str) -> Result<Predicate, FilterError> {
    let filter = parse(text)?.expect("not blank");
    let table = table();
    let answers: Vec<Vec<String>> = casts(&filter, &table)?
        .iter()
        .map(|(type_sql, values)| values.iter().map(|value| to_jsonb(type_sql, value)).collect())
        .collect();
    compile(&filter, &table, &answers)
}

fn predicate(text: &str) -> Predicate {
    compiled(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The verdict on a row that has `datum` in every column.
fn verdict(text: &str, datum: Datum<'_>) -> bool {
    matches(&predicate(text), |_| datum)
}

fn matches<'v>(predicate: &Predicate, value: impl Fn(i16) -> Datum<'v>) -> bool {
    predicate.matches(value, &Effort::default()).expect("little work")
}

fn json(text: &str) -> Datum<'_> {
    Datum::Json(text.as_bytes())
}

fn attnum(column: &str) -> i16 {
    let index = COLUMNS.iter().position(|(name, ..)| *name == column).expect("a column");
    index as i16 + 1
}

#[test]
fn every_operator_judges_values_and_null_as_sql_does() {
    // Filter without its column, a value, the verdicts: on the value, negated on the value, on
    // NULL, negated on NULL.
    let table = [
        ("int", "eq.5", "5", [true, false, false, false]),
        ("int", "eq.5", "6", [false, true, false, false]),
        ("int", "neq.5", "6", [true, false, false, false]),
        ("int", "lt.5", "4", [true, false, false, false]),
        ("int", "lt.5", "5", [false, true, false, false]),
        ("int", "lte.5", "5", [true, false, false, false]),
        ("int", "lte.5", "6", [false, true, false, false]),
        ("int", "gt.5", "6", [true, false, false, false]),
        ("int", "gt.5", "5", [false, true, false, false]),
        ("int", "gte.5", "5", [true, false, false, false]),
        ("int", "gte.5", "-6", [false, true, false, false]),
        ("int", "in.(4,5)", "5", [true, false, false, false]),
        ("int", "in.(4,5)", "6", [false, true, false, false]),
        ("int", "in.()", "6", [false, true, false, true]),
        ("int", "isdistinct.5", "6", [true, false, true, false]),
        ("int", "isdistinct.5", "5", [false, true, true, false]),
        ("int", "is.null", "5", [false, true, true, false]),
        ("bool", "is.true", "true", [true, false, false, true]),
        ("bool", "is.true", "false", [false, true, false, true]),
        ("bool", "is.false", "false", [true, false, false, true]),
        ("bool", "is.false", "true", [false, true, false, true]),
        ("bool", "is.unknown", "true", [false, true, true, false]),
        ("text", "like.a%", r#""abc""#, [true, false, false, false]),
        ("text", "like.a%", r#""Abc""#, [false, true, false, false]),
        ("text", "ilike.a%", r#""Abc""#, [true, false, false, false]),
        ("text", "match.^a", r#""abc""#, [true, false, false, false]),
        ("text", "match.^a", r#""Abc""#, [false, true, false, false]),
        ("text", "imatch.^a", r#""Abc""#, [true, false, false, false]),
    ];
    for (column, test, value, [on_value, negated, on_null, negated_null]) in table {
        let (plain, not) = (format!("{column}={test}"), format!("{column}=not.{test}"));

        assert_eq!(verdict(&plain, json(value)), on_value, "{plain} on {value}");
        assert_eq!(verdict(&not, json(value)), negated, "{not} on {value}");
        assert_eq!(verdict(&plain, Datum::Null), on_null, "{plain} on NULL");
        assert_eq!(verdict(&not, Datum::Null), negated_null, "{not} on NULL");
    }
}

#[test]
fn what_the_image_does_not_have_never_matches() {
    for test in ["eq.5", "neq.5", "lt.5", "in.(5)", "in.()", "isdistinct.5", "is.null"] {
        for text in [format!("int={test}"), format!("int=not.{test}")] {
            assert!(!verdict(&text, Datum::Absent), "{text}");
            assert!(!verdict(&text, Datum::Unchanged), "{text}");
        }
    }
}

#[test]
fn what_is_no_value_of_the_kind_never_matches() {
    for column in ["bool", "int", "float", "numeric", "text", "date", "timestamptz", "enum"] {
        let value = match column {
            "bool" => "true",
            "text" | "enum" => "ok",
            "date" => "2025-01-01",
            "timestamptz" => "2025-01-01T00:00:00+00:00",
            _ => "5",
        };
        for test in ["eq", "not.eq", "neq", "lt", "not.lt", "isdistinct", "not.isdistinct"] {
            let text = format!("{column}={test}.{value}");
            assert!(!verdict(&text, json("[1]")), "{text}");
            assert!(!verdict(&text, json("")), "{text}");
        }
    }
}

/// In ascending order of the kind; inner lists are equal to each other.
fn ordered(column: &str) -> Vec<Vec<&'static str>> {
    match column {
        "bool" => vec![vec!["false"], vec!["true"]],
        "int" => vec![
            vec!["-9223372036854775808"],
            vec!["-10"],
            vec!["-9"],
            vec!["0"],
            vec!["9"],
            vec!["10"],
            vec!["9007199254740992"],
            vec!["9007199254740993"],
            vec!["9223372036854775807"],
        ],
        "float" => vec![
            vec!["-Infinity"],
            vec!["-1e300"],
            vec!["-1.5"],
            vec!["0", "-0", "0.0"],
            vec!["5e-324"],
            vec!["0.1"],
            vec!["1", "1.0", "1e0"],
            vec!["100000000000000000000", "1e+20"],
            vec!["Infinity"],
            vec!["NaN"],
        ],
        "numeric" => vec![
            vec!["-Infinity"],
            vec!["-100000000000000000000000000000.1"],
            vec!["-1"],
            vec!["0", "0.00", "-0"],
            vec!["0.99999999999999999999999999999999"],
            vec!["1", "1.0", "1.00"],
            vec!["100", "100.0"],
            vec!["100000000000000000000000000000.1"],
            vec!["Infinity"],
            vec!["NaN"],
        ],
        "text" => vec![
            vec![""],
            vec!["\n"],
            vec![" "],
            vec!["Z"],
            vec!["a"],
            vec!["a "],
            vec!["a\"b"],
            vec!["a\\"],
            vec!["é"],
            vec!["日本"],
        ],
        "char" => vec![vec!["", "   "], vec!["a", "a  "], vec!["b", "b "]],
        "uuid" => vec![
            vec!["00000000-0000-0000-0000-000000000000"],
            vec!["0fffffff-0000-0000-0000-000000000000"],
            vec!["a0000000-0000-0000-0000-000000000000"],
        ],
        "date" => vec![
            vec!["-infinity"],
            vec!["0044-03-15 BC"],
            vec!["0044-03-15"],
            vec!["2025-01-01"],
            vec!["10000-01-01"],
            vec!["infinity"],
        ],
        "timestamp" | "timestamptz" => vec![
            vec!["-infinity"],
            vec!["0044-03-15T00:00:00+00:00 BC"],
            vec!["2025-01-01T00:00:00+00:00", "2025-01-01T00:00:00.000", "2025-01-01T02:00:00+02"],
            vec!["2025-01-01T00:00:00.5+00:00", "2025-01-01T00:00:00.50+00:00"],
            vec!["2025-01-01T00:00:00.51+00:00"],
            vec!["infinity"],
        ],
        "enum" => vec![vec!["sad"], vec!["ok"], vec!["happy"]],
        _ => panic!("{column} has no order"),
    }
}

#[test]
fn every_kind_is_ordered_as_its_type() {
    for (column, type_name, _) in COLUMNS.iter().take(11) {
        let groups = ordered(column);
        for (i, values) in groups.iter().enumerate() {
            for (j, constants) in groups.iter().enumerate() {
                for (value, constant) in
                    values.iter().flat_map(|v| constants.iter().map(move |c| (v, c)))
                {
                    let quoted = constant.replace('\\', "\\\\").replace('"', "\\\"");
                    let fragment = to_jsonb(type_name, value);
                    for (operator, expected) in [
                        ("eq", i == j),
                        ("neq", i != j),
                        ("lt", i < j),
                        ("lte", i <= j),
                        ("gt", i > j),
                        ("gte", i >= j),
                        ("isdistinct", i != j),
                    ] {
                        let text = format!("{column}={operator}.\"{quoted}\"");
                        assert_eq!(verdict(&text, json(&fragment)), expected, "{text} on {value}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_oid_is_the_same_number_with_and_without_quotes() {
    assert!(verdict("int=eq.26", json("\"26\"")));
    assert_eq!(index_key(Kind::Int, b"\"26\""), index_key(Kind::Int, b"26"));
}

#[test]
fn types_without_an_order_are_only_equal_or_not() {
    let object = r#"json=eq."{\"a\": [1, 2]}""#;
    assert!(verdict(object, json(r#"{"a": [1, 2]}"#)));
    assert!(verdict(object, json(r#"{"a":[1,2]}"#)));
    assert!(!verdict(object, json(r#"{"a":[2,1]}"#)));
    assert!(verdict("json=eq.null", json("null")));
    assert!(!verdict("json=is.null", json("null")));
    assert!(verdict("json=is.null", Datum::Null));
    assert!(verdict("other=in.(a,b)", json(r#""b""#)));
    assert!(verdict("other=neq.a", json(r#""A""#)));
    assert!(verdict("other=isdistinct.a", Datum::Null));

    for operator in ["lt", "lte", "gt", "gte"] {
        for (column, type_name) in [("json", "jsonb"), ("other", "citext")] {
            assert_eq!(
                compiled(&format!("{column}=not.{operator}.1")),
                Err(FilterError::Operator {
                    operator,
                    column: column.into(),
                    type_name: type_name.into()
                })
            );
        }
    }
}

#[test]
fn a_label_that_is_newer_than_the_join_has_no_order() {
    assert!(!verdict("enum=gt.sad", json("\"new\"")));
    assert!(!verdict("enum=not.gt.sad", json("\"new\"")));
    assert!(verdict("enum=neq.sad", json("\"new\"")));
}

#[test]
fn all_conditions_have_to_hold() {
    let both = predicate("int=gt.1,text=eq.x");
    let row = |int: &'static str, text: &'static str| {
        move |column: i16| {
            if column == attnum("int") { json(int) } else { json(text) }
        }
    };

    assert!(matches(&both, row("2", "\"x\"")));
    assert!(!matches(&both, row("1", "\"x\"")));
    assert!(!matches(&both, row("2", "\"y\"")));
}

#[test]
fn missing_and_forbidden_columns_are_refused_in_the_same_words() {
    let missing = compiled("nothing=eq.1").expect_err("no such column").to_string();
    let forbidden = compiled("secret=eq.1").expect_err("not readable").to_string();

    assert_eq!(missing, "invalid column for filter nothing");
    assert_eq!(forbidden, missing.replace("nothing", "secret"));
    for test in ["like.%", "is.true", "in.()", "lt.1"] {
        let text = format!("secret={test}");
        assert_eq!(compiled(&text).expect_err(&text).to_string(), forbidden);
    }
}

#[test]
fn operators_are_held_against_the_type() {
    let table = [
        ("int=like.1%", "operator like requires a text-compatible column type, got int8"),
        ("other=imatch.a", "operator imatch requires a text-compatible column type, got citext"),
        ("enum=not.ilike.a", "operator ilike requires a text-compatible column type, got mood"),
        ("uuid=match.a", "operator match requires a text-compatible column type, got uuid"),
        ("int=is.true", "is true filter requires a boolean column, got int8"),
        ("text=not.is.unknown", "is unknown filter requires a boolean column, got text"),
        ("text=match.(", "invalid pattern for match filter on column text"),
        (r"text=like.a\", "invalid pattern for like filter on column text"),
        ("text", r#"Error parsing `filter` params: ["text"]"#),
    ];
    for (text, message) in table {
        assert_eq!(compiled(text).expect_err(text).to_string(), message);
    }
}

#[test]
fn values_are_cast_once_for_each_type() {
    let filter =
        parse("int=gt.1,text=in.(a,b),int=lt.9,text=like.c%,bool=is.true,int=isdistinct.4");

    let casts = casts(&filter.expect("parses").expect("not blank"), &table()).expect("fits");

    let texts = |values: &[&str]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        casts,
        [("int8".to_owned(), texts(&["1", "9", "4"])), ("text".to_owned(), texts(&["a", "b"]))]
    );
}

#[test]
fn answers_that_do_not_belong_to_the_filter_are_refused() {
    let filter = parse("int=in.(1,2)").expect("parses").expect("not blank");
    for answers in
        [vec![], vec![vec![]], vec![vec!["1".into()]], vec![vec!["1".into(), "x".into()]]]
    {
        assert_eq!(
            compile(&filter, &table(), &answers),
            Err(FilterError::Uncast { column: "int".into() })
        );
    }
}

#[test]
fn an_equality_gives_its_key_to_the_index() {
    let key = |text: &str| {
        predicate(text)
            .equality()
            .map(|(column, key)| (column, String::from_utf8_lossy(key).into_owned()))
    };

    assert_eq!(key("int=eq.5"), Some((attnum("int"), "5".into())));
    assert_eq!(key("numeric=in.(1.00)"), Some((attnum("numeric"), "1".into())));
    assert_eq!(key("int=gt.5,text=eq.a"), Some((attnum("text"), "a".into())));
    for text in
        ["int=not.eq.5", "int=neq.5", "int=in.(5,6)", "int=in.()", "int=is.null", "char=eq.a"]
    {
        assert_eq!(key(text), None, "{text}");
    }
}

#[test]
fn predicates_are_equal_if_their_filters_say_the_same() {
    assert_eq!(predicate("int=eq.5"), predicate(r#""int"=eq."5""#));
    assert_eq!(predicate("text=like.a%"), predicate("text=like.a%"));
    assert_ne!(predicate("text=like.a%"), predicate("text=ilike.a%"));
    assert_ne!(predicate("int=eq.5"), predicate("int=not.eq.5"));
}

/// A column and two values of it, often equal ones in different spellings.
fn two_values() -> impl Strategy<Value = (usize, String, String)> {
    (0..11_usize).prop_flat_map(|index| {
        let column = COLUMNS[index].0;
        let known = prop::sample::select(ordered(column).concat()).prop_map(String::from);
        let value = match column {
            "int" => prop_oneof![known, (-20..20_i64).prop_map(|n| n.to_string())].boxed(),
            "float" => prop_oneof![
                known,
                any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| f.to_string())
            ]
            .boxed(),
            "numeric" => prop_oneof![known, "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?"].boxed(),
            "text" => prop_oneof![known, "[ab\"\\\\]{0,2}"].boxed(),
            _ => known.boxed(),
        };
        (Just(index), value.clone(), value)
    })
}

proptest! {
    #[test]
    fn index_keys_are_equal_exactly_where_eq_matches((index, a, b) in two_values()) {
        let (column, type_name, kind) = COLUMNS[index];
        let quoted = a.replace('\\', "\\\\").replace('"', "\\\"");
        let predicate = predicate(&format!("{column}=eq.\"{quoted}\""));
        let fragment = to_jsonb(type_name, &b);

        let found = predicate.equality().map(|(_, key)| {
            index_key(kind, fragment.as_bytes()).is_some_and(|other| other.as_ref() == key)
        });

        let matches = matches(&predicate, |_| json(&fragment));
        prop_assert_eq!(found, (column != "char").then_some(matches), "{} {} {}", column, a, b);
    }

    #[test]
    fn no_bytes_in_an_event_can_do_harm(bytes in any::<Vec<u8>>(), index in 0..13_usize) {
        let (column, _, kind) = COLUMNS[index];
        let value = match column {
            "bool" => "true",
            "date" => "2025-01-01",
            "timestamp" | "timestamptz" => "2025-01-01T00:00:00",
            _ => "1",
        };
        let predicate = predicate(&format!("{column}=eq.{value},{column}=not.isdistinct.{value}"));

        matches(&predicate, |_| Datum::Json(&bytes));
        index_key(kind, &bytes);
    }
}
