//! What the hub makes of look-ups that fail, or take their time.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tide_feed::catalog::{Request, Which};
use tide_feed::config::Config;
use tide_feed::event::CatalogChange;
use tokio::net::UnixStream;

use super::beginning::now;
use super::catalog_worker::Trouble;
use super::{Client, POLICY, ROOM, TABLE, World, asked_now, binding, executed};
use crate::catalog::{Lane, frame};
use crate::hub::subscription::{Facet, Since, Style};
use crate::link::Feed;

impl World {
    /// A client that has had the row 1.
    fn joined(&self) -> Client {
        let client = self.connect();
        self.join(&client, now(100));
        self.insert(200, 1);
        assert_eq!(self.ids(&client, 1), [1]);
        client
    }

    /// An executor whose first answers are that the policy failed, with these SQLSTATEs.
    fn failing_executor(&self, sqlstates: Vec<&'static str>) {
        let catalog = self.catalog.clone();
        self.runtime.spawn(async move {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
            tokio::spawn(async move { catalog.serve_executor(ours).await });
            let mut failures = sqlstates.into_iter();
            while let Ok(request) = frame::read::<Request>(&mut theirs).await {
                let answer = match failures.next() {
                    Some(sqlstate) => json!({ "outcomes": [{ "failed": sqlstate }] }),
                    None => executed(&request),
                };
                let answer = json!({ "ok": answer });
                frame::write(&mut theirs, &answer).await.expect("the hub reads");
            }
        });
    }

    /// What arrives up to the row of this id: the ids of rows, and what is said of policies.
    fn told(&self, client: &Client, last: i64) -> Vec<Value> {
        let mut told = Vec::new();
        self.read(client, |frame| {
            let payload = &frame[4];
            for one in [&payload["payload"]["record"]["id"], &payload["sqlstate"]] {
                told.extend((!one.is_null()).then(|| one.clone()));
            }
            told.last() == Some(&json!(last))
        });
        told
    }

    fn altered(&self) {
        self.feed(Feed::Catalog(CatalogChange::Relation(TABLE)));
    }

