//! Clients that do not read what they asked for, and what that is to the others.

use super::*;
use crate::allowance::Allowance;
use crate::memory::Kind;

const TOPIC: &str = "realtime:tide:table:public.t";

/// Four fifths of it are for all, the rest for those who have next to nothing.
fn budget(bytes: usize) -> Arc<Budget> {
    Arc::new(Budget::new(Arc::new(Allowance::new(bytes))))
}

impl World {
    fn send(&self, name: &str, size: usize) {
        let pad = "x".repeat(size);
        let frame = format!(r#"[null,null,"r","broadcast",{{"event":"{name}","pad":"{pad}"}}]"#);
        assert!(self.hub.send_ephemeral(to_room(Style::Channel, frame)));
    }
}

#[test]
fn who_leaves_the_channel_that_it_lagged_on_hears_the_others_once_it_has_read() {
    let world = World::new(&Config { send_queue_size: 2_000, ..Config::default() });
    let client = world.connect();
    world.join_room(&client, false, now(0));
    world.join(&client, now(0));
    for id in 1..=100 {
        world.insert(1_000 + 10 * id, id as i64);
    }
    world.wait_for(2_000);

    world.hub.leave(client.session, TOPIC);
    // Nothing more is put into its queue, so that it can be emptied.
    world.settle();
    let mut frames = Vec::new();
    while let Some(Taken::Frames { drained, .. }) =
        client.queue.take(&mut frames, 500).now_or_never()
    {
        if drained {
            world.hub.drained(client.session);
        }
    }
    world.send("one", 1);
    world.send("two", 1);

    assert!(frames.len() < 100, "it did not lag: {}", frames.len());
    assert_eq!(world.heard(&client, "two"), ["one", "two"]);
}

#[test]
fn who_reads_gets_everything_however_many_do_not() {
    let (size, burst) = (5_000, 20);
    let world = World::new(&Config {
        memory_limit: 12 << 20,
        history_size: 1 << 20,
        send_queue_size: 1 << 20,
        ..Config::default()
    });
    let join = || {
        let client = world.connect();
        world.join_room(&client, false, now(0));
        client
    };
    let (reading, _stalled) = (join(), (0..70).map(|_| join()).collect::<Vec<_>>());

    for round in 0..20 {
        let names: Vec<String> = (0..burst).map(|n| format!("{round}-{n}")).collect();
        for name in &names {
            world.send(name, size);
        }
        assert_eq!(world.heard(&reading, &names[burst - 1]), names);
    }
}

#[test]
fn a_queue_has_a_little_room_left_when_others_have_used_up_the_budget() {
    let budget = budget(1_250);
    let (stalled, reading) =
        (Queue::new(10_000, Arc::clone(&budget)), Queue::new(10_000, Arc::clone(&budget)));
    let frame = |size| [Bytes::from(vec![b'x'; size])];
    assert_eq!(stalled.push(&frame(1_000)), Push::Queued);

    assert_eq!(stalled.push(&frame(50)), Push::Full);
    assert_eq!(reading.push(&frame(50)), Push::Queued);
    assert_eq!(reading.push(&frame(50)), Push::Queued);
    assert_eq!(reading.push(&frame(50)), Push::Full);
    assert!(budget.take_shortage() && !budget.take_shortage());
    assert_eq!(Queue::new(10_000, Arc::clone(&budget)).push(&frame(200)), Push::Starved);
    assert!(budget.take_shortage());
    drop((stalled, reading));

    assert_eq!(budget.used(), 0);
}

#[test]
fn what_several_queues_hold_is_counted_once_and_until_the_last_has_let_go() {
    let budget = budget(1_250);
    let queues = [(); 5].map(|()| Queue::new(10_000, Arc::clone(&budget)));
    let mut frames = [Bytes::from(vec![b'x'; 300])];
    assert!(queues[0].share(&mut frames));
    for queue in &queues {
        assert_eq!(queue.push_shared(&frames), Push::Queued);
    }
    drop(frames);
    assert_eq!(budget.used(), 300);

    queues[0].close(CloseReason::Slow);
    let mut taken = Vec::new();
    for queue in &queues[1..] {
        queue.reply(Bytes::from_static(b"own"));
        assert!(queue.take(&mut taken, usize::MAX).now_or_never().is_some());
    }
    // What was taken of their own is not written yet.
    assert_eq!(budget.used(), 300 + 4 * 3);
    taken.clear();
    for queue in &queues[1..] {
        assert!(queue.take(&mut taken, usize::MAX).now_or_never().is_none());
    }

    assert_eq!(budget.used(), 0);
}

#[test]
fn a_queue_says_once_it_has_room_that_presence_was_missed() {
    let queue = Queue::new(100, budget(1 << 20));
    let frame = Bytes::from(vec![b'x'; 80]);
    assert_eq!(queue.offer(&frame), Push::Queued);
    assert_eq!(queue.offer(&frame), Push::Full);
    queue.miss_presence();

    let mut taken = Vec::new();
    let mut take = || queue.take(&mut taken, 1).now_or_never();

    let missed = Taken::Frames { drained: false, missed_presence: true };
    assert_eq!(take(), Some(missed));
    queue.reply(frame);
    let nothing_missed = Taken::Frames { drained: false, missed_presence: false };
    assert_eq!(take(), Some(nothing_missed));
}

#[test]
fn those_who_do_not_read_what_is_theirs_alone_are_cut_off_and_who_reads_gets_every_row() {
    let limits = Config {
        memory_limit: 16 << 20,
        history_size: 4 << 20,
        send_queue_size: 1 << 20,
        ..Config::default()
    };
    let world = World::new(&limits);
    let join = |filter: &str| {
        let client = world.connect();
        world.join_where(&client, now(0), filter);
        client
    };
    // Filters that differ, so that nothing is shared.
    let stalled: Vec<Client> = (0..70).map(|n| join(&format!("id=gt.-{n}"))).collect();
    let reading = join("id=gt.-1000");
    let (mut commit, mut read) = (1_000, Vec::new());
    let memory = world.hub.memory();
    let is_cut_off = |client: &Client| client.queue.closed().now_or_never();

    // As long as it takes: they are watched for a while.
    while !stalled.iter().all(|client| is_cut_off(client).is_some()) {
        let first = read.len() as i64 + 1;
        for id in first..first + 50 {
            commit += 10;
            world.insert(commit, id);
        }
        read.extend(world.ids(&reading, 50));
        assert!(memory.used() <= memory.limit(), "{}", memory.prometheus());
    }

    assert!(read.iter().copied().eq(1..=read.len() as i64), "a row is missing");
    // For whichever is used up first, the memory for queues or the history.
    let reasons: Vec<_> = stalled.iter().filter_map(is_cut_off).collect();
    let is_told = |reason: &CloseReason| [CloseReason::Memory, CloseReason::Slow].contains(reason);
    assert!(reasons.iter().all(is_told), "{reasons:?}");
    assert_eq!(world.stats.slow_clients_total.get(), 70);
    drop(stalled);
    assert!(memory.of(Kind::Queues).used() < 1 << 20);
}

#[test]
fn a_large_event_reaches_who_reads_although_others_hold_the_memory_for_it() {
    let limits = Config { memory_limit: 16 << 20, history_size: 8 << 20, ..Config::default() };
    let world = World::new(&limits);
    let join = |room: &str| {
        let client = world.connect();
        let facets = vec![Facet::of_topic(Style::Channel, false)];
        let topic = format!("realtime:{room}");
        world.join_for(&client, now(0), (&topic, facets), ("anon", "{}"));
        client
    };
    let (stalled, reading) = (join("stalled"), join("room"));
    let memory = world.hub.memory();
    let half = memory.of(Kind::Queues).limit() / 2;
    let say = |commit: u64, channel: &str, name: &str, size: usize| {
        let mut batch = BatchBuilder::default();
        let payload = batch.span_of(&format!("{{\"pad\":\"{}\"}}", "x".repeat(size)));
        let message = Message {
            channel: channel.into(),
            name: name.into(),
            private: false,
            payload,
            wrapped: false,
            row: None,
        };
        batch.events.push(Event::alone(commit, EventKind::Message(message)));
        world.feed(Feed::Batch(batch.finish()));
    };

    say(1_000, "stalled", "in the way", half);
    for (commit, name) in [(1_010, "one"), (1_020, "two"), (1_030, "three")] {
        say(commit, "room", name, half);
    }
    say(1_040, "room", "last", 1);

    assert_eq!(world.heard(&reading, "last"), ["one", "two", "three", "last"]);
    assert_eq!(stalled.queue.closed().now_or_never(), Some(CloseReason::Memory));
    assert!(memory.used() <= memory.limit(), "{}", memory.prometheus());
}

#[test]
fn answers_that_nobody_reads_end_the_connection() {
    let budget = budget(1 << 20);
    let queue = Queue::new(1_000, Arc::clone(&budget));
    let end = || queue.closed().now_or_never();
    let mut answers = 0;
    while end().is_none() {
        queue.reply(Bytes::from(vec![b'x'; 500]));
        answers += 1;
    }

    assert_eq!(end(), Some(CloseReason::Slow));
    assert!((100..200).contains(&answers), "{answers}");
    assert_eq!(budget.used(), 0);
}

#[test]
fn an_answer_for_which_there_is_no_memory_ends_the_connection() {
    let budget = budget(1_000);
    let queue = Queue::new(10_000, Arc::clone(&budget));
    assert!(budget.take(700, 700), "others have most of it");

    queue.reply(Bytes::from(vec![b'x'; 500]));

    assert_eq!(queue.closed().now_or_never(), Some(CloseReason::Memory));
    assert!(budget.take_shortage());
}

#[test]
fn small_frames_that_wait_keep_no_memory_that_others_share() {
    let queue = Queue::new(100_000, budget(1 << 20));
    let shared = Bytes::from(vec![b'x'; 8_000]);
    for from in 0..10 {
        assert_eq!(queue.push(&[shared.slice(from..from + 10)]), Push::Queued);
    }
    let mut taken = Vec::new();
    assert!(queue.take(&mut taken, usize::MAX).now_or_never().is_some());

    let within = shared.as_ptr_range();
    let keeping = taken.iter().filter(|frame| within.contains(&frame.as_ptr())).count();

    assert_eq!((taken.len(), keeping), (10, 1));
}
