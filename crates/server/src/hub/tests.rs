//! The hub with a catalog worker made up for the test and queues instead of sockets.

mod answers;
mod beginning;
mod catalog_worker;
mod identity;
mod interruption;
mod lookups;
mod meta_in_payload;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use beginning::{asked_now, cursor, joined, now};
use bytes::Bytes;
use catalog_worker::CatalogWorker;
use futures_util::FutureExt;
use serde_json::{Value, json};
use tide_feed::catalog::{ColumnAccess, Policy, Request, RowSecurity, TableAccess};
use tide_feed::config::Config;
use tide_feed::event::{
    BatchBuilder, CatalogChange, Change, Column, Cursor, Epoch, Event, EventKind, Kind, Lsn,
    Message, Operation, Position, Relation,
};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};

use super::basis::Basis;
use super::handle::{Command, Ephemeral, Hub, Peer, SessionId};
use super::queue::{Budget, CloseReason, Push, Queue, Taken};
use super::subscription::{
    Binding, Facet, Identity, Operations, Since, Style, Subscription, Target,
};
use super::{Parts, start};
use crate::catalog::{Catalog, frame};
use crate::filter::{compile, parse};
use crate::link::{Feed, Uplink};
use crate::memory::Memory;
use crate::notify::NotifyRegistry;
use crate::stats::Stats;
use crate::wire::Vsn;

mod load;

const TABLE: u32 = 16_400;
const ROOM: &str = "realtime:room";
const EPOCH: Epoch = Epoch { generation: 7, timeline: 1 };

struct World {
    runtime: Runtime,
    hub: Hub,
    feed: mpsc::Sender<Feed>,
    stats: Arc<Stats>,
    relation: Arc<Relation>,
    catalog_worker: Arc<CatalogWorker>,
    catalog: Catalog,
}

struct Client {
    session: SessionId,
    queue: Arc<Queue>,
}

fn access() -> TableAccess {
    TableAccess {
        oid: TABLE,
        schema: "public".into(),
        table: "t".into(),
        row_security: None,
        columns: vec![ColumnAccess {
            attnum: 1,
            name: "id".into(),
            type_name: "int8".into(),
            type_sql: "bigint".into(),
            kind: Kind::Int,
            readable: true,
            primary_key: true,
            labels: Vec::new(),
        }],
    }
}

/// A frame of version 2, to everybody who hears this side of the room.
fn to_room(to: Style, frame: impl Into<Bytes>) -> Ephemeral {
    let (v1, v2) = (Bytes::new(), frame.into());
    Ephemeral { topic: ROOM.into(), to, private: false, v1, v2, except: None }
}

fn relation() -> Arc<Relation> {
    let id = Column::new(1, "id", "int8", Kind::Int, true);
    Arc::new(Relation {
        oid: TABLE,
        schema: "public".into(),
        name: "t".into(),
        columns: [id].into(),
        identity_full: false,
    })
}

impl World {
    fn new(config: &Config) -> World {
        let world = World::stalled(config);
        world.go_live();
        world
    }

    /// One that has no stream yet.
    fn stalled(config: &Config) -> World {
        let runtime = Runtime::new().expect("a runtime");
        let catalog = Catalog::new("tide".into());
        let catalog_worker = CatalogWorker::new(vec![access()]);
        runtime.spawn(Arc::clone(&catalog_worker).serve(catalog.clone()));
        let (feed, fed) = mpsc::channel(64);
        let stats = Arc::<Stats>::default();
        let parts = Parts {
            feed: fed,
            notified: mpsc::channel(1).1,
            uplink: Uplink::default(),
            notify_registry: NotifyRegistry::default(),
            catalog: catalog.clone(),
            stats: Arc::clone(&stats),
            receipts: super::receipts::channel().0,
        };
        let hub = start(config.clone(), parts);
        let relation = relation();
        World { runtime, hub, feed, stats, relation, catalog_worker, catalog }
    }

    fn go_live(&self) {
        let (epoch, from, until) = (EPOCH, Lsn(100), Lsn(100));
        self.feed(Feed::Live { epoch, from, until, next_xid: 1, cause: None });
    }

    fn feed(&self, feed: Feed) {
        self.feed.blocking_send(feed).expect("the hub takes it");
    }

