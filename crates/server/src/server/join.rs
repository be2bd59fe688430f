//! Joining a channel: from what the client asks for to a subscription of the hub's, or a refusal.

use std::pin::Pin;
use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use tide_feed::catalog::{TableAccess, TableName};
use tokio::time::timeout;

use super::access;
use super::binding::{BindingError, Bindings, named_tables, target};
use super::channel::Channel;
use super::context::ServerContext;
use super::conversation::{Outcome, OwnedAddress};
use super::credentials::{self, Credentials};
use super::grant::{self, Access, Extensions};
use super::identity::{self, Refusal};
use super::presence::{ChannelPresence, RoomKey};
use super::since::since;
use super::snapshot_options;
use crate::allowance::{Allowance, Share};
use crate::hub::handle::SessionId;
use crate::hub::subscription::{Binding, Facet, Operations, Since, Style, Subscription, Target};
use crate::hub::sync::SnapshotPlan;
use crate::notify::Lease;
use crate::stats::RefusedJoin;
use crate::topic::{self, Kind, PREFIX, Topic};
use crate::wire::encode::{self};
use crate::wire::join::{BroadcastOptions, ChangeParams, JoinPayload};
use crate::wire::{Vsn, record};

/// Bytes of what a client may call itself on a channel.
const MAX_PRESENCE_KEY: usize = 255;

/// Bytes that a join takes up besides its payload, until its turn has come.
pub(super) const WAITING: usize = 512;

/// The same from then on, until it is answered.
pub(super) const JOIN: usize = 4 << 10;

/// How much more than its payload a join may take up while it is being looked at: filters that are
/// taken apart, values on their way to Postgres and back.
const AT_WORK: usize = 3;

/// Bytes that a channel takes up besides its facets, here and in the hub: measured.
const CHANNEL: usize = 1280;

/// Who wants to join, and where the answer goes.
pub(super) struct Joiner {
    pub(super) context: Arc<ServerContext>,
    pub(super) session: SessionId,
    pub(super) vsn: Vsn,
    /// For a channel that brings no token of its own.
    pub(super) credentials: Credentials,
    /// Memory for the filters of the connection's channels.
    pub(super) filters: Arc<Allowance>,
    /// What the join takes up, and then the channel.
    pub(super) memory: Share,
    pub(super) address: OwnedAddress,
}

/// Why a channel is not joined: the reason of the error reply.
pub(super) struct Refused {
    pub(super) count: RefusedJoin,
    pub(super) reason: String,
}

impl Refused {
    pub(super) fn request(reason: impl Into<String>) -> Refused {
        Refused { count: RefusedJoin::Request, reason: reason.into() }
    }

    pub(super) fn memory() -> Refused {
        let reason = "MemoryLimitReached: There is no memory for more channels, try again";
        Refused { count: RefusedJoin::Memory, reason: reason.into() }
    }

    fn filters(why: &str) -> Refused {
        Refused { count: RefusedJoin::Filters, reason: format!("FilterLimitReached: {why}") }
    }

    pub(super) fn table(reason: impl Into<String>) -> Refused {
        Refused { count: RefusedJoin::Table, reason: reason.into() }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused { count: refusal.of_join(), reason: refusal.join_reason() }
    }
}

/// What a channel will receive, before the hub knows of it.
pub(super) struct Plan {
    pub(super) facets: Vec<Facet>,
    pub(super) since: Since,
    /// What the topic of an old client stands for.
    pub(super) legacy: Option<ChangeParams>,
    pub(super) greeting: Vec<Bytes>,
    /// What the client may do on the channel itself.
    pub(super) access: Access,
    /// Of `tide:notify:` topics.
    pub(super) lease: Option<Lease>,
    pub(super) filters: Option<Share>,
    /// It begins with the rows that there are.
    pub(super) snapshot: Option<Arc<SnapshotPlan>>,
}

impl Plan {
    pub(super) fn new(facets: Vec<Facet>, since: Since, greeting: Vec<Bytes>) -> Plan {
        let access = Access::default();
        let (legacy, lease, filters, snapshot) = (None, None, None, None);
        Plan { facets, since, legacy, greeting, access, lease, filters, snapshot }
    }
}

/// A join that waits for its turn; until then it is little more than what was asked for.
pub(super) fn waiting(
    joiner: Joiner,
    payload: Box<JoinPayload>,
) -> Pin<Box<dyn Future<Output = Outcome> + Send>> {
    Box::pin(async { Box::pin(join(joiner, payload)).await })
}

