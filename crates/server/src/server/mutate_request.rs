//! `POST /realtime/v1/mutate`: mutations from those who have no websocket.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use serde_json::json;
use tide_feed::mutation::{ANOTHER_VERSION, MAX_MUTATION, Settled, Status};
use tokio::time::timeout;

use super::context::ServerContext;
use super::credentials::Credentials;
use super::identity;
use super::mutation::{self, Task};
use super::post::{self, Denied, Unread};
use crate::allowance::Share;
use crate::memory::Kind;
use crate::wire::decode::Payload;
use crate::wire::mutation::{Answer, Code, Echo, Failure, Name, Verdict};
use crate::wire::rest;

/// How long a client waits for an outcome.
const PATIENCE: Duration = Duration::from_secs(10);

/// The SQLSTATE of what the role may not do.
const NOT_ALLOWED: &str = "42501";

/// What is answered: of a mutation the same JSON as over a websocket.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: StatusCode,
    pub(super) json: String,
}

impl From<Denied> for Said {
    fn from(Denied { status, reason }: Denied) -> Said {
        Said { status, json: json!({ "error": reason }).to_string() }
    }
}

/// A request that has arrived whole.
pub(super) struct Post<'a> {
    context: &'a ServerContext,
    credentials: Credentials,
    body: Bytes,
    memory: Share,
}

impl<'a> Post<'a> {
    /// Waits for the body of a request that is not refused without it. Asks nothing of the database.
    pub(super) async fn read(
        context: &'a ServerContext,
        parts: &Parts,
        body: Incoming,
    ) -> Result<Post<'a>, Said> {
        let credentials = post::sender(context, parts)?;
        let media_type = post::media_type(&parts.headers);
        if media_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("application/json")) {
            let reason = "the content type must be application/json";
            return Err(Denied::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason).into());
        }
        let most = context.config().max_mutation_size.min(MAX_MUTATION);
        let mut memory = context.share(Kind::Inbound);
        let failure = match post::read(body, most, &mut memory).await {
            Ok(body) => return Ok(Post { context, credentials, body, memory }),
            Err(Unread::Memory) => Failure::new(
                Code::Memory,
                "there is no memory for more mutations: send it again in a moment",
            ),
            Err(Unread::TooLarge) => Failure::new(Code::Size, mutation::too_large(most)),
            Err(Unread::Cut) => {
                let reason = "the body did not arrive whole";
                return Err(Denied::new(StatusCode::BAD_REQUEST, reason).into());
            }
        };
        Err(say(context, &Answer::failed(Name::default(), failure)))
    }

    /// Has it done, or says why not.
    pub(super) async fn mutate(self) -> Said {
        let Post { context, credentials, body, memory } = self;
        if let Err(refusal) = identity::check_role(context, credentials.role()).await {
            return Denied::from(refusal).into();
        }
        let task = task(context, &credentials, &body);
        drop((body, memory));
        let answer = match task {
            Ok(task) => done(context, task).await,
            Err(answer) => *answer,
        };
        say(context, &answer)
    }
}

fn task(
    context: &ServerContext,
    credentials: &Credentials,
    body: &[u8],
) -> Result<Task, Box<Answer>> {
    let malformed = |reason: String| {
        Err(Box::new(Answer::failed(Name::default(), Failure::new(Code::Malformed, reason))))
    };
    let json = match rest::payload(body) {
        Ok(Payload::Json(json)) => json,
        Ok(Payload::Binary(_)) => return malformed("the body is not JSON".into()),
        Err(error) => return malformed(error.to_string()),
    };
    let rate = context.config().mutation_rate;
    let has_pace = context.http_mutations.take(credentials, 1, rate);
    Task::new(context, credentials, json, context.share(Kind::Inbound), has_pace)
}

async fn done(context: &ServerContext, task: Task) -> Answer {
    let settled = timeout(PATIENCE, task.settle(&context.catalog)).await;
    let verdict = settled.unwrap_or_else(|_elapsed| {
        // It may be done all the same: then that is its outcome.
        let reason = "it was not done in time: send it again, it is done no more than once";
        Verdict::Failed(Failure::new(Code::Unavailable, reason))
    });
    Answer { name: task.name, verdict }
}

fn say(context: &ServerContext, answer: &Answer) -> Said {
    mutation::count(context, answer);
    let epoch = context.hub.live().map(|live| live.epoch);
    Said { status: status(&answer.verdict), json: answer.json(epoch, Echo::First) }
}

fn status(verdict: &Verdict) -> StatusCode {
    match verdict {
        Verdict::Settled(Settled { outcome, .. }) => match &outcome.rejection {
            _ if outcome.status == Status::Confirmed => StatusCode::OK,
            Some(rejection) => of_rejection(&rejection.sqlstate),
            None => StatusCode::BAD_REQUEST,
        },
        Verdict::Failed(Failure { code, sqlstate, .. }) => match code {
            Code::Refused if sqlstate.as_deref() == Some(NOT_ALLOWED) => StatusCode::FORBIDDEN,
            Code::Malformed | Code::Refused => StatusCode::BAD_REQUEST,
            Code::OutOfOrder | Code::Reused => StatusCode::CONFLICT,
            Code::Expired => StatusCode::GONE,
            Code::Size => StatusCode::PAYLOAD_TOO_LARGE,
            Code::Rate => StatusCode::TOO_MANY_REQUESTS,
            Code::Queue | Code::Memory | Code::Timeout | Code::Unavailable | Code::Disabled => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        },
    }
}

fn of_rejection(sqlstate: &str) -> StatusCode {
    match sqlstate {
        NOT_ALLOWED => StatusCode::FORBIDDEN,
        ANOTHER_VERSION => StatusCode::CONFLICT,
        "42P01" | "42883" | "P0002" => StatusCode::NOT_FOUND,
        _ if sqlstate.starts_with("23") => StatusCode::CONFLICT,
        _ => StatusCode::BAD_REQUEST,
    }
}
