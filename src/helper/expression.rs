//! What policies compare with, evaluated by Postgres from the text that it printed it as.
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

use std::ffi::{CStr, c_char};

use pgrx::{Spi, pg_sys};

use crate::encoding;
use crate::helper::transaction::Refusal;
use crate::helper::{answer, session};

/// The one text that a query with expressions in it answers with; `None`: NULL, or no row. In a
/// transaction with a snapshot. The query is planned for this once, as functions that read settings
/// but are declared IMMUTABLE become constants of the plan.
pub(crate) fn text(query: &str) -> Result<Option<String>, Refusal> {
    let query = encoding::server_string(query);
    // SAFETY: in a transaction. After an error its end takes back the portal and the settings.
    let (level, name) = unsafe { (pg_sys::NewGUCNestLevel(), start_text(&query)?) };
    let unexpected = |_: pgrx::spi::Error| Refusal::internal("the query gave an unexpected answer");
    let answer = Spi::connect(|client| {
        // Closed where it goes out of scope.
        let mut cursor = client.find_cursor(&name).map_err(unexpected)?;
        answer::text(cursor.fetch(1).map_err(unexpected)?)
    });
    // SAFETY: the level begun above.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    answer
}

/// Starts a query that is analysed from its text, under today's settings. See [`start`].
///
/// # Safety
/// In a transaction with an active snapshot.
pub(crate) unsafe fn start_text(query: &CStr) -> Result<String, Refusal> {
    let none = std::ptr::null_mut();
    // SAFETY: as above.
    unsafe {
        start(query, none, |statement, text| {
            pg_sys::pg_analyze_and_rewrite_fixedparams(statement, text, std::ptr::null(), 0, none)
        })
    }
}

/// Starts a query under the settings of an ordinary session, which stay in force; `analyse` makes of
/// the one statement that it is what is to be planned. Says its portal's name.
///
/// # Safety
/// In a transaction with an active snapshot. The environment lives as long as that.
pub(crate) unsafe fn start(
    query: &CStr,
    environment: *mut pg_sys::QueryEnvironment,
    analyse: impl FnOnce(*mut pg_sys::RawStmt, *const c_char) -> *mut pg_sys::List,
) -> Result<String, Refusal> {
    // SAFETY: as above. What the portal needs is made in its own memory.
    unsafe {
        let portal = pg_sys::CreateNewPortal();
        (*portal).visible = false;
        let before = pg_sys::MemoryContextSwitchTo((*portal).portalContext);
        let query = pg_sys::pstrdup(query.as_ptr());
        let statements = pg_sys::pg_parse_query(query);
        if statements.is_null() || (*statements).length != 1 {
            return Err(Refusal::internal("an expression that is more than one"));
        }
        let analysed = analyse((*(*statements).elements).ptr_value.cast(), query);
        session::be_ordinary();
        // What is planned and run sees everything that was committed before the tables were locked.
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let planned = pg_sys::pg_plan_queries(analysed, query, 0, std::ptr::null_mut());
        let (select, none) = (pg_sys::CommandTag::CMDTAG_SELECT, std::ptr::null_mut());
        pg_sys::PortalDefineQuery(portal, std::ptr::null(), query, select, planned, none);
        (*portal).queryEnv = environment;
        pg_sys::PopActiveSnapshot();
        // Takes another one, as the body of a function may have had more tables locked.
        pg_sys::PortalStart(portal, std::ptr::null_mut(), 0, std::ptr::null_mut());
        pg_sys::MemoryContextSwitchTo(before);
        Ok(CStr::from_ptr((*portal).name).to_string_lossy().into_owned())
    }
}
