//! When clients hear what has become of what they asked to be written.

use std::time::Instant;

use tide_feed::mutation::{Outcome, Settled, Status};

use super::*;
use crate::hub::answers::Reply;
use crate::wire::mutation::{Answer, Code, Failure, Name, Recipient, Verdict};

/// Nothing in these tests takes this long unless it is broken.
const LONG: Duration = Duration::from_secs(3600);

impl World {
    /// The mutation `n` has been done before that address.
    fn confirm(&self, client: &Client, n: u64, lsn: u64, echo_timeout: Duration) {
        let outcome = Outcome { status: Status::Confirmed, returning: None, rejection: None };
        self.answer(client, n, Verdict::Settled(Settled { lsn, outcome }), echo_timeout);
    }

    /// The mutation `n` was refused.
    fn refuse(&self, client: &Client, n: u64) {
        let failure = Failure::new(Code::Rate, "slowly");
        self.answer(client, n, Verdict::Failed(failure), Duration::ZERO);
    }

    fn answer(&self, client: &Client, n: u64, verdict: Verdict, echo_timeout: Duration) {
        let answer = Answer { name: Name { n: Some(n), ..Name::default() }, verdict };
        let to = Recipient {
            vsn: Vsn::V2,
            join_ref: None,
            ref_: None,
            topic: ROOM.into(),
            waits: false,
        };
        let due = Instant::now() + echo_timeout;
        self.hub.answer(client.session, Reply { answer, to, due, place: None });
    }

    /// What the client is told up to the answer to the mutation `n`: ids of rows, and answers.
    fn told_until(&self, client: &Client, n: u64) -> Vec<Value> {
        let mut told = Vec::new();
        self.read(client, |frame| {
            let payload = &frame[4]["payload"];
            match frame[4]["event"].as_str() {
                Some("INSERT") => told.push(payload["record"]["id"].clone()),
                Some("tide:mutation") => told.push(payload.clone()),
                _ => {}
            }
            payload["n"] == n
        });
        told
    }
}

fn numbers(answers: &[Value]) -> Vec<u64> {
    answers.iter().filter_map(|answer| answer["n"].as_u64()).collect()
}

/// Whether nothing waits for the client.
fn is_silent(client: &Client) -> bool {
    client.queue.take(&mut Vec::new(), usize::MAX).now_or_never().is_none()
}

#[test]
fn an_answer_comes_after_what_its_mutation_did() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join(&client, now(0));
    world.confirm(&client, 1, 250, LONG);
    world.insert(200, 7);
    world.insert(240, 8);
    world.feed(Feed::Decoded(Lsn(250)));

    let told = world.told_until(&client, 1);

    let position = Cursor { epoch: EPOCH, position: Position::before(Lsn(250)) };
    let answer = json!({
        "mutation_id": null, "client_id": null, "n": 1,
        "status": "confirmed", "position": position.to_string(),
    });
    assert_eq!(told, [json!(7), json!(8), answer]);
}

#[test]
fn what_is_decoded_already_is_answered_at_once() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.feed(Feed::Decoded(Lsn(400)));

    world.confirm(&client, 1, 300, LONG);
    world.refuse(&client, 2);

    assert_eq!(numbers(&world.told_until(&client, 2)), [1, 2]);
}

#[test]
fn no_answer_overtakes_another_of_its_connection() {
    let world = World::new(&Config::default());
    let (client, other) = (world.connect(), world.connect());
    world.confirm(&client, 1, 900, LONG);
    world.refuse(&client, 2);
    world.confirm(&client, 3, 300, LONG);
    world.confirm(&other, 4, 300, LONG);
    world.refuse(&other, 5);

    world.feed(Feed::Decoded(Lsn(300)));
    assert_eq!(numbers(&world.told_until(&other, 5)), [4, 5]);
    assert!(is_silent(&client));
    world.feed(Feed::Decoded(Lsn(900)));

    assert_eq!(numbers(&world.told_until(&client, 3)), [1, 2, 3]);
}

