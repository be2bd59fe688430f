//! Where seeds are played, one after the other: a database, its roles, its connections.

use postgres::SimpleQueryMessage;
use serde_json::{Value, json};

use super::dice::Dice;
use super::table::USERS;
use crate::support::client::Client;
use crate::support::{Cluster, Database, token};

const SECRET: &str = "a-secret-of-more-than-thirty-two-bytes";

/// How many subscribers there are to each seed's tables.
pub const VIEWERS: usize = 4;

/// Of the roles that clients come as: no group; in the group; in the group without inheriting its
/// privileges; owner of tables; with the owner's privileges; past all policies.
const ROLES: [&str; 6] = ["plain", "member", "stranger", "owner", "heir", "bypass"];

pub struct Stage<'a> {
    pub database: Database<'a>,
    /// What the names of this stage's roles begin with; roles are the whole cluster's.
    pub prefix: String,
    pub sql: postgres::Client,
    /// One for each subscriber; the last speaks the old version of the protocol.
    pub connections: Vec<Client>,
}

impl<'a> Stage<'a> {
    pub fn new(cluster: &'a Cluster, number: usize) -> Stage<'a> {
        let prefix = format!("o{number}");
        let database = cluster.database_with(
            &format!("oracle_{number}"),
            &[("tide.jwt_secret", SECRET), ("tide.allow_privileged_roles", "on")],
        );
        let mut sql = database.sql();
        sql.batch_execute(&setup(&prefix)).unwrap();
        let token = sign(&json!({ "role": format!("{prefix}_plain"), "exp": FAR }));
        let connections = (0..VIEWERS)
            .map(|viewer| {
                let version = if viewer + 1 == VIEWERS { "1.0.0" } else { "2.0.0" };
                database.connect(&format!("apikey={token}&vsn={version}"))
            })
            .collect();
        Stage { database, prefix, sql, connections }
    }

    /// The rows of statements sent together. Panics with the server's words if one fails.
    #[track_caller]
    pub fn rows(&mut self, statements: &str) -> Vec<Vec<String>> {
        let messages = self
            .sql
            .simple_query(statements)
            .unwrap_or_else(|error| panic!("{error:?}\n{statements}"));
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                let columns = 0..row.len();
                rows.push(columns.map(|column| row.get(column).unwrap_or("").to_owned()).collect());
            }
        }
        rows
    }
}

/// 2100-01-01.
const FAR: i64 = 4_102_444_800;

pub fn sign(claims: &Value) -> String {
    token::signed(&json!({ "alg": "HS256", "typ": "JWT" }), claims, SECRET.as_bytes())
}

/// The claims of any client.
pub fn claims(dice: &mut Dice, prefix: &str) -> Value {
    let role = *dice.pick(&[
        "plain", "plain", "plain", "member", "member", "stranger", "owner", "heir", "bypass",
    ]);
    assert!(ROLES.contains(&role));
    let mut claims = json!({ "role": format!("{prefix}_{role}"), "exp": FAR });
    let mut add = |dice: &mut Dice, name: &str, values: &[Value]| {
        if dice.percent(85) {
            claims[name] = dice.pick(values).clone();
        }
    };
    add(dice, "sub", &USERS.map(Value::from));
    add(dice, "tenant", &[json!(1), json!(2), json!("3"), Value::Null]);
    add(dice, "label", &[json!("a"), json!("b"), json!(""), json!("A\"\\\n")]);
    add(dice, "labels", &[json!(["a"]), json!(["a", "B"]), json!([]), json!(["b", null])]);
    add(dice, "list", &[json!("a,b"), json!(""), json!("B")]);
    add(dice, "nick", &[json!("bob"), json!("BOB"), json!("eve")]);
    add(dice, "code", &[json!("ab"), json!("cd  ")]);
    add(dice, "amount", &[json!("1.00"), json!(2.5), json!("1e0")]);
    add(dice, "level", &[json!(1), json!(2), json!(3)]);
    add(dice, "admin", &[json!(true), json!(false), json!("yes")]);
    claims
}

/// Everything that the seeds of one database share.
fn setup(prefix: &str) -> String {
    let roles: String = ROLES.iter().map(|role| format!("create role {prefix}_{role};")).collect();
    let all = ROLES.map(|role| format!("{prefix}_{role}")).join(", ");
    format!(
        "create role {prefix}_group; {roles}
         alter role {prefix}_stranger noinherit;
         alter role {prefix}_bypass bypassrls;
         grant {prefix}_group to {prefix}_member, {prefix}_stranger;
         grant {prefix}_owner to {prefix}_heir;
         grant {all} to tide_authenticator;
         create schema auth;
         grant usage on schema auth to public;
         create function auth.jwt() returns jsonb language sql stable as
             $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb $$;
         create function auth.uid() returns uuid language sql stable as
             $$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
         create function auth.role() returns text language sql stable as
             $$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role' $$;
         create collation public.ignoring_case
             (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         create type public.mood as enum ('sad', 'calm', 'glad');
         create type public.pair as (a int, b text);
         create domain public.plain as text check (value <> 'never');"
    )
}
