//! What a client may do on a channel: by the policies of `tide.channel`, or, on a public one, by the
//! settings. Asked when it joins and when it renews its token; in between the answer holds.

use std::sync::Arc;

use super::context::ServerContext;
use super::credentials::Credentials;
use super::grant::{Access, Extensions};
use super::identity::{self, Refusal};

/// What the policies grant on the topic of this name (without `realtime:`). Those who may not read
/// anything of it are refused.
pub(super) async fn to_read(
    context: &ServerContext,
    credentials: &Credentials,
    name: &str,
    extensions: Extensions,
) -> Result<Access, Refusal> {
    let access = granted(context, credentials, name, extensions).await?;
    if access.broadcast().read || access.presence().read {
        Ok(access)
    } else {
        Err(Refusal::Channel(name.into()))
    }
}

/// What the policies grant on the topic of this name (without `realtime:`), be it nothing.
pub(super) async fn granted(
    context: &ServerContext,
    credentials: &Credentials,
    name: &str,
    extensions: Extensions,
) -> Result<Access, Refusal> {
    let asker = credentials.asker();
    let name: Arc<str> = name.into();
    let ask = || {
        let question = (asker.clone(), Arc::clone(&name), extensions);
        context.access.answer(question, async || {
            let grants = context.catalog.channel(&asker, &name, extensions).await?;
            Ok(Access::of(extensions, &grants))
        })
    };
    identity::patiently(context.config().handshake_timeout, ask).await.map_err(|error| {
        log::warn!("the policies of tide.channel could not be asked: {error}");
        Refusal::Unavailable
    })
}