    pub(super) fn wait_for_question(&self, count: usize) {
        let deadline = SystemTime::now() + Duration::from_secs(20);
        while self.catalog_worker.asked() < count {
            assert!(SystemTime::now() < deadline, "question {count}");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_look_up_that_fails_is_not_taken_for_an_answer() {
    let refusals = ["57014", "55P03", "53200", "40P01", "57P01", "XX000", "42P01"];
    let troubles = refusals.map(Trouble::Refusal).into_iter();
    for trouble in troubles.chain([Trouble::Nonsense, Trouble::End]) {
        let world = World::new(&Config::default());
        let client = world.joined();

        world.catalog_worker.trouble([trouble; 2]);
        world.altered();
        world.insert(300, 2);
        world.insert(400, 3);

        assert_eq!(world.ids(&client, 2), [2, 3], "{trouble:?}");
    }
}

#[test]
fn what_a_join_has_asked_is_not_asked_again_before_the_stream_tells_of_a_change() {
    let world = World::new(&Config::default());
    let client = world.connect();
    let which = Which::Oids(vec![TABLE]);
    world.runtime.block_on(world.catalog.tables(Lane::Slow, "anon", which)).expect("an answer");
    assert_eq!(world.catalog_worker.asked(), 1);

    world.join(&client, now(100));
    world.insert(200, 1);
    assert_eq!(world.ids(&client, 1), [1]);
    assert_eq!(world.catalog_worker.asked(), 1);
    world.altered();
    world.insert(300, 2);

    assert_eq!(world.ids(&client, 1), [2]);
    assert_eq!(world.catalog_worker.asked(), 2);
}

#[test]
fn a_table_that_is_gone_is_an_answer() {
    let world = World::new(&Config::default());
    let client = world.joined();
    let granted = std::mem::take(&mut *world.catalog_worker.granted.lock().expect("not poisoned"));

    world.altered();
    let asked = world.catalog_worker.asked();
    for commit in 300..310 {
        world.insert(commit, 2);
    }
    world.wait_for(309);
    // The hub does not wait for its question to arrive.
    world.wait_for_question(asked + 1);
    world.wait_until_nobody_lags();
    assert_eq!(world.catalog_worker.asked(), asked + 1);
    *world.catalog_worker.granted.lock().expect("not poisoned") = granted;
    world.altered();
    world.insert(400, 3);

    assert_eq!(world.ids(&client, 1), [3]);
}

#[test]
fn nobody_else_waits_for_a_look_up_that_does_not_end() {
    let world = World::new(&Config::default());
    let (client, other) = (world.joined(), world.connect());
    world.join_room(&other, false, now(100));

    world.catalog_worker.trouble([Trouble::Delay]);
    world.altered();
    world.insert(300, 2);
    world.say(400, "hello", false);
    world.insert(500, 3);
    assert_eq!(world.heard(&other, "hello"), ["hello"]);
    let late = world.connect();
    world.join(&late, now(600));
    world.catalog_worker.answer();

    assert_eq!(world.ids(&client, 2), [2, 3]);
    world.insert(600, 4);
    assert_eq!([world.ids(&client, 1), world.ids(&late, 1)], [[4], [4]]);
}

#[test]
fn an_answer_counts_for_no_event_after_a_change_it_may_not_know_of() {
    let world = World::new(&Config::default());
    let client = world.connect();
    let rows = Facet::of_rows(Style::Table, vec![binding("")]);
    let both = vec![rows, Facet::of_topic(Style::Channel, false)];
    world.join_for(&client, now(100), (ROOM, both), ("anon", "{}"));
    world.insert(200, 1);
    assert_eq!(world.ids(&client, 1), [1]);

    world.catalog_worker.trouble([Trouble::Delay]);
    world.altered();
    let asked = world.catalog_worker.asked();
    world.insert(300, 2);
    world.wait_for_question(asked + 1);
    // It will be answered as it was asked: before the revoke.
    let granted = std::mem::take(&mut *world.catalog_worker.granted.lock().expect("not poisoned"));
    world.altered();
    world.insert(400, 3);
    world.wait_for(400);
    world.catalog_worker.answer();
    assert_eq!(world.ids(&client, 1), [2]);
    // Once this is heard the row before it has been judged.
    world.say(450, "hello", false);
    assert_eq!(world.heard(&client, "hello"), ["hello"]);
    *world.catalog_worker.granted.lock().expect("not poisoned") = granted;
    world.altered();
    world.insert(500, 4);

    assert_eq!(world.ids(&client, 1), [4]);
}

#[test]
fn changes_that_keep_coming_do_not_keep_rows_back_for_ever() {
    let world = World::new(&Config::default());
    let client = world.joined();

    // Each look-up is overtaken by the next change.
    for round in 0..20 {
        world.catalog_worker.trouble([Trouble::Delay]);
        world.altered();
        let asked = world.catalog_worker.asked();
        let commit = 300 + 10 * round;
        world.insert(commit, commit as i64);
        world.wait_for_question(asked + 1);
        world.altered();
        world.catalog_worker.answer();
        assert_eq!(world.ids(&client, 1), [commit as i64]);
    }
}

#[test]
fn clients_that_policies_tell_apart_get_their_rows_after_a_late_look_up() {
    let world = World::new(&Config::default());
    world.secure("(id = (current_setting('request.jwt.claim.n'::text))::bigint)");
    world.executor().0.add_permits(1000);
    let clients = [r#"{"n": 3}"#, r#"{"n": 4}"#].map(|claims| {
        let client = world.connect();
        world.join_as(&client, now(100), "", ("anon", claims));
        client
    });
    for change in [CatalogChange::Relation(TABLE), CatalogChange::All] {
        world.catalog_worker.trouble([Trouble::Delay]);
        world.feed(Feed::Catalog(change));
        let commit = world.stats.position.get() + 100;
        for id in 1..=5 {
            world.insert(commit + id, id as i64);
        }
        world.wait_for(commit + 5);
        world.catalog_worker.answer();
        world.insert(commit + 6, 3);
        world.insert(commit + 7, 4);

        assert_eq!(world.ids(&clients[0], 2), [3; 2]);
        assert_eq!(world.ids(&clients[1], 2), [4; 2]);
    }
}

#[test]
fn what_waits_for_a_look_up_when_the_history_ends_is_told_to_resync() {
    let config = Config { history_size: 40_000, ..Config::default() };
    let world = World::new(&config);
    let client = world.joined();

    world.catalog_worker.trouble([Trouble::Delay]);
    world.altered();
    for id in 0..2000 {
        world.insert(300 + id, id as i64);
    }
    world.wait_for(2299);
    world.catalog_worker.answer();

    let (mut told, mut newest) = (Vec::new(), 0);
    world.read(&client, |frame| {
        told.extend(frame[4]["reason"].as_str().map(str::to_owned));
        newest = frame[4]["payload"]["record"]["id"].as_i64().unwrap_or(newest);
        newest == 1999
    });
    assert_eq!(told.first().map(String::as_str), Some("policy"));
    assert_eq!(world.stats.slow_clients_total.get(), 0);
}

#[test]
fn a_policy_that_waits_for_a_lock_is_asked_again_and_one_that_stays_broken_is_told() {
    for (failures, expected) in [
        (vec!["55P03"; 6], json!([2, 4])),
        (vec!["40P01", "53200", "XX000"], json!([2, 4])),
        (vec!["XX000"; 3], json!(["XX000", 4])),
        (vec!["22012"], json!(["22012", 4])),
    ] {
        let world = World::new(&Config::default());
        world.secure(POLICY);
        world.failing_executor(failures.clone());
        let client = world.connect();
        world.join(&client, now(100));

        world.insert(200, 2);
        if let Some(sqlstate) = expected[0].as_str() {
            world.read(&client, |frame| frame[4]["sqlstate"] == sqlstate);
            world.insert(300, 4);
            assert_eq!(world.told(&client, 4), [4], "{failures:?}");
        } else {
            world.insert(300, 4);
            assert_eq!(json!(world.told(&client, 4)), expected, "{failures:?}");
        }
    }
}

#[test]
fn who_joins_while_a_policy_fails_is_told_and_nobody_twice() {
    let world = World::new(&Config::default());
    world.secure(POLICY);
    world.failing_executor(vec!["22012"; 3]);
    let first = world.connect();
    world.join(&first, now(100));
    world.insert(200, 2);
    world.read(&first, |frame| frame[4]["sqlstate"] == "22012");

    let second = world.connect();
    world.join(&second, now(250));
    world.insert(300, 4);
    world.read(&second, |frame| frame[4]["sqlstate"] == "22012");
    world.insert(400, 6);
    world.insert(500, 8);

    assert_eq!(world.told(&first, 8), [8]);
    assert_eq!(world.told(&second, 8), [8]);
}

#[test]
fn the_newest_events_that_a_policy_fails_on_are_said_to_be_missing() {
    for waits in [false, true] {
        let world = World::new(&Config::default());
        world.secure(POLICY);
        world.failing_executor(vec!["22012"; 100]);
        let before = world.connect();
        if waits {
            // Its group knows by the time that the other joins.
            world.join(&before, now(100));
        }
        world.insert(200, 2);
        world.insert(300, 4);
        world.wait_for(300);
        let client = world.connect();

        world.join(&client, Since::Last(2, asked_now()));

        let mut told = Vec::new();
        world.read(&client, |frame| {
            told.push(frame[4]["extension"].clone());
            frame[4]["extension"] == "tide.caught_up"
        });
        assert!(told.contains(&json!("tide.policy")), "{told:?}");
    }
}