    /// Waits until the hub has taken in the transaction that committed there.
    fn wait_for(&self, commit: u64) {
        let deadline = SystemTime::now() + Duration::from_secs(20);
        while self.stats.position.get() != commit {
            assert!(SystemTime::now() < deadline, "the hub takes in {commit}");
            std::thread::yield_now();
        }
    }

    /// Waits until the hub has done what sessions asked for before.
    fn settle(&self) {
        self.runtime.block_on(self.hub.connections());
    }

    /// Waits until everybody has been given everything.
    fn wait_until_nobody_lags(&self) {
        let deadline = SystemTime::now() + Duration::from_secs(20);
        while self.runtime.block_on(self.hub.connections()).iter().any(|client| client.lagging) {
            assert!(SystemTime::now() < deadline, "nobody lags");
            std::thread::yield_now();
        }
    }

    /// One transaction with one inserted row of that id.
    fn insert(&self, commit: u64, id: i64) {
        let mut batch = BatchBuilder::default();
        let start = batch.begin_row();
        batch.push_text(&id.to_string());
        let row = batch.end_row(&start).expect("a small row");
        let relation = Arc::clone(&self.relation);
        let change = Change { relation, operation: Operation::Insert, old: None, new: Some(row) };
        batch.events.push(Event::alone(commit, EventKind::Change(change)));
        self.feed(Feed::Batch(batch.finish()));
    }

    fn connect(&self) -> Client {
        let (session, queue) = self.hub.connect(Peer {
            address: SocketAddr::from(([127, 0, 0, 1], 9)),
            user_agent: None,
            connected_at: SystemTime::now(),
        });
        Client { session, queue }
    }

    fn join(&self, client: &Client, since: Since) {
        self.join_where(client, since, "");
    }

    fn join_where(&self, client: &Client, since: Since, filter: &str) {
        self.join_as(client, since, filter, ("anon", "{}"));
    }

    /// `(role, claims)`: in whose name.
    fn join_as(&self, client: &Client, since: Since, filter: &str, name: (&str, &str)) {
        let facets = vec![Facet::of_rows(Style::Table, vec![binding(filter)])];
        self.join_for(client, since, ("realtime:tide:table:public.t", facets), name);
    }

    fn join_room(&self, client: &Client, private: bool, since: Since) {
        let facets = vec![Facet::of_topic(Style::Channel, private)];
        self.join_for(client, since, (ROOM, facets), ("anon", "{}"));
    }

    /// `(topic, facets)`: what for.
    fn join_for(
        &self,
        client: &Client,
        since: Since,
        (topic, facets): (&str, Vec<Facet>),
        (role, claims): (&str, &str),
    ) {
        let subscription = Subscription {
            topic: topic.into(),
            vsn: Vsn::V2,
            identity: Arc::new(Identity { role: role.into(), claims: claims.into() }),
            facets,
            since,
            snapshot: None,
            reply: joined(),
            greeting: vec![Bytes::from_static(b"[null,null,\"t\",\"hello\",{}]")],
        };
        self.runtime.block_on(self.hub.join(client.session, subscription));
    }

    /// One transaction that says something to `room`.
    fn say(&self, commit: u64, name: &str, private: bool) {
        let mut batch = BatchBuilder::default();
        let payload = batch.span_of("{}");
        let message = Message {
            channel: "room".into(),
            name: name.into(),
            private,
            payload,
            wrapped: false,
            row: None,
        };
        batch.events.push(Event::alone(commit, EventKind::Message(message)));
        self.feed(Feed::Batch(batch.finish()));
    }

    /// The names of the broadcasts up to and including `last`.
    fn heard(&self, client: &Client, last: &str) -> Vec<String> {
        let mut names = Vec::new();
        self.read(client, |frame| {
            names.extend(frame[4]["event"].as_str().map(str::to_owned));
            names.last().is_some_and(|name| name == last)
        });
        names
    }

