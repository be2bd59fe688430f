//! Groups that are split, since their members see different rows.

use super::beginning::now;
use super::*;

const EVERYTHING: &str = "realtime:tide:table:*";
const OWN: &str = "(id = (current_setting('request.jwt.claim.n'::text))::bigint)";

impl World {
    fn join_everything(&self, client: &Client, since: Since, claims: &str) {
        let everything = Binding { target: Target::All, ..binding("") };
        let facets = vec![Facet::of_rows(Style::Table, vec![everything])];
        self.join_for(client, since, (EVERYTHING, facets), ("anon", claims));
    }
}

#[test]
fn who_comes_to_a_group_that_was_split_before_gets_everything_once_and_so_do_its_members() {
    let world = World::new(&Config::default());
    world.secure(OWN);
    world.executor().0.add_permits(1000);
    let mut clients = Vec::new();
    for round in 0..5_usize {
        let at = 100 * round as u64;
        // Which of the groups comes first is for their numbers to say.
        let [one, other] = [(), ()].map(|()| world.connect());
        world.join_everything(&one, now(100 + at), r#"{"n": 3}"#);
        world.join_everything(&other, now(100 + at), r#"{"n": 4}"#);
        clients.extend([(one, 3, round), (other, 4, round)]);
        world.insert(150 + at, 3);
        world.insert(160 + at, 4);
        world.wait_for(160 + at);
    }
    // What each is told last.
    world.insert(1000, 3);
    world.insert(1010, 4);

    for (client, id, round) in clients {
        let mut told = Vec::new();
        world.read(&client, |frame| {
            let Some(commit) = frame[4]["meta"]["id"].as_str() else { return false };
            told.push(commit.to_owned());
            assert_eq!(frame[4]["payload"]["record"]["id"], id);
            commit.contains(if id == 3 { "3e8" } else { "3f2" })
        });
        assert_eq!(told.len(), 6 - round, "{told:?}");
    }
}
