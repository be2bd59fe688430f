//! One value as JSON, byte for byte as `to_jsonb` prints it.
//!
//! How a type prints is found out once per column; printing then looks up no catalogue, but for
//! what the type's own output function does. A cast to json that a user has defined is never run.

mod array;
mod composite;
mod jsonb;
mod labels;
mod multirange;
mod varlena;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::sync::Arc;

use pgrx::{error, pg_sys};
use tide_feed::bounded::{Bounded, Overflow};
use tide_feed::json;
use tide_feed::json::Unprintable;
use tide_feed::labels::Labels;

use self::array::Array;
use self::composite::Composite;
use self::multirange::Multirange;
use self::varlena::Bytes;
pub(crate) use self::varlena::{is_on_disk, size};
use crate::encoding::Encoding;
use crate::type_form;

/// Types that contain types nest no deeper than this; what does is printed as text.
const DEEPEST: usize = 32;

/// Types of a table's columns, and within them, are no more than this; what comes after them is printed
/// as text.
const MOST_PARTS: usize = 16_384;

/// Bytes that no value of a type of fixed length, by the ways of printing below, exceeds.
const SHORT: usize = 64;

/// How to print a type.
#[derive(Debug)]
pub(crate) enum Value {
    Bool,
    Int2,
    Int4,
    Int8,
    /// float4 and float8: by their output function, made a JSON number.
    Float(Output),
    Numeric(Output),
    /// text, varchar and bpchar.
    Text(Encoding),
    Bytea,
    Uuid,
    Date,
    Timestamp,
    Timestamptz,
    Json(Encoding),
    Jsonb(Output, Encoding),
    Array(Box<Array>),
    Composite(Box<Composite>),
    /// By labels as they were found, so that it is known which one a text is.
    Label(Arc<Labels>, Output, Encoding),
    /// A range, by its output function, and what is within.
    Range(Box<Value>, Output, Encoding),
    Multirange(Box<Multirange>),
    /// An oid, by the name of what has it.
    Named(Output, Encoding),
    /// Everything else: the output function's text.
    Other(Output, Encoding),
}

/// What the way of printing was derived from, besides the column itself; a change to any of it
/// makes it stale.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    /// Hashes of rows of `pg_type`; built-in types do not change.
    pub(crate) types: BTreeSet<u32>,
    /// Relations behind composite types.
    pub(crate) relations: BTreeSet<u32>,
    /// Types that have been looked at.
    parts: usize,
}

impl Origins {
    fn add_type(&mut self, type_id: pg_sys::Oid) {
        if type_id.to_u32() < pg_sys::FirstNormalObjectId {
            return;
        }
        // SAFETY: computes a hash.
        let hash = unsafe {
            let cache = pg_sys::SysCacheIdentifier::TYPEOID as i32;
            let none = pg_sys::Datum::null();
            pg_sys::GetSysCacheHashValue(cache, pg_sys::Datum::from(type_id), none, none, none)
        };
        self.types.insert(hash);
    }
}

impl Value {
    /// # Safety
    /// Under a historic snapshot. `memory` outlives the value.
    pub(crate) unsafe fn of(
        type_id: pg_sys::Oid,
        memory: pg_sys::MemoryContext,
        origins: &mut Origins,
        depth: usize,
    ) -> Value {
        pgrx::check_for_interrupts!();
        origins.parts += 1;
        origins.add_type(type_id);
        // SAFETY: as above; a domain prints as its base type.
        let type_id = unsafe { pg_sys::getBaseType(type_id) };
        origins.add_type(type_id);
        let encoding = Encoding::of_database();
        // SAFETY: as above.
        let output = || unsafe { Output::of(type_id, memory) };
        match type_id {
            pg_sys::BOOLOID => Value::Bool,
            pg_sys::INT2OID => Value::Int2,
            pg_sys::INT4OID => Value::Int4,
            pg_sys::INT8OID => Value::Int8,
            pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => Value::Float(output()),
            pg_sys::NUMERICOID => Value::Numeric(output()),
            pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Value::Text(encoding),
            pg_sys::BYTEAOID => Value::Bytea,
            pg_sys::UUIDOID => Value::Uuid,
            pg_sys::DATEOID => Value::Date,
            pg_sys::TIMESTAMPOID => Value::Timestamp,
            pg_sys::TIMESTAMPTZOID => Value::Timestamptz,
            pg_sys::JSONOID => Value::Json(encoding),
            pg_sys::JSONBOID => Value::Jsonb(output(), encoding),
            _ if type_form::is_named(type_id) => Value::Named(output(), encoding),
            // SAFETY: as above.
            _ => unsafe { Value::nested(type_id, memory, origins, depth) }
                .unwrap_or_else(|| Value::Other(output(), encoding)),
        }
    }

