//! Texts from outside as values of the database: Rust's are UTF-8, which not every database is.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{IntoDatum, pg_sys};

use crate::encoding;

/// A text that becomes a value of type `text` in the encoding of the database; an error is raised if
/// that has not all its characters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerText<T>(pub(crate) T);

impl<T: AsRef<str>> IntoDatum for ServerText<T> {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let text = encoding::server_text(self.0.as_ref());
        // SAFETY: a string that ends with a zero byte; the value is a copy.
        let value = unsafe { pg_sys::cstring_to_text(text) };
        Some(pg_sys::Datum::from(value))
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

/// Texts as an array of theirs.
pub(crate) fn texts<T: AsRef<str>>(texts: &[T]) -> Vec<ServerText<&str>> {
    texts.iter().map(|text| ServerText(text.as_ref())).collect()
}

// SAFETY: the value is a text, in the memory of the calling query.
unsafe impl<T: AsRef<str>> BoxRet for ServerText<T> {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: as above.
            Some(text) => unsafe { fcinfo.return_raw_datum(text) },
            None => fcinfo.return_null(),
        }
    }
}

// SAFETY: as above. The functions are declared in `sql/extension/`.
unsafe impl SqlTranslatable for ServerText<String> {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(ServerText<String>);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("text"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("text")));
}
