//! Channels of the application's own: who may join them and speak on them, and who is present.

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::{Cluster, Database};

/// Rooms and their members; only `authenticated` is let in anywhere, and by these policies.
const POLICIES: &str = "
    create table members (room text, name text);
    grant select on members to authenticated;
    insert into members values ('den', 'ann'), ('den', 'bob'), ('attic', 'ann');
    -- Names without a schema: what it reads is found by the database's own search path.
    create function is_member(room text) returns boolean language plpgsql stable as $$
    begin
        return exists (select from members as m
                       where m.room = is_member.room
                         and m.name = current_setting('request.jwt.claims')::json ->> 'sub');
    end $$;
    create policy listen on tide.channel for select to authenticated
        using (is_member(tide.topic()));
    create policy speak on tide.channel for insert to authenticated
        with check (extension in ('broadcast', 'presence') and is_member(topic));
    create policy not_when_muted on tide.channel as restrictive for insert
        with check (coalesce(current_setting('request.jwt.claims')::json ->> 'muted', '') <> 'true');";

fn database() -> &'static Database<'static> {
    static DATABASE: std::sync::LazyLock<Database<'static>> = std::sync::LazyLock::new(|| {
        let database = Cluster::shared().database("channels");
        database.sql().batch_execute(POLICIES).unwrap();
        database
    });
    &DATABASE
}

fn token(claims: &Value) -> String {
    database().token_with("authenticated", &claims.to_string(), "1 hour")
}

/// A client of that name; `vsn` 1 or 2.
fn somebody(name: &str, vsn: &str) -> Client {
    somebody_with(&json!({ "sub": name }), vsn)
}

fn somebody_with(claims: &Value, vsn: &str) -> Client {
    database().connect(&format!("apikey={}&vsn={vsn}", token(claims)))
}

fn private() -> Value {
    json!({ "private": true, "broadcast": { "ack": true }, "presence": { "enabled": true } })
}

fn say(event: &str) -> Value {
    json!({ "type": "broadcast", "event": event, "payload": { "n": 1 } })
}

fn refusal(name: &str) -> Value {
    let reason = format!(
        "Unauthorized: You do not have permissions to read from this Channel topic: {name}"
    );
    json!({ "status": "error", "response": { "reason": reason } })
}

#[test]
fn members_hear_each_other_in_either_version() {
    let mut ann = somebody("ann", "2.0.0");
    let mut bob = somebody("bob", "1.0.0");
    for client in [&mut ann, &mut bob] {
        client.join("realtime:den", &private());
    }

    assert_eq!(ann.call("realtime:den", "broadcast", &say("from ann"))["status"], "ok");
    assert_eq!(bob.call("realtime:den", "broadcast", &say("from bob"))["status"], "ok");

    assert_eq!(bob.broadcast("realtime:den"), say("from ann"));
    assert_eq!(ann.broadcast("realtime:den"), say("from bob"));
}

#[test]
fn strangers_are_refused_by_what_they_asked_for_and_no_more() {
    let mut eve = somebody("eve", "2.0.0");
    let mut bob = somebody("bob", "2.0.0");

    assert_eq!(eve.try_join("realtime:den", &private()), refusal("den"));
    // A room that there is and one that there is not look alike.
    assert_eq!(bob.try_join("realtime:attic", &private()), refusal("attic"));
    assert_eq!(bob.try_join("realtime:nowhere", &private()), refusal("nowhere"));
    let mut anybody = database().client_as("anon");
    assert_eq!(anybody.try_join("realtime:den", &private()), refusal("den"));
}

#[test]
fn who_may_listen_may_not_speak_by_that() {
    let mut muted = somebody_with(&json!({ "sub": "ann", "muted": "true" }), "2.0.0");
    let mut bob = somebody("bob", "2.0.0");
    muted.join("realtime:den", &private());
    bob.join("realtime:den", &private());

    let refused = muted.call("realtime:den", "broadcast", &say("muted"));
    let track = json!({ "type": "presence", "event": "track", "payload": {} });
    let absent = muted.call("realtime:den", "presence", &track);
    bob.call("realtime:den", "broadcast", &say("heard"));

    assert_eq!(refused["status"], "error", "{refused}");
    assert_eq!(absent["status"], "error", "{absent}");
    assert_eq!(muted.broadcast("realtime:den"), say("heard"));
}

