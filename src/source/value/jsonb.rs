//! How long a `jsonb` will be as text. A few bytes of it may be a number of 131,072 digits.

use pgrx::pg_sys;
use tide_feed::bounded::{Bounded, Overflow};
use tide_feed::json;

/// Bytes of `true` and `null`.
const WORD: usize = 4;

/// An error if the value's scalars alone would be printed past the end. What stands between them is
/// printed as well, but takes no more than they have taken in the value itself.
///
/// # Safety
/// A value of type jsonb, unpacked, with a full header. Takes memory from the current context and
/// does not give it back.
pub(super) unsafe fn assert_fits(
    value: *mut pg_sys::varlena,
    out: &Bounded<'_>,
) -> Result<(), Overflow> {
    use pg_sys::JsonbIteratorToken as Token;
    let left = out.left();
    let mut length: usize = 0;
    // SAFETY: as above; the iterator gives what is in the value, and is not used past its end.
    unsafe {
        let root = &raw mut (*value.cast::<pg_sys::Jsonb>()).root;
        let mut iterator = pg_sys::JsonbIteratorInit(root);
        let mut item = pg_sys::JsonbValue::default();
        loop {
            let token = pg_sys::JsonbIteratorNext(&raw mut iterator, &raw mut item, false);
            length = length.saturating_add(match token {
                Token::WJB_DONE => return Ok(()),
                Token::WJB_KEY | Token::WJB_VALUE | Token::WJB_ELEM => scalar(&item),
                _ => 0,
            });
            if length > left {
                return Err(Overflow::Limit);
            }
        }
    }
}

/// # Safety
/// An item that the iterator gave.
unsafe fn scalar(item: &pg_sys::JsonbValue) -> usize {
    use pg_sys::jbvType as Type;
    // SAFETY: as above; the type says which one of the union it is.
    unsafe {
        match item.type_ {
            Type::jbvString => {
                let length = usize::try_from(item.val.string.len).unwrap_or(0);
                if length == 0 {
                    return 2;
                }
                let text = std::slice::from_raw_parts(item.val.string.val.cast::<u8>(), length);
                json::length_inside(text) + 2
            }
            Type::jbvNumeric => {
                let numeric = item.val.numeric.cast::<pg_sys::varlena>();
                let start = pgrx::vardata_any(numeric).cast::<u8>();
                let length = pgrx::varsize_any_exhdr(numeric);
                json::numeric_length(std::slice::from_raw_parts(start, length))
            }
            _ => WORD,
        }
    }
}
