//! Statements on clients' tables, analysed once for each form that they have: most of what a small write
//! costs is that.
//!
//! Postgres itself analyses one anew once a table, a policy, the role or the `search_path` is another. Plans are
//! another matter: in one that is made for all parameters, a function that reads settings but is declared
//! IMMUTABLE would be a constant, and what it said of one client be said of the next. So a plan is kept only where
//! there are no policies and no defaults that could call one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int};

use pgrx::{IntoDatum, pg_sys};
use tide_feed::mutation::Fields;

use crate::helper::transaction::Refusal;
use crate::server_text::ServerText;

/// Forms that are kept; past it all are made anew.
const MOST: usize = 500;

/// `plancache.h`: `PlanCacheMode`.
const FORCE_GENERIC_PLAN: c_int = 1;

thread_local! {
    static KEPT: RefCell<HashMap<CString, pg_sys::SPIPlanPtr>> = RefCell::default();
}

/// Runs a statement whose parameters are fields as JSON. Says how many rows there were, of which SPI has what
/// it returns. Within a connection of SPI's.
pub(crate) fn run(sql: &CStr, fields: &[&Fields], keeps_plan: bool) -> Result<u64, Refusal> {
    let texts = fields.iter().map(|fields| serde_json::to_string(fields).unwrap_or_default());
    let mut values: Vec<pg_sys::Datum> =
        texts.map(|text| ServerText(text).into_datum().unwrap_or(pg_sys::Datum::null())).collect();
    // What a database has set for its sessions counts for more than what is asked of a plan.
    // SAFETY: a variable of this process.
    let is_kept = keeps_plan || unsafe { pg_sys::plan_cache_mode } != FORCE_GENERIC_PLAN;
    let plan =
        if is_kept { kept(sql, values.len(), keeps_plan)? } else { made(sql, values.len(), 0)? };
    // SAFETY: the plan has so many parameters, which are texts.
    let (code, processed) = unsafe {
        let code = pg_sys::SPI_execute_plan(plan, values.as_mut_ptr(), std::ptr::null(), false, 0);
        (code, pg_sys::SPI_processed)
    };
    if code < 0 {
        return Err(Refusal::internal("the statement cannot be run"));
    }
    Ok(processed)
}

/// A statement that is remembered, or is from now on.
fn kept(sql: &CStr, count: usize, keeps_plan: bool) -> Result<pg_sys::SPIPlanPtr, Refusal> {
    if let Some(plan) = KEPT.with_borrow(|kept| kept.get(sql).copied()) {
        return Ok(plan);
    }
    let options =
        if keeps_plan { pg_sys::CURSOR_OPT_GENERIC_PLAN } else { pg_sys::CURSOR_OPT_CUSTOM_PLAN };
    let plan = made(sql, count, options)?;
    // SAFETY: it was made in this connection of SPI's, and lives from here on until it is freed below.
    unsafe { pg_sys::SPI_keepplan(plan) };
    KEPT.with_borrow_mut(|kept| {
        if kept.len() >= MOST {
            // SAFETY: none of them is being run: one is after the other, and what clients' code runs is its own.
            kept.drain().for_each(|(_, plan)| unsafe {
                pg_sys::SPI_freeplan(plan);
            });
        }
        kept.insert(sql.to_owned(), plan);
    });
    Ok(plan)
}

/// One that goes with this connection of SPI's.
fn made(sql: &CStr, count: usize, options: u32) -> Result<pg_sys::SPIPlanPtr, Refusal> {
    let mut types = vec![pg_sys::TEXTOID; count];
    let (count, options) =
        (c_int::try_from(count).unwrap_or(c_int::MAX), c_int::try_from(options).unwrap_or(0));
    // SAFETY: within a connection of SPI's, with so many types.
    let plan =
        unsafe { pg_sys::SPI_prepare_cursor(sql.as_ptr(), count, types.as_mut_ptr(), options) };
    if plan.is_null() {
        return Err(Refusal::internal("the statement cannot be prepared"));
    }
    Ok(plan)
}
