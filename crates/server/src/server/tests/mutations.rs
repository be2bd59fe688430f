//! What clients ask to be written, and what they hear of it.

use std::time::Duration;

use serde_json::{Value, json};
use tide_feed::catalog::Request;
use tide_feed::config::Config;
use tokio::net::{TcpStream, UnixStream};
use tokio_tungstenite::tungstenite::Message;

use super::world::{Client, World, config, token_with, until};
use crate::catalog::frame;
use crate::stats::MutationOutcome;

const TOPIC: &str = "realtime:tide:mutations";
const PATH: &str = "/realtime/v1/mutate";
const HOUR: Duration = Duration::from_secs(3600);

/// A writer that the test answers for.
struct Writer(UnixStream);

impl Writer {
    fn of(world: &World) -> Writer {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let catalog = world.context.catalog.clone();
        tokio::spawn(async move { catalog.serve_writer(ours).await });
        Writer(theirs)
    }

    /// The next question: role, claims, mutation.
    async fn asked(&mut self) -> (String, Value, Value) {
        match frame::read(&mut self.0).await.expect("a question") {
            Request::Mutate { role, claims, mutation } => {
                let json = |text: &str| serde_json::from_str(text).expect("JSON");
                (role, json(&claims), json(&mutation))
            }
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&mut self, answer: Value) {
        frame::write(&mut self.0, &answer).await.expect("is read");
    }

    /// Answers the next question; gives back its number.
    async fn next(&mut self, answer: Value) -> u64 {
        let (.., mutation) = self.asked().await;
        self.answer(answer).await;
        mutation["n"].as_u64().expect("a number")
    }

    /// Nothing has been asked that was not answered.
    fn is_idle(&self) -> bool {
        self.0.try_read(&mut [0]).is_err()
    }
}

fn confirmed(lsn: u64) -> Value {
    json!({"ok": {"settled": {"lsn": lsn, "outcome": {"status": "confirmed", "returning": [null]}}}})
}

fn rejected(lsn: u64, sqlstate: &str) -> Value {
    let rejection = json!({"op": 0, "sqlstate": sqlstate, "reason": "no", "current": null});
    json!({"ok": {"settled": {"lsn": lsn, "outcome": {"status": "rejected", "rejection": rejection}}}})
}

fn refused(sqlstate: &str) -> Value {
    json!({"error": {"sqlstate": sqlstate, "message": "no"}})
}

fn mutation(n: u64) -> Value {
    let op = json!({"op": "insert", "table": "public.t", "values": {"id": n}});
    json!({"mutation_id": format!("m{n}"), "client_id": "c", "n": n, "ops": [op]})
}

impl Client<TcpStream> {
    async fn joined(&mut self, topic: &str, config: Value) {
        self.join("1", topic, config).await;
        assert_eq!(self.next().await[4]["status"], "ok");
    }

    async fn mutate(&mut self, reference: &str, topic: &str, payload: Value) {
        let push = json!({"type": "broadcast", "event": "tide:mutate", "payload": payload});
        self.send(json!(["1", reference, topic, "broadcast", push])).await;
    }

    /// The next frame, which is an answer.
    async fn answer(&mut self) -> Value {
        let frame = self.next().await;
        assert_eq!((&frame[3], &frame[4]["event"]), (&json!("broadcast"), &json!("tide:mutation")));
        frame[4]["payload"].clone()
    }

