//! Clients of one topic, of which some want `meta` in the payload: they share no frames with the others.

use super::*;

/// The payload and the meta of the first broadcast.
fn first(world: &World, client: &Client) -> (Value, Value) {
    let mut said = None;
    world.read(client, |frame| {
        let is_broadcast = frame[3] == "broadcast";
        said = is_broadcast.then(|| (frame[4]["payload"].clone(), frame[4]["meta"].clone()));
        is_broadcast
    });
    said.expect("a broadcast")
}

#[track_caller]
fn assert_told(world: &World, clients: &[(bool, Client)], mut payload: Value) {
    for (in_payload, client) in clients {
        let (told, meta) = first(world, client);
        assert!(meta["id"].is_string(), "{meta}");
        payload["_meta"] = if *in_payload { meta } else { Value::Null };
        let mut expected = payload.clone();
        if !in_payload {
            expected.as_object_mut().expect("an object").remove("_meta");
        }
        assert_eq!(told, expected);
    }
}

#[test]
fn rows_are_told_to_each_as_it_asked() {
    let world = World::new(&Config::default());
    let clients = [true, false, true].map(|in_payload| {
        let client = world.connect();
        let facet = Facet::of_rows(Style::Table, vec![binding("")]);
        let facets = vec![facet.with_meta_in_payload(in_payload)];
        let topic = "realtime:tide:table:public.t";
        world.join_for(&client, now(100), (topic, facets), ("anon", "{}"));
        (in_payload, client)
    });
    world.insert(200, 1);

    let row = json!({"schema": "public", "table": "t", "operation": "INSERT", "record": {"id": 1},
        "old_record": null});
    assert_told(&world, &clients, row);
}

#[test]
fn messages_are_told_to_each_as_it_asked() {
    let world = World::new(&Config::default());
    let clients = [false, true].map(|in_payload| {
        let client = world.connect();
        let facet = Facet::of_topic(Style::Channel, false).with_meta_in_payload(in_payload);
        world.join_for(&client, now(100), (ROOM, vec![facet]), ("anon", "{}"));
        (in_payload, client)
    });
    world.say(200, "hello", false);

    assert_told(&world, &clients, json!({}));
}

#[test]
fn what_has_no_meta_is_shared_all_the_same() {
    for style in [Style::Presence, Style::Notify] {
        assert!(!Facet::of_topic(style, false).with_meta_in_payload(true).meta_in_payload);
    }
    assert!(!Facet::of_rows(Style::Changes, vec![]).with_meta_in_payload(true).meta_in_payload);
}