/// Checks everything, then waits until the hub has the channel and the stream is live.
pub(super) async fn join(mut joiner: Joiner, payload: Box<JoinPayload>) -> Outcome {
    let planned = match joiner.memory.grow(JOIN + AT_WORK * payload.memory()) {
        true => joiner.plan(&payload).await,
        false => Err(Refused::memory()),
    };
    match planned.and_then(|plan| joiner.keep(plan)) {
        Ok(plan) => {
            let echoed = plan.legacy.as_ref().map_or(&*payload.postgres_changes, slice::from_ref);
            let subscription = Subscription {
                reply: encode::joined(joiner.vsn, joiner.address.borrow(), echoed),
                topic: Arc::clone(&joiner.address.topic),
                vsn: joiner.vsn,
                identity: Arc::clone(&joiner.credentials.identity),
                facets: (plan.facets.into_iter())
                    .map(|facet| facet.with_meta_in_payload(payload.broadcast.meta_in_payload))
                    .collect(),
                since: plan.since,
                snapshot: plan.snapshot,
                greeting: plan.greeting,
            };
            joiner.context.hub.join(joiner.session, subscription).await;
            Outcome::Joined(joiner.channel(&payload, plan.access, plan.lease, plan.filters))
        }
        Err(refused) => Outcome::Refused { address: joiner.address, refused },
    }
}

impl Joiner {
    /// From here on it takes up what the channel needs.
    fn keep(&mut self, plan: Plan) -> Result<Plan, Refused> {
        let facets = plan.facets.iter().map(Facet::memory).sum::<usize>();
        let greeting = plan.greeting.iter().map(Bytes::len).sum::<usize>();
        let begins = plan.snapshot.as_ref().map_or(0, |plan| plan.memory()) + plan.since.memory();
        let kept =
            channel_memory(&self.address.topic, &self.credentials) + facets + greeting + begins;
        if self.memory.resize(kept) { Ok(plan) } else { Err(Refused::memory()) }
    }

    /// The channel, once the hub has it; tells who is present to those who asked.
    fn channel(
        self,
        payload: &JoinPayload,
        access: Access,
        lease: Option<Lease>,
        filters: Option<Share>,
    ) -> Channel {
        let OwnedAddress { join_ref, topic, .. } = self.address;
        let is_ours = topic.strip_prefix(PREFIX).is_some_and(|name| name.starts_with("tide:"));
        let presence = (!is_ours && !payload.legacy).then(|| {
            let room_key = RoomKey { topic, private: payload.private };
            let key = payload.presence.key.as_deref();
            Box::new(ChannelPresence::new(&self.context.rooms, room_key, key))
        });
        if let Some(presence) = &presence
            && payload.presence.enabled
            && access.presence().read
        {
            presence.tell(self.session, self.vsn, join_ref.as_deref());
        }
        Channel {
            join_ref,
            credentials: self.credentials,
            private: payload.private,
            access,
            ack: payload.broadcast.ack,
            echo: payload.broadcast.echo,
            meta_in_payload: payload.broadcast.meta_in_payload,
            watches_presence: payload.presence.enabled,
            presence,
            _lease: lease,
            _filters: filters,
            memory: self.memory,
        }
    }

    async fn plan(&mut self, payload: &JoinPayload) -> Result<Plan, Refused> {
        let topic = Topic::parse(&self.address.topic)
            .map_err(|error| Refused::request(error.to_string()))?;
        if let Some(reason) = payload.malformed {
            return Err(Refused::request(reason));
        }
        if payload.presence.key.as_ref().is_some_and(|key| key.len() > MAX_PRESENCE_KEY) {
            return Err(Refused::request("InvalidJoin: A presence key has at most 255 bytes"));
        }
        self.identify(payload.access_token.as_deref()).await?;
        match topic.kind() {
            Kind::Table { schema, table } => self.plan_table(payload, schema, table).await,
            Kind::Tables { schema } => self.plan_tables(payload, schema.as_deref()).await,
            Kind::Notify { channel } => self.plan_notify(payload, channel).await,
            Kind::Schema { .. } => self.plan_schema(payload).await,
            Kind::Records { schema } => self.plan_records(payload, schema).await,
            Kind::Mutations => self.plan_mutations(payload).await,
            Kind::Reserved => {
                Err(Refused::request("UnknownTopic: There is no such topic among those of tide:"))
            }
            Kind::Channel if payload.legacy => self.plan_legacy(payload, &topic).await,
            Kind::Channel if payload.postgres_changes.is_empty() => self.plan_quiet(payload).await,
            Kind::Channel => self.plan_changes(payload).await,
        }
    }