    /// An array, a composite, an enum, a range or a multirange.
    unsafe fn nested(
        type_id: pg_sys::Oid,
        memory: pg_sys::MemoryContext,
        origins: &mut Origins,
        depth: usize,
    ) -> Option<Value> {
        if depth >= DEEPEST || origins.parts > MOST_PARTS {
            return None;
        }
        // SAFETY: as for `of`.
        unsafe {
            let element = pg_sys::get_element_type(type_id);
            if element != pg_sys::InvalidOid {
                let array = Array::of(element, memory, origins, depth + 1);
                return Some(Value::Array(Box::new(array)));
            }
            if pg_sys::type_is_rowtype(type_id) {
                let composite = Composite::of(type_id, memory, origins, depth + 1)?;
                return Some(Value::Composite(Box::new(composite)));
            }
            let (encoding, output) = (Encoding::of_database(), || Output::of(type_id, memory));
            if pg_sys::type_is_enum(type_id) {
                return Some(Value::Label(labels::of(type_id), output(), encoding));
            }
            if pg_sys::type_is_multirange(type_id) {
                let range = pg_sys::get_multirange_range(type_id);
                let multirange = Multirange::of(range, memory, origins, depth + 1);
                return Some(Value::Multirange(Box::new(multirange)));
            }
            if pg_sys::type_is_range(type_id) {
                let bound = pg_sys::get_range_subtype(type_id);
                let bound = Value::of(bound, memory, origins, depth + 1);
                return Some(Value::Range(Box::new(bound), output(), encoding));
            }
        }
        None
    }

    /// Whether JSON leaves something out: an array's bounds, which of two kinds of null, how a text of
    /// type json was written, what had the name.
    pub(crate) fn is_lossy(&self) -> bool {
        matches!(self, Value::Json(_) | Value::Array(_) | Value::Composite(_) | Value::Named(..))
    }

