//! The channels of realtime-js 1.x, whose topic's name is the subscription.

use std::slice;

use super::binding::named_tables;
use super::join::{Joiner, Plan, Refused};
use super::since::since;
use crate::hub::subscription::{Facet, Style};
use crate::topic::{LegacyParts, Topic};
use crate::wire::join::{ChangeParams, JoinPayload, Requested};

impl Joiner {
    /// realtime-js 1.x: the topic's name is the subscription.
    pub(super) async fn plan_legacy(
        &self,
        payload: &JoinPayload,
        topic: &Topic,
    ) -> Result<Plan, Refused> {
        let params = legacy_params(topic.legacy_parts());
        let params_ref = slice::from_ref(&params);
        let (tables, asked) = self.tables(named_tables(params_ref)).await?;
        let (bindings, failures, filters) = self.bind(params_ref, &tables).await?;
        let mut greeting = Vec::new();
        self.greet_failures(&failures, &mut greeting);
        self.greet_row_security(&bindings, &tables, &mut greeting);
        let since = since(&payload.broadcast, asked)?;
        let facets = vec![Facet::of_rows(Style::Legacy, bindings)];
        Ok(Plan { legacy: Some(params), filters, ..Plan::new(facets, since, greeting) })
    }
}

/// The parameters that an old topic stands for, as the reply echoes them.
fn legacy_params(parts: LegacyParts<'_>) -> ChangeParams {
    let schema = parts.schema.unwrap_or("*");
    let mut raw = Vec::new();
    for (key, value) in [("schema", Some(schema)), ("table", parts.table), ("filter", parts.filter)]
    {
        let Some(value) = value else { continue };
        if !raw.is_empty() {
            raw.push(b',');
        }
        tide_feed::json::write_key(&mut raw, key);
        tide_feed::json::write_str(&mut raw, value);
    }
    ChangeParams {
        // Written from texts: always UTF-8.
        raw: String::from_utf8(raw).unwrap_or_default().into(),
        event: Requested::All,
        schema: Some(schema.to_owned()),
        table: parts.table.map(str::to_owned),
        filter: parts.filter.map(str::to_owned),
        select: None,
        malformed: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_topic_is_echoed_as_parameters() {
        let topic = Topic::parse("realtime:public:users:id=eq.1").unwrap();

        let params = legacy_params(topic.legacy_parts());

        assert_eq!(&*params.raw, r#""schema":"public","table":"users","filter":"id=eq.1""#);
        assert_eq!(params.target(), Some(("public", "users")));
        let everything = legacy_params(Topic::parse("realtime:*").unwrap().legacy_parts());
        assert_eq!(everything.target(), Some(("*", "*")));
    }
}
