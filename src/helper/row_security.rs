//! A table's policies as they are stored: what the current user's SELECT or INSERT would be held to. They
//! are not read anew from a text, so no name in them can come to mean anything else.

use std::ffi::CStr;

use pgrx::{FromDatum, PgSqlErrorCode, ereport, pg_guard, pg_sys};
use tide_feed::catalog::OUTDATED;

use crate::compat;
use crate::helper::asked_rows::AskedRows;
use crate::helper::expression;
use crate::helper::transaction::Refusal;

/// What stands in the place of `null` is put there once this is analysed: the columns of the rows then
/// have the numbers that they have in policies.
const QUERY: &CStr = c"select null::pg_catalog.bool from asked_rows";

/// What somebody wants to do with rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Select,
    Insert,
}

impl Command {
    /// As `pg_policy` has it; `*` is all commands.
    fn code(self) -> u8 {
        match self {
            Command::Select => b'r',
            Command::Insert => b'a',
        }
    }

    /// What has to be true of a row, if the policy says anything about that.
    fn condition(self, policy: &pg_sys::RowSecurityPolicy) -> Option<*mut pg_sys::Expr> {
        let condition = match self {
            Command::Insert if !policy.with_check_qual.is_null() => policy.with_check_qual,
            Command::Select | Command::Insert => policy.qual,
        };
        (!condition.is_null()).then_some(condition)
    }
}

/// Which of the rows the policies admit. In a transaction with a snapshot; planned for this once, as
/// functions that read settings but are declared IMMUTABLE become constants of the plan.
pub(crate) fn admitted(rows: &AskedRows, command: Command) -> Result<Vec<bool>, Refusal> {
    refuse_hooks()?;
    let mut places = Places { table: rows.table, known: &rows.attnums, is_complete: true };
    // SAFETY: in a transaction. After an error its end takes back the portal and the settings.
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        let environment = rows.environment();
        let name = expression::start(QUERY, environment, |statement, text| {
            let query = pg_sys::parse_analyze_fixedparams(
                statement,
                text,
                std::ptr::null(),
                0,
                environment,
            );
            put_condition(query, &mut places, command);
            pg_sys::QueryRewrite(query)
        })?;
        if !places.is_complete {
            // What the rows have is what the policies looked at when they were put together.
            let message = "the policies look at other columns by now".into();
            return Err(Refusal { sqlstate: OUTDATED.into(), message });
        }
        let count = std::ffi::c_long::try_from(rows.count).unwrap_or(0);
        let answers: Result<Vec<bool>, pgrx::spi::Error> = pgrx::Spi::connect(|client| {
            let mut cursor = client.find_cursor(&name)?;
            let answers = cursor.fetch(count)?;
            answers.map(|row| Ok(row.get(1)?.unwrap_or(false))).collect()
        });
        pg_sys::AtEOXact_GUC(false, level);
        let answers = answers.ok().filter(|answers| answers.len() == rows.count);
        answers.ok_or_else(|| Refusal::internal("the policies did not answer"))
    }
}

/// Whether another extension's code makes up policies, which are not stored.
pub(crate) fn has_hooks() -> bool {
    // SAFETY: variables of this process, which libraries set when they are loaded.
    unsafe {
        let permissive = (&raw const pg_sys::row_security_policy_hook_permissive).read();
        let restrictive = (&raw const pg_sys::row_security_policy_hook_restrictive).read();
        permissive.is_some() || restrictive.is_some()
    }
}

fn refuse_hooks() -> Result<(), Refusal> {
    if has_hooks() {
        let message = "another extension has policies of its own";
        return Err(Refusal::new(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, message));
    }
    Ok(())
}

/// What columns that policies name are to become.
struct Places<'a> {
    table: pg_sys::Relation,
    /// The columns that the rows have.
    known: &'a [i16],
    /// They have all that the policies look at.
    is_complete: bool,
}

/// Makes what the policies come to the result of the query.
unsafe fn put_condition(query: *mut pg_sys::Query, places: &mut Places<'_>, command: Command) {
    let table = places.table;
    // SAFETY: a query of one result, of one table, whose columns are the table's.
    unsafe {
        let (condition, has_sub_links) = condition(table, command);
        let condition = compat::expand_generated_columns(condition, table);
        let condition = pg_sys::replace_rte_variables(
            condition,
            1,
            0,
            Some(own_column),
            std::ptr::from_mut(places).cast(),
            std::ptr::null_mut(),
        );
        let target = (*(*(*query).targetList).elements).ptr_value.cast::<pg_sys::TargetEntry>();
        (*target).expr = condition.cast();
        if has_sub_links {
            (*query).hasSubLinks = true;
            pg_sys::AcquireRewriteLocks(query, true, false);
        }
    }
}