    /// How deep arrays and composites are within one another: each level doubles what its text needs to
    /// be quoted.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Value::Array(array) => 1 + array.element().depth(),
            Value::Composite(composite) => {
                1 + composite.values().map(Value::depth).max().unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// The labels of enums that it is printed with.
    pub(crate) fn labels(&self) -> Vec<Arc<Labels>> {
        match self {
            Value::Label(labels, ..) => vec![Arc::clone(labels)],
            Value::Range(bound, ..) => bound.labels(),
            Value::Multirange(multirange) => multirange.bound().labels(),
            Value::Array(array) => array.element().labels(),
            Value::Composite(composite) => composite.values().flat_map(Value::labels).collect(),
            _ => Vec::new(),
        }
    }

    /// Appends the value. How long it will be is known before it is printed, or found out on the
    /// way; only what a type's own output function makes of a value is there as a whole first,
    /// in memory of Postgres's, which raises an error where that would be more than 1 GB.
    ///
    /// # Safety
    /// A value of the type this was made for, not NULL, and none that is TOASTed on disk. Takes
    /// memory from the current context and does not give it back.
    pub(crate) unsafe fn write(
        &mut self,
        datum: pg_sys::Datum,
        out: &mut Bounded<'_>,
    ) -> Result<(), Overflow> {
        // SAFETY: as above, throughout: the value is what the type says. The truncations take it
        // out of the word that holds it.
        unsafe {
            if self.is_varlena() {
                // Before it is unpacked.
                out.admit(size(datum))?;
            }
            match self {
                Value::Bool => {
                    let text: &[u8] = if datum.value() as u8 == 0 { b"false" } else { b"true" };
                    return out.extend_from_slice(text);
                }
                Value::Int2 => integer(out.room(SHORT)?, i64::from(datum.value() as i16)),
                Value::Int4 => integer(out.room(SHORT)?, i64::from(datum.value() as i32)),
                Value::Int8 => integer(out.room(SHORT)?, datum.value() as i64),
                Value::Date => json::date(out.room(SHORT)?, datum.value() as i32),
                Value::Timestamp => {
                    json::timestamp(out.room(SHORT)?, datum.value() as i64, false);
                }
                Value::Timestamptz => {
                    json::timestamp(out.room(SHORT)?, datum.value() as i64, true);
                }
                Value::Uuid => uuid(out.room(SHORT)?, &*datum.cast_mut_ptr::<[u8; 16]>()),
                Value::Float(output) => return number(out, output.text(datum)),
                Value::Numeric(output) => {
                    out.room(json::numeric_length(Bytes::of(datum).get()))?;
                    return number(out, output.text(datum));
                }
                Value::Text(encoding) => {
                    return json::write_bounded(out, &encoding.utf8(Bytes::of(datum).get()));
                }
                Value::Bytea => return bytea(out, Bytes::of(datum).get()),
                Value::Json(encoding) => {
                    let text = encoding.utf8(Bytes::of(datum).get());
                    match json::normalise(out, text.as_bytes()) {
                        Err(Unprintable::Overflow(overflow)) => return Err(overflow),
                        Err(Unprintable::NotJson) => error!("a value of type json is not JSON"),
                        Ok(()) => {}
                    }
                }
                Value::Jsonb(output, encoding) => {
                    let unpacked = varlena::aligned(datum);
                    jsonb::assert_fits(unpacked, out)?;
                    let text = encoding.utf8(output.text(pg_sys::Datum::from(unpacked)).to_bytes());
                    return out.extend_from_slice(text.as_bytes());
                }
                Value::Array(array) => return array.write(datum, out),
                Value::Composite(composite) => return composite.write(datum, out),
                Value::Multirange(multirange) => return multirange.write(datum, out),
                Value::Label(labels, output, encoding) => {
                    return match labels.label(datum.value() as u32) {
                        Some(label) => json::write_bounded(out, label),
                        // Newer than what is known of the type: nobody will take it for another.
                        None => {
                            json::write_bounded(out, &encoding.utf8(output.text(datum).to_bytes()))
                        }
                    };
                }
                Value::Other(output, encoding)
                | Value::Named(output, encoding)
                | Value::Range(_, output, encoding) => {
                    let text = encoding.utf8(output.text(datum).to_bytes());
                    return json::write_bounded(out, &text);
                }
            }
        }
        Ok(())
    }

    fn is_varlena(&self) -> bool {
        match self {
            Value::Bool
            | Value::Int2
            | Value::Int4
            | Value::Int8
            | Value::Float(_)
            | Value::Uuid
            | Value::Date
            | Value::Timestamp
            | Value::Timestamptz
            | Value::Named(..)
            | Value::Label(..) => false,
            Value::Other(output, _) => output.is_varlena,
            Value::Numeric(_)
            | Value::Text(_)
            | Value::Bytea
            | Value::Json(_)
            | Value::Jsonb(..)
            | Value::Array(_)
            | Value::Composite(_)
            | Value::Range(..)
            | Value::Multirange(_) => true,
        }
    }
}

/// The text in a value of text or varchar.
///
/// # Safety
/// Such a value, not NULL, and none that is TOASTed on disk. Takes memory from the current context
/// and does not give it back.
pub(crate) unsafe fn text<'a>(datum: pg_sys::Datum, encoding: Encoding) -> Cow<'a, str> {
    // SAFETY: as above.
    encoding.utf8(unsafe { Bytes::of(datum) }.get())
}

/// A type's output function.
#[derive(Debug)]
pub(crate) struct Output {
    function: Box<pg_sys::FmgrInfo>,
    is_varlena: bool,
}

impl Output {
    /// # Safety
    /// Under a historic snapshot. `memory` outlives the function.
    pub(crate) unsafe fn of(type_id: pg_sys::Oid, memory: pg_sys::MemoryContext) -> Output {
        let mut function = pg_sys::InvalidOid;
        let mut is_varlena = false;
        let mut info = Box::new(pg_sys::FmgrInfo::default());
        // SAFETY: as above.
        unsafe {
            pg_sys::getTypeOutputInfo(type_id, &raw mut function, &raw mut is_varlena);
            pg_sys::fmgr_info_cxt(function, &raw mut *info, memory);
        }
        Output { function: info, is_varlena }
    }