    /// Reads until `wanted` says so; gives up after a while.
    fn read(&self, client: &Client, mut wanted: impl FnMut(&Value) -> bool) {
        let reading = async {
            loop {
                let mut frames = Vec::new();
                let taken = client.queue.take(&mut frames, 1 << 12).await;
                let Taken::Frames { drained, .. } = taken else { panic!("cut off: {taken:?}") };
                if drained {
                    self.hub.drained(client.session);
                }
                for frame in frames {
                    let frame: Value = serde_json::from_slice(&frame).expect("frames are JSON");
                    if wanted(&frame) {
                        return;
                    }
                }
            }
        };
        let limited = async { tokio::time::timeout(Duration::from_secs(20), reading).await };
        self.runtime.block_on(limited).expect("the frame arrives");
    }

    /// The ids of the next `count` rows that arrive.
    fn ids(&self, client: &Client, count: usize) -> Vec<i64> {
        let mut ids = Vec::new();
        self.read(client, |frame| {
            ids.extend(frame[4]["payload"]["record"]["id"].as_i64());
            ids.len() == count
        });
        ids
    }
}

/// All rows of the table that the filter admits.
fn binding(filter: &str) -> Binding {
    let parsed = parse(filter).expect("a filter");
    let conditions = parsed.iter().flat_map(|tree| &tree.conditions);
    let compared: Vec<&str> = conditions.map(|condition| &*condition.column).collect();
    let target = Target::Table { oid: TABLE, basis: Basis::of(&access(), &compared, &[]) };
    let filter = parsed.as_ref().map(|tree| {
        let constants = tree.conditions.iter().flat_map(|c| c.test.constants().to_vec());
        let constants: Vec<Vec<String>> = constants.map(|constant| vec![constant]).collect();
        Arc::new(compile(tree, &access(), &constants).expect("a predicate"))
    });
    Binding { id: 1, operations: Operations::ROWS, target, filter, select: None }
}

/// Roles but `owner` see what the one policy admits.
const POLICY: &str = "the policy";

impl World {
    fn secure(&self, condition: &str) {
        let policy = Policy {
            name: "p".into(),
            permissive: true,
            condition: condition.into(),
            columns: Some(vec![1]),
        };
        let security = RowSecurity { policies: vec![policy], ..RowSecurity::default() };
        let mut tables = self.catalog_worker.granted.lock().expect("not poisoned");
        for table in &mut *tables {
            table.row_security = Some(security.clone());
        }
    }

    /// An executor to which even ids are visible, and whose every expression is worth the claim
    /// `n`. It answers as often as it is let; the questions so far are counted.
    fn executor(&self) -> (Arc<Semaphore>, Arc<AtomicUsize>) {
        let (lets, asked) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (catalog, turns, count) = (self.catalog.clone(), Arc::clone(&lets), Arc::clone(&asked));
        self.runtime.spawn(async move {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
            tokio::spawn(async move { catalog.serve_executor(ours).await });
            while let Ok(request) = frame::read::<Request>(&mut theirs).await {
                count.fetch_add(1, Ordering::Relaxed);
                turns.acquire().await.expect("not closed").forget();
                let answer = json!({ "ok": executed(&request) });
                frame::write(&mut theirs, &answer).await.expect("the hub reads");
            }
        });
        (lets, asked)
    }
}

fn executed(request: &Request) -> Value {
    match request {
        Request::EvaluatePolicy { rows, claims, .. } => {
            let id = |texts: Vec<Option<Box<str>>>| texts[0].as_deref()?.parse::<i64>().ok();
            let even = |row| id(row).expect("an id") % 2 == 0;
            let visible: Vec<bool> = rows.each().map(|row| even(row.expect("texts"))).collect();
            let outcomes: Vec<Value> =
                claims.iter().map(|_| json!({ "visible": visible })).collect();
            json!({ "outcomes": outcomes })
        }
        Request::EvaluateClaims { claims, expressions, .. } => {
            let outcomes = claims.iter().map(|claims| {
                let claims: Value = serde_json::from_str(claims).expect("claims");
                let values: Vec<String> =
                    expressions.iter().map(|_| claims["n"].to_string()).collect();
                json!({ "values": values })
            });
            json!({ "outcomes": outcomes.collect::<Vec<_>>() })
        }
        other => panic!("not for an executor: {other:?}"),
    }
}

fn at(commit: u64) -> Position {
    Position { commit: Lsn(commit), ordinal: 0 }
}

