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

    for (since, begins, rows) in [(cursor(200), at(200), 2), (Since::Last(1), at(300), 1)] {
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
