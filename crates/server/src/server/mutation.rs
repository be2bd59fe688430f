//! A mutation, whoever asks for it: what can be said of it without the database, and having it done.

use std::time::Duration;

use serde_json::value::RawValue;
use tide_feed::catalog::QUERY_CANCELED;
use tide_feed::mutation::{MAX_MUTATION, Mutated, Mutation, Status};
use tokio::time::{Instant, sleep};

use super::context::ServerContext;
use super::credentials::Credentials;
use crate::allowance::Share;
use crate::catalog::{Asker, Catalog, CatalogError, Lane};
use crate::stats::MutationOutcome;
use crate::wire::mutation::{Answer, Code, Failure, Name, Verdict};
use crate::writer_demand::Demanded;

/// What a mutation takes up, as a multiple of its size: itself, what is asked with it, and the question,
/// in which it is a text.
const COPIES: usize = 4;

/// The same while it is looked at: it is taken apart.
const AT_WORK: usize = 8;

/// The same besides that, about.
const ENTRY: usize = 512;

/// Before what failed for a moment is tried again: at first, and at the longest.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// For how long what fails for a moment is tried again: somebody's code may say so each time.
const LONG: Duration = Duration::from_secs(60);

/// How often, in a row, what may not be for a moment only.
const TRIES: u32 = 3;

/// The SQLSTATE of a lock that was not free.
const LOCKED: &str = "55P03";

/// A mutation that may be done.
pub(super) struct Task {
    pub(super) name: Name,
    asker: Asker,
    json: String,
    /// Held until it has an outcome.
    _memory: Share,
    _demanded: Demanded,
}

impl Task {
    /// `memory`: in which it is counted. `has_pace`: its client does not send them too fast.
    pub(super) fn new(
        context: &ServerContext,
        credentials: &Credentials,
        json: Box<RawValue>,
        mut memory: Share,
        has_pace: bool,
    ) -> Result<Task, Box<Answer>> {
        let failed = |code, reason: &str| {
            let failure = Failure::new(code, reason.to_owned());
            Err(Box::new(Answer::failed(Name::read(json.get()), failure)))
        };
        let config = context.config();
        if config.writers == 0 {
            return failed(Code::Disabled, "clients write nothing here: tide.writers is 0");
        }
        if !has_pace {
            return failed(
                Code::Rate,
                "more mutations came than tide.mutation_rate allows: send it again in a moment",
            );
        }
        let most = config.max_mutation_size.min(MAX_MUTATION);
        if json.get().len() > most {
            return failed(Code::Size, &too_large(most));
        }
        let taken = |copies| ENTRY + copies * json.get().len() + credentials.memory();
        if !memory.grow(taken(AT_WORK)) {
            let reason = "there is no memory for more mutations: send it again in a moment";
            return failed(Code::Memory, reason);
        }
        let name = match Mutation::read(json.get()) {
            Ok(mutation) => Name::from(mutation),
            Err(error) => return failed(Code::Malformed, &error.to_string()),
        };
        // Giving back cannot fail.
        let _ = memory.resize(taken(COPIES));
        let json = String::from(Box::<str>::from(json));
        let (asker, demanded) = (credentials.asker(), context.demand.one());
        Ok(Task { name, asker, json, _memory: memory, _demanded: demanded })
    }

    /// Bytes of it.
    pub(super) fn size(&self) -> usize {
        self.json.len()
    }

    /// Has it done, however often that takes to try: what fails for a moment is no outcome. Gives up only
    /// what keeps failing in a way that does not go away by itself.
    pub(super) async fn settle(&self, catalog: &Catalog) -> Verdict {
        let (begun, mut pause, mut failures) = (Instant::now(), PAUSE, 0);
        // What has been in trouble is not in the way of what has not.
        let mut lane = Lane::Express;
        loop {
            let error = match catalog.mutate(lane, &self.asker, self.json.clone()).await {
                Ok(mutated) => return verdict(mutated),
                Err(error) => error,
            };
            match Trouble::of(&error) {
                Trouble::Refusal => return failure(Code::Refused, error),
                Trouble::Passing if begun.elapsed() < LONG => failures = 0,
                Trouble::Passing => return failure(Code::Unavailable, error),
                Trouble::Lasting(code) => {
                    failures += 1;
                    if failures >= TRIES {
                        return failure(code, error);
                    }
                }
            }
            lane = Lane::Slow;
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    }
}

/// What a client is told whose mutation is too large.
pub(super) fn too_large(most: usize) -> String {
    format!("a mutation has at most tide.max_mutation_size = {most} bytes: make several of it")
}

/// What stands between a mutation and its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// It is over in a moment.
    Passing,
    /// It may be.
    Lasting(Code),
    /// It stays.
    Refusal,
}