    /// # Safety
    /// A value of the type, not NULL. The text is in the current memory context.
    unsafe fn text(&mut self, datum: pg_sys::Datum) -> &CStr {
        // SAFETY: as above; an output function returns a C string.
        unsafe { CStr::from_ptr(pg_sys::OutputFunctionCall(&raw mut *self.function, datum)) }
    }
}

/// A number that an output function has printed.
fn number(out: &mut Bounded<'_>, text: &CStr) -> Result<(), Overflow> {
    let text = text.to_bytes();
    json::number(out.room(json::number_length(text))?, text);
    Ok(())
}

/// The text of a value, where JSON does not say all of it.
#[derive(Debug)]
pub(crate) enum Text {
    Of(Output),
    /// The number of an oid, whoever has that name by now.
    Oid,
}

impl Text {
    /// # Safety
    /// As for [`Value::of`].
    pub(crate) unsafe fn of(type_id: pg_sys::Oid, memory: pg_sys::MemoryContext) -> Text {
        // SAFETY: as above.
        unsafe {
            let base = pg_sys::getBaseType(type_id);
            if type_form::is_named(base) { Text::Oid } else { Text::Of(Output::of(base, memory)) }
        }
    }

    /// Appends it as a JSON string.
    ///
    /// # Safety
    /// As for [`Value::write`].
    pub(crate) unsafe fn write(
        &mut self,
        datum: pg_sys::Datum,
        out: &mut Bounded<'_>,
    ) -> Result<(), Overflow> {
        match self {
            Text::Oid => json::write_bounded(out, &(datum.value() as u32).to_string()),
            Text::Of(output) => {
                let encoding = Encoding::of_database();
                // SAFETY: as above.
                json::write_bounded(out, &encoding.utf8(unsafe { output.text(datum) }.to_bytes()))
            }
        }
    }
}

fn integer(out: &mut Vec<u8>, number: i64) {
    let mut buffer = itoa::Buffer::new();
    out.extend_from_slice(buffer.format(number).as_bytes());
}

fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
    out.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
}

fn uuid(out: &mut Vec<u8>, uuid: &[u8; 16]) {
    out.push(b'"');
    for (index, pair) in uuid.chunks(2).enumerate() {
        if matches!(index, 2..=5) {
            out.push(b'-');
        }
        hex(out, pair);
    }
    out.push(b'"');
}

/// `"\\x..."`: the backslash of the hex format has to be escaped.
fn bytea(out: &mut Bounded<'_>, bytes: &[u8]) -> Result<(), Overflow> {
    let out = out.room(bytes.len().saturating_mul(2).saturating_add(5))?;
    out.extend_from_slice(b"\"\\\\x");
    hex(out, bytes);
    out.push(b'"');
    Ok(())
}
