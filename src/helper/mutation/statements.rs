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

use pgrx::pg_sys;

use crate::helper::mutation::given::Parameters;
use crate::helper::transaction::Refusal;

/// Bytes of statements that are kept, whose plans take many times as much; past it all are made anew.
const MOST: usize = 512 << 10;

/// `plancache.h`: `PlanCacheMode`.
const FORCE_GENERIC_PLAN: c_int = 1;

/// A statement, of which types its parameters are, and whether its plan is kept as well.
type Form = (CString, Vec<pg_sys::Oid>, bool);

#[derive(Default)]
struct Kept {
    plans: HashMap<Form, pg_sys::SPIPlanPtr>,
    bytes: usize,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// Runs a statement. Says how many rows there were, of which SPI has what it returns. Within a connection of
/// SPI's.
pub(crate) fn run(sql: &CStr, parameters: &Parameters, keeps_plan: bool) -> Result<u64, Refusal> {
    let Parameters { types, values, nulls } = parameters;
    // What a database has set for its sessions counts for more than what is asked of a plan.
    // SAFETY: a variable of this process.
    let is_kept = keeps_plan || unsafe { pg_sys::plan_cache_mode } != FORCE_GENERIC_PLAN;
    let plan = if is_kept { kept(sql, types, keeps_plan)? } else { made(sql, types, 0)? };
    // SAFETY: the plan has so many parameters, of these types; they are only read.
    let (code, processed) = unsafe {
        let values = values.as_ptr().cast_mut();
        let code = pg_sys::SPI_execute_plan(plan, values, nulls.as_ptr(), false, 0);
        (code, pg_sys::SPI_processed)
    };
    if code < 0 {
        return Err(Refusal::internal("the statement cannot be run"));
    }
    Ok(processed)
}

/// A statement that is remembered, or is from now on.
fn kept(
    sql: &CStr,
    types: &[pg_sys::Oid],
    keeps_plan: bool,
) -> Result<pg_sys::SPIPlanPtr, Refusal> {
    let form = (sql.to_owned(), types.to_vec(), keeps_plan);
    if let Some(plan) = KEPT.with_borrow(|kept| kept.plans.get(&form).copied()) {
        return Ok(plan);
    }
    let options =
        if keeps_plan { pg_sys::CURSOR_OPT_GENERIC_PLAN } else { pg_sys::CURSOR_OPT_CUSTOM_PLAN };
    let plan = made(sql, types, options)?;
    // SAFETY: it was made in this connection of SPI's, and lives from here on until it is freed below.
    unsafe { pg_sys::SPI_keepplan(plan) };
    KEPT.with_borrow_mut(|kept| {
        let size = sql.to_bytes().len() + size_of_val(types);
        if kept.bytes + size > MOST {
            kept.bytes = 0;
            // SAFETY: none of them is being run: one is after the other, and what clients' code runs is its own.
            kept.plans.drain().for_each(|(_, plan)| unsafe {
                pg_sys::SPI_freeplan(plan);
            });
        }
        kept.bytes += size;
        kept.plans.insert(form, plan);
    });
    Ok(plan)
}

/// One that goes with this connection of SPI's.
fn made(sql: &CStr, types: &[pg_sys::Oid], options: u32) -> Result<pg_sys::SPIPlanPtr, Refusal> {
    let count = c_int::try_from(types.len()).unwrap_or(c_int::MAX);
    let options = c_int::try_from(options).unwrap_or(0);
    // SAFETY: within a connection of SPI's, with so many types, which are only read.
    let plan = unsafe {
        pg_sys::SPI_prepare_cursor(sql.as_ptr(), count, types.as_ptr().cast_mut(), options)
    };
    if plan.is_null() {
        return Err(Refusal::internal("the statement cannot be prepared"));
    }
    Ok(plan)
}