#[test]
fn an_event_arrives_after_the_greeting() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join(&client, now(100));
    world.insert(200, 1);

    let mut seen = Vec::new();
    world.read(&client, |frame| {
        seen.push(frame[3].as_str().unwrap_or_default().to_owned());
        seen.len() == 3
    });

    assert_eq!(seen, ["phx_reply", "hello", "broadcast"]);
}

#[test]
fn what_committed_before_the_join_is_not_for_the_joiner() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join(&client, now(300));
    world.insert(200, 1);
    world.insert(300, 2);

    assert_eq!(world.ids(&client, 1), [2]);
}

#[test]
fn each_client_gets_the_rows_that_its_filter_admits() {
    let world = World::new(&Config::default());
    let filters = ["id=eq.3", "id=eq.4", "id=gt.3", ""];
    let clients = filters.map(|filter| {
        let client = world.connect();
        world.join_where(&client, now(100), filter);
        client
    });
    for id in 1..=5 {
        world.insert(200 + 10 * id, id as i64);
    }

    let got: Vec<_> =
        clients.iter().zip([1, 1, 2, 5]).map(|(c, count)| world.ids(c, count)).collect();

    assert_eq!(got, [vec![3], vec![4], vec![4, 5], vec![1, 2, 3, 4, 5]]);
    assert_eq!(clients.map(|c| c.queue.stats().queued_frames), [0; 4]);
}

#[test]
fn a_revoke_holds_from_the_next_event_on() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join(&client, now(100));
    world.insert(200, 1);
    assert_eq!(world.ids(&client, 1), [1]);

    let granted = std::mem::take(&mut *world.catalog_worker.granted.lock().expect("not poisoned"));
    let asked = world.catalog_worker.asked();
    world.feed(Feed::Catalog(CatalogChange::Relation(TABLE)));
    world.insert(300, 2);
    // Granted again once the hub has judged by the revoke.
    world.wait_for_question(asked + 1);
    world.wait_for(300);
    world.wait_until_nobody_lags();
    *world.catalog_worker.granted.lock().expect("not poisoned") = granted;
    world.feed(Feed::Catalog(CatalogChange::All));
    world.insert(400, 3);

    assert_eq!(world.ids(&client, 1), [3]);
}

#[test]
fn a_client_that_lags_is_given_everything_in_order_once_it_reads() {
    let config = Config { send_queue_size: 2000, ..Config::default() };
    let world = World::new(&config);
    let client = world.connect();
    world.join(&client, now(100));
    for id in 0..500 {
        world.insert(200 + 10 * id, id as i64);
    }

    let ids = world.ids(&client, 500);

    assert_eq!(ids, (0..500).collect::<Vec<i64>>());
}

#[test]
fn a_client_that_falls_off_the_history_is_cut_off_alone() {
    let config = Config { send_queue_size: 2000, history_size: 40_000, ..Config::default() };
    let world = World::new(&config);
    let (stalled, reading) = (world.connect(), world.connect());
    world.join(&stalled, now(100));
    world.join(&reading, now(100));
    let mut ids = Vec::new();
    for id in 0..2000 {
        world.insert(200 + 10 * id, id as i64);
        ids.extend(world.ids(&reading, 1));
    }

    assert_eq!(ids, (0..2000).collect::<Vec<i64>>());
    assert_eq!(world.stats.slow_clients_total.get(), 1);
    let last = world.runtime.block_on(async {
        loop {
            match stalled.queue.take(&mut Vec::new(), 1 << 20).await {
                Taken::Closed(reason) => return reason,
                Taken::Frames { .. } => {}
            }
        }
    });
    assert_eq!(last, CloseReason::Slow);
}

#[test]
fn since_gives_what_was_missed_and_then_the_stream() {
    let world = World::new(&Config::default());
    for id in 0..10 {
        world.insert(200 + 10 * id, id as i64);
    }
    let client = world.connect();
    world.join(&client, cursor(240));
    world.insert(1000, 99);

    assert_eq!(world.ids(&client, 6), [5, 6, 7, 8, 9, 99]);
}

#[test]
fn a_position_that_is_gone_is_said_to_be_gone() {
    let world = World::new(&Config::default());
    world.insert(200, 1);
    let client = world.connect();
    // The stream began at 100: what came between 50 and 100 is not known.
    world.join(&client, cursor(50));
    let mut resync = Value::Null;
    world.read(&client, |frame| {
        resync = frame[4].clone();
        frame[3] == "system"
    });

    assert_eq!(resync["extension"], "tide.resync");
    assert_eq!(resync["reason"], "trimmed");
}

