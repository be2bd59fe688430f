//! What the policies of `tide.channel` say: evaluated by Postgres itself, on rows that are never
//! stored, as the client's role and with its claims.

use pgrx::Spi;
use tide_feed::catalog::{Grant, is_transient};

use crate::encoding;
use crate::helper::answer::encode;
use crate::helper::executor::as_role;
use crate::helper::policy::with_claims;
use crate::helper::session::set;
use crate::helper::transaction::Refusal;
use crate::helper::{expression, log};
use crate::server_text::{ServerText, texts};

const POLICIES: &str = include_str!("../../sql/catalog/channel.sql");

/// What the role may do with each of the extensions of the topic. A policy that fails grants nothing;
/// why is for the log, since it may say more than the client is to know. What says nothing about the
/// policies is no answer.
pub(crate) fn grants(
    role: &str,
    claims: &str,
    topic: &str,
    extensions: &[String],
) -> Result<String, Refusal> {
    let mut grants = vec![Grant::default(); extensions.len()];
    let asked = as_role(role, || {
        let (read, write) = policies()?;
        with_claims(claims, || {
            set(c"request.topic", &encoding::server_string(topic));
            for (grant, admitted) in grants.iter_mut().zip(admits(&read, topic, extensions)?) {
                grant.read = admitted;
            }
            for (grant, admitted) in grants.iter_mut().zip(admits(&write, topic, extensions)?) {
                grant.write = admitted;
            }
            Ok(())
        })
    });
    if let Err(refusal) = asked {
        if is_transient(&refusal.sqlstate) {
            return Err(refusal);
        }
        log::say(&format!(
            "a policy of tide.channel failed for role \"{role}\": {}",
            refusal.for_log()
        ));
    }
    encode(&grants)
}

/// What has to be true of a row of `tide.channel` for the current role to receive, and to publish.
fn policies() -> Result<(String, String), Refusal> {
    match Spi::get_two::<String, String>(POLICIES) {
        Ok((Some(read), Some(write))) => Ok((read, write)),
        _ => Err(Refusal::internal("the policies of tide.channel cannot be looked up")),
    }
}

/// Whether the condition is true of each of the rows that `tide.channel` might have. It calls each
/// `channel`, as Postgres names the table's columns where it has to.
fn admits(condition: &str, topic: &str, extensions: &[String]) -> Result<Vec<bool>, Refusal> {
    let query = format!(
        "select pg_catalog.array_agg(coalesce({condition}, false) order by place)
         from pg_catalog.unnest($2) with ordinality as asked (about, place)
              cross join lateral
              pg_catalog.unnest(array[row($1, about)::tide.channel]) as channel"
    );
    let arguments = [ServerText(topic).into(), texts(extensions).into()];
    let answer = expression::array::<Vec<bool>>(&query, &arguments)?;
    answer.ok_or_else(|| Refusal::internal("the policies gave no answer"))
}
