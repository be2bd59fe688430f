//! What a client asks for that wants the rows that there are.

use std::sync::Arc;

use tide_feed::catalog::{ColumnAccess, Condition, Operator, TableAccess};
use tide_feed::event::Operation;

use super::binding::Bindings;
use super::identity::Refusal;
use super::join::Refused;
use crate::filter;
use crate::hub::snapshot_place::is_place;
use crate::hub::sync::SnapshotPlan;
use crate::wire::join::BroadcastOptions;

/// Refuses what cannot stand beside a snapshot.
pub(super) fn check(options: &BroadcastOptions) -> Result<(), Refused> {
    if !options.snapshot {
        return Ok(());
    }
    if options.last.is_some() {
        let reason = "InvalidJoin: A snapshot begins with all rows: there is no last with it";
        return Err(Refused::request(reason));
    }
    let rows = [Operation::Insert, Operation::Update, Operation::Delete];
    let lacks = |events: &Vec<Operation>| rows.iter().any(|row| !events.contains(row));
    if options.events.as_ref().is_some_and(lacks) {
        let reason = "InvalidJoin: With a snapshot come all of INSERT, UPDATE and DELETE";
        return Err(Refused::request(reason));
    }
    if options.resume.as_deref().is_some_and(|text| !is_place(text)) {
        let reason =
            "InvalidPosition: resume is not a place as received in meta.resume of a SNAPSHOT";
        return Err(Refused::request(reason));
    }
    Ok(())
}

/// The columns that the subscription depends on: a client that keeps whole rows has to know of each.
pub(super) fn named(
    options: &BroadcastOptions,
    access: &TableAccess,
    select: Option<&[Box<str>]>,
) -> Option<Vec<Box<str>>> {
    let readable = access.columns.iter().filter(|column| column.readable);
    let all =
        options.snapshot.then(|| readable.map(|column| column.name.as_str().into()).collect());
    select.map(<[Box<str>]>::to_vec).or(all)
}

/// The rows that a channel begins with, as a reader is asked for them.
pub(super) async fn plan(
    options: &BroadcastOptions,
    access: &TableAccess,
    bindings: &Bindings<'_>,
    most_rows: u64,
) -> Result<Arc<SnapshotPlan>, Refused> {
    let is_chosen = |column: &ColumnAccess| match &options.select {
        Some(names) => column.primary_key || names.contains(&column.name),
        None => true,
    };
    let columns = access.columns.iter().filter(|column| column.readable && is_chosen(column));
    let conditions = match options.filter.as_deref() {
        Some(text) => conditions(text, access, bindings).await?,
        None => Vec::new(),
    };
    Ok(Arc::new(SnapshotPlan {
        table: access.oid,
        name: (access.schema.as_str().into(), access.table.as_str().into()),
        columns: columns.map(|column| column.attnum).collect(),
        conditions,
        most_rows,
        place: options.resume.as_deref().map(Into::into),
        known: access.columns.iter().map(|column| column.attnum).collect(),
    }))
}

async fn conditions(
    text: &str,
    access: &TableAccess,
    bindings: &Bindings<'_>,
) -> Result<Vec<Condition>, Refused> {
    // It was compiled, and its columns looked up, before.
    let unavailable = || Refused::from(Refusal::Unavailable);
    let values = bindings.casted(text, access).await.map_err(|e| e.into_refused(&unavailable))?;
    let parsed = filter::parse(text).ok().flatten();
    let mut conditions = Vec::new();
    let wanted = parsed.iter().flat_map(|parsed| &parsed.conditions);
    for (condition, values) in wanted.zip(values) {
        let column = access.columns.iter().find(|column| column.name == condition.column);
        let condition = condition.of_column(column.ok_or_else(unavailable)?.attnum);
        // The stream's are Unicode's; Postgres's are another language, and the locale's.
        if matches!(condition.operator, Operator::Ilike | Operator::Match | Operator::Imatch) {
            let reason = "InvalidFilter: the filter of a snapshot takes no ilike, match or imatch";
            return Err(Refused::table(reason));
        }
        conditions.push(Condition { values, ..condition });
    }
    Ok(conditions)
}
