//! Where in the stream a channel begins.

use super::*;
use crate::catalog::Moment;
use crate::wire::encode::{self, Address, Joined};

fn moment(end: u64) -> Moment {
    Moment { end: Lsn(end), ..Moment::default() }
}

pub(super) fn cursor(commit: u64) -> Since {
    Since::Cursor(Cursor { epoch: EPOCH, position: at(commit) }, moment(1 << 40))
}

pub(super) fn now(end: u64) -> Since {
    Since::Now(moment(end))
}

/// After everything that these tests feed.
pub(super) fn asked_now() -> Moment {
    moment(1 << 40)
}

/// The answer to every join.
pub(super) fn joined() -> Joined {
    encode::joined(Vsn::V2, Address::of("t"), &[])
}

#[test]
fn what_could_not_be_seen_when_a_channel_was_joined_is_given_to_it() {
    let world = World::new(&Config::default());
    let [before, unseen] = [[2], [1]].map(|running: [u32; 1]| {
        let client = world.connect();
        let moment = Moment { end: Lsn(1000), running: running.into() };
        world.join(&client, Since::Now(moment));
        client
    });
    // All rows are of transaction 1.
    world.insert(500, 1);
    world.insert(1000, 2);

    assert_eq!(world.ids(&before, 1), [2]);
    assert_eq!(world.ids(&unseen, 2), [1, 2]);
}

#[test]
fn what_cannot_be_of_this_history_is_a_resync() {
    let world = World::new(&Config::default());
    world.insert(200, 1);
    world.insert(300, 2);
    world.feed(Feed::Decoded(Lsn(400)));
    world.wait_for(300);
    let end = 1000;
    let between = Position::before(Lsn(250));

    for (position, reason) in [
        (at(50), Some("trimmed")),
        (at(200), None),
        (at(250), Some("unknown")),
        (at(350), Some("unknown")),
        (between, None),
        // Not decoded yet, as after a restart.
        (at(500), None),
        (at(end), Some("future")),
    ] {
        let client = world.connect();
        let cursor = Cursor { epoch: EPOCH, position };
        world.join(&client, Since::Cursor(cursor, moment(end)));
        let told = |frame: &Value| match frame[4]["extension"].as_str()? {
            "tide.resync" => Some(frame[4]["reason"].as_str().map(str::to_owned)),
            _ => Some(None),
        };
        let mut seen = None;
        world.read(&client, |frame| {
            seen = seen.take().or(told(frame));
            seen.is_some()
        });
        assert_eq!(seen.flatten().as_deref(), reason, "{position}");
    }
}

#[test]
fn a_channel_is_told_where_it_begins_and_when_it_has_caught_up() {
    let world = World::new(&Config::default());
    for id in 1..=3 {
        world.insert(100 + 100 * id, id as i64);
    }
    world.wait_for(400);
    let text = |position| json!(Cursor { epoch: EPOCH, position }.to_string());

    for (since, begins, rows) in
        [(cursor(200), at(200), 2), (Since::Last(1, asked_now()), at(300), 1)]
    {
        let client = world.connect();
        world.join(&client, since);
        let mut frames = Vec::new();
        world.read(&client, |frame| {
            frames.push(frame.clone());
            frame[4]["extension"] == "tide.caught_up"
        });
        assert_eq!(frames[0][4]["response"]["position"], text(begins));
        assert_eq!(frames.iter().filter(|frame| frame[3] == "broadcast").count(), rows);
        assert_eq!(frames.last().map(|frame| &frame[4]["position"]), Some(&text(at(400))));
    }
}

/// Rows of one transaction, of which more may come.
fn feed_part(world: &World, commit: u64, ids: std::ops::Range<i64>, is_last: bool) {
    let mut batch = BatchBuilder::default();
    for id in ids.clone() {
        let new = Some(batch.row_of(&[Some(&id.to_string())]));
        let relation = Arc::clone(&world.relation);
        let change = Change { relation, operation: Operation::Insert, old: None, new };
        let mut event = Event::alone(commit, EventKind::Change(change));
        event.position.ordinal = u32::try_from(id).expect("a small id");
        event.last_in_tx = is_last && id + 1 == ids.end;
        batch.events.push(event);
    }
    world.feed(Feed::Batch(batch.finish()));
}

#[test]
fn who_joins_in_the_middle_of_a_transaction_gets_all_of_it_or_nothing() {
    let world = World::new(&Config::default());
    feed_part(&world, 1000, 0..3, false);
    world.wait_for(1000);
    let [all, nothing] = [900, 1100].map(|asked| {
        let client = world.connect();
        world.join_where(&client, now(asked), "id=gte.0");
        client
    });
    feed_part(&world, 1000, 3..5, true);
    world.insert(1200, 9);

    assert_eq!(world.ids(&all, 6), [0, 1, 2, 3, 4, 9]);
    assert_eq!(world.ids(&nothing, 1), [9]);
}

#[test]
fn after_a_gap_comes_everything_that_is_kept_and_then_its_end_is_told() {
    let world = World::new(&Config::default());
    for id in 0..3 {
        world.say(200 + 10 * id, &format!("m{id}"), false);
    }
    world.feed(Feed::Decoded(Lsn(300)));
    world.wait_for(220);
    let client = world.connect();
    world.join_room(&client, false, cursor(50));
    world.say(400, "last", false);

    let mut told = Vec::new();
    world.read(&client, |frame| {
        let named = [&frame[4]["extension"], &frame[4]["event"]];
        told.extend(named.iter().filter_map(|name| name.as_str()).map(str::to_owned));
        told.last().is_some_and(|last| last == "last")
    });
    assert_eq!(told, ["tide.resync", "m0", "m1", "m2", "tide.caught_up", "last"]);
}

#[test]
fn after_a_gap_a_transaction_whose_beginning_is_gone_is_left_out() {
    let config = Config { history_size: 4_000, ..Config::default() };
    let world = World::new(&config);
    for part in 0..100 {
        feed_part(&world, 1000, 10 * part..10 * (part + 1), part == 99);
    }
    world.insert(2000, 5000);
    world.wait_for(2000);
    let client = world.connect();
    world.join(&client, cursor(50));

    assert_eq!(world.ids(&client, 1), [5000]);
}

#[test]
fn what_is_replayed_names_the_event_before_it() {
    let world = World::new(&Config::default());
    for id in 0..4 {
        world.insert(200 + 10 * id, 0);
    }
    world.wait_for(230);
    let client = world.connect();
    world.join(&client, cursor(200));
    world.wait_until_nobody_lags();
    world.insert(300, 1);

    let mut chain = Vec::new();
    world.read(&client, |frame| {
        let meta = &frame[4]["meta"];
        chain.extend(meta["id"].as_str().map(|id| (id.to_owned(), meta["prev"].clone())));
        chain.len() == 4
    });
    for pair in chain.windows(2) {
        assert_eq!(pair[1].1, pair[0].0);
    }
}