#[test]
fn the_newest_events_are_given_on_request() {
    let world = World::new(&Config::default());
    for id in 0..10 {
        world.insert(200 + 10 * id, id as i64);
    }
    world.wait_for(290);
    let client = world.connect();
    world.join(&client, Since::Last(3, asked_now()));

    assert_eq!(world.ids(&client, 3), [7, 8, 9]);
}

#[test]
fn the_slot_may_move_when_nothing_is_kept() {
    let world = World::new(&Config::default());
    world.feed(Feed::Decoded(Lsn(5000)));

    let deadline = SystemTime::now() + Duration::from_secs(20);
    while world.stats.confirmed.get() != 5000 {
        assert!(SystemTime::now() < deadline, "confirmed {}", world.stats.confirmed.get());
        std::thread::yield_now();
    }
}

#[test]
fn messages_reach_those_who_joined_their_channel_in_the_same_way() {
    let world = World::new(&Config::default());
    let (public, private, elsewhere) = (world.connect(), world.connect(), world.connect());
    world.join_room(&public, false, now(0));
    world.join_room(&private, true, now(0));
    world.join(&elsewhere, now(0));

    world.say(200, "secret", true);
    world.say(300, "open", false);
    world.insert(400, 1);
    world.say(500, "secret end", true);

    assert_eq!(world.heard(&public, "open"), ["open"]);
    assert_eq!(world.heard(&private, "secret end"), ["secret", "secret end"]);
    assert_eq!(world.heard(&elsewhere, "INSERT"), ["INSERT"]);
}

#[test]
fn messages_are_resumed_as_rows_are() {
    let world = World::new(&Config::default());
    let rooms = ["one", "two", "three"];
    for (commit, name) in (2..).zip(rooms) {
        world.say(commit * 100, name, true);
    }
    world.wait_for(400);
    let (resumes, newest) = (world.connect(), world.connect());

    world.join_room(&resumes, true, cursor(200));
    world.join_room(&newest, true, Since::Last(1, asked_now()));

    assert_eq!(world.heard(&resumes, "three"), ["two", "three"]);
    assert_eq!(world.heard(&newest, "three"), ["three"]);
}