impl Trouble {
    fn of(error: &CatalogError) -> Trouble {
        let sqlstate = match error {
            CatalogError::Unavailable => return Trouble::Passing,
            // It may be the mutation that ends its writer.
            CatalogError::Ended => return Trouble::Lasting(Code::Unavailable),
            CatalogError::Refused { sqlstate, .. } => &**sqlstate,
        };
        match sqlstate.get(..2) {
            _ if sqlstate == QUERY_CANCELED => Trouble::Lasting(Code::Timeout),
            _ if sqlstate == LOCKED => Trouble::Passing,
            Some("40" | "57") => Trouble::Passing,
            Some("08" | "53" | "58") => Trouble::Lasting(Code::Unavailable),
            _ => Trouble::Refusal,
        }
    }
}

fn verdict(mutated: Mutated) -> Verdict {
    Verdict::Failed(match mutated {
        Mutated::Settled(settled) => return Verdict::Settled(settled),
        Mutated::OutOfOrder(expected) => {
            let reason =
                format!("mutation {expected} of this client comes first: send that, then this");
            Failure { expected: Some(expected), ..Failure::new(Code::OutOfOrder, reason) }
        }
        Mutated::Expired => Failure::new(
            Code::Expired,
            "it was settled so long ago that it is not remembered how: read the rows to see, and do not send it again",
        ),
        Mutated::Reused => Failure::new(
            Code::Reused,
            "another mutation of this client had this n: give each a number of its own",
        ),
    })
}

fn failure(code: Code, error: CatalogError) -> Verdict {
    let (sqlstate, message) = match error {
        CatalogError::Refused { sqlstate, message } => (Some(sqlstate), message),
        other => (None, other.to_string()),
    };
    let reason = match code {
        Code::Timeout => {
            "it took longer than tide.write_timeout: send it again, or make several of it".into()
        }
        Code::Unavailable => format!("{message}: send it again in a moment"),
        _ => message,
    };
    Verdict::Failed(Failure { sqlstate, ..Failure::new(code, reason) })
}

/// Counts an answer that is about to be given.
pub(super) fn count(context: &ServerContext, answer: &Answer) {
    let outcome = match &answer.verdict {
        Verdict::Failed(_) => MutationOutcome::Error,
        Verdict::Settled(settled) => match settled.outcome.status {
            Status::Confirmed => MutationOutcome::Confirmed,
            Status::Rejected => MutationOutcome::Rejected,
        },
    };
    context.stats.mutations(outcome).inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_no_outcome_and_what_stays_is_told() {
        let refused = |sqlstate: &str| CatalogError::Refused {
            sqlstate: sqlstate.into(),
            message: "no".into(),
        };
        for (error, expected) in [
            (CatalogError::Unavailable, Trouble::Passing),
            (CatalogError::Ended, Trouble::Lasting(Code::Unavailable)),
            (refused("40001"), Trouble::Passing),
            (refused("40P01"), Trouble::Passing),
            (refused("57P01"), Trouble::Passing),
            (refused("55P03"), Trouble::Passing),
            (refused("57014"), Trouble::Lasting(Code::Timeout)),
            (refused("53100"), Trouble::Lasting(Code::Unavailable)),
            (refused("58030"), Trouble::Lasting(Code::Unavailable)),
            (refused("08006"), Trouble::Lasting(Code::Unavailable)),
            (refused("55000"), Trouble::Refusal),
            (refused("42501"), Trouble::Refusal),
            (refused("XX000"), Trouble::Refusal),
            (refused(""), Trouble::Refusal),
        ] {
            assert_eq!(Trouble::of(&error), expected, "{error:?}");
        }
    }
}
