//! What pg_tide must know of other people's statements: extensions that come and go, and
//! databases that can only be dropped, renamed, moved or copied while nobody is connected.
//!
//! Nothing is decided here; see [`crate::backend::xact_notes`].

use std::ffi::{CStr, c_char, c_int, c_void};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::{drops, xact_notes};
use crate::compat;
use crate::process::shmem;
use crate::process::shmem::Shared;

static mut PREVIOUS_ACCESS: pg_sys::object_access_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;

/// In `_PG_init` only.
pub(crate) fn init() {
    // SAFETY: the postmaster is alone; the hooks that were there before are called by ours.
    unsafe {
        PREVIOUS_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

mod raw {
    use super::*;

    // Not pgrx's: that one turns an error into a panic and back, and much of the error is lost.
    unsafe extern "C-unwind" {
        pub(crate) fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            query: *const c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            dest: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

// The two hooks themselves are plain frames, without `#[pg_guard]` and anything to drop: other
// people's errors pass through them as they pass through C. What is ours is guarded.

unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub: c_int,
    arg: *mut c_void,
) {
    // SAFETY: the hook that was there before, called with what we were called with.
    unsafe {
        if let Some(previous) = PREVIOUS_ACCESS {
            previous(access, class, object, sub, arg);
        }
        if class == pg_sys::ExtensionRelationId || class == pg_sys::DatabaseRelationId {
            note_access(access, class, object);
        } else if access == pg_sys::ObjectAccessType::OAT_DROP
            && sub == 0
            && (class == pg_sys::RelationRelationId || class == pg_sys::NamespaceRelationId)
            && !is_internal(arg)
        {
            note_drop(class, object);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn note_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
) {
    use pg_sys::ObjectAccessType::{OAT_DROP, OAT_POST_ALTER, OAT_POST_CREATE};
    if class == pg_sys::ExtensionRelationId {
        if access == OAT_POST_CREATE || access == OAT_DROP {
            xact_notes::extensions_changed();
        }
        return;
    }
    let changed = match access {
        // From here on nobody can connect, and the owner's right has been checked.
        OAT_DROP => xact_notes::send_away(object),
        OAT_POST_CREATE | OAT_POST_ALTER => true,
        _ => false,
    };
    if changed {
        xact_notes::database_changed(object);
    }
}

/// Whether something is dropped that only Postgres itself knew of, such as the old rows of a table
/// that is rewritten.
///
/// # Safety
/// `arg` must be that of a drop.
unsafe fn is_internal(arg: *mut c_void) -> bool {
    // SAFETY: as above.
    let flags = unsafe { (*arg.cast::<pg_sys::ObjectAccessDrop>()).dropflags };
    flags as u32 & pg_sys::PERFORM_DELETION_INTERNAL != 0
}

#[pg_guard]
unsafe extern "C-unwind" fn note_drop(class: pg_sys::Oid, object: pg_sys::Oid) {
    drops::note(class, object);
}

#[allow(clippy::too_many_arguments, reason = "the hook's signature")]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    use pg_sys::NodeTag::{T_AlterDatabaseStmt, T_CreatedbStmt, T_RenameStmt, T_TransactionStmt};
    // SAFETY: the statement is a parse tree; everything is passed on as it came.
    unsafe {
        let tree = (*statement).utilityStmt;
        if let T_AlterDatabaseStmt | T_CreatedbStmt | T_RenameStmt | T_TransactionStmt =
            (*tree).type_
        {
            note_utility(tree);
        }
        PREVIOUS_UTILITY.unwrap_or(raw::standard_ProcessUtility)(
            statement,
            query,
            read_only_tree,
            context,
            params,
            environment,
            dest,
            completion,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn note_utility(statement: *mut pg_sys::Node) {
    // SAFETY: a utility statement's parse tree.
    unsafe {
        if let Some(database) = must_be_empty(statement) {
            if (*statement).type_ == pg_sys::NodeTag::T_AlterDatabaseStmt {
                xact_notes::database_moves(database);
            }
            xact_notes::send_away(database);
        }
        if commits_prepared(statement) {
            xact_notes::extensions_changed();
        }
    }
}

/// COMMIT PREPARED while there is a prepared transaction that created or dropped an extension.
///
/// # Safety
/// `statement` must be a utility statement's parse tree.
unsafe fn commits_prepared(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: the cast follows the node's tag.
    unsafe {
        (*statement).type_ == pg_sys::NodeTag::T_TransactionStmt
            && (*statement.cast::<pg_sys::TransactionStmt>()).kind
                == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED
            && shmem::shared().is_some_and(Shared::extensions_prepared)
    }
}

/// The database that nobody may be connected to for this statement to succeed, if it is one such
/// and the user may run it. (DROP DATABASE has a hook of its own, at a better moment.)
///
/// # Safety
/// `statement` must be a utility statement's parse tree.
unsafe fn must_be_empty(statement: *mut pg_sys::Node) -> Option<pg_sys::Oid> {
    // SAFETY: each cast follows the node's tag.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = statement.cast::<pg_sys::RenameStmt>();
                let is_database = (*rename).renameType == pg_sys::ObjectType::OBJECT_DATABASE;
                is_database.then(|| owned_database((*rename).subname)).flatten()
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let alter = statement.cast::<pg_sys::AlterDatabaseStmt>();
                option((*alter).options, c"tablespace")?;
                owned_database((*alter).dbname)
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                let create = statement.cast::<pg_sys::CreatedbStmt>();
                template(option((*create).options, c"template"))
            }
            _ => None,
        }
    }
}

/// # Safety
/// `name` must be a string or null.
unsafe fn owned_database(name: *const c_char) -> Option<pg_sys::Oid> {
    // SAFETY: as above.
    unsafe {
        let database = find_database(name)?;
        compat::owns_database(database, pg_sys::GetUserId()).then_some(database)
    }
}

/// The database to copy, if the user may copy it.
///
/// # Safety
/// `option` must be a `DefElem`.
unsafe fn template(option: Option<*mut pg_sys::DefElem>) -> Option<pg_sys::Oid> {
    // SAFETY: as above; `defGetString` knows every kind of argument.
    unsafe {
        let name = match option {
            Some(option) if !(*option).arg.is_null() => pg_sys::defGetString(option),
            _ => c"template1".as_ptr().cast_mut(),
        };
        owned_database(name).filter(|_| compat::may_create_databases())
    }
}

/// # Safety
/// `name` must be a string or null.
unsafe fn find_database(name: *const c_char) -> Option<pg_sys::Oid> {
    if name.is_null() {
        return None;
    }
    // SAFETY: as above; utility statements run in a transaction.
    let database = unsafe { pg_sys::get_database_oid(name, true) };
    (database != pg_sys::InvalidOid).then_some(database)
}

/// # Safety
/// `options` must be a list of `DefElem`.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: as above; an empty list is null.
    unsafe {
        let list = options.as_ref()?;
        let mut all = (0..usize::try_from(list.length).unwrap_or(0))
            .map(|n| (*list.elements.add(n)).ptr_value.cast::<pg_sys::DefElem>());
        all.find(|option| CStr::from_ptr((**option).defname) == name)
    }
}