/// What a policy admits is what Postgres would let the role insert: that fails by the table's
/// constraint, and by row-level security otherwise.
#[test]
fn the_answer_is_the_one_that_postgres_gives() {
    let database = Cluster::shared().database("channels_oracle");
    let mut sql = database.sql();
    sql.batch_execute(
        "create role channel_staff nologin;
         create role channel_member nologin;
         grant channel_staff to channel_member;
         grant channel_member to tide_authenticator;
         create table secrets (topic text);
         insert into secrets values ('t');",
    )
    .unwrap();
    let claims = r#"{"sub": "me", "role": "channel_member"}"#;
    let token = database.token_with("channel_member", claims, "1 hour");
    let mut client = database.connect(&format!("apikey={token}&vsn=2.0.0"));
    let me = "(current_setting('request.jwt.claims')::json ->> 'sub')";
    let mut seen = Vec::new();
    for policies in [
        String::new(),
        "create policy p on tide.channel for insert with check (true)".into(),
        "create policy p on tide.channel using (true)".into(),
        "create policy p on tide.channel for insert to channel_staff with check (true)".into(),
        "create policy p on tide.channel for insert to anon with check (true)".into(),
        "create policy p on tide.channel for insert to current_user with check (true)".into(),
        "create policy p on tide.channel for update using (true) with check (true)".into(),
        "create policy p on tide.channel for insert with check (null)".into(),
        "create policy p on tide.channel for insert with check (topic = 't' and extension = 'broadcast')".into(),
        "create policy p on tide.channel for insert with check (topic = 'other')".into(),
        format!("create policy p on tide.channel for insert with check ({me} = 'me')"),
        format!("create policy p on tide.channel for insert with check ((select {me}) <> 'me')"),
        "create policy p on tide.channel for insert with check (channel is not null)".into(),
        "create policy p on tide.channel for insert with check (exists (select from pg_class as c where c.relname = channel.topic || 'ide'))".into(),
        "create policy p on tide.channel for insert with check (exists (select from secrets))".into(),
        "create policy p on tide.channel for insert with check (1 / 0 = 1)".into(),
        "create policy p on tide.channel for insert with check (false);
         create policy q on tide.channel for insert with check (true)".into(),
        "create policy p on tide.channel for insert with check (true);
         create policy q on tide.channel as restrictive for insert with check (topic <> 't')".into(),
        "create policy q on tide.channel as restrictive for insert with check (true)".into(),
        "create policy p on tide.channel for all using (true) with check (false)".into(),
        "create policy p on tide.channel for insert with check (true);
         revoke insert on tide.channel from public".into(),
    ] {
        sql.batch_execute(&format!("begin; {policies}; grant select on secrets to anon; commit"))
            .unwrap();
        // Whoever may not listen cannot join, and so not speak.
        sql.batch_execute("create policy listen on tide.channel for select using (true)").unwrap();
        let mut as_role = database.sql();
        as_role
            .batch_execute(&format!(
                "set role channel_member; select set_config('request.jwt.claims', '{claims}', false)"
            ))
            .unwrap();
        let inserted =
            as_role.execute("insert into tide.channel values ('t', 'broadcast')", &[]).unwrap_err();
        let admitted = inserted.code().unwrap().code() == "23514";

        client.join("realtime:t", &private());
        let spoke = client.call("realtime:t", "broadcast", &say("hello"))["status"] == "ok";

        assert_eq!(spoke, admitted, "{policies}: {inserted}");
        seen.push(spoke);
        sql.batch_execute(
            "drop policy listen on tide.channel;
             drop policy if exists p on tide.channel;
             drop policy if exists q on tide.channel;
             grant insert on tide.channel to public",
        )
        .unwrap();
    }
    assert!(seen.contains(&true) && seen.contains(&false));
}

