//! Texts from outside as values of the database, and the other way: Rust's are UTF-8, which not every
//! database is.

use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{FromDatum, IntoDatum, pg_sys, varlena_to_byte_slice};

use crate::encoding::{self, Encoding};

/// A text that is, or becomes, a value of type `text` in the encoding of the database; an error is raised
/// if that has not all its characters.
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

impl FromDatum for ServerText<String> {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type_oid: pg_sys::Oid,
    ) -> Option<ServerText<String>> {
        if is_null {
            return None;
        }
        // SAFETY: a text, as whoever asks for one sees to; it is copied at once.
        let text = unsafe {
            let unpacked = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            Encoding::of_database().utf8(varlena_to_byte_slice(unpacked)).into_owned()
        };
        Some(ServerText(text))
    }
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
