//! Values of jsonb that Postgres makes itself, of a text: in its own memory, where running out of it
//! is an error. As a tree of Rust's, a few bytes of JSON may be many times as large.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::pg_sys;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};

use crate::encoding;

/// What an SQL function returns as jsonb.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Jsonb(pg_sys::Datum);

impl Jsonb {
    /// Raises an error if the text is no JSON, or has what the database's encoding has not.
    pub(crate) fn read(json: &str) -> Jsonb {
        let text = encoding::server_text(json);
        let arguments = [Some(pg_sys::Datum::from(text))];
        // SAFETY: the function takes a C string, and returns a value that is never NULL.
        let value = unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &arguments) };
        Jsonb(value.unwrap_or(pg_sys::Datum::null()))
    }
}

// SAFETY: the value is a jsonb, in the memory of the calling query.
unsafe impl BoxRet for Jsonb {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: as above.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}

// SAFETY: as above. The functions are declared in `sql/extension/`.
unsafe impl SqlTranslatable for Jsonb {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Jsonb);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("jsonb"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("jsonb")));
}