    /// The channel's own token, or that of the connection.
    async fn identify(&mut self, token: Option<&str>) -> Result<(), Refusal> {
        match token {
            Some(token) if identity::is_token(token) && !self.credentials.are_of(token) => {
                self.credentials = identity::of_token(&self.context, token).await?;
                return Ok(());
            }
            _ => {}
        }
        let now = credentials::now();
        if self.credentials.has_expired(now) {
            return Err(Refusal::Expired(self.credentials.expiry_text(now)));
        }
        identity::check_role(&self.context, self.credentials.role()).await
    }

    /// A channel of `postgres_changes`.
    async fn plan_changes(&self, payload: &JoinPayload) -> Result<Plan, Refused> {
        let access = if payload.private || self.context.config().public_channels {
            self.authorize(payload, grant::CHANNEL).await?
        } else {
            Access::default()
        };
        let params = &payload.postgres_changes;
        let limit = self.context.config().max_bindings_per_channel;
        if params.len() > limit {
            let reason = format!("BindingLimitReached: A channel has at most {limit} bindings");
            return Err(Refused { count: RefusedJoin::Bindings, reason });
        }
        let (tables, asked) = self.tables(named_tables(params)).await?;
        let (bindings, failures, filters) = self.bind(params, &tables).await?;
        if payload.wait
            && let Some(text) = failures.first()
        {
            return Err(Refused::table(text));
        }
        let mut greeting = Vec::new();
        let (join_ref, topic) = (self.address.join_ref.as_deref(), &*self.address.topic);
        if !bindings.is_empty() {
            greeting.push(encode::subscribed(self.vsn, join_ref, topic));
        }
        self.greet_failures(&failures, &mut greeting);
        self.greet_row_security(&bindings, &tables, &mut greeting);
        let since = since(&payload.broadcast, asked)?;
        let mut facets = vec![Facet::of_rows(Style::Changes, bindings)];
        facets.extend(channel_facets(payload, access));
        Ok(Plan { access, filters, ..Plan::new(facets, since, greeting) })
    }

    /// A channel for messages, broadcasts and presence alone.
    async fn plan_quiet(&self, payload: &JoinPayload) -> Result<Plan, Refused> {
        let access = self.authorize(payload, grant::CHANNEL).await?;
        let (_, asked) = self.tables(Vec::new()).await?;
        let facets = channel_facets(payload, access);
        Ok(Plan { access, ..Plan::new(facets, since(&payload.broadcast, asked)?, Vec::new()) })
    }

    /// What the client may do on a channel that is not about rows: on a private one what the
    /// policies say, on any other what the settings do.
    async fn authorize(
        &self,
        payload: &JoinPayload,
        extensions: Extensions,
    ) -> Result<Access, Refused> {
        if payload.private {
            let (context, credentials) = (&self.context, &self.credentials);
            return Ok(access::to_read(context, credentials, self.name(), extensions).await?);
        }
        if !self.context.config().public_channels {
            return Err(Refused::request("PrivateOnly: This project only allows private channels"));
        }
        Ok(Access::public(&self.context.config()))
    }

    /// What applications call the topic.
    fn name(&self) -> &str {
        self.address.topic.strip_prefix(PREFIX).unwrap_or_default()
    }

    /// `tide:notify:<channel>`: for channels that the settings name. What is notified has no
    /// position, so there is nothing to resume from.
    async fn plan_notify(&self, payload: &JoinPayload, channel: &str) -> Result<Plan, Refused> {
        Self::own_options(payload)?;
        if payload.broadcast.since.is_some() || payload.broadcast.last.is_some() {
            return Err(Refused::request(
                "NotSupported: Notifications are not kept: there is no since and no last",
            ));
        }
        let config = self.context.config();
        if !config.notify_channels.iter().any(|pattern| topic::fits(pattern, channel)) {
            return Err(Refusal::Channel(self.name().into()).into());
        }
        let access = self.authorize(payload, grant::NOTIFY).await?;
        let limit = config.handshake_timeout;
        let mut lease = self.context.hub.listen(channel).ok_or_else(|| {
            Refused::request(
                "TooManyChannels: The server listens to as many channels of NOTIFY as it can",
            )
        })?;
        if timeout(limit, lease.is_heard()).await != Ok(true) {
            log::warn!("could not listen to a channel that a client has asked for");
            return Err(Refusal::Unavailable.into());
        }
        let (_, asked) = self.tables(Vec::new()).await?;
        let mut greeting = Vec::new();
        self.greet_presence(payload, &mut greeting);
        let facets = vec![Facet::of_topic(Style::Notify, payload.private)];
        let plan = Plan::new(facets, Since::Now(asked), greeting);
        Ok(Plan { access, lease: Some(lease), ..plan })
    }