#[test]
fn a_cast_is_for_everybody_in_the_topic_but_its_sender() {
    let world = World::new(&Config::default());
    let (sender, other) = (world.connect(), world.connect());
    world.join_room(&sender, false, now(0));
    world.join_room(&other, false, now(0));
    let message = |name: &str, private, except| {
        let frame = format!(r#"[null,null,"r","broadcast",{{"event":"{name}"}}]"#);
        Ephemeral { private, except, ..to_room(Style::Channel, frame) }
    };

    assert!(world.hub.send_ephemeral(message("private", true, None)));
    assert!(world.hub.send_ephemeral(message("to others", false, Some(sender.session))));
    assert!(world.hub.send_ephemeral(message("to all", false, None)));

    assert_eq!(world.heard(&sender, "to all"), ["to all"]);
    assert_eq!(world.heard(&other, "to all"), ["to others", "to all"]);
}

#[test]
fn a_channel_may_begin_and_cease_to_receive_presence() {
    let world = World::new(&Config::default());
    let client = world.connect();
    world.join_room(&client, false, now(0));
    let send = |to, name: &str| {
        let frame = format!(r#"[null,null,"r","broadcast",{{"event":"{name}"}}]"#);
        assert!(world.hub.send_ephemeral(to_room(to, frame)));
    };
    let receive = |receive| {
        let facet = Facet::of_topic(Style::Presence, false);
        world.hub.receive(client.session, &ROOM.into(), Vsn::V2, facet, receive);
    };

    send(Style::Presence, "before");
    receive(true);
    receive(true);
    send(Style::Presence, "once");
    send(Style::Channel, "message");
    receive(false);
    receive(false);
    send(Style::Presence, "after");
    send(Style::Channel, "end");

    assert_eq!(world.heard(&client, "end"), ["once", "message", "end"]);
}

#[test]
fn those_who_cast_faster_than_the_hub_wait_for_it() {
    let (hub, mut ends) =
        Hub::new(1 << 20, Memory::new(&Config::default()), NotifyRegistry::default());
    let frame = Bytes::from(vec![b'x'; 3 << 20]);
    let send = || hub.send_ephemeral(to_room(Style::Channel, frame.clone()));
    assert!(send());
    assert!(hub.ready().now_or_never().is_some());
    assert!(send());
    let mut ready = pin!(hub.ready());
    assert!(ready.as_mut().now_or_never().is_none());

    let Ok(Command::Ephemeral { message }) = ends.commands.try_recv() else {
        panic!("an ephemeral message")
    };
    ends.ephemerals.remove(&message);

    assert!(ready.now_or_never().is_some());
}

#[test]
fn who_waits_for_a_verdict_holds_up_nobody_and_misses_nothing() {
    let world = World::new(&Config::default());
    world.secure(POLICY);
    let (lets, asked) = world.executor();
    let (client, owner) = (world.connect(), world.connect());
    world.join(&client, now(100));
    world.join_as(&owner, now(100), "", ("owner", "{}"));
    for id in 1..=5 {
        world.insert(200 + 10 * id, id as i64);
    }

    assert_eq!(world.ids(&owner, 5), [1, 2, 3, 4, 5]);
    lets.add_permits(1000);
    world.insert(300, 6);

    assert_eq!(world.ids(&client, 3), [2, 4, 6]);
    assert!(asked.load(Ordering::Relaxed) <= 3, "events that wait are asked about together");
}

#[test]
fn the_newest_visible_events_are_given_where_policies_have_to_be_asked() {
    let world = World::new(&Config::default());
    world.secure(POLICY);
    world.executor().0.add_permits(1000);
    for id in 1..=9 {
        world.insert(200 + 10 * id, id as i64);
    }
    world.wait_for(290);
    let client = world.connect();
    world.join(&client, Since::Last(2, asked_now()));
    world.insert(300, 10);

    assert_eq!(world.ids(&client, 3), [6, 8, 10]);
}

#[test]
fn clients_with_other_claims_get_other_rows() {
    let world = World::new(&Config::default());
    world.secure("(id = (current_setting('request.jwt.claim.n'::text))::bigint)");
    let (lets, asked) = world.executor();
    lets.add_permits(1000);
    let clients = [r#"{"n": 3}"#, r#"{"n": 4}"#, r#"{"n": null}"#].map(|claims| {
        let client = world.connect();
        world.join_as(&client, now(100), "", ("anon", claims));
        client
    });
    for (round, id) in (0..10).flat_map(|round| (1..=5).map(move |id| (round, id))) {
        world.insert(200 + 100 * round + 10 * id, id as i64);
    }
    world.wait_for(1150);

    assert_eq!(world.ids(&clients[0], 10), [3; 10]);
    assert_eq!(world.ids(&clients[1], 10), [4; 10]);
    let [.., nobody] = &clients;
    world.settle();
    assert!(nobody.queue.stats().queued_frames <= 2, "the greeting");
    assert!(asked.load(Ordering::Relaxed) <= clients.len(), "their claims hold for all events");
}

#[test]
fn a_policy_that_is_never_answered_is_left_behind_by_the_history() {
    let config = Config { history_size: 40_000, ..Config::default() };
    let world = World::new(&config);
    world.secure(POLICY);
    let (lets, _) = world.executor();
    let (client, owner) = (world.connect(), world.connect());
    world.join(&client, now(100));
    world.join_as(&owner, now(100), "", ("owner", "{}"));
    for id in 0..2000 {
        world.insert(200 + 10 * id, 2 * id as i64);
        world.ids(&owner, 1);
    }
    lets.add_permits(1000);

    let (mut told, mut newest) = (Vec::new(), 0);
    world.read(&client, |frame| {
        told.extend(frame[4]["reason"].as_str().map(str::to_owned));
        newest = frame[4]["payload"]["record"]["id"].as_i64().unwrap_or(newest);
        newest == 3998
    });
    assert_eq!(told, ["policy"; 2], "at once, and before it is given something again");
    assert!(world.stats.policy_skips_total.get() > 0);
    assert_eq!(world.stats.slow_clients_total.get(), 0);
}