#[test]
fn who_reads_slowly_is_answered_once_it_has_been_given_what_came_before() {
    let world = World::new(&Config { send_queue_size: 2_000, ..Config::default() });
    let client = world.connect();
    world.join(&client, now(0));
    for id in 1..=100 {
        world.insert(1_000 + 10 * id, id as i64);
    }
    world.feed(Feed::Decoded(Lsn(2_008)));
    world.confirm(&client, 1, 2_008, LONG);
    world.wait_for(2_000);
    world.settle();

    let told = world.told_until(&client, 1);

    let ids: Vec<Value> = (1..=100).map(|id| json!(id)).collect();
    assert_eq!(told[..100], ids);
    assert_eq!((&told[100]["n"], &told[100]["echo"]), (&json!(1), &Value::Null));
}

#[test]
fn what_comes_after_the_mutation_is_not_waited_for() {
    let world = World::new(&Config { send_queue_size: 2_000, ..Config::default() });
    let client = world.connect();
    world.join(&client, now(0));
    world.insert(1_000, 1);
    world.feed(Feed::Decoded(Lsn(1_005)));
    for id in 2..=100 {
        world.insert(1_000 + 10 * id, id as i64);
    }
    world.wait_for(2_000);

    world.confirm(&client, 1, 1_005, LONG);

    // It lags, and it is not said that its queue has room again.
    let mut frames = Vec::new();
    let answered = |frames: &[Bytes]| {
        let last = frames.last().and_then(|frame| serde_json::from_slice::<Value>(frame).ok());
        last.is_some_and(|frame| frame[4]["event"] == "tide:mutation")
    };
    world.runtime.block_on(async {
        while !answered(&frames) {
            let taken = client.queue.take(&mut frames, usize::MAX);
            tokio::time::timeout(Duration::from_secs(20), taken).await.expect("it is answered");
        }
    });
    assert!(frames.len() < 100, "it does not lag: {}", frames.len());
}

#[test]
fn an_answer_waits_no_longer_than_its_client() {
    let world = World::new(&Config::default());
    let (client, patient) = (world.connect(), world.connect());
    world.confirm(&patient, 1, 900, LONG);
    world.confirm(&client, 2, 900, Duration::from_millis(20));
    world.confirm(&client, 3, 100, LONG);

    let told = world.told_until(&client, 3);

    assert_eq!(numbers(&told), [2, 3]);
    let position = Cursor { epoch: EPOCH, position: Position::before(Lsn(900)) };
    assert_eq!(told[0]["echo"], "skipped");
    assert_eq!(told[0]["position"], position.to_string());
    assert_eq!(told[1]["echo"], Value::Null);
    assert!(is_silent(&patient));
}

#[test]
fn without_a_stream_an_answer_has_no_position() {
    let world = World::stalled(&Config::default());
    let client = world.connect();
    world.confirm(&client, 1, 50, Duration::from_millis(20));
    let told = world.told_until(&client, 1);
    assert_eq!((&told[0]["echo"], &told[0]["position"]), (&json!("skipped"), &Value::Null));

    world.confirm(&client, 2, 50, LONG);
    world.go_live();

    let told = world.told_until(&client, 2);
    assert!(told[0]["position"].is_string());
}

#[test]
fn answers_go_with_their_connection() {
    let world = World::new(&Config::default());
    let client = world.connect();
    let places = Arc::new(Semaphore::new(1));
    let place = Arc::clone(&places).try_acquire_owned().ok();
    let outcome = Outcome { status: Status::Confirmed, returning: None, rejection: None };
    let verdict = Verdict::Settled(Settled { lsn: 900, outcome });
    let answer = Answer { name: Name::default(), verdict };
    let to =
        Recipient { vsn: Vsn::V1, join_ref: None, ref_: None, topic: ROOM.into(), waits: false };
    let due = Instant::now() + LONG;
    world.hub.answer(client.session, Reply { answer, to, due, place });
    world.settle();
    assert_eq!(places.available_permits(), 0);

    world.hub.forget(client.session);
    world.settle();

    assert_eq!(places.available_permits(), 1);
}
