//! A client that writes.

use serde_json::{Value, json};

use super::Database;
use super::client::Client;

pub const MUTATIONS: &str = "realtime:tide:mutations";

pub struct Mutator {
    pub client: Client,
    client_id: String,
    /// Of the newest mutation.
    pub n: u64,
}

impl Mutator {
    pub fn new(database: &Database<'_>, client_id: &str) -> Mutator {
        Mutator::with(database.client(), client_id)
    }

    /// Whose token has these claims besides.
    pub fn with_claims(database: &Database<'_>, client_id: &str, claims: &Value) -> Mutator {
        let token = database.token_with("authenticated", &claims.to_string(), "1 hour");
        Mutator::with(database.connect(&format!("apikey={token}&vsn=2.0.0")), client_id)
    }

    pub fn with(mut client: Client, client_id: &str) -> Mutator {
        client.join(MUTATIONS, &json!({}));
        Mutator { client, client_id: client_id.to_owned(), n: 0 }
    }

    /// Asks for the client's next mutation, and says what has become of it.
    #[track_caller]
    pub fn mutate(&mut self, ops: Value) -> Value {
        self.n += 1;
        self.send(self.n, &ops);
        self.answer()
    }

    /// One that is to be confirmed. What it returns.
    #[track_caller]
    pub fn confirmed(&mut self, ops: Value) -> Value {
        let answer = self.mutate(ops);
        assert_eq!(answer["status"], "confirmed", "{answer}");
        answer["returning"].clone()
    }

    /// One that is to be rejected. Its answer.
    #[track_caller]
    pub fn rejected(&mut self, ops: Value, sqlstate: &str) -> Value {
        let answer = self.mutate(ops.clone());
        assert_eq!(answer["status"], "rejected", "{ops}: {answer}");
        assert_eq!(answer["sqlstate"], sqlstate, "{ops}: {answer}");
        answer
    }

    pub fn send(&mut self, n: u64, ops: &Value) {
        self.send_payload(&self.body(n, ops));
    }

    pub fn body(&self, n: u64, ops: &Value) -> Value {
        let mutation_id = format!("{}/{n}", self.client_id);
        json!({ "mutation_id": mutation_id, "client_id": self.client_id, "n": n, "ops": ops })
    }

    pub fn send_payload(&mut self, payload: &Value) {
        let push = json!({ "type": "broadcast", "event": "tide:mutate", "payload": payload });
        self.client.push(MUTATIONS, "broadcast", &push);
    }

    /// The next answer.
    #[track_caller]
    pub fn answer(&mut self) -> Value {
        let frame = self.client.wait_for("an answer to a mutation", |frame| {
            frame.event == "broadcast" && frame.payload["event"] == "tide:mutation"
        });
        frame.payload["payload"].clone()
    }
}
