//! Composite values: JSON objects with the keys in the order of `jsonb`.

use pgrx::pg_sys;
use tide_feed::bounded::{Bounded, Overflow};
use tide_feed::json;

use super::{Origins, Value, varlena};
use crate::compat;
use crate::encoding::Encoding;

#[derive(Debug)]
pub(crate) struct Composite {
    type_id: pg_sys::Oid,
    /// A copy of our own.
    descriptor: pg_sys::TupleDesc,
    /// Sorted by length of name, then by name.
    fields: Vec<Field>,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

#[derive(Debug)]
struct Field {
    index: usize,
    /// `"name": `
    key: Vec<u8>,
    value: Value,
}

impl Composite {
    /// `None` for a type without a fixed form.
    ///
    /// # Safety
    /// As for [`Value::of`].
    pub(super) unsafe fn of(
        type_id: pg_sys::Oid,
        memory: pg_sys::MemoryContext,
        origins: &mut Origins,
        depth: usize,
    ) -> Option<Composite> {
        // SAFETY: as above; the copy lives in `memory`.
        unsafe {
            let descriptor = compat::with_row_type(type_id, |shared| {
                let before = pg_sys::MemoryContextSwitchTo(memory);
                let descriptor = pg_sys::CreateTupleDescCopy(shared);
                pg_sys::MemoryContextSwitchTo(before);
                descriptor
            })?;
            origins.relations.insert(pg_sys::get_typ_typrelid(type_id).to_u32());
            let count = usize::try_from((*descriptor).natts).unwrap_or(0);
            let mut fields = Vec::new();
            for index in 0..count {
                let attribute = compat::attribute(descriptor, index);
                if attribute.attisdropped {
                    continue;
                }
                let name = Encoding::of_database().owned(attribute.attname.data.as_ptr());
                let value = Value::of(attribute.atttypid, memory, origins, depth);
                fields.push((name, index, value));
            }
            Some(Composite::new(type_id, descriptor, count, fields))
        }
    }

    fn new(
        type_id: pg_sys::Oid,
        descriptor: pg_sys::TupleDesc,
        count: usize,
        mut fields: Vec<(Box<str>, usize, Value)>,
    ) -> Composite {
        fields.sort_by(|(a, ..), (b, ..)| (a.len(), a).cmp(&(b.len(), b)));
        let fields = fields.into_iter().map(|(name, index, value)| {
            let mut key = Vec::new();
            json::write_str(&mut key, &name);
            key.extend_from_slice(b": ");
            Field { index, key, value }
        });
        Composite {
            type_id,
            descriptor,
            fields: fields.collect(),
            values: vec![pg_sys::Datum::null(); count],
            nulls: vec![true; count],
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.fields.iter().map(|field| &field.value)
    }

    /// # Safety
    /// As for [`Value::write`].
    pub(super) unsafe fn write(
        &mut self,
        datum: pg_sys::Datum,
        out: &mut Bounded<'_>,
    ) -> Result<(), Overflow> {
        // SAFETY: as above; a composite value is a row with its type in the header.
        unsafe {
            let header = varlena::aligned(datum).cast::<pg_sys::HeapTupleHeaderData>();
            let of_type = (*header).t_choice.t_datum.datum_typeid;
            if of_type != self.type_id {
                return Composite::write_other(of_type, datum, out);
            }
            let length = pgrx::varsize_any(header.cast());
            let mut tuple = pg_sys::HeapTupleData {
                t_len: u32::try_from(length).unwrap_or(0),
                t_data: header,
                ..Default::default()
            };
            let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            pg_sys::heap_deform_tuple(&raw mut tuple, self.descriptor, values, nulls);
        }
        out.push(b'{')?;
        for (position, field) in self.fields.iter_mut().enumerate() {
            if position > 0 {
                out.extend_from_slice(b", ")?;
            }
            out.extend_from_slice(&field.key)?;
            let is_null = self.nulls.get(field.index).is_none_or(|null| *null);
            match self.values.get(field.index) {
                // SAFETY: as above; a field of its own type.
                Some(value) if !is_null => unsafe { field.value.write(*value, out)? },
                _ => out.extend_from_slice(b"null")?,
            }
        }
        out.push(b'}')
    }

    /// A value of another type than the column's: looked up for this once.
    unsafe fn write_other(
        type_id: pg_sys::Oid,
        datum: pg_sys::Datum,
        out: &mut Bounded<'_>,
    ) -> Result<(), Overflow> {
        // SAFETY: as for `write`; under a historic snapshot still.
        unsafe {
            let memory = pg_sys::CurrentMemoryContext;
            match Composite::of(type_id, memory, &mut Origins::default(), super::DEEPEST / 2) {
                Some(mut composite) if composite.type_id == type_id => composite.write(datum, out),
                _ => out.extend_from_slice(b"null"),
            }
        }
    }
}
