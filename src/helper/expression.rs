//! Expressions of policies, evaluated by Postgres from the text that it printed them as.
//!
//! Such a text means what was printed only under the `search_path` (and other settings) that it was
//! printed under: anybody who may create something in a schema on an ordinary session's path could
//! otherwise put an operator of their own in the place of Postgres's. Functions that policies call
//! are another matter. Where they do not set a `search_path` of their own, names in their bodies
//! mean what the caller's path says, and they would fail, or do something else, under any other than an
//! ordinary session's. So the text is analysed under the one, and planned (which is when the bodies
//! of SQL functions are looked into) and run under the other. That is what a SELECT of the client's
//! does: policies are stored analysed. What could lead such a function astray there can do so here.
//!
//! Plans of SPI's cannot do it: they are analysed again when the path has changed.

use std::ffi::CStr;

use pgrx::datum::DatumWithOid;
use pgrx::{FromDatum, IntoDatum, Spi, pg_sys};

use crate::encoding;
use crate::helper::transaction::Refusal;
use crate::helper::{answer, session};

/// The one array that a query with expressions in it answers with; `None`: NULL, or no row. In a
/// transaction with a snapshot. The query is planned for this once, as functions that read settings
/// but are declared IMMUTABLE become constants of the plan.
pub(crate) fn array<T: FromDatum + IntoDatum>(
    query: &str,
    arguments: &[DatumWithOid<'_>],
) -> Result<Option<T>, Refusal> {
    let text = encoding::server_string(query);
    // SAFETY: in a transaction. After an error its end takes back the portal and the settings.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    // SAFETY: as above.
    let name = unsafe { open(&text, arguments)? };
    let answer = Spi::connect(|client| {
        // Closed where it goes out of scope.
        let mut cursor = client.find_cursor(&name)?;
        let rows = cursor.fetch(1)?;
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.first();
        if let Some(datum) = row.get_datum_by_ordinal(1)? {
            // SAFETY: an array, as every caller asks for one.
            let admitted = unsafe { answer::admit(datum) };
            if let Err(refusal) = admitted {
                return Ok(Some(Err(refusal)));
            }
        }
        Ok(row.get_one::<T>()?.map(Ok))
    });
    // SAFETY: the level begun above.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    answer
        .map_err(|_: pgrx::spi::Error| Refusal::internal("the query gave an unexpected answer"))?
        .transpose()
}

/// Analyses the query under today's settings, then starts it under those of an ordinary session, which
/// stay in force. Says its portal's name.
///
/// # Safety
/// In a transaction with an active snapshot.
unsafe fn open(query: &CStr, arguments: &[DatumWithOid<'_>]) -> Result<String, Refusal> {
    // SAFETY: as above. What the portal needs is made in its own memory.
    unsafe {
        let portal = pg_sys::CreateNewPortal();
        (*portal).visible = false;
        let before = pg_sys::MemoryContextSwitchTo((*portal).portalContext);
        let query = pg_sys::pstrdup(query.as_ptr());
        let types: Vec<pg_sys::Oid> = arguments.iter().map(DatumWithOid::oid).collect();
        let count = i32::try_from(types.len()).unwrap_or(0);
        let statements = pg_sys::pg_parse_query(query);
        if statements.is_null() || (*statements).length != 1 {
            return Err(Refusal::internal("an expression that is more than one"));
        }
        let analysed = pg_sys::pg_analyze_and_rewrite_fixedparams(
            (*(*statements).elements).ptr_value.cast(),
            query,
            types.as_ptr(),
            count,
            std::ptr::null_mut(),
        );
        session::be_ordinary();
        let parameters = parameters(arguments, count);
        let planned = pg_sys::pg_plan_queries(analysed, query, 0, parameters);
        let (select, none) = (pg_sys::CommandTag::CMDTAG_SELECT, std::ptr::null_mut());
        pg_sys::PortalDefineQuery(portal, std::ptr::null(), query, select, planned, none);
        pg_sys::PortalStart(portal, parameters, 0, pg_sys::GetActiveSnapshot());
        pg_sys::MemoryContextSwitchTo(before);
        Ok(CStr::from_ptr((*portal).name).to_string_lossy().into_owned())
    }
}

/// # Safety
/// There are `count` of them; takes memory from the current context.
unsafe fn parameters(arguments: &[DatumWithOid<'_>], count: i32) -> pg_sys::ParamListInfo {
    // SAFETY: the list is made with room for as many.
    unsafe {
        let list = pg_sys::makeParamList(count);
        let places = (*list).params.as_mut_ptr();
        for (index, argument) in arguments.iter().enumerate() {
            let value = argument.datum().map(|datum| datum.sans_lifetime());
            *places.add(index) = pg_sys::ParamExternData {
                value: value.unwrap_or(pg_sys::Datum::null()),
                isnull: value.is_none(),
                pflags: pg_sys::PARAM_FLAG_CONST as pg_sys::uint16,
                ptype: argument.oid(),
            };
        }
        list
    }
}