/// What decides about the rows for the current user, and whether there are queries in it: one of the
/// permissive policies has to admit a row, and every other one.
unsafe fn condition(table: pg_sys::Relation, command: Command) -> (*mut pg_sys::Node, bool) {
    // SAFETY: the table is open and locked; what it has is copied before anything else is done.
    unsafe {
        let user = pg_sys::GetUserId();
        let enabled = pg_sys::CheckEnableRlsResult::RLS_ENABLED;
        // Turned off, it admits nobody: whoever is asked here should be bound by something.
        if (*(*table).rd_rel).relrowsecurity
            && pg_sys::check_enable_rls((*table).rd_id, user, true).unsigned_abs() != enabled
        {
            return (pg_sys::makeBoolConst(true, false), false);
        }
        let mut any = std::ptr::null_mut();
        let mut all = std::ptr::null_mut();
        let mut has_sub_links = false;
        for policy in by_name(table) {
            let policy = &*policy;
            let Some(condition) = command.condition(policy) else { continue };
            if !applies(policy, user, command) {
                continue;
            }
            has_sub_links |= policy.hassublinks;
            let copy = pg_sys::copyObjectImpl(condition.cast());
            let list = if policy.permissive { &mut any } else { &mut all };
            *list = pg_sys::lappend(*list, copy);
        }
        if any.is_null() {
            return (pg_sys::makeBoolConst(false, false), false);
        }
        let any = joined(any, pg_sys::BoolExprType::OR_EXPR).cast();
        // In Postgres's order.
        all = match command {
            Command::Select => pg_sys::lappend(all, any),
            Command::Insert => pg_sys::lcons(any, all),
        };
        (joined(all, pg_sys::BoolExprType::AND_EXPR), has_sub_links)
    }
}

/// All policies in the order of their names, which is the order in which Postgres holds rows against
/// those that are restrictive.
unsafe fn by_name(table: pg_sys::Relation) -> Vec<*const pg_sys::RowSecurityPolicy> {
    // SAFETY: the table is open and locked.
    unsafe {
        let list = (*table).rd_rsdesc.as_ref().and_then(|found| found.policies.as_ref());
        let elements = list.map_or(&[][..], |list| {
            let length = usize::try_from(list.length).unwrap_or(0);
            std::slice::from_raw_parts(list.elements, length)
        });
        let policy = |cell: &pg_sys::ListCell| cell.ptr_value.cast_const().cast();
        let mut policies: Vec<*const pg_sys::RowSecurityPolicy> =
            elements.iter().map(policy).collect();
        policies.sort_by_key(|policy| CStr::from_ptr((**policy).policy_name));
        policies
    }
}

unsafe fn joined(
    conditions: *mut pg_sys::List,
    how: pg_sys::BoolExprType::Type,
) -> *mut pg_sys::Node {
    // SAFETY: a list of expressions, at least one.
    unsafe {
        if (*conditions).length == 1 {
            return (*(*conditions).elements).ptr_value.cast();
        }
        pg_sys::makeBoolExpr(how, conditions, -1).cast()
    }
}

/// Whether it is a policy for the command and the user.
unsafe fn applies(policy: &pg_sys::RowSecurityPolicy, user: pg_sys::Oid, command: Command) -> bool {
    if ![b'*', command.code()].contains(&(policy.polcmd as u8)) {
        return false;
    }
    // SAFETY: an array of oids, none of them NULL; 0 is everybody.
    let roles =
        unsafe { pgrx::Array::<pg_sys::Oid>::from_datum(pg_sys::Datum::from(policy.roles), false) };
    let is_users = |role: pg_sys::Oid| {
        // SAFETY: a catalogue look-up in a transaction.
        role == pg_sys::InvalidOid || unsafe { pg_sys::has_privs_of_role(user, role) }
    };
    roles.is_some_and(|roles| roles.iter().flatten().any(is_users))
}

impl Places<'_> {
    /// Whether the rows have the column, or all of them for the number 0. What there is no value of in
    /// any row of the table's is not missed.
    unsafe fn have(&self, attnum: i16) -> bool {
        // SAFETY: the table is open.
        unsafe {
            let descriptor = (*self.table).rd_att;
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            (0..count).map(|index| compat::attribute(descriptor, index)).all(|attribute| {
                let is_named = attnum == 0 || attnum == attribute.attnum;
                let is_there = self.known.contains(&attribute.attnum);
                !is_named || is_there || attribute.attisdropped
            })
        }
    }
}

/// A column that a policy names, as the rows have it: of those of Postgres's own, only the table's oid is
/// known.
#[pg_guard]
unsafe extern "C-unwind" fn own_column(
    column: *mut pg_sys::Var,
    context: *mut pg_sys::replace_rte_variables_context,
) -> *mut pg_sys::Node {
    // SAFETY: as it is called by `replace_rte_variables`, with the places.
    unsafe {
        let places = &mut *(*context).callback_arg.cast::<Places<'_>>();
        let table = places.table;
        if (*column).varattno >= 0 {
            places.is_complete &= places.have((*column).varattno);
            return pg_sys::copyObjectImpl(column.cast()).cast();
        }
        let is_partitioned = (*(*table).rd_rel).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
        let is_oid = i32::from((*column).varattno) == pg_sys::TableOidAttributeNumber;
        if !is_oid || is_partitioned {
            let code = PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED;
            ereport!(ERROR, code, "a policy looks at a column of Postgres's own");
        }
        let oid = pg_sys::Datum::from((*table).rd_id);
        let size = std::ffi::c_int::try_from(size_of::<pg_sys::Oid>()).unwrap_or(4);
        let none = pg_sys::InvalidOid;
        pg_sys::makeConst(pg_sys::OIDOID, -1, none, size, oid, false, true).cast()
    }
}