    /// `tide:schema` and `tide:schema:<schema>`: open to all, since each event is for those only
    /// who may see what it is about; who joins it as a private channel has the policies asked.
    async fn plan_schema(&self, payload: &JoinPayload) -> Result<Plan, Refused> {
        let options = Self::own_options(payload)?;
        let access = if payload.private {
            self.authorize(payload, grant::SCHEMA).await?
        } else {
            Access::default()
        };
        let (_, asked) = self.tables(Vec::new()).await?;
        let mut greeting = Vec::new();
        self.greet_presence(payload, &mut greeting);
        let facets = vec![Facet::of_topic(Style::Schema, payload.private)];
        Ok(Plan { access, ..Plan::new(facets, since(options, asked)?, greeting) })
    }

    /// `tide:table:<schema>.<table>`.
    async fn plan_table(
        &self,
        payload: &JoinPayload,
        schema: &str,
        table: &str,
    ) -> Result<Plan, Refused> {
        let options = Self::options_of_a_table(payload)?;
        snapshot_options::check(options)?;
        let name = TableName { schema: schema.to_owned(), table: table.to_owned() };
        let (tables, asked) = self.tables(vec![name]).await?;
        let refusal = || {
            Refused::table(format!(
                "Unauthorized: There is no table {schema}.{table} to subscribe to"
            ))
        };
        let access = tables.first().ok_or_else(refusal)?;
        let mut all = Bindings::new(&self.context, &self.credentials, &tables, &self.filters);
        let filter = match options.filter.as_deref() {
            Some(text) => all.filter(text, access).await.map_err(|e| e.into_refused(&refusal))?,
            None => None,
        };
        let select = match options.select.as_deref() {
            Some(names) => Some(all.select(names, access).map_err(|e| e.into_refused(&refusal))?),
            None => None,
        };
        let operations = operations(options);
        let named = snapshot_options::named(options, access, select.as_deref());
        let target = target(access, options.filter.as_deref(), named.as_deref())
            .map_err(|error| BindingError::from(error).into_refused(&refusal))?;
        let bindings = vec![Binding { id: 1, operations, target, filter, select }];
        let mut greeting = Vec::new();
        self.greet_presence(payload, &mut greeting);
        self.greet_row_security(&bindings, &tables, &mut greeting);
        let snapshot = match options.snapshot {
            true => {
                let most_rows = self.context.config().snapshot_max_rows;
                Some(snapshot_options::plan(options, access, &all, most_rows).await?)
            }
            false => None,
        };
        let facets = vec![Facet::of_rows(Style::Table, bindings)];
        let filters = Some(all.share());
        Ok(Plan { filters, snapshot, ..Plan::new(facets, since(options, asked)?, greeting) })
    }

    /// `tide:table:<schema>.*` and `tide:table:*`.
    async fn plan_tables(
        &self,
        payload: &JoinPayload,
        schema: Option<&str>,
    ) -> Result<Plan, Refused> {
        let target = schema.map_or(Target::All, |schema| Target::Schema(schema.into()));
        self.plan_several(payload, Style::Table, target, None).await
    }

    /// `tide:records:<schema>`.
    async fn plan_records(&self, payload: &JoinPayload, schema: &str) -> Result<Plan, Refused> {
        let columns = if payload.broadcast.values { record::ALL } else { record::KEY };
        let columns = columns.iter().map(|name| Box::from(*name)).collect();
        let target = Target::Schema(schema.into());
        self.plan_several(payload, Style::Records, target, Some(columns)).await
    }

    /// `tide:mutations`: a channel to write on for those who hear of nothing. What becomes of what they
    /// ask for is for the database to say.
    async fn plan_mutations(&self, payload: &JoinPayload) -> Result<Plan, Refused> {
        let options = Self::own_options(payload)?;
        if options.since.is_some() || options.last.is_some() {
            return Err(Refused::request(
                "NotSupported: Nothing comes on this topic but answers: there is no since and no last",
            ));
        }
        if options.filter.is_some() || options.select.is_some() {
            return Err(Refused::request(
                "InvalidJoin: filter and select need a topic of one table",
            ));
        }
        let (_, asked) = self.tables(Vec::new()).await?;
        let mut greeting = Vec::new();
        self.greet_presence(payload, &mut greeting);
        Ok(Plan::new(Vec::new(), Since::Now(asked), greeting))
    }

