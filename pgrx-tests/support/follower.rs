//! A client that keeps the rows of a table, as an application would.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::client::{Client, Closed};
use super::{DEADLINE, Database};

pub const PATIENCE: Duration = Duration::from_secs(180);

pub type Row = Map<String, Value>;

fn query(token: &str) -> String {
    format!("apikey={token}&vsn=2.0.0")
}

/// It panics where it is told something twice, or something of a row that it does not know.
pub struct Follower<'a> {
    database: &'a Database<'a>,
    token: String,
    pub client: Client,
    pub topic: String,
    options: Value,
    /// By their column `id`.
    pub rows: BTreeMap<String, Row>,
    pub is_up_to_date: bool,
    /// How often it was told to forget what it had.
    pub begun: usize,
    /// Rows that the server had to read by themselves.
    pub read: usize,
    /// What it was told of the channel itself.
    pub said: String,
    /// What the session that looks at the rows sets first.
    settings: String,
    /// To its mutations, if it asks for any.
    pub answers: Vec<Value>,
    /// When the server heard of it last.
    beat: Instant,
}

/// A client that says nothing for a minute is taken to be gone.
const HEARTBEAT: Duration = Duration::from_secs(10);

impl<'a> Follower<'a> {
    pub fn new(database: &'a Database<'a>, table: &str, options: &Value) -> Follower<'a> {
        Follower::with_token(database, database.token("authenticated"), table, options)
    }

    pub fn with_token(
        database: &'a Database<'a>,
        token: String,
        table: &str,
        options: &Value,
    ) -> Follower<'a> {
        let mut follower = Follower {
            database,
            client: database.connect(&query(&token)),
            token,
            topic: format!("realtime:tide:table:public.{table}"),
            options: options.clone(),
            rows: BTreeMap::new(),
            is_up_to_date: false,
            begun: 0,
            read: 0,
            said: String::new(),
            settings: String::new(),
            answers: Vec::new(),
            beat: Instant::now(),
        };
        follower.join();
        follower
    }

    fn join(&mut self) {
        self.is_up_to_date = false;
        self.client.join(&self.topic, &json!({ "broadcast": self.options }));
    }

    /// Loses its connection, and comes back with what it has.
    pub fn reconnect(&mut self) {
        assert!(self.try_reconnect(), "the server is there");
    }

    /// The same where the server may be away.
    pub fn try_reconnect(&mut self) -> bool {
        let Ok(client) = self.database.try_connect(&query(&self.token)) else { return false };
        self.client = client;
        self.is_up_to_date = false;
        let config = json!({ "config": { "broadcast": self.options } });
        let join = json!(["j", "j", self.topic, "phx_join", config]);
        self.client.send_text_if_open(&join.to_string());
        loop {
            match self.client.read(DEADLINE) {
                Ok(Some(frame)) if frame.reference.as_deref() == Some("j") => {
                    return frame.payload["status"] == "ok";
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    }

    fn key(row: &Row) -> String {
        row["id"].to_string()
    }

    /// What it has is held against rows as the stream prints them, whatever the database has set.
    pub fn printed_in_utc(&mut self) -> &mut Self {
        self.seen_under("set timezone = 'UTC'")
    }

    /// What it has is held against the rows that a session sees after this.
    pub fn seen_under(&mut self, settings: &str) -> &mut Self {
        self.settings = settings.to_owned();
        self
    }

    /// Takes in what comes until nothing does for a moment.
    pub fn follow(&mut self) {
        while self.take_next() {}
    }

    /// Takes in the next frame; false: there is none for a moment.
    pub fn take_next(&mut self) -> bool {
        self.try_next().expect("is connected")
    }

    /// The same of a connection that may have ended.
    pub fn try_next(&mut self) -> Result<bool, Closed> {
        if self.beat.elapsed() > HEARTBEAT {
            self.beat = Instant::now();
            self.client.send_text_if_open(r#"[null,"beat","phoenix","heartbeat",{}]"#);
        }
        let Some(frame) = self.client.read(Duration::from_millis(50))? else { return Ok(false) };
        if frame.topic != self.topic {
            return Ok(true);
        }
        if frame.event == "system" || frame.event == "phx_error" {
            self.said += &frame.text;
            // It went on where it was.
            self.is_up_to_date |= frame.payload["extension"] == "tide.caught_up";
        }
        match frame.event.as_str() {
            "broadcast" if frame.payload["event"] == "tide:mutation" => {
                self.answers.push(frame.payload["payload"].clone());
            }
            "broadcast" => self.take(&frame.payload),
            "phx_error" => self.join(),
            _ => {}
        }
        Ok(true)
    }

    fn take(&mut self, payload: &Value) {
        let (body, event) = (&payload["payload"], payload["event"].as_str().unwrap());
        let row = |name: &str| body[name].as_object().cloned();
        if let Some(id) = payload["meta"]["id"].as_str() {
            self.options["since"] = json!(id);
        }
        if let Some(resume) = payload["meta"].get("resume") {
            self.options["resume"] = resume.clone();
        }
        match event {
            "SNAPSHOT" => {
                assert!(!self.is_up_to_date);
                if body["fresh"] == true {
                    self.rows.clear();
                    self.begun += 1;
                }
                for row in body["rows"].as_array().unwrap() {
                    self.add(row.as_object().unwrap().clone(), payload);
                }
            }
            "up_to_date" => {
                assert!(!self.is_up_to_date);
                self.is_up_to_date = true;
            }
            "INSERT" => {
                self.read += usize::from(payload["meta"]["cause"] == "read");
                self.add(row("record").unwrap(), payload);
            }
            "UPDATE" => {
                let mut new = row("record").unwrap();
                let old_key =
                    row("old_record").map_or_else(|| Self::key(&new), |old| Self::key(&old));
                let old =
                    self.rows.remove(&old_key).unwrap_or_else(|| panic!("unknown: {payload}"));
                for name in payload["meta"]["unchanged"].as_array().into_iter().flatten() {
                    let name = name.as_str().unwrap();
                    new.insert(name.to_owned(), old[name].clone());
                }
                self.rows.insert(Self::key(&new), new);
            }
            "DELETE" => {
                let old = row("old_record").unwrap();
                let gone = self.rows.remove(&Self::key(&old));
                assert!(gone.is_some(), "unknown: {payload}");
            }
            other => panic!("{other}: {payload}"),
        }
    }

    fn add(&mut self, row: Row, payload: &Value) {
        let before = self.rows.insert(Self::key(&row), row);
        assert_eq!(before, None, "twice: {payload}");
    }

    /// Waits until it has had all that there was.
    #[track_caller]
    pub fn wait_until_up_to_date(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_up_to_date {
            self.follow();
            let (rows, begun) = (self.rows.len(), self.begun);
            assert!(Instant::now() < deadline, "{rows} rows, begun {begun} times: {}", self.said);
        }
    }

    /// Waits until it has what SQL says.
    #[track_caller]
    pub fn equals(&mut self, table: &str, condition: &str, what: &str) {
        let query = format!("select to_jsonb(t)::text from {table} as t where {condition}");
        let mut sql = self.database.sql();
        sql.batch_execute(&self.settings).unwrap();
        let mut expected = || -> BTreeMap<String, Row> {
            let rows = sql.query(&query, &[]).unwrap();
            let rows = rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap());
            rows.map(|row: Row| (Self::key(&row), row)).collect()
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.follow();
            let expected = expected();
            if self.is_up_to_date && self.rows == expected {
                return;
            }
            if Instant::now() > deadline {
                let wrong = expected.iter().filter(|(key, row)| self.rows.get(*key) != Some(row));
                let wrong: Vec<_> = wrong.take(5).collect();
                let extra: Vec<_> =
                    self.rows.keys().filter(|key| !expected.contains_key(*key)).take(5).collect();
                panic!(
                    "{what}: {} of {} rows, up to date: {}; missing or different {wrong:?}; too many {extra:?}",
                    self.rows.len(),
                    expected.len(),
                    self.is_up_to_date
                );
            }
        }
    }
}
