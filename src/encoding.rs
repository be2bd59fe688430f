//! Texts of the database as UTF-8, which is what goes over the wire.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char};

use pgrx::pg_sys;
use pgrx::prelude::*;

/// How the database's texts become UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Utf8,
    /// Any bytes at all.
    SqlAscii,
    Other,
}

impl Encoding {
    pub(crate) fn of_database() -> Encoding {
        // SAFETY: a plain variable of this process.
        let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
        match u32::try_from(encoding) {
            Ok(pg_sys::pg_enc::PG_UTF8) => Encoding::Utf8,
            Ok(pg_sys::pg_enc::PG_SQL_ASCII) => Encoding::SqlAscii,
            _ => Encoding::Other,
        }
    }

    /// What is not valid becomes replacement characters: an event is better than none.
    pub(crate) fn utf8(self, text: &[u8]) -> Cow<'_, str> {
        if self == Encoding::Other
            && let Ok(length) = i32::try_from(text.len())
        {
            // SAFETY: the text is as long as said. The conversion is looked up in the catalogue,
            // which the historic snapshot allows.
            let converted = unsafe {
                let to = pg_sys::pg_enc::PG_UTF8 as i32;
                pg_sys::pg_server_to_any(text.as_ptr().cast::<c_char>(), length, to)
            };
            if !std::ptr::eq(converted.cast(), text.as_ptr()) {
                // SAFETY: a converted text ends with a zero byte.
                let converted = unsafe { CStr::from_ptr(converted) };
                return String::from_utf8_lossy(converted.to_bytes());
            }
        }
        // Checked quickly first: nearly every text is valid.
        match std::str::from_utf8(text) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(text),
        }
    }

    /// A text in the encoding of the database, and whether the catalogue was asked how. `None`: it
    /// has a zero byte in it.
    ///
    /// # Safety
    /// In a transaction.
    pub(crate) unsafe fn server(self, text: &str) -> (Option<CString>, bool) {
        let Ok(name) = CString::new(text) else { return (None, false) };
        if self != Encoding::Other || text.is_ascii() {
            return (Some(name), false);
        }
        // SAFETY: as above; a converted text ends with a zero byte.
        let converted = unsafe {
            let length = i32::try_from(text.len()).unwrap_or(0);
            let from = pg_sys::pg_enc::PG_UTF8 as i32;
            CStr::from_ptr(pg_sys::pg_any_to_server(name.as_ptr(), length, from)).to_owned()
        };
        (Some(converted), true)
    }

    /// As much of a text as can be said in an error, where nothing can be converted that might be
    /// one itself.
    pub(crate) fn message(self, text: &str) -> String {
        if self == Encoding::Utf8 {
            return text.replace('\0', "?");
        }
        text.replace(|character: char| !character.is_ascii() || character == '\0', "?")
    }

    /// An owned copy of a C string.
    ///
    /// # Safety
    /// A string that ends with a zero byte.
    pub(crate) unsafe fn owned(self, text: *const c_char) -> Box<str> {
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(text) };
        self.utf8(text.to_bytes()).into()
    }
}

/// A text in the encoding of the database, in the current memory of Postgres's; raises an error if
/// that has not all its characters, or there is a zero byte in it. In a transaction.
///
/// Postgres trusts the texts that it has: in some encodings a byte says how many follow, and one
/// that lies at the end of a text would have it read past that.
pub(crate) fn server_text(text: &str) -> *mut c_char {
    refuse_null(text);
    // SAFETY: as many bytes as are copied, and a zero byte behind them.
    unsafe {
        let copy = pg_sys::palloc(text.len() + 1).cast::<c_char>();
        copy.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        copy.add(text.len()).write(0);
        if Encoding::of_database() != Encoding::Other || text.is_ascii() {
            return copy;
        }
        // Memory of that size can be had from Postgres only if the number fits.
        let length = i32::try_from(text.len()).unwrap_or(i32::MAX);
        pg_sys::pg_any_to_server(copy, length, pg_sys::pg_enc::PG_UTF8 as i32)
    }
}

/// The same as a string of Rust's.
pub(crate) fn server_string(text: &str) -> CString {
    // SAFETY: it ends with a zero byte.
    unsafe { CStr::from_ptr(server_text(text)) }.to_owned()
}

fn refuse_null(text: &str) {
    if text.contains('\0') {
        let code = PgSqlErrorCode::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE;
        ereport!(ERROR, code, "a text must not contain the null character");
    }
}