#[test]
fn a_policy_that_fails_or_never_ends_refuses_and_says_why_in_the_log_only() {
    let database =
        Cluster::shared().database_with("channels_failing", &[("tide.policy_timeout", "500ms")]);
    database
        .sql()
        .batch_execute(
            "create function loops() returns boolean language plpgsql as $$
             begin loop perform 1; end loop; end $$;
             create table hidden (n int);
             create function hidden() returns boolean language plpgsql as $$
             begin return exists (select from hidden); end $$;
             create policy p on tide.channel using (case topic
                 when 'loops' then loops()
                 when 'hidden' then hidden()
                 when 'fails' then topic::int = 1
                 else true end)",
        )
        .unwrap();
    let mut client = database.client();
    let since = database.cluster.log().len();

    for topic in ["loops", "hidden", "fails"] {
        assert_eq!(client.try_join(&format!("realtime:{topic}"), &private()), refusal(topic));
    }
    client.join("realtime:fine", &private());

    database.cluster.wait_for_log(since, "it took longer than tide.policy_timeout");
    database.cluster.wait_for_log(since, "permission denied for table hidden (SQLSTATE 42501)");
    database.cluster.wait_for_log(since, "SQLSTATE 22P02");
    assert!(!database.cluster.log()[since..].contains("invalid input syntax for type integer"));
}

/// The cancellation of a statement can be caught, the end of a process cannot.
#[test]
fn a_policy_that_does_not_let_itself_be_cancelled_ends_with_its_process() {
    let database =
        Cluster::shared().database_with("channels_stubborn", &[("tide.policy_timeout", "200ms")]);
    database
        .sql()
        .batch_execute(
            "create function stubborn() returns boolean language plpgsql as $$
             begin
                 loop
                     begin
                         perform pg_sleep(3600);
                     exception when query_canceled then null;
                     end;
                 end loop;
             end $$;
             create policy p on tide.channel using (topic <> 'stubborn' or stubborn())",
        )
        .unwrap();
    let mut client = database.client();

    let reply = client.try_join("realtime:stubborn", &private());
    assert_eq!(reply["status"], "error", "{reply}");

    // Another process answers.
    client.join("realtime:fine", &private());
}

#[test]
fn a_renewed_token_is_asked_about_again() {
    let mut ann = somebody("ann", "2.0.0");
    let mut bob = somebody("bob", "2.0.0");
    ann.join("realtime:attic", &private());
    bob.join("realtime:den", &private());

    let stranger = json!({ "access_token": token(&json!({ "sub": "eve" })) });
    ann.push("realtime:attic", "access_token", &stranger);
    let muted = json!({ "access_token": token(&json!({ "sub": "bob", "muted": "true" })) });
    bob.push("realtime:den", "access_token", &muted);

    let told = ann.wait_for("the reason", |frame| frame.event == "system");
    assert_eq!(
        told.payload["message"],
        "You do not have permissions to read from this Channel topic: attic"
    );
    ann.wait_for("the end", |frame| frame.event == "phx_close");
    crate::support::wait_until("he is muted", || {
        let reply = bob.call("realtime:den", "broadcast", &say("still"));
        (reply["status"] == "error").then_some(())
    });
}

#[test]
fn the_answer_holds_until_the_token_changes() {
    let mut ann = somebody("ann", "2.0.0");
    let mut sql = database().sql();
    sql.batch_execute("insert into members values ('cellar', 'ann')").unwrap();
    ann.join("realtime:cellar", &private());

    sql.batch_execute("delete from members where room = 'cellar'").unwrap();

    assert_eq!(ann.call("realtime:cellar", "broadcast", &say("still"))["status"], "ok");
    let renewed = json!({ "access_token": token(&json!({ "sub": "ann", "renewed": true })) });
    ann.push("realtime:cellar", "access_token", &renewed);
    ann.wait_for("the end", |frame| frame.event == "phx_close");
}