    async fn code(&mut self) -> (Value, Value) {
        let answer = self.answer().await;
        assert_eq!(answer["status"], "error");
        (answer["n"].clone(), answer["code"].clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mutations_of_a_connection_are_done_in_their_order() {
    let world = World::new(Config { public_channels: true, ..config() }).await;
    let (mut one, mut other) = (Writer::of(&world), Writer::of(&world));
    world.decoded(300);
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;
    client.joined("realtime:room", json!({})).await;

    for (n, topic) in [(1, TOPIC), (2, "realtime:room"), (3, TOPIC)] {
        client.mutate("7", topic, mutation(n)).await;
    }

    for (n, topic) in [(1, TOPIC), (2, "realtime:room"), (3, TOPIC)] {
        let (asked, free) = tokio::select! {
            asked = one.asked() => (asked, &other),
            asked = other.asked() => (asked, &one),
        };
        client.settle().await;
        assert_eq!(world.context.stats.mutations_pending.get(), 4 - n);
        assert!(free.is_idle());
        assert_eq!(asked, ("web".into(), json!({"role": "web"}), mutation(n)));
        let busy = if std::ptr::eq(free, &other) { &mut one } else { &mut other };
        busy.answer(confirmed(200)).await;
        let frame = client.next().await;
        assert_eq!((&frame[2], &frame[4]["payload"]["n"]), (&json!(topic), &json!(n)));
    }
    assert_eq!(world.context.stats.mutations(MutationOutcome::Confirmed).get(), 3);
    until(|| world.context.stats.mutations_pending.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_hears_of_its_own_rows_first_and_nobody_else_of_the_mutation() {
    // No broadcast would be let through.
    let limits = Config { broadcast_rate: 0, max_broadcast_size: 0, ..config() };
    let world = World::new(Config { public_channels: true, ..limits }).await;
    let mut writer = Writer::of(&world);
    let (mut client, mut other) = (world.client().await, world.client().await);
    client.joined("realtime:tide:table:public.t", json!({})).await;
    client.joined("realtime:room", json!({"broadcast": {"ack": true}})).await;
    other.joined("realtime:room", json!({})).await;

    client.mutate("7", "realtime:room", mutation(1)).await;
    assert_eq!(writer.next(confirmed(210)).await, 1);
    until(|| world.context.stats.mutations(MutationOutcome::Confirmed).get() == 1).await;
    // It is not told before the stream has come there.
    client.settle().await;
    world.insert(200, 1, "own");
    world.decoded(210);

    assert_eq!(client.next().await[4]["payload"]["record"]["note"], "own");
    let ok = json!({"status": "ok", "response": {}});
    assert_eq!(client.next().await, json!(["1", "7", "realtime:room", "phx_reply", ok]));
    let answer = json!({
        "mutation_id": "m1", "client_id": "c", "n": 1, "status": "confirmed",
        "position": "00000007000001.00000000000000d1ffffffff", "returning": [null],
    });
    assert_eq!(client.answer().await, answer);
    client.settle().await;
    other.settle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_version_1_are_answered_as_well() {
    let world = World::new(config()).await;
    let mut writer = Writer::of(&world);
    world.decoded(300);
    let mut client = world.client_at("/socket/websocket?vsn=1.0.0&apikey=anon").await.unwrap();
    let frame = |event: &str, reference: &str, payload: Value| json!({"topic": TOPIC, "event": event, "payload": payload, "ref": reference});
    let config = json!({"config": {"broadcast": {"ack": true}}});
    client.send(frame("phx_join", "1", config)).await;
    assert_eq!(client.next().await["payload"]["status"], "ok");

    let push = json!({"type": "broadcast", "event": "tide:mutate", "payload": mutation(1)});
    client.send(frame("broadcast", "2", push)).await;
    assert_eq!(writer.next(rejected(200, "23505")).await, 1);

    let reply = json!({"status": "error", "response": {"error": "no"}});
    assert_eq!(client.next().await, frame("phx_reply", "2", reply));
    let answer = json!({
        "mutation_id": "m1", "client_id": "c", "n": 1, "status": "rejected",
        "position": "00000007000001.00000000000000c7ffffffff",
        "op": 0, "sqlstate": "23505", "reason": "no", "current": null,
    });
    let push = json!({"type": "broadcast", "event": "tide:mutation", "payload": answer});
    assert_eq!(client.next().await["payload"], push);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_does_not_overtake_an_answer_that_waits() {
    let world = World::new(config()).await;
    let mut writer = Writer::of(&world);
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;
    client.mutate("7", TOPIC, mutation(1)).await;
    assert_eq!(writer.next(confirmed(210)).await, 1);
    until(|| world.context.stats.mutations(MutationOutcome::Confirmed).get() == 1).await;

    client.mutate("8", TOPIC, json!({"n": 2})).await;
    client.settle().await;
    world.decoded(210);

    assert_eq!(client.answer().await["n"], 1);
    assert_eq!(client.code().await, (json!(2), json!("malformed")));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_nonsense_is_not_read_while_too_much_of_it_waits_to_be_answered() {
    let world = World::new(Config { mutation_rate: 1_000, ..config() }).await;
    let mut writer = Writer::of(&world);
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;
    client.mutate("7", TOPIC, mutation(1)).await;
    assert_eq!(writer.next(confirmed(210)).await, 1);
    let errors = || world.context.stats.mutations(MutationOutcome::Error).get();
    until(|| world.context.stats.mutations(MutationOutcome::Confirmed).get() == 1).await;

    for n in 2..=150 {
        client.mutate("8", TOPIC, json!({"n": n})).await;
    }
    until(|| errors() == 100).await;
    world.decoded(210);

    assert_eq!(client.answer().await["n"], 1);
    for n in 2..=150 {
        assert_eq!(client.code().await, (json!(n), json!("malformed")));
    }
    client.settle().await;
    assert_eq!(errors(), 149);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_echo_an_answer_comes_after_a_while() {
    let world = World::new(Config { echo_timeout: Duration::from_millis(20), ..config() }).await;
    let mut writer = Writer::of(&world);
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;

    client.mutate("7", TOPIC, mutation(1)).await;
    assert_eq!(writer.next(confirmed(210)).await, 1);

    assert_eq!(client.answer().await["echo"], "skipped");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_begun_than_may_wait_to_be_answered() {
    let world = World::new(Config { max_pending_mutations: 1, ..config() }).await;
    let mut writer = Writer::of(&world);
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;
    for n in 1..=2 {
        client.mutate("7", TOPIC, mutation(n)).await;
        assert_eq!(writer.next(confirmed(210)).await, n);
        until(|| world.context.stats.mutations(MutationOutcome::Confirmed).get() == n).await;
    }

    client.mutate("7", TOPIC, mutation(3)).await;
    client.settle().await;
    assert!(writer.is_idle());
    world.decoded(210);

    assert_eq!(writer.next(confirmed(210)).await, 3);
    for n in 1..=3 {
        assert_eq!(client.answer().await["n"], n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_answered_and_the_channel_stays() {
    let world = World::new(Config {
        max_pending_mutations: 1,
        mutation_rate: 4,
        max_mutation_size: 200,
        ..config()
    })
    .await;
    let mut client = world.client().await;
    client.joined(TOPIC, json!({"broadcast": {"ack": true}})).await;
    // There is no writer: the first is under way, the second waits.
    for n in 1..=3 {
        client.mutate("7", TOPIC, mutation(n)).await;
    }
    let reply = client.next().await;
    assert_eq!((&reply[1], &reply[4]["status"]), (&json!("7"), &json!("error")));
    assert_eq!(client.code().await, (json!(3), json!("queue")));

    let leave = json!(["1", "8", TOPIC, "phx_leave", {}]);
    client.send(leave).await;
    assert_eq!(client.next().await[3], "phx_reply");
    assert_eq!(client.next().await[3], "phx_close");
    client.joined(TOPIC, json!({})).await;
    let mut large = mutation(4);
    large["ops"][0]["values"]["note"] = json!("x".repeat(200));
    client.mutate("9", TOPIC, large).await;
    client.mutate("9", TOPIC, mutation(5)).await;

    assert_eq!(client.code().await, (json!(4), json!("size")));
    assert_eq!(client.code().await, (json!(5), json!("rate")));
    assert_eq!(world.context.stats.mutations(MutationOutcome::Error).get(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_large_mutations_fewer_wait() {
    let world = World::new(Config { max_mutation_size: 200, ..config() }).await;
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;
    for n in 1..=50 {
        client.mutate("7", TOPIC, mutation(n)).await;
    }

    let (first, code) = client.code().await;

    assert_eq!(code, "queue");
    // One is under way, and 800 bytes of others wait.
    assert!((5..20).contains(&first.as_u64().unwrap()), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_mutation_is_said_to_be_malformed() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;

    client.mutate("7", TOPIC, json!({"n": 7})).await;
    client.mutate("7", TOPIC, json!([])).await;
    let mut header = vec![3, 1, 1, u8::try_from(TOPIC.len()).unwrap(), 11, 0, 0];
    header.extend_from_slice(format!("17{TOPIC}tide:mutate{{}}").as_bytes());
    client.send_message(Message::Binary(header.into())).await;

    assert_eq!(client.code().await, (json!(7), json!("malformed")));
    for _ in 0..2 {
        assert_eq!(client.code().await, (Value::Null, json!("malformed")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_clients_write_nothing_they_are_told_so() {
    let world = World::new(Config { writers: 0, ..config() }).await;
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;

    client.mutate("7", TOPIC, mutation(1)).await;

    assert_eq!(client.code().await, (json!(1), json!("disabled")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_a_moment_is_tried_again_in_its_place() {
    let world = World::new(config()).await;
    let mut writer = Writer::of(&world);
    world.decoded(300);
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;
    for n in 1..=2 {
        client.mutate("7", TOPIC, mutation(n)).await;
    }

    for sqlstate in ["40001", "53300", "57P01", "58030"] {
        assert_eq!(writer.next(refused(sqlstate)).await, 1);
    }
    let (.., asked) = writer.asked().await;
    assert_eq!(asked["n"], 1);
    drop(writer);
    let mut writer = Writer::of(&world);
    assert_eq!(writer.next(confirmed(200)).await, 1);
    assert_eq!(writer.next(confirmed(200)).await, 2);

    assert_eq!(client.answer().await["n"], 1);
    assert_eq!(client.answer().await["n"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_failing_is_given_up_and_what_is_refused_is_told_at_once() {
    let world = World::new(config()).await;
    let mut writer = Writer::of(&world);
    world.decoded(300);
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;
    let out_of_order = json!({"ok": {"out_of_order": 1}});

    for (answer, times, code) in [
        (refused("53100"), 3, "unavailable"),
        (refused("57014"), 3, "timeout"),
        (refused("XX000"), 1, "refused"),
        (refused("42501"), 1, "refused"),
        (out_of_order, 1, "out_of_order"),
        (json!({"ok": "expired"}), 1, "expired"),
        (json!({"ok": "reused"}), 1, "reused"),
    ] {
        client.mutate("7", TOPIC, mutation(1)).await;
        for _ in 0..times {
            writer.next(answer.clone()).await;
        }

        let told = client.answer().await;
        assert_eq!((&told["status"], &told["code"]), (&json!("error"), &json!(code)));
        assert_eq!(told["sqlstate"], answer["error"]["sqlstate"], "{code}");
        assert_eq!(told["expected"], answer["ok"]["out_of_order"], "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_hears_nothing_more_and_what_waits_is_dropped() {
    let world = World::new(Config { public_channels: true, ..config() }).await;
    let mut writer = Writer::of(&world);
    world.decoded(300);
    let mut client = world.client().await;
    client.joined(TOPIC, json!({})).await;
    client.joined("realtime:room", json!({})).await;
    for (n, topic) in [(1, TOPIC), (2, TOPIC), (3, "realtime:room")] {
        client.mutate("7", topic, mutation(n)).await;
    }
    assert_eq!(writer.asked().await.2["n"], 1);

    client.send(json!(["1", "8", TOPIC, "phx_leave", {}])).await;
    assert_eq!(client.next().await[3], "phx_reply");
    assert_eq!(client.next().await[3], "phx_close");
    writer.answer(confirmed(200)).await;

    assert_eq!(writer.next(confirmed(200)).await, 3);
    assert_eq!(client.answer().await["n"], 3);
    drop(client);
    until(|| world.context.stats.mutations_pending.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutation_is_of_whoever_had_the_channel_when_it_came() {
    let world = World::new(config()).await;
    let mut writer = Writer::of(&world);
    let [first, second] = [1, 2].map(|n| token_with("web", json!({"user": n}), HOUR));
    let mut client = world.client().await;
    let join = json!({"config": {}, "access_token": first});
    client.send(json!(["1", "1", TOPIC, "phx_join", join])).await;
    client.next().await;
    for n in 1..=2 {
        client.mutate("7", TOPIC, mutation(n)).await;
    }
    client.send(json!(["1", "8", TOPIC, "access_token", {"access_token": second}])).await;
    client.settle().await;

    for _ in 1..=2 {
        let (role, claims, _) = writer.asked().await;
        assert_eq!((&*role, &claims["user"]), ("web", &json!(1)));
        writer.answer(confirmed(200)).await;
    }
    // How long a renewal takes is for the catalogue to say.
    for n in 3.. {
        client.mutate("7", TOPIC, mutation(n)).await;
        let (_, claims, _) = writer.asked().await;
        writer.answer(confirmed(200)).await;
        if claims["user"] == 2 {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topic_of_mutations_takes_no_options() {
    let world = World::new(config()).await;
    let mut client = world.client().await;
    for options in [
        json!({"broadcast": {"snapshot": true}}),
        json!({"broadcast": {"last": 3}}),
        json!({"broadcast": {"since": "00000007000001.00000000000000c7ffffffff"}}),
        json!({"broadcast": {"filter": "id=eq.1"}}),
        json!({"postgres_changes": [{"event": "*", "schema": "public"}]}),
    ] {
        client.join("1", TOPIC, options.clone()).await;
        assert_eq!(client.next().await[4]["status"], "error", "{options}");
    }
}

async fn post(world: &World, headers: &[(&str, &str)], body: &Value) -> (u16, Value) {
    world.post(PATH, headers, body.to_string().as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_the_answer_is_the_response() {
    let world = World::new(Config { mutation_rate: 1_000, ..config() }).await;
    let mut writer = Writer::of(&world);
    let token = token_with("web", json!({"user": 1}), HOUR);
    let bearer = format!("Bearer {token}");

    let body = mutation(1);
    let asked = async {
        let (role, claims, mutation) = writer.asked().await;
        assert_eq!((&*role, &claims["user"], &mutation), ("web", &json!(1), &body));
        writer.answer(confirmed(210)).await;
    };
    let headers = [("Authorization", &*bearer)];
    let (answer, ()) = tokio::join!(post(&world, &headers, &body), asked);
    let expected = json!({
        "mutation_id": "m1", "client_id": "c", "n": 1, "status": "confirmed",
        "position": "00000007000001.00000000000000d1ffffffff", "returning": [null],
    });
    assert_eq!(answer, (200, expected));

    let body = mutation(2);
    for (answer, times, status, code) in [
        (rejected(1, "42501"), 1, 403, None),
        (rejected(1, "23503"), 1, 409, None),
        (rejected(1, "TD004"), 1, 409, None),
        (rejected(1, "42P01"), 1, 404, None),
        (rejected(1, "42883"), 1, 404, None),
        (rejected(1, "P0002"), 1, 404, None),
        (rejected(1, "P0001"), 1, 400, None),
        (json!({"ok": {"out_of_order": 3}}), 1, 409, Some("out_of_order")),
        (json!({"ok": "reused"}), 1, 409, Some("reused")),
        (json!({"ok": "expired"}), 1, 410, Some("expired")),
        (refused("42501"), 1, 403, Some("refused")),
        (refused("55000"), 1, 400, Some("refused")),
        (refused("57014"), 3, 503, Some("timeout")),
        (refused("53100"), 3, 503, Some("unavailable")),
    ] {
        let asked = async {
            for _ in 0..times {
                writer.next(answer.clone()).await;
            }
        };
        let (told, ()) = tokio::join!(post(&world, &[], &body), asked);
        assert_eq!((told.0, told.1["code"].as_str()), (status, code), "{answer}");
        assert_eq!(told.1["n"], 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_what_is_refused_has_its_status() {
    let limits = Config { max_mutation_size: 200, mutation_rate: 2, ..config() };
    let world = World::new(limits.clone()).await;
    let disabled = World::new(Config { writers: 0, ..limits.clone() }).await;
    let strict = World::new(Config { anon_role: None, ..limits }).await;
    let large = json!({"x": "x".repeat(200)});
    let code = |answer: &(u16, Value)| answer.1["code"].clone();

    for (body, status, expected) in [
        (large, 413, "size"),
        (json!({"n": 1}), 400, "malformed"),
        (json!([]), 400, "malformed"),
        (mutation(1), 429, "rate"),
    ] {
        let answer = post(&world, &[], &body).await;
        assert_eq!((answer.0, code(&answer)), (status, json!(expected)));
    }
    let answer = post(&disabled, &[], &mutation(1)).await;
    assert_eq!((answer.0, code(&answer)), (503, json!("disabled")));
    assert_eq!(disabled.post(PATH, &[], b"{").await.0, 400);
    let answer = post(&strict, &[], &mutation(1)).await;
    assert_eq!((answer.0, answer.1["error"].is_string()), (401, true));
    assert_eq!(post(&world, &[("Content-Type", "text/plain")], &mutation(1)).await.0, 415);
    assert_eq!(post(&world, &[("Origin", "https://x.y")], &mutation(1)).await.0, 429);
    let origin = vec!["https://a.b".to_owned()];
    let closed = World::new(Config { allowed_origins: origin, ..config() }).await;
    assert_eq!(post(&closed, &[("Origin", "https://x.y")], &mutation(1)).await.0, 403);
    assert_eq!(world.get(PATH).await.0, 405);
}
