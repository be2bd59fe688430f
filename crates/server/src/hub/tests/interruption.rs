//! Channels whose bindings have to be made anew.

use super::*;

const TOPIC: &str = "realtime:tide:table:public.t";

impl World {
    /// A transaction with a row of the table as it is under that name and of that type.
    fn insert_into(&self, commit: u64, id: i64, (oid, name, kind): (u32, &str, Kind)) {
        let mut relation = Relation::clone(&self.relation);
        (relation.oid, relation.name, relation.columns[0].kind) = (oid, name.into(), kind);
        let mut batch = BatchBuilder::default();
        let new = Some(batch.row_of(&[Some(&id.to_string())]));
        let relation = Arc::new(relation);
        let change = Change { relation, operation: Operation::Insert, old: None, new };
        batch.events.push(Event::alone(commit, EventKind::Change(change)));
        self.feed(Feed::Batch(batch.finish()));
    }

    /// What the client reads up to the event that ends its channel: ids, then what it is told.
    fn until_interrupted(&self, client: &Client) -> (Vec<i64>, Vec<Value>) {
        let (mut ids, mut told) = (Vec::new(), Vec::new());
        self.read(client, |frame| {
            ids.extend(frame[4]["payload"]["record"]["id"].as_i64());
            if frame[3] == "system" {
                told.push(frame[4]["extension"].clone());
            }
            assert_eq!(
                frame[2].as_str().filter(|_| frame[3] == "phx_error"),
                None.or_else(|| { (frame[3] == "phx_error").then_some(TOPIC) })
            );
            frame[3] == "phx_error"
        });
        (ids, told)
    }
}

const SAME: (u32, &str, Kind) = (TABLE, "t", Kind::Int);

#[test]
fn a_filter_on_a_column_that_changes_is_made_anew_and_nothing_is_missed() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join_where(&client, now(150), "id=gte.2");
    world.insert_into(200, 1, SAME);
    world.insert_into(210, 2, SAME);
    world.insert_into(220, 3, (TABLE, "t", Kind::Numeric));
    world.insert_into(230, 4, (TABLE, "t", Kind::Numeric));

    let (ids, told) = world.until_interrupted(&client);
    assert_eq!((ids, told), (vec![2], vec![json!("tide.subscription")]));
    // By what it is then, as a filter that is made anew would be.
    world.insert_into(240, 5, (TABLE, "t", Kind::Numeric));
    world.wait_for(240);
    world.join(&client, now(245));
    world.insert_into(250, 6, (TABLE, "t", Kind::Numeric));

    assert_eq!(world.ids(&client, 4), [3, 4, 5, 6]);
}

#[test]
fn a_table_in_the_place_of_another_is_followed_by_its_name() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join(&client, now(150));
    world.insert_into(200, 1, SAME);
    world.insert_into(210, 2, (TABLE + 1, "t", Kind::Int));

    let (ids, told) = world.until_interrupted(&client);

    assert_eq!((ids, told), (vec![1], vec![json!("tide.subscription")]));
}

#[test]
fn a_table_that_is_called_otherwise_by_now_is_not_told_of() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join(&client, now(150));
    world.insert_into(200, 1, (TABLE, "t_old", Kind::Int));

    assert_eq!(world.until_interrupted(&client).0, [0; 0]);
}

#[test]
fn rows_from_before_the_table_changed_are_told_by_what_it_is_or_are_said_to_be_missing() {
    let world = World::new(&Config::default());
    world.insert_into(200, 1, (TABLE, "t_new", Kind::Int));
    world.insert_into(210, 2, (TABLE + 1, "t", Kind::Int));
    world.insert_into(220, 3, (TABLE, "t", Kind::Numeric));
    world.insert_into(230, 4, SAME);
    world.wait_for(230);
    let since = |commit| {
        let position = Position::before(Lsn(commit));
        let asked = crate::catalog::Moment { end: Lsn(240), ..Default::default() };
        Since::Cursor(Cursor { epoch: EPOCH, position }, asked)
    };
    world.feed(Feed::Decoded(Lsn(240)));
    let [all, filtered, other] = ["", "id=gte.2", "id=gte.2"].map(|filter| {
        let client = world.connect();
        world.join_where(&client, since(150), filter);
        client
    });

    assert_eq!(world.ids(&all, 3), [1, 3, 4], "the table's own rows");
    for client in [filtered, other] {
        let mut told = Vec::new();
        world.read(&client, |frame| {
            told.push((frame[4]["extension"].clone(), frame[4]["payload"]["record"]["id"].clone()));
            frame[4]["payload"]["record"]["id"] == 4
        });
        let warning = (json!("tide.subscription"), Value::Null);
        assert_eq!(told.iter().filter(|one| **one == warning).count(), 1, "{told:?}");
    }
}

#[test]
fn where_an_interrupted_channel_stood_is_forgotten_when_it_is_left() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join(&client, now(150));
    world.insert_into(200, 1, (TABLE + 1, "t", Kind::Int));
    world.until_interrupted(&client);

    world.hub.leave(client.session, TOPIC);
    world.join(&client, now(210));
    world.insert_into(300, 2, SAME);

    assert_eq!(world.ids(&client, 1), [2]);
}

#[test]
fn a_history_that_no_longer_has_what_an_interrupted_channel_missed_is_a_resync() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join(&client, now(150));
    world.insert_into(200, 1, (TABLE + 1, "t", Kind::Int));
    world.until_interrupted(&client);
    // Another history: the places of the one before are not in it.
    let epoch = Epoch { generation: 8, timeline: 1 };
    world.feed(Feed::Live { epoch, from: Lsn(300), until: Lsn(300), next_xid: 1, cause: None });
    world.insert(310, 2);
    world.wait_for(310);

    world.join(&client, now(320));

    let mut resync = Value::Null;
    world.read(&client, |frame| {
        resync = frame[4].clone();
        frame[4]["extension"] == "tide.resync"
    });
    assert_eq!(resync["reason"], "trimmed");
}