#[test]
fn a_crashed_client_is_not_present_and_comes_back() {
    let (topic, track) =
        ("realtime:den", json!({ "type": "presence", "event": "track", "payload": { "n": 1 } }));
    let watching =
        |key: &str| json!({ "private": true, "presence": { "enabled": true, "key": key } });
    let diff = |client: &mut Client, side: &str, key: &str| {
        client.wait_for(&format!("{key} in {side}"), |frame| {
            frame.event == "presence_diff" && frame.payload[side].get(key).is_some()
        })
    };
    for vsn in ["1.0.0", "2.0.0"] {
        let (mut ann, mut bob) = (somebody("ann", vsn), somebody("bob", vsn));
        ann.join(topic, &watching("ann"));
        bob.join(topic, &watching("bob"));
        assert_eq!(bob.call(topic, "presence", &track)["status"], "ok");
        diff(&mut ann, "joins", "bob");

        drop(bob);
        diff(&mut ann, "leaves", "bob");
        let mut bob = somebody("bob", vsn);
        bob.join(topic, &watching("bob"));
        bob.call(topic, "presence", &track);

        diff(&mut ann, "joins", "bob");
        let mut third = somebody("ann", vsn);
        third.join(topic, &watching("third"));
        let state = third.wait_for("the state", |frame| frame.event == "presence_state");
        assert_eq!(state.payload["bob"]["metas"][0]["n"], 1, "{}", state.text);
    }
}

#[test]
fn the_table_of_policies_stays_empty_and_its_topic_is_nobodys() {
    let mut sql = database().sql();

    let error = sql.execute("insert into tide.channel values ('a', 'broadcast')", &[]).unwrap_err();
    assert_eq!(error.code().unwrap().code(), "23514");
    let topic: Option<String> = sql.query_one("select tide.topic()", &[]).unwrap().get(0);
    assert_eq!(topic, None);
    let count: i64 = sql.query_one("select count(*) from tide.channel", &[]).unwrap().get(0);
    assert_eq!(count, 0);
}

#[test]
fn policies_can_be_turned_off_for_nobody_by_mistake() {
    let database = Cluster::shared().database("channels_disabled");
    let mut sql = database.sql();
    sql.batch_execute("alter table tide.channel disable row level security").unwrap();

    assert_eq!(database.client().try_join("realtime:a", &private()), refusal("a"));
}

#[test]
fn private_messages_of_the_database_are_for_private_joins() {
    let settings = [("tide.public_channels", "on")];
    let database = Cluster::shared().database_with("channels_messages", &settings);
    let mut sql = database.sql();
    sql.batch_execute("create policy listen on tide.channel for select using (topic = 'den')")
        .unwrap();
    let (mut inside, mut outside) = (database.client(), database.client());
    inside.join("realtime:den", &json!({ "private": true }));
    outside.join("realtime:den", &json!({ "private": false }));

    sql.batch_execute(
        "select tide.send('den', 'secret', '{}'), tide.send('den', 'open', '{}', false),
                tide.send('den', 'secret end', '{}'), tide.send('den', 'open end', '{}', false)",
    )
    .unwrap();

    let heard = |client: &mut Client| {
        [(); 2].map(|()| client.broadcast("realtime:den")["event"].as_str().unwrap().to_owned())
    };
    assert_eq!(heard(&mut inside), ["secret", "secret end"]);
    assert_eq!(heard(&mut outside), ["open", "open end"]);
    // What the database says does not let clients speak.
    let reply = outside.call("realtime:den", "broadcast", &say("mine"));
    assert_eq!(reply["status"], "error", "{reply}");
}

#[test]
fn notifications_and_schema_changes_are_asked_about_by_extensions_of_their_own() {
    let settings = [("tide.notify_channels", "jobs,other")];
    let database = Cluster::shared().database_with("channels_extensions", &settings);
    let mut sql = database.sql();
    sql.batch_execute(
        "create policy listen on tide.channel for select using (
             (extension, topic) in (('notify', 'tide:notify:jobs'), ('schema', 'tide:schema:public')))",
    )
    .unwrap();
    let mut client = database.client();

    client.join("realtime:tide:notify:jobs", &json!({ "private": true }));
    client.join("realtime:tide:schema:public", &json!({ "private": true }));
    for topic in ["tide:notify:other", "tide:schema", "tide:schema:other"] {
        assert_eq!(client.try_join(&format!("realtime:{topic}"), &private()), refusal(topic));
    }
    sql.batch_execute("notify jobs, 'done'").unwrap();

    let said = client.broadcast("realtime:tide:notify:jobs");
    assert_eq!(said["payload"]["payload"], "done");
}