    /// A topic that is about more than one table.
    async fn plan_several(
        &self,
        payload: &JoinPayload,
        style: Style,
        target: Target,
        select: Option<Arc<[Box<str>]>>,
    ) -> Result<Plan, Refused> {
        let options = Self::own_options(payload)?;
        if options.filter.is_some() || options.select.is_some() {
            return Err(Refused::request(
                "InvalidJoin: filter and select need a topic of one table",
            ));
        }
        let (operations, filter) = (operations(options), None);
        let bindings = vec![Binding { id: 1, operations, target, filter, select }];
        let (_, asked) = self.tables(Vec::new()).await?;
        let mut greeting = Vec::new();
        self.greet_presence(payload, &mut greeting);
        let facets = vec![Facet::of_rows(style, bindings)];
        Ok(Plan::new(facets, since(options, asked)?, greeting))
    }

    /// The options of a topic of ours that is about more, or less, than a table.
    fn own_options(payload: &JoinPayload) -> Result<&BroadcastOptions, Refused> {
        if payload.broadcast.snapshot {
            return Err(Refused::request(
                "NotSupported: Only a topic of one table can begin with a snapshot",
            ));
        }
        Self::options_of_a_table(payload)
    }

    /// The options of a topic of ours.
    fn options_of_a_table(payload: &JoinPayload) -> Result<&BroadcastOptions, Refused> {
        if !payload.postgres_changes.is_empty() {
            return Err(Refused::request(
                "InvalidJoin: This topic is a subscription itself and takes no postgres_changes",
            ));
        }
        Ok(&payload.broadcast)
    }

    /// Each set of parameters as a binding, or with the text that says that it is none.
    pub(super) async fn bind(
        &self,
        params: &[ChangeParams],
        tables: &[Arc<TableAccess>],
    ) -> Result<(Vec<Binding>, Vec<String>, Option<Share>), Refused> {
        let mut all = Bindings::new(&self.context, &self.credentials, tables, &self.filters);
        let (mut bindings, mut failures) = (Vec::new(), Vec::new());
        for one in params {
            match all.binding(one).await {
                Ok(binding) => bindings.push(binding),
                Err(BindingError::Unavailable) => return Err(Refusal::Unavailable.into()),
                Err(BindingError::TooMuch(why)) => return Err(Refused::filters(why)),
                Err(BindingError::Filter(error)) => failures.push(error.to_string()),
                Err(BindingError::Unsuitable(why)) => {
                    failures.push(format!("{}. Exception: {why}", one.refusal()));
                }
                Err(BindingError::Refused) => failures.push(one.refusal()),
            }
        }
        Ok((bindings, failures, Some(all.share())))
    }
}

impl BindingError {
    /// As the refusal of a join; `denied` where nothing may be said but that it cannot be had.
    pub(super) fn into_refused(self, denied: &impl Fn() -> Refused) -> Refused {
        match self {
            BindingError::Unavailable => Refusal::Unavailable.into(),
            BindingError::TooMuch(why) => Refused::filters(why),
            BindingError::Filter(error) => Refused::table(format!("InvalidFilter: {error}")),
            BindingError::Unsuitable(why) => Refused::table(format!("InvalidFilter: {why}")),
            BindingError::Refused => denied(),
        }
    }
}

/// Bytes that a channel takes up without what it asked for.
fn channel_memory(topic: &str, credentials: &Credentials) -> usize {
    CHANNEL + 2 * topic.len() + credentials.memory()
}

/// What a client receives of the channel itself.
fn channel_facets(payload: &JoinPayload, access: Access) -> Vec<Facet> {
    let presence = access.presence().read && payload.presence.enabled;
    [(Style::Channel, access.broadcast().read), (Style::Presence, presence)]
        .into_iter()
        .filter(|(_, receives)| *receives)
        .map(|(style, _)| Facet::of_topic(style, payload.private))
        .collect()
}

fn operations(options: &BroadcastOptions) -> Operations {
    match &options.events {
        Some(events) => Operations::of(events.iter().copied()),
        None => Operations::ALL,
    }
}
